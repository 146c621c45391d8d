//! kill -9 at any moment, under load: what was answered is in the ledger, once.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::{Server, folder, question, rows};

/// One client: asks and rates until the server is gone; the ids of finished answers and of accepted feedback.
async fn ask_until_the_end(http: reqwest::Client, url: String, client: usize) -> Vec<String> {
    let post = async |path: &str, body: &Value| {
        let sent = http.post(format!("{url}{path}")).json(body).send().await;
        // The whole body: a finished request is one whose last byte came.
        let text = sent.ok()?.error_for_status().ok()?.text().await.ok()?;
        Some(text)
    };
    let mut finished = Vec::new();
    for n in 0.. {
        let mut body = question(&format!("Client {client} wants refund {n}."));
        body["max_tokens"] = json!(6);
        body["stream"] = json!(n % 2 == 0);
        let Some(text) = post("/v1/chat/completions", &body).await else {
            break;
        };
        let whole = n % 2 != 0 || text.trim_end().ends_with("data: [DONE]");
        if !whole {
            break;
        }
        let first = text.lines().next().unwrap();
        let answer: Value =
            serde_json::from_str(first.strip_prefix("data: ").unwrap_or(&text)).unwrap();
        let id = answer["id"].as_str().unwrap().to_owned();
        finished.push(id.clone());
        let rating = json!({"completion_id": id, "rating": 4});
        let Some(said) = post("/v1/feedback", &rating).await else {
            break;
        };
        let said: Value = serde_json::from_str(&said).unwrap();
        finished.push(said["feedback_id"].as_str().unwrap().to_owned());
    }
    finished
}

/// `RETUNE_KILLS=50 cargo test …` for more than a handful.
#[tokio::test]
async fn a_kill_at_any_moment_loses_no_finished_request_and_doubles_none() {
    let kills = std::env::var("RETUNE_KILLS").map_or(5, |n| n.parse().unwrap());
    let folder = folder();
    // Often, so that kills meet it.
    let environment = [
        ("RETUNE_STORE__APPEND_SECONDS", "0.2"),
        ("RETUNE_STORE__APPEND_ROWS", "10"),
    ];
    let mut finished = Vec::new();
    for _ in 0..kills {
        let mut server = Server::start_with(folder.path(), &environment).await;
        let mut clients = JoinSet::new();
        for client in 0..4 {
            let (http, url) = (server.http.clone(), server.url.clone());
            clients.spawn(ask_until_the_end(http, url, client));
        }
        let moment = rand::rng().random_range(100..2500);
        tokio::time::sleep(Duration::from_millis(moment)).await;
        server.signal("KILL");
        assert_eq!(server.exit_code().await, None);
        while let Some(ids) = clients.join_next().await {
            finished.extend(ids.unwrap());
        }
    }
    assert!(finished.len() >= kills, "{} requests", finished.len());
    // Beside the stopped server, and then from the tables alone, once another has started and ended.
    once(folder.path(), &finished);
    let mut server = Server::start(folder.path()).await;
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(0));
    once(folder.path(), &finished);
    let left = std::fs::read_dir(folder.path().join("store/wal")).unwrap();
    let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    // Hidden ones are folders whose process died before it had written anything.
    let left: Vec<_> = left.filter(|name| !name.starts_with('.')).collect();
    assert!(left.is_empty(), "every log is in its table: {left:?}");
}

fn once(folder: &std::path::Path, finished: &[String]) {
    let ids =
        "select request_id as id from exchanges union all select feedback_id as id from feedback";
    let mut kept: BTreeMap<String, u64> = BTreeMap::new();
    for row in rows(folder, ids) {
        *kept
            .entry(row["id"].as_str().unwrap().to_owned())
            .or_default() += 1;
    }
    let lost: Vec<_> = finished
        .iter()
        .filter(|id| !kept.contains_key(*id))
        .collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    let doubled: Vec<_> = kept.iter().filter(|(_, n)| **n > 1).collect();
    assert!(doubled.is_empty(), "doubled: {doubled:?}");
}
