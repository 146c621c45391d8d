//! The upstream engine against stand-ins for other servers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use retune_task::{Upstream as Config, UpstreamServer};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::engine::Finish;

#[path = "../../../tests/http/standin.rs"]
mod standin;

use standin::{Act, BASE, DONE, End, StandIn, at_once, ends, says, slow, usage};

fn config(urls: &[&str]) -> Config {
    let server = |url: &&str| UpstreamServer {
        url: (*url).to_owned(),
        api_key_env: None,
        weight: 1,
    };
    Config {
        servers: urls.iter().map(server).collect(),
        model: None,
        adapters_path: None,
        connect_timeout_seconds: 5.0,
        first_byte_timeout_seconds: 20.0,
        idle_timeout_seconds: 20.0,
        max_connections: 4,
    }
}

fn engine(urls: &[&str]) -> Arc<Upstream> {
    Arc::new(Upstream::new(&config(urls), |_| None).unwrap())
}

fn generation(adapter: Option<&str>) -> Generation {
    Generation {
        adapter: adapter.map(str::to_owned),
        prompt: Prompt::Messages {
            messages: vec![ChatMessage::new("user", "Who is there?")],
            tools: None,
        },
        sampling: Sampling::GREEDY,
        max_tokens: 24,
        stop: Vec::new(),
        logprobs: None,
        constraint: None,
        trail: Trail::default(),
    }
}

/// A whole answer, or what became of it.
#[derive(Debug)]
struct Answered {
    text: String,
    finish: Finish,
    tokens: usize,
    prompt_tokens: Option<usize>,
}

async fn listen(mut generating: Generating) -> Result<Answered, (String, Error)> {
    let mut text = String::new();
    loop {
        match generating.events.recv().await.expect("an end") {
            Event::Text { text: piece, .. } => text.push_str(&piece),
            Event::Failed(e) => return Err((text, e)),
            Event::Done {
                finish,
                tokens,
                prompt_tokens,
            } => {
                return Ok(Answered {
                    text,
                    finish,
                    tokens,
                    prompt_tokens,
                });
            }
        }
    }
}

async fn answer(engine: &Upstream, adapter: Option<&str>) -> Result<Answered, Error> {
    let generating = engine.generate(generation(adapter)).await?;
    listen(generating).await.map_err(|(_, e)| e)
}

/// A folder that an adapter could be in: `<root>/t/<n>`.
fn folder(root: &TempDir, number: u32) -> PathBuf {
    let folder = root.path().join("t").join(number.to_string());
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// An address where nobody listens, nor ever will: the port has no owner and needs rights.
const AWAY: &str = "http://127.0.0.1:1";

/// Waits for what must come within a second.
async fn within_a_second(what: impl Fn() -> bool) -> bool {
    for _ in 0..100 {
        if what() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    what()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_comes_with_its_usage_and_the_key_goes_along() {
    let server = StandIn::start();
    let mut config = config(&[&server.url]);
    config.servers[0].api_key_env = Some("STAND_IN_KEY".to_owned());
    let engine = Upstream::new(&config, |name| {
        (name == "STAND_IN_KEY").then(|| "open-sesame\n".to_owned())
    })
    .unwrap();
    let answered = answer(&engine, None).await.unwrap();
    assert_eq!(answered.text, format!("This is {BASE}"));
    assert_eq!(
        (answered.finish, answered.tokens, answered.prompt_tokens),
        (Finish::Stop, 2, Some(11))
    );
    let text = Prompt::Text("Once".to_owned());
    let raw = Generation {
        prompt: text,
        ..generation(None)
    };
    listen(engine.generate(raw).await.unwrap()).await.unwrap();
    let asked = server.answers();
    let routes: Vec<&str> = asked.iter().map(|a| a.route.as_str()).collect();
    assert_eq!(routes, ["/v1/chat/completions", "/v1/completions"]);
    for asked in &asked {
        assert_eq!(asked.authorization.as_deref(), Some("Bearer open-sesame"));
        assert_eq!(asked.body["model"], BASE);
        assert_eq!(asked.body["stream_options"]["include_usage"], true);
    }
    let missing = Upstream::new(&config, |_| None).err().unwrap().to_string();
    assert!(missing.contains("STAND_IN_KEY"), "{missing}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_usage_the_prompt_is_counted_or_unknown() {
    let server = StandIn::start();
    server.shared.counts.store(true, Ordering::SeqCst);
    let engine = engine(&[&server.url]);
    let bare = at_once(&[says("a"), says("b"), ends("eos")], End::Close);
    server.next([bare.clone()]);
    let answered = answer(&engine, None).await.unwrap();
    assert_eq!((answered.tokens, answered.prompt_tokens), (2, Some(42)));
    server.shared.counts.store(false, Ordering::SeqCst);
    server.next([bare]);
    let generating = engine.generate(generation(None)).await.unwrap();
    assert_eq!(generating.prompt_tokens, "Who is there?".len().div_ceil(4));
    assert_eq!(listen(generating).await.unwrap().prompt_tokens, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_answer_begins_the_next_one_takes_over() {
    let (good, bad) = (StandIn::start(), StandIn::start());
    let role =
        "data: {\"choices\": [{\"delta\": {\"role\": \"assistant\", \"content\": \"\"}}]}\n\n";
    let error =
        "data: {\"error\": {\"message\": \"dead\", \"type\": \"EngineDead\", \"code\": 500}}\n\n";
    let acts = [
        Act::Refuse(
            500,
            None,
            json!({"error": {"message": "dead", "code": 500}}),
        ),
        Act::Refuse(503, None, json!({"detail": "starting"})),
        at_once(&[role.to_owned()], End::Cut),
        at_once(&[role.to_owned(), error.to_owned()], End::Close),
        at_once(&[role.to_owned()], End::Close),
        at_once(&["<html>".to_owned()], End::Close),
        Act::Whole(json!({"error": {"message": "dead", "code": 500}})),
    ];
    for act in acts {
        // Both that fail come before the good one in some order, sooner or later.
        let engine = engine(&[&bad.url, &good.url, AWAY]);
        bad.next([act]);
        for _ in 0..200 {
            let answered = answer(&engine, None).await.unwrap();
            assert_eq!(answered.text, format!("This is {BASE}"));
            if bad.acts_left() == 0 {
                break;
            }
        }
        assert_eq!(bad.acts_left(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_first_piece_a_failure_is_told_and_nobody_else_is_asked() {
    let servers = [StandIn::start(), StandIn::start()];
    let engine = engine(&[&servers[0].url, &servers[1].url]);
    let error = "data: {\"error\": {\"message\": \"Who is there?\", \"code\": 400}}\n\n";
    let broken = [
        at_once(&[says("Well")], End::Cut),
        at_once(&[says("Well")], End::Close),
        at_once(&[says("Well"), ends("abort")], End::Close),
        at_once(&[says("Well"), error.to_owned()], End::Close),
    ];
    for (i, act) in broken.into_iter().enumerate() {
        let before = servers[0].answers().len() + servers[1].answers().len();
        assert_eq!(before, i);
        for server in &servers {
            server.only(act.clone());
        }
        let generating = engine.generate(generation(None)).await.unwrap();
        let (text, error) = listen(generating).await.unwrap_err();
        assert_eq!(text, "Well");
        assert!(matches!(error, Error::Upstream { .. }), "{error:?}");
        assert!(!error.to_string().contains("Who is there?"), "{error}");
    }
    assert_eq!(servers[0].answers().len() + servers[1].answers().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_fails_and_fails_is_left_alone() {
    let server = StandIn::start();
    let engine = engine(&[&server.url]);
    assert!(engine.ready().await);
    server.next(vec![Act::Refuse(500, None, json!({})); 5]);
    for _ in 0..7 {
        let error = answer(&engine, None).await.unwrap_err();
        assert!(matches!(error, Error::UpstreamUnavailable), "{error:?}");
    }
    assert_eq!(server.answers().len(), 5);
    tokio::time::sleep(LOOK_EVERY).await;
    assert!(!engine.ready().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_leaves_is_seen_upstream_within_a_second() {
    let server = StandIn::start();
    let engine = engine(&[&server.url]);
    server.next([slow(800), at_once(&[], End::Hang)]);
    let mut generating = engine.generate(generation(None)).await.unwrap();
    assert!(matches!(
        generating.events.recv().await,
        Some(Event::Text { .. })
    ));
    assert_eq!(server.left(), 0);
    drop(generating);
    assert!(within_a_second(|| server.left() == 1).await);
    // Before the answer begins, too.
    let begins = engine.generate(generation(None));
    let patience = Duration::from_secs(1);
    assert!(tokio::time::timeout(patience, begins).await.is_err());
    assert!(within_a_second(|| server.left() == 2).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_has_limits() {
    let server = StandIn::start();
    let mut config = config(&[&server.url]);
    config.first_byte_timeout_seconds = 1.0;
    config.idle_timeout_seconds = 1.0;
    let engine = Upstream::new(&config, |_| None).unwrap();
    server.next([
        at_once(&[": still here\n\n".to_owned()], End::Hang),
        at_once(&[says("Well")], End::Hang),
        at_once(&[says("Well"), ends("length")], End::Hang),
    ]);
    let error = answer(&engine, None).await.unwrap_err();
    assert!(matches!(error, Error::UpstreamUnavailable), "{error:?}");
    let error = answer(&engine, None).await.unwrap_err();
    assert!(error.to_string().contains("sent nothing for"), "{error}");
    // An answer that is whole needs no more.
    let answered = answer(&engine, None).await.unwrap();
    assert_eq!(
        (answered.text.as_str(), answered.finish),
        ("Well", Finish::Length)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_are_loaded_lost_loaded_again_and_unloaded() {
    let root = tempfile::tempdir().unwrap();
    let servers = [StandIn::start(), StandIn::start()];
    let engine = engine(&[&servers[0].url, &servers[1].url]);
    let folder = folder(&root, 1);
    // One cannot load it now, and gets it later.
    servers[1].shared.busy.store(true, Ordering::SeqCst);
    engine.load("t@1#abc/0", &folder).await.unwrap();
    let path = folder.display().to_string();
    let there = BTreeMap::from([("t@1#abc".to_owned(), path)]);
    assert_eq!(servers[0].loras(), there);
    assert_eq!(servers[1].loras(), BTreeMap::new());
    servers[1].shared.busy.store(false, Ordering::SeqCst);
    for _ in 0..200 {
        let answered = answer(&engine, Some("t@1#abc/0")).await.unwrap();
        assert_eq!(answered.text, "This is t@1#abc");
        if !servers[1].loras().is_empty() {
            break;
        }
    }
    assert_eq!(servers[1].loras(), there);
    // Both forget it: the next request loads it where it goes.
    servers.iter().for_each(StandIn::forget);
    let answered = answer(&engine, Some("t@1#abc/0")).await.unwrap();
    assert_eq!(answered.text, "This is t@1#abc");
    // The same content under another of our names stays while one of them is there.
    engine.load("t@1#abc/1", &folder).await.unwrap();
    engine.unload("t@1#abc/0").await.unwrap();
    assert!(servers.iter().any(|s| s.loras() == there));
    let gone = answer(&engine, Some("t@1#abc/0")).await.unwrap_err();
    assert!(matches!(gone, Error::NotLoaded(_)), "{gone:?}");
    answer(&engine, Some("t@1#abc/1")).await.unwrap();
    engine.unload("t@1#abc/1").await.unwrap();
    assert!(servers.iter().all(|s| s.loras().is_empty()));
    assert!(engine.unload("t@1#abc/1").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_that_is_not_there_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let server = StandIn::start();
    let mut config = config(&[&server.url]);
    // The 200 for a path with nothing in it.
    config.adapters_path = Some("/nowhere/adapters".to_owned());
    let engine = Upstream::new(&config, |_| None).unwrap();
    let refused = engine
        .load("t@1#abc/0", &folder(&root, 1))
        .await
        .unwrap_err();
    assert!(matches!(refused, Error::Adapter { .. }), "{refused:?}");
    let refused = refused.to_string();
    assert!(
        refused.contains("/nowhere/adapters/t/1") && refused.contains("engine.adapters_path"),
        "{refused}"
    );
    assert_eq!(server.loras(), BTreeMap::new());
    server.shared.no_loras.store(true, Ordering::SeqCst);
    let refused = engine
        .load("t@1#abc/1", &folder(&root, 1))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        "{refused}"
    );
    let engine = self::engine(&[AWAY]);
    let away = engine
        .load("t@1#abc/0", &folder(&root, 1))
        .await
        .unwrap_err();
    assert!(matches!(away, Error::UpstreamUnavailable), "{away:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_leaves_only_when_its_requests_are_done() {
    let root = tempfile::tempdir().unwrap();
    let server = StandIn::start();
    let engine = engine(&[&server.url]);
    engine.load("t@1#abc/0", &folder(&root, 1)).await.unwrap();
    server.next([slow(20)]);
    let generating = engine
        .generate(generation(Some("t@1#abc/0")))
        .await
        .unwrap();
    let unloads = Arc::clone(&engine);
    let unloading = tokio::spawn(async move { unloads.unload("t@1#abc/0").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.loras().len(), 1);
    let answered = listen(generating).await.unwrap();
    assert_eq!(answered.text, "la ".repeat(20));
    unloading.await.unwrap().unwrap();
    assert_eq!(server.loras().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_upstream_refuses_is_said_in_openais_words() {
    let server = StandIn::start();
    let mut config = config(&[&server.url]);
    config.servers[0].api_key_env = Some("STAND_IN_KEY".to_owned());
    let engine = Upstream::new(&config, |_| Some("open-sesame".to_owned())).unwrap();
    let wrong = |code: Value| json!({"error": {"message": "too hot", "type": "BadRequestError", "param": "temperature", "code": code}});
    server.next([
        Act::Refuse(400, None, wrong(json!(400))),
        Act::Refuse(422, None, json!({"detail": "too hot"})),
        Act::Refuse(
            429,
            Some("17"),
            json!({"error": {"message": "slowly", "code": 429}}),
        ),
        Act::Refuse(401, None, json!({"error": "Unauthorized"})),
        Act::Refuse(404, None, wrong(json!(404))),
        Act::Refuse(404, None, wrong(json!(404))),
        Act::Whole(wrong(json!(400))),
    ]);
    let error = answer(&engine, None).await.unwrap_err();
    let expected = json!({"error": {"message": "too hot", "type": "invalid_request_error", "param": "temperature", "code": null}});
    assert_eq!(error.body(), expected);
    let error = answer(&engine, None).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    let error = answer(&engine, None).await.unwrap_err();
    assert!(
        matches!(&error, Error::UpstreamBusy { retry_after: Some(after) } if after == "17"),
        "{error:?}"
    );
    let error = answer(&engine, None).await.unwrap_err();
    assert!(matches!(error, Error::Upstream { .. }), "{error:?}");
    assert!(!error.to_string().contains("sesame"), "{error}");
    // Asked once more, for it may have been started with another model.
    let error = answer(&engine, None).await.unwrap_err();
    assert!(matches!(error, Error::UpstreamUnavailable), "{error:?}");
    let error = answer(&engine, None).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    assert_eq!(server.acts_left(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_in_one_piece_and_calls_of_tools() {
    let server = StandIn::start();
    let engine = engine(&[&server.url]);
    let call = json!({"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "find", "arguments": "{\"n\": 1}"}}]}}]});
    server.next([
        Act::Whole(json!({"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}})),
        at_once(&[format!("data: {call}\n\n"), ends("tool_calls"), usage(4, 9), DONE.to_owned()], End::Close),
    ]);
    let answered = answer(&engine, None).await.unwrap();
    assert_eq!(
        (answered.text.as_str(), answered.prompt_tokens),
        ("Hello", Some(3))
    );
    let answered = answer(&engine, None).await.unwrap();
    assert_eq!(
        answered.text,
        "<tool_call>{\"name\":\"find\",\"arguments\":{\"n\":1}}</tool_call>"
    );
    assert_eq!((answered.finish, answered.tokens), (Finish::Stop, 9));
}
