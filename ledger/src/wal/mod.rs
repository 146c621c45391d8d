//! The write-ahead log: where a row is from the moment that it is acknowledged until its table has it.
//!
//! Each process that keeps rows has a folder, `wal/<replica>/`, with a file `lock` that it holds locked while it lives, and segments
//! `<table>-<first number>.wal` ([`retune_record`]). A row gets a number of its process and table, which grows by one. One thread
//! ([`writer`]) writes what waits with one call; others ([`publisher`]) append finished segments to the Delta table, in order, each
//! commit with the last number in it as an application transaction, and delete them. So of every replica a table's version says up to
//! which number it has the rows, and nothing is appended twice, whoever dies between the steps.
//!
//! No lock outlives its process: a folder whose lock is free belongs to a dead one, and whoever takes the lock may publish what is
//! in it. Questions read the logs of all processes, dead and alive, and then the tables ([`pending`] says why in this order).

pub(crate) mod pending;
pub(crate) mod publisher;
pub(crate) mod segments;
mod syncer;
pub(crate) mod writer;

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::Duration;

use chrono::Utc;
use retune_task::{OnLogFailure, Store};
use tokio::sync::oneshot;

use crate::error::Error;
use crate::forget::tombstones::Tombstones;
use crate::schema::Table;
use crate::table::Handle;

/// The tables whose rows go through the log; their places in arrays.
pub(crate) const LOGGED: [Table; 2] = [Table::Exchanges, Table::Feedback];

/// How the log is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// A segment is finished at so many rows, bytes, or seconds after its first row.
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) age: Duration,
    /// How long a row may be in the operating system's memory alone; none: it is on disk before it is acknowledged.
    pub(crate) fsync: Option<Duration>,
    /// Bytes that wait at most.
    pub(crate) budget: u64,
    pub(crate) on_failure: OnLogFailure,
}

impl Options {
    pub(crate) fn of(store: &Store) -> Self {
        Self {
            rows: store.append_rows as u64,
            // A small budget must not be full of one segment that is not due.
            bytes: (store.append_bytes as u64).min(store.log_bytes / 4),
            age: Duration::from_secs_f64(store.append_seconds),
            fsync: (store.fsync_seconds > 0.0)
                .then(|| Duration::from_secs_f64(store.fsync_seconds)),
            budget: store.log_bytes,
            on_failure: store.on_log_failure,
        }
    }
}

/// What became of one table's rows in this process.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Rows in the log, not yet in the table.
    pub(crate) waiting: AtomicU64,
    /// Rows put into the table, from this process's log or a dead one's.
    pub(crate) appended: AtomicU64,
    pub(crate) dropped_full: AtomicU64,
    pub(crate) dropped_log: AtomicU64,
    pub(crate) dropped_closed: AtomicU64,
    pub(crate) damaged: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) torn: AtomicU64,
    /// Milliseconds since the epoch of the first row in the segment that is being written; 0 if there is none.
    open_since: AtomicU64,
}

/// A finished segment of this process.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) found: segments::Found,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
    /// Milliseconds since the epoch of its first row.
    since: u64,
}

/// What the writer, the publisher and the ledger know together.
pub(crate) struct Shared {
    /// The folder of all replicas' logs.
    pub(crate) wal: PathBuf,
    pub(crate) replica: String,
    pub(crate) options: Options,
    pub(crate) counters: [Counters; 2],
    finished: [Mutex<VecDeque<Segment>>; 2],
    /// Held while the process lives; there once the folder is.
    lock: Mutex<Option<File>>,
    /// Bytes of this process's segments.
    own_bytes: AtomicU64,
    /// Bytes of dead processes' segments that nobody could publish yet.
    dead_bytes: AtomicU64,
    closed: AtomicBool,
    /// Whether the log took what it was given last; rows are refused by this, where they are.
    good: AtomicBool,
    /// An fsync failed: what was not synced has to get into the table soon.
    sync_failed: AtomicBool,
}

impl Shared {
    fn new(store: &Path, replica: &str, options: Options) -> Self {
        Self {
            wal: store.join("wal"),
            replica: replica.to_owned(),
            options,
            counters: Default::default(),
            finished: Default::default(),
            lock: Mutex::default(),
            own_bytes: AtomicU64::new(0),
            dead_bytes: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            good: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
        }
    }

    /// This process's folder.
    pub(crate) fn folder(&self) -> PathBuf {
        self.wal.join(&self.replica)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.own_bytes.load(Ordering::Relaxed) + self.dead_bytes.load(Ordering::Relaxed)
    }

    fn finished(&self, table: usize) -> MutexGuard<'_, VecDeque<Segment>> {
        held(&self.finished[table])
    }

    /// Age of the oldest row that is not in its table, in seconds.
    pub(crate) fn lag(&self, table: usize) -> f64 {
        let oldest = self.finished(table).front().map(|segment| segment.since);
        let open = self.counters[table].open_since.load(Ordering::Relaxed);
        match oldest.unwrap_or(open) {
            0 => 0.0,
            since => now_ms().saturating_sub(since) as f64 / 1000.0,
        }
    }
}

/// A lock whose holder panicked guards plain data that is whole at every moment.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_ms() -> u64 {
    u64::try_from(Utc::now().timestamp_millis()).unwrap_or_default()
}

/// The log of this process: rows go in, and come out in their tables.
pub(crate) struct Log {
    pub(crate) shared: Arc<Shared>,
    to_writer: Arc<mpsc::Sender<writer::Message>>,
    to_publisher: tokio::sync::mpsc::UnboundedSender<publisher::Message>,
}

impl Log {
    /// Nothing is created before the first row. `adopts`: whether it publishes what dead processes left.
    pub(crate) fn start(
        store: &Path,
        replica: &str,
        options: Options,
        handles: [Arc<Handle>; 2],
        tombstones: Arc<Tombstones>,
        adopts: bool,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared::new(store, replica, options));
        let (to_writer, from_ledger) = mpsc::channel();
        let to_writer = Arc::new(to_writer);
        let (to_publisher, receiver) = tokio::sync::mpsc::unbounded_channel();
        let writer: Weak<_> = Arc::downgrade(&to_writer);
        writer::start(shared.clone(), from_ledger, to_publisher.clone())?;
        let tables = publisher::Tables {
            handles,
            tombstones,
        };
        publisher::start(shared.clone(), tables, writer, receiver, adopts)?;
        Ok(Self {
            shared,
            to_writer,
            to_publisher,
        })
    }

    /// Puts a row in; done when it is written (and on disk, where that is wanted).
    pub(crate) async fn append(&self, table: usize, row: Vec<u8>) -> Result<(), Error> {
        let (done, wait) = oneshot::channel();
        let row = writer::Message::Row { table, row, done };
        let closed = self.shared.closed.load(Ordering::Relaxed);
        if !closed
            && self.to_writer.send(row).is_ok()
            && let Ok(written) = wait.await
        {
            return written;
        }
        self.shared.counters[table]
            .dropped_closed
            .fetch_add(1, Ordering::Relaxed);
        Err(self.closed(table))
    }

    fn closed(&self, table: usize) -> Error {
        Error::Closed {
            table: LOGGED[table].name(),
        }
    }

    /// Whether a row that comes now will be kept; asked where a row that is not means that there is to be no answer.
    pub(crate) async fn ready(&self) -> Result<(), Error> {
        let shared = &self.shared;
        if shared.options.on_failure == OnLogFailure::Drop {
            return Ok(());
        }
        let bytes = shared.bytes();
        if bytes >= shared.options.budget {
            let limit = shared.options.budget;
            return Err(Error::LogFull { bytes, limit });
        }
        if shared.good.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (done, wait) = oneshot::channel();
        let asked = self.to_writer.send(writer::Message::Ready(done));
        asked.map_err(|_| self.closed(0))?;
        wait.await.map_err(|_| self.closed(0))?
    }

    /// Waits until every row put in before is in its table, those of dead processes too.
    pub(crate) async fn flush(&self) -> Result<(), Error> {
        self.finish_segments().await?;
        self.ask_publisher(publisher::Message::Flush).await
    }

    /// Takes no further rows and flushes; what cannot be published stays in the log.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        self.shared.closed.store(true, Ordering::Relaxed);
        self.finish_segments().await?;
        self.ask_publisher(publisher::Message::Close).await
    }

    async fn finish_segments(&self) -> Result<(), Error> {
        let (done, wait) = oneshot::channel();
        let sent = self.to_writer.send(writer::Message::Finish(Some(done)));
        sent.map_err(|_| self.closed(0))?;
        wait.await.map_err(|_| self.closed(0))
    }

    async fn ask_publisher(
        &self,
        message: impl FnOnce(publisher::Done) -> publisher::Message,
    ) -> Result<(), Error> {
        let (done, wait) = oneshot::channel();
        let sent = self.to_publisher.send(message(done));
        sent.map_err(|_| self.closed(0))?;
        wait.await.map_err(|_| self.closed(0))?
    }
}

/// Asks every other process to publish what it has, and says which segments there are now.
pub(crate) fn ask_to_publish(store: &Path) -> Result<Vec<PathBuf>, Error> {
    let wal = store.join("wal");
    let mut waiting = Vec::new();
    for replica in segments::replicas(&wal)? {
        let folder = wal.join(replica);
        for table in LOGGED {
            waiting.extend(segments::of(&folder, table)?.into_iter().map(|s| s.path));
        }
        let wish = folder.join(segments::PUBLISH);
        match File::create(&wish) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&wish)(e)),
            _ => {}
        }
    }
    Ok(waiting)
}

/// Those of some segments that are still there.
pub(crate) fn not_published(mut segments: Vec<PathBuf>) -> Vec<PathBuf> {
    segments.retain(|path| path.exists());
    segments
}
