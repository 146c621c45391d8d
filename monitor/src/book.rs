//! The states of all streams of all adapters, folded from rows in the ledger's order. Pure: no clock, no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use retune_ledger::{Cursor, Reference, Trigger, Window};

use crate::streams::adapter::Adapter;
use crate::streams::kinds::Rules;
use crate::streams::rates::Rates;
use crate::streams::{Row, State, Stream, StreamReport};

/// A row of `windows` each time so many exchanges were tested.
const WINDOW: u64 = 100;

/// A task and one of its adapters' names.
pub(crate) type Key = (String, String);

/// When an adapter serves, as the decisions of its task have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stint {
    /// It is champion or canary now: an alarm about another one calls nobody.
    pub(crate) serves: bool,
    /// Where it came back: its streams start anew there. None for the first time.
    pub(crate) again: Option<DateTime<Utc>>,
}

/// Who serves, or ever did.
pub(crate) type Stints = BTreeMap<Key, Stint>;

/// All streams, after some rows.
#[derive(Debug, Clone)]
pub(crate) struct Book {
    rules: Arc<Rules>,
    /// The tasks, and which of them have a format; rows of others are passed over.
    tasks: Arc<BTreeMap<String, bool>>,
    references: BTreeMap<Key, Reference>,
    /// Where adapters came back.
    again: BTreeMap<Key, DateTime<Utc>>,
    adapters: BTreeMap<Key, Adapter>,
    /// Rows taken, passed over or not, and the last of them.
    rows: u64,
    last: Option<Cursor>,
    /// Rows of `windows` that came out of the fold and were not taken yet.
    windows: Vec<Window>,
}

impl Book {
    pub(crate) fn new(rules: Rules, tasks: BTreeMap<String, bool>) -> Self {
        Self {
            rules: Arc::new(rules),
            tasks: Arc::new(tasks),
            references: BTreeMap::new(),
            again: BTreeMap::new(),
            adapters: BTreeMap::new(),
            rows: 0,
            last: None,
            windows: Vec::new(),
        }
    }

    /// The same before any row: everything it was told, and nothing it has seen.
    pub(crate) fn before_any_row(&self) -> Self {
        Self {
            adapters: BTreeMap::new(),
            rows: 0,
            last: None,
            windows: Vec::new(),
            ..self.clone()
        }
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    pub(crate) fn last(&self) -> Option<&Cursor> {
        self.last.as_ref()
    }

    /// Is it an adapter whose streams are kept, and of which no reference is known?
    pub(crate) fn lacks_reference(&self, key: &Key) -> bool {
        self.tasks.contains_key(&key.0) && !self.references.contains_key(key)
    }

    /// Adapters that collect exchanges since there is no reference.
    pub(crate) fn collecting(&self) -> Vec<Key> {
        self.adapters
            .keys()
            .filter(|key| self.lacks_reference(key))
            .cloned()
            .collect()
    }

    /// Tells it a reference. False where rows were already taken without it or with another: then they have to be folded again.
    pub(crate) fn learn(&mut self, key: Key, reference: Reference) -> bool {
        let same = match self.adapters.get(&key) {
            None => true,
            Some(adapter) => adapter
                .testing()
                .is_some_and(|testing| testing.reference == reference),
        };
        self.references.insert(key, reference);
        same
    }

    /// Tells it where adapters came back. False where rows were already taken without knowing.
    pub(crate) fn learn_stints(&mut self, stints: &Stints) -> bool {
        let again = stints.iter();
        let again = again.filter_map(|(key, stint)| Some((key.clone(), stint.again?)));
        let again: BTreeMap<_, _> = again.collect();
        let same = again == self.again;
        self.again = again;
        same
    }

    /// References that the fold made itself, from an adapter's first rows.
    pub(crate) fn made(&self) -> Vec<(Key, Reference)> {
        self.adapters
            .iter()
            .filter(|(key, _)| self.lacks_reference(key))
            .filter_map(|(key, adapter)| Some((key.clone(), adapter.testing()?.reference.clone())))
            .collect()
    }

    /// Takes the next row in order.
    pub(crate) fn fold(&mut self, row: &Row) {
        self.rows += 1;
        self.last = Some(row.cursor.clone());
        let Some(has_format) = self.tasks.get(&row.task) else {
            return;
        };
        let key = (row.task.clone(), row.adapter.clone());
        let again = self.again.get(&key).copied();
        let adapter = self.adapters.entry(key).or_insert_with_key(|key| {
            Adapter::new(&self.rules, *has_format, self.references.get(key))
        });
        // A reference may be of an earlier time, and what is tested is not.
        if adapter.testing().is_some() && again.is_some_and(|again| row.cursor.ts < again) {
            return;
        }
        let had_crossed = Stream::OF_ROWS.map(|stream| has_crossed(adapter, stream));
        for stream in adapter.observe(&self.rules, row) {
            let Some(rates) = adapter.testing().and_then(|t| t.stream(stream)) else {
                continue;
            };
            let crossed = rates.crossing().is_some();
            if rates.observed() % WINDOW == 0 || crossed != had_crossed[stream as usize] {
                let state = match crossed {
                    true => State::Alarm,
                    false => state(rates),
                };
                self.windows.push(Window {
                    ts: row.cursor.ts,
                    task: row.task.clone(),
                    adapter: row.adapter.clone(),
                    stream: stream.to_string(),
                    state: state.to_string(),
                    exchanges: rates.observed(),
                    failures: rates.failures(),
                    log_e: rates.log_e(),
                    threshold_log: self.rules.threshold_log,
                });
            }
        }
    }

    /// The rows for `windows` that are due.
    pub(crate) fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// They are in the table.
    pub(crate) fn windows_taken(&mut self) {
        self.windows = Vec::new();
    }

    /// Every stream that there is, and those of each adapter that serves, if there is nothing of it yet.
    pub(crate) fn reports(&self, stints: &Stints) -> Vec<StreamReport> {
        let serving = stints.iter().filter(|(_, stint)| stint.serves);
        let keys: BTreeSet<&Key> = self
            .adapters
            .keys()
            .chain(serving.map(|(key, _)| key))
            .collect();
        let mut reports = Vec::new();
        for key in keys {
            let Some(has_format) = self.tasks.get(&key.0) else {
                continue;
            };
            let unseen;
            let adapter = match self.adapters.get(key) {
                Some(adapter) => adapter,
                None => {
                    unseen = Adapter::new(&self.rules, *has_format, self.references.get(key));
                    &unseen
                }
            };
            let serves = stints.get(key).is_some_and(|stint| stint.serves);
            let streams = Stream::OF_ROWS.into_iter();
            let streams = streams.filter(|stream| *has_format || *stream != Stream::Format);
            reports.extend(streams.map(|stream| self.report(key, adapter, stream, serves)));
        }
        reports
    }

    fn report(&self, key: &Key, adapter: &Adapter, stream: Stream, serves: bool) -> StreamReport {
        let (task, name) = key.clone();
        let report = |state, exchanges, since| StreamReport {
            task,
            adapter: name,
            stream,
            state,
            exchanges,
            log_e: None,
            threshold_log: None,
            since,
        };
        let rates = match adapter {
            Adapter::Collecting(collected) => {
                return report(State::NoReference, collected.exchanges(), collected.first);
            }
            Adapter::Testing(testing) => testing.stream(stream),
        };
        let Some(rates) = rates else {
            return report(State::NoReference, 0, None);
        };
        let (state, since) = match rates.crossing() {
            Some(crossing) if serves => (State::Alarm, Some(crossing.ts)),
            Some(crossing) => (State::Warning, Some(crossing.ts)),
            None => (state(rates), rates.first()),
        };
        StreamReport {
            log_e: Some(rates.log_e()),
            threshold_log: Some(self.rules.threshold_log),
            ..report(state, rates.observed(), since)
        }
    }

    /// The alarms of the adapters that serve.
    pub(crate) fn alarms(&self, stints: &Stints) -> Vec<Trigger> {
        let serves = |key: &Key| stints.get(key).is_some_and(|stint| stint.serves);
        let mut triggers = Vec::new();
        for (key, adapter) in self.adapters.iter().filter(|(key, _)| serves(key)) {
            let Some(testing) = adapter.testing() else {
                continue;
            };
            for stream in Stream::OF_ROWS {
                let rates = testing.stream(stream);
                let Some(crossing) = rates.and_then(Rates::crossing) else {
                    continue;
                };
                let since = self.again.get(key).unwrap_or(&testing.reference.created);
                triggers.push(Trigger {
                    alarm: alarm(&key.1, stream, *since),
                    task: key.0.clone(),
                    adapter: key.1.clone(),
                    kind: stream.kind(),
                    ts: crossing.ts,
                    request_id: crossing.request_id.clone(),
                    exchanges: crossing.exchanges,
                    log_e: crossing.log_e,
                    threshold_log: self.rules.threshold_log,
                    evidence: crossing.evidence.clone(),
                });
            }
        }
        triggers
    }

    /// The reference that an adapter's streams are tested against.
    pub(crate) fn reference(&self, key: &Key) -> Option<&Reference> {
        match self.adapters.get(key) {
            Some(adapter) => Some(&adapter.testing()?.reference),
            None => self.references.get(key),
        }
    }
}

fn has_crossed(adapter: &Adapter, stream: Stream) -> bool {
    let rates = adapter.testing().and_then(|testing| testing.stream(stream));
    rates.is_some_and(|rates| rates.crossing().is_some())
}

fn state(rates: &Rates) -> State {
    match rates.is_enough() {
        true => State::Ok,
        false => State::NotEnoughData,
    }
}

/// The alarm's id: of what it is about, not of when it was noticed or by whom, so that two replicas give it the same. A reference is
/// created once, and an adapter comes back at one time, so that time names it.
pub(crate) fn alarm(adapter: &str, stream: Stream, since: DateTime<Utc>) -> String {
    let since = since.format("%Y%m%dT%H%M%S%3fZ");
    format!("{adapter}-{stream}-{since}")
}
