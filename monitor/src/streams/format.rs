//! Do more answers break their format than before? A Bernoulli-mixture e-CUSUM per exchange.
//!
//! H0: the failure rate is at most q0, the one-sided upper 95 % limit of the rate in the reference plus a tolerance. The limit, since
//! a reference is a sample: taking its observed rate would blame every second adapter for its reference's luck.
//! The tolerance, since nobody wants to be called for half a per cent.
//!
//! A crossing stays: what happens afterwards changes the statistic, and not that there was an alarm.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, Utc};
use retune_ledger::Reference;
use retune_stats::{BernoulliCusum, upper_limit};
use serde_json::{Value, json};

use super::Row;

/// One-sided confidence of the limit on the reference's failure rate.
const CONFIDENCE: f64 = 0.95;
/// Exchanges kept for the evidence; a change that took longer to notice is described by its last so many.
const RECENT: usize = 4_096;
/// Requests named in the evidence, and points of the statistic's path.
const SAMPLES: usize = 20;
const PATH: usize = 50;
/// After so many failures in a row without a crossing, there is nothing that this test could ever tell.
const HOPELESS: u64 = 10_000;

/// What is configured.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rules {
    /// Exchanges that make a reference where none was made by an examination.
    pub(crate) reference_exchanges: u64,
    /// Added to the reference's failure rate.
    pub(crate) tolerance: f64,
    /// Natural logarithm of the statistic at which it alarms.
    pub(crate) threshold_log: f64,
}

/// The stream of one adapter.
#[derive(Debug, Clone)]
pub(crate) enum Format {
    /// Until there is a reference, exchanges are collected for one.
    Collecting(Collected),
    /// Against a reference.
    Testing(Box<Testing>),
}

/// Exchanges on their way to become a reference.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Collected {
    pub(crate) exchanges: u64,
    pub(crate) invalid: u64,
    pub(crate) first: Option<DateTime<Utc>>,
}

/// A test and its state.
#[derive(Debug, Clone)]
pub(crate) struct Testing {
    pub(crate) reference: Reference,
    cusum: BernoulliCusum,
    threshold_log: f64,
    /// Fewest exchanges in which a crossing is possible.
    fewest: u64,
    /// Exchanges tested, and how many of them failed.
    pub(crate) exchanges: u64,
    pub(crate) failures: u64,
    pub(crate) first: Option<DateTime<Utc>>,
    pub(crate) crossing: Option<Crossing>,
    /// The exchanges since the likely change, until there is a crossing.
    recent: VecDeque<Recent>,
}

#[derive(Debug, Clone)]
struct Recent {
    row: Row,
    exchange: u64,
    log_e: f64,
}

/// The moment at which the threshold was reached.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Crossing {
    pub(crate) ts: DateTime<Utc>,
    pub(crate) request_id: String,
    /// Exchanges tested until then, this one included.
    pub(crate) exchanges: u64,
    pub(crate) log_e: f64,
    pub(crate) evidence: Value,
}

impl Format {
    /// With the adapter's reference, if there is one.
    pub(crate) fn new(rules: &Rules, reference: Option<&Reference>) -> Self {
        match reference {
            Some(reference) => Format::Testing(Box::new(Testing::new(rules, reference.clone()))),
            None => Format::Collecting(Collected::default()),
        }
    }

    /// Takes the adapter's next row; true where it was tested.
    pub(crate) fn observe(&mut self, rules: &Rules, row: &Row) -> bool {
        match self {
            Format::Collecting(collected) => {
                collected.observe(row);
                if collected.exchanges >= rules.reference_exchanges {
                    *self = Format::Testing(Box::new(Testing::new(rules, collected.freeze(row))));
                }
                false
            }
            Format::Testing(testing) => testing.observe(row),
        }
    }

    pub(crate) fn testing(&self) -> Option<&Testing> {
        match self {
            Format::Collecting(_) => None,
            Format::Testing(testing) => Some(testing),
        }
    }
}

impl Collected {
    fn observe(&mut self, row: &Row) {
        self.exchanges += 1;
        self.invalid += u64::from(row.failed.is_some());
        self.first.get_or_insert(row.cursor.ts);
    }

    /// The same from the same rows, whoever makes it: nothing in it depends on a clock.
    fn freeze(&self, last: &Row) -> Reference {
        Reference {
            task: last.task.clone(),
            adapter: last.adapter.clone(),
            digest: None,
            created: last.cursor.ts,
            exchanges: self.exchanges,
            format_invalid: self.invalid,
            last: Some(last.cursor.clone()),
            prompts: None,
        }
    }
}

impl Testing {
    fn new(rules: &Rules, reference: Reference) -> Self {
        let limit = upper_limit(reference.format_invalid, reference.exchanges, CONFIDENCE);
        let cusum = BernoulliCusum::new(limit + rules.tolerance);
        Self {
            fewest: fewest(&cusum, rules.threshold_log),
            reference,
            cusum,
            threshold_log: rules.threshold_log,
            exchanges: 0,
            failures: 0,
            first: None,
            crossing: None,
            recent: VecDeque::new(),
        }
    }

    pub(crate) fn log_e(&self) -> f64 {
        self.cusum.log_e()
    }

    pub(crate) fn enough(&self) -> bool {
        self.exchanges >= self.fewest
    }

    fn observe(&mut self, row: &Row) -> bool {
        // What the reference is made of is not tested against it.
        if self
            .reference
            .last
            .as_ref()
            .is_some_and(|last| row.cursor <= *last)
        {
            return false;
        }
        self.cusum.observe(row.failed.is_some());
        self.exchanges += 1;
        self.failures += u64::from(row.failed.is_some());
        self.first.get_or_insert(row.cursor.ts);
        if self.crossing.is_none() {
            self.look(row);
        }
        true
    }

    fn look(&mut self, row: &Row) {
        let log_e = self.cusum.log_e();
        self.recent.push_back(Recent {
            row: row.clone(),
            exchange: self.exchanges,
            log_e,
        });
        let wanted = usize::try_from(self.cusum.since_change()).unwrap_or(RECENT);
        while self.recent.len() > wanted.min(RECENT) {
            self.recent.pop_front();
        }
        if log_e >= self.threshold_log {
            self.crossing = Some(Crossing {
                ts: row.cursor.ts,
                request_id: row.request_id.clone(),
                exchanges: self.exchanges,
                log_e,
                evidence: self.evidence(),
            });
            self.recent = VecDeque::new();
        }
    }

    /// Everything somebody needs to judge the alarm, and nothing of what was asked or answered.
    fn evidence(&self) -> Value {
        let failing = || {
            self.recent
                .iter()
                .filter_map(|recent| Some((&recent.row, recent.row.failed.as_deref()?)))
        };
        let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
        for (_, reason) in failing() {
            *reasons.entry(reason).or_default() += 1;
        }
        let newest: Vec<&str> = failing()
            .rev()
            .take(SAMPLES)
            .map(|(row, _)| row.request_id.as_str())
            .collect();
        let step = self.recent.len().div_ceil(PATH).max(1);
        let path: Vec<Value> = self
            .recent
            .iter()
            .rev()
            .step_by(step)
            .map(|recent| json!([recent.exchange, recent.log_e]))
            .rev()
            .collect();
        let first = self.recent.front();
        json!({
            "test": "Bernoulli-mixture e-CUSUM of format failures",
            "q0": self.cusum.q0(),
            "reference": {
                "exchanges": self.reference.exchanges,
                "format_invalid": self.reference.format_invalid,
                "created": self.reference.created,
                "digest": self.reference.digest,
            },
            "exchanges": self.exchanges,
            "failures": self.failures,
            "change": {
                "since": first.map(|recent| recent.row.cursor.ts),
                "request_id": first.map(|recent| recent.row.request_id.as_str()),
                "exchanges": self.cusum.since_change(),
                "described_exchanges": self.recent.len(),
                "failures": failing().count(),
                "failures_by_reason": reasons,
            },
            "failing_request_ids": newest,
            "log_e_path": path,
        })
    }
}

/// The number of failures in a row, from the start, that reaches the threshold.
fn fewest(fresh: &BernoulliCusum, threshold_log: f64) -> u64 {
    let mut cusum = fresh.clone();
    (1..=HOPELESS)
        .find(|_| {
            cusum.observe(true);
            cusum.log_e() >= threshold_log
        })
        .unwrap_or(u64::MAX)
}
