//! Retraining: from what users rated and corrected to the next adapter, with proof that it is better.
//!
//! A run goes dataset -> training -> examination -> verdict -> promotion. What decides is pure (`dataset`, `judge`, `verdict`) and
//! is tested without a model or a server; the edges are thin: `train` calls the trainer, `server` is the one place that speaks
//! HTTP, `run` keeps a row of the `runs` table at each state, `watch` starts runs that alarms ask for. A candidate is examined
//! through the running server, as an app would ask it: what is examined is what will be served. A fine-tuning job (`job`) is training
//! alone: somebody brought the file, and judges what comes of it.

pub mod advise;
mod api;
mod book;
mod canary;
mod candidate;
mod conclusion;
mod cost;
pub mod coverage;
mod curate;
pub mod dataset;
mod elsewhere;
mod encode;
mod error;
mod examine;
mod experiment;
#[cfg(test)]
mod house;
mod job;
pub mod judge;
mod jury;
#[cfg(test)]
mod masks;
mod memory;
mod next;
mod overfit;
mod pace;
mod people;
mod plan;
mod prefer;
pub mod preferences;
mod probes;
mod promote;
mod prompted;
mod regression;
mod report;
mod run;
mod said;
mod server;
mod shape;
pub mod shelf;
mod slices;
mod soon;
mod stages;
mod staging;
pub mod synth;
#[cfg(test)]
mod testing;
mod text;
mod train;
mod trust;
pub mod verdict;
mod watch;
mod words;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use advise::{Advice, Advised, Because, Cluster, advise};
pub use cost::{Corrections, Cost, Kinds, Tokens};
pub use curate::{Reason, Taken};
pub use encode::{Encoded, Encoder};
pub use error::Error;
pub use job::run_job;
pub use memory::goes_first;
pub use pace::Pace;
pub use plan::{Planned, plan};
pub use prompted::Prompted;
pub use regression::{Lost, Regression};
pub use report::{Curve, Lineage, Report, Sample};
pub use retune_trainer::Progress;
pub use run::{Event, run, run_id};
pub use slices::Slice;
pub use soon::Held;
pub use watch::{Launched, watch};

/// Whether Retune's own trainer can train on a base: not on GGUF weights, nor on a family that it does not know.
///
/// # Errors
/// The file that keeps it from being trained on.
pub fn trainable(base: &Path) -> Result<(), Error> {
    if let Some(path) = retune_task::ggufs(base).into_iter().next() {
        return Err(Error::Base {
            path,
            what: "nothing can be trained on the weights of a GGUF file; name the folder with the same model's safetensors files in \
                   engine.base"
                .to_owned(),
        });
    }
    // Where other servers hold it, the files may come later than this process.
    if base.join("config.json").exists() {
        retune_trainer::ModelConfig::load(base)?;
    }
    Ok(())
}

/// What a run needs to know of the installation.
#[derive(Clone)]
pub struct Options {
    pub config: Arc<retune_task::Config>,
    /// The base's folder, resolved.
    pub base: PathBuf,
    pub ledger: retune_ledger::Ledger,
    /// The running server, `http://127.0.0.1:8080`; candidates are examined and promoted there.
    pub server: String,
    /// What asks it: with the key and the trust that this installation needs.
    pub http: reqwest::Client,
    pub limits: Limits,
}

impl Options {
    pub fn new(
        config: Arc<retune_task::Config>,
        base: PathBuf,
        ledger: retune_ledger::Ledger,
        server: String,
        http: reqwest::Client,
    ) -> Self {
        Self {
            config,
            base,
            ledger,
            server,
            http,
            limits: Limits::default(),
        }
    }

    pub(crate) fn task(&self, name: &str) -> Result<&retune_task::Task, Error> {
        self.config
            .tasks
            .iter()
            .find(|task| task.name == name)
            .map(Arc::as_ref)
            .ok_or_else(|| Error::UnknownTask {
                task: name.to_owned(),
                known: self
                    .config
                    .tasks
                    .iter()
                    .map(|task| task.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }
}

/// How long a run waits, and how hard it tries.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For prompts with a known answer to arrive, where the held-out rows are fewer than `min_pairs`; then the verdict is `wait`.
    pub pairs: Duration,
    /// Between two looks into the ledger.
    pub poll: Duration,
    /// First pause after a 429 or a 503, doubled each time up to thirty times this; the server's `retry-after` goes first.
    pub retry: Duration,
    /// First pause after a run whose process failed, doubled each time.
    pub relaunch: Duration,
    /// One answer of the server.
    pub answer: Duration,
    /// Between two checkpoints of a training, beside those at the ends of epochs.
    pub checkpoint: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pairs: Duration::from_secs(30 * 60),
            poll: Duration::from_secs(2),
            retry: Duration::from_millis(200),
            relaunch: Duration::from_secs(10),
            answer: Duration::from_secs(300),
            checkpoint: Duration::from_secs(60),
        }
    }
}

/// What a process is started for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launch {
    Run(Start),
    /// A fine-tuning job, by its id.
    Job(String),
}

/// What a run is for: one task, and what asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub task: String,
    pub started_by: StartedBy,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartedBy {
    /// An alarm's id: the same alarm is the same run, whoever starts it.
    Trigger(String),
    /// Somebody asked; each time is a run of its own.
    Person,
    /// Somebody asked before: the run with that id, and no other.
    Before(String),
    /// The time that a schedule named.
    Schedule(chrono::DateTime<chrono::Utc>),
}

impl StartedBy {
    /// The reason that a run's row names.
    pub(crate) fn read(shown: &str) -> Option<Self> {
        if let Some(alarm) = shown.strip_prefix("trigger:") {
            return Some(Self::Trigger(alarm.to_owned()));
        }
        if let Some(time) = shown.strip_prefix("schedule:") {
            return Some(Self::Schedule(time.parse().ok()?));
        }
        (shown == "person").then_some(Self::Person)
    }
}

impl std::fmt::Display for StartedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Trigger(alarm) => write!(f, "trigger:{alarm}"),
            Self::Person | Self::Before(_) => f.write_str("person"),
            Self::Schedule(time) => write!(
                f,
                "schedule:{}",
                time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
            ),
        }
    }
}
