//! What a death between two steps leaves, and what the next process makes of it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs::File;
use std::time::Duration;

use retune_task::OnLogFailure;
use serde_json::json;
use tempfile::TempDir;

use super::super::Options;
use super::*;
use crate::place::Place;
use crate::wal::pending;
use retune_record as record;

struct Store {
    folder: TempDir,
    tables: Tables,
}

impl Store {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut handles = Vec::new();
        for table in LOGGED {
            handles.push(Arc::new(
                Handle::open(&Place::folder(folder.path().to_owned()), table)
                    .await
                    .unwrap(),
            ));
        }
        let place = Place::folder(folder.path().to_owned());
        let tables = Tables {
            handles: handles.try_into().ok().unwrap(),
            tombstones: Arc::new(Tombstones::of(&place, [0; 32])),
        };
        Self { folder, tables }
    }

    fn wal(&self) -> PathBuf {
        self.folder.path().join("wal")
    }

    /// A segment of a process that died: feedback with ids `<replica>-<number>`.
    fn segment(&self, replica: &str, first: u64, rows: u64) -> Found {
        let folder = self.wal().join(replica);
        std::fs::create_dir_all(&folder).unwrap();
        File::create(folder.join(segments::LOCK)).unwrap();
        let mut bytes = record::header().to_vec();
        for number in first..first + rows {
            let row = json!({ "feedback_id": format!("{replica}-{number}") });
            assert!(record::push(&mut bytes, number, row.to_string().as_bytes()));
        }
        let path = folder.join(segments::name(Table::Feedback, first));
        std::fs::write(&path, bytes).unwrap();
        Found { path, first }
    }

    fn publisher(&self, replica: &str) -> Publisher {
        let options = Options {
            rows: 10,
            bytes: 1 << 20,
            age: Duration::from_secs(60),
            fsync: None,
            budget: 1 << 30,
            on_failure: OnLogFailure::Drop,
        };
        Publisher {
            shared: Arc::new(Shared::new(self.folder.path(), replica, options)),
            tables: self.tables.clone(),
            again: [false; 2],
            adopts: true,
        }
    }

    fn source<'a>(&self, replica: &'a str) -> Source<'a> {
        Source {
            folder: self.wal().join(replica),
            replica,
            table: Table::Feedback,
            is_own: false,
        }
    }

    /// How often each row is in the table, and how often in an answer that looks into the logs as well.
    async fn seen(&self) -> (BTreeMap<String, u64>, BTreeMap<String, u64>) {
        let context = deltalake::datafusion::prelude::SessionContext::new();
        let pending = pending::find(&self.wal(), Table::Feedback).unwrap();
        let seen = self.tables.handles[1]
            .see(&pending.replicas())
            .await
            .unwrap();
        let logs = pending
            .provider(seen.provider.schema(), &seen.published)
            .unwrap();
        let table = context.read_table(seen.provider).unwrap();
        let all = match logs {
            Some(logs) => table
                .clone()
                .union(context.read_table(logs).unwrap())
                .unwrap(),
            None => table.clone(),
        };
        let mut counts = [BTreeMap::new(), BTreeMap::new()];
        for (frame, counts) in [table, all].into_iter().zip(&mut counts) {
            let batches = frame.collect().await.unwrap();
            for row in Table::Feedback.decode::<Ids>(&batches).unwrap() {
                *counts.entry(row.feedback_id).or_default() += 1;
            }
        }
        counts.into()
    }
}

#[derive(serde::Deserialize)]
struct Ids {
    feedback_id: String,
}

fn once(replica: &str, numbers: std::ops::RangeInclusive<u64>) -> BTreeMap<String, u64> {
    numbers.map(|n| (format!("{replica}-{n}"), 1)).collect()
}

#[tokio::test]
async fn a_death_between_commit_and_delete_neither_doubles_its_rows_nor_swallows_later_ones() {
    let store = Store::new().await;
    let first = store.segment("a", 1, 3);
    let kept = std::fs::read(&first.path).unwrap();
    let counters = Counters::default();
    let source = store.source("a");
    publish(
        &source,
        &store.tables,
        vec![first.clone()],
        false,
        &counters,
    )
    .await
    .unwrap();
    assert!(!first.path.exists());
    // As if the process had died before that.
    std::fs::write(&first.path, kept).unwrap();
    store.segment("a", 4, 2);
    let (in_table, in_all) = store.seen().await;
    assert_eq!((in_table, in_all), (once("a", 1..=3), once("a", 1..=5)));

    let other = store.publisher("b");
    other.adopt().await.unwrap();
    let (in_table, in_all) = store.seen().await;
    assert_eq!((in_table, in_all), (once("a", 1..=5), once("a", 1..=5)));
    assert!(!store.wal().join("a").exists());
    let appended = &other.shared.counters[1].appended;
    assert_eq!(appended.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_not_made_twice_though_more_rows_came() {
    let store = Store::new().await;
    let (a, b) = (store.segment("a", 1, 3), store.segment("a", 4, 3));
    let text = std::fs::read(&a.path).unwrap();
    let scan = segments::scan(&a.path, 1, &text).unwrap();
    let rows: Vec<&[u8]> = scan.records.iter().map(|r| r.row).collect();
    let (batches, _) = segments::decode(store.tables.handles[1].schema(), &rows);
    store.tables.handles[1]
        .append(batches, "a", 3)
        .await
        .unwrap();
    let counters = Counters::default();
    publish(
        &store.source("a"),
        &store.tables,
        vec![a, b],
        true,
        &counters,
    )
    .await
    .unwrap();
    assert_eq!(store.seen().await.0, once("a", 1..=6));
}

#[tokio::test]
async fn two_that_open_at_once_publish_a_dead_log_once_and_a_living_one_never() {
    let store = Store::new().await;
    for round in 0..5 {
        store.segment(&format!("dead{round}"), 1, 20);
    }
    let living = store.segment("living", 1, 2);
    let lock = File::open(store.wal().join("living").join(segments::LOCK)).unwrap();
    lock.try_lock().unwrap();
    let (a, b) = (store.publisher("a"), store.publisher("b"));
    let (x, y) = tokio::join!(a.adopt(), b.adopt());
    x.unwrap();
    y.unwrap();
    let (in_table, in_all) = store.seen().await;
    assert_eq!((in_table.len(), in_all.len()), (100, 102));
    assert!(in_all.values().all(|n| *n == 1));
    assert!(living.path.exists());
    drop(lock);
    a.adopt().await.unwrap();
    assert_eq!(store.seen().await.0.len(), 102);
}

#[tokio::test]
async fn a_damaged_row_and_one_that_no_table_takes_are_counted_and_the_others_kept() {
    let store = Store::new().await;
    let Found { path, .. } = store.segment("a", 1, 9);
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[record::HEADER + record::OVERHEAD + 3] ^= 1;
    bytes.truncate(end - 1);
    std::fs::write(&path, bytes).unwrap();
    let mut other = record::header().to_vec();
    assert!(record::push(
        &mut other,
        10,
        br#"{"feedback_id":"a-10","rating":"high"}"#
    ));
    assert!(record::push(&mut other, 11, br#"{"feedback_id":"a-11"}"#));
    std::fs::write(
        path.with_file_name(segments::name(Table::Feedback, 10)),
        other,
    )
    .unwrap();
    let publisher = store.publisher("b");
    publisher.adopt().await.unwrap();
    let mut expected = once("a", 2..=8);
    expected.insert("a-11".to_owned(), 1);
    assert_eq!(store.seen().await.0, expected);
    let counters = &publisher.shared.counters[1];
    let get = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    assert_eq!(
        (
            get(&counters.damaged),
            get(&counters.refused),
            get(&counters.torn)
        ),
        (1, 1, 1)
    );
}

#[tokio::test]
async fn a_log_of_a_newer_program_is_left_alone() {
    let store = Store::new().await;
    let Found { path, .. } = store.segment("a", 1, 1);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 2;
    let checksum = crc32fast::hash(&bytes[..12]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let publisher = store.publisher("b");
    let error = publisher.adopt().await.unwrap_err().to_string();
    assert!(error.contains("format 2"), "{error}");
    assert!(path.exists() && publisher.shared.bytes() > 0);
}
