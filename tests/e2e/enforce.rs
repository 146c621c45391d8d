//! Formats that are enforced: the answers hold them, and the ledger still tells what the model says by itself.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{ROOT, Server, folder, rows};

/// A task on the pocket model whose answers hardly ever hold their format by themselves.
fn configured(folder: &Path, enforce: &str, format: &str) {
    std::fs::write(folder.join("prompt.txt"), "Say what the message is about.").unwrap();
    let toml = format!(
        "[engine]\nbase = \"{ROOT}/models/pocket\"\n[[task]]\nname = \"mark\"\nprompt = \"prompt.txt\"\n\
         format = {format}\nenforce = \"{enforce}\"\nprobe_share = 0.5\nmax_tokens = 12\n"
    );
    std::fs::write(folder.join("retune.toml"), toml).unwrap();
}

async fn ask(server: &Server, n: usize, changes: &Value) -> (String, String) {
    let mut body = json!({"model": "mark", "temperature": 0,
        "messages": [{"role": "user", "content": format!("My parcel number {n} is late.")}]});
    for (key, value) in changes.as_object().unwrap() {
        body[key] = value.clone();
    }
    let response = server.post("/v1/chat/completions", &body).await;
    let header = response.headers()["retune-format"]
        .to_str()
        .unwrap()
        .to_owned();
    let text = response.text().await.unwrap();
    if header == "pending" {
        return (header, text);
    }
    let answer: Value = serde_json::from_str(&text).unwrap();
    let content = &answer["choices"][0]["message"]["content"];
    (header, content.as_str().unwrap().to_owned())
}

#[tokio::test]
async fn constrained_answers_hold_and_only_probes_say_what_the_model_says_by_itself() {
    let folder = folder();
    configured(folder.path(), "constrain", "{ regex = \"mark-[0-9]{3}\" }");
    let mut server = Server::start(folder.path()).await;
    for n in 0..30 {
        let (header, text) = ask(&server, n, &json!({})).await;
        assert_eq!(header, "valid", "{text}");
        assert!(text.starts_with("mark-") && text.len() == 8, "{text}");
    }
    let (header, _) = ask(&server, 1, &json!({"response_format": {"type": "text"}})).await;
    assert_eq!(header, "none");
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(0));
    let count = |condition: &str| {
        let query = format!("select count(*) as n from exchanges where {condition}");
        rows(folder.path(), &query)[0]["n"].as_u64().unwrap()
    };
    assert_eq!(count("purpose = 'user'"), 31);
    assert_eq!(count("purpose = 'user' and format_valid is not null"), 0);
    let probes = count("purpose = 'probe'");
    assert!((5..=25).contains(&probes), "{probes}");
    assert_eq!(count("purpose = 'probe' and not format_valid"), probes);
}

#[tokio::test]
async fn an_invalid_answer_is_asked_for_once_more() {
    let folder = folder();
    // A model that is asked what a message is about says something longer or shorter than one letter.
    configured(folder.path(), "retry", "{ length = [1, 1] }");
    let mut server = Server::start(folder.path()).await;
    for n in 0..4 {
        let (header, _) = ask(&server, n, &json!({"seed": n})).await;
        assert!(header == "invalid" || header == "valid");
    }
    let (_, stream) = ask(&server, 9, &json!({"stream": true})).await;
    assert_eq!(
        stream.matches("\"finish_reason\":\"").count(),
        1,
        "{stream}"
    );
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(0));
    let found = rows(
        folder.path(),
        "select purpose, format_valid, format_reason, answer, parameters from exchanges order by ts, seq",
    );
    let first: Vec<&Value> = found.iter().filter(|r| r["purpose"] == "probe").collect();
    let users: Vec<&Value> = found.iter().filter(|r| r["purpose"] == "user").collect();
    assert_eq!(users.len(), 5);
    assert!(!first.is_empty());
    assert!(first.iter().all(|r| r["format_valid"] == false));
    let retried = users.iter().filter(|r| {
        r["parameters"]
            .as_str()
            .unwrap()
            .contains("\"enforced\":\"retry\"")
    });
    assert_eq!(retried.clone().count(), first.len());
    assert!(retried.clone().all(|r| r["format_valid"].is_null()));
}

#[tokio::test]
async fn what_cannot_be_enforced_is_known_before_the_start() {
    let folder = folder();
    configured(folder.path(), "constrain", "{ length = [1, 9] }");
    let output = crate::harness::run(folder.path(), &["check"]);
    let said = crate::harness::text(&output.stderr) + &crate::harness::text(&output.stdout);
    assert!(!output.status.success());
    assert!(
        said.contains("retune.toml:7") && said.contains("json_schema and regex"),
        "{said}"
    );
}
