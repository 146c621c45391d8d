//! What can go wrong in a pass. None of it ends the monitor: the next pass tries again.

use std::path::{Path, PathBuf};

/// Why a pass did not finish, or a monitor could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The ledger could not be read or written.
    #[error("the monitor and the ledger: {0}")]
    Ledger(#[from] retune_ledger::Error),
    /// A question's answer has another shape than its question.
    #[error(
        "the table {table} is not as this version of Retune makes it: column {column}: {what}; was it written by a newer version?"
    )]
    Table {
        /// Which.
        table: &'static str,
        /// Which column of the answer.
        column: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// A model whose vectors of words were to be compared.
    #[error("the model's file {path}: {what}")]
    Model {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A thread of the monitor's own.
    #[error(
        "a window's test broke down; the log says more, and the adapter's windows are tested again"
    )]
    Broken,
    /// The report's page.
    #[error("the report could not be drawn: {0}")]
    Page(String),
    /// Two monitors share one registry.
    #[error("the monitor's metrics cannot be registered: {0}; use one registry a monitor")]
    Metrics(#[from] prometheus::Error),
}

impl Error {
    pub(crate) fn model(path: &Path, what: impl Into<String>) -> Self {
        Self::Model {
            path: path.to_owned(),
            what: what.into(),
        }
    }
}
