//! Training elsewhere: by another program, or by another server.
//!
//! Both get the same: conversations as OpenAI's chat JSONL, the last message of each to be learned, and the task's settings. Both give
//! PEFT's two files back. What they were given stays in a folder until then, so that a run that is taken up again finds its training
//! where it was; with other examples than before it begins anew.

mod command;
mod openai;

use std::path::{Path, PathBuf};

use retune_task::OtherTrainer;
use retune_trainer::{LoraSettings, Progress};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::{Error, Limits, staging, train};

const TRAIN: &str = "train.jsonl";
const DEVELOPMENT: &str = "development.jsonl";
const CONFIG: &str = "config.json";

/// What is to be trained.
pub(crate) struct Order {
    pub(crate) run_id: String,
    pub(crate) task: String,
    /// The base's folder.
    pub(crate) base: PathBuf,
    /// What ends an answer.
    pub(crate) end_of_turn: String,
    /// Tokens.
    pub(crate) max_length: usize,
    pub(crate) settings: LoraSettings,
    /// Lines of chat JSONL.
    pub(crate) train: Vec<Value>,
    pub(crate) development: Vec<Value>,
}

/// A training under way. Dropping it lets it end, or, on another server, go on until the run is taken up again.
pub(crate) struct Training {
    progress: mpsc::UnboundedReceiver<Progress>,
    outcome: JoinHandle<Result<PathBuf, Error>>,
}

/// Hands an order over in `folder`.
pub(crate) fn start(
    trainer: &OtherTrainer,
    order: &Order,
    folder: &Path,
    limits: &Limits,
) -> Result<Training, Error> {
    hand_over(order, folder)?;
    let (sender, progress) = mpsc::unbounded_channel();
    let folder = folder.to_owned();
    let outcome = match trainer {
        OtherTrainer::Command(command) => {
            tokio::spawn(command::train(command.clone(), folder, sender))
        }
        OtherTrainer::OpenAi(server) => {
            let job = openai::Job::of(order, server, limits, folder)?;
            tokio::spawn(job.train(sender))
        }
    };
    Ok(Training { progress, outcome })
}

impl Training {
    /// The next step's progress; `None` once the training is over.
    pub(crate) async fn next(&mut self) -> Option<Progress> {
        self.progress.recv().await
    }

    /// The folder with PEFT's two files.
    pub(crate) async fn finish(mut self) -> Result<PathBuf, Error> {
        (&mut self.outcome).await.map_err(|_| Error::Stopped)?
    }
}

impl Drop for Training {
    fn drop(&mut self) {
        self.outcome.abort();
    }
}

/// Writes what is handed over. What an earlier attempt left stays where it was given the same.
fn hand_over(order: &Order, folder: &Path) -> Result<(), Error> {
    let lines = |values: &[Value]| -> String { values.iter().map(|v| format!("{v}\n")).collect() };
    let files = [
        (TRAIN, lines(&order.train)),
        (DEVELOPMENT, lines(&order.development)),
        (CONFIG, format!("{:#}\n", config(order))),
    ];
    let is_there = |(name, text): &(&str, String)| {
        std::fs::read(folder.join(name)).is_ok_and(|found| found == text.as_bytes())
    };
    if files.iter().all(is_there) {
        return Ok(());
    }
    staging::remove_folder(folder)?;
    std::fs::create_dir_all(folder).map_err(Error::file(folder))?;
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(Error::file(path))?;
    }
    Ok(())
}

fn config(order: &Order) -> Value {
    let settings = &order.settings;
    json!({
        "format_version": 1,
        "run_id": order.run_id,
        "task": order.task,
        "base": order.base,
        "end_of_turn": order.end_of_turn,
        "max_length": order.max_length,
        "seed": settings.seed,
        "lora": train::shown(settings),
    })
}

/// A step's figures as others tell them; what they do not tell is not known.
#[derive(Deserialize)]
struct Told {
    step: usize,
    steps: usize,
    #[serde(default)]
    epoch: f64,
    train_loss: Option<f64>,
    development_loss: Option<f64>,
    learning_rate: Option<f64>,
    gradient_norm: Option<f64>,
}

impl From<Told> for Progress {
    fn from(told: Told) -> Self {
        Self {
            step: told.step,
            steps: told.steps,
            epoch: told.epoch.max(0.0) as usize,
            ends_epoch: told.development_loss.is_some(),
            train_loss: told.train_loss.unwrap_or(f64::NAN),
            development_loss: told.development_loss,
            held_out_loss: None,
            gradient_norm: told.gradient_norm.unwrap_or(f64::NAN),
            learning_rate: told.learning_rate.unwrap_or(f64::NAN),
            tokens: 0,
            is_past: false,
        }
    }
}

#[cfg(test)]
mod tests;
