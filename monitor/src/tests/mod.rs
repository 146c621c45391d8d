//! The monitor on a real ledger in a temporary folder: what the tests share.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod alarms;
mod inputs;
mod operations;
mod qualities;
mod rows;
mod words;

use chrono::{DateTime, TimeDelta, Utc};
use prometheus::{Registry, TextEncoder};
use retune_ledger::{Counts, Cursor, Exchange, Ledger, Purpose, Reference, Run, Stages};
use retune_task::{Config, Store};
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{Monitor, State, Stream, StreamReport};

pub(crate) fn time(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + second, 0).unwrap()
}

/// The `n`th exchange, in second `n`, answered by the baseline of `triage`.
pub(crate) fn exchange(n: i64, failed: bool) -> Exchange {
    Exchange {
        request_id: format!("chatcmpl-{n}"),
        replica: "0000aaaa".to_owned(),
        seq: 0,
        ts: time(n),
        purpose: Purpose::User,
        task: Some("triage".to_owned()),
        model_requested: "triage".to_owned(),
        adapter: Some("triage@base".to_owned()),
        adapter_digest: None,
        stage: Some("champion".to_owned()),
        base: "pocket".to_owned(),
        api_key_id: None,
        user: None,
        metadata: None,
        conversation: String::new(),
        messages: None,
        answer: None,
        tool_calls: None,
        finish_reason: Some("stop".to_owned()),
        prompt_tokens: 1,
        completion_tokens: 1,
        time_to_first_token_ms: None,
        duration_ms: 1.0,
        parameters: json!({}),
        code: 200,
        format_valid: Some(!failed),
        format_reason: failed.then(|| if n % 2 == 0 { "not_json" } else { "enum" }.to_owned()),
        run_id: None,
    }
}

/// 500 exchanges of which every fifth fails, then 100 of which two in three do.
pub(crate) fn drifting() -> Vec<Exchange> {
    (0..600)
        .map(|n| exchange(n, if n < 500 { n % 5 == 0 } else { n % 3 != 0 }))
        .collect()
}

/// Of a reference that knows no classes, as earlier versions wrote it.
pub(crate) fn counts(exchanges: u64, format_invalid: u64) -> Counts {
    Counts {
        exchanges,
        format_invalid,
        ..Counts::default()
    }
}

pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) config: Config,
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::load(None, []).unwrap();
        Self { folder, config }
    }

    pub(crate) async fn ledger(&self) -> Ledger {
        let store = Store {
            url: format!("file:{}", self.folder.path().display()),
            ..self.config.store.clone()
        };
        Ledger::open(&store).await.unwrap()
    }

    pub(crate) fn monitor(&self, ledger: &Ledger) -> (Monitor, Registry) {
        let registry = Registry::new();
        let monitor = Monitor::new(&self.config, ledger.clone(), &registry, None).unwrap();
        (monitor, registry)
    }
}

pub(crate) async fn append(ledger: &Ledger, rows: impl IntoIterator<Item = Exchange>) {
    for row in rows {
        ledger.append_exchange(row).await.unwrap();
    }
    ledger.flush().await.unwrap();
}

pub(crate) fn of<'a>(reports: &'a [StreamReport], adapter: &str) -> &'a StreamReport {
    reports.iter().find(|r| r.adapter == adapter).unwrap()
}

pub(crate) async fn promote(ledger: &Ledger, number: u32) {
    let stages = ledger.stages("triage").await.unwrap();
    let after = Stages {
        champion: Some(number),
        ..stages.clone()
    };
    ledger
        .set_stages("triage", stages.seq, after)
        .await
        .unwrap();
}

pub(crate) fn metric(registry: &Registry, line: &str) -> f64 {
    let text = TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap();
    let found = text.lines().find_map(|l| l.strip_prefix(line));
    let value = found.unwrap_or_else(|| panic!("no {line} in:\n{text}"));
    value.trim().parse().unwrap()
}

pub(crate) async fn windows(ledger: &Ledger) -> String {
    let rows = ledger
        .sql("select adapter, stream, state, exchanges, failures, count(*) as n from windows group by 1, 2, 3, 4, 5 order by exchanges")
        .await
        .unwrap();
    arrow::util::pretty::pretty_format_batches(&rows)
        .unwrap()
        .to_string()
}
