//! Is fine-tuning what a task needs at all? From its own logs, before anybody trains.
//!
//! It is worth it where a good prompt falls short, or where the prompt is most of the cost; it needs a few hundred examples; it teaches behaviour and
//! no facts; and what changes every month is learned too late. `figures` counts each of these in the ledger, `verdict` weighs them,
//! both pure. Where nobody has said anything nothing is guessed: the advice is then to collect.
//!
//! On request the simpler ways are tried before a training is advised: `measure` asks bases and prompts (`prompts`) what was logged, and
//! `choose` names the one that will do, or that an adapter has to beat.

mod choose;
mod figures;
mod gap;
mod measure;
mod prompts;

use std::path::Path;

use retune_ledger::{FeedbackQuery, Ledger};
use retune_stats::{lower_limit, upper_limit};
use retune_task::{RetrainPolicy, Task};
use serde::Serialize;

use crate::shape::Shape;
use crate::{Encoder, Error, shelf, trust};

pub use choose::{Baseline, Measurement, Unmeasured};
use figures::Figures;
pub use gap::Cluster;
pub use measure::{Candidate, Drawn, Measured, Share, Yardstick, draw};
pub use prompts::{NamedPrompt, prompts};

/// Ratings below which nobody knows how good the answers are.
const LEAST_RATINGS: u64 = 50;
/// Share of discontent raters, and of broken formats, that a prompt may leave before it falls short.
const DISCONTENT: f64 = 0.1;
const BROKEN: f64 = 0.02;
/// Share of an exchange's tokens whose saving is worth a training.
const SAVING: f64 = 0.3;
/// Changes of the prompt in 90 days above which what is learned is stale before it serves.
const CHANGES: u64 = 3;
/// Share of corrections that bring something which was not to be known from the conversation, above which knowledge is what is missing.
const NEWS: f64 = 0.3;
const CONFIDENCE: f64 = 0.95;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Advised {
    /// Train.
    FineTune,
    /// Rate and correct more answers first.
    Collect,
    /// The prompt does it.
    Prompt,
    /// Give the model what it does not know.
    Retrieve,
    /// Nothing to gain now.
    Wait,
}

impl std::fmt::Display for Advised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::FineTune => "fine-tune",
            Self::Collect => "collect",
            Self::Prompt => "prompt",
            Self::Retrieve => "retrieve",
            Self::Wait => "wait",
        })
    }
}

/// One figure, and what it was held against.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Because {
    pub what: String,
    pub figure: f64,
    pub wanted: f64,
}

/// What to do, why, and where the answers fall short.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Advice {
    pub verdict: Advised,
    /// What decided comes first.
    pub reasons: Vec<Because>,
    /// The failures, by what their prompts have in common.
    pub gap: Vec<Cluster>,
    /// Why the prompt's tokens could not be counted, where its base is here and cannot be read.
    #[serde(skip)]
    pub unread: Option<String>,
    /// Bases and prompts, where they were measured.
    #[serde(flatten)]
    pub measured: Option<Measurement>,
}

impl Advice {
    /// The same, knowing what was measured: where a prompt will do, there is nothing to train for.
    pub fn after(mut self, measured: Measurement) -> Self {
        let because = measured.baseline.because.clone();
        if measured.baseline.will_do {
            self.verdict = Advised::Prompt;
            self.reasons.insert(0, because);
        } else {
            self.reasons.push(because);
        }
        self.measured = Some(measured);
        self
    }
}

/// Reads a task's logs and advises. `base`: its folder, for its tokenizer; without one nothing is said of the prompt's tokens.
pub async fn advise(ledger: &Ledger, task: &Task, base: Option<&Path>) -> Result<Advice, Error> {
    let exchanges = ledger.exchanges(&shelf::of(task)).await?;
    let feedback = trust::feedback(ledger, &FeedbackQuery::default()).await?;
    let champion = ledger.stages(&task.name).await?.champion_name(&task.name);
    let (mut figures, failed) = figures::count(task, &champion, &exchanges, &feedback);
    figures.usable = shelf::build(task, &exchanges, &feedback).len() as u64;
    let mut counted = || {
        let Some(base) = base else { return Ok(()) };
        let encoder = Encoder::from_folder(base, Shape::of(base)?.context)?;
        figures::tokens(&mut figures, task, &encoder, &exchanges)
    };
    let unread = counted().err().map(|error: Error| error.to_string());
    let (verdict, reasons) = verdict(&task.retrain, &figures);
    let gap = gap::clusters(&exchanges, &failed);
    Ok(Advice {
        verdict,
        reasons,
        gap,
        unread,
        measured: None,
    })
}

/// The advice that figures give, and all that it was weighed by.
pub(crate) fn verdict(policy: &RetrainPolicy, f: &Figures) -> (Advised, Vec<Because>) {
    let because = |what: &str, figure: f64, wanted: f64| Because {
        what: what.to_owned(),
        figure,
        wanted,
    };
    let share = |part: u64, all: u64| part as f64 / all.max(1) as f64;
    let who = &f.champion;
    let usable = because(
        "usable examples (corrected, or rated well), at least",
        f.usable as f64,
        policy.min_examples as f64,
    );
    let rated = because(
        &format!("answers of {who} that were rated or corrected, at least"),
        f.rated as f64,
        LEAST_RATINGS as f64,
    );
    let discontent = because(
        &format!(
            "share of them rated low or corrected, above which {who} falls short (95 % lower limit)"
        ),
        lower_limit(f.discontent, f.rated, CONFIDENCE),
        DISCONTENT,
    );
    let broken = because(
        &format!(
            "share of {who}'s answers that break the format, above which it falls short (95 % lower limit)"
        ),
        lower_limit(f.broken, f.checked, CONFIDENCE),
        BROKEN,
    );
    let news = because(
        "share of corrections with words or figures that were not to be known from the conversation, above which knowledge is missing",
        share(f.news, f.corrections),
        NEWS,
    );
    let saving = f.saving.map(|saving| {
        because(
            "share of an exchange's tokens that learning the prompt would save, at least, if that alone is the reason",
            saving,
            SAVING,
        )
    });
    let changes = f.prompt_changes.map(|changes| {
        because(
            "changes of the prompt in 90 days, at most",
            changes as f64,
            CHANGES as f64,
        )
    });

    let falls_short = discontent.figure > DISCONTENT || broken.figure > BROKEN;
    let fine = f.rated >= LEAST_RATINGS
        && upper_limit(f.discontent, f.rated, CONFIDENCE) <= 2.0 * DISCONTENT;
    let saves = saving
        .as_ref()
        .is_some_and(|saving| saving.figure >= SAVING);
    let is_prompted = f.is_baseline;
    let unsettled = f.prompt_changes.is_some_and(|changes| changes > CHANGES);
    let unknowing = f.corrections >= LEAST_RATINGS / 2 && share(f.news, f.corrections) > NEWS;
    let enough = f.usable >= policy.min_examples as u64;

    let (verdict, first): (Advised, Vec<&Because>) = if f.rated < LEAST_RATINGS {
        (Advised::Collect, vec![&rated])
    } else if !(falls_short || saves && is_prompted) {
        match (fine, is_prompted) {
            (false, _) => (Advised::Collect, vec![&discontent, &rated]),
            (true, true) => (Advised::Prompt, vec![&discontent, &broken]),
            (true, false) => (Advised::Wait, vec![&discontent, &broken]),
        }
    } else if unsettled {
        (Advised::Wait, changes.iter().collect())
    } else if falls_short && unknowing {
        (Advised::Retrieve, vec![&news])
    } else if !enough {
        (Advised::Collect, vec![&usable])
    } else {
        let mut why = vec![&usable];
        if discontent.figure > DISCONTENT {
            why.push(&discontent);
        }
        if broken.figure > BROKEN {
            why.push(&broken);
        }
        why.extend(saving.iter().filter(|_| saves && is_prompted));
        (Advised::FineTune, why)
    };
    let all = [Some(&usable), Some(&rated), Some(&discontent)]
        .into_iter()
        .chain([(f.checked > 0).then_some(&broken)])
        .chain([(f.corrections > 0).then_some(&news)])
        .chain([saving.as_ref(), changes.as_ref()])
        .flatten();
    let mut reasons: Vec<Because> = first.into_iter().cloned().collect();
    for one in all {
        if !reasons.contains(one) {
            reasons.push(one.clone());
        }
    }
    (verdict, reasons)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
