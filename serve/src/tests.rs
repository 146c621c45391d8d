//! What the server does when the engine does not do its part.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod breakdown;

use std::path::Path;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::engine::{Event, Generating, Generation};

/// An engine that says a word and breaks.
struct Breaking;

#[async_trait::async_trait]
impl Engine for Breaking {
    async fn load(&self, _: &str, _: &Path) -> Result<(), Error> {
        Err(Error::Engine("no".to_owned()))
    }

    async fn unload(&self, name: &str) -> Result<(), Error> {
        Err(Error::NotLoaded(name.to_owned()))
    }

    async fn holds(&self, _: crate::engine::Constraint) -> Result<(), Error> {
        Ok(())
    }

    fn knows_tools(&self) -> bool {
        false
    }

    async fn generate(&self, _: Generation) -> Result<Generating, Error> {
        let (sender, events) = mpsc::unbounded_channel();
        sender
            .send(Event::Text {
                text: "Well".to_owned(),
                tokens: 1,
                logprobs: Vec::new(),
            })
            .unwrap();
        sender
            .send(Event::Failed(Error::Engine("a secret detail".to_owned())))
            .unwrap();
        Ok(Generating {
            prompt_tokens: 3,
            events,
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_breaks_off_is_told_and_logged() {
    let folder = tempfile::tempdir().unwrap();
    let environment = [
        ("RETUNE_SERVER__LISTEN", "127.0.0.1:0".to_owned()),
        (
            "RETUNE_STORE__URL",
            format!("file:{}", folder.path().join("data").display()),
        ),
    ];
    let environment = environment.map(|(key, value)| (key.to_owned(), value));
    let config = Arc::new(Config::load(None, environment).unwrap());
    let ledger = Ledger::open(&config.store).await.unwrap();
    let stop = Stop::default();
    let entry = Entry::prepare(&config, &ledger).await.unwrap();
    let options = Options {
        config,
        base: folder.path().join("base"),
        ledger: ledger.clone(),
        registry: Registry::new(),
        traces: None,
    };
    let running = serve(options, Arc::new(Breaking), entry, stop.clone())
        .await
        .unwrap();
    let ask = async |stream: bool| {
        let body = json!({"model": "base", "messages": [{"role": "user", "content": "Hello"}], "stream": stream});
        let url = format!("http://{}/v1/chat/completions", running.addr);
        let response = reqwest::Client::new()
            .post(url)
            .json(&body)
            .send()
            .await
            .unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let (status, body) = ask(false).await;
    assert_eq!(
        (
            status,
            &serde_json::from_str::<Value>(&body).unwrap()["error"]["type"]
        ),
        (500, &json!("server_error"))
    );
    let (status, stream) = ask(true).await;
    let events: Vec<&str> = stream.split_terminator("\n\n").collect();
    assert_eq!((status, events.len()), (200, 3), "{stream}");
    let error: Value = serde_json::from_str(events[2].strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(error["error"]["type"], "server_error");
    assert!(!stream.contains("[DONE]") && !stream.contains("secret") && !body.contains("secret"));

    ledger.flush().await.unwrap();
    let rows = ledger.exchanges(&Default::default()).await.unwrap();
    let kept: Vec<_> = rows
        .iter()
        .map(|r| (r.code, r.answer.as_deref(), r.finish_reason.as_deref()))
        .collect();
    assert_eq!(kept, [(500, Some("Well"), None); 2]);
    stop.asked.cancel();
    running.stopped().await;
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let environment = [("RETUNE_SERVER__LISTEN".to_owned(), address.clone())];
    let config = Config::load(None, environment).unwrap();
    let error = Listeners::bind(&config).err().unwrap().to_string();
    assert!(
        error.contains(&address) && error.contains("server.listen"),
        "{error}"
    );
}
