//! What a run leaves behind: every figure of it, for programs (JSON) and for people (Markdown).

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::dataset::Counts;
use crate::examine::Voted;
use crate::verdict::{Figures, Verdict};

/// Examples of each vote that a report shows.
pub(crate) const SAMPLES: usize = 10;

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
    pub examples_examined: Option<u64>,
    pub examination_seconds: Option<f64>,
    pub figures: Option<Figures>,
    /// Wins and losses; ties are not counted.
    pub votes: Option<u64>,
    pub wins: Option<u64>,
    pub ties: Option<u64>,
    pub p_value: Option<f64>,
    pub judge: Option<String>,
    /// Mean tokens of an examined prompt, as each is served.
    pub prompt_tokens: Option<f64>,
    pub prompt_tokens_baseline: Option<f64>,
    pub verdict: Verdict,
    pub reasons: Vec<String>,
    pub promoted: bool,
    pub won: Vec<Sample>,
    pub lost: Vec<Sample>,
    /// Every examined prompt's vote, in the order of the list that was fixed before the first.
    pub examined: Vec<Voted>,
}

/// A point of the loss curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    pub step: u64,
    pub epoch: u64,
    /// Of the epoch; there is none before the first step.
    pub train_loss: Option<f64>,
    pub held_out_loss: Option<f64>,
}

/// One examined prompt with both answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    pub request_id: String,
    /// The last user message.
    pub prompt: String,
    pub known: String,
    pub candidate: String,
    pub baseline: String,
}

impl Report {
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
        for (what, rows) in [
            ("not of users", self.dataset.not_user),
            ("failed", self.dataset.failed),
            ("kept without text", self.dataset.no_text),
            ("neither rated nor corrected", self.dataset.unrated),
            ("rated too low, not corrected", self.dataset.rated_low),
            ("without an answer", self.dataset.no_answer),
            (
                "older in the same conversation",
                self.dataset.older_in_conversation,
            ),
            ("same text as a newer one", self.dataset.same_text),
        ] {
            writeln!(page, "| {what} | -{rows} |")?;
        }
        for (reason, rows) in &self.dataset.format_invalid {
            writeln!(
                page,
                "| known answer breaks the format ({reason}) | -{rows} |"
            )?;
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
        if let Some(figures) = &self.figures {
            writeln!(
                page,
                "\n## Examination\n\n| | `{adapter}` | `{}` |\n|---|---|---|",
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
            if let (Some(candidate), Some(baseline)) =
                (self.prompt_tokens, self.prompt_tokens_baseline)
            {
                writeln!(
                    page,
                    "| prompt tokens, mean | {candidate:.1} | {baseline:.1} |"
                )?;
            }
            samples(page, "Won", &self.won)?;
            samples(page, "Lost", &self.lost)?;
        }
        Ok(())
    }
}

fn samples(page: &mut String, title: &str, samples: &[Sample]) -> std::fmt::Result {
    if samples.is_empty() {
        return Ok(());
    }
    writeln!(page, "\n### {title}")?;
    for sample in samples {
        writeln!(page)?;
        for (what, text) in [
            ("prompt", &sample.prompt),
            ("known", &sample.known),
            ("candidate", &sample.candidate),
            ("baseline", &sample.baseline),
        ] {
            // Indented text is literal in Markdown, whatever a user wrote.
            writeln!(
                page,
                "    {what:>9}: {}",
                text.replace('\n', "\n               ")
            )?;
        }
    }
    Ok(())
}
