//! Do people think less of the answers? Ratings and corrections, one observation a feedback, whenever it comes.
//!
//! An adapter's yardstick are the first things said of its own answers: no examination has ratings, and another adapter's are of
//! other answers. Feedback is taken in the order in which it was given: one that comes months later is one of its day.

use chrono::{DateTime, Utc};
use retune_ledger::{Cursor, Ratings};

use super::rates::{Kind, Rates, Seen};

/// Feedback that makes a reference.
pub const REFERENCE: u64 = 100;
/// The highest rating that is a bad one.
pub const LOW: u8 = 2;
/// People differ, and so do their days: so much worse is nobody's concern yet.
const TOLERANCE: f64 = 0.05;
const CONFIDENCE: f64 = 0.95;

/// What somebody said of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// When, and what its id is.
    pub ts: DateTime<Utc>,
    /// The feedback's id.
    pub feedback_id: String,
    /// The answer's.
    pub request_id: String,
    /// From 1 to 5.
    pub rating: Option<u8>,
    /// There is a correction with it.
    pub is_correction: bool,
}

/// The stream of one adapter.
#[derive(Debug, Clone)]
pub enum Quality {
    /// Until there is a reference, feedback is collected for one.
    Collecting(Ratings),
    /// Against a reference.
    Testing(Box<(Ratings, Rates)>),
}

impl Quality {
    /// With the adapter's reference, if there is one.
    pub fn new(task: &str, adapter: &str, reference: Option<Ratings>, threshold_log: f64) -> Self {
        match reference {
            Some(reference) => Self::testing(reference, threshold_log),
            None => Self::Collecting(Ratings {
                task: task.to_owned(),
                adapter: adapter.to_owned(),
                created: DateTime::<Utc>::UNIX_EPOCH,
                last: String::new(),
                feedback: 0,
                rated: 0,
                low: 0,
                corrected: 0,
            }),
        }
    }

    /// Its tests, once there is a reference.
    pub fn rates(&self) -> Option<&Rates> {
        match self {
            Self::Collecting(_) => None,
            Self::Testing(testing) => Some(&testing.1),
        }
    }

    fn testing(reference: Ratings, threshold_log: f64) -> Self {
        let kind = |name, failures, of| Kind {
            name,
            weight: 0.5,
            failures,
            of,
            confidence: CONFIDENCE,
            tolerance: TOLERANCE,
        };
        let kinds = [
            kind("low", reference.low, reference.rated),
            kind("corrected", reference.corrected, reference.feedback),
        ];
        let rates = Rates::new(&kinds, threshold_log);
        Self::Testing(Box::new((reference, rates)))
    }

    /// Takes the next feedback; whether it was tested.
    pub fn observe(&mut self, said: &Said, threshold_log: f64) -> bool {
        let is_low = said.rating.map(|rating| rating <= LOW);
        match self {
            Self::Collecting(ratings) => {
                ratings.feedback += 1;
                ratings.rated += u64::from(is_low.is_some());
                ratings.low += u64::from(is_low == Some(true));
                ratings.corrected += u64::from(said.is_correction);
                ratings.created = said.ts;
                ratings.last.clone_from(&said.feedback_id);
                if ratings.feedback >= REFERENCE {
                    *self = Self::testing(ratings.clone(), threshold_log);
                }
                false
            }
            Self::Testing(testing) => {
                let (reference, rates) = &mut **testing;
                // What the reference is made of is not tested against it.
                if (said.ts, &said.feedback_id) <= (reference.created, &reference.last) {
                    return false;
                }
                let cursor = Cursor {
                    ts: said.ts,
                    replica: String::new(),
                    seq: 0,
                };
                rates.observe(Seen {
                    cursor: &cursor,
                    request_id: &said.request_id,
                    failed: &[is_low, Some(said.is_correction)],
                });
                true
            }
        }
    }
}
