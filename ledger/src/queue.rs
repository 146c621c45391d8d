//! Rows on their way into a table: appended by number, size and age, tried again while the store is away.
//!
//! One task a table owns the writing. A row is either in its queue, in the batch being written, in the table, or
//! counted as dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::Error;
use crate::schema::Table;
use crate::table::Handle;

/// Rows that wait in memory at most, while the store cannot be written.
const LIMIT: usize = 100_000;
/// Pause after a failed append; doubled up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Tries of a flush or a close that somebody waits for.
const TRIES: usize = 6;

/// When waiting rows are appended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
    pub(crate) age: Duration,
}

type Row = Map<String, Value>;

enum Message {
    Row(Row, usize),
    Flush(oneshot::Sender<Result<(), Error>>),
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) appended: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) dropped_full: AtomicU64,
    pub(crate) dropped_closed: AtomicU64,
    /// Milliseconds since the epoch of the oldest waiting row; 0 if none waits.
    pub(crate) oldest_ms: AtomicU64,
}

pub(crate) struct Queue {
    table: Table,
    sender: mpsc::UnboundedSender<Message>,
    pub(crate) counters: Arc<Counters>,
    worker: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Queue {
    pub(crate) fn start(handle: Arc<Handle>, table: Table, writer: String, limits: Limits) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let counters = Arc::new(Counters::default());
        let worker = Worker {
            handle,
            table,
            writer,
            limits,
            counters: counters.clone(),
            waiting: Vec::new(),
            bytes: 0,
            number: 0,
            again: false,
        };
        let worker = tokio::spawn(worker.run(receiver));
        Queue {
            table,
            sender,
            counters,
            worker: std::sync::Mutex::new(Some(worker)),
        }
    }

    /// Puts a row in. Never waits; refuses when too many wait already.
    pub(crate) fn push(&self, row: Row) -> Result<(), Error> {
        let table = self.table.name();
        let waiting = self.counters.waiting.fetch_add(1, Ordering::Relaxed);
        if waiting >= LIMIT as u64 {
            self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counters.dropped_full.fetch_add(1, Ordering::Relaxed);
            return Err(Error::Full { table, rows: LIMIT });
        }
        let bytes = row.values().map(|v| v.as_str().map_or(8, str::len)).sum();
        self.sender.send(Message::Row(row, bytes)).map_err(|_| {
            self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counters.dropped_closed.fetch_add(1, Ordering::Relaxed);
            Error::Closed { table }
        })
    }

    /// Waits until every row put in before is in the table.
    pub(crate) async fn flush(&self) -> Result<(), Error> {
        let closed = || Error::Closed {
            table: self.table.name(),
        };
        let (done, wait) = oneshot::channel();
        self.sender
            .send(Message::Flush(done))
            .map_err(|_| closed())?;
        wait.await.map_err(|_| closed())?
    }

    /// Flushes and ends the worker.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        let result = self.flush().await;
        let worker = self.worker.lock().ok().and_then(|mut w| w.take());
        if let Some(worker) = worker {
            worker.abort();
        }
        result
    }
}

struct Worker {
    handle: Arc<Handle>,
    table: Table,
    writer: String,
    limits: Limits,
    counters: Arc<Counters>,
    waiting: Vec<Row>,
    bytes: usize,
    /// Of the next append.
    number: i64,
    /// Whether it was tried before.
    again: bool,
}

impl Worker {
    async fn run(mut self, mut receiver: mpsc::UnboundedReceiver<Message>) {
        let mut due: Option<Instant> = None;
        let mut pause = PAUSE;
        loop {
            let message = match due {
                Some(at) => tokio::time::timeout_at(at, receiver.recv()).await,
                None => Ok(receiver.recv().await),
            };
            match message {
                Ok(None) => return,
                Ok(Some(Message::Row(row, bytes))) => {
                    if self.waiting.is_empty() {
                        due.get_or_insert(Instant::now() + self.limits.age);
                        let now = u64::try_from(chrono::Utc::now().timestamp_millis())
                            .unwrap_or_default();
                        self.counters.oldest_ms.store(now, Ordering::Relaxed);
                    }
                    self.waiting.push(row);
                    self.bytes += bytes;
                    // After a failure the pause decides, however many rows come.
                    let full =
                        self.waiting.len() >= self.limits.rows || self.bytes >= self.limits.bytes;
                    if !full || self.again {
                        continue;
                    }
                }
                Ok(Some(Message::Flush(done))) => {
                    let result = self.append_patiently().await;
                    due = (!self.waiting.is_empty()).then(|| Instant::now() + LONGEST_PAUSE);
                    // Nobody waiting any more is no error.
                    drop(done.send(result));
                    continue;
                }
                Err(_) => {}
            }
            match self.append().await {
                Ok(()) => {
                    pause = PAUSE;
                    due = None;
                }
                Err(error) => {
                    tracing::error!(table = self.table.name(), rows = self.waiting.len(), %error, "rows could not be appended; they wait");
                    due = Some(Instant::now() + pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn append_patiently(&mut self) -> Result<(), Error> {
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            match self.append().await {
                Ok(()) => return Ok(()),
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause *= 2;
        }
        self.append().await
    }

    async fn append(&mut self) -> Result<(), Error> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let batch = self.table.batch(&self.waiting)?;
        let appended = self
            .handle
            .append(batch, &self.writer, self.number, self.again)
            .await;
        self.again = appended.is_err();
        appended?;
        let rows = self.waiting.len() as u64;
        self.number += 1;
        self.waiting.clear();
        self.bytes = 0;
        self.counters.appended.fetch_add(rows, Ordering::Relaxed);
        self.counters.waiting.fetch_sub(rows, Ordering::Relaxed);
        self.counters.oldest_ms.store(0, Ordering::Relaxed);
        Ok(())
    }
}
