//! No table to write to, no log to write to, no room.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use retune_ledger::{Error, Ledger};
use retune_task::{OnLogFailure, Store};

use super::{all_once, append, dropped, seen, store};

/// A file in a folder's place: nothing can be written below it, whoever runs this.
struct InTheWay {
    folder: PathBuf,
    aside: PathBuf,
}

impl InTheWay {
    fn of(folder: &Path) -> Self {
        let aside = folder.with_extension("aside");
        if folder.exists() {
            std::fs::rename(folder, &aside).unwrap();
        }
        std::fs::write(folder, "in the way").unwrap();
        Self {
            folder: folder.to_owned(),
            aside,
        }
    }

    fn gone(self) {
        std::fs::remove_file(&self.folder).unwrap();
        if self.aside.exists() {
            std::fs::rename(self.aside, self.folder).unwrap();
        }
    }
}

#[tokio::test]
async fn a_table_that_cannot_be_written_fills_the_log_up_to_its_budget_and_loses_nothing_of_that() {
    let folder = tempfile::tempdir().unwrap();
    let place = Store {
        append_seconds: 0.05,
        log_bytes: 1 << 20,
        ..store(folder.path())
    };
    let ledger = Ledger::open(&place).await.unwrap();
    let mut kept = BTreeSet::from([append(&ledger, "before").await.unwrap()]);
    ledger.flush().await.unwrap();
    let in_the_way = InTheWay::of(&folder.path().join("exchanges"));
    let text = "long ".repeat(2000);
    let full = loop {
        match append(&ledger, &text).await {
            Ok(id) => assert!(kept.insert(id)),
            Err(e) => break e,
        }
    };
    assert!(matches!(full, Error::LogFull { .. }), "{full}");
    assert!(append(&ledger, &text).await.is_err());
    assert_eq!(dropped(&ledger, "full"), 2);
    let log = ledger.log_bytes();
    assert!(log <= 1 << 20 && log > 900 << 10, "{log}");
    assert_eq!(ledger.stats()[0].waiting, kept.len() as u64 - 1);
    assert!(ledger.stats()[0].lag_seconds > 0.0);

    in_the_way.gone();
    assert_eq!(
        seen(&ledger).await.keys().cloned().collect::<BTreeSet<_>>(),
        kept
    );
    ledger.flush().await.unwrap();
    assert_eq!((ledger.log_bytes(), ledger.stats()[0].waiting), (0, 0));
    kept.insert(append(&ledger, &text).await.unwrap());
    ledger.close().await.unwrap();
    let again = Ledger::open(&place).await.unwrap();
    assert_eq!(seen(&again).await.len(), kept.len());
    all_once(&again, &kept).await;
}

#[tokio::test]
async fn with_reject_a_full_log_refuses_before_and_keeps_whatever_was_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let place = Store {
        append_seconds: 0.05,
        log_bytes: 1 << 20,
        on_log_failure: OnLogFailure::Reject,
        ..store(folder.path())
    };
    let ledger = Ledger::open(&place).await.unwrap();
    let in_the_way = InTheWay::of(&folder.path().join("exchanges"));
    let text = "long ".repeat(20_000);
    let mut kept = BTreeSet::new();
    while ledger.ready().await.is_ok() {
        kept.insert(append(&ledger, &text).await.unwrap());
    }
    assert!(matches!(ledger.ready().await, Err(Error::LogFull { .. })));
    kept.insert(append(&ledger, &text).await.unwrap());
    in_the_way.gone();
    ledger.flush().await.unwrap();
    ledger.ready().await.unwrap();
    assert_eq!(
        seen(&ledger).await.keys().cloned().collect::<BTreeSet<_>>(),
        kept
    );
}

#[tokio::test]
async fn a_log_that_cannot_be_written_drops_and_counts_or_refuses_and_comes_back() {
    for on_log_failure in [OnLogFailure::Drop, OnLogFailure::Reject] {
        let folder = tempfile::tempdir().unwrap();
        let place = Store {
            on_log_failure,
            ..store(folder.path())
        };
        let ledger = Ledger::open(&place).await.unwrap();
        let in_the_way = InTheWay::of(&folder.path().join("wal"));
        let refused = ledger.ready().await;
        match on_log_failure {
            OnLogFailure::Drop => refused.unwrap(),
            OnLogFailure::Reject => assert!(matches!(refused, Err(Error::Log { .. }))),
        }
        let error = append(&ledger, "lost").await.unwrap_err();
        assert!(matches!(error, Error::Log { .. }), "{error}");
        assert!(error.to_string().contains("wal"), "{error}");
        assert_eq!(dropped(&ledger, "log"), 1);

        in_the_way.gone();
        let give_up = Instant::now() + Duration::from_secs(20);
        while ledger.ready().await.is_err() {
            assert!(Instant::now() < give_up, "it never was ready again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let id = append(&ledger, "kept").await.unwrap();
        assert_eq!(seen(&ledger).await, BTreeMap::from([(id, 1)]));
        ledger.close().await.unwrap();
    }
}
