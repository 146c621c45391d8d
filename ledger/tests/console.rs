//! What a web page asks: how the traffic is, how the streams stand, some exchanges by their ids, and words that were taken back.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use chrono::{SubsecRound as _, TimeDelta, Utc};
use retune_ledger::{
    Exchange, Export, Feedback, FeedbackQuery, Ledger, Purpose, TrafficQuery, Window, WindowQuery,
};
use serde_json::json;

async fn open(folder: &std::path::Path) -> Ledger {
    Ledger::open(&common::store(folder)).await.unwrap()
}

fn exchange(ledger: &Ledger, adapter: &str, n: u64) -> Exchange {
    Exchange {
        task: Some("ask".to_owned()),
        adapter: Some(adapter.to_owned()),
        prompt_tokens: 10,
        completion_tokens: n,
        duration_ms: n as f64,
        format_valid: Some(n.is_multiple_of(2)),
        ..common::exchange(ledger, &format!("answer {n}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_traffic_of_a_day_is_told_by_adapter_and_counts_apps_alone() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let mut ids = Vec::new();
    for n in 1..=100 {
        let row = exchange(&ledger, "ask@2", n);
        ids.push(row.request_id.clone());
        ledger.append_exchange(row).await.unwrap();
    }
    let mut others = vec![
        exchange(&ledger, "ask@base", 1),
        exchange(&ledger, "ask@2", 1),
        exchange(&ledger, "ask@2", 1),
        exchange(&ledger, "ask@2", 1),
    ];
    (others[0].code, others[0].format_valid) = (500, None);
    others[1].purpose = Purpose::Examination;
    others[2].ts -= TimeDelta::days(2);
    others[3].task = Some("other".to_owned());
    for row in others {
        ledger.append_exchange(row).await.unwrap();
    }
    let query = TrafficQuery {
        task: "ask".to_owned(),
        since: Utc::now() - TimeDelta::days(1),
    };
    // The same from the logs and from the tables.
    for _ in 0..2 {
        let traffic = ledger.traffic(&query).await.unwrap();
        let (all, failed) = (&traffic[0], &traffic[1]);
        assert_eq!(traffic.len(), 2);
        assert_eq!(all.adapter.as_deref(), Some("ask@2"));
        assert_eq!((all.requests, all.failed), (100, 0));
        assert_eq!((all.checked, all.valid), (100, 50));
        assert_eq!((all.prompt_tokens, all.completion_tokens), (1_000, 5_050));
        let (half, slow) = (all.duration_ms.unwrap(), all.slow_ms.unwrap());
        assert!(
            (half - 50.0).abs() < 2.0 && (slow - 95.0).abs() < 2.0,
            "{half}, {slow}"
        );
        assert_eq!(
            (failed.requests, failed.failed, failed.duration_ms),
            (1, 1, None)
        );
        ledger.flush().await.unwrap();
    }

    let some = [ids[7].as_str(), "chatcmpl-none", ids[3].as_str()];
    let found = ledger.exchanges_of(&some).await.unwrap();
    let found: Vec<&str> = found.iter().map(|row| row.request_id.as_str()).collect();
    assert_eq!(found, [ids[3].as_str(), ids[7].as_str()]);
    assert!(ledger.exchange("it's none").await.unwrap().is_none());
    assert!(ledger.exchanges_of(&[]).await.unwrap().is_empty());
    ledger.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_stream_stands_where_its_newest_row_says() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let now = Utc::now().trunc_subsecs(6);
    let window = |adapter: &str, stream: &str, n: i64| Window {
        ts: now + TimeDelta::seconds(n),
        task: "ask".to_owned(),
        adapter: adapter.to_owned(),
        stream: stream.to_owned(),
        state: "ok".to_owned(),
        exchanges: n.unsigned_abs(),
        failures: 0,
        log_e: n as f64,
        threshold_log: 9.0,
    };
    for n in 1..=3 {
        let rows = [window("ask@1", "format", n), window("ask@1", "input", -n)];
        ledger.append_windows(&rows).await.unwrap();
    }
    let stand = ledger.stream_states("ask").await.unwrap();
    let stand: Vec<(&str, f64)> = stand.iter().map(|w| (w.stream.as_str(), w.log_e)).collect();
    assert_eq!(stand, [("format", 3.0), ("input", -1.0)]);
    assert!(ledger.stream_states("o'ther").await.unwrap().is_empty());
    let query = WindowQuery {
        task: "ask".to_owned(),
        adapter: Some("ask@1".to_owned()),
        stream: Some("format".to_owned()),
        limit: Some(2),
    };
    let rows = ledger.windows(&query).await.unwrap();
    let rows: Vec<f64> = rows.iter().map(|row| row.log_e).collect();
    assert_eq!(rows, [2.0, 3.0]);
    ledger.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn words_that_were_taken_back_are_exported_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path()).await;
    let row = exchange(&ledger, "ask@1", 4);
    let id = row.request_id.clone();
    ledger.append_exchange(row).await.unwrap();
    let back = |n: u32| {
        let source = Some("console".to_owned());
        Feedback::taking_back(format!("fb-{n}"), &id, source, None)
    };
    let corrected = Feedback {
        rating: Some(1),
        correction: Some("better".to_owned()),
        ..back(1)
    };
    let answers = async || {
        let mut lines = ledger.export(&Export::default()).await.unwrap();
        let lines = lines.next().await.unwrap().unwrap();
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        line["messages"][1]["content"].clone()
    };
    let said = async || {
        let said = ledger.feedback(&FeedbackQuery::default()).await.unwrap();
        said.len()
    };
    ledger.append_feedback(corrected.clone()).await.unwrap();
    assert_eq!((answers().await, said().await), (json!("better"), 1));
    ledger.append_feedback(back(2)).await.unwrap();
    assert_eq!((answers().await, said().await), (json!("answer 4"), 0));
    let again = Feedback {
        correction: Some("best".to_owned()),
        ..back(3)
    };
    ledger.append_feedback(again).await.unwrap();
    assert_eq!((answers().await, said().await), (json!("best"), 1));
    ledger.close().await.unwrap();
}
