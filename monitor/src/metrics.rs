//! What the monitor shows to Prometheus: one struct, registered where it is made. Each field's documentation is its metric's help text.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use prometheus::core::Collector;
use prometheus::{
    CounterVec, Gauge, GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
};
use retune_ledger::Run;
use serde_json::Value;

use crate::streams::{State, Stream, StreamReport};

/// A run's verdicts, and `failed` for a run that came to none.
const VERDICTS: [&str; 5] = ["promote", "canary", "wait", "reject", FAILED];
const FAILED: &str = "failed";
/// What a run's cost is made of.
const COSTS: [&str; 2] = ["training", "examination"];
/// What an exchange's cost is made of.
const KINDS: [&str; 4] = ["prompt", "completion", "retries", "edits"];

macro_rules! metrics {
    ($(#[doc = $help:literal] $field:ident: $kind:ident = $name:literal [$($label:literal),*],)*) => {
        /// The monitor's metrics.
        pub(crate) struct Metrics {
            $(#[doc = $help] $field: $kind,)*
            tasks: BTreeSet<String>,
            /// The verdict that each run was counted with; None before the first look at the ledger.
            counted: Option<BTreeMap<String, String>>,
        }

        impl Metrics {
            /// Makes the metrics and registers them; what counts alarms of `tasks` begins at 0, so that a first one is an increase.
            pub(crate) fn new(registry: &Registry, tasks: &BTreeSet<String>) -> Result<Self, prometheus::Error> {
                let metrics = Self {
                    $($field: kept(registry, metrics!(@make $kind, concat!("retune_", $name), $help.trim(), [$($label),*]))?,)*
                    tasks: tasks.clone(),
                    counted: None,
                };
                for task in tasks {
                    for stream in Stream::ALL {
                        metrics.alarms.with_label_values(&[task.as_str(), stream.kind().as_str()]);
                    }
                }
                Ok(metrics)
            }

            /// A row each, for the reference.
            #[cfg(test)]
            fn reference(&self) -> String {
                let all = [$((stringify!($kind), self.$field.desc()),)*];
                all.iter().map(|(kind, of)| tests::row(kind, of)).collect()
            }
        }
    };
    (@make $kind:ident, $name:expr, $help:expr, []) => { $kind::new($name, $help)? };
    (@make $kind:ident, $name:expr, $help:expr, [$($label:literal),+]) => { $kind::new(Opts::new($name, $help), &[$($label),+])? };
}

metrics! {
    /// Evidence that a stream got worse than its reference, as the natural logarithm of an e-value.
    log_e: GaugeVec = "drift_log_e_value" ["task", "adapter", "stream"],
    /// Where the evidence raises an alarm, as the natural logarithm of an e-value.
    threshold: GaugeVec = "drift_threshold_log" ["task", "adapter", "stream"],
    /// How likely the last window of prompts is, if apps ask for what they asked for in the sample.
    input_p: GaugeVec = "input_drift_p_value" ["task", "adapter"],
    /// Alarms raised, by what they are about.
    alarms: IntCounterVec = "alarms_total" ["task", "kind"],
    /// 1 while an alarm stands for an adapter that serves, 0 otherwise.
    active: IntGaugeVec = "alarm_active" ["task", "adapter", "kind"],
    /// 1 while an alarm stands that somebody acknowledged or silenced: it is not in alarm_active meanwhile.
    quiet: IntGaugeVec = "alarm_quiet" ["task", "adapter", "kind"],
    /// How far the words of the last long window of prompts are from those of the training examples: the Jensen-Shannon distance, 0 to 1.
    training_distance: GaugeVec = "training_distance" ["task", "adapter"],
    /// When the task's schedule last asked for a run that has something to learn from, in seconds since 1970.
    run_due: GaugeVec = "run_due_timestamp_seconds" ["task"],
    /// Blind pairs of answers that wait for people's votes.
    pairs_waiting: IntGaugeVec = "pairs_waiting" ["task"],
    /// Exchanges tested so far; collected ones while there is no reference.
    exchanges: IntGaugeVec = "window_exchanges" ["task", "adapter", "stream"],
    /// Seconds since the reference was frozen.
    reference_age: GaugeVec = "reference_age_seconds" ["task", "adapter", "stream"],
    /// When the monitor last finished a pass, in seconds since 1970.
    last_pass: Gauge = "monitor_last_pass_timestamp_seconds" [],
    /// Passes that ended in an error; the next one tries again.
    failures: IntCounter = "monitor_pass_failures_total" [],
    /// Runs that ended, by verdict, or failed.
    runs: IntCounterVec = "runs_total" ["task", "verdict"],
    /// What runs that came to a verdict have cost, by the prices in [cost]: training and examination.
    run_cost: CounterVec = "run_cost_total" ["task", "kind"],
    /// What a thousand exchanges are estimated to cost less with the candidate that was examined last than with what it was compared with, by the prices in [cost].
    saving: GaugeVec = "saving_per_thousand" ["task", "kind"],
    /// When the task's last run ended, in seconds since 1970.
    last_run: GaugeVec = "last_run_timestamp_seconds" ["task"],
    /// How far the task's run is with what it does now (training, examining), 0 to 1; 0 where none is under way.
    run_progress: GaugeVec = "run_progress_ratio" ["task"],
    /// Held-out loss of the task's newest training so far.
    training_loss: GaugeVec = "training_held_out_loss" ["task"],
}

impl Metrics {
    pub(crate) fn alarm(&self, task: &str, kind: &str) {
        self.alarms.with_label_values(&[task, kind]).inc();
    }

    /// Of an adapter's newest windows.
    pub(crate) fn input(
        &self,
        (task, adapter): &(String, String),
        p: Option<f64>,
        training_distance: Option<f64>,
    ) {
        let labels = [task.as_str(), adapter.as_str()];
        if let Some(p) = p {
            self.input_p.with_label_values(&labels).set(p);
        }
        if let Some(distance) = training_distance {
            self.training_distance
                .with_label_values(&labels)
                .set(distance);
        }
    }

    pub(crate) fn pairs_waiting(&self, task: &str, pairs: usize) {
        let pairs = i64::try_from(pairs).unwrap_or(i64::MAX);
        self.pairs_waiting.with_label_values(&[task]).set(pairs);
    }

    pub(crate) fn run_due(&self, task: &str, due: DateTime<Utc>) {
        self.run_due
            .with_label_values(&[task])
            .set(due.timestamp() as f64);
    }

    pub(crate) fn failure(&self) {
        self.failures.inc();
    }

    /// A pass ended with these reports; `reference` says when each one's reference was frozen.
    pub(crate) fn pass(
        &self,
        reports: &[StreamReport],
        reference: impl Fn(&StreamReport) -> Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) {
        for report in reports {
            let labels = [
                report.task.as_str(),
                report.adapter.as_str(),
                report.stream.as_str(),
            ];
            let set = |gauges: &GaugeVec, value: Option<f64>| {
                if let Some(value) = value {
                    gauges.with_label_values(&labels).set(value);
                }
            };
            set(&self.log_e, report.log_e);
            set(&self.threshold, report.threshold_log);
            set(
                &self.reference_age,
                reference(report).map(|created| (now - created).as_seconds_f64()),
            );
            self.exchanges
                .with_label_values(&labels)
                .set(i64::try_from(report.exchanges).unwrap_or(i64::MAX));
            let of_kind = [labels[0], labels[1], report.stream.kind().as_str()];
            self.active
                .with_label_values(&of_kind)
                .set(i64::from(report.state == State::Alarm));
            let is_quiet = report.alarm.is_some() && report.state == State::Warning;
            self.quiet
                .with_label_values(&of_kind)
                .set(i64::from(is_quiet));
        }
        self.last_pass.set(now.timestamp_millis() as f64 / 1000.0);
    }

    /// The newest row of every run. A run that failed and later came to a verdict counts as both.
    ///
    /// The counters begin with what the ledger has, at the first look and not at 0 before it: a restart is no increase.
    pub(crate) fn runs(&mut self, runs: &[Run]) {
        self.under_way(runs);
        self.savings(runs);
        if self.counted.is_none() {
            for (task, verdict) in self.tasks.iter().flat_map(|t| VERDICTS.map(|v| (t, v))) {
                self.runs.with_label_values(&[task.as_str(), verdict]);
            }
            for (task, kind) in self.tasks.iter().flat_map(|t| COSTS.map(|k| (t, k))) {
                self.run_cost.with_label_values(&[task.as_str(), kind]);
            }
        }
        let counted = self.counted.get_or_insert_default();
        let mut last: BTreeMap<&str, DateTime<Utc>> = BTreeMap::new();
        for run in runs {
            let verdict = match (run.state.as_str(), &run.verdict) {
                ("done", Some(verdict)) => verdict.as_str(),
                (FAILED, _) => FAILED,
                // Under way; or done without a verdict, when its alarm was about a champion of yesterday and it never began.
                _ => continue,
            };
            let at = run.ended();
            let ended = last.entry(&run.task).or_insert(at);
            *ended = at.max(*ended);
            if counted.get(&run.run_id).map(String::as_str) != Some(verdict) {
                counted.insert(run.run_id.clone(), verdict.to_owned());
                self.runs
                    .with_label_values(&[run.task.as_str(), verdict])
                    .inc();
                for kind in COSTS.into_iter().filter(|_| run.state == "done") {
                    let report = run.report.as_ref();
                    let cost = report.and_then(|report| report["cost"][kind].as_f64());
                    self.run_cost
                        .with_label_values(&[run.task.as_str(), kind])
                        .inc_by(cost.unwrap_or_default().max(0.0));
                }
            }
        }
        for (task, ended) in last {
            self.last_run
                .with_label_values(&[task])
                .set(ended.timestamp_millis() as f64 / 1000.0);
        }
    }
}

impl Metrics {
    /// Of each task's last run that came to a cost by kinds.
    fn savings(&self, runs: &[Run]) {
        let mut last: BTreeMap<&str, (DateTime<Utc>, &Value, &Value)> = BTreeMap::new();
        for run in runs {
            let cost = run.report.as_ref().and_then(|report| report.get("cost"));
            let of = |side| cost?.get(side).filter(|kinds| kinds.is_object());
            if let (Some(candidate), Some(baseline)) = (of("candidate_kinds"), of("baseline_kinds"))
            {
                let it = (run.ended(), candidate, baseline);
                let known = last.entry(&run.task).or_insert(it);
                if it.0 > known.0 {
                    *known = it;
                }
            }
        }
        for (task, (_, candidate, baseline)) in last {
            for kind in KINDS {
                let price = |kinds: &Value| kinds[kind].as_f64().unwrap_or_default();
                self.saving
                    .with_label_values(&[task, kind])
                    .set(price(baseline) - price(candidate));
            }
        }
    }

    fn under_way(&self, runs: &[Run]) {
        let mut newest: BTreeMap<&str, &Run> = BTreeMap::new();
        for run in runs {
            let known = newest.entry(&run.task).or_insert(run);
            if run.ts > known.ts {
                *known = run;
            }
        }
        for (task, run) in newest {
            let is_over = ["done", FAILED].contains(&run.state.as_str());
            let progress = run.progress.filter(|(_, total)| !is_over && *total > 0);
            let share = progress.map_or(0.0, |(done, total)| done as f64 / total as f64);
            self.run_progress.with_label_values(&[task]).set(share);
            if let Some(loss) = run.loss_last {
                self.training_loss.with_label_values(&[task]).set(loss);
            }
        }
    }
}

fn kept<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
#[path = "../../tests/support/reference.rs"]
mod reference;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    /// A metric's row in the reference.
    pub(super) fn row(kind: &str, of: &[&prometheus::core::Desc]) -> String {
        let rows = of
            .iter()
            .map(|desc| reference::metric(kind, &desc.fq_name, &desc.variable_labels, &desc.help));
        rows.collect()
    }

    #[test]
    fn the_reference_is_what_the_code_says() {
        let metrics = Metrics::new(&Registry::new(), &BTreeSet::new()).unwrap();
        reference::holds("metrics.md", "monitor", &metrics.reference());
    }

    fn run(id: &str, state: &str, report: Value) -> Run {
        Run {
            run_id: id.to_owned(),
            task: "ask".to_owned(),
            state: state.to_owned(),
            verdict: (state == "done").then(|| "promote".to_owned()),
            report: Some(report),
            ..Run::default()
        }
    }

    fn ended(day: u32, retries: f64) -> Value {
        let kinds = |retries, edits| json!({"prompt": 1.0, "completion": 2.0, "retries": retries, "edits": edits});
        json!({
            "finished": format!("2026-03-{day:02}T00:00:00Z"),
            "cost": {"training": 2.0, "examination": 0.5, "candidate_kinds": kinds(0.1, 0.0), "baseline_kinds": kinds(retries, 7.0)},
        })
    }

    #[test]
    fn the_last_examined_candidate_s_savings_are_shown_and_each_run_s_cost_is_counted_once() {
        let tasks = BTreeSet::from(["ask".to_owned()]);
        let mut metrics = Metrics::new(&Registry::new(), &tasks).unwrap();
        let cost =
            |metrics: &Metrics, kind| metrics.run_cost.with_label_values(&["ask", kind]).get();
        let saving =
            |metrics: &Metrics, kind| metrics.saving.with_label_values(&["ask", kind]).get();
        // In any order; what came to no cost, or to one without kinds, changes nothing.
        let runs = [
            run("c", "done", ended(3, 0.4)),
            run("b", "done", ended(2, 0.9)),
            run(
                "e",
                "done",
                json!({"finished": "2026-03-05T00:00:00Z", "cost": {"training": 1.0, "examination": 0.0}}),
            ),
            run("d", FAILED, json!({"training_seconds": 7.0})),
        ];
        for _ in 0..2 {
            metrics.runs(&runs);
            assert_eq!(
                KINDS.map(|kind| saving(&metrics, kind)),
                [0.0, 0.0, 0.4 - 0.1, 7.0]
            );
            assert_eq!(COSTS.map(|kind| cost(&metrics, kind)), [5.0, 1.0]);
        }
    }
}
