//! `retune dataset`: what a task's next adapter would be made of, to look at, take along, add to and compare.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use retune_ledger::Ledger;
use retune_retrain::dataset::Dataset;
use retune_retrain::{Reason, Taken, shelf, synth};
use retune_task::Task;
use retune_wire::TrainingLine;
use serde_json::json;

use super::ledger::Lines;
use crate::cli::Common;
use crate::{output, setup};

/// Rows of each reason that are named.
const FEW: usize = 3;

#[derive(clap::Subcommand)]
#[command(
    long_about = "Look at what a task's next adapter would be made of: corrections and well rated answers from the ledger, filtered and split as \
                  a run does it. Works beside a running server, and without one.",
    after_help = "Examples:\n  retune dataset check --task triage             how many rows there are, and what became of the others\n  \
                  retune dataset check examples.jsonl            is this a file that can be trained on?\n  \
                  retune dataset import --task triage examples.jsonl\n  retune dataset build --task triage --out ./dataset\n  \
                  retune dataset export --task triage --split train > train.jsonl\n  retune dataset diff --task triage triage@1 now\n\n\
                  More examples than people can write, by a stronger model, none of them without a person:\n  \
                  retune dataset synth --task triage --url https://api.openai.com/v1 --model gpt-4.1 --api-key-env OPENAI_API_KEY --count 200 --out new.jsonl\n  \
                  retune dataset review new.jsonl --rater ann\n  retune dataset import --task triage new.jsonl"
)]
pub(crate) enum Command {
    /// Write train.jsonl, development.jsonl, held_out.jsonl, and dataset.json with where each row came from.
    Build {
        #[arg(long)]
        task: String,
        /// A folder; files that are there are not written over.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
    /// Take OpenAI's chat JSONL as examples: each line's answer is an expert's, and right.
    ///
    /// A line that cannot be kept is named, and the others are kept; one that was kept before is left out. Exits 1 where a line was bad.
    /// Of what `retune dataset synth` wrote only rows that somebody accepted are taken, and stay known as synthetic; exits 1 where all wait.
    Import {
        #[arg(long)]
        task: String,
        /// Take what a model wrote and nobody has reviewed as well: raters are shown it at the console, and nothing learns from it before one of
        /// them says that it is right.
        #[arg(long)]
        for_review: bool,
        /// The file; - for standard input.
        file: PathBuf,
    },
    /// Print examples as OpenAI's chat JSONL, with the prompt that adapters are served with.
    Export {
        #[arg(long)]
        task: String,
        #[arg(long, value_enum, default_value = "all")]
        split: Split,
        /// Say of each row where it comes from, as {"from": {"request_id", "ts", "known_by"}} beside its messages; no longer what OpenAI takes.
        #[arg(long)]
        provenance: bool,
    },
    /// Say how many examples there are and what became of all other rows; or whether a file of OpenAI's JSONL can be trained on.
    Check {
        /// What the ledger has for this task.
        #[arg(long, required_unless_present = "file", conflicts_with = "file")]
        task: Option<String>,
        /// A file of conversations, or of preferences. Exits 1 where a line is bad.
        file: Option<PathBuf>,
    },
    #[command(about = "Have a stronger model write examples, into a file that a person reviews")]
    Synth(Box<super::synth::Args>),
    #[command(
        about = "Accept, edit or reject what a model wrote, one row after the other, on a terminal"
    )]
    Review(super::review::Args),
    /// Say which examples were added and removed between two datasets.
    Diff {
        #[arg(long)]
        task: String,
        /// An adapter, for what it was made of, as in triage@1; or now.
        before: String,
        /// The same.
        after: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Split {
    All,
    Train,
    Development,
    HeldOut,
}

pub(crate) async fn run(common: &Common, command: &Command) -> Result<ExitCode> {
    match command {
        Command::Check {
            file: Some(file), ..
        } => return check_file(common, file),
        Command::Synth(args) => return Box::pin(super::synth::run(common, args)).await,
        Command::Review(args) => return super::review::run(common, args),
        _ => {}
    }
    let config = setup::config(common)?;
    let name = match command {
        Command::Build { task, .. }
        | Command::Import { task, .. }
        | Command::Export { task, .. }
        | Command::Diff { task, .. } => task,
        Command::Check { task, .. } => task.as_ref().context("--task or a file")?,
        Command::Synth(_) | Command::Review(_) => return Ok(ExitCode::SUCCESS),
    };
    let task = setup::task(&config, name)?;
    let ledger = Ledger::open_briefly(&config.store).await?;
    match command {
        Command::Import {
            file, for_review, ..
        } => {
            let (task, for_review) = (Some(task.name.as_str()), *for_review);
            let of = Lines::Examples { for_review };
            return super::ledger::import(common, &config, &ledger, file, task, of).await;
        }
        Command::Build { out, .. } => {
            let read = shelf::read(&ledger, task).await?;
            let written = shelf::write(read, task, out)?;
            if common.json {
                output::json(&json!(written))?;
            } else {
                for file in &written.files {
                    let path = out.join(&file.name);
                    output::line(format_args!("{}: {} rows", path.display(), file.rows.len()))?;
                }
                output::line(format_args!("{}", out.join("dataset.json").display()))?;
            }
        }
        Command::Export {
            split, provenance, ..
        } => {
            let dataset = shelf::read(&ledger, task).await?.dataset;
            let mut out = BufWriter::new(std::io::stdout().lock());
            for row in of_split(&dataset, *split) {
                let mut line = shelf::conversation(task, row);
                if *provenance {
                    line["from"] = json!(shelf::Provenance::of(row));
                }
                writeln!(out, "{line}")?;
            }
            out.flush()?;
        }
        Command::Check { .. } => {
            let shelf::Read {
                dataset, coverage, ..
            } = shelf::read(&ledger, task).await?;
            if common.json {
                output::json(&json!({
                    "task": task.name,
                    "train": dataset.train.len(),
                    "development": dataset.development.len(),
                    "held_out": dataset.held_out.len(),
                    "wanted": task.retrain.min_examples,
                    "counts": dataset.counts,
                    "taken": dataset.taken,
                    "coverage": coverage,
                }))?;
            } else {
                if dataset.counts.exchanges == 0 {
                    output::problem(format_args!(
                        "no exchange of {} in the store {}",
                        task.name, config.store.url
                    ));
                }
                print(task, &dataset)?;
                for sentence in coverage.sentences() {
                    output::line(format_args!("\n{sentence}"))?;
                }
            }
        }
        // Run above.
        Command::Synth(_) | Command::Review(_) => {}
        Command::Diff { before, after, .. } => {
            let found = shelf::difference(&ledger, task, before, after).await?;
            if common.json {
                output::json(&json!(found))?;
            } else {
                let rows: Vec<Vec<String>> = found
                    .iter()
                    .map(|of| {
                        vec![
                            of.split.to_owned(),
                            of.before.to_string(),
                            of.after.to_string(),
                            of.added.len().to_string(),
                            of.removed.len().to_string(),
                        ]
                    })
                    .collect();
                output::table(&["split", before, after, "added", "removed"], &rows)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn of_split(dataset: &Dataset, split: Split) -> Vec<&retune_retrain::dataset::Row> {
    match split {
        Split::All => dataset.rows().collect(),
        Split::Train => dataset.train.iter().collect(),
        Split::Development => dataset.development.iter().collect(),
        Split::HeldOut => dataset.held_out.iter().collect(),
    }
}

fn print(task: &Task, dataset: &Dataset) -> Result<()> {
    output::line(format_args!(
        "{}: {} examples ({} corrections, {} rated well, {} synthetic): {} to train on, {} to choose the checkpoint by, {} held out; a run wants {}, \
         and {} held out or asked later to examine\n",
        task.name,
        dataset.len(),
        dataset.counts.kept_corrections,
        dataset.counts.kept_ratings,
        dataset.counts.kept_synthetic,
        dataset.train.len(),
        dataset.development.len(),
        dataset.held_out.len(),
        task.retrain.min_examples,
        task.retrain.min_pairs,
    ))?;
    let such: BTreeMap<String, String> = dataset
        .counts
        .curated
        .keys()
        .map(|reason| (reason.to_string(), such_as(&dataset.taken, *reason)))
        .collect();
    let mut rows: Vec<Vec<String>> = dataset
        .counts
        .left_out()
        .into_iter()
        .map(|(what, count)| {
            let such = such.get(&what).cloned().unwrap_or_default();
            vec![count.to_string(), what, such]
        })
        .collect();
    rows.retain(|row| row.first().is_some_and(|count| count != "0"));
    if rows.is_empty() {
        return output::line("Nothing was left out.");
    }
    output::table(&["rows", "left out, since", "such as"], &rows)
}

fn such_as(taken: &[Taken], reason: Reason) -> String {
    let of = taken.iter().filter(|one| one.reason == reason).take(FEW);
    let named = of.map(|one| match &one.like {
        Some(like) => format!("{} (like {like})", one.request_id),
        None => one.request_id.clone(),
    });
    named.collect::<Vec<_>>().join(", ")
}

/// A line of a file of examples as the ledger takes it, or why it is none: read as `check` reads it, so that what passes there is kept.
pub(super) fn example(line: &str) -> Result<String, String> {
    let conversation = match TrainingLine::read(line.trim().as_bytes()) {
        Ok(TrainingLine::Conversation(conversation)) => conversation,
        Ok(TrainingLine::Preference(_)) => {
            return Err("is a preference; an example is a conversation with one right answer, and a fine-tuning job of the method \"dpo\" takes \
                        preferences".to_owned());
        }
        Err(refusal) => return Err(refusal.to_string()),
    };
    if conversation.tools.is_some() {
        return Err(
            "has tools, which a task's examples have not; a fine-tuning job takes them".to_owned(),
        );
    }
    // The last answer is the example; earlier ones are what it follows.
    if conversation.learned.last() != Some(&true) {
        return Err("does not end with an answer to learn: expected the role 'assistant' last, without a weight of 0".to_owned());
    }
    Ok(json!({ "messages": conversation.messages }).to_string())
}

/// Every bad line is named.
fn check_file(common: &Common, file: &Path) -> Result<ExitCode> {
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let (mut conversations, mut preferences, mut bad) = (0_u64, 0_u64, 0_u64);
    let mut synthetic = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        match std::str::from_utf8(line).ok().and_then(synth::Row::read) {
            None => {}
            Some(read) => {
                match read {
                    Ok(row) => {
                        conversations += 1;
                        synthetic.push(row);
                    }
                    Err(what) => {
                        bad += 1;
                        output::problem(format_args!("{}:{}: {what}", file.display(), index + 1));
                    }
                }
                continue;
            }
        }
        match TrainingLine::read(line) {
            Ok(TrainingLine::Conversation(_)) => conversations += 1,
            Ok(TrainingLine::Preference(_)) => preferences += 1,
            Err(refusal) => {
                bad += 1;
                output::problem(format_args!("{}:{}: {refusal}", file.display(), index + 1));
            }
        }
    }
    let reviewed = synth::Progress::of(&synthetic);
    if common.json {
        let mut found = json!({
            "conversations": conversations,
            "preferences": preferences,
            "bad": bad,
        });
        if !synthetic.is_empty() {
            found["synthetic"] = json!(reviewed);
        }
        output::json(&found)?;
    } else {
        output::line(format_args!(
            "{}: {conversations} conversations, {preferences} preferences, {bad} bad lines{}",
            file.display(),
            super::review::told(&reviewed)
        ))?;
    }
    Ok(match bad {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
