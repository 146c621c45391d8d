//! Ends, asked for and not: nothing that was answered is lost, neither to SIGTERM, be it sent once or twice, nor to a kill.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Server, endless, folder, question, rows};

fn count(folder: &std::path::Path) -> u64 {
    rows(folder, "select count(*) as n from exchanges")[0]["n"]
        .as_u64()
        .unwrap()
}

#[tokio::test]
async fn sigterm_appends_everything() {
    let folder = folder();
    let mut server = Server::start(folder.path()).await;
    for n in 0..5 {
        server.ask(&format!("Refund order {n}, please.")).await;
    }
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(0));
    assert_eq!(count(folder.path()), 5);
}

#[tokio::test]
async fn a_log_that_nobody_reads_any_more_keeps_nothing_from_working() {
    let folder = folder();
    let mut server = Server::start_unheard(folder.path()).await;
    server.ask("Where is my parcel?").await;
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(0));
    assert_eq!(count(folder.path()), 1);
}

#[tokio::test]
async fn sigterm_finishes_what_is_under_way() {
    let folder = folder();
    let patient = [("RETUNE_SERVER__GRACE_SECONDS", "300")];
    let mut server = Server::start_with(folder.path(), &patient).await;
    let mut asked = tokio::task::JoinSet::new();
    for n in 0..6 {
        let url = format!("{}/v1/chat/completions", server.url);
        let body = question(&format!("Where is parcel {n}?"));
        let request = server.http.post(url).json(&body);
        asked.spawn(async move { request.send().await?.error_for_status()?.bytes().await });
    }
    tokio::time::sleep(Duration::from_millis(60)).await;
    server.signal("TERM");
    let mut answered = 0;
    while let Some(answer) = asked.join_next().await {
        // One that had not been accepted yet may be refused, but none may be cut short and counted.
        answered += u64::from(answer.unwrap().is_ok());
    }
    assert_eq!(server.exit_code().await, Some(0));
    assert_eq!(count(folder.path()), answered);
}

#[tokio::test]
async fn the_end_of_stdin_stops_a_child() {
    let folder = folder();
    let mut server = Server::start(folder.path()).await;
    server.ask("Hello?").await;
    // Waiting closes the child's stdin first.
    assert_eq!(server.exit_code().await, Some(0));
    assert_eq!(count(folder.path()), 1);
}

#[tokio::test]
async fn after_a_kill_the_store_opens_again_and_takes_more() {
    let folder = folder();
    let mut server = Server::start(folder.path()).await;
    server.ask("First question.").await;
    server.signal("KILL");
    assert_eq!(server.exit_code().await, None);
    assert_eq!(count(folder.path()), 1, "beside a stopped server");

    let mut server = Server::start(folder.path()).await;
    server.ask("Second question.").await;
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(0));
    let kept = rows(
        folder.path(),
        "select request_id, replica from exchanges order by ts, replica, seq",
    );
    assert_eq!(kept.len(), 2);
    assert_ne!(kept[0]["replica"], kept[1]["replica"]);
}

/// A stream under way, of which the first piece has come.
struct Stream {
    response: reqwest::Response,
    text: String,
}

impl Stream {
    async fn start(server: &Server, body: &Value) -> Self {
        let response = server.post("/v1/chat/completions", body).await;
        assert_eq!(response.status(), 200);
        let mut stream = Self {
            response,
            text: String::new(),
        };
        while !stream.text.contains("\"content\":\"") {
            stream.next().await.expect("a piece");
        }
        stream
    }

    /// What is cut off is an end as well.
    async fn next(&mut self) -> Option<()> {
        let piece = self.response.chunk().await.ok()??;
        self.text.push_str(std::str::from_utf8(&piece).unwrap());
        Some(())
    }

    async fn finished(mut self) -> String {
        while self.next().await.is_some() {}
        self.text
    }
}

/// Rows reach the tables at the end alone, unless somebody sees to it before.
const LATE: (&str, &str) = ("RETUNE_STORE__APPEND_SECONDS", "3600");

fn ends(folder: &std::path::Path) -> Vec<(u64, Value)> {
    rows(
        folder,
        "select code, finish_reason from exchanges order by code, ts",
    )
    .iter()
    .map(|row| (row["code"].as_u64().unwrap(), row["finish_reason"].clone()))
    .collect()
}

#[tokio::test]
async fn after_sigterm_it_is_not_ready_takes_nothing_new_and_finishes_what_runs() {
    let folder = folder();
    let env = [
        LATE,
        ("RETUNE_SERVER__OPS_LISTEN", "127.0.0.1:0"),
        // However busy the machine is.
        ("RETUNE_SERVER__GRACE_SECONDS", "300"),
    ];
    let mut server = Server::start_with(folder.path(), &env).await;
    let ready = format!("{}/readyz", server.ops.clone().unwrap());
    assert_eq!(server.http.get(&ready).send().await.unwrap().status(), 200);
    let stream = Stream::start(&server, &endless(2)).await;
    server.signal("TERM");
    server.log_with("stopping;").await;
    assert_eq!(server.http.get(&ready).send().await.unwrap().status(), 503);
    // On a connection of its own, and on one that may still be open.
    for client in [reqwest::Client::new(), server.http.clone()] {
        let url = format!("{}/v1/chat/completions", server.url);
        let refused = client.post(url).json(&question("Hello?")).send().await;
        assert!(refused.is_err() || refused.unwrap().status() == 503);
    }
    let text = stream.finished().await;
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(server.exit_code().await, Some(0));
    let ends = ends(folder.path());
    assert_eq!(ends[0], (200, json!("length")));
    assert!(ends.len() == 1, "what was refused is no exchange: {ends:?}");
}

#[tokio::test]
async fn a_second_sigterm_cuts_off_what_runs_and_loses_nothing_that_is_finished() {
    let folder = folder();
    let mut server = Server::start_with(folder.path(), &[LATE]).await;
    for n in 0..3 {
        server.ask(&format!("Refund order {n}, please.")).await;
    }
    let stream = Stream::start(&server, &endless(128)).await;
    server.signal("TERM");
    // Two signals that come together count as one.
    server.log_with("stopping;").await;
    let second = Instant::now();
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(130));
    let took = second.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    let text = stream.finished().await;
    assert!(
        text.contains("server_stopping") && !text.contains("[DONE]"),
        "{text}"
    );
    let ends = ends(folder.path());
    assert_eq!(ends.len(), 4, "{ends:?}");
    assert!(ends[..3].iter().all(|(code, _)| *code == 200), "{ends:?}");
    assert_eq!(ends[3], (503, Value::Null));
}

#[tokio::test]
async fn what_still_runs_after_the_grace_period_is_abandoned_and_kept() {
    let folder = folder();
    let env = [LATE, ("RETUNE_SERVER__GRACE_SECONDS", "0.3")];
    let mut server = Server::start_with(folder.path(), &env).await;
    let stream = Stream::start(&server, &endless(128)).await;
    server.signal("TERM");
    let text = stream.finished().await;
    assert!(text.contains("server_stopping"), "{text}");
    assert_eq!(server.exit_code().await, Some(0));
    assert_eq!(ends(folder.path()), [(503, Value::Null)]);
}

/// Puts a file where a table's folder was.
fn break_store(folder: &std::path::Path) {
    let table = folder.join("store/exchanges");
    std::fs::rename(&table, folder.join("store/away")).unwrap();
    std::fs::write(table, "no folder").unwrap();
}

#[tokio::test]
async fn rows_that_cannot_be_written_at_the_end_are_a_failure_that_is_named() {
    let folder = folder();
    let mut server = Server::start_with(folder.path(), &[LATE]).await;
    server.ask("Where is my parcel?").await;
    break_store(folder.path());
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(1));
    let log = server.log_with("retune: rows could not be appended").await;
    let last = log
        .lines()
        .find(|line| line.contains("retune: rows could not be appended"));
    let last = last.unwrap();
    assert!(
        last.contains("exchanges") && last.contains("stay in the log"),
        "{log}"
    );

    // They are there once the store is.
    let table = folder.path().join("store/exchanges");
    std::fs::remove_file(&table).unwrap();
    std::fs::rename(folder.path().join("store/away"), table).unwrap();
    assert_eq!(count(folder.path()), 1);
    let mut server = Server::start(folder.path()).await;
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(0));
    assert_eq!(count(folder.path()), 1);
}

#[tokio::test]
async fn a_third_sigterm_waits_for_nothing_and_says_what_is_lost() {
    let folder = folder();
    let mut server = Server::start_with(folder.path(), &[LATE]).await;
    server.ask("Where is my parcel?").await;
    // So the second one waits, and tries again.
    break_store(folder.path());
    for said in ["stopping;", "stopping at once"] {
        server.signal("TERM");
        server.log_with(said).await;
    }
    let third = Instant::now();
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(1));
    assert!(third.elapsed() < Duration::from_secs(1));
    server
        .log_with("leaving at once; 1 row of exchanges waits in the log")
        .await;
}
