//! What can go wrong, said so that a person can mend it.

use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {what}")]
    File { path: PathBuf, what: String },
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("model configuration: {0}")]
    Config(String),
    #[error("settings: {0}")]
    Settings(String),
    /// `set` is the list it stands in (`train`, `development`, `held_out`, `batch`), `index` its place, from 0.
    #[error("{set} example {index}: {what}")]
    Example {
        set: &'static str,
        index: usize,
        what: String,
    },
    #[error("adapter: {0}")]
    Adapter(String),
    #[error(
        "training diverged at step {step}: the {what} is not a finite number; use a lower learning rate"
    )]
    Diverged { step: usize, what: &'static str },
    #[error("training was cancelled after step {step} of {steps}")]
    Cancelled { step: usize, steps: usize },
    #[error("a training thread could not be started: {0}")]
    Threads(String),
    #[error("matrix library: {0}")]
    Candle(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn file(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Error::File {
            path: path.into(),
            what: what.into(),
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}
