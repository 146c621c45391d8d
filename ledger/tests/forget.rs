//! Rows that go: a person's, on demand, and everybody's by age.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/copy.rs"]
mod copy;
#[path = "common/words.rs"]
mod words;

use std::path::Path;

use chrono::TimeDelta;
use retune_ledger::{
    Error, Examples, ExchangeQuery, Feedback, FeedbackQuery, Forgetting, Ledger, Manifest, Run,
    Source, Table,
};
use retune_task::Store;
use serde_json::json;

use common::exchange;
use copy::copy;
use words::words;

const ANN: &str = "ann@example.org";
const BOB: &str = "bob@example.org";

/// Asks in a user's name, and says something of it; the exchange's id.
async fn ask(ledger: &Ledger, user: &str, text: &str) -> String {
    let mut row = exchange(ledger, text);
    row.user = Some(user.to_owned());
    row.conversation = retune_task::sha256(text);
    let id = row.request_id.clone();
    ledger.append_exchange(row).await.unwrap();
    ledger
        .append_feedback(feedback(&id, &format!("{text}, said well")))
        .await
        .unwrap();
    id
}

fn feedback(of: &str, correction: &str) -> Feedback {
    Feedback {
        feedback_id: format!("fb-{of}"),
        request_id: of.to_owned(),
        ts: chrono::Utc::now(),
        source: None,
        rater: None,
        rating: Some(4),
        correction: Some(correction.to_owned()),
        rubric: None,
        comment: None,
        preferred_over: None,
    }
}

async fn answers(ledger: &Ledger) -> Vec<String> {
    let rows = ledger.exchanges(&ExchangeQuery::default()).await.unwrap();
    rows.into_iter().map(|row| row.answer.unwrap()).collect()
}

async fn corrections(ledger: &Ledger) -> Vec<String> {
    let rows = ledger.feedback(&FeedbackQuery::default()).await.unwrap();
    rows.into_iter()
        .map(|row| row.correction.unwrap())
        .collect()
}

fn adapter(folder: &Path, name: &str) -> std::path::PathBuf {
    let staging = folder.join("staging").join(name);
    std::fs::create_dir_all(&staging).unwrap();
    for file in retune_ledger::ADAPTER_FILES {
        std::fs::write(staging.join(file), name).unwrap();
    }
    staging
}

#[tokio::test]
async fn a_person_goes_from_everywhere_and_the_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let store = common::store(folder.path());
    let ledger = Ledger::open(&store).await.unwrap();
    let other = Ledger::open(&store).await.unwrap();
    let (mut hers, mut his) = (Vec::new(), Vec::new());
    for n in 0..4 {
        hers.push(ask(&ledger, ANN, &format!("zebra {n}")).await);
        his.push(ask(&ledger, BOB, &format!("bobolink {n}")).await);
        ledger.flush().await.unwrap();
    }
    // Older versions have them in small files, the newest in a large one, and two processes' logs have more.
    ledger.compact().await.unwrap().unwrap();
    hers.push(ask(&ledger, ANN, "zebra in the log").await);
    hers.push(ask(&other, ANN, "zebra in another's log").await);
    his.push(ask(&other, BOB, "bobolink in the log").await);
    let report = json!({"run_id": "r", "won": [
        {"request_id": hers[0], "prompt": "zebra 0"}, {"request_id": his[0], "prompt": "bobolink 0"}
    ]});
    let run = Run {
        run_id: "r".into(),
        report: Some(report.clone()),
        ..Run::default()
    };
    // Runs are merged as well, and a merged file has its texts in another form.
    for state in ["dataset", "training", "examining", "done"] {
        let state = state.to_owned();
        let row = Run {
            state,
            ..run.clone()
        };
        ledger.append_run(&row).await.unwrap();
    }
    let merged = ledger.compact().await.unwrap().unwrap();
    let runs = merged.iter().find(|kept| kept.table == Table::Runs);
    assert!(runs.is_some_and(|kept| kept.files[0] >= 4), "{merged:?}");
    let reports = folder.path().join("files/reports");
    std::fs::create_dir_all(&reports).unwrap();
    std::fs::write(reports.join("r.json"), report.to_string()).unwrap();
    std::fs::write(reports.join("r.md"), "zebra 0").unwrap();
    std::fs::write(reports.join("r.html"), "zebra 0").unwrap();
    let examples = |train: &[String], held_out: &[String]| {
        Some(Examples {
            train: train.to_vec(),
            development: Vec::new(),
            held_out: held_out.to_vec(),
        })
    };
    let sets = [examples(&hers[..2], &hers[2..3]), examples(&his, &[]), None];
    for (n, examples) in sets.into_iter().enumerate() {
        let staging = adapter(folder.path(), &format!("a{n}"));
        let put = ledger.put_adapter("triage", &staging, Manifest::default(), examples);
        put.await.unwrap();
    }
    assert!(words(folder.path()).contains("zebra") && words(folder.path()).contains("bobolink"));

    let would = other.would_forget(ANN).await.unwrap();
    assert_eq!((would.exchanges, would.feedback), (6, 6), "{would:?}");
    assert_eq!(answers(&ledger).await.len(), 11);

    let mut seen = Vec::new();
    let done = other.forget(ANN, &mut |at| seen.push(at)).await.unwrap();
    assert_eq!((done.exchanges, done.feedback), (6, 6), "{done:?}");
    assert!(seen.contains(&Forgetting::Publishing));
    assert!(
        done.files_rewritten >= 3 && done.files_deleted >= 8,
        "{done:?}"
    );
    assert_eq!(done.unread, Vec::<std::path::PathBuf>::new());
    for ledger in [&ledger, &other] {
        assert_eq!(answers(ledger).await.len(), 5);
        assert!(
            answers(ledger)
                .await
                .iter()
                .all(|text| text.starts_with("bobolink"))
        );
        assert_eq!(corrections(ledger).await.len(), 5);
    }
    let words = words(folder.path());
    assert!(!words.contains("zebra") && !words.contains(ANN) && words.contains("bobolink 0"));
    let verified = ledger.verify(|_, _, _| {}).await.unwrap();
    assert_eq!(verified.findings, []);

    // Reports show the others, and say that somebody is missing.
    let kept = &ledger.runs().await.unwrap()[0].report;
    assert_eq!(
        kept.as_ref().unwrap()["won"][0]["request_id"],
        json!(his[0])
    );
    assert_eq!(kept.as_ref().unwrap()["forgotten"], 1);
    assert_eq!(done.reports, [reports.join("r.json")]);
    assert!(!reports.join("r.md").exists());
    assert!(!reports.join("r.html").exists());

    // The one that learned from her has a tombstone, and the one of which nobody knows is named.
    let adapters = ledger.adapters("triage").await.unwrap();
    let (one, two, three) = (&adapters[0], &adapters[1], &adapters[2]);
    let of = &ledger.forgotten_of(one).await.unwrap()[0];
    assert_eq!((of.train, of.development, of.held_out), (2, 0, 1));
    assert_eq!(done.adapters, std::slice::from_ref(of));
    assert_eq!(ledger.forgotten_of(two).await.unwrap(), []);
    assert_eq!(done.adapters_unknown, [format!("triage@{}", three.number)]);
    assert_eq!(three.manifest.source, Source::Run);
    ledger.verify_adapter(one).await.unwrap();

    // What comes later of what was forgotten goes no further than the log; what is new of her is kept.
    ledger
        .append_feedback(feedback(&hers[0], "zebra, late"))
        .await
        .unwrap();
    ask(&ledger, ANN, "heron").await;
    ledger.flush().await.unwrap();
    assert_eq!(corrections(&ledger).await.len(), 6);
    assert!(answers(&ledger).await.contains(&"heron".to_owned()));

    // An adapter whose run had read the rows before is not taken.
    let staging = adapter(folder.path(), "late");
    let put = ledger.put_adapter(
        "triage",
        &staging,
        Manifest::default(),
        examples(&hers, &his),
    );
    let refused = put.await;
    assert!(
        matches!(refused, Err(Error::Forgotten { forgotten: 6, .. })),
        "{refused:?}"
    );

    // Again: only what is new.
    let again = ledger.forget(ANN, &mut |_| {}).await.unwrap();
    assert_eq!((again.exchanges, again.feedback), (1, 1), "{again:?}");
    let nobody = ledger.forget("nobody", &mut |_| {}).await.unwrap();
    assert_eq!(
        (nobody.exchanges, nobody.files_rewritten),
        (0, 0),
        "{nobody:?}"
    );
    assert_eq!(answers(&ledger).await.len(), 5);
}

#[tokio::test]
async fn what_was_begun_is_gone_on_with_by_whoever_keeps_the_tables_up() {
    let folder = tempfile::tempdir().unwrap();
    let store = common::store(folder.path());
    let ledger = Ledger::open(&store).await.unwrap();
    ask(&ledger, ANN, "zebra").await;
    ask(&ledger, BOB, "bobolink").await;
    ledger.flush().await.unwrap();
    // Somebody else has the right to upkeep, and the one who wants to forget is killed while waiting for it.
    let lease = ledger.lease("upkeep").await.unwrap().unwrap();
    let mut waiting = false;
    let mut look = |at| waiting |= at == Forgetting::Waiting;
    let killed = ledger.forget(ANN, &mut look);
    let killed = tokio::time::timeout(std::time::Duration::from_secs(1), killed).await;
    assert!(killed.is_err() && waiting);
    assert_eq!(answers(&ledger).await.len(), 2);
    lease.give_back().await;

    let store = Store {
        compact_seconds: 0.1,
        ..store
    };
    let keeper = Ledger::open(&store).await.unwrap();
    // Rows go first, and then the files that older versions have.
    let is_done = || {
        let tombstones = std::fs::read_dir(folder.path().join("forgotten")).unwrap();
        let mut done = tombstones.map(|tombstone| tombstone.unwrap().path().join("done.json"));
        done.any(|done| done.exists())
    };
    for _ in 0..200 {
        if is_done() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(is_done());
    assert_eq!(answers(&keeper).await, ["bobolink"]);
    drop(keeper);
    assert!(!words(folder.path()).contains("zebra"));
}

#[tokio::test]
async fn rows_of_earlier_days_go_and_later_ones_stay() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store {
        keep_days: Some(30),
        ..common::store(folder.path())
    };
    let ledger = Ledger::open(&store).await.unwrap();
    for (text, days) in [("zebra", 31), ("heron", 29), ("bobolink", 0)] {
        let mut row = exchange(&ledger, text);
        row.ts -= TimeDelta::days(days);
        row.request_id = ledger.new_request_id_at(row.ts);
        let mut said = feedback(&row.request_id, text);
        said.ts = row.ts;
        ledger.append_exchange(row).await.unwrap();
        ledger.append_feedback(said).await.unwrap();
    }
    ledger.flush().await.unwrap();
    assert_eq!(answers(&ledger).await, ["zebra", "heron", "bobolink"]);
    for _ in 0..2 {
        ledger.compact().await.unwrap().unwrap();
        assert_eq!(answers(&ledger).await, ["heron", "bobolink"]);
        assert_eq!(corrections(&ledger).await, ["heron", "bobolink"]);
    }
    let words = words(folder.path());
    assert!(!words.contains("zebra") && words.contains("heron") && words.contains("bobolink"));
    let size = ledger.size(Table::Exchanges).await.unwrap();
    assert_eq!((size.rows, size.files), (2, 2));
}

#[tokio::test]
async fn a_table_whose_log_has_texts_cannot_forget_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    copy(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1"),
        folder.path(),
    );
    let ledger = Ledger::open(&common::store(folder.path())).await.unwrap();
    let refused = ledger.forget(ANN, &mut |_| {}).await;
    assert!(
        matches!(refused, Err(Error::CannotForget { .. })),
        "{refused:?}"
    );
}
