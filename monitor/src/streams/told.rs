//! What is told of a stream, whatever its test: a line of a report, an alarm, a row of the history.

use chrono::{DateTime, Utc};
use retune_ledger::{Trigger, Window};

use super::rates::Crossing;
use super::{State, Stream, StreamReport};

/// A task and one of its adapters' names.
pub type Key = (String, String);

/// How a test stands.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    /// What it has taken.
    pub exchanges: u64,
    /// Of these, what failed.
    pub failures: u64,
    /// The time of the first of them.
    pub first: Option<DateTime<Utc>>,
    /// The statistic, as a natural logarithm.
    pub log_e: f64,
    /// Where it alarms, likewise.
    pub threshold_log: f64,
    /// So much was taken that it could have alarmed.
    pub is_enough: bool,
    /// Where it did.
    pub crossing: Option<&'a Crossing>,
}

impl Standing<'_> {
    /// `calls`: a crossing is an alarm, and not a warning.
    fn state(&self, calls: bool) -> State {
        match (self.crossing, calls) {
            (Some(_), true) => State::Alarm,
            (Some(_), false) => State::Warning,
            (None, _) if self.is_enough => State::Ok,
            (None, _) => State::NotEnoughData,
        }
    }

    /// The line of a report.
    pub fn report(&self, key: &Key, stream: Stream, calls: bool) -> StreamReport {
        let crossing = self.crossing.map(|crossing| crossing.ts);
        StreamReport {
            state: self.state(calls),
            log_e: Some(self.log_e),
            threshold_log: Some(self.threshold_log),
            ..without_reference(key, stream, self.exchanges, crossing.or(self.first))
        }
    }

    /// The alarm, if there is one. Its id is of what it is about, not of when it was noticed or by whom, so that two replicas give it the
    /// same: a reference is created once, and an adapter comes back at one time, so that time, `since`, names it.
    pub fn trigger(&self, key: &Key, stream: Stream, since: DateTime<Utc>) -> Option<Trigger> {
        let crossing = self.crossing?;
        let (task, adapter) = key.clone();
        let since = since.format("%Y%m%dT%H%M%S%3fZ");
        Some(Trigger {
            alarm: format!("{adapter}-{stream}-{since}"),
            task,
            adapter,
            kind: stream.kind(),
            ts: crossing.ts,
            request_id: crossing.request_id.clone(),
            exchanges: crossing.exchanges,
            log_e: crossing.log_e,
            threshold_log: self.threshold_log,
            evidence: crossing.evidence.clone(),
        })
    }

    /// The row of the history at a time; `calls` as in a report.
    pub fn window(&self, key: &Key, stream: Stream, ts: DateTime<Utc>, calls: bool) -> Window {
        let (task, adapter) = key.clone();
        Window {
            ts,
            task,
            adapter,
            stream: stream.to_string(),
            state: self.state(calls).to_string(),
            exchanges: self.exchanges,
            failures: self.failures,
            log_e: self.log_e,
            threshold_log: self.threshold_log,
        }
    }
}

/// The line of a stream whose yardstick is not known: what was collected for one, since when.
pub fn without_reference(
    key: &Key,
    stream: Stream,
    exchanges: u64,
    since: Option<DateTime<Utc>>,
) -> StreamReport {
    let (task, adapter) = key.clone();
    StreamReport {
        task,
        adapter,
        stream,
        state: State::NoReference,
        exchanges,
        log_e: None,
        threshold_log: None,
        since,
        alarm: None,
    }
}
