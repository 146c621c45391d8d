//! Runs, from dataset to verdict, and the adapters that they made.
//!
//! What a page shows of a run is read from its row's report, as far as it is known: that of a run under way has the losses so far.

use askama::Template;
use chrono::{DateTime, Utc};
use retune_ledger::{Run, Stages};
use retune_task::ModelName;
use serde::Deserialize;
use serde_json::Value;

use crate::adapters::{Row as AdapterRow, actions};
use crate::figures::{count, decimal, from_now, time};
use crate::frame::Frame;
use crate::overview::waits_for_a_yes;

/// All runs, and all adapters.
#[derive(Template)]
#[template(path = "runs.html")]
pub struct Page {
    /// What is around it.
    pub frame: Frame,
    /// Newest first.
    pub runs: Vec<Row>,
    /// By task.
    pub adapters: Vec<AdapterRow>,
}

/// A run in the list.
pub struct Row {
    pub(crate) id: String,
    pub(crate) task: String,
    pub(crate) started_by: String,
    pub(crate) state: String,
    pub(crate) progress: Option<(u64, u64)>,
    pub(crate) adapter: String,
    pub(crate) verdict: String,
    pub(crate) when: String,
    pub(crate) ago: String,
}

impl Row {
    /// A run as it is listed.
    pub fn of(run: &Run, now: DateTime<Utc>) -> Self {
        Self {
            id: run.run_id.clone(),
            task: run.task.clone(),
            started_by: run.started_by.clone(),
            state: run.state.clone(),
            progress: run.progress.filter(|_| is_open(run)),
            adapter: run.adapter.clone().unwrap_or_default(),
            verdict: match (run.verdict.as_deref(), run.promoted) {
                (Some(verdict), Some(true)) => format!("{verdict}, promoted"),
                (verdict, _) => verdict.unwrap_or_default().to_owned(),
            },
            when: time(run.ended()),
            ago: from_now(run.ended(), now),
        }
    }
}

/// Whether it goes on: the process of one that ended without a verdict, since there was no need, is done as well.
pub(crate) fn is_open(run: &Run) -> bool {
    run.verdict.is_none() && !matches!(run.state.as_str(), "done" | "failed")
}

/// One run.
#[derive(Template)]
#[template(path = "run.html")]
pub struct RunPage {
    /// What is around it.
    pub frame: Frame,
    /// The run.
    pub run: Shown,
}

/// A run as it is shown.
pub struct Shown {
    pub(crate) row: Row,
    pub(crate) is_open: bool,
    pub(crate) error: Option<String>,
    pub(crate) reasons: Vec<String>,
    pub(crate) funnel: Vec<Step>,
    pub(crate) losses: Vec<Loss>,
    pub(crate) votes: Vec<Step>,
    pub(crate) facts: Vec<(&'static str, String)>,
    pub(crate) lineage: Vec<(&'static str, String)>,
    pub(crate) has_report: bool,
    /// What a person may do with its candidate.
    pub(crate) actions: Vec<&'static str>,
    pub(crate) asks: bool,
}

/// A count, and what it is a part of.
pub(crate) struct Step {
    pub(crate) what: String,
    pub(crate) count: u64,
    pub(crate) of: u64,
}

pub(crate) struct Loss {
    pub(crate) step: u64,
    pub(crate) train: String,
    pub(crate) held_out: String,
    pub(crate) development: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Report {
    reasons: Vec<String>,
    curve: Vec<Point>,
    dataset: Dataset,
    examples_train: Option<u64>,
    examples_development: Option<u64>,
    examples_held_out: Option<u64>,
    training_seconds: Option<f64>,
    prompt_tokens: Option<f64>,
    prompt_tokens_baseline: Option<f64>,
    figures: Option<Figures>,
    lineage: Option<Lineage>,
    digest: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Point {
    step: u64,
    train_loss: Option<f64>,
    held_out_loss: Option<f64>,
    development_loss: Option<f64>,
}

/// Counts by the dataset's own names.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
struct Dataset(serde_json::Map<String, Value>);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Figures {
    format: Paired,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Paired {
    prompts: u64,
    candidate: u64,
    baseline: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Lineage {
    version: String,
    examples_sha256: String,
    prompt_sha256: String,
    adapter_prompt_sha256: String,
}

impl Dataset {
    fn count(&self, name: &str) -> u64 {
        self.0.get(name).and_then(Value::as_u64).unwrap_or_default()
    }

    /// From all exchanges to what could be learned from: what went, and why.
    fn steps(&self) -> Vec<Step> {
        let all = self.count("exchanges");
        let step = |what: String, count| Step {
            what,
            count,
            of: all,
        };
        let mut steps = vec![step("exchanges".to_owned(), all)];
        for (name, value) in &self.0 {
            let reason = name.replace('_', " ");
            match value {
                Value::Number(_) if name == "exchanges" || name.starts_with("kept_") => {}
                Value::Number(_) => steps.push(step(format!("− {reason}"), self.count(name))),
                Value::Object(parts) => {
                    let parts = parts.iter();
                    steps.extend(parts.filter_map(|(part, count)| {
                        let what = format!("− {reason}: {}", part.replace('_', " "));
                        Some(step(what, count.as_u64()?))
                    }));
                }
                _ => {}
            }
        }
        steps.retain(|step| step.count > 0);
        for name in ["kept_corrections", "kept_ratings", "kept_synthetic"] {
            let kept = self.count(name);
            if kept > 0 {
                steps.push(step(name.replace('_', " by "), kept));
            }
        }
        steps
    }
}

impl Shown {
    /// A run, with the stages of its task.
    pub fn of(run: &Run, stages: &Stages, has_report: bool, now: DateTime<Utc>) -> Self {
        let report: Report = run
            .report
            .clone()
            .and_then(|report| serde_json::from_value(report).ok())
            .unwrap_or_default();
        let (votes, facts) = (votes(run), facts(run, &report));
        let mut funnel = report.dataset.steps();
        let all = report.dataset.count("exchanges");
        for (what, examples) in [
            ("trained on", run.examples_train.or(report.examples_train)),
            (
                "chose the checkpoint",
                run.examples_development.or(report.examples_development),
            ),
            (
                "held out",
                run.examples_held_out.or(report.examples_held_out),
            ),
        ] {
            funnel.extend(examples.map(|count| Step {
                what: what.to_owned(),
                count,
                of: all.max(count),
            }));
        }
        let losses = report.curve.iter().map(|point| Loss {
            step: point.step,
            train: value(point.train_loss),
            held_out: value(point.held_out_loss),
            development: value(point.development_loss),
        });
        let number = run.adapter.as_deref().and_then(ModelName::number_of);
        Self {
            row: Row::of(run, now),
            is_open: is_open(run),
            error: run.error.clone().filter(|_| run.state == "failed"),
            reasons: report.reasons,
            funnel,
            losses: losses.collect(),
            votes,
            facts,
            lineage: lineage(run, report.digest, report.lineage),
            has_report,
            actions: number.map_or_else(Vec::new, |number| actions(stages.stage(number))),
            asks: waits_for_a_yes(run, stages),
        }
    }
}

/// For a plot; nothing where there is none.
fn value(loss: Option<f64>) -> String {
    loss.map_or_else(String::new, |loss| format!("{loss:.4}"))
}

fn votes(run: &Run) -> Vec<Step> {
    let (Some(votes), Some(wins)) = (run.votes, run.wins) else {
        return Vec::new();
    };
    let ties = run.ties.unwrap_or_default();
    let of = votes + ties;
    let all = [
        ("better", wins),
        ("worse", votes.saturating_sub(wins)),
        ("alike", ties),
    ];
    let step = |(what, count): (&str, u64)| Step {
        what: what.to_owned(),
        count,
        of,
    };
    all.map(step).into()
}

fn facts(run: &Run, report: &Report) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let mut fact = |what, said: Option<String>| facts.extend(said.map(|said| (what, said)));
    fact("held against", run.baseline.clone());
    fact("judged by", run.judge.clone());
    fact("p value", run.p_value.map(|p| format!("{p:.2e}")));
    fact(
        "held-out loss",
        run.loss_first.map(|first| {
            let last = decimal(run.loss_last, 4);
            format!("{first:.4} before, {last} after")
        }),
    );
    if let Some(Figures { format }) = &report.figures {
        let said = format!(
            "{} of {}, and {} of what it is held against",
            format.candidate, format.prompts, format.baseline
        );
        fact(
            "keeps the format",
            Some(said).filter(|_| format.prompts > 0),
        );
    }
    if let (Some(now), Some(then)) = (report.prompt_tokens, report.prompt_tokens_baseline) {
        fact("prompt tokens", Some(format!("{now:.1}, {then:.1} before")));
    }
    fact(
        "training",
        report
            .training_seconds
            .map(|seconds| format!("{seconds:.0} s")),
    );
    facts
}

fn lineage(
    run: &Run,
    digest: Option<String>,
    lineage: Option<Lineage>,
) -> Vec<(&'static str, String)> {
    let mut said = Vec::new();
    let mut fact = |what, text: Option<String>| {
        said.extend(
            text.filter(|text| !text.is_empty())
                .map(|text| (what, text)),
        );
    };
    fact("digest", digest);
    let version = |version: u64| count(version);
    fact("exchanges, version", run.exchanges_version.map(version));
    fact("feedback, version", run.feedback_version.map(version));
    if let Some(of) = lineage {
        fact("Retune", Some(of.version));
        fact("examples, SHA-256", Some(of.examples_sha256));
        fact("prompt, SHA-256", Some(of.prompt_sha256));
        fact("adapter's prompt, SHA-256", Some(of.adapter_prompt_sha256));
    }
    said
}
