//! What serves, how it is, and what waits for somebody.

use askama::Template;
use chrono::{DateTime, Utc};
use retune_ledger::{Run, Stages, Traffic, Window};
use retune_task::{ModelName, Prices, Task};

use crate::figures::{count, from_now, milliseconds, money, percent, time};
use crate::frame::Frame;
use crate::runs::is_open;

/// The page.
#[derive(Template)]
#[template(path = "overview.html")]
pub struct Page {
    /// What is around it.
    pub frame: Frame,
    /// Each task, in the configuration's order.
    pub tasks: Vec<TaskCard>,
}

/// What is known of a task.
pub struct Known<'a> {
    /// The task.
    pub task: &'a Task,
    /// Who stands where.
    pub stages: &'a Stages,
    /// The newest state of each stream.
    pub streams: Vec<Window>,
    /// Alarms that stand, by adapter and stream's kind, each with its id.
    pub alarms: Vec<Standing>,
    /// Of the last day, by adapter.
    pub traffic: Vec<Traffic>,
    /// Of the task, oldest first.
    pub runs: Vec<Run>,
    /// Pairs that wait for people.
    pub pairs: usize,
    /// What a token costs.
    pub prices: &'a Prices,
    /// Expected false alarms of an adapter in a quarter.
    pub budget: f64,
    /// Now.
    pub now: DateTime<Utc>,
}

impl Known<'_> {
    fn serves(&self, adapter: &str) -> bool {
        serves(&self.task.name, self.stages, adapter)
    }
}

/// Whether apps' requests reach an adapter of a task without naming it.
pub fn serves(task: &str, stages: &Stages, adapter: &str) -> bool {
    let name = |number| ModelName::of(task, Some(number)).to_string();
    adapter == stages.champion_name(task)
        || stages.in_traffic().any(|number| name(number) == adapter)
}

/// An alarm that stands.
#[derive(Clone)]
pub struct Standing {
    /// Its id.
    pub alarm: String,
    /// What it is about.
    pub kind: String,
    /// Whose answers.
    pub adapter: String,
    /// Whether somebody has seen it.
    pub is_acknowledged: bool,
}

/// A task, as it is shown.
#[derive(Clone)]
pub struct TaskCard {
    pub(crate) name: String,
    pub(crate) serves: String,
    pub(crate) beside: Vec<String>,
    pub(crate) alarms: Vec<Standing>,
    pub(crate) waits: Vec<Waits>,
    pub(crate) traffic: Vec<TrafficRow>,
    pub(crate) cost: Option<String>,
    pub(crate) streams: Vec<StreamRow>,
    pub(crate) budget: String,
    pub(crate) next_run: String,
    pub(crate) running: Option<RunNow>,
    pub(crate) last_run: Option<LastRun>,
}

/// Something that a person could do.
#[derive(Clone)]
pub(crate) struct Waits {
    pub(crate) what: String,
    pub(crate) to: String,
}

#[derive(Clone)]
pub(crate) struct TrafficRow {
    pub(crate) adapter: String,
    pub(crate) requests: String,
    pub(crate) failed: String,
    pub(crate) valid: String,
    pub(crate) half: String,
    pub(crate) slow: String,
    pub(crate) tokens: String,
    pub(crate) cost: String,
}

#[derive(Clone)]
pub(crate) struct StreamRow {
    pub(crate) adapter: String,
    pub(crate) stream: String,
    pub(crate) state: String,
    pub(crate) class: String,
    pub(crate) exchanges: String,
    pub(crate) log_e: String,
    pub(crate) threshold: String,
    /// The share of the way to an alarm, from 0 to 1.
    pub(crate) way: Option<String>,
    pub(crate) seen: String,
}

#[derive(Clone)]
pub(crate) struct RunNow {
    pub(crate) id: String,
    pub(crate) state: String,
    pub(crate) progress: Option<(u64, u64)>,
}

#[derive(Clone)]
pub(crate) struct LastRun {
    pub(crate) id: String,
    pub(crate) said: String,
}

impl TaskCard {
    /// A task as it is to be shown.
    pub fn of(known: Known<'_>) -> Self {
        let (task, stages) = (known.task, known.stages);
        let name = |number: u32| ModelName::of(&task.name, Some(number));
        let share = |part: f64| format!("{:.1} % of the traffic", part * 100.0);
        let mut beside = Vec::new();
        for number in stages.asked() {
            if let Some(part) = stages.canary_share(number) {
                beside.push(format!("{} as the canary, {}", name(number), share(part)));
            }
            if let Some(part) = stages.shadow_share(number) {
                let part = share(part);
                beside.push(format!("{} as a shadow, asked beside {part}", name(number)));
            }
        }
        let running = known.runs.iter().rev().find(|run| is_open(run));
        let last = known.runs.iter().rev().find(|run| !is_open(run));
        Self {
            serves: stages.champion_name(&task.name),
            beside,
            waits: waits(&known),
            cost: cost(&known),
            traffic: known.traffic.iter().map(|t| traffic(t, &known)).collect(),
            streams: known
                .streams
                .iter()
                .filter(|window| known.serves(&window.adapter))
                .map(|window| stream(window, known.now))
                .collect(),
            budget: format!("{}", known.budget),
            next_run: match &task.retrain.schedule {
                None => "by no schedule".to_owned(),
                Some(schedule) => match schedule.next(known.now) {
                    Some(next) => format!("{} ({schedule})", time(next)),
                    None => format!("never ({schedule})"),
                },
            },
            running: running.map(|run| RunNow {
                id: run.run_id.clone(),
                state: run.state.clone(),
                progress: run.progress,
            }),
            last_run: last.map(|run| LastRun {
                id: run.run_id.clone(),
                said: format!(
                    "{}, {}",
                    run.verdict.as_deref().unwrap_or(&run.state),
                    from_now(run.ended(), known.now)
                ),
            }),
            alarms: known.alarms,
            name: task.name.clone(),
        }
    }
}

/// Whether a run's candidate is to be promoted and nobody has said yes.
pub fn waits_for_a_yes(run: &Run, stages: &Stages) -> bool {
    let number = run.adapter.as_deref().and_then(ModelName::number_of);
    let is_candidate = number.is_some_and(|number| {
        matches!(
            stages.stage(number),
            retune_ledger::Stage::Candidate | retune_ledger::Stage::Canary
        )
    });
    is_candidate
        && run.promoted != Some(true)
        && matches!(run.verdict.as_deref(), Some("promote" | "canary"))
}

fn waits(known: &Known<'_>) -> Vec<Waits> {
    let mut waits = Vec::new();
    let newest = known.runs.iter().rev().find(|run| run.verdict.is_some());
    if let Some(run) = newest.filter(|run| waits_for_a_yes(run, known.stages)) {
        let adapter = run.adapter.as_deref().unwrap_or_default();
        let verdict = run.verdict.as_deref().unwrap_or_default();
        waits.push(Waits {
            what: format!("{adapter} was examined, verdict {verdict}: a person has to say yes"),
            to: format!("/console/runs/{}", run.run_id),
        });
    }
    if known.pairs > 0 {
        waits.push(Waits {
            what: format!("{} pairs wait to be compared", known.pairs),
            to: format!("/console/compare?task={}", known.task.name),
        });
    }
    waits
}

fn spent(traffic: &Traffic, prices: &Prices) -> f64 {
    let (read, written) = (
        traffic.prompt_tokens as f64,
        traffic.completion_tokens as f64,
    );
    (read * prices.prompt_million + written * prices.completion_million) / 1e6
}

fn has_prices(prices: &Prices) -> bool {
    prices.prompt_million > 0.0 || prices.completion_million > 0.0
}

fn cost(known: &Known<'_>) -> Option<String> {
    let all = known.traffic.iter().map(|t| spent(t, known.prices));
    has_prices(known.prices).then(|| money(all.sum(), &known.prices.currency))
}

fn traffic(of: &Traffic, known: &Known<'_>) -> TrafficRow {
    TrafficRow {
        adapter: of.adapter.clone().unwrap_or_else(|| "nobody".to_owned()),
        requests: count(of.requests),
        failed: count(of.failed),
        valid: percent(of.valid, of.checked),
        half: milliseconds(of.duration_ms),
        slow: milliseconds(of.slow_ms),
        tokens: format!(
            "{} + {}",
            count(of.prompt_tokens),
            count(of.completion_tokens)
        ),
        cost: match has_prices(known.prices) {
            true => money(spent(of, known.prices), &known.prices.currency),
            false => "–".to_owned(),
        },
    }
}

fn stream(window: &Window, now: DateTime<Utc>) -> StreamRow {
    let is_tested = window.threshold_log > 0.0 && window.log_e.is_finite();
    let way = (window.log_e / window.threshold_log).clamp(0.0, 1.0);
    StreamRow {
        adapter: window.adapter.clone(),
        stream: window.stream.clone(),
        class: window.state.replace(' ', "-"),
        state: window.state.clone(),
        exchanges: count(window.exchanges),
        log_e: format!("{:.2}", window.log_e),
        threshold: format!("{:.2}", window.threshold_log),
        way: is_tested.then(|| format!("{way:.3}")),
        seen: from_now(window.ts, now),
    }
}
