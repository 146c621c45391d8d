//! The write-ahead log as processes meet it: killed, raced, without a store, without room.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

#[path = "../common/mod.rs"]
mod common;
mod killed;
mod room;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::{SubsecRound, Utc};
use retune_ledger::{Error, ExchangeQuery, Feedback, FeedbackQuery, Ledger, Table};
use retune_task::Store;

use common::{exchange, store};

fn feedback(request_id: &str) -> Feedback {
    Feedback {
        feedback_id: format!("fb-{request_id}"),
        request_id: request_id.to_owned(),
        ts: Utc::now().trunc_subsecs(6),
        source: None,
        rater: None,
        rating: Some(5),
        correction: None,
        rubric: None,
        comment: None,
        preferred_over: None,
    }
}

/// Appends one and returns its id.
async fn append(ledger: &Ledger, text: &str) -> Result<String, Error> {
    let row = exchange(ledger, text);
    let id = row.request_id.clone();
    ledger.append_exchange(row).await.map(|()| id)
}

/// How often each exchange is in an answer.
async fn seen(ledger: &Ledger) -> BTreeMap<String, u64> {
    let mut seen = BTreeMap::new();
    for row in ledger.exchanges(&ExchangeQuery::default()).await.unwrap() {
        *seen.entry(row.request_id).or_default() += 1;
    }
    seen
}

/// Every row that was said to be kept, exchanges and feedback, is there once, and no other twice.
async fn all_once(ledger: &Ledger, kept: &BTreeSet<String>) {
    let mut seen = seen(ledger).await;
    for row in ledger.feedback(&FeedbackQuery::default()).await.unwrap() {
        *seen.entry(row.feedback_id).or_default() += 1;
    }
    let missing: Vec<_> = kept.iter().filter(|id| !seen.contains_key(*id)).collect();
    assert!(missing.is_empty(), "lost: {missing:?}");
    let twice: Vec<_> = seen.iter().filter(|(_, n)| **n > 1).collect();
    assert!(twice.is_empty(), "doubled: {twice:?}");
}

fn dropped(ledger: &Ledger, reason: &str) -> u64 {
    let all = ledger.stats()[0].dropped;
    all.iter().find(|(name, _)| *name == reason).unwrap().1
}

#[tokio::test]
async fn a_row_is_seen_as_soon_as_it_is_kept_by_others_too_and_a_snapshot_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&store(folder.path())).await.unwrap();
    let other = Ledger::open(&store(folder.path())).await.unwrap();
    let before = other.mark(Table::Exchanges).await.unwrap();
    let row = exchange(&ledger, "🦀 \u{0} \"quoted\"\n");
    ledger.append_exchange(row.clone()).await.unwrap();
    let said = feedback(&row.request_id);
    ledger.append_feedback(said.clone()).await.unwrap();
    for ledger in [&ledger, &other] {
        let rows = ledger.exchanges(&ExchangeQuery::default()).await.unwrap();
        assert_eq!(rows, std::slice::from_ref(&row));
        let rows = ledger.feedback(&FeedbackQuery::default()).await.unwrap();
        assert_eq!(rows, std::slice::from_ref(&said));
        let joined = "select f.rating, e.answer from feedback f join exchanges e on e.request_id = f.request_id \
                      where e.task = 'triage' and f.rating > 4";
        let rows = ledger.sql(joined).await.unwrap();
        assert_eq!(rows.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1);
    }
    assert_ne!(other.mark(Table::Exchanges).await.unwrap(), before);
    assert_eq!(other.table_version(Table::Exchanges).await.unwrap(), 0);

    // The other one asks this one to publish, and waits.
    let began = Instant::now();
    let snapshot = other.snapshot().await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "append_seconds is 60"
    );
    let later = exchange(&ledger, "later");
    ledger.append_exchange(later).await.unwrap();
    assert_eq!(
        (
            snapshot.version(Table::Exchanges),
            snapshot.version(Table::Feedback)
        ),
        (1, 1)
    );
    let rows = snapshot.exchanges(&ExchangeQuery::default()).await.unwrap();
    assert_eq!(rows, [row]);
    let rows = snapshot.feedback(&FeedbackQuery::default()).await.unwrap();
    assert_eq!(rows, [said]);
    assert_eq!(seen(&other).await.len(), 2);
    assert_eq!(dropped(&ledger, "log") + dropped(&ledger, "full"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_that_race_a_writer_and_its_publisher_see_every_row_once() {
    const ROWS: u64 = 3000;
    let folder = tempfile::tempdir().unwrap();
    let place = Store {
        append_rows: 40,
        append_seconds: 0.02,
        ..store(folder.path())
    };
    let ledger = Ledger::open(&place).await.unwrap();
    let beside = Ledger::open_briefly(&place).await.unwrap();
    let kept = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    for reader in [ledger.clone(), beside.clone(), beside] {
        let (kept, done) = (kept.clone(), done.clone());
        readers.push(tokio::spawn(async move {
            let (mut questions, mut between) = (0, 0);
            while !done.load(Ordering::SeqCst) {
                let at_least = kept.load(Ordering::SeqCst);
                let seen = seen(&reader).await;
                assert!(seen.values().all(|n| *n == 1), "a row was seen twice");
                assert!(
                    seen.len() as u64 >= at_least,
                    "{} of {at_least}",
                    seen.len()
                );
                questions += 1;
                between += u64::from(!seen.is_empty() && (seen.len() as u64) < ROWS);
            }
            (questions, between)
        }));
    }
    let writers = (0..4).map(|_| {
        let (ledger, kept) = (ledger.clone(), kept.clone());
        tokio::spawn(async move {
            for n in 0..ROWS / 4 {
                append(&ledger, &format!("row {n}")).await.unwrap();
                kept.fetch_add(1, Ordering::SeqCst);
                if n % 20 == 0 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    done.store(true, Ordering::SeqCst);
    for reader in readers {
        let (questions, between) = reader.await.unwrap();
        assert!(questions > 2 && between > 0, "{questions} {between}");
    }
    assert!(ledger.table_version(Table::Exchanges).await.unwrap() > 2);
    assert_eq!(seen(&ledger).await.len() as u64, ROWS);
    ledger.close().await.unwrap();
}

#[tokio::test]
async fn fsync_each_time_keeps_rows_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let place = Store {
        fsync_seconds: 0.0,
        ..store(folder.path())
    };
    let ledger = Ledger::open(&place).await.unwrap();
    for n in 0..20 {
        append(&ledger, &n.to_string()).await.unwrap();
    }
    assert_eq!(seen(&ledger).await.len(), 20);
    // Not closed, and not published: the next one finds them, in a log whose lock is still held.
    let next = Ledger::open(&place).await.unwrap();
    next.flush().await.unwrap();
    assert_eq!(next.table_version(Table::Exchanges).await.unwrap(), 0);
    assert_eq!(seen(&next).await.len(), 20);
}

/// `cargo test --release --workspace --test log -- --ignored --nocapture rows_a_second`, on an otherwise idle machine.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn rows_a_second() {
    const TASKS: u64 = 64;
    const EACH: u64 = 5000;
    let folder = tempfile::tempdir().unwrap();
    let place = Store {
        append_rows: 10_000,
        append_bytes: 32 << 20,
        append_seconds: 10.0,
        ..store(folder.path())
    };
    let ledger = Ledger::open(&place).await.unwrap();
    // A kilobyte of JSON in the log.
    let text = "x".repeat(180);
    let began = Instant::now();
    let tasks = (0..TASKS).map(|_| {
        let (ledger, text) = (ledger.clone(), text.clone());
        tokio::spawn(async move {
            for _ in 0..EACH {
                append(&ledger, &text).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let kept = began.elapsed().as_secs_f64();
    let log = ledger.log_bytes();
    ledger.flush().await.unwrap();
    let published = began.elapsed().as_secs_f64();
    let rows = (TASKS * EACH) as f64;
    println!(
        "{rows} rows: {:.0} a second into the log, {:.0} a second into the table; {log} bytes were left in the log",
        rows / kept,
        rows / published
    );
    assert_eq!(seen(&ledger).await.len() as u64, TASKS * EACH);
}
