//! The passes: read what is new, fold it, act on what is settled, show what there is.
//!
//! A row becomes readable some time after it was answered, and two processes' rows out of order. So a row is *settled* once it is older
//! than any row that could still come ([`Ledger::settled`]). Settled rows are folded once, and only they decide: they freeze
//! references, raise alarms, make `windows`. Younger ones are folded anew on top in every pass, for reports and gauges. Should a row
//! come later still (a store that was away), a count notices it, and everything is folded again from the beginning.
//!
//! Whatever is decided is a file that is created once, with a name and content that follow from the rows, so any number of
//! monitors may run, and a pass that breaks down anywhere is made up for by the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use prometheus::Registry;
use retune_ledger::{Ledger, Mark, Stages, Table, Trigger, Window};
use retune_task::{Config, ModelName};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::alarms;
use crate::book::{Book, Stint, Stints, serving};
use crate::error::Error;
use crate::features::vectors::TokenVectors;
use crate::inputs::Inputs;
use crate::metrics::Metrics;
use crate::qualities::Qualities;
use crate::reader;
use crate::schedules::Schedules;
use crate::streams::kinds::Rules;
use crate::streams::told::Key;
use crate::streams::{Stream, StreamReport};

/// Between two counts of what was settled long ago.
const AUDIT: Duration = Duration::from_secs(60);
/// Longest pause after passes that failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Watches the answers of every task.
pub struct Monitor {
    ledger: Ledger,
    metrics: Metrics,
    tasks: BTreeSet<String>,
    /// What was decided of each, as far as it is known.
    decisions: BTreeMap<String, Vec<Stages>>,
    poll: Duration,
    /// How long a row may take from its time until it can be read.
    settle: TimeDelta,
    /// After every settled row.
    settled: Book,
    /// After every row, where some are not settled.
    visible: Option<Book>,
    /// What is accepted, as every alarm tells it.
    budget: Value,
    inputs: Inputs,
    qualities: Qualities,
    /// Rows of the history that are not in their table yet.
    windows: Vec<Window>,
    /// Alarms that are known to have their trigger, by task and id.
    raised: BTreeSet<(String, String)>,
    /// The alarms that stand for those who serve.
    standing: Vec<Trigger>,
    schedules: Schedules,
    exchanges_mark: Option<Mark>,
    runs_version: Option<u64>,
    audited: Instant,
}

impl Monitor {
    /// Registers its metrics in `registry`; reads nothing of the ledger yet. `vectors` of words are compared beside the words themselves.
    pub fn new(
        config: &Config,
        ledger: Ledger,
        registry: &Registry,
        vectors: Option<TokenVectors>,
    ) -> Result<Self, Error> {
        let tasks: BTreeSet<String> = config.tasks.iter().map(|task| task.name.clone()).collect();
        let formats = config.tasks.iter();
        let formats = formats.map(|task| (task.name.clone(), task.format.is_some()));
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
            inputs: Inputs::new(vectors, rules.threshold_log),
            qualities: Qualities::new(rules.threshold_log),
            windows: Vec::new(),
            metrics: Metrics::new(registry, &tasks)?,
            poll: Duration::from_secs_f64(settings.poll_seconds),
            settle: TimeDelta::from_std(ledger.settled()).unwrap_or(TimeDelta::MAX),
            ledger,
            settled: Book::new(rules, formats.collect()),
            visible: None,
            tasks,
            decisions: BTreeMap::new(),
            raised: BTreeSet::new(),
            standing: Vec::new(),
            schedules: Schedules::new(config),
            budget: json!({
                "false_alarms_per_quarter": settings.false_alarms_per_quarter,
                "exchanges_per_quarter": settings.exchanges_per_quarter,
                "divided_among_streams": Stream::ALL.len(),
            }),
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
        let stints = self.stints().await?;
        self.audit().await?;
        self.catch_up(now - self.settle, &stints).await?;
        self.compare(now, &stints).await?;
        self.raise(&stints).await?;
        self.append_windows().await?;
        self.look_at_runs().await?;
        self.schedules
            .show(&self.ledger, &self.metrics, now)
            .await?;
        let book = self.visible.as_ref().unwrap_or(&self.settled);
        let mut reports = book.reports(&stints);
        for (key, _) in serving(&stints) {
            reports.push(self.inputs.report(key));
            reports.push(self.qualities.report(key));
            let distance = self.inputs.training_distance(key);
            self.metrics.input(key, self.inputs.p_value(key), distance);
        }
        let order = |report: &StreamReport| {
            let (task, adapter) = (report.task.clone(), report.adapter.clone());
            (task, adapter, report.stream)
        };
        reports.sort_by_key(order);
        alarms::tell(&self.ledger, &self.standing, &mut reports, now).await?;
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
    async fn catch_up(&mut self, watermark: DateTime<Utc>, stints: &Stints) -> Result<(), Error> {
        let mark = self.ledger.mark(Table::Exchanges).await?;
        let waiting = self.settled.collecting().into_iter();
        let serving = serving(stints).map(|(key, _)| key.clone());
        let mut consistent = self.settled.learn_stints(stints);
        consistent &= self.learn(waiting.chain(serving)).await?;
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

    /// Compares the prompts of who serves with their samples, and takes what was said of their answers, as far as that is settled.
    async fn compare(&mut self, now: DateTime<Utc>, stints: &Stints) -> Result<(), Error> {
        let serving = serving(stints).filter_map(|(key, stint)| {
            Some((key.clone(), (self.settled.reference(key)?, stint.again)))
        });
        let serving: BTreeMap<_, _> = serving.collect();
        let (ledger, until, windows) = (&self.ledger, now - self.settle, &mut self.windows);
        let inputs = self.inputs.take(ledger, &serving, until, now, windows);
        if let Err(error) = inputs.await {
            self.inputs.forget();
            return Err(error);
        }
        let qualities = self.qualities.take(ledger, stints, until, now, windows);
        if let Err(error) = qualities.await {
            self.qualities.forget();
            return Err(error);
        }
        Ok(())
    }

    /// False where a reference turned up that earlier rows should have been tested against.
    async fn read(&mut self, watermark: DateTime<Utc>) -> Result<bool, Error> {
        self.visible = None;
        let mut after = self.settled.last().cloned();
        loop {
            let from = self.settled.settled().map(|(until, _)| until);
            let page = reader::page(&self.ledger, after.as_ref(), from).await?;
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
                _ => {
                    self.settled.settle(watermark);
                    return Ok(true);
                }
            }
        }
    }

    /// Looks for the references that are not known yet. False where rows were already taken without one of them.
    async fn learn(&mut self, keys: impl Iterator<Item = Key>) -> Result<bool, Error> {
        let mut consistent = true;
        for key in keys.collect::<BTreeSet<Key>>() {
            if self.settled.lacks_reference(&key)
                && let Some(reference) = self.ledger.reference(&key.0, &key.1, None).await?
            {
                consistent &= self.settled.learn(key.clone(), reference);
            }
            if self.settled.lacks_service(&key) {
                let service = self.ledger.service(&key.0, &key.1).await?;
                consistent &= self.settled.learn_service(key, service);
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
                    exchanges = made.counts.exchanges,
                    format_invalid = made.counts.format_invalid,
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
        for (key, made) in self.settled.made_services() {
            self.ledger.put_service(&made).await?;
            let kept = self.ledger.service(&key.0, &key.1).await?;
            consistent &= self.settled.learn_service(key, kept.or(Some(made)));
        }
        Ok(consistent)
    }

    /// Has a row turned up among those that were settled, or left?
    async fn audit(&mut self) -> Result<(), Error> {
        if self.audited.elapsed() < AUDIT {
            return Ok(());
        }
        if let Some((until, folded)) = self.settled.settled() {
            let rows = reader::count(&self.ledger, until).await?;
            if rows != folded {
                tracing::info!(
                    rows,
                    folded,
                    "rows came late or left; everything is tested again from the beginning"
                );
                self.settled = self.settled.before_any_row();
                self.inputs.forget();
                self.qualities.forget();
                self.exchanges_mark = None;
            }
        }
        self.audited = Instant::now();
        Ok(())
    }

    /// Who serves, and since when: champion and canary, or the baseline where there is no champion.
    async fn stints(&mut self) -> Result<Stints, Error> {
        let mut stints = Stints::new();
        for task in &self.tasks {
            let known = self.decisions.entry(task.clone()).or_default();
            let seq = self.ledger.stages(task).await?.seq;
            if known.last().map_or(0, |stages| stages.seq) != seq {
                *known = self.ledger.stages_history(task).await?;
            }
            for stages in std::iter::once(&Stages::default()).chain(known.iter()) {
                let adapter = |number| ModelName::Adapter {
                    task: task.clone(),
                    number,
                };
                let champion = stages
                    .champion
                    .map_or_else(|| ModelName::Baseline(task.clone()), adapter);
                let canary = stages.canary.map(|(number, _)| adapter(number));
                let serving = [Some(champion), canary].into_iter().flatten();
                let serving: BTreeSet<String> = serving.map(|name| name.to_string()).collect();
                for ((_, name), stint) in stints.iter_mut().filter(|((of, _), _)| of == task) {
                    stint.serves &= serving.contains(name);
                }
                for name in serving {
                    let stint = stints.entry((task.clone(), name));
                    let stint = stint.or_insert(Stint {
                        serves: true,
                        again: None,
                    });
                    if !std::mem::replace(&mut stint.serves, true) {
                        stint.again = stages.at;
                    }
                }
            }
        }
        Ok(stints)
    }

    async fn raise(&mut self, stints: &Stints) -> Result<(), Error> {
        let alarms = self.settled.alarms(stints).into_iter();
        let alarms = alarms.chain(self.inputs.alarms());
        self.standing = alarms.chain(self.qualities.alarms()).collect();
        for trigger in &self.standing {
            let id = |trigger: &Trigger| (trigger.task.clone(), trigger.alarm.clone());
            if self.raised.contains(&id(trigger)) {
                continue;
            }
            let there = self.ledger.triggers(Some(&trigger.task)).await?;
            self.raised.extend(there.iter().map(id));
            if self.raised.contains(&id(trigger)) {
                continue;
            }
            let of = (trigger.task.clone(), trigger.adapter.clone());
            let (reference, service) = (self.settled.reference(&of), self.settled.service(&of));
            let trigger =
                alarms::explained(&self.ledger, trigger, reference, service, &self.budget);
            let trigger = trigger.await?;
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
            self.raised.insert(id(&trigger));
        }
        Ok(())
    }

    /// Appends the history's new rows; those that are there already, by another replica or before a restart, are left out.
    /// (Two replicas at the very same moment may both append: the rows are the same.)
    async fn append_windows(&mut self) -> Result<(), Error> {
        self.windows.extend(self.settled.take_windows());
        if self.windows.is_empty() {
            return Ok(());
        }
        let known = reader::windows(&self.ledger).await?;
        let fresh: Vec<_> = self
            .windows
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
        self.windows.clear();
        Ok(())
    }

    /// Runs are another process's: what is known of them is in the ledger.
    async fn look_at_runs(&mut self) -> Result<(), Error> {
        let version = self.ledger.table_version(Table::Runs).await?;
        if self.runs_version != Some(version) {
            self.metrics.runs(&self.ledger.runs().await?);
            self.runs_version = Some(version);
        }
        for task in &self.tasks {
            let waiting = self.ledger.pairs_waiting(task, Utc::now()).await?;
            self.metrics.pairs_waiting(task, waiting);
        }
        Ok(())
    }
}
