//! The states of all streams of all adapters, folded from rows in the ledger's order. Pure: no clock, no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use retune_ledger::{Cursor, Reference, Service, Trigger, Window};

use crate::streams::adapter::Adapter;
use crate::streams::kinds::Rules;
use crate::streams::operations::Operations;
use crate::streams::told::{Key, without_reference};
use crate::streams::{Row, Served, Stream, StreamReport};

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

/// Those of them that serve now.
pub(crate) fn serving(stints: &Stints) -> impl Iterator<Item = (&Key, &Stint)> {
    stints.iter().filter(|(_, stint)| stint.serves)
}

/// All streams, after some rows.
#[derive(Debug, Clone)]
pub(crate) struct Book {
    rules: Arc<Rules>,
    /// The tasks, and which of them have a format; rows of others are passed over.
    tasks: Arc<BTreeMap<String, bool>>,
    references: BTreeMap<Key, Reference>,
    /// None: it was looked for, and there is none.
    services: BTreeMap<Key, Option<Service>>,
    /// Where adapters came back.
    again: BTreeMap<Key, DateTime<Utc>>,
    adapters: BTreeMap<Key, Adapter>,
    operations: BTreeMap<Key, Operations>,
    /// Rows taken, passed over or not, and the last of them.
    rows: u64,
    last: Option<Cursor>,
    /// All rows up to this time were taken, and how many those were.
    settled: Option<(DateTime<Utc>, u64)>,
    /// Rows of the history that came out of the fold and were not taken yet.
    windows: Vec<Window>,
}

impl Book {
    pub(crate) fn new(rules: Rules, tasks: BTreeMap<String, bool>) -> Self {
        Self {
            rules: Arc::new(rules),
            tasks: Arc::new(tasks),
            references: BTreeMap::new(),
            services: BTreeMap::new(),
            again: BTreeMap::new(),
            adapters: BTreeMap::new(),
            operations: BTreeMap::new(),
            rows: 0,
            last: None,
            settled: None,
            windows: Vec::new(),
        }
    }

    /// The same before any row: everything it was told, and nothing it has seen.
    pub(crate) fn before_any_row(&self) -> Self {
        Self {
            adapters: BTreeMap::new(),
            operations: BTreeMap::new(),
            rows: 0,
            last: None,
            settled: None,
            windows: Vec::new(),
            ..self.clone()
        }
    }

    /// Up to which time all rows were taken, and how many those were.
    pub(crate) fn settled(&self) -> Option<(DateTime<Utc>, u64)> {
        self.settled
    }

    /// All rows up to this time have been taken, and no later one.
    pub(crate) fn settle(&mut self, until: DateTime<Utc>) {
        self.settled = Some((until, self.rows));
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

    /// Is it an adapter whose streams are kept, and of which nobody looked how it was served at first?
    pub(crate) fn lacks_service(&self, key: &Key) -> bool {
        self.tasks.contains_key(&key.0) && !self.services.contains_key(key)
    }

    /// Tells it how an adapter was served at first, if that is known. False as [`Self::learn`] has it.
    pub(crate) fn learn_service(&mut self, key: Key, service: Option<Service>) -> bool {
        let taken = self.operations.get(&key);
        let same = taken.is_none_or(|operations| {
            operations.testing().map(|testing| testing.0) == service.as_ref()
        });
        self.services.insert(key, service);
        same
    }

    /// What the fold found of how adapters were served at first, and is not kept yet.
    pub(crate) fn made_services(&self) -> Vec<(Key, Service)> {
        let is_known = |key: &Key| self.services.get(key).is_some_and(Option::is_some);
        let made = self.operations.iter().filter(|(key, _)| !is_known(key));
        made.filter_map(|(key, operations)| Some((key.clone(), operations.testing()?.0.clone())))
            .collect()
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
        let Some(has_format) = self.tasks.get(&row.task).copied() else {
            return;
        };
        let key = (row.task.clone(), row.adapter.clone());
        let again = self.again.get(&key);
        // A reference may be of an earlier time, and what is tested is not.
        let is_before = again.is_some_and(|again| row.cursor.ts < *again);
        if let Some(served) = row.served {
            self.serve(&key, row, served, is_before);
            if served.failed {
                return;
            }
        }
        let adapter = self.adapters.entry(key.clone()).or_insert_with_key(|key| {
            Adapter::new(&self.rules, has_format, self.references.get(key))
        });
        if adapter.testing().is_some() && is_before {
            return;
        }
        for stream in adapter.observe(&self.rules, row) {
            let rates = adapter.testing().and_then(|t| t.stream(stream));
            let due = rates.and_then(|rates| rates.due(&key, stream, row.cursor.ts));
            self.windows.extend(due);
        }
    }

    fn serve(&mut self, key: &Key, row: &Row, served: Served, is_before: bool) {
        let reference = self.services.get(key).and_then(Option::as_ref);
        let operations = self.operations.entry(key.clone());
        let operations =
            operations.or_insert_with(|| Operations::new(reference, self.rules.threshold_log));
        if operations.testing().is_some() && is_before {
            return;
        }
        if operations.observe(key, row, served) {
            let rates = operations.testing().map(|(_, rates)| rates);
            let due = rates.and_then(|rates| rates.due(key, Stream::Operations, row.cursor.ts));
            self.windows.extend(due);
        }
    }

    /// The rows of the history that came out of the fold since this was asked.
    pub(crate) fn take_windows(&mut self) -> Vec<Window> {
        std::mem::take(&mut self.windows)
    }

    /// Every stream that there is, and those of each adapter that serves, if there is nothing of it yet.
    pub(crate) fn reports(&self, stints: &Stints) -> Vec<StreamReport> {
        let serving = serving(stints).map(|(key, _)| key);
        let keys: BTreeSet<&Key> = self.adapters.keys().chain(serving).collect();
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
            reports.extend(streams.map(|stream| report(key, adapter, stream, serves)));
            reports.push(self.report_of_operations(key, serves));
        }
        reports
    }

    fn report_of_operations(&self, key: &Key, serves: bool) -> StreamReport {
        let operations = self.operations.get(key);
        match operations.and_then(Operations::testing) {
            Some((_, rates)) => rates.standing().report(key, Stream::Operations, serves),
            None => {
                let (stretches, first) = operations.map_or((0, None), Operations::collected);
                without_reference(key, Stream::Operations, stretches, first)
            }
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
            let since = self.again.get(key).unwrap_or(&testing.reference.created);
            for stream in Stream::OF_ROWS {
                let rates = testing.stream(stream);
                triggers.extend(rates.and_then(|r| r.standing().trigger(key, stream, *since)));
            }
        }
        for (key, operations) in self.operations.iter().filter(|(key, _)| serves(key)) {
            if let Some((service, rates)) = operations.testing() {
                let since = self.again.get(key).unwrap_or(&service.created);
                let standing = rates.standing();
                triggers.extend(standing.trigger(key, Stream::Operations, *since));
            }
        }
        triggers
    }

    /// How an adapter was served at first.
    pub(crate) fn service(&self, key: &Key) -> Option<&Service> {
        Some(self.operations.get(key)?.testing()?.0)
    }

    /// The reference that an adapter's streams are tested against.
    pub(crate) fn reference(&self, key: &Key) -> Option<&Reference> {
        match self.adapters.get(key) {
            Some(adapter) => Some(&adapter.testing()?.reference),
            None => self.references.get(key),
        }
    }
}

fn report(key: &Key, adapter: &Adapter, stream: Stream, serves: bool) -> StreamReport {
    match adapter {
        Adapter::Collecting(collected) => {
            without_reference(key, stream, collected.exchanges(), collected.first)
        }
        Adapter::Testing(testing) => match testing.stream(stream) {
            Some(rates) => rates.standing().report(key, stream, serves),
            None => without_reference(key, stream, 0, None),
        },
    }
}
