//! The passes: read what is new, fold it, act on what is settled, show what there is.
//!
//! A row becomes readable some time after it was answered, and two processes' rows out of order. So a row is *settled* once it is older
//! than any row that could still come ([`Ledger::settled`]). Settled rows are folded once, and only they decide: they freeze
//! references, raise alarms, make `windows`. Younger ones are folded anew on top in every pass, for reports and gauges. Should a row
//! come later still (a store that was away), a count notices it, and everything is folded again from the beginning.
//!
//! Whatever is decided is a file that is created once, with a name and content that follow from the rows, so any number of
//! monitors may run, and a pass that breaks down anywhere is made up for by the next one.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use prometheus::Registry;
use retune_ledger::{Ledger, Mark, Table};
use retune_task::{Config, ModelName};
use tokio_util::sync::CancellationToken;

use crate::book::{Book, Key};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::reader;
use crate::streams::format::Rules;
use crate::streams::{Stream, StreamReport};

/// Between two counts of what was settled long ago.
const AUDIT: Duration = Duration::from_secs(60);
/// Longest pause after passes that failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Watches the answers of every task that has a format.
pub struct Monitor {
    ledger: Ledger,
    metrics: Metrics,
    tasks: BTreeSet<String>,
    poll: Duration,
    /// How long a row may take from its time until it can be read.
    settle: TimeDelta,
    /// After every settled row.
    settled: Book,
    /// After every row, where some are not settled.
    visible: Option<Book>,
    /// Alarms that are known to have their trigger.
    raised: BTreeSet<(String, String)>,
    exchanges_mark: Option<Mark>,
    runs_version: Option<u64>,
    audited: Instant,
}

impl Monitor {
    /// Registers its metrics in `registry`; reads nothing yet.
    pub fn new(config: &Config, ledger: Ledger, registry: &Registry) -> Result<Self, Error> {
        let with_format = config.tasks.iter().filter(|task| task.format.is_some());
        let tasks: BTreeSet<String> = with_format.map(|task| task.name.clone()).collect();
        let settings = &config.monitor;
        let rules = Rules {
            reference_exchanges: settings.reference_exchanges as u64,
            tolerance: settings.format_tolerance,
            threshold_log: retune_stats::threshold(
                settings.exchanges_per_quarter,
                Stream::ALL.len(),
                settings.false_alarms_per_quarter,
            )
            .ln(),
        };
        Ok(Self {
            metrics: Metrics::new(registry, &tasks)?,
            poll: Duration::from_secs_f64(settings.poll_seconds),
            settle: TimeDelta::from_std(ledger.settled()).unwrap_or(TimeDelta::MAX),
            ledger,
            settled: Book::new(rules, tasks.clone()),
            visible: None,
            tasks,
            raised: BTreeSet::new(),
            exchanges_mark: None,
            runs_version: None,
            audited: Instant::now(),
        })
    }

    /// One look at the ledger: a report for each stream of each adapter that serves or was ever asked.
    pub async fn pass(&mut self) -> Result<Vec<StreamReport>, Error> {
        self.pass_at(Utc::now()).await
    }

    /// Makes the next pass count what was settled.
    #[cfg(test)]
    pub(crate) fn audit_now(&mut self) {
        self.audited = Instant::now() - AUDIT;
    }

    pub(crate) async fn pass_at(&mut self, now: DateTime<Utc>) -> Result<Vec<StreamReport>, Error> {
        let serving = self.serving().await?;
        self.audit().await?;
        self.catch_up(now - self.settle, &serving).await?;
        self.raise(&serving).await?;
        self.append_windows().await?;
        self.look_at_runs().await?;
        let book = self.visible.as_ref().unwrap_or(&self.settled);
        let reports = book.reports(&serving);
        let frozen = |report: &StreamReport| {
            let key = (report.task.clone(), report.adapter.clone());
            Some(book.reference(&key)?.created)
        };
        self.metrics.pass(&reports, frozen, now);
        Ok(reports)
    }

    /// Passes until `stop`. An error is logged, counted, and tried again after a pause that doubles.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pause = self.poll;
        while !stop.is_cancelled() {
            // A pass is not cut off in the middle: it is short, and what it writes should be whole.
            match self.pass().await {
                Ok(_) => pause = self.poll,
                Err(error) => {
                    self.metrics.failure();
                    tracing::warn!(%error, retry_seconds = pause.as_secs_f64(), "a pass of the monitor failed; trying again");
                    pause = (pause * 2).min(LONGEST_PAUSE.max(self.poll));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Folds what is new; rows up to `watermark` are settled.
    async fn catch_up(
        &mut self,
        watermark: DateTime<Utc>,
        serving: &BTreeSet<Key>,
    ) -> Result<(), Error> {
        let mark = self.ledger.mark(Table::Exchanges).await?;
        let waiting = self.settled.collecting().into_iter();
        let mut consistent = self.learn(waiting.chain(serving.iter().cloned())).await?;
        if consistent && self.visible.is_none() && self.exchanges_mark.as_ref() == Some(&mark) {
            return Ok(());
        }
        self.exchanges_mark = None;
        loop {
            if !consistent {
                self.settled = self.settled.before_any_row();
            }
            consistent = self.read(watermark).await? && self.freeze().await?;
            if consistent {
                break;
            }
        }
        self.exchanges_mark = Some(mark);
        Ok(())
    }

    /// False where a reference turned up that earlier rows should have been tested against.
    async fn read(&mut self, watermark: DateTime<Utc>) -> Result<bool, Error> {
        self.visible = None;
        let mut after = self.settled.last().cloned();
        loop {
            let page = reader::page(&self.ledger, after.as_ref()).await?;
            let keys = page
                .iter()
                .map(|row| (row.task.clone(), row.adapter.clone()));
            if !self.learn(keys).await? {
                return Ok(false);
            }
            for row in &page {
                if self.visible.is_none() && row.cursor.ts <= watermark {
                    self.settled.fold(row);
                } else {
                    self.visible
                        .get_or_insert_with(|| self.settled.clone())
                        .fold(row);
                }
            }
            match page.last() {
                Some(row) if !reader::is_last(&page) => after = Some(row.cursor.clone()),
                _ => return Ok(true),
            }
        }
    }

    /// Looks for the references that are not known yet. False where rows were already taken without one of them.
    async fn learn(&mut self, keys: impl Iterator<Item = Key>) -> Result<bool, Error> {
        let lacking: BTreeSet<Key> = keys
            .filter(|key| self.settled.lacks_reference(key))
            .collect();
        let mut consistent = true;
        for key in lacking {
            if let Some(reference) = self.ledger.reference(&key.0, &key.1, None).await? {
                consistent &= self.settled.learn(key, reference);
            }
        }
        Ok(consistent)
    }

    /// Keeps the references that were made of first rows. False where somebody else's was there first, and is another.
    async fn freeze(&mut self) -> Result<bool, Error> {
        let mut consistent = true;
        for (key, made) in self.settled.made() {
            let reference = if self.ledger.put_reference(&made).await? {
                tracing::info!(
                    task = key.0,
                    adapter = key.1,
                    exchanges = made.exchanges,
                    format_invalid = made.format_invalid,
                    "a reference was frozen"
                );
                made
            } else {
                self.ledger
                    .reference(&key.0, &key.1, None)
                    .await?
                    .unwrap_or(made)
            };
            consistent &= self.settled.learn(key, reference);
        }
        Ok(consistent)
    }

    /// Has a row turned up among those that were settled, or left?
    async fn audit(&mut self) -> Result<(), Error> {
        if self.audited.elapsed() < AUDIT {
            return Ok(());
        }
        if let Some(last) = self.settled.last() {
            let rows = reader::count(&self.ledger, last).await?;
            if rows != self.settled.rows() {
                tracing::info!(
                    rows,
                    folded = self.settled.rows(),
                    "rows came late or left; everything is tested again from the beginning"
                );
                self.settled = self.settled.before_any_row();
                self.exchanges_mark = None;
            }
        }
        self.audited = Instant::now();
        Ok(())
    }

    /// The adapters that get a share of their task's traffic: champion and canary. An alarm about another one calls nobody.
    async fn serving(&self) -> Result<BTreeSet<Key>, Error> {
        let mut serving = BTreeSet::new();
        for task in &self.tasks {
            let stages = self.ledger.stages(task).await?;
            let adapter = |number| ModelName::Adapter {
                task: task.clone(),
                number,
            };
            let champion = stages
                .champion
                .map_or_else(|| ModelName::Baseline(task.clone()), adapter);
            let canary = stages.canary.map(|(number, _)| adapter(number));
            for name in [Some(champion), canary].into_iter().flatten() {
                serving.insert((task.clone(), name.to_string()));
            }
        }
        Ok(serving)
    }

    async fn raise(&mut self, serving: &BTreeSet<Key>) -> Result<(), Error> {
        for trigger in self.settled.alarms(serving) {
            let key = (trigger.task.clone(), trigger.alarm.clone());
            if self.raised.contains(&key) {
                continue;
            }
            if self.ledger.put_trigger(&trigger).await? {
                self.metrics.alarm(&trigger.task, trigger.kind.as_str());
                tracing::warn!(
                    task = trigger.task,
                    adapter = trigger.adapter,
                    alarm = trigger.alarm,
                    exchanges = trigger.exchanges,
                    log_e = trigger.log_e,
                    threshold_log = trigger.threshold_log,
                    "an alarm was raised"
                );
            }
            self.raised.insert(key);
        }
        Ok(())
    }

    /// Appends the history's new rows; those that are there already, by another replica or before a restart, are left out.
    /// (Two replicas at the very same moment may both append: the rows are the same.)
    async fn append_windows(&mut self) -> Result<(), Error> {
        if self.settled.windows().is_empty() {
            return Ok(());
        }
        let known = reader::windows(&self.ledger).await?;
        let fresh: Vec<_> = self
            .settled
            .windows()
            .iter()
            .filter(|window| {
                !known.iter().any(|(task, adapter, stream, exchanges)| {
                    *task == window.task
                        && *adapter == window.adapter
                        && stream.as_str() == window.stream
                        && *exchanges >= window.exchanges
                })
            })
            .cloned()
            .collect();
        self.ledger.append_windows(&fresh).await?;
        self.settled.windows_taken();
        Ok(())
    }

    /// Runs are another process's: what is known of them is in the ledger.
    async fn look_at_runs(&mut self) -> Result<(), Error> {
        let version = self.ledger.table_version(Table::Runs).await?;
        if self.runs_version != Some(version) {
            self.metrics.runs(&self.ledger.runs().await?);
            self.runs_version = Some(version);
        }
        Ok(())
    }
}
