//! `retune ledger forget`: a person goes from everywhere, beside a running server, whoever is killed at whatever step.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Server, folder, question, rows, run, text};

const ANN: &str = "ann@example.org";
const BOB: &str = "bob@example.org";

/// Asks in a user's name, and rates the answer; its id.
async fn ask(server: &Server, user: &str, words: &str) -> String {
    let mut body = question(words);
    body["user"] = json!(user);
    body["max_tokens"] = json!(6);
    let answer = server.post("/v1/chat/completions", &body).await;
    let answer: Value = answer.json().await.unwrap();
    let id = answer["id"].as_str().unwrap().to_owned();
    let said = json!({"completion_id": id, "correction": format!("{words}, rather")});
    assert_eq!(server.post("/v1/feedback", &said).await.status(), 201);
    id
}

fn forget(folder: &Path, more: &[&str]) -> Value {
    let mut arguments = vec!["ledger", "forget", "--user", ANN, "--json"];
    arguments.extend(more);
    let output = run(folder, &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Rows by user, and feedback on them.
fn counts(folder: &Path) -> Vec<(String, u64, u64)> {
    let query = "select e.\"user\" as who, count(*) as asked, count(f.request_id) as said from exchanges e \
                 left join feedback f on e.request_id = f.request_id group by 1 order by 1";
    let number = |row: &Value, column: &str| row[column].as_u64().unwrap();
    let counted = rows(folder, query).into_iter().map(|row| {
        let who = row["who"].as_str().unwrap().to_owned();
        (who, number(&row, "asked"), number(&row, "said"))
    });
    counted.collect()
}

#[tokio::test]
async fn a_person_is_forgotten_beside_a_running_server() {
    let folder = folder();
    let server =
        Server::start_with(folder.path(), &[("RETUNE_STORE__APPEND_SECONDS", "0.2")]).await;
    let hers = ask(&server, ANN, "A zebra, please.").await;
    let his = ask(&server, BOB, "A heron, please.").await;
    assert_eq!(forget(folder.path(), &["--dry-run"])["exchanges"], 1);
    assert_eq!(counts(folder.path()).len(), 2);
    let done = forget(folder.path(), &[]);
    assert_eq!(
        (&done["exchanges"], &done["feedback"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(counts(folder.path()), [(BOB.to_owned(), 1, 1)]);
    let got = async |id: &str| {
        let path = format!("/v1/chat/completions/{id}");
        server.get(&path).await.status().as_u16()
    };
    assert_eq!((got(&hers).await, got(&his).await), (404, 200));
    let words = crate::words::words(&folder.path().join("store"));
    assert!(!words.contains("zebra") && !words.contains(ANN) && words.contains("A heron"));
    // She may come back.
    ask(&server, ANN, "A wombat, please.").await;
    assert_eq!(
        counts(folder.path()),
        [(ANN.to_owned(), 1, 1), (BOB.to_owned(), 1, 1)]
    );
    let nobody = run(folder.path(), &["ledger", "forget", "--user", "nobody"]);
    let said = text(&nobody.stdout);
    assert!(
        said.starts_with("forgotten: 0 exchanges, 0 feedback"),
        "{said}"
    );
}

/// `cargo test --release --features failpoints --test e2e forget`
#[cfg(feature = "failpoints")]
#[tokio::test]
async fn killed_at_any_step_it_is_gone_on_with_and_nobody_else_is_touched() {
    let steps = [
        ("forget-begun", 1),
        ("forget-published", 1),
        ("forget-listed", 1),
        ("forget-rewritten", 1),
        ("forget-rewritten", 2),
        ("forget-deleted", 1),
        ("forget-deleted", 3),
        ("forget-cleaned", 1),
        ("forget-reported", 1),
        ("forget-noted", 1),
    ];
    for (step, times) in steps {
        for how in ["die", "fail"] {
            let folder = folder();
            let often = [
                ("RETUNE_STORE__APPEND_SECONDS", "0.1"),
                ("RETUNE_STORE__COMPACT_SECONDS", "0"),
            ];
            let mut server = Server::start_with(folder.path(), &often).await;
            for n in 0..3 {
                ask(&server, ANN, &format!("A zebra, {n}.")).await;
                ask(&server, BOB, &format!("A heron, {n}.")).await;
                tokio::time::sleep(std::time::Duration::from_millis(250)).await;
            }
            let merged = run(folder.path(), &["ledger", "compact"]);
            assert!(merged.status.success(), "{}", text(&merged.stderr));
            let points = format!("{step}={}*off->1*return({how})", times - 1);
            let broken = crate::harness::retune(folder.path())
                .args(["ledger", "forget", "--user", ANN])
                .env("FAILPOINTS", &points)
                .output()
                .unwrap();
            assert!(
                !broken.status.success(),
                "{step} is no step that was reached"
            );
            let died = broken.status.code().is_none();
            assert_eq!(died, how == "die", "{step}: {}", text(&broken.stderr));
            if how == "die" {
                // A server that comes next does the rest.
                server.signal("KILL");
                server.exit_code().await;
                let often = [("RETUNE_STORE__COMPACT_SECONDS", "0.2")];
                server = Server::start_with(folder.path(), &often).await;
                done(folder.path()).await;
            } else {
                forget(folder.path(), &[]);
            }
            server.signal("TERM");
            assert_eq!(server.exit_code().await, Some(0));
            assert_eq!(
                counts(folder.path()),
                [(BOB.to_owned(), 3, 3)],
                "{step} {how}"
            );
            let words = crate::words::words(&folder.path().join("store"));
            assert!(
                !words.contains("zebra") && !words.contains(ANN),
                "{step} {how}"
            );
            assert!(words.contains("A heron, 2."));
            let verified = run(folder.path(), &["ledger", "verify"]);
            assert!(
                verified.status.success(),
                "{step}: {}",
                text(&verified.stdout)
            );
        }
    }
}

/// Waits until every tombstone says that it is done.
#[cfg(feature = "failpoints")]
async fn done(folder: &Path) {
    let tombstones = folder.join("store/forgotten");
    for _ in 0..600 {
        let all = std::fs::read_dir(&tombstones).unwrap();
        if all
            .map(|entry| entry.unwrap().path())
            .all(|path| path.join("done.json").exists())
        {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("not done after half a minute");
}
