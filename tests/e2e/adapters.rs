//! Adapters' whole life, over HTTP and the command line: brought, tried, promoted, taken back, and what a restart remembers.
//!
//! The base is tiny and random, and so are the adapters: what they say means nothing, but each says its own, every time.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Server, folder, run, text};
use crate::model;

/// A folder with a configuration of one task, `count`, and its base.
fn house() -> TempDir {
    let folder = folder();
    model::write_base(&folder.path().join("tiny"));
    fs::write(folder.path().join("prompt.txt"), "Answer with a number.\n").unwrap();
    let toml = "[engine]\nbase = \"tiny\"\n\n[[task]]\nname = \"count\"\nprompt = \"prompt.txt\"\nadapter_prompt = \"Count.\"\n";
    fs::write(folder.path().join("retune.toml"), toml).unwrap();
    folder
}

/// A PEFT folder.
fn lora(folder: &Path, seed: u64) -> PathBuf {
    let lora = folder.join(format!("lora-{seed}"));
    model::write_adapter(&lora, seed);
    lora
}

async fn read(response: reqwest::Response) -> (u16, Value) {
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn import(server: &Server, folder: &Path) -> (u16, Value) {
    let body = json!({"task": "count", "folder": folder});
    read(server.post("/admin/adapters", &body).await).await
}

async fn act(server: &Server, name: &str, action: &str, body: Value) -> (u16, Value) {
    let path = format!("/admin/adapters/{name}/{action}");
    read(server.post(&path, &body).await).await
}

async fn promote(server: &Server, name: &str, expected: &str) {
    let (status, item) = act(
        server,
        name,
        "promote",
        json!({"expected_champion": expected}),
    )
    .await;
    assert_eq!(
        (status, &item["stage"]),
        (200, &json!("champion")),
        "{item}"
    );
}

/// A greedy answer of `model`, and who gave it.
async fn ask(server: &Server, model: &str, user: &str) -> (String, String) {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "Hello"}], "user": user, "temperature": 0,
        "max_tokens": 8});
    let response = server.post("/v1/chat/completions", &body).await;
    assert_eq!(response.status(), 200);
    let adapter = response.headers()["retune-adapter"]
        .to_str()
        .unwrap()
        .to_owned();
    let answer: Value = response.json().await.unwrap();
    let content = answer["choices"][0]["message"]["content"].as_str();
    (content.unwrap().to_owned(), adapter)
}

async fn stages(server: &Server) -> Vec<String> {
    let (_, list) = read(server.get("/admin/adapters").await).await;
    let items = list["data"].as_array().unwrap();
    items
        .iter()
        .map(|item| item["stage"].as_str().unwrap().to_owned())
        .collect()
}

/// `retune adapter ... --json`, which has to succeed, and its first line.
fn retune_adapter(folder: &Path, arguments: &[&str]) -> Value {
    let output = run(folder, &[&["adapter", "--json"], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_str(text(&output.stdout).lines().next().unwrap()).unwrap()
}

#[tokio::test]
async fn what_is_brought_becomes_a_candidate_once() {
    let folder = house();
    let server = Server::start(folder.path()).await;
    let one = lora(folder.path(), 5);
    let (status, item) = import(&server, &one).await;
    assert_eq!(status, 201, "{item}");
    assert_eq!(
        (&item["name"], &item["stage"], &item["source"]),
        (&json!("count@1"), &json!("candidate"), &json!("import"))
    );
    let (answer, adapter) = ask(&server, "count@1", "ann").await;
    assert_eq!(adapter, "count@1");
    assert_ne!(answer, ask(&server, "count@base", "ann").await.0);

    // The same files from elsewhere are the same adapter; so they are for the command line.
    let copy = folder.path().join("copy");
    model::write_adapter(&copy, 5);
    let (status, again) = import(&server, &copy).await;
    assert_eq!(
        (status, &again["name"], &again["digest"]),
        (200, &item["name"], &item["digest"])
    );
    let imported = retune_adapter(folder.path(), &["import", "--task", "count", "copy"]);
    assert_eq!(imported["name"], "count@1");
    let two = lora(folder.path(), 6);
    let imported = retune_adapter(
        folder.path(),
        &["import", "--task", "count", two.to_str().unwrap()],
    );
    assert_eq!(imported["name"], "count@2");
    assert_eq!(stages(&server).await, ["candidate", "candidate"]);

    let (_, shown) = read(server.get("/admin/adapters/count@1").await).await;
    assert_eq!(
        (&shown["manifest"]["lora"]["r"], &shown["history"]),
        (&json!(4), &json!([]))
    );
    assert_eq!(shown["manifest"]["base"], "tiny");
    assert_eq!(
        read(server.get("/admin/adapters/count@9").await).await.0,
        404
    );
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_with_all_its_reasons() {
    let folder = house();
    let server = Server::start(folder.path()).await;
    let broken = lora(folder.path(), 5);
    let mut config = model::adapter_config();
    config["use_rslora"] = json!(true);
    config["use_dora"] = json!(true);
    model::write_json(&broken.join("adapter_config.json"), &config);
    let (status, body) = import(&server, &broken).await;
    let said = body["error"]["message"].as_str().unwrap();
    assert_eq!((status, &body["error"]["param"]), (400, &json!("folder")));
    assert!(
        said.contains("use_rslora") && said.contains("use_dora"),
        "{said}"
    );
    let output = run(
        folder.path(),
        &["adapter", "import", "--task", "count", "lora-5"],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("use_rslora"),
        "{}",
        text(&output.stderr)
    );

    let wrong = [
        (json!({"task": "count", "folder": "lora-5"}), 400),
        (
            json!({"task": "count", "folder": folder.path().join("none")}),
            400,
        ),
        (json!({"task": "nobody", "folder": broken}), 404),
        (json!({"task": "count"}), 400),
    ];
    for (body, status) in wrong {
        let (found, answer) = read(server.post("/admin/adapters", &body).await).await;
        assert_eq!(found, status, "{body}: {answer}");
    }
    assert!(stages(&server).await.is_empty());
}

#[tokio::test]
async fn a_canary_answers_its_share_of_the_users_and_always_the_same_ones() {
    let folder = house();
    let server = Server::start(folder.path()).await;
    import(&server, &lora(folder.path(), 5)).await;
    let (status, _) = act(&server, "count@1", "canary", json!({"share": 1.5})).await;
    assert_eq!(status, 400);
    let (status, item) = act(&server, "count@1", "canary", json!({"share": 0.5})).await;
    assert_eq!(
        (status, &item["stage"], &item["canary_share"]),
        (200, &json!("canary"), &json!(0.5))
    );
    let mut canary = 0;
    for i in 0..40 {
        let user = format!("user-{i}");
        let (_, first) = ask(&server, "count", &user).await;
        assert_eq!(ask(&server, "count", &user).await.1, first);
        canary += usize::from(first == "count@1");
    }
    assert!((8..33).contains(&canary), "{canary} of 40");
    let (_, model) = read(server.get("/v1/models/count@1").await).await;
    assert_eq!(model["canary_share"], 0.5);

    // A shadow is no canary, and answers nobody.
    let (status, _) = act(&server, "count@1", "shadow", json!({"share": 1})).await;
    assert_eq!(status, 409);
    let (_, item) = act(&server, "count@1", "canary", json!({"share": 0})).await;
    assert_eq!(item["stage"], "candidate");
    let (_, item) = act(&server, "count@1", "shadow", json!({"share": 1})).await;
    assert_eq!(
        (&item["stage"], &item["shadow_share"]),
        (&json!("candidate"), &json!(1.0))
    );
    assert_eq!(ask(&server, "count", "user-1").await.1, "count@base");
    let (status, _) = act(&server, "count@1", "unload", json!({})).await;
    assert_eq!(status, 409);
}

#[tokio::test]
async fn champions_come_and_go_back_and_a_restart_remembers() {
    let folder = house();
    let mut server = Server::start(folder.path()).await;
    for seed in [5, 6, 7] {
        import(&server, &lora(folder.path(), seed)).await;
    }
    promote(&server, "count@1", "count@base").await;
    let (status, body) = act(
        &server,
        "count@2",
        "promote",
        json!({"expected_champion": "count@base"}),
    )
    .await;
    let said = body["error"]["message"].as_str().unwrap();
    assert_eq!(status, 409);
    assert!(said.contains("is count@1, not count@base"), "{said}");
    promote(&server, "count@2", "count@1").await;
    promote(&server, "count@3", "count@2").await;

    let back = json!({"expected_champion": "count@2"});
    assert_eq!(act(&server, "count@3", "rollback", back).await.0, 409);
    let (status, item) = act(&server, "count@3", "rollback", json!({})).await;
    assert_eq!(
        (status, &item["stage"], &item["champion"]),
        (200, &json!("retired"), &json!("count@2"))
    );
    assert_eq!(ask(&server, "count", "ann").await.1, "count@2");
    // The second step back by the command line: the server hears of it.
    let item = retune_adapter(folder.path(), &["rollback", "count@2"]);
    assert_eq!(item["champion"], "count@1");
    for _ in 0..100 {
        if ask(&server, "count", "ann").await.1 == "count@1" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let answer = ask(&server, "count", "ann").await;
    assert_eq!(answer.1, "count@1");
    act(&server, "count@3", "shadow", json!({"share": 0.25})).await;

    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(0));
    let server = Server::start(folder.path()).await;
    assert_eq!(ask(&server, "count", "ann").await, answer);
    assert_eq!(stages(&server).await, ["champion", "retired", "retired"]);
    let (_, shown) = read(server.get("/admin/adapters/count@3").await).await;
    assert_eq!(shown["shadow_share"], 0.25);
    let history = shown["history"].as_array().unwrap();
    let stages: Vec<_> = history
        .iter()
        .map(|h| h["stage"].as_str().unwrap())
        .collect();
    assert_eq!(stages, ["champion", "retired", "retired"], "{history:?}");

    // One more step is the baseline, and before it there was nothing.
    act(&server, "count@1", "rollback", json!({})).await;
    assert_eq!(ask(&server, "count", "ann").await.1, "count@base");
    let (status, body) = act(&server, "count@base", "rollback", json!({})).await;
    assert_eq!(status, 409, "{body}");
    // What is rejected takes no traffic.
    act(&server, "count@2", "reject", json!({})).await;
    let output = run(folder.path(), &["adapter", "promote", "count@2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("was rejected"));
}

#[tokio::test]
async fn what_left_memory_comes_back_as_it_was() {
    let folder = house();
    let env = [("RETUNE_ENGINE__MAX_LOADED", "2")];
    let server = Server::start_with(folder.path(), &env).await;
    let mut answers = Vec::new();
    for (number, seed) in (1..4).zip(5..) {
        import(&server, &lora(folder.path(), seed)).await;
        answers.push(ask(&server, &format!("count@{number}"), "ann").await);
    }
    let (_, list) = read(server.get("/admin/adapters").await).await;
    let loaded: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["loaded"].as_bool().unwrap())
        .collect();
    assert_eq!(loaded, [false, true, true]);
    for answer in &answers {
        assert_eq!(ask(&server, &answer.1, "ann").await, *answer);
    }
}

#[tokio::test]
async fn an_adapter_that_answers_otherwise_than_where_it_was_made_is_not_loaded() {
    let folder = house();
    let server = Server::start(folder.path()).await;
    import(&server, &lora(folder.path(), 5)).await;
    let (said, _) = ask(&server, "count@1", "ann").await;
    act(&server, "count@1", "unload", json!({})).await;
    let path = folder.path().join("store/adapters/count/1/manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut record = |answer: &str| {
        let messages =
            json!([{"role": "system", "content": "Count."}, {"role": "user", "content": "Hello"}]);
        manifest["probes"] =
            json!([{"messages": messages, "max_tokens": 8, "answer": answer, "differs": true}]);
        fs::write(&path, manifest.to_string()).unwrap();
    };
    record("never said");
    // A restart: what was proved in this process would be asked for that again.
    drop(server);
    let server = Server::start(folder.path()).await;
    let (status, body) = act(&server, "count@1", "load", json!({})).await;
    let message = body["error"]["message"].as_str().unwrap();
    assert_eq!(status, 409);
    assert!(message.contains("1 of the 1 probes"), "{message}");
    let (status, _) = act(
        &server,
        "count@1",
        "promote",
        json!({"expected_champion": "count@base"}),
    )
    .await;
    assert_eq!(status, 409);
    assert_eq!(ask(&server, "count", "ann").await.1, "count@base");
    record(&said);
    let (status, item) = act(&server, "count@1", "load", json!({})).await;
    assert_eq!((status, &item["loaded"]), (200, &json!(true)), "{item}");
}
