//! The ledger on a real folder.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use chrono::{SubsecRound, Utc};
use retune_ledger::{
    Cursor, Error, ExchangeQuery, Feedback, FeedbackQuery, Ledger, Manifest, Run, Stage, Stages,
    Table,
};
use retune_task::Store;
use serde_json::json;

use common::exchange;

fn store(folder: &Path) -> Store {
    Store {
        append_seconds: 0.05,
        ..common::store(folder)
    }
}

#[tokio::test]
async fn rows_come_back_as_they_were_in_order_and_behind_a_cursor() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&store(folder.path())).await.unwrap();
    let texts = [
        "plain",
        "'; drop table exchanges; --",
        "\"quoted\"\n\t\\",
        "🦀 \u{0} \u{feff}é",
        "",
    ];
    let mut sent = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        let mut row = exchange(&ledger, text);
        row.seq = i as u64;
        sent.push(row.clone());
        ledger.append_exchange(row).await.unwrap();
    }
    ledger.flush().await.unwrap();
    let all = ledger.exchanges(&ExchangeQuery::default()).await.unwrap();
    assert_eq!(all, sent);
    let after = ExchangeQuery {
        after: Some(all[2].cursor()),
        ..ExchangeQuery::default()
    };
    assert_eq!(ledger.exchanges(&after).await.unwrap(), sent[3..]);
    let other = ExchangeQuery {
        task: Some("tri'age".into()),
        ..ExchangeQuery::default()
    };
    assert!(ledger.exchanges(&other).await.unwrap().is_empty());

    let feedback = Feedback {
        feedback_id: "f".into(),
        request_id: sent[0].request_id.clone(),
        ts: Utc::now().trunc_subsecs(6),
        source: None,
        rater: Some("ann".into()),
        rating: Some(5),
        correction: Some("{}".into()),
        rubric: Some(json!({"style": 3})),
        comment: None,
        preferred_over: None,
    };
    ledger.append_feedback(feedback.clone()).await.unwrap();
    ledger.close().await.unwrap();
    let again = Ledger::open(&store(folder.path())).await.unwrap();
    assert_eq!(
        again.feedback(&FeedbackQuery::default()).await.unwrap(),
        [feedback]
    );
    assert_eq!(
        again
            .exchanges(&ExchangeQuery::default())
            .await
            .unwrap()
            .len(),
        5
    );
}

#[tokio::test]
async fn rows_are_appended_by_age_and_a_closed_ledger_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&store(folder.path())).await.unwrap();
    ledger
        .append_exchange(exchange(&ledger, "a"))
        .await
        .unwrap();
    let before = std::time::Instant::now();
    while ledger.stats()[0].appended == 0 {
        assert!(before.elapsed().as_secs() < 30, "never appended");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(ledger.table_version(Table::Exchanges).await.unwrap(), 1);
    ledger.close().await.unwrap();
    let late = ledger.append_exchange(exchange(&ledger, "b")).await;
    assert!(matches!(late, Err(Error::Closed { .. })));
    assert!(ledger.stats()[0].dropped.contains(&("closed", 1)));
    let left = std::fs::read_dir(folder.path().join("wal")).unwrap();
    assert_eq!(left.count(), 0, "an empty log is removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_lose_and_double_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let place = store(folder.path());
    let (a, b) = tokio::join!(Ledger::open(&place), Ledger::open(&place));
    let (a, b) = (a.unwrap(), b.unwrap());
    for round in 0..5 {
        for i in 0..20 {
            a.append_exchange(exchange(&a, &format!("a{round}-{i}")))
                .await
                .unwrap();
            b.append_exchange(exchange(&b, &format!("b{round}-{i}")))
                .await
                .unwrap();
        }
        let (x, y) = tokio::join!(a.flush(), b.flush());
        x.unwrap();
        y.unwrap();
    }
    let rows = a.exchanges(&ExchangeQuery::default()).await.unwrap();
    let distinct: std::collections::BTreeSet<_> = rows.iter().map(|r| &r.request_id).collect();
    assert_eq!((rows.len(), distinct.len()), (200, 200));
    assert!(rows.windows(2).all(|w| w[0].cursor() < w[1].cursor()));
    let _: Cursor = rows[0].cursor();
}

#[tokio::test]
async fn a_store_that_goes_away_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&store(folder.path())).await.unwrap();
    ledger
        .append_exchange(exchange(&ledger, "before"))
        .await
        .unwrap();
    ledger.flush().await.unwrap();
    // A file in the folder's place: nothing can be written below it, whoever runs this.
    let (table, aside) = (folder.path().join("exchanges"), folder.path().join("aside"));
    std::fs::rename(&table, &aside).unwrap();
    std::fs::write(&table, "in the way").unwrap();
    ledger
        .append_exchange(exchange(&ledger, "during"))
        .await
        .unwrap();
    assert!(ledger.flush().await.is_err());
    assert_eq!(ledger.stats()[0].waiting, 1);
    std::fs::remove_file(&table).unwrap();
    std::fs::rename(&aside, &table).unwrap();
    ledger
        .append_exchange(exchange(&ledger, "after"))
        .await
        .unwrap();
    ledger.flush().await.unwrap();
    let rows = ledger.exchanges(&ExchangeQuery::default()).await.unwrap();
    assert_eq!(
        rows.iter()
            .map(|r| r.answer.as_deref().unwrap())
            .collect::<Vec<_>>(),
        ["before", "during", "after"]
    );
}

#[tokio::test]
async fn questions_are_answered_and_changes_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&store(folder.path())).await.unwrap();
    ledger
        .append_run(&Run {
            run_id: "r".into(),
            state: "training".into(),
            ..Run::default()
        })
        .await
        .unwrap();
    let done = Run {
        run_id: "r".into(),
        ts: Utc::now().trunc_subsecs(6),
        state: "done".into(),
        progress: Some((1, 2)),
        ..Run::default()
    };
    ledger.append_run(&done).await.unwrap();
    assert_eq!(ledger.runs().await.unwrap(), [done]);
    let batches = ledger
        .sql("select count(*) as n from runs where state = 'done'")
        .await
        .unwrap();
    assert_eq!(batches[0].num_rows(), 1);
    assert_eq!(ledger.table_version(Table::Runs).await.unwrap(), 2);
    for wrong in [
        "drop table runs",
        "insert into runs select * from runs",
        "set x = 1",
    ] {
        assert!(
            matches!(ledger.sql(wrong).await, Err(Error::ReadOnly(_))),
            "{wrong}"
        );
    }
    let aside = folder.path().join("aside.csv");
    let copy = format!("copy runs to '{}' stored as csv", aside.display());
    assert!(ledger.sql(&copy).await.is_err() && !aside.exists());
    assert!(matches!(
        ledger.sql("select nothing from runs").await,
        Err(Error::Query(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_are_made_once() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&store(folder.path())).await.unwrap();
    let racers: Vec<_> = (0..8)
        .map(|i| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                let after = Stages {
                    champion: Some(i),
                    ..Stages::default()
                };
                ledger
                    .set_stages("triage", 0, after)
                    .await
                    .is_ok()
                    .then_some(i)
            })
        })
        .collect();
    let mut winners = Vec::new();
    for racer in racers {
        winners.extend(racer.await.unwrap());
    }
    assert_eq!(winners.len(), 1);
    let stages = ledger.stages("triage").await.unwrap();
    assert_eq!((stages.seq, stages.champion), (1, Some(winners[0])));
    assert!(!stages.stage_of.contains_key(&1));
    assert_eq!(Stage::Champion.to_string(), "champion");

    let lease = ledger.lease("retrain-triage").await.unwrap();
    assert!(lease.is_some());
    assert!(ledger.lease("retrain-triage").await.unwrap().is_none());
    drop(lease);
    assert!(ledger.lease("retrain-triage").await.unwrap().is_some());
}

#[tokio::test]
async fn adapters_are_numbered_immutable_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&store(folder.path())).await.unwrap();
    let publish = async |content: &str| {
        let staging = ledger.files().join("staging").join(content);
        std::fs::create_dir_all(&staging).unwrap();
        std::fs::write(staging.join("adapter_config.json"), "{}").unwrap();
        std::fs::write(staging.join("adapter_model.safetensors"), content).unwrap();
        ledger
            .put_adapter("triage", &staging, Manifest::default(), None)
            .await
            .unwrap()
    };
    let (one, two) = (publish("one").await, publish("two").await);
    assert_eq!((one.number, two.number), (1, 2));
    assert_ne!(one.manifest.digest, two.manifest.digest);
    assert_eq!(ledger.adapters("triage").await.unwrap(), [one.clone(), two]);
    ledger.verify_adapter(&one).await.unwrap();
    std::fs::write(one.folder.join("adapter_model.safetensors"), "on").unwrap();
    let error = ledger.verify_adapter(&one).await.unwrap_err().to_string();
    assert!(
        error.contains("adapter_model.safetensors") && error.contains("truncated"),
        "{error}"
    );
    assert!(matches!(
        ledger.adapter("triage", 9).await,
        Err(Error::NoAdapter { number: 9, .. })
    ));
}
