//! The whole way, with a stand-in for the API.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use retune_task::Split;
use serde_json::{Value, json};

use super::super::tests::{row, seed};
use super::*;
use crate::Limits;
use crate::testing::{Reply, Request, StandIn, asked, config, rated, task, user};

fn limits() -> Limits {
    Limits {
        retry: Duration::from_millis(2),
        answer: Duration::from_millis(800),
        ..Limits::default()
    }
}

fn order(count: usize) -> Order {
    Order {
        count,
        seed: 7,
        sends_seed: true,
        temperature: Some(0.9),
    }
}

fn known() -> Known {
    let seeds: Vec<Seed> = (0..9)
        .map(|n| seed(n, &format!("seed number {n} about thing {}", n * 37)))
        .collect();
    let trained_on = seeds
        .iter()
        .map(|seed| (seed.id.clone(), seed.question().to_owned()));
    Known {
        trained_on: trained_on.collect(),
        seeds,
        held_out: vec![(
            "held-1".to_owned(),
            "Nobody may be shown this very message of mine".to_owned(),
        )],
    }
}

/// Whether messages are asked for, rather than an answer.
fn wants_messages(request: &Request) -> bool {
    request.body["messages"][1]["content"]
        .as_str()
        .is_some_and(|text| text.starts_with("The assistant's instructions"))
}

fn said(content: &str) -> Reply {
    Reply::ok(json!({
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }))
}

/// Words that no other number has.
fn new_message(n: usize) -> String {
    let word = |k: usize| -> String {
        format!("{:x}", (n + 1) * 7_919 * k)
            .chars()
            .map(|c| (b'a' + c.to_digit(16).unwrap() as u8) as char)
            .collect()
    };
    format!(
        "{} {} {} {}?",
        word(31),
        word(1_009),
        word(60_013),
        word(777_777)
    )
}

async fn wrote(
    server: &StandIn,
    count: usize,
    path: &std::path::Path,
) -> (Tally, Result<(), Error>, Vec<Row>) {
    let api = Api::new(
        &format!("{}/v1/", server.url),
        "strong",
        Some("sk-1"),
        &limits(),
    )
    .unwrap();
    let (mut sheet, mut tally) = (Sheet::create_or_open(path).unwrap(), Tally::default());
    let mut seen = Vec::new();
    let mut observer = |rows: usize| seen.push(rows);
    let done = write(
        &api,
        &task(),
        &known(),
        &order(count),
        &mut sheet,
        &mut tally,
        &mut observer,
    )
    .await;
    assert_eq!(seen.len() as u64, tally.kept);
    (tally, done, sheet.rows)
}

#[tokio::test]
async fn rows_come_are_checked_and_go_on_where_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new.jsonl");
    let next = Arc::new(AtomicUsize::new(0));
    let server = StandIn::start(move |request| {
        let next = Arc::clone(&next);
        async move {
            if !wants_messages(&request) {
                let last = request.body["messages"].as_array().unwrap().last().unwrap()["content"].clone();
                return match last.as_str().unwrap() {
                    "Break the format please" => said("words"),
                    "Ask for what is declined" => Reply::error(400, "content policy"),
                    _ => said("```json\n{\"is\":\"so\"}\n```"),
                };
            }
            let n = next.fetch_add(1, Ordering::SeqCst);
            match n {
                0 => Reply { headers: vec![("retry-after", "0".to_owned())], ..Reply::error(429, "slowly") },
                1 => Reply::error(503, "later"),
                2 => said("I would rather not."),
                3 => said(&json!({"messages": [
                    "Break the format please", "Ask for what is declined", "  ", "nobody may be shown this very message of mine!",
                    "Seed number 3 about thing 111"]}).to_string()),
                _ => {
                    let fresh: Vec<String> = (0..5).map(|k| new_message(n * 5 + k)).collect();
                    said(&json!({"messages": fresh}).to_string())
                }
            }
        }
    })
    .await;
    let (tally, done, rows) = wrote(&server, 8, &path).await;
    done.unwrap();
    assert_eq!((rows.len(), tally.kept), (8, 8));
    let counts: Vec<(&str, u64)> = tally
        .refused
        .iter()
        .map(|(why, told)| (why.as_str(), told.count))
        .collect();
    assert_eq!(
        counts,
        [
            ("empty", 1),
            ("nearly the same as one of the dataset", 1),
            ("nearly the same as one that is held out", 1),
            ("no messages were found in what the model said", 1),
            ("the API declined to answer it", 1),
            ("the answer breaks the task's format (not_json)", 1),
        ]
    );
    let such = &tally.refused["nearly the same as one of the dataset"].such_as;
    assert_eq!(such, &["\"Seed number 3 about thing 111\" (like seed-3)"]);
    assert!(tally.prompt_tokens >= 7 * tally.kept && tally.requests > 10);
    for row in &rows {
        assert_eq!(
            (row.answer(), row.messages.len(), row.review.is_none()),
            ("{\"is\":\"so\"}", 2, true)
        );
        assert_eq!(
            (row.synthetic.model.as_str(), row.synthetic.seeds.len()),
            ("strong", 6)
        );
    }
    let requests = server.requests.lock().unwrap().clone();
    for request in &requests {
        assert_eq!(request.path, "/v1/chat/completions");
        assert_eq!(
            (
                request.headers["authorization"].as_str(),
                &request.body["model"]
            ),
            ("Bearer sk-1", &json!("strong"))
        );
        assert!(
            !request.body.to_string().contains("Nobody may be shown"),
            "held out"
        );
        let wanted = if wants_messages(request) { 0.9 } else { 0.0 };
        assert_eq!(request.body["temperature"], wanted);
    }
    let shown: Vec<&Value> = requests
        .iter()
        .filter(|r| wants_messages(r))
        .map(|r| &r.body["messages"][1])
        .collect();
    assert_eq!(shown[0], shown[1], "the same is tried again");
    assert!(
        shown[2] != shown[3] && shown[3] != shown[4],
        "the seeds are others"
    );

    // The same command again asks nothing; with a higher count it adds.
    let before = requests.len();
    let (tally, done, rows) = wrote(&server, 8, &path).await;
    done.unwrap();
    assert_eq!(
        (tally.kept, rows.len(), server.paths().len()),
        (0, 8, before)
    );
    let (tally, done, rows) = wrote(&server, 10, &path).await;
    done.unwrap();
    assert_eq!((tally.kept, rows.len()), (2, 10));
    let questions: std::collections::BTreeSet<&str> = rows.iter().map(Row::question).collect();
    assert_eq!(questions.len(), 10);
}

#[tokio::test]
async fn a_model_that_repeats_itself_is_given_up_and_what_came_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new.jsonl");
    let server = StandIn::start(|request| async move {
        match wants_messages(&request) {
            true => said(r#"["How do I fold a map of the whole town?"]"#),
            false => said(r#"{"is":"so"}"#),
        }
    })
    .await;
    let (tally, done, rows) = wrote(&server, 4, &path).await;
    let error = done.unwrap_err().to_string();
    assert!(error.contains("nothing that could be kept"), "{error}");
    assert_eq!((tally.kept, rows.len(), tally.refused()), (1, 1, 10));
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
}

#[tokio::test]
async fn what_an_api_answers_instead_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new.jsonl");
    for (reply, says, tries) in [
        (401, "answered with 401: no such key", 1),
        (302, "answered with 302", 1),
        (429, "answered with 429", 12),
        // In its body.
        (0, "no choices[0].message", 1),
        // Never.
        (1, "cannot be reached", 3),
    ] {
        let server = StandIn::start(move |_| async move {
            match reply {
                0 => Reply::ok(json!({"choices": []})),
                1 => {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                    Reply::ok(json!({}))
                }
                302 => Reply {
                    headers: vec![("location", "http://127.0.0.1:1/".to_owned())],
                    ..Reply::error(302, "over there")
                },
                status => Reply::error(status, "no such key"),
            }
        })
        .await;
        let (tally, done, _) = wrote(&server, 4, &path).await;
        let error = done.unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains("sk-1"), "{error}");
        assert_eq!((tally.kept, server.paths().len()), (0, tries), "{error}");
    }
    for (url, key) in [
        ("api.example.com/v1", None),
        ("ftp://x/v1", None),
        ("", None),
        ("http://x/v1", Some("a\nb")),
    ] {
        assert!(Api::new(url, "m", key, &limits()).is_err(), "{url}");
    }
}

#[tokio::test]
async fn nothing_to_show_and_another_task_s_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let api = Api::new("http://127.0.0.1:1/v1", "strong", None, &limits()).unwrap();
    let mut sheet = Sheet::create_or_open(&folder.path().join("new.jsonl")).unwrap();
    let (task, mut tally) = (task(), Tally::default());
    let error = write(
        &api,
        &task,
        &Known::default(),
        &order(1),
        &mut sheet,
        &mut tally,
        &mut |_| {},
    )
    .await;
    assert!(error.unwrap_err().to_string().contains("--from"));
    let mut other = row("a", "b");
    other.synthetic.task = "triage".to_owned();
    sheet.rows.push(other);
    let error = write(
        &api,
        &task,
        &known(),
        &order(1),
        &mut sheet,
        &mut tally,
        &mut |_| {},
    )
    .await;
    assert!(error.unwrap_err().to_string().contains("rows of triage"));
}

#[tokio::test]
async fn what_is_held_out_is_neither_the_ledger_s_seed_nor_a_file_s() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let ledger = retune_ledger::Ledger::open(&config.store).await.unwrap();
    let task = &config.tasks[0];
    let split = |text: &str| retune_task::held_out(&retune_task::conversation(&[user(text)]));
    let (mut lines, mut held_out) = (String::new(), 0);
    for n in 0..40 {
        let text = new_message(n as usize);
        held_out += usize::from(split(&text) == Split::HeldOut);
        ledger
            .append_exchange(asked(n, &text, r#"{"is":"a"}"#))
            .await
            .unwrap();
        // Every fifth is rated by nobody.
        if n % 5 != 0 {
            ledger
                .append_feedback(rated(n, 100, "ann", 5))
                .await
                .unwrap();
        }
        let line = json!({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "{}"}]});
        lines.push_str(&format!("{line}\n"));
    }
    ledger.flush().await.unwrap();
    let mut known = Known::read(&ledger, task).await.unwrap();
    assert!(
        known.seeds.len() > 15
            && known
                .seeds
                .iter()
                .all(|seed| split(seed.question()) == Split::Train)
    );
    assert!(
        held_out > 0 && known.held_out.len() == held_out,
        "{held_out}"
    );
    let path = folder.path().join("examples.jsonl");
    std::fs::write(&path, &lines).unwrap();
    assert_eq!(known.read_file(&ledger, task, &path).unwrap(), held_out);
    assert_eq!(known.seeds.len(), 40 - held_out);
    assert!(
        known
            .seeds
            .iter()
            .all(|seed| split(seed.question()) != Split::HeldOut)
    );
    assert!(known.seeds[0].id.starts_with("examples.jsonl:"));
    let synthetic = serde_json::to_string(&row("a", "b")).unwrap();
    for (line, says) in [
        (synthetic.as_str(), "a model wrote it"),
        ("{}", "Missing"),
        (
            r#"{"messages": [{"role": "assistant", "content": "x"}]}"#,
            "a user's message",
        ),
    ] {
        std::fs::write(&path, format!("{lines}{line}\n")).unwrap();
        let error = known
            .read_file(&ledger, task, &path)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(says) && error.contains("examples.jsonl:41"),
            "{error}"
        );
    }
    ledger.close().await.unwrap();
}
