//! Tables over time: merged, vacuumed, of an older version, with a damaged file, larger than the memory.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/copy.rs"]
mod copy;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use retune_ledger::{Error, ExchangeQuery, Ledger, Table};
use retune_task::Store;

use common::exchange;
use copy::copy;

/// Files of a table that are there, those of older versions too.
fn parquet_files(store: &Path, table: Table) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![store.join(table.name())];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("_delta_log") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "parquet") {
                files.push(path);
            }
        }
    }
    files
}

/// So many appends of one row each, and the rows' texts.
async fn fill(ledger: &Ledger, appends: usize) -> Vec<String> {
    let mut texts = Vec::new();
    for n in 0..appends {
        let text = format!("{} {n}", ledger.replica());
        ledger
            .append_exchange(exchange(ledger, &text))
            .await
            .unwrap();
        ledger.flush().await.unwrap();
        texts.push(text);
    }
    texts
}

async fn texts(ledger: &Ledger) -> Vec<String> {
    let all = ledger.exchanges(&ExchangeQuery::default()).await.unwrap();
    all.into_iter().map(|row| row.answer.unwrap()).collect()
}

#[tokio::test]
async fn files_lie_by_day_and_are_merged_beside_others_that_append() {
    let folder = tempfile::tempdir().unwrap();
    let store = common::store(folder.path());
    let (ledger, other) = (
        Ledger::open(&store).await.unwrap(),
        Ledger::open(&store).await.unwrap(),
    );
    let mut sent = fill(&ledger, 6).await;
    let mut yesterday = exchange(&ledger, "yesterday");
    yesterday.ts -= TimeDelta::days(1);
    let day = yesterday.ts.date_naive();
    ledger.append_exchange(yesterday).await.unwrap();
    ledger.flush().await.unwrap();
    sent.insert(0, "yesterday".to_owned());
    let is_of_day = |path: &PathBuf| path.to_string_lossy().contains(&format!("day={day}"));
    let files = parquet_files(folder.path(), Table::Exchanges);
    assert_eq!(
        files.iter().filter(|path| is_of_day(path)).count(),
        1,
        "{files:?}"
    );

    let (merged, more) = tokio::join!(ledger.compact(), fill(&other, 5));
    let merged = merged.unwrap().unwrap();
    let exchanges = merged
        .iter()
        .find(|kept| kept.table == Table::Exchanges)
        .unwrap();
    assert!(exchanges.files[0] >= 7, "{exchanges:?}");
    // The other's files may come before, while and after the merge counts: only now are they all there.
    let size = ledger.size(Table::Exchanges).await.unwrap();
    assert!(size.files < (sent.len() + more.len()) as u64, "{size:?}");
    sent.extend(more);
    for ledger in [&ledger, &other] {
        let mut seen = texts(ledger).await;
        let mut sent = sent.clone();
        seen.sort();
        sent.sort();
        assert_eq!(seen, sent);
    }
    // Once more with nobody beside it; then there is nothing to do.
    for _ in 0..2 {
        ledger.compact().await.unwrap().unwrap();
    }
    let size = ledger.size(Table::Exchanges).await.unwrap();
    let days = if Utc::now().date_naive() - day == TimeDelta::days(1) {
        2
    } else {
        3
    };
    assert!(size.files <= days && size.rows == 12, "{size:?}");
    let verified = ledger.verify(|_, _, _| {}).await.unwrap();
    assert_eq!((verified.findings, verified.rows >= 12), (vec![], true));
    // What a version of this week has stays.
    assert!(parquet_files(folder.path(), Table::Exchanges).len() > 12);
}

#[tokio::test]
async fn what_a_killed_process_left_goes_after_a_week_and_no_earlier() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&common::store(folder.path())).await.unwrap();
    fill(&ledger, 2).await;
    let files = parquet_files(folder.path(), Table::Exchanges);
    let left = |name: &str, days: u64| {
        let path = files[0].with_file_name(name);
        std::fs::copy(&files[0], &path).unwrap();
        let written = std::time::SystemTime::now() - Duration::from_secs(days * 24 * 3600);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(written).unwrap();
        path
    };
    let (old, recent) = (left("part-old.parquet", 8), left("part-recent.parquet", 6));
    let kept = ledger.compact().await.unwrap().unwrap();
    assert_eq!(kept[0].vacuumed, 1, "{kept:?}");
    assert!(!old.exists() && recent.exists() && files[0].exists());
    assert_eq!(texts(&ledger).await.len(), 2);
}

#[tokio::test]
async fn small_files_are_merged_in_the_background_by_one_process_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store {
        compact_seconds: 0.1,
        ..common::store(folder.path())
    };
    let quiet = Ledger::open(&common::store(folder.path())).await.unwrap();
    let lease = quiet.lease("upkeep").await.unwrap().unwrap();
    assert!(
        quiet.compact().await.unwrap().is_none(),
        "somebody else does it"
    );
    let ledger = Ledger::open(&store).await.unwrap();
    let mut sent = fill(&ledger, 20).await;
    assert_eq!(ledger.size(Table::Exchanges).await.unwrap().files, 20);
    drop(lease);
    let give_up = Instant::now() + Duration::from_secs(60);
    while ledger.size(Table::Exchanges).await.unwrap().files >= 16 {
        assert!(Instant::now() < give_up, "nobody merged them");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut seen = texts(&ledger).await;
    seen.sort();
    sent.sort();
    assert_eq!(seen, sent);
}

#[tokio::test]
async fn a_damaged_file_is_named_counted_and_left_out_and_the_others_answer() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&common::store(folder.path())).await.unwrap();
    fill(&ledger, 3).await;
    let files = parquet_files(folder.path(), Table::Exchanges);
    assert_eq!(files.len(), 3);
    // One cut off, one with other bytes in the middle of its pages.
    let whole = std::fs::read(&files[0]).unwrap();
    std::fs::write(&files[0], &whole[..whole.len() / 2]).unwrap();
    let mut other = std::fs::read(&files[1]).unwrap();
    other[20..400].fill(0xa5);
    std::fs::write(&files[1], &other).unwrap();

    let found = ledger.verify(|_, _, _| {}).await.unwrap().findings;
    let mut paths: Vec<_> = found.iter().map(|finding| finding.path.clone()).collect();
    paths.sort();
    let mut damaged = files[..2].to_vec();
    damaged.sort();
    assert_eq!(paths, damaged, "{found:?}");
    assert!(
        found
            .iter()
            .all(|finding| finding.what.contains("restore it from a copy"))
    );

    assert_eq!(texts(&ledger).await.len(), 1);
    let counted = ledger.stats()[0].damaged_files;
    assert_eq!(counted, 2);
    assert_eq!(
        ledger
            .sql("select answer from exchanges")
            .await
            .unwrap()
            .iter()
            .map(|b| b.num_rows())
            .sum::<usize>(),
        1
    );
    // Another process finds out by itself, and rows still come in.
    let again = Ledger::open(&common::store(folder.path())).await.unwrap();
    fill(&again, 1).await;
    assert_eq!(texts(&again).await.len(), 2);
    let snapshot = again.snapshot().await.unwrap();
    assert_eq!(
        snapshot
            .exchanges(&ExchangeQuery::default())
            .await
            .unwrap()
            .len(),
        2
    );
    // Restored, it is back for whoever opens the store.
    std::fs::write(&files[0], &whole).unwrap();
    let third = Ledger::open(&common::store(folder.path())).await.unwrap();
    assert_eq!(texts(&third).await.len(), 3);
}

#[tokio::test]
async fn a_question_larger_than_its_memory_uses_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&common::store(folder.path())).await.unwrap();
    // 400 MB of texts, in 256 MiB.
    let series = "generate_series(1, 400000)";
    let sorted =
        format!("select repeat('x', 1000) || value as text from {series} order by text desc");
    let mut answer = ledger.sql_stream(&sorted).await.unwrap();
    let mut rows = 0;
    while let Some(batch) = answer.next().await.unwrap() {
        rows += batch.num_rows();
    }
    assert_eq!(rows, 400_000);
    // What cannot use the disk says what allows more.
    let whole = format!("select array_agg(repeat('x', 1000) || value) from {series}");
    let refused = ledger.sql(&whole).await.unwrap_err();
    assert!(
        matches!(&refused, Error::Query(text) if text.contains("query.memory_bytes")),
        "{refused}"
    );
}

/// Tables without partitions: golden/README.md.
#[tokio::test]
async fn tables_of_the_first_version_are_read_appended_to_and_merged() {
    let folder = tempfile::tempdir().unwrap();
    copy(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1"),
        folder.path(),
    );
    let ledger = Ledger::open(&common::store(folder.path())).await.unwrap();
    let old = ledger.exchanges(&ExchangeQuery::default()).await.unwrap();
    assert_eq!(old.len(), 4);
    assert!(
        old.iter()
            .all(|row| row.adapter.as_deref() == Some("triage@base") && row.code == 200)
    );
    let said = ledger
        .feedback(&retune_ledger::FeedbackQuery::default())
        .await
        .unwrap();
    assert_eq!(said[0].request_id, old[0].request_id);
    assert!(ledger.is_own_request_id(&old[0].request_id));
    fill(&ledger, 3).await;
    ledger.compact().await.unwrap().unwrap();
    let size = ledger.size(Table::Exchanges).await.unwrap();
    assert_eq!((size.rows, size.files), (7, 1));
    assert_eq!(
        ledger.exchanges(&ExchangeQuery::default()).await.unwrap()[..4],
        old
    );
    assert_eq!(ledger.verify(|_, _, _| {}).await.unwrap().findings, []);
}

#[tokio::test]
async fn a_table_of_a_newer_version_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    drop(Ledger::open(&common::store(folder.path())).await.unwrap());
    let log = folder
        .path()
        .join("exchanges/_delta_log/00000000000000000000.json");
    let text = std::fs::read_to_string(&log).unwrap();
    let newer = text.replace(
        r#""retune.schemaVersion":"2""#,
        r#""retune.schemaVersion":"99""#,
    );
    assert_ne!(text, newer);
    std::fs::write(&log, newer).unwrap();
    let refused = Ledger::open(&common::store(folder.path()))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("newer Retune"), "{refused}");
}
