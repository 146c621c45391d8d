//! What a task withholds is nowhere in the store, and what is left still fits together.

use std::path::Path;

use serde_json::json;

use crate::harness::{Server, folder, question, rows};

/// Everything that lies in a folder, as bytes.
fn all_bytes(folder: &Path, bytes: &mut Vec<u8>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all_bytes(&path, bytes);
        } else {
            bytes.extend(std::fs::read(path).unwrap());
        }
    }
}

#[tokio::test]
async fn personal_data_is_replaced_before_anything_is_written_and_alike_within_a_conversation() {
    let folder = folder();
    let environment = [
        (
            "RETUNE_TASK__TRIAGE__PRIVACY__REDACT",
            r#"["email", "card"]"#,
        ),
        (
            "RETUNE_TASK__TRIAGE__PRIVACY__PATTERNS",
            r#"["CUST-[0-9]{6}"]"#,
        ),
    ];
    let mut server = Server::start_with(folder.path(), &environment).await;
    let secrets = ["ann.lee@example.org", "4111 1111 1111 1111", "CUST-480217"];
    let mut body = question(&format!(
        "I am {}, my card is {}, customer {}; order 169109.",
        secrets[0], secrets[1], secrets[2]
    ));
    body["metadata"] = json!({"from": secrets[0]});
    let answer: serde_json::Value = server
        .post("/v1/chat/completions", &body)
        .await
        .json()
        .await
        .unwrap();
    let said = json!({"completion_id": answer["id"], "rating": 2, "correction": format!("{{\"mail\": \"{}\"}}", secrets[0])});
    assert_eq!(server.post("/v1/feedback", &said).await.status(), 201);
    // While it is in the log alone, and when it is in the table.
    for _ in 0..2 {
        let mut bytes = Vec::new();
        all_bytes(&folder.path().join("store"), &mut bytes);
        for secret in secrets {
            let is_there = bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
            assert!(!is_there, "{secret} was written");
        }
        server.signal("TERM");
        assert_eq!(server.exit_code().await, Some(0));
        server = Server::start_with(folder.path(), &environment).await;
    }
    let kept = rows(
        folder.path(),
        "select e.messages, e.metadata, f.correction from exchanges e join feedback f on e.request_id = f.request_id",
    );
    let text = |column: &str| kept[0][column].as_str().unwrap().to_owned();
    let messages: serde_json::Value = serde_json::from_str(&text("messages")).unwrap();
    let prompt = messages[0]["content"].as_str().unwrap();
    let mail = prompt
        .strip_prefix("I am ")
        .unwrap()
        .split(',')
        .next()
        .unwrap();
    assert!(
        mail.ends_with(".org") && mail.contains('@') && mail.len() == secrets[0].len(),
        "{prompt}"
    );
    assert!(prompt.ends_with("; order 169109."), "{prompt}");
    assert!(
        !prompt.contains("1111") && prompt.contains("customer ") && prompt.contains("my card is 4"),
        "{prompt}"
    );
    assert_eq!(text("correction"), format!("{{\"mail\": \"{mail}\"}}"));
    assert_eq!(text("metadata"), format!("{{\"from\":\"{mail}\"}}"));
}

#[tokio::test]
async fn prompts_are_dropped_or_digested_and_texts_sampled_as_the_task_says() {
    for (key, value) in [
        ("PROMPTS", "drop"),
        ("PROMPTS", "hash"),
        ("TEXT_SHARE", "0"),
    ] {
        let folder = folder();
        let name = format!("RETUNE_TASK__TRIAGE__PRIVACY__{key}");
        let server = Server::start_with(folder.path(), &[(name.as_str(), value)]).await;
        for _ in 0..2 {
            server.ask("Where is my parcel?").await;
        }
        let kept = rows(
            folder.path(),
            "select messages, answer, conversation, format_valid from exchanges",
        );
        assert_eq!(kept[0]["conversation"], kept[1]["conversation"]);
        assert_eq!(kept[0]["messages"], kept[1]["messages"]);
        assert!(
            !kept[0]["format_valid"].is_null(),
            "what was checked is told"
        );
        let has = |column: &str| kept[0].get(column).is_some_and(|value| !value.is_null());
        assert_eq!(
            (has("messages"), has("answer")),
            match value {
                "drop" => (false, true),
                "hash" => (true, true),
                _ => (false, false),
            }
        );
        assert!(!kept[0]["messages"].to_string().contains("parcel"));
    }
}

#[tokio::test]
async fn an_answer_that_is_not_to_be_stored_brings_no_words_into_the_store_by_feedback_either() {
    let folder = folder();
    let server = Server::start(folder.path()).await;
    let mut body = question("My otter is gone.");
    body["store"] = json!(false);
    let answer = server.post("/v1/chat/completions", &body).await;
    let answer: serde_json::Value = answer.json().await.unwrap();
    let id = &answer["id"];
    for said in [
        json!({"completion_id": id, "rating": 2, "correction": "Your otter is here."}),
        json!({"completion_id": id, "rubric": {"accuracy": 1}, "comment": "the otter was forgotten"}),
        // Of this nothing is left, and it takes back neither of the others.
        json!({"completion_id": id, "correction": "An otter."}),
    ] {
        assert_eq!(server.post("/v1/feedback", &said).await.status(), 201);
    }
    let kept = rows(
        folder.path(),
        "select rating, rubric, correction, comment from feedback order by ts",
    );
    assert_eq!(
        kept,
        [json!({"rating": 2}), json!({"rubric": "{\"accuracy\":1}"})],
        "what has no words is kept"
    );
    let mut bytes = Vec::new();
    all_bytes(&folder.path().join("store"), &mut bytes);
    assert!(!bytes.windows(5).any(|w| w == b"otter"), "it was written");
}
