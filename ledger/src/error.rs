//! What can go wrong with the store. A message says which file or table, and what to do about it.

use std::path::{Path, PathBuf};

/// Why something could not be kept or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder of the store.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// An object of the store's bucket.
    #[error("{path}: {source}")]
    Object {
        /// Its URL.
        path: String,
        /// What the provider said.
        source: Box<deltalake::logstore::object_store::Error>,
    },
    /// A file is there, and is not what it should be.
    #[error("{}: {what}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The store's URL names something this version cannot use.
    #[error("store {url:?}: {what}")]
    Url {
        /// As configured.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// The base's chat template.
    #[error(transparent)]
    Template(#[from] retune_task::Error),
    /// Somebody else decided first.
    #[error("{what} was changed by somebody else at this moment; look again and decide anew")]
    Conflict {
        /// What was to be changed.
        what: String,
    },
    /// Somebody said something to an alarm, and not why, or too much.
    #[error(
        "the reason has {characters} characters; expected a sentence of at most {}",
        crate::Word::LONGEST
    )]
    Reason {
        /// How many.
        characters: usize,
    },
    /// There is no such adapter.
    #[error("there is no adapter {task}@{number}")]
    NoAdapter {
        /// Its task.
        task: String,
        /// Its number.
        number: u32,
    },
    /// Some of an adapter's examples may not be learned from any more.
    #[error(
        "{forgotten} of the examples of this adapter of {task} were forgotten while it was trained; start the run again: it will do without them"
    )]
    Forgotten {
        /// Its task.
        task: String,
        /// How many.
        forgotten: usize,
    },
    /// A table that cannot forget.
    #[error(
        "table {table} was made by an earlier version, whose log keeps texts of its rows: nobody can be forgotten in it; export it, import that into a new store, and delete this one"
    )]
    CannotForget {
        /// The table.
        table: &'static str,
    },
    /// There is no such key.
    #[error("there is no key {id:?}; `retune keys list` shows those that there are")]
    NoKey {
        /// Its id.
        id: String,
    },
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers: {0}")]
    Random(String),
    /// The log has as much as it may.
    #[error(
        "{bytes} bytes wait in the write-ahead log, and store.log_bytes allows {limit}: the store cannot be written, or is too slow"
    )]
    LogFull {
        /// Bytes in it.
        bytes: u64,
        /// Bytes that may be.
        limit: u64,
    },
    /// Forgetting did not come to an end.
    #[error(
        "{rows} rows of somebody who is to be forgotten are in the tables again and again, though they were taken out: does another program write \
         to them? It is tried again"
    )]
    StillComing {
        /// In the tables, at the last look.
        rows: usize,
    },
    /// What was to be done alone was broken off.
    #[error(
        "somebody else has taken the right to do this alone, since it was not renewed in time: this machine was suspended, or the store away; \
         what was begun is gone on with by whoever comes next"
    )]
    LeaseLost,
    /// The log cannot be written.
    #[error("the write-ahead log {} cannot be written: {what}", path.display())]
    Log {
        /// Its folder.
        path: PathBuf,
        /// What the operating system said.
        what: String,
    },
    /// Rows in a log that were to be in their table.
    #[error(
        "the rows of {} are not in their table after {seconds} seconds: the process that wrote them cannot publish them, its log says why",
        path.display()
    )]
    NotPublished {
        /// The first such segment.
        path: PathBuf,
        /// How long that was waited for.
        seconds: u64,
    },
    /// The ledger was closed, and could not publish everything before.
    #[error(
        "they stay in the log, and go into their tables when the store is opened next; {source}"
    )]
    LeftInLog {
        /// Why they could not be published.
        source: Box<Error>,
    },
    /// The ledger was closed.
    #[error("the ledger is closed: a row of {table} came too late")]
    Closed {
        /// The table.
        table: &'static str,
    },
    /// A row does not fit its table.
    #[error("a row of {table} does not fit its schema: {what}")]
    Row {
        /// The table.
        table: &'static str,
        /// Why.
        what: String,
    },
    /// A question that would change something.
    #[error("only questions are answered here (SELECT, EXPLAIN, SHOW): {0}")]
    ReadOnly(String),
    /// A question that cannot be answered.
    #[error("{0}")]
    Query(String),
    /// The cluster that was to answer.
    #[error("the Ballista cluster {url} (query.ballista): {what}")]
    Cluster {
        /// Its scheduler.
        url: String,
        /// What it said.
        what: String,
    },
    /// A table's file that cannot be read.
    #[error(
        "a file of a table cannot be read: {0}\n`retune ledger verify` names those that are damaged"
    )]
    Unreadable(String),
    /// The Delta table itself.
    #[error("table {table}: {source}")]
    Delta {
        /// The table.
        table: &'static str,
        /// What deltalake said.
        source: Box<deltalake::DeltaTableError>,
    },
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io {
            path: path.to_owned(),
            source,
        }
    }
}
