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
    let counted = rows(folder.path(), "select count(*) as n from exchanges");
    assert_eq!(counted[0]["n"], 3, "at once, though no table has them yet");
    let stats = run(folder.path(), &["ledger", "stats", "--json"]);
    let first: serde_json::Value =
        serde_json::from_str(text(&stats.stdout).lines().next().unwrap()).unwrap();
    assert_eq!((&first["rows"], &first["version"]), (&json!(3), &json!(0)));
}

#[tokio::test]
async fn without_its_log_a_server_answers_and_counts_or_refuses_as_it_was_told() {
    for reject in [false, true] {
        let folder = folder();
        // A file in the folder's place: nothing can be written below it, whoever runs this.
        let wal = folder.path().join("store/wal");
        std::fs::create_dir(wal.parent().unwrap()).unwrap();
        std::fs::write(&wal, "in the way").unwrap();
        let word = if reject { "reject" } else { "drop" };
        let environment = [("RETUNE_STORE__ON_LOG_FAILURE", word)];
        let server = Server::start_with(folder.path(), &environment).await;
        let body = question("Where is my invoice?");
        let asked = server.post("/v1/chat/completions", &body).await;
        if reject {
            assert_eq!(asked.status(), 503);
            assert!(asked.headers().contains_key("retry-after"));
            let error: serde_json::Value = asked.json().await.unwrap();
            assert_eq!(error["error"]["code"], "log_unavailable");
        } else {
            assert_eq!(asked.status(), 200);
            let answer: serde_json::Value = asked.json().await.unwrap();
            let metrics = server.get("/metrics").await.text().await.unwrap();
            let dropped = "retune_ledger_rows_dropped_total{reason=\"log\"} 1";
            assert!(metrics.contains(dropped), "{metrics}");
            let rating = json!({"completion_id": answer["id"], "rating": 1});
            let said = server.post("/v1/feedback", &rating).await;
            assert_eq!(said.status(), 503, "what is not kept was not accepted");
        }
        std::fs::remove_file(&wal).unwrap();
        let give_up = Instant::now() + Duration::from_secs(20);
        while server.post("/v1/chat/completions", &body).await.status() != 200 {
            assert!(Instant::now() < give_up, "no answer though the log is back");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let kept = rows(folder.path(), "select count(*) as n from exchanges");
        assert_eq!(kept[0]["n"], 1);
    }
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

#[test]
fn a_question_s_own_mistake_is_no_damage_and_no_answer_has_its_columns() {
    let folder = folder();
    for question in [
        "select 1/0",
        "select cast('x' as int)",
        "select count(*) from exchanges where ts > '2026'",
    ] {
        let output = run(folder.path(), &["ledger", "sql", question]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            !said.contains("damaged") && !said.contains("cannot be read"),
            "{said}"
        );
    }
    let output = run(
        folder.path(),
        &["ledger", "sql", "select request_id, code from exchanges"],
    );
    let told = text(&output.stdout);
    assert!(told.contains("| request_id | code |"), "{told}");
}

#[test]
fn what_is_not_there_is_said_to_be_missing() {
    let folder = folder();
    let said = |arguments: &[&str], code| {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        text(&output.stderr)
    };
    let told = said(&["ledger", "export", "--task", "triag"], 1);
    assert!(told.contains("triag") && told.contains("triage"), "{told}");
    let told = said(&["ledger", "forget", "--user", "nobody"], 0);
    assert!(
        told.contains("nothing of \"nobody\"") && told.contains("no retune.toml"),
        "{told}"
    );
    assert!(said(&["ledger", "forget", "--user", ""], 1).contains("--user"));
    let told = said(&["retrain", "--task", "triage", "--trigger", "none"], 1);
    assert!(told.contains("no alarm none"), "{told}");
    let told = said(&["adapter", "promote", "triage@9"], 1);
    assert!(
        told.contains("`retune adapter list --task triage`"),
        "{told}"
    );
}
