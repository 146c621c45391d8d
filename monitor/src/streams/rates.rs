//! Do failures of some kind become more frequent? A Bernoulli-mixture e-CUSUM for each kind, and one figure for all of them.
//!
//! H0 for each kind: its rate is at most q0, the one-sided upper confidence limit of the rate in the reference plus a tolerance. The limit,
//! since a reference is a sample: taking its observed rate would blame every second adapter for its reference's luck. The tolerance,
//! since nobody wants to be called for half a per cent.
//!
//! The weighted mean of e-detectors is an e-detector (Shin, Ramdas and Rinaldo 2024, arXiv 2203.03532, section 4): so a stream has one
//! threshold, however many kinds it watches, and looking at one more costs the others a few observations.
//!
//! A crossing stays: what happens afterwards changes the statistic, and not that there was an alarm.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, Utc};
use retune_ledger::{Cursor, Window};
use retune_stats::{BernoulliCusum, upper_limit};
use serde_json::{Value, json};

use super::Stream;
use super::told::{Key, Standing};

/// Observations kept for the evidence; a change that took longer to notice is described by its last so many.
const RECENT: usize = 4_096;
/// A row of the history each time so many observations were taken.
const WINDOW: u64 = 100;
/// Requests named in the evidence, and points of the statistic's path.
const SAMPLES: usize = 20;
const PATH: usize = 50;
/// After so many failures in a row without a crossing, there is nothing that this test could ever tell.
const HOPELESS: u64 = 10_000;

/// A kind of failure, and what is normal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kind {
    /// What it is called in evidence.
    pub name: &'static str,
    /// Its share of the stream's figure; all of a stream's add up to 1.
    pub weight: f64,
    /// How many of the reference's observations failed in this way.
    pub failures: u64,
    /// How many observations the reference has.
    pub of: u64,
    /// One-sided confidence of the limit on the reference's rate.
    pub confidence: f64,
    /// Added to the limit.
    pub tolerance: f64,
}

/// One observation: an exchange, or a feedback.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Its place in the order.
    pub cursor: &'a Cursor,
    /// The exchange that it is about.
    pub request_id: &'a str,
    /// For each kind whether it failed in this way; None where that cannot be said.
    pub failed: &'a [Option<bool>],
}

/// A stream's tests and their state.
#[derive(Debug, Clone)]
pub struct Rates {
    kinds: Vec<Tested>,
    threshold_log: f64,
    /// Fewest observations in which a crossing is possible.
    fewest: u64,
    observed: u64,
    failures: u64,
    first: Option<DateTime<Utc>>,
    crossing: Option<Crossing>,
    /// The observations since the likely change, until there is a crossing.
    recent: VecDeque<Recent>,
}

#[derive(Debug, Clone)]
struct Tested {
    kind: Kind,
    cusum: BernoulliCusum,
    observed: u64,
    failures: u64,
}

impl Tested {
    /// Its part of the stream's figure.
    fn weighted(&self) -> f64 {
        self.kind.weight * self.cusum.e()
    }
}

#[derive(Debug, Clone)]
struct Recent {
    ts: DateTime<Utc>,
    request_id: String,
    /// The kinds in which it failed, a bit each.
    failed: u32,
    number: u64,
    log_e: f64,
}

/// The moment at which the threshold was reached.
#[derive(Debug, Clone, PartialEq)]
pub struct Crossing {
    /// Of the observation that reached it.
    pub ts: DateTime<Utc>,
    /// Which exchange that was about.
    pub request_id: String,
    /// Tested until then, this one included.
    pub exchanges: u64,
    /// The statistic then, as a natural logarithm.
    pub log_e: f64,
    /// What somebody needs to judge it.
    pub evidence: Value,
}

impl Rates {
    /// Of at most 32 kinds.
    pub fn new(kinds: &[Kind], threshold_log: f64) -> Self {
        let tested = |kind: &Kind| {
            let limit = upper_limit(kind.failures, kind.of, kind.confidence);
            Tested {
                kind: *kind,
                cusum: BernoulliCusum::new(limit + kind.tolerance),
                observed: 0,
                failures: 0,
            }
        };
        let mut rates = Self {
            kinds: kinds.iter().map(tested).collect(),
            threshold_log,
            fewest: 0,
            observed: 0,
            failures: 0,
            first: None,
            crossing: None,
            recent: VecDeque::new(),
        };
        rates.fewest = rates.fewest();
        rates
    }

    /// Takes the next observation.
    pub fn observe(&mut self, seen: Seen<'_>) {
        let mut bits = 0;
        for (at, (tested, failed)) in self.kinds.iter_mut().zip(seen.failed).enumerate() {
            let Some(failed) = *failed else { continue };
            tested.cusum.observe(failed);
            tested.observed += 1;
            tested.failures += u64::from(failed);
            bits |= u32::from(failed) << at;
        }
        self.observed += 1;
        self.failures += u64::from(bits != 0);
        self.first.get_or_insert(seen.cursor.ts);
        if self.crossing.is_none() {
            self.look(seen, bits);
        }
    }

    fn look(&mut self, seen: Seen<'_>, failed: u32) {
        let log_e = self.log_e();
        self.recent.push_back(Recent {
            ts: seen.cursor.ts,
            request_id: seen.request_id.to_owned(),
            failed,
            number: self.observed,
            log_e,
        });
        let wanted = usize::try_from(self.since_change()).unwrap_or(RECENT);
        while self.recent.len() > wanted.min(RECENT) {
            self.recent.pop_front();
        }
        if log_e >= self.threshold_log {
            self.crossing = Some(Crossing {
                ts: seen.cursor.ts,
                request_id: seen.request_id.to_owned(),
                exchanges: self.observed,
                log_e,
                evidence: self.evidence(),
            });
            self.recent = VecDeque::new();
        }
    }

    /// The natural logarithm of the weighted mean of all kinds' statistics.
    pub fn log_e(&self) -> f64 {
        let weighted = self.kinds.iter().map(Tested::weighted);
        weighted.sum::<f64>().ln()
    }

    /// Where the threshold was reached, if it was.
    pub fn crossing(&self) -> Option<&Crossing> {
        self.crossing.as_ref()
    }

    /// The row of the history that is due after an observation: each time so many were taken, and where the threshold was reached.
    pub fn due(&self, key: &Key, stream: Stream, ts: DateTime<Utc>) -> Option<Window> {
        let crossed = self.crossing.as_ref();
        let is_due = self.observed.is_multiple_of(WINDOW)
            || crossed.is_some_and(|crossing| crossing.exchanges == self.observed);
        is_due.then(|| self.standing().window(key, stream, ts, true))
    }

    /// What is told of it.
    pub fn standing(&self) -> Standing<'_> {
        Standing {
            exchanges: self.observed,
            failures: self.failures,
            first: self.first,
            log_e: self.log_e(),
            threshold_log: self.threshold_log,
            is_enough: self.observed >= self.fewest,
            crossing: self.crossing(),
        }
    }

    fn leader(&self) -> Option<&Tested> {
        let kinds = self.kinds.iter();
        kinds.max_by(|a, b| a.weighted().total_cmp(&b.weighted()))
    }

    /// Of the leading kind: its own observations, which are the last ones of the stream but where some could not be said.
    fn since_change(&self) -> u64 {
        let leader = self.leader();
        leader.map_or(0, |tested| tested.cusum.since_change())
    }

    /// The number of observations that fail in the first kind, from the start, that reaches the threshold.
    fn fewest(&self) -> u64 {
        let mut fresh = self.clone();
        let found = (1..=HOPELESS).find(|_| {
            if let Some(first) = fresh.kinds.first_mut() {
                first.cusum.observe(true);
            }
            fresh.log_e() >= fresh.threshold_log
        });
        found.unwrap_or(u64::MAX)
    }

    /// Everything somebody needs to judge the alarm, and nothing of what was asked or answered.
    fn evidence(&self) -> Value {
        let failing = || self.recent.iter().filter(|recent| recent.failed != 0);
        let mut by_kind: BTreeMap<&str, u64> = BTreeMap::new();
        for recent in failing() {
            for (at, tested) in self.kinds.iter().enumerate() {
                if recent.failed >> at & 1 == 1 {
                    *by_kind.entry(tested.kind.name).or_default() += 1;
                }
            }
        }
        let newest = failing().rev().take(SAMPLES);
        let newest: Vec<&str> = newest.map(|recent| recent.request_id.as_str()).collect();
        let step = self.recent.len().div_ceil(PATH).max(1);
        let path: Vec<Value> = self
            .recent
            .iter()
            .rev()
            .step_by(step)
            .map(|recent| json!([recent.number, recent.log_e]))
            .rev()
            .collect();
        let first = self.recent.front();
        let kinds = self.kinds.iter().map(|tested| {
            json!({
                "kind": tested.kind.name,
                "weight": tested.kind.weight,
                "q0": tested.cusum.q0(),
                "reference": {"of": tested.kind.of, "failures": tested.kind.failures},
                "exchanges": tested.observed,
                "failures": tested.failures,
                "log_e": tested.cusum.log_e(),
            })
        });
        json!({
            "test": "weighted mean of Bernoulli-mixture e-CUSUMs, one a kind of failure",
            "leading_kind": self.leader().map(|tested| tested.kind.name),
            "kinds": kinds.collect::<Vec<_>>(),
            "exchanges": self.observed,
            "failures": self.failures,
            "change": {
                "since": first.map(|recent| recent.ts),
                "request_id": first.map(|recent| recent.request_id.as_str()),
                "exchanges": self.since_change(),
                "described_exchanges": self.recent.len(),
                "failures": failing().count(),
                "failures_by_kind": by_kind,
            },
            "failing_request_ids": newest,
            "log_e_path": path,
        })
    }
}
