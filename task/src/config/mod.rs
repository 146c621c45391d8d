//! The configuration: what can be set, with its defaults, and what is checked.
//!
//! One file, `retune.toml`, and the environment over it. Every problem is found in one go, each with its place.

mod cost;
mod engine;
mod judge;
mod load;
mod policy;
mod reader;
mod tasks;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::chat::ClientSystem;
use crate::format::Format;
use crate::redact::{Redaction, Sensitive};
use crate::schedule::Schedule;

pub use cost::Prices;
pub use engine::{EngineKind, Upstream, UpstreamServer};
pub use judge::{JudgeModel, JudgePolicy, JudgedBy};
pub use policy::{CanaryPolicy, Hours, RegressionSuite};

/// All that can be configured.
#[derive(Debug)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[engine]`
    pub engine: Engine,
    /// `[store]`
    pub store: Store,
    /// `[monitor]`
    pub monitor: Monitor,
    /// `[training]`
    pub training: Training,
    /// `[cost]`
    pub cost: Prices,
    /// `[[task]]`, in the file's order.
    pub tasks: Vec<Arc<Task>>,
    /// Where it came from.
    pub source: ConfigSource,
}

/// Where a configuration came from; relative paths in it are relative to its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigSource {
    /// The one inside the program.
    BuiltIn,
    /// A file.
    File(PathBuf),
}

impl ConfigSource {
    /// The folder that relative paths start from: the file's, or the current one.
    pub fn folder(&self) -> &Path {
        match self {
            ConfigSource::BuiltIn => Path::new(""),
            ConfigSource::File(path) => path.parent().unwrap_or(Path::new("")),
        }
    }
}

impl fmt::Display for ConfigSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigSource::BuiltIn => f.write_str("the built-in configuration"),
            ConfigSource::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// `[server]`
#[derive(Debug, Clone)]
pub struct Server {
    /// Where the API listens. Anything but loopback takes a key in the store, which the server's start looks for.
    pub listen: SocketAddr,
    /// Where /metrics and the probes listen, if not on `listen`.
    pub ops_listen: Option<SocketAddr>,
    /// What `listen` is encrypted with; not, where it is not set.
    pub tls: Option<Tls>,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Most messages of one request.
    pub max_messages: usize,
    /// How long a client may keep the server waiting for its next piece.
    pub client_timeout: Duration,
    /// How long running requests may go on once the server is told to stop.
    pub grace: Duration,
}

/// `tls_cert` and `tls_key` of `[server]`: files in PEM form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The server's certificate first, then those that vouch for it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// `[engine]`
#[derive(Debug, Clone)]
pub struct Engine {
    /// What generates.
    pub kind: EngineKind,
    /// The base's folder, relative to the configuration's; `models/pocket` is inside the program. Servers elsewhere need no files
    /// here: then it may be a name alone.
    pub base: String,
    /// Adapters loaded at once.
    pub max_loaded: usize,
    /// Memory that they may take together, in MiB.
    pub adapters_memory_mib: Option<u64>,
    /// Requests that generate at once.
    pub max_running: usize,
    /// Requests that wait for a place, before further ones get a 429.
    pub max_queue: usize,
    /// The longest that a request may take, its time in the queue included.
    pub deadline: Duration,
}

/// `[store]`
#[derive(Debug, Clone)]
pub struct Store {
    /// `file:` and a folder, made absolute, or a bucket's URL.
    pub url: String,
    /// The folder on this machine for logs and files of a store in a bucket, made absolute.
    pub local: String,
    /// Rows in the log after which their table is appended to.
    pub append_rows: usize,
    /// Bytes in the log after which their table is appended to.
    pub append_bytes: usize,
    /// Age of the log's oldest row after which its table is appended to, in seconds.
    pub append_seconds: f64,
    /// How long the log's rows may be in the operating system's memory alone, in seconds; 0: not at all.
    pub fsync_seconds: f64,
    /// Bytes that may wait in the log.
    pub log_bytes: u64,
    /// What becomes of requests whose row could not be kept.
    pub on_log_failure: OnLogFailure,
    /// Seconds between two looks for small files that are worth merging; 0: none.
    pub compact_seconds: f64,
    /// Days that exchanges and what is said of them are kept; none: for ever.
    pub keep_days: Option<u64>,
    /// `[query] ballista`: the scheduler of a Ballista cluster that answers `retune ledger sql`.
    pub query_ballista: Option<String>,
    /// `[query] memory_bytes`: what questions may take together; beyond it they use the disk.
    pub query_memory_bytes: usize,
}

/// What becomes of a request whose row could not be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLogFailure {
    /// It is answered, and the row is dropped and counted.
    Drop,
    /// It is refused.
    Reject,
}

/// `[training]`: what a process that trains may take.
#[derive(Debug, Clone)]
pub struct Training {
    /// Memory at most, in bytes; none: all that there is.
    pub memory_bytes: Option<u64>,
    /// Its priority, as `nice` has it: 0 is everybody's, 19 the lowest.
    pub niceness: u8,
}

/// `[monitor]`
#[derive(Debug, Clone)]
pub struct Monitor {
    /// Where `retune monitor` shows its metrics; in `retune up` they are among the server's.
    pub listen: Option<SocketAddr>,
    /// False alarms expected a quarter, per adapter, all its streams together.
    pub false_alarms_per_quarter: f64,
    /// Exchanges expected a quarter.
    pub exchanges_per_quarter: u64,
    /// Exchanges that make a baseline's reference.
    pub reference_exchanges: usize,
    /// Added to the reference's failure rate before it counts as drifted.
    pub format_tolerance: f64,
    /// Seconds between passes.
    pub poll_seconds: f64,
    /// The folder of a model whose vectors of words say what prompts mean, as it is written; none: the base's.
    pub embeddings: Option<String>,
}

/// `[[task]]`: the one job that adapters are made for.
#[derive(Debug)]
pub struct Task {
    /// Its name, and the model's in the API.
    pub name: String,
    /// The full prompt's text, for the base.
    pub prompt: String,
    /// The prompt that adapters are trained and served with.
    pub adapter_prompt: String,
    /// What becomes of an app's own system message.
    pub client_system: ClientSystem,
    /// What every answer must look like.
    pub format: Option<Format>,
    /// What is done so that answers hold the format.
    pub enforce: Enforce,
    /// Share of constrained requests that are answered again without the constraint.
    pub probe_share: f64,
    /// Tokens an answer may have where the request doesn't say.
    pub max_tokens: usize,
    /// `[task.retrain]`
    pub retrain: RetrainPolicy,
    /// `[task.privacy]`
    pub privacy: Privacy,
}

impl Task {
    /// The task that a fine-tuning job's suffix becomes: without prompt and format, its apps say all themselves. The rest is as where
    /// nothing is configured.
    pub fn of_job(name: &str) -> Self {
        tasks::of_job(name)
    }
}

/// `[task.privacy]`: what of the apps' words is kept.
#[derive(Debug, Clone)]
pub struct Privacy {
    /// What is replaced before anything is written.
    pub redaction: Redaction,
    /// What becomes of prompts.
    pub prompts: Prompts,
    /// Share of conversations whose text is kept.
    pub text_share: f64,
}

impl Privacy {
    /// Whether everything is kept as it came.
    pub fn keeps_all(&self) -> bool {
        self.redaction.is_empty() && self.prompts == Prompts::Keep && self.text_share >= 1.0
    }
}

/// What becomes of prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompts {
    /// They are kept.
    Keep,
    /// Each message is replaced by a digest, so that equal ones can be told.
    Hash,
    /// They are not.
    Drop,
}

/// `[task.retrain]`
#[derive(Debug, Clone)]
pub struct RetrainPolicy {
    /// Five cron fields, in UTC.
    pub schedule: Option<Schedule>,
    /// Alarms that start a run.
    pub on: Vec<AlarmKind>,
    /// Usable rows below which there is no run.
    pub min_examples: usize,
    /// Usable rows since the alarm, before a run that it asked for begins.
    pub min_new_examples: usize,
    /// Since the end of a run that an alarm started, before another alarm starts one.
    pub cool_down: Duration,
    /// For so long after an adapter's promotion an alarm about it brings the former champion back; zero: never.
    pub roll_back_within: Duration,
    /// Lowest rating of an answer that is trained on.
    pub rating_at_least: u8,
    /// What is never split between training and examination.
    pub held_out_by: HeldOutBy,
    /// Kinds of personal data that no example may hold.
    pub personal: Vec<Sensitive>,
    /// A kind of prompt may be in the training so many times as often as in the traffic; none: as often as it is.
    pub balance: Option<f64>,
    /// Who says yes.
    pub promote: Promote,
    /// Blind pairs an examination needs.
    pub min_pairs: usize,
    /// Blind pairs after which an examination ends undecided.
    pub max_pairs: usize,
    /// `[task.retrain.judge]`
    pub judge: JudgePolicy,
    /// What a candidate must not lose beside its task.
    pub regression: RegressionSuite,
    /// Keys of the requests' metadata by which an examination's results are told apart.
    pub slices: Vec<String>,
    /// `[task.retrain.canary]`
    pub canary: CanaryPolicy,
    /// When a run may begin that no person asked for; none: at any hour.
    pub hours: Option<Hours>,
    /// What the runs of 90 days may cost before only a person starts another; none: without limit.
    pub budget: Option<f64>,
    /// What makes an adapter of a dataset.
    pub trainer: Trainer,
    /// `[task.retrain.lora]`
    pub lora: LoraPolicy,
    /// `[task.retrain.dpo]`
    pub dpo: DpoPolicy,
}

/// What is never split between training and examination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldOutBy {
    /// A conversation.
    Conversation,
    /// All that a user has asked; a conversation, where nobody is named.
    User,
}

/// What makes an adapter of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trainer {
    /// Retune's own, on this machine.
    Native,
    /// Another, which gets conversations.
    Other(OtherTrainer),
}

/// A trainer that gets conversations and gives PEFT's files back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OtherTrainer {
    /// A program, with its arguments; the folder with the dataset is its last.
    Command(Vec<String>),
    /// A server with OpenAI's fine-tuning API that hands PEFT's files out.
    OpenAi(TrainerServer),
}

/// A server that trains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainerServer {
    /// Its address, `/v1` included, without a slash at the end.
    pub url: String,
    /// The variable with its key.
    pub api_key_env: Option<String>,
    /// What it calls the base.
    pub model: String,
}

/// `[task.retrain.lora]`
#[derive(Debug, Clone)]
pub struct LoraPolicy {
    /// Rank.
    pub r: usize,
    /// Scaled by alpha / r.
    pub alpha: f64,
    /// Scaled by alpha / √r instead.
    pub rank_stabilised: bool,
    /// Linear maps that get a part of the adapter; none: all.
    pub target_modules: Vec<&'static str>,
    /// Share of the adapter's inputs dropped in training.
    pub dropout: f64,
    /// Times every example is seen.
    pub epochs: usize,
    /// Examples a step.
    pub batch_size: usize,
    /// Peak learning rate; by the base's width where it is not set.
    pub learning_rate: Option<f64>,
    /// Share of the steps over which the learning rate rises.
    pub warmup: f64,
    /// What it does then.
    pub decay: Decay,
    /// Longest gradient; 0 is no limit.
    pub clip: f64,
    /// Epochs without a lower development loss after which the training ends; 0: none.
    pub patience: usize,
    /// Layers are computed again in the backward pass rather than kept.
    pub recompute: bool,
    /// Multiples of the learning rate that are tried first; none: it is believed.
    pub sweep: Vec<f64>,
    /// Share of the examples that they are tried on.
    pub sweep_share: f64,
}

/// `[task.retrain.dpo]`: what is learned from preferences and corrections after the examples.
#[derive(Debug, Clone)]
pub struct DpoPolicy {
    /// Times every pair is seen; 0: preferences are not learned from.
    pub epochs: usize,
    /// How close the adapter stays to what it had learned from the examples.
    pub beta: f64,
    /// The share of the preferred answers' own loss that is added.
    pub sft: f64,
    /// Of the learning rate for the examples.
    pub learning_rate: f64,
    /// Pairs to train on that there must be.
    pub min_preferences: usize,
}

/// A learning rate's course after its warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// Along half a cosine to 0.
    Cosine,
    /// In a line to 0.
    Linear,
    /// It stays.
    Constant,
}

/// What is done so that answers hold their task's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforce {
    /// Nothing: they are only checked.
    Off,
    /// They are decoded under the format's grammar.
    Constrain,
    /// An invalid one is asked for once more.
    Retry,
}

/// What an alarm is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlarmKind {
    /// Answers break their format more often.
    Format,
    /// Ratings fell.
    Quality,
    /// Prompts changed.
    Input,
    /// Answers changed.
    Output,
    /// The service itself: errors, latency.
    Operations,
}

impl AlarmKind {
    /// All, in one order.
    pub const ALL: [AlarmKind; 5] = [
        AlarmKind::Format,
        AlarmKind::Quality,
        AlarmKind::Input,
        AlarmKind::Output,
        AlarmKind::Operations,
    ];

    /// The word for it, in files, metrics and configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            AlarmKind::Format => "format",
            AlarmKind::Quality => "quality",
            AlarmKind::Input => "input",
            AlarmKind::Output => "output",
            AlarmKind::Operations => "operations",
        }
    }
}

impl fmt::Display for AlarmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who promotes a candidate that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promote {
    /// A person.
    Approve,
    /// The run itself.
    Auto,
}

/// One thing wrong in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `retune.toml:12`, or the environment's variable.
    pub place: String,
    /// `engine.max_loaded`
    pub key: String,
    /// What is wrong and what was expected.
    pub what: String,
}

/// All that is wrong in a configuration.
#[derive(Debug, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0.len();
        write!(
            f,
            "{n} problem{} in the configuration",
            if n == 1 { "" } else { "s" }
        )?;
        for p in &self.0 {
            write!(f, "\n  {}: {}: {}", p.place, p.key, p.what)?;
        }
        Ok(())
    }
}
