//! What a run leaves behind: every figure of it, for programs (JSON) and for people (Markdown, and a page of HTML).

mod lineage;
mod money;
mod page;
pub(crate) mod parts;
mod plot;
mod samples;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

pub use lineage::Lineage;
pub use samples::Sample;
use samples::samples;

use crate::Error;
use crate::cost::{Corrections, Cost};
use crate::coverage::Coverage;
use crate::curate::Taken;
use crate::dataset::Counts;
use crate::examine::Voted;
use crate::judge::report::Judging;
use crate::pace::Pace;
use crate::preferences::PreferenceCounts;
use crate::prompted::Prompted;
use crate::regression::Regression;
use crate::slices::Slice;
use crate::verdict::{Figures, Verdict};

/// Examples of each vote that a report shows.
pub(crate) const SAMPLES: usize = 10;
/// Rows of each reason not to learn from them that a report names.
const FEW: usize = 5;

/// One run, from dataset to promotion. What did not happen is null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub run_id: String,
    pub task: String,
    pub started_by: String,
    pub started: DateTime<Utc>,
    pub finished: DateTime<Utc>,
    /// The candidate, `triage@1`.
    pub adapter: Option<String>,
    pub digest: Option<String>,
    /// What it was compared with: the champion of that time.
    pub baseline: String,
    /// Versions of the tables that the dataset was read from.
    pub exchanges_version: u64,
    pub feedback_version: u64,
    pub dataset: Counts,
    /// Of the baseline's answers, in the traffic that the dataset was read from.
    #[serde(default)]
    pub corrections: Corrections,
    /// Some of the usable rows that were not learned from.
    #[serde(default)]
    pub taken: Vec<Taken>,
    /// What users ask more, or less, than the dataset has it.
    #[serde(default)]
    pub coverage: Coverage,
    pub examples_train: u64,
    pub examples_development: u64,
    pub examples_held_out: u64,
    /// Usable examples that were longer than the model's context.
    pub examples_too_long: u64,
    /// Held-out loss per supervised token, before step 1 and at the chosen checkpoint.
    pub loss_first: Option<f64>,
    pub loss_last: Option<f64>,
    pub chosen_epoch: Option<u64>,
    pub training_steps: Option<u64>,
    pub training_tokens: Option<u64>,
    pub training_seconds: Option<f64>,
    pub curve: Vec<Curve>,
    /// The small experiment that chose the learning rate; the last is the chosen one on half as many examples.
    #[serde(default)]
    pub trials: Vec<Trial>,
    /// What was learned of preferences after the examples.
    #[serde(default)]
    pub preferences: Option<PreferenceTraining>,
    pub examples_examined: Option<u64>,
    pub examination_seconds: Option<f64>,
    pub figures: Option<Figures>,
    /// The figures by parts of the traffic.
    #[serde(default)]
    pub slices: Vec<Slice>,
    /// None where the policy has no suite, or nothing came to be examined.
    #[serde(default)]
    pub regression: Option<Regression>,
    /// Beside the base with the full prompt; None where that is the champion, and where people judged.
    #[serde(default)]
    pub prompted: Option<Prompted>,
    /// How long answers took.
    #[serde(default)]
    pub pace: Option<Pace>,
    /// What it came from, beside the tables' versions.
    #[serde(default)]
    pub lineage: Option<Lineage>,
    /// Wins and losses; ties are not counted.
    pub votes: Option<u64>,
    pub wins: Option<u64>,
    pub ties: Option<u64>,
    pub p_value: Option<f64>,
    pub judge: Option<String>,
    /// How it judged; None where the known answer did.
    #[serde(default)]
    pub judging: Option<Judging>,
    /// Mean tokens of an examined prompt, as each is served.
    pub prompt_tokens: Option<f64>,
    pub prompt_tokens_baseline: Option<f64>,
    /// None where nothing was examined. Elsewhere in memory, since a run's steps hand the report on.
    #[serde(default)]
    pub cost: Option<Box<Cost>>,
    pub verdict: Verdict,
    pub reasons: Vec<String>,
    pub promoted: bool,
    pub won: Vec<Sample>,
    pub lost: Vec<Sample>,
    /// Every examined prompt's vote, in the order of the list that was fixed before the first.
    pub examined: Vec<Voted>,
    /// Samples and votes that were taken out, since who asked was forgotten, or it was too long ago; the figures count them.
    #[serde(default)]
    pub forgotten: u64,
}

/// A point of the loss curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    pub step: u64,
    pub epoch: u64,
    /// Of the epoch; there is none before the first step.
    pub train_loss: Option<f64>,
    pub held_out_loss: Option<f64>,
    /// What the epoch was chosen by.
    #[serde(default)]
    pub development_loss: Option<f64>,
}

/// One epoch on a fraction of the examples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    pub examples: u64,
    pub learning_rate: f64,
    /// None: it diverged.
    pub development_loss: Option<f64>,
}

/// Learning from pairs of answers, after the examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreferenceTraining {
    pub counts: PreferenceCounts,
    pub pairs_train: u64,
    pub pairs_development: u64,
    pub pairs_held_out: u64,
    /// Pairs of which an answer was longer than the model's context.
    pub pairs_too_long: u64,
    /// Why nothing was learned of them.
    pub skipped: Option<String>,
    /// Whether the adapter has it: only where the development loss fell.
    pub kept: bool,
    /// Held-out loss of a pair, with its share of the preferred answer's own.
    pub loss_first: Option<f64>,
    pub loss_last: Option<f64>,
    pub training_steps: Option<u64>,
    pub training_seconds: Option<f64>,
}

impl Report {
    /// Makes the pages for people anew from a report's file for programs, beside it.
    ///
    /// # Errors
    /// The file that cannot be read or written, or is no report.
    pub fn write_anew(path: &Path) -> Result<(), Error> {
        let text = std::fs::read_to_string(path).map_err(Error::file(path))?;
        let report: Self = serde_json::from_str(&text).map_err(Error::Report)?;
        report.write_pages(path)
    }

    /// `<folder>/<run id>.json`, `.md` and `.html`.
    pub(crate) fn write_files(&self, folder: &Path) -> Result<(), Error> {
        std::fs::create_dir_all(folder).map_err(Error::file(folder))?;
        let json = serde_json::to_string_pretty(self).map_err(Error::Report)?;
        let path = folder.join(format!("{}.json", self.run_id));
        write_whole(&path, &json)?;
        self.write_pages(&path)
    }

    fn write_pages(&self, path: &Path) -> Result<(), Error> {
        write_whole(&path.with_extension("md"), &self.markdown())?;
        write_whole(&path.with_extension("html"), &self.html()?)
    }

    /// The exchanges that it shows.
    pub(crate) fn shown(&self) -> impl Iterator<Item = &str> {
        let samples = self.won.iter().chain(&self.lost).map(|s| &s.request_id);
        let votes = self.examined.iter().map(|vote| &vote.request_id);
        let taken = self.taken.iter();
        let taken = taken.flat_map(|one| std::iter::once(&one.request_id).chain(&one.like));
        samples.chain(votes).chain(taken).map(String::as_str)
    }

    /// Shows some exchanges no more.
    pub(crate) fn leave_out(&mut self, exchanges: &HashSet<String>) {
        let count = |it: &Self| it.won.len() + it.lost.len() + it.examined.len();
        let before = count(self);
        self.won
            .retain(|sample| !exchanges.contains(&sample.request_id));
        self.lost
            .retain(|sample| !exchanges.contains(&sample.request_id));
        self.examined
            .retain(|vote| !exchanges.contains(&vote.request_id));
        self.taken.retain(|one| {
            let is_gone = |id: &String| exchanges.contains(id);
            !is_gone(&one.request_id) && !one.like.as_ref().is_some_and(is_gone)
        });
        self.forgotten += (before - count(self)) as u64;
    }

    /// For people: a page of Markdown.
    pub fn markdown(&self) -> String {
        let mut page = String::new();
        // Writing into a String cannot fail.
        let _ = self.write(&mut page);
        page
    }

    fn write(&self, page: &mut String) -> std::fmt::Result {
        let adapter = self.adapter.as_deref().unwrap_or("no candidate");
        writeln!(
            page,
            "# Run {}: {} -> {}\n",
            self.run_id, adapter, self.verdict
        )?;
        let outcome = if self.promoted {
            "promoted"
        } else {
            "not promoted"
        };
        writeln!(
            page,
            "Task `{}`, started by `{}` at {}, finished at {}; {outcome}.\n",
            self.task,
            self.started_by,
            self.started.format("%F %T UTC"),
            self.finished.format("%F %T UTC"),
        )?;
        for reason in &self.reasons {
            writeln!(page, "- {reason}")?;
        }
        writeln!(page, "\n## Dataset\n")?;
        writeln!(
            page,
            "| exchanges of the task | {} |\n|---|---|",
            self.dataset.exchanges
        )?;
        for (what, rows) in self.dataset.left_out() {
            let less = if rows > 0 { "-" } else { "" };
            writeln!(page, "| {what} | {less}{rows} |")?;
        }
        writeln!(
            page,
            "| kept: corrections | {} |",
            self.dataset.kept_corrections
        )?;
        writeln!(
            page,
            "| kept: rated answers | {} |",
            self.dataset.kept_ratings
        )?;
        if self.dataset.kept_synthetic > 0 {
            writeln!(
                page,
                "| kept: synthetic, accepted by a person | {} |",
                self.dataset.kept_synthetic
            )?;
        }
        self.write_taken(page)?;
        for sentence in self.coverage.sentences() {
            writeln!(page, "\n{sentence}")?;
        }
        writeln!(
            page,
            "\nTrained on {}, checkpoint chosen on {}, held out {}; {} too long for the model. Table versions: exchanges {}, feedback {}.",
            self.examples_train,
            self.examples_development,
            self.examples_held_out,
            self.examples_too_long,
            self.exchanges_version,
            self.feedback_version
        )?;
        if let (Some(first), Some(last)) = (self.loss_first, self.loss_last) {
            writeln!(
                page,
                "\n## Training\n\nHeld-out loss {first:.4} -> {last:.4}, at epoch {}.\n",
                self.chosen_epoch.unwrap_or_default()
            )?;
            writeln!(
                page,
                "| step | epoch | training loss | held-out loss |\n|---|---|---|---|"
            )?;
            let shown =
                |loss: Option<f64>| loss.map_or_else(String::new, |loss| format!("{loss:.4}"));
            for point in &self.curve {
                let (train, held_out) = (shown(point.train_loss), shown(point.held_out_loss));
                writeln!(
                    page,
                    "| {} | {} | {train} | {held_out} |",
                    point.step, point.epoch
                )?;
            }
        }
        self.write_trials(page)?;
        self.write_preferences(page)?;
        if let Some(figures) = &self.figures {
            writeln!(
                page,
                "\n## Examination\n\nJudge: {}.\n\n| | `{adapter}` | `{}` |\n|---|---|---|",
                self.judge.as_deref().unwrap_or("none"),
                self.baseline
            )?;
            writeln!(
                page,
                "| better answers | {} | {} |",
                figures.wins, figures.losses
            )?;
            for (what, paired) in [
                ("keeps the format", figures.format),
                ("about the known length", figures.length),
            ] {
                writeln!(
                    page,
                    "| {what} | {} of {} | {} of {} |",
                    paired.candidate, paired.prompts, paired.baseline, paired.prompts
                )?;
            }
            if let Some(cost) = &self.cost {
                let (now, then) = (cost.candidate_tokens, cost.baseline_tokens);
                writeln!(
                    page,
                    "| prompt tokens, mean | {:.1} | {:.1} |",
                    now.prompt, then.prompt
                )?;
                writeln!(
                    page,
                    "| answer tokens, mean | {:.1} | {:.1} |",
                    now.completion, then.completion
                )?;
                self.write_cost(page, cost)?;
            }
            self.write_parts(page)?;
            samples(page, "Won", &self.won)?;
            samples(page, "Lost", &self.lost)?;
            if self.forgotten > 0 {
                writeln!(
                    page,
                    "\nForgotten since, and not shown: {} samples and votes.",
                    self.forgotten
                )?;
            }
        }
        Ok(())
    }
}

impl Report {
    fn write_taken(&self, page: &mut String) -> std::fmt::Result {
        for reason in self.dataset.curated.keys() {
            let named = self.taken.iter().filter(|one| one.reason == *reason);
            let named = named.map(|one| match &one.like {
                Some(like) => format!("`{}` like `{like}`", one.request_id),
                None => format!("`{}`", one.request_id),
            });
            let named: Vec<String> = named.collect();
            if !named.is_empty() {
                writeln!(page, "\nSuch as, {}: {}.", reason, named.join(", "))?;
            }
        }
        Ok(())
    }

    fn write_preferences(&self, page: &mut String) -> std::fmt::Result {
        let Some(of) = &self.preferences else {
            return Ok(());
        };
        writeln!(
            page,
            "\n### Preferences\n\n{} corrections and {} preferences: {} pairs of answers to train on, {} to choose by, {} held out; {} too long for the model.",
            of.counts.kept_corrections,
            of.counts.kept_preferences,
            of.pairs_train,
            of.pairs_development,
            of.pairs_held_out,
            of.pairs_too_long
        )?;
        for (reason, n) in &of.counts.dropped {
            writeln!(page, "- {n} left out: {reason}")?;
        }
        if let Some(why) = &of.skipped {
            return writeln!(page, "\nNothing was learned of them: {why}.");
        }
        if let (Some(first), Some(last)) = (of.loss_first, of.loss_last) {
            writeln!(page, "\nHeld-out loss of a pair {first:.4} -> {last:.4}.")?;
        }
        match of.kept {
            true => Ok(()),
            false => writeln!(
                page,
                "\nIt did not help on the development pairs, and the adapter is without it."
            ),
        }
    }

    fn write_trials(&self, page: &mut String) -> std::fmt::Result {
        let Some((last, others)) = self.trials.split_last() else {
            return Ok(());
        };
        writeln!(
            page,
            "\n### One epoch on a fraction first\n\n| examples | learning rate | development loss |\n|---|---|---|"
        )?;
        for trial in &self.trials {
            let loss = trial.development_loss;
            let loss = loss.map_or_else(|| "diverged".to_owned(), |loss| format!("{loss:.4}"));
            writeln!(
                page,
                "| {} | {:.2e} | {loss} |",
                trial.examples, trial.learning_rate
            )?;
        }
        let same = others
            .iter()
            .find(|trial| trial.learning_rate == last.learning_rate);
        if let Some((less, more)) =
            same.and_then(|same| last.development_loss.zip(same.development_loss))
        {
            writeln!(
                page,
                "\nTwice as many examples: {:+.4} of loss. As long as that is well below 0, more of them help.",
                more - less
            )?;
        }
        Ok(())
    }
}

/// A few rows of each reason.
pub(crate) fn some_of_each(taken: &[Taken]) -> Vec<Taken> {
    let mut counts = BTreeMap::new();
    let few = taken.iter().filter(|one| {
        let count: &mut usize = counts.entry(one.reason).or_default();
        *count += 1;
        *count <= FEW
    });
    few.cloned().collect()
}

/// A file that is there whole or not at all.
fn write_whole(path: &Path, text: &str) -> Result<(), Error> {
    let partial = path.with_added_extension("partial");
    std::fs::write(&partial, text).map_err(Error::file(&partial))?;
    std::fs::rename(&partial, path).map_err(Error::file(path))
}

#[cfg(test)]
mod tests;
