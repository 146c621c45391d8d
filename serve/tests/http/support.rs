//! A whole server per test, on a free port, with a tiny random model and a store of its own.

use std::sync::Arc;
use std::time::Duration;

use retune_ledger::{AdapterRef, Exchange, Ledger, Manifest};
use retune_serve::Stop;
use retune_task::Config;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::model;

/// The answers' format in these tests: what the random model says never fits it.
const FORMAT: &str = "^[0-9]+$";

pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) client: reqwest::Client,
    pub(crate) ledger: Ledger,
    folder: TempDir,
    stop: Stop,
    running: Option<retune_serve::Running>,
}

impl Server {
    /// Starts one; `settings` are environment variables.
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        model::write_base(&folder.path().join("tiny"));
        std::fs::write(folder.path().join("prompt.txt"), "Answer with a number.").unwrap();
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[engine]\nbase = \"tiny\"\n[store]\nurl = \"file:./data\"\n\
             [[task]]\nname = \"count\"\nprompt = \"prompt.txt\"\nadapter_prompt = \"Count.\"\nformat = {{ regex = '{FORMAT}' }}\n\
             [[task]]\nname = \"free\"\nprompt = \"prompt.txt\"\nadapter_prompt = \"Free.\"\n"
        );
        std::fs::write(folder.path().join("retune.toml"), text).unwrap();
        Self::begin(folder, settings).await
    }

    async fn begin(folder: TempDir, settings: &[(&str, &str)]) -> Self {
        let environment = settings
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let config = Config::load(Some(&folder.path().join("retune.toml")), environment).unwrap();
        let ledger = Ledger::open(&config.store).await.unwrap();
        let stop = Stop::default();
        let options = retune_serve::Options {
            config: Arc::new(config),
            base: folder.path().join("tiny"),
            ledger: ledger.clone(),
            registry: prometheus::Registry::new(),
            traces: None,
        };
        let running = retune_serve::start(options, stop.clone()).await.unwrap();
        let url = format!("http://{}", running.addr);
        Self {
            url,
            client: reqwest::Client::new(),
            ledger,
            folder,
            stop,
            running: Some(running),
        }
    }

    /// Stops it and starts another on the same store.
    pub(crate) async fn restarted(self) -> Self {
        self.restarted_with(&[]).await
    }

    /// The same with other settings.
    pub(crate) async fn restarted_with(mut self, settings: &[(&str, &str)]) -> Self {
        self.stop.asked.cancel();
        self.running.take().unwrap().stopped().await;
        self.ledger.close().await.unwrap();
        Self::begin(self.folder, settings).await
    }

    /// Tells it to stop; the future ends when it has.
    pub(crate) fn stop(&mut self) -> impl Future<Output = ()> + use<> {
        self.stop.asked.cancel();
        let running = self.running.take().unwrap();
        async move { running.stopped().await }
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).json(body)
    }

    pub(crate) fn chat(&self, body: &Value) -> reqwest::RequestBuilder {
        self.post("/v1/chat/completions", body)
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        let response = self
            .client
            .get(format!("{}{path}", self.url))
            .send()
            .await
            .unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// The greedy answer of `model`, and the digest that the header names.
    pub(crate) async fn greedy(&self, model: &str) -> (String, Option<String>) {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "How many?"}], "temperature": 0, "max_tokens": 24});
        let response = self.chat(&body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let digest = response
            .headers()
            .get("retune-digest")
            .map(|v| v.to_str().unwrap().to_owned());
        let answer: Value = response.json().await.unwrap();
        (
            answer["choices"][0]["message"]["content"]
                .as_str()
                .unwrap()
                .to_owned(),
            digest,
        )
    }

    pub(crate) async fn metrics(&self) -> String {
        self.client
            .get(format!("{}/metrics", self.url))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    }

    /// Waits until `line` stands in the metrics.
    pub(crate) async fn metrics_say(&self, line: &str) {
        for _ in 0..500 {
            if self.metrics().await.lines().any(|l| l == line) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{line} did not come; {}", self.metrics().await);
    }

    /// All exchanges so far, in order, once there are `count`.
    pub(crate) async fn exchanges(&self, count: usize) -> Vec<Exchange> {
        for _ in 0..500 {
            self.ledger.flush().await.unwrap();
            let rows = self.ledger.exchanges(&Default::default()).await.unwrap();
            if rows.len() >= count {
                assert_eq!(rows.len(), count);
                return rows;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{count} exchanges did not come");
    }

    /// Puts a random adapter into the ledger.
    pub(crate) async fn adapter(&self, task: &str, seed: u64) -> AdapterRef {
        let staging = self.folder.path().join(format!("staging-{task}-{seed}"));
        model::write_adapter(&staging, seed);
        self.ledger
            .put_adapter(
                task,
                &staging,
                Manifest {
                    task: task.to_owned(),
                    ..Manifest::default()
                },
                None,
            )
            .await
            .unwrap()
    }

    /// `POST /admin/adapters/{name}/{action}`.
    pub(crate) async fn act(&self, name: &str, action: &str, body: Value) -> (u16, Value) {
        let response = self
            .post(&format!("/admin/adapters/{name}/{action}"), &body)
            .send()
            .await
            .unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }
}
