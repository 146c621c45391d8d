//! What clients and operators see of an engine that panics.

use std::time::Duration;

use retune_ledger::{Manifest, Source};
use tempfile::TempDir;

use super::*;
use crate::engine::tests::model;

struct Server {
    folder: TempDir,
    engine: Arc<Embedded>,
    ledger: Ledger,
    running: Running,
    stop: Stop,
}

/// A server with a tiny model, one task and its champion.
async fn server() -> Server {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    model::write_base(&path("tiny"));
    model::write_adapter(&path("adapter"), 5);
    std::fs::write(path("prompt.txt"), "Count.").unwrap();
    let text = "[server]\nlisten = \"127.0.0.1:0\"\n[engine]\nbase = \"tiny\"\n[store]\nurl = \"file:./data\"\n\
                [[task]]\nname = \"count\"\nprompt = \"prompt.txt\"\nadapter_prompt = \"Count.\"\n";
    std::fs::write(path("retune.toml"), text).unwrap();
    let config = Arc::new(Config::load(Some(&path("retune.toml")), []).unwrap());
    let ledger = Ledger::open(&config.store).await.unwrap();
    let manifest = Manifest::begin(&config.tasks[0], Source::Import, &path("tiny")).unwrap();
    let staged = path("adapter");
    let put = ledger.put_adapter("count", &staged, manifest, None);
    let number = put.await.unwrap().number;
    let stages = ledger.stages("count").await.unwrap();
    let history = ledger.stages_history("count").await.unwrap();
    let action = retune_ledger::Action::Promote;
    let after = stages
        .after("count", Some(number), action, &history)
        .unwrap();
    ledger.set_stages("count", stages.seq, after).await.unwrap();

    let stop = Stop::default();
    let entry = Entry::prepare(&config, &ledger).await.unwrap();
    let options = Options {
        config,
        base: path("tiny"),
        ledger: ledger.clone(),
        registry: Registry::new(),
        traces: None,
    };
    let restarts = metrics::engine_restarts(&options.registry).unwrap();
    let engine = Embedded::start(&options.base, restarts).await.unwrap();
    let engine = Arc::new(engine);
    let shared: Arc<dyn Engine> = Arc::<Embedded>::clone(&engine);
    let running = serve(options, shared, entry, stop.clone()).await.unwrap();
    Server {
        folder,
        engine,
        ledger,
        running,
        stop,
    }
}

impl Server {
    async fn ask(&self, model: &str, stream: bool) -> reqwest::Response {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 24,
            "stream": stream});
        let url = format!("http://{}/v1/chat/completions", self.running.addr);
        let asked = reqwest::Client::new().post(url).json(&body).send();
        asked.await.unwrap()
    }

    /// What is answered, with the adapter that did.
    async fn answer(&self, model: &str) -> (String, String) {
        let response = self.ask(model, false).await;
        assert_eq!(response.status(), 200);
        let by = response.headers()["retune-adapter"]
            .to_str()
            .unwrap()
            .to_owned();
        let answer: Value = response.json().await.unwrap();
        let text = answer["choices"][0]["message"]["content"].as_str();
        (text.unwrap().to_owned(), by)
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.running.addr);
        let response = reqwest::get(url).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn ready(&self) {
        for _ in 0..2000 {
            if self.get("/readyz").await.0 == 200 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it stays away");
    }
}

/// A 503 as OpenAI's clients read it, which says when to come back.
async fn is_unavailable(response: reqwest::Response) {
    assert_eq!(response.status(), 503);
    let after = response.headers()["retry-after"].to_str().unwrap();
    assert!(after.parse::<u64>().unwrap() >= 1, "{after}");
    let body: Value = response.json().await.unwrap();
    let error = body["error"].as_object().unwrap();
    assert_eq!(error["type"], "server_error");
    assert_eq!(error["code"], "engine_restarting");
    assert!(error["param"].is_null() && error["message"].is_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_a_503_and_the_next_request_is_answered() {
    let server = server().await;
    let base = server.answer("tiny").await;
    let champion = server.answer("count").await;
    assert_eq!(champion.1, "count@1");
    assert_ne!(base.0, champion.0);

    // Before the first byte, streamed or not; while it is away, readiness says so.
    for stream in [false, true] {
        server.engine.poison(None);
        is_unavailable(server.ask("tiny", stream).await).await;
        server.ready().await;
        assert_eq!(server.answer("tiny").await, base);
    }
    // In the middle of a stream.
    server.engine.fault.after(5);
    let response = server.ask("tiny", true).await;
    assert_eq!(response.status(), 200);
    let stream = response.text().await.unwrap();
    let last = stream.trim_end().rsplit("\n\n").next().unwrap();
    let error: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "engine_restarting");
    assert!(
        stream.contains("\"content\"") && !stream.contains("[DONE]"),
        "{stream}"
    );
    server.ready().await;
    assert_eq!(server.answer("tiny").await, base);

    // An adapter's next request loads and proves it again.
    server.engine.fault.after(5);
    is_unavailable(server.ask("count", false).await).await;
    assert_eq!(server.get("/readyz").await.0, 200);
    let (_, adapters) = server.get("/admin/adapters").await;
    let adapters: Value = serde_json::from_str(&adapters).unwrap();
    assert_eq!(adapters["data"][0]["loaded"], false, "{adapters}");
    assert_eq!(server.answer("count").await, champion);

    let (_, metrics) = server.get("/metrics").await;
    assert!(
        metrics.contains("\nretune_engine_restarts_total 4\n"),
        "{metrics}"
    );
    server.ledger.flush().await.unwrap();
    let rows = server.ledger.exchanges(&Default::default()).await.unwrap();
    assert_eq!(rows.iter().filter(|r| r.code == 503).count(), 4);
    server.stop.asked.cancel();
    server.running.stopped().await;
    drop(server.folder);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_that_cannot_come_back_is_told_by_readiness_and_waited_for() {
    let server = server().await;
    let base = server.answer("tiny").await;
    let champion = server.answer("count").await;
    let weights = server.folder.path().join("tiny/model.safetensors");
    let aside = server.folder.path().join("aside");
    std::fs::rename(&weights, &aside).unwrap();
    server.engine.poison(None);
    is_unavailable(server.ask("tiny", false).await).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    is_unavailable(server.ask("tiny", false).await).await;
    assert_eq!(server.get("/readyz").await.0, 503);
    assert_eq!(
        server.answer("count").await,
        champion,
        "adapters answer all the while"
    );
    std::fs::rename(&aside, &weights).unwrap();
    server.ready().await;
    assert_eq!(server.answer("tiny").await, base);
    server.stop.asked.cancel();
    server.running.stopped().await;
}
