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

fn clients(server: &Server) -> JoinSet<Vec<String>> {
    let mut clients = JoinSet::new();
    for client in 0..4 {
        let (http, url) = (server.http.clone(), server.url.clone());
        clients.spawn(ask_until_the_end(http, url, client));
    }
    clients
}

/// The same at chosen steps: the process dies there, or the step fails once and again.
///
/// `cargo test --release --features failpoints --test e2e kill`
#[cfg(feature = "failpoints")]
#[tokio::test]
async fn a_death_or_a_failure_at_any_step_of_the_log_and_of_upkeep_loses_and_doubles_nothing() {
    // A request whose row cannot be logged is answered without one, as the configuration says: the log's steps only die.
    let steps = [
        ("log-create", "2*off->1*return(die)", None),
        ("log-write", "9*off->1*return(die)", None),
        ("log-written", "9*off->1*return(die)", None),
        (
            "publish-read",
            "2*off->1*return(die)",
            Some("3*return(fail)"),
        ),
        (
            "publish-committed",
            "2*off->1*return(die)",
            Some("3*return(fail)"),
        ),
        (
            "publish-synced",
            "2*off->1*return(die)",
            Some("3*return(fail)"),
        ),
        (
            "publish-deleted",
            "2*off->1*return(die)",
            Some("3*return(fail)"),
        ),
        ("merge", "1*return(die)", Some("3*return(fail)")),
        ("merge-committed", "1*return(die)", Some("3*return(fail)")),
        ("vacuum", "1*return(die)", Some("3*return(fail)")),
    ];
    for (step, die, fail) in steps {
        let folder = folder();
        let mut finished = Vec::new();
        for what in [Some(die), fail].into_iter().flatten() {
            let points = format!("{step}={what}");
            let environment = [
                ("RETUNE_STORE__APPEND_SECONDS", "0.1"),
                ("RETUNE_STORE__APPEND_ROWS", "5"),
                ("RETUNE_STORE__COMPACT_SECONDS", "0.2"),
                ("FAILPOINTS", points.as_str()),
            ];
            let mut server = Server::start_with(folder.path(), &environment).await;
            let clients = clients(&server);
            if what == die {
                let ended = server.ended(Duration::from_secs(60)).await;
                assert!(ended, "{step} is no step that was reached");
                assert_eq!(server.exit_code().await, None, "{step}: it did not die");
            } else {
                tokio::time::sleep(Duration::from_secs(4)).await;
                server.signal("KILL");
                assert_eq!(server.exit_code().await, None);
            }
            finished.extend(clients.join_all().await.into_iter().flatten());
        }
        assert!(!finished.is_empty());
        let mut server = Server::start(folder.path()).await;
        server.signal("TERM");
        assert_eq!(server.exit_code().await, Some(0), "{step}");
        once(folder.path(), &finished);
        let verified = crate::harness::run(folder.path(), &["ledger", "verify"]);
        assert!(
            verified.status.success(),
            "{step}: {}",
            crate::harness::text(&verified.stdout)
        );
    }
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
        ("RETUNE_STORE__COMPACT_SECONDS", "0.3"),
    ];
    let mut finished = Vec::new();
    for _ in 0..kills {
        let mut server = Server::start_with(folder.path(), &environment).await;
        let clients = clients(&server);
        let moment = rand::rng().random_range(100..2500);
        tokio::time::sleep(Duration::from_millis(moment)).await;
        server.signal("KILL");
        assert_eq!(server.exit_code().await, None);
        finished.extend(clients.join_all().await.into_iter().flatten());
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
