//! What a task is: its configuration, its prompt, its chat template, its output format and the check of it.
//!
//! No I/O but reading its own files. Everything else in Retune agrees on what is written here: serving, logging and
//! training render a conversation by the same code, and ask the same check whether an answer holds.

mod base;
mod chat;
mod config;
mod digest;
mod format;
mod judging;
mod names;
mod probe;
mod redact;
mod schedule;
mod suite;
mod template;
mod traits;

pub use base::{base_folder, base_id, ggufs};
pub use chat::{ChatMessage, ClientSystem, PromptKind, Split, conversation, held_out, question};
pub use config::{
    AlarmKind, CanaryPolicy, Config, ConfigSource, Decay, DpoPolicy, Enforce, Engine, EngineKind,
    HeldOutBy, Hours, JudgeModel, JudgePolicy, JudgedBy, LoraPolicy, Monitor, OnLogFailure,
    OtherTrainer, Prices, Privacy, Problem, Problems, Promote, Prompts, RegressionSuite,
    RetrainPolicy, Server, Store, Task, Tls, Trainer, TrainerServer, Training, Upstream,
    UpstreamServer,
};
pub use digest::{fraction, hex, sha256};
pub use format::{Check, Format, Grammar};
pub use judging::{CRITERIA, Choice, Marks, Side};
pub use names::ModelName;
pub use probe::PROBE_TOKENS;
pub use redact::{Found, Redaction, Sensitive};
pub use schedule::Schedule;
pub use suite::{Suite, SuitePrompt, WrongLine};
pub use template::{ChatTemplate, Error};
pub use traits::{FAILURE_CLASSES, Traits, failure_class};
