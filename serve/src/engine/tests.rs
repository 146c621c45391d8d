//! The embedded engine on a tiny random model.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use retune_task::ChatMessage;
use tempfile::TempDir;

use super::*;

mod bases;
mod breakdown;
#[path = "../../tests/http/gguf.rs"]
mod gguf;
#[path = "../../tests/http/model.rs"]
pub(crate) mod model;

struct Fixture {
    folder: TempDir,
    engine: Arc<Embedded>,
    restarts: IntCounter,
}

fn counter() -> IntCounter {
    IntCounter::new("restarts", "of engines").unwrap()
}

async fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    model::write_base(&folder.path().join("tiny"));
    for seed in [5, 6] {
        model::write_adapter(&folder.path().join(format!("adapter-{seed}")), seed);
    }
    let restarts = counter();
    let engine = Embedded::start(&folder.path().join("tiny"), restarts.clone())
        .await
        .unwrap();
    Fixture {
        folder,
        engine: Arc::new(engine),
        restarts,
    }
}

impl Fixture {
    async fn load(&self, name: &str, seed: u64) {
        self.engine
            .load(name, &self.folder.path().join(format!("adapter-{seed}")))
            .await
            .unwrap();
    }
}

fn generation(adapter: Option<&str>, text: &str) -> Generation {
    Generation {
        adapter: adapter.map(str::to_owned),
        prompt: Prompt::Messages {
            messages: vec![ChatMessage::new("user", text)],
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

/// Waits until the base answers again.
async fn back(engine: &Embedded) {
    let begun = Instant::now();
    while !engine.ready().await {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "the base stays away"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for the engine's end as others see it, which is a moment after its requests'.
async fn restarted(restarts: &IntCounter, times: u64) {
    let begun = Instant::now();
    while restarts.get() < times {
        assert!(begun.elapsed() < Duration::from_secs(30), "nobody noticed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(restarts.get(), times);
}

/// The answer, its pieces joined, why it ended and its tokens.
async fn answer(engine: &Embedded, generation: Generation) -> (String, Finish, usize) {
    let mut generating = engine.generate(generation).await.unwrap();
    let mut answer = String::new();
    loop {
        match generating.events.recv().await.expect("an end") {
            Event::Text { text, .. } => answer.push_str(&text),
            Event::Done { finish, tokens, .. } => return (answer, finish, tokens),
            Event::Failed(e) => panic!("{e}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_come_and_go_and_are_applied_once() {
    let f = fixture().await;
    let (base, finish, tokens) = answer(&f.engine, generation(None, "Hello")).await;
    assert_eq!(
        (finish, tokens, base.len()),
        (Finish::Length, 24, 24),
        "{base:?}"
    );
    f.load("t@1#a/0", 5).await;
    let (first, ..) = answer(&f.engine, generation(Some("t@1#a/0"), "Hello")).await;
    f.load("t@2#b/1", 6).await;
    let (second, ..) = answer(&f.engine, generation(Some("t@2#b/1"), "Hello")).await;
    assert!(base != first && base != second && first != second);
    f.engine.unload("t@1#a/0").await.unwrap();
    assert!(matches!(
        f.engine
            .generate(generation(Some("t@1#a/0"), "Hello"))
            .await,
        Err(Error::NotLoaded(_))
    ));
    for round in 2..5 {
        let name = format!("t@1#a/{round}");
        f.load(&name, 5).await;
        assert_eq!(
            answer(&f.engine, generation(Some(&name), "Hello")).await.0,
            first,
            "round {round}"
        );
        f.engine.unload(&name).await.unwrap();
    }
    assert_eq!(
        answer(&f.engine, generation(Some("t@2#b/1"), "Hello"))
            .await
            .0,
        second
    );
    assert_eq!(answer(&f.engine, generation(None, "Hello")).await.0, base);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_strings_seeds_and_limits() {
    let f = fixture().await;
    let (whole, ..) = answer(&f.engine, generation(None, "Stop")).await;
    let stop = whole[7..9].to_owned();
    let at = whole.find(&stop).unwrap();
    let (cut, finish, tokens) = answer(
        &f.engine,
        Generation {
            stop: vec![stop],
            ..generation(None, "Stop")
        },
    )
    .await;
    assert_eq!((cut.as_str(), finish), (&whole[..at], Finish::Stop));
    assert!(tokens <= 9);
    let seeded = |seed| Generation {
        sampling: Sampling {
            temperature: 1.5,
            seed: Some(seed),
            ..Sampling::GREEDY
        },
        ..generation(None, "Seed")
    };
    let (one, ..) = answer(&f.engine, seeded(1)).await;
    assert_eq!(answer(&f.engine, seeded(1)).await.0, one);
    assert_ne!(answer(&f.engine, seeded(2)).await.0, one);
    let long = "x".repeat(model::CONTEXT);
    match f.engine.generate(generation(None, &long)).await {
        Err(Error::Invalid(refusal)) => assert_eq!(refusal.code, Some("context_length_exceeded")),
        other => panic!("{other:?}"),
    }
    // The context ends before the answer's limit.
    let nearly = "x".repeat(model::CONTEXT - 50);
    let mut generating = f
        .engine
        .generate(Generation {
            max_tokens: 1000,
            ..generation(None, &nearly)
        })
        .await
        .unwrap();
    let room = model::CONTEXT - generating.prompt_tokens;
    let end = loop {
        match generating.events.recv().await.unwrap() {
            Event::Text { .. } => {}
            end => break end,
        }
    };
    assert!(
        matches!(end, Event::Done { finish: Finish::Length, tokens, .. } if tokens == room),
        "{end:?}, room for {room}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_get_the_answers_of_one_alone_though_some_leave() {
    let f = fixture().await;
    let prompts: Vec<String> = (0..12)
        .map(|i| format!("Question {i}{}", "?".repeat(i % 3)))
        .collect();
    let mut alone = Vec::new();
    for prompt in &prompts {
        alone.push(answer(&f.engine, generation(None, prompt)).await.0);
    }
    // Each is also asked for at length by somebody who leaves after the first token, or before their turn.
    let together = prompts.iter().enumerate().map(|(i, prompt)| {
        let engine = &f.engine;
        async move {
            let leaves = engine.generate(Generation {
                max_tokens: 400,
                ..generation(None, prompt)
            });
            let patience = Duration::from_millis(3 * i as u64);
            if let Ok(generating) = tokio::time::timeout(patience, leaves).await {
                drop(generating.unwrap().events.recv().await);
            }
            answer(engine, generation(None, prompt)).await.0
        }
    });
    assert_eq!(futures::future::join_all(together).await, alone);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_leaves_only_when_its_requests_are_done() {
    let f = fixture().await;
    f.load("t@1#a/0", 5).await;
    let (whole, ..) = answer(
        &f.engine,
        Generation {
            max_tokens: 200,
            ..generation(Some("t@1#a/0"), "Drain")
        },
    )
    .await;
    let running = f
        .engine
        .generate(Generation {
            max_tokens: 200,
            ..generation(Some("t@1#a/0"), "Drain")
        })
        .await
        .unwrap();
    let engine = Arc::clone(&f.engine);
    let unloading = tokio::spawn(async move { engine.unload("t@1#a/0").await });
    let mut events = running.events;
    let mut text = String::new();
    loop {
        match events.recv().await.expect("an end") {
            Event::Text { text: piece, .. } => text.push_str(&piece),
            Event::Done { .. } => break,
            Event::Failed(e) => panic!("{e}"),
        }
    }
    assert_eq!(text, whole);
    unloading.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_served_is_refused() {
    let f = fixture().await;
    let folder = f.folder.path().join("adapter-5");
    let mut config = model::adapter_config();
    config["use_rslora"] = serde_json::json!(true);
    model::write_json(&folder.join("adapter_config.json"), &config);
    let refused = f
        .engine
        .load("t@1#a/0", &folder)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("use_rslora"), "{refused}");
    config["use_rslora"] = serde_json::json!(false);
    config["r"] = serde_json::json!(8);
    model::write_json(&folder.join("adapter_config.json"), &config);
    let refused = f
        .engine
        .load("t@1#a/1", &folder)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("has shape [4, 32], the base and r = 8 want [8, 32]"),
        "{refused}"
    );
    let weights = folder.join("adapter_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    let refused = f
        .engine
        .load("t@1#a/2", &folder)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("adapter_model.safetensors is truncated"),
        "{refused}"
    );

    let base = f.folder.path().join("tiny");
    let weights = base.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let refused = Embedded::start(&base, counter())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        refused.contains("model.safetensors is truncated"),
        "{refused}"
    );
    // A panic inside the engine is an error like another.
    std::fs::write(&weights, &bytes).unwrap();
    std::fs::write(
        base.join("tokenizer.json"),
        r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#,
    )
    .unwrap();
    assert!(Embedded::start(&base, counter()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_prompt_is_the_template_and_nothing_else() {
    let f = fixture().await;
    let generating = f
        .engine
        .generate(generation(None, "é\n<|im_end|>"))
        .await
        .unwrap();
    // Marks are one token each, other characters one a byte; no token is put in front.
    let rendered = "<|im_start|>user\né\n<|im_end|><|im_end|>\n<|im_start|>assistant\n";
    let marks =
        rendered.matches("<|im_start|>").count() * 12 + rendered.matches("<|im_end|>").count() * 10;
    assert_eq!(generating.prompt_tokens, rendered.len() - marks + 4);
}
