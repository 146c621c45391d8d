//! An alarm, as an operator meets it: what is told of it, the page, and what can be said to it.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::harness::{folder, retune, run, text};

/// Logs of a task whose answers break in the end: 400 that hold the format, 100 about something else that do not.
fn drifted(folder: &Path) {
    let usual = [
        "where is my parcel",
        "send the invoice again",
        "i cannot log in",
    ];
    let line = |n: usize| {
        let (asked, answer) = match n {
            0..400 => (
                format!("{} {n}", usual[n % 3]),
                r#"{"team":"shipping","urgent":false,"product":null,"order":null}"#,
            ),
            // As long as the others: nothing but the format is worse.
            _ => (
                format!("how do i return the shoes {n}"),
                r#"{"team":"<script>","urgent":false,"product":null,"order":null}"#,
            ),
        };
        json!({
            "task": "triage", "adapter": "triage@base", "ts": 1_760_000_000 + n,
            "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}],
        })
    };
    let lines: Vec<String> = (0..500).map(|n| line(n).to_string()).collect();
    std::fs::write(folder.join("logs.jsonl"), lines.join("\n")).unwrap();
    let output = run(folder, &["ledger", "import", "logs.jsonl"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Exit code and stdout.
fn monitor(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(folder, &[&["monitor"], arguments].concat());
    let said = text(&output.stderr);
    assert!(!said.contains("panicked"), "{said}");
    (output.status.code(), text(&output.stdout))
}

fn states(folder: &Path) -> (Option<i32>, Value) {
    let (code, printed) = monitor(folder, &["--once", "--json"]);
    let lines = printed
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let format = lines.into_iter().find(|line| line["stream"] == "format");
    (code, format.unwrap())
}

#[test]
fn is_explained_shown_silenced_and_acknowledged() {
    let folder = folder();
    let folder = folder.path();
    drifted(folder);
    let (code, format) = states(folder);
    assert_eq!((code, format["state"].as_str()), (Some(3), Some("alarm")));
    let alarm = format["alarm"].as_str().unwrap();

    let (code, told) = monitor(folder, &["report"]);
    assert_eq!(code, Some(0));
    for expected in [alarm, "shoes", "something else is asked", "how do i return"] {
        assert!(told.contains(expected), "no {expected} in {told}");
    }
    let (_, value) = monitor(folder, &["report", "--json"]);
    let value: Value = serde_json::from_str(&value).unwrap();
    assert_eq!(value["alarms"][0]["alarm"], alarm);
    let why = &value["alarms"][0]["evidence"]["why"];
    assert!(why["separable"].as_f64().unwrap() > 0.9, "{why}");
    let answer = &value["alarms"][0]["requests"][0]["answer"];
    assert!(answer.as_str().unwrap().contains("<script>"), "{answer}");

    let (code, _) = monitor(folder, &["report", "--html", "drift.html"]);
    assert_eq!(code, Some(0));
    let page = std::fs::read_to_string(folder.join("drift.html")).unwrap();
    assert!(page.contains(alarm) && page.contains("shoes"), "{page}");
    assert!(!page.contains("<script"), "{page}");

    let reason = ["--reason", "the shop moves"];
    let silence = [&["silence", alarm, "--hours", "2"][..], &reason].concat();
    assert_eq!(monitor(folder, &silence).0, Some(0));
    let (code, format) = states(folder);
    assert_eq!((code, format["state"].as_str()), (Some(0), Some("warning")));
    let acknowledge = [&["acknowledge", alarm][..], &reason].concat();
    assert_eq!(monitor(folder, &acknowledge).0, Some(0));
    assert!(monitor(folder, &["report"]).1.contains("the shop moves"));

    let for_ever = [&["silence", alarm, "--hours", "4294967295"][..], &reason].concat();
    let output = run(folder, &[&["monitor"][..], &for_ever].concat());
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("8784"));

    let unknown = [&["acknowledge", "none"][..], &reason].concat();
    let output = run(folder, &[&["monitor"][..], &unknown].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("report --all"));
}

#[tokio::test]
async fn a_monitor_apart_from_the_server_is_scraped_as_well() {
    let folder = folder();
    let folder = folder.path();
    drifted(folder);
    let mut command = retune(folder);
    let exposed = command.env("RETUNE_MONITOR__LISTEN", "0.0.0.0:0");
    let output = exposed.arg("monitor").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    for part in ["monitor.listen", "0.0.0.0:0", "retune keys create"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }

    let mut command = tokio::process::Command::from(retune(folder));
    command
        .args(["monitor", "--json", "--stop-with-stdin"])
        .env("RETUNE_MONITOR__LISTEN", "127.0.0.1:0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().expect("where it listens");
    let first: Value = serde_json::from_str(&line).unwrap();
    let ops = first["ops"].as_str().unwrap();
    let get = |path: &str| reqwest::get(format!("{ops}{path}"));
    let give_up = Instant::now() + Duration::from_secs(30);
    let metrics = loop {
        let metrics = get("/metrics").await.unwrap().text().await.unwrap();
        let alarm = |line: &str| line.starts_with("retune_alarm_active{") && line.ends_with(" 1");
        if metrics.lines().any(alarm) {
            break metrics;
        }
        assert!(Instant::now() < give_up, "no alarm in {metrics}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(
        metrics.contains("retune_ledger_lag_seconds 0"),
        "the ledger's figures are not in {metrics}"
    );
    assert_eq!(get("/healthz").await.unwrap().status(), 200);
    assert_eq!(get("/v1/models").await.unwrap().status(), 404);
    drop(child.stdin.take());
    let status = tokio::time::timeout(Duration::from_secs(30), child.wait()).await;
    assert!(status.expect("an end").unwrap().success());
}

#[test]
fn a_page_that_cannot_be_written_is_named() {
    let folder = folder();
    let output = run(
        folder.path(),
        &["monitor", "report", "--html", "none/drift.html"],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("none/drift.html"));
}

#[test]
fn embeddings_that_are_none_are_refused_with_the_folder() {
    let folder = folder();
    std::fs::create_dir(folder.path().join("vectors")).unwrap();
    for arguments in [&["check"][..], &["monitor", "--once"]] {
        let mut command = retune(folder.path());
        command.env("RETUNE_MONITOR__EMBEDDINGS", folder.path().join("vectors"));
        let output = command.args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = text(&output.stderr);
        assert!(
            said.contains("monitor.embeddings") && said.contains("vectors"),
            "{said}"
        );
    }
}
