//! The states of all streams of all adapters, folded from rows in the ledger's order. Pure: no clock, no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use retune_ledger::{Cursor, Reference, Trigger, Window};

use crate::streams::format::{Format, Rules};
use crate::streams::{Row, State, Stream, StreamReport};

/// A row of `windows` each time so many exchanges were tested.
const WINDOW: u64 = 100;

/// A task and one of its adapters' names.
pub(crate) type Key = (String, String);

/// All streams, after some rows.
#[derive(Debug, Clone)]
pub(crate) struct Book {
    rules: Arc<Rules>,
    /// Tasks that have a format; rows of others are passed over.
    tasks: Arc<BTreeSet<String>>,
    references: BTreeMap<Key, Reference>,
    streams: BTreeMap<Key, Format>,
    /// Rows taken, passed over or not, and the last of them.
    rows: u64,
    last: Option<Cursor>,
    /// Rows of `windows` that came out of the fold and were not taken yet.
    windows: Vec<Window>,
}

impl Book {
    pub(crate) fn new(rules: Rules, tasks: BTreeSet<String>) -> Self {
        Self {
            rules: Arc::new(rules),
            tasks: Arc::new(tasks),
            references: BTreeMap::new(),
            streams: BTreeMap::new(),
            rows: 0,
            last: None,
            windows: Vec::new(),
        }
    }

    /// The same before any row: everything it was told, and nothing it has seen.
    pub(crate) fn before_any_row(&self) -> Self {
        Self {
            streams: BTreeMap::new(),
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
        self.tasks.contains(&key.0) && !self.references.contains_key(key)
    }

    /// Adapters that collect exchanges since there is no reference.
    pub(crate) fn collecting(&self) -> Vec<Key> {
        self.streams
            .keys()
            .filter(|key| self.lacks_reference(key))
            .cloned()
            .collect()
    }

    /// Tells it a reference. False where rows were already taken without it or with another: then they have to be folded again.
    pub(crate) fn learn(&mut self, key: Key, reference: Reference) -> bool {
        let same = match self.streams.get(&key) {
            None => true,
            Some(stream) => stream
                .testing()
                .is_some_and(|testing| testing.reference == reference),
        };
        self.references.insert(key, reference);
        same
    }

    /// References that the fold made itself, from an adapter's first rows.
    pub(crate) fn made(&self) -> Vec<(Key, Reference)> {
        self.streams
            .iter()
            .filter(|(key, _)| self.lacks_reference(key))
            .filter_map(|(key, stream)| Some((key.clone(), stream.testing()?.reference.clone())))
            .collect()
    }

    /// Takes the next row in order.
    pub(crate) fn fold(&mut self, row: &Row) {
        self.rows += 1;
        self.last = Some(row.cursor.clone());
        if !self.tasks.contains(&row.task) {
            return;
        }
        let key = (row.task.clone(), row.adapter.clone());
        let stream = self
            .streams
            .entry(key)
            .or_insert_with_key(|key| Format::new(&self.rules, self.references.get(key)));
        let crossed_before = crossed(stream);
        if stream.observe(&self.rules, row)
            && let Some(testing) = stream.testing()
            && (testing.exchanges % WINDOW == 0 || crossed(stream) != crossed_before)
        {
            let state = if crossed(stream) {
                State::Alarm
            } else {
                state(testing.enough())
            };
            self.windows.push(Window {
                ts: row.cursor.ts,
                task: row.task.clone(),
                adapter: row.adapter.clone(),
                stream: Stream::Format.to_string(),
                state: state.to_string(),
                exchanges: testing.exchanges,
                failures: testing.failures,
                log_e: testing.log_e(),
                threshold_log: self.rules.threshold_log,
            });
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

    /// Every stream that there is, and that of each adapter in `serving`, if there is nothing of it yet.
    pub(crate) fn reports(&self, serving: &BTreeSet<Key>) -> Vec<StreamReport> {
        let keys: BTreeSet<&Key> = self.streams.keys().chain(serving).collect();
        keys.into_iter()
            .filter(|key| self.tasks.contains(&key.0))
            .map(|key| self.report(key, serving.contains(key)))
            .collect()
    }

    fn report(&self, key: &Key, serves: bool) -> StreamReport {
        let unseen;
        let stream = match self.streams.get(key) {
            Some(stream) => stream,
            None => {
                unseen = Format::new(&self.rules, self.references.get(key));
                &unseen
            }
        };
        let (task, adapter) = key.clone();
        let report = |state, exchanges, since| StreamReport {
            task,
            adapter,
            stream: Stream::Format,
            state,
            exchanges,
            log_e: None,
            threshold_log: None,
            since,
        };
        match stream {
            Format::Collecting(collected) => {
                report(State::NoReference, collected.exchanges, collected.first)
            }
            Format::Testing(testing) => {
                let (state, since) = match &testing.crossing {
                    Some(crossing) if serves => (State::Alarm, Some(crossing.ts)),
                    Some(crossing) => (State::Warning, Some(crossing.ts)),
                    None => (state(testing.enough()), testing.first),
                };
                StreamReport {
                    log_e: Some(testing.log_e()),
                    threshold_log: Some(self.rules.threshold_log),
                    ..report(state, testing.exchanges, since)
                }
            }
        }
    }

    /// The alarms of the adapters in `serving`.
    pub(crate) fn alarms(&self, serving: &BTreeSet<Key>) -> Vec<Trigger> {
        self.streams
            .iter()
            .filter(|(key, _)| serving.contains(key))
            .filter_map(|(key, stream)| {
                let testing = stream.testing()?;
                let crossing = testing.crossing.as_ref()?;
                Some(Trigger {
                    alarm: alarm(&key.1, Stream::Format, &testing.reference),
                    task: key.0.clone(),
                    adapter: key.1.clone(),
                    kind: Stream::Format.kind(),
                    ts: crossing.ts,
                    request_id: crossing.request_id.clone(),
                    exchanges: crossing.exchanges,
                    log_e: crossing.log_e,
                    threshold_log: self.rules.threshold_log,
                    evidence: crossing.evidence.clone(),
                })
            })
            .collect()
    }

    /// The reference that a stream is tested against.
    pub(crate) fn reference(&self, key: &Key) -> Option<&Reference> {
        match self.streams.get(key) {
            Some(stream) => Some(&stream.testing()?.reference),
            None => self.references.get(key),
        }
    }
}

fn crossed(stream: &Format) -> bool {
    stream
        .testing()
        .is_some_and(|testing| testing.crossing.is_some())
}

fn state(enough: bool) -> State {
    if enough {
        State::Ok
    } else {
        State::NotEnoughData
    }
}

/// The alarm's id: of what it is about, not of when it was noticed or by whom, so that two replicas give it the same.
/// A reference is created once, so its time names it.
fn alarm(adapter: &str, stream: Stream, reference: &Reference) -> String {
    let reference = reference.created.format("%Y%m%dT%H%M%S%3fZ");
    format!("{adapter}-{stream}-{reference}")
}
