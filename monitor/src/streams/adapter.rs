//! One adapter: the exchanges that become its reference, then its streams, tested against it.

use chrono::{DateTime, Utc};
use retune_ledger::{Reference, Sample, Span};

use super::kinds::{self, Rules};
use super::rates::{Rates, Seen};
use super::{Row, Stream};

/// The streams of one adapter.
#[derive(Debug, Clone)]
pub enum Adapter {
    /// Until there is a reference, exchanges are collected for one.
    Collecting(Box<Collected>),
    /// Against a reference.
    Testing(Box<Testing>),
}

/// Exchanges on their way to become a reference.
#[derive(Debug, Clone, PartialEq)]
pub struct Collected {
    /// The task has a format, so checked answers are what counts.
    has_format: bool,
    sample: Sample,
    /// The time of the first of them.
    pub first: Option<DateTime<Utc>>,
}

/// Tests and their state.
#[derive(Debug, Clone)]
pub struct Testing {
    /// What is normal.
    pub reference: Reference,
    streams: [Option<Rates>; Stream::OF_ROWS.len()],
    /// Of the row that is being taken.
    failed: Vec<Option<bool>>,
}

impl Adapter {
    /// With the adapter's reference, if there is one. `has_format`: its task has one.
    pub fn new(rules: &Rules, has_format: bool, reference: Option<&Reference>) -> Self {
        match reference {
            Some(reference) => Self::Testing(Box::new(Testing::new(rules, reference.clone()))),
            None => Self::Collecting(Box::new(Collected {
                has_format,
                sample: Sample::default(),
                first: None,
            })),
        }
    }

    /// Takes the adapter's next row; the streams that it was tested in.
    pub fn observe(&mut self, rules: &Rules, row: &Row) -> Vec<Stream> {
        match self {
            Self::Collecting(collected) => {
                collected.observe(row);
                if collected.exchanges() >= rules.reference_exchanges {
                    *self = Self::Testing(Box::new(Testing::new(rules, collected.freeze(row))));
                }
                Vec::new()
            }
            Self::Testing(testing) => testing.observe(row),
        }
    }

    /// Its tests, once there is a reference.
    pub fn testing(&self) -> Option<&Testing> {
        match self {
            Self::Collecting(_) => None,
            Self::Testing(testing) => Some(testing),
        }
    }
}

impl Collected {
    /// How many there are of those that count.
    pub fn exchanges(&self) -> u64 {
        match self.has_format {
            true => self.sample.checked(),
            false => self.sample.answers(),
        }
    }

    fn observe(&mut self, row: &Row) {
        if let Some(check) = &row.check {
            self.sample
                .check(check.failed.as_deref(), check.was_cut_off);
        }
        if let Some(traits) = &row.traits {
            self.sample.text(traits);
        }
        self.first.get_or_insert(row.cursor.ts);
    }

    /// The same from the same rows, whoever makes it: nothing in it depends on a clock.
    fn freeze(&self, last: &Row) -> Reference {
        Reference {
            task: last.task.clone(),
            adapter: last.adapter.clone(),
            digest: None,
            created: last.cursor.ts,
            last: Some(last.cursor.clone()),
            counts: self.sample.freeze(),
            prompts: Some(Span {
                from: self.first,
                until: last.cursor.clone(),
            }),
        }
    }
}

impl Testing {
    fn new(rules: &Rules, reference: Reference) -> Self {
        let rates = |stream| {
            let kinds = kinds::kinds(stream, &reference, rules)?;
            Some(Rates::new(&kinds, rules.threshold_log))
        };
        Self {
            streams: Stream::OF_ROWS.map(rates),
            failed: Vec::new(),
            reference,
        }
    }

    /// A stream's tests; None where the reference says nothing of it.
    pub fn stream(&self, stream: Stream) -> Option<&Rates> {
        self.streams[stream as usize].as_ref()
    }

    fn observe(&mut self, row: &Row) -> Vec<Stream> {
        let last = self.reference.last.as_ref();
        // What the reference is made of is not tested against it.
        if last.is_some_and(|last| row.cursor <= *last) {
            return Vec::new();
        }
        let mut tested = Vec::new();
        for stream in Stream::OF_ROWS {
            let Some(rates) = &mut self.streams[stream as usize] else {
                continue;
            };
            self.failed.clear();
            kinds::failed(stream, &self.reference, row, &mut self.failed);
            if !self.failed.is_empty() {
                rates.observe(Seen {
                    cursor: &row.cursor,
                    request_id: &row.request_id,
                    failed: &self.failed,
                });
                tested.push(stream);
            }
        }
        tested
    }
}
