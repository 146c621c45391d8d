//! Is an adapter served as it was: as quickly, without errors, with answers of as many tokens?
//!
//! What is observed are stretches of five minutes, not single exchanges: a slow minute makes all of its exchanges slow, and a test that
//! took them for independent would call for each. The yardstick is the first day of its own traffic, with its busy hours, since an
//! examination asks one question at a time; and a stretch is slow only where it is slower by a quarter than the slowest usual ones.

use chrono::{DateTime, TimeDelta, Utc};
use retune_ledger::{Cursor, Service};

use super::rates::{Kind, Rates, Seen};
use super::told::Key;
use super::{Row, Served};

/// Seconds of a stretch, and the fewest exchanges that say something of one; it goes on until it has them.
const STRETCH: i64 = 300;
const FEWEST: usize = 5;
/// Stretches that make a reference, and the time that they span.
const REFERENCE: usize = 100;
const SPAN: TimeDelta = TimeDelta::hours(24);
/// The share of the reference's stretches beyond a bound, on each side, and how far beyond that is still usual.
const TAIL: f64 = 0.01;
const MARGIN: f64 = 1.25;
const CONFIDENCE: f64 = 0.99;
/// One stretch in twenty may be worse before anybody needs to hear of it.
const TOLERANCE: f64 = 0.05;

/// The stream of one adapter.
#[derive(Debug, Clone)]
pub struct Operations {
    open: Stretch,
    state: State,
    threshold_log: f64,
}

#[derive(Debug, Clone)]
enum State {
    /// Until there is a reference.
    Collecting(Vec<Summary>, Option<DateTime<Utc>>),
    /// Against a reference.
    Testing(Box<(Service, Rates)>),
}

/// Exchanges of one stretch, so far.
#[derive(Debug, Clone, Default)]
struct Stretch {
    slot: i64,
    served: Vec<Served>,
    /// The exchange that somebody should look at: the last error, else the slowest.
    worst: Option<(bool, f64, String)>,
    last: Option<Cursor>,
}

/// What a stretch was like.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Summary {
    has_errors: bool,
    /// Of answers; None where there were none.
    median_ms: Option<f64>,
    tokens: Option<f64>,
}

impl Operations {
    /// With the adapter's reference, if there is one.
    pub fn new(reference: Option<&Service>, threshold_log: f64) -> Self {
        Self {
            open: Stretch::default(),
            state: match reference {
                Some(reference) => State::testing(reference.clone(), threshold_log),
                None => State::Collecting(Vec::new(), None),
            },
            threshold_log,
        }
    }

    /// The reference, and the tests against it, once there are any.
    pub fn testing(&self) -> Option<(&Service, &Rates)> {
        match &self.state {
            State::Collecting(..) => None,
            State::Testing(testing) => Some((&testing.0, &testing.1)),
        }
    }

    /// What was collected for a reference: stretches, and the time of the first exchange.
    pub fn collected(&self) -> (u64, Option<DateTime<Utc>>) {
        match &self.state {
            State::Collecting(stretches, first) => (stretches.len() as u64, *first),
            State::Testing(_) => (0, None),
        }
    }

    /// Takes the adapter's next exchange; whether a stretch was tested with it, which is the one before.
    pub fn observe(&mut self, key: &Key, row: &Row, served: Served) -> bool {
        let slot = row.cursor.ts.timestamp().div_euclid(STRETCH);
        let ended = slot != self.open.slot && self.open.served.len() >= FEWEST;
        let tested = ended && self.end(key);
        if self.open.served.is_empty() {
            self.open.slot = slot;
        }
        if let State::Collecting(_, first) = &mut self.state {
            first.get_or_insert(row.cursor.ts);
        }
        self.open.add(row, served);
        tested
    }

    fn end(&mut self, key: &Key) -> bool {
        let stretch = std::mem::take(&mut self.open);
        let (Some(cursor), summary) = (stretch.last, summary(&stretch.served)) else {
            return false;
        };
        match &mut self.state {
            State::Collecting(stretches, first) => {
                stretches.push(summary);
                let spans = first.is_some_and(|first| cursor.ts - first >= SPAN);
                if stretches.len() >= REFERENCE && spans {
                    let service = reference(key, stretches, cursor.ts);
                    self.state = State::testing(service, self.threshold_log);
                }
                false
            }
            State::Testing(testing) => {
                let (reference, rates) = &mut **testing;
                // What the reference is made of is not tested against it.
                if cursor.ts <= reference.created {
                    return false;
                }
                let worst = stretch.worst.map_or_else(String::new, |(.., id)| id);
                rates.observe(Seen {
                    cursor: &cursor,
                    request_id: &worst,
                    failed: &failed(reference, &summary),
                });
                true
            }
        }
    }
}

impl State {
    fn testing(reference: Service, threshold_log: f64) -> Self {
        let kinds = [
            ("errors", reference.with_errors),
            ("slow", reference.outside.0),
            ("fewer_tokens", reference.outside.1),
            ("more_tokens", reference.outside.2),
        ];
        let kinds = kinds.map(|(name, failures)| Kind {
            name,
            weight: 0.25,
            failures,
            of: reference.stretches,
            confidence: CONFIDENCE,
            tolerance: TOLERANCE,
        });
        let rates = Rates::new(&kinds, threshold_log);
        Self::Testing(Box::new((reference, rates)))
    }
}

impl Stretch {
    fn add(&mut self, row: &Row, served: Served) {
        self.served.push(served);
        let is_worse = self
            .worst
            .as_ref()
            .is_none_or(|(failed, ms, _)| (served.failed, served.duration_ms) >= (*failed, *ms));
        if is_worse {
            self.worst = Some((served.failed, served.duration_ms, row.request_id.clone()));
        }
        self.last = Some(row.cursor.clone());
    }
}

fn summary(served: &[Served]) -> Summary {
    let answers = || served.iter().filter(|served| !served.failed);
    let mut times: Vec<f64> = answers().map(|served| served.duration_ms).collect();
    times.sort_by(f64::total_cmp);
    let tokens: u64 = answers().map(|served| served.tokens).sum();
    Summary {
        has_errors: served.iter().any(|served| served.failed),
        median_ms: times.get(times.len() / 2).copied(),
        tokens: (!times.is_empty()).then(|| tokens as f64 / times.len() as f64),
    }
}

fn reference((task, adapter): &Key, stretches: &[Summary], created: DateTime<Utc>) -> Service {
    let sorted = |of: &dyn Fn(&Summary) -> Option<f64>| {
        let mut values: Vec<f64> = stretches.iter().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let (times, tokens) = (sorted(&|s| s.median_ms), sorted(&|s| s.tokens));
    let at = |values: &[f64], share: f64| {
        let last = values.len().saturating_sub(1) as f64;
        values
            .get((last * share).round() as usize)
            .copied()
            .unwrap_or(0.0)
    };
    let mut service = Service {
        task: task.clone(),
        adapter: adapter.clone(),
        created,
        stretches: stretches.len() as u64,
        with_errors: stretches.iter().filter(|s| s.has_errors).count() as u64,
        slowest_ms: at(&times, 1.0 - TAIL) * MARGIN,
        tokens: (at(&tokens, TAIL) / MARGIN, at(&tokens, 1.0 - TAIL) * MARGIN),
        outside: (0, 0, 0),
    };
    let mut outside = [0; 3];
    for stretch in stretches {
        for (count, failed) in outside.iter_mut().zip(&failed(&service, stretch)[1..]) {
            *count += u64::from(*failed == Some(true));
        }
    }
    service.outside = (outside[0], outside[1], outside[2]);
    service
}

/// In the kinds' order.
fn failed(reference: &Service, stretch: &Summary) -> [Option<bool>; 4] {
    let (fewest, most) = reference.tokens;
    [
        Some(stretch.has_errors),
        stretch.median_ms.map(|ms| ms > reference.slowest_ms),
        stretch.tokens.map(|tokens| tokens < fewest),
        stretch.tokens.map(|tokens| tokens > most),
    ]
}
