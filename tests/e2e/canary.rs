//! A canary that people like less than the champion does not stay, whoever began it.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Server, folder, run, text};
use crate::model;

#[tokio::test]
async fn one_that_is_worse_on_live_traffic_is_rejected_and_the_history_says_why() {
    let folder = folder();
    model::write_base(&folder.path().join("tiny"));
    fs::write(folder.path().join("prompt.txt"), "Answer with a number.\n").unwrap();
    let toml = "[engine]\nbase = \"tiny\"\n[store]\nappend_seconds = 1.0\n\n[[task]]\nname = \"count\"\nprompt = \"prompt.txt\"\n\
                adapter_prompt = \"Count.\"\n";
    fs::write(folder.path().join("retune.toml"), toml).unwrap();
    let lora = folder.path().join("lora");
    model::write_adapter(&lora, 1);
    let server = Server::start(folder.path()).await;
    let body = json!({"task": "count", "folder": lora});
    assert_eq!(server.post("/admin/adapters", &body).await.status(), 201);
    let share = json!({"share": 0.5, "reason": "to see what people say"});
    let begun = server.post("/admin/adapters/count@1/canary", &share).await;
    assert_eq!(begun.status(), 200, "{}", begun.text().await.unwrap());

    let mut seen = [0; 2];
    for n in 0..80 {
        let body = json!({"model": "count", "messages": [{"role": "user", "content": format!("Hello {n}")}],
            "user": format!("user-{n}"), "temperature": 0, "max_tokens": 4});
        let answer: Value = server
            .post("/v1/chat/completions", &body)
            .await
            .json()
            .await
            .unwrap();
        let is_canary = answer["model"] == "count@1";
        // It may be over before the last one.
        seen[usize::from(is_canary)] += 1;
        let said = json!({"completion_id": answer["id"], "rating": if is_canary { 1 } else { 5 }});
        assert_eq!(server.post("/v1/feedback", &said).await.status(), 201);
    }
    assert!(seen.iter().all(|n| *n >= 8), "{seen:?}");

    let give_up = Instant::now() + Duration::from_secs(90);
    let shown = loop {
        let shown: Value = server
            .get("/admin/adapters/count@1")
            .await
            .json()
            .await
            .unwrap();
        if shown["stage"] == "rejected" {
            break shown;
        }
        assert!(Instant::now() < give_up, "{shown}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    let history = shown["history"].as_array().unwrap();
    assert_eq!(history[0]["reason"], "to see what people say");
    let last = history.last().unwrap();
    assert_eq!(last["by"], "canary's test");
    let reason = last["reason"].as_str().unwrap();
    assert!(
        reason.contains("worse than count@base on live traffic"),
        "{reason}"
    );
    let told = run(folder.path(), &["adapter", "show", "count@1"]);
    assert!(text(&told.stdout).contains("canary's test"));
}
