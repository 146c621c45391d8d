//! What was asked and answered is in the tables as it was, and can be asked for while the server runs.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Server, folder, question, rows, run, text};

#[tokio::test]
async fn an_exchange_is_kept_whole() {
    let folder = folder();
    let mut server = Server::start(folder.path()).await;
    let mut body = question("The app crashes when I open it.");
    body["user"] = json!("user-7");
    body["metadata"] = json!({"app": "mail"});
    let answer: serde_json::Value = server
        .post("/v1/chat/completions", &body)
        .await
        .json()
        .await
        .unwrap();
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(0));

    let columns = "request_id, purpose, task, model_requested, adapter, stage, answer, code, prompt_tokens, completion_tokens";
    let kept = rows(folder.path(), &format!("select {columns} from exchanges"));
    let expected = json!({
        "request_id": answer["id"],
        "purpose": "user",
        "task": "triage",
        "model_requested": "triage",
        "adapter": "triage@base",
        "stage": "baseline",
        "answer": answer["choices"][0]["message"]["content"],
        "code": 200,
        "prompt_tokens": answer["usage"]["prompt_tokens"],
        "completion_tokens": answer["usage"]["completion_tokens"],
    });
    assert_eq!(kept, [expected]);
    let whole = rows(folder.path(), "select * from exchanges");
    let whole = whole[0].to_string();
    for said in ["The app crashes when I open it.", "user-7", "mail"] {
        assert!(whole.contains(said), "{said} is not in {whole}");
    }
}

#[tokio::test]
async fn rows_can_be_asked_for_beside_a_running_server() {
    let folder = folder();
    let server = Server::start(folder.path()).await;
    for n in 0..3 {
        server.ask(&format!("Cancel order {n}.")).await;
    }
    let give_up = Instant::now() + Duration::from_secs(20);
    let count = || {
        rows(folder.path(), "select count(*) as n from exchanges")[0]["n"]
            .as_u64()
            .unwrap()
    };
    while count() < 3 {
        assert!(Instant::now() < give_up, "three rows within twenty seconds");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(count(), 3);
}

#[test]
fn a_query_that_cannot_be_answered_says_why_and_nothing_can_be_written() {
    let folder = folder();
    let unknown = run(
        folder.path(),
        &["ledger", "sql", "select colour from exchanges"],
    );
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        text(&unknown.stderr).contains("colour"),
        "{}",
        text(&unknown.stderr)
    );
    for writing in [
        "drop table exchanges",
        "create table x as select 1",
        "insert into feedback select * from feedback",
    ] {
        let output = run(folder.path(), &["ledger", "sql", writing]);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{writing}: {}",
            text(&output.stdout)
        );
    }
}

#[test]
fn stats_name_every_table() {
    let folder = folder();
    let output = run(folder.path(), &["ledger", "stats", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let tables: Vec<String> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|value| {
            assert_eq!(value["rows"], 0);
            value["table"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(tables, ["exchanges", "feedback", "windows", "runs"]);
}
