//! Hot swap under load: while 32 streams run, the champion changes 50 times, and no answer fails or comes from another version than its
//! header says. Again and again, and what was loaded for it is gone afterwards, its threads first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Server, folder};
use crate::model;

const STREAMS: usize = 32;
const CHANGES: usize = 50;
const ROUNDS: usize = 4;
/// Threads that may come and go for other reasons.
const SOME: usize = 40;
const QUESTIONS: [&str; 4] = ["Hello", "How many?", "One more", "What now?"];
/// Each promotion has to find room: two adapters, and memory for one.
const CONFIGURATION: &str = "[engine]\nbase = \"tiny\"\nmax_loaded = 1\nmax_running = 32\n\n[[task]]\nname = \"count\"\n\
                             prompt = \"prompt.txt\"\nadapter_prompt = \"Count.\"\n";

fn body(model: &str, question: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 12, "stream": true})
}

/// Who answered, and what.
async fn asked(http: &reqwest::Client, url: &str, body: &Value) -> (String, String) {
    let response = http
        .post(format!("{url}/v1/chat/completions"))
        .json(body)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let adapter = response.headers()["retune-adapter"]
        .to_str()
        .unwrap()
        .to_owned();
    let text = response.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let said = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: {"))
        .map(|rest| serde_json::from_str::<Value>(&format!("{{{rest}")).unwrap())
        .filter_map(|chunk| {
            chunk["choices"][0]["delta"]["content"]
                .as_str()
                .map(str::to_owned)
        })
        .collect();
    (adapter, said)
}

fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

/// The process's memory in KiB.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn change(server: &Server, name: &str, action: &str, champion: &str) {
    let body = json!({"expected_champion": champion});
    let response = server
        .post(&format!("/admin/adapters/{name}/{action}"), &body)
        .await;
    let status = response.status();
    assert_eq!(status, 200, "{}", response.text().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stdout, reason = "its figures, by --nocapture")]
async fn no_answer_fails_or_comes_from_another_version_than_it_says() {
    let folder = folder();
    model::write_base(&folder.path().join("tiny"));
    fs::write(folder.path().join("prompt.txt"), "Answer with a number.\n").unwrap();
    fs::write(folder.path().join("retune.toml"), CONFIGURATION).unwrap();
    let server = Arc::new(Server::start(folder.path()).await);
    for seed in [5, 6] {
        let lora = folder.path().join(format!("lora-{seed}"));
        model::write_adapter(&lora, seed);
        let body = json!({"task": "count", "folder": lora});
        assert_eq!(server.post("/admin/adapters", &body).await.status(), 201);
    }
    // What each version says, asked alone.
    let mut right: BTreeMap<(String, &'static str), String> = BTreeMap::new();
    for name in ["count@1", "count@2"] {
        for question in QUESTIONS {
            let (adapter, said) = asked(&server.http, &server.url, &body(name, question)).await;
            assert_eq!(adapter, name);
            right.insert((adapter, question), said);
        }
    }
    let different: BTreeSet<&String> = right.values().collect();
    assert!(different.len() > QUESTIONS.len(), "{right:?}");
    change(&server, "count@1", "promote", "count@base").await;

    let right = Arc::new(right);
    let before = threads(server.pid());
    let (mut seen, mut answers, mut memory) = (BTreeSet::new(), 0, Vec::new());
    for _ in 0..ROUNDS {
        let (names, more) = change_under_load(&server, &right).await;
        seen.extend(names);
        answers += more;
        memory.push(resident(server.pid()) / 1024);
    }
    println!(
        "{ROUNDS} times {CHANGES} changes, {answers} answers on {STREAMS} streams; MiB after each: {memory:?}"
    );
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(answers >= STREAMS * ROUNDS, "{answers}");
    // Each model that is loaded has two threads, and there were some hundreds of them; the last ends five seconds after it began.
    let mut left = threads(server.pid());
    for _ in 0..120 {
        if left < before + SOME {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
        left = threads(server.pid());
    }
    assert!(left < before + SOME, "{before} threads became {left}");
    // An allocator gives back what it likes. A model of a few hundred kilobytes that stayed of each load would be far above this.
    let (first, last) = (memory[0], memory[ROUNDS - 1]);
    assert!(last < 2 * first, "MiB after each round: {memory:?}");
}

/// Changes the champion again and again while all streams run, and lets them finish: who answered, and how often.
async fn change_under_load(
    server: &Arc<Server>,
    right: &Arc<BTreeMap<(String, &'static str), String>>,
) -> (BTreeSet<String>, usize) {
    let over = Arc::new(AtomicBool::new(false));
    let streams: Vec<_> = (0..STREAMS)
        .map(|n| {
            let (server, over, right) = (Arc::clone(server), Arc::clone(&over), Arc::clone(right));
            tokio::spawn(async move {
                let (mut seen, mut answers) = (BTreeSet::new(), 0);
                for i in n.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let question = QUESTIONS[i % QUESTIONS.len()];
                    let (adapter, said) =
                        asked(&server.http, &server.url, &body("count", question)).await;
                    assert_eq!(
                        right.get(&(adapter.clone(), question)),
                        Some(&said),
                        "{adapter}: {question}"
                    );
                    seen.insert(adapter);
                    answers += 1;
                }
                (seen, answers)
            })
        })
        .collect();
    for _ in 0..CHANGES / 2 {
        change(server, "count@2", "promote", "count@1").await;
        change(server, "count@2", "rollback", "count@2").await;
    }
    over.store(true, Ordering::Relaxed);
    let (mut seen, mut answers) = (BTreeSet::new(), 0);
    for stream in streams {
        let (names, more) = stream.await.unwrap();
        seen.extend(names);
        answers += more;
    }
    (seen, answers)
}
