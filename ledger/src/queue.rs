//! Rows on their way into a table: appended by number, size and age, tried again while the store is away.
//!
//! One task a table owns the writing. A row is either in its queue, in the batch being written, in the table, or
//! counted as dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};
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

type Done = oneshot::Sender<Result<(), Error>>;

enum Message {
    Row(Row, usize),
    Flush(Done),
    Close(Done),
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
            trying: Vec::new(),
            number: 0,
            again: false,
        };
        // The queue owns it by the channel: it ends when the queue is closed or gone.
        tokio::spawn(worker.run(receiver));
        Queue {
            table,
            sender,
            counters,
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
        self.ask(Message::Flush).await
    }

    /// Takes no further rows, waits for those put in before, and ends the worker.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        self.ask(Message::Close).await
    }

    async fn ask(&self, message: impl FnOnce(Done) -> Message) -> Result<(), Error> {
        let closed = || Error::Closed {
            table: self.table.name(),
        };
        let (done, wait) = oneshot::channel();
        self.sender.send(message(done)).map_err(|_| closed())?;
        wait.await.map_err(|_| closed())?
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
    /// The rows of append `number`. They stay as they are until it is in the table: it may be already, its answer lost,
    /// and a row that joined it later would count as kept.
    trying: Vec<Row>,
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
                Ok(None) => {
                    drop(self.finish(receiver).await);
                    return;
                }
                Ok(Some(Message::Close(done))) => {
                    // Nobody waiting any more is no error.
                    drop(done.send(self.finish(receiver).await));
                    return;
                }
                Ok(Some(Message::Row(row, bytes))) => {
                    if self.is_empty() {
                        due.get_or_insert(Instant::now() + self.limits.age);
                    }
                    self.take(row, bytes);
                    // After a failure the pause decides, however many rows come.
                    let full =
                        self.waiting.len() >= self.limits.rows || self.bytes >= self.limits.bytes;
                    if !full || self.again {
                        continue;
                    }
                }
                Ok(Some(Message::Flush(done))) => {
                    let result = self.append_patiently().await;
                    due = (!self.is_empty()).then(|| Instant::now() + LONGEST_PAUSE);
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
                    tracing::error!(table = self.table.name(), rows = self.rows(), %error, "rows could not be appended; they wait");
                    due = Some(Instant::now() + pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn rows(&self) -> usize {
        self.trying.len() + self.waiting.len()
    }

    fn is_empty(&self) -> bool {
        self.rows() == 0
    }

    fn take(&mut self, row: Row, bytes: usize) {
        if self.is_empty() {
            let now = u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or_default();
            self.counters.oldest_ms.store(now, Ordering::Relaxed);
        }
        self.waiting.push(row);
        self.bytes += bytes;
    }

    /// Appends what was accepted before the channel closed; what cannot be is counted as dropped.
    async fn finish(
        &mut self,
        mut receiver: mpsc::UnboundedReceiver<Message>,
    ) -> Result<(), Error> {
        receiver.close();
        while let Some(message) = receiver.recv().await {
            match message {
                Message::Row(row, bytes) => self.take(row, bytes),
                // Theirs is answered as the channel is: closed.
                Message::Flush(_) | Message::Close(_) => {}
            }
        }
        let result = self.append_patiently().await;
        if let Err(error) = &result {
            let rows = self.rows() as u64;
            tracing::error!(table = self.table.name(), rows, %error, "rows are lost: the ledger closed before they could be appended");
            self.counters.waiting.fetch_sub(rows, Ordering::Relaxed);
            self.counters
                .dropped_closed
                .fetch_add(rows, Ordering::Relaxed);
        }
        result
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

    /// Everything into the table; first, unchanged, the rows of an append that failed.
    async fn append(&mut self) -> Result<(), Error> {
        while !self.is_empty() {
            if self.trying.is_empty() {
                self.trying = std::mem::take(&mut self.waiting);
                self.bytes = 0;
            }
            let batch = self.table.batch(&self.trying)?;
            let appended = self
                .handle
                .append(batch, &self.writer, self.number, self.again)
                .await;
            self.again = appended.is_err();
            appended?;
            let rows = self.trying.len() as u64;
            self.number += 1;
            self.trying.clear();
            self.counters.appended.fetch_add(rows, Ordering::Relaxed);
            self.counters.waiting.fetch_sub(rows, Ordering::Relaxed);
        }
        self.counters.oldest_ms.store(0, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn row(id: &str) -> Row {
        let row = serde_json::json!({ "feedback_id": id });
        Table::Feedback.encode(&row).unwrap()
    }

    fn worker(handle: Arc<Handle>) -> Worker {
        Worker {
            handle,
            table: Table::Feedback,
            writer: "w".into(),
            limits: Limits {
                rows: 10,
                bytes: 1 << 20,
                age: Duration::from_secs(60),
            },
            counters: Arc::default(),
            waiting: Vec::new(),
            bytes: 0,
            trying: Vec::new(),
            number: 0,
            again: false,
        }
    }

    async fn ids(handle: &Handle) -> Vec<String> {
        let (provider, _) = handle.provider().await.unwrap();
        let context = deltalake::datafusion::prelude::SessionContext::new();
        let rows = context.read_table(provider).unwrap().collect().await;
        let mut out = arrow::json::LineDelimitedWriter::new(Vec::new());
        out.write_batches(&rows.unwrap().iter().collect::<Vec<_>>())
            .unwrap();
        let lines = String::from_utf8(out.into_inner()).unwrap();
        let id = |line: &str| {
            let row: Row = serde_json::from_str(line).unwrap();
            row["feedback_id"].as_str().unwrap().to_owned()
        };
        let mut ids: Vec<String> = lines.lines().map(id).collect();
        ids.sort();
        ids
    }

    #[tokio::test]
    async fn a_commit_whose_answer_was_lost_neither_doubles_its_rows_nor_swallows_later_ones() {
        let folder = tempfile::tempdir().unwrap();
        let handle = Arc::new(Handle::open(folder.path(), Table::Feedback).await.unwrap());
        let first = Table::Feedback.batch(&[row("first")]).unwrap();
        handle.append(first, "w", 0, false).await.unwrap();
        let mut worker = worker(handle.clone());
        worker.waiting = vec![row("later")];
        worker.trying = vec![row("first")];
        worker.again = true;
        worker.counters.waiting.store(2, Ordering::Relaxed);
        worker.append().await.unwrap();
        assert_eq!(ids(&handle).await, ["first", "later"]);
        assert_eq!(worker.counters.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_row_that_was_accepted_while_the_queue_closed_is_in_the_table() {
        let folder = tempfile::tempdir().unwrap();
        let handle = Arc::new(Handle::open(folder.path(), Table::Feedback).await.unwrap());
        let worker = worker(handle.clone());
        worker.counters.waiting.store(2, Ordering::Relaxed);
        let (sender, receiver) = mpsc::unbounded_channel();
        let (done, closed) = oneshot::channel();
        let send = |message| sender.send(message).map_err(drop);
        send(Message::Row(row("before"), 1)).unwrap();
        send(Message::Close(done)).unwrap();
        send(Message::Row(row("meanwhile"), 1)).unwrap();
        worker.run(receiver).await;
        closed.await.unwrap().unwrap();
        assert_eq!(ids(&handle).await, ["before", "meanwhile"]);
        assert!(send(Message::Row(row("late"), 1)).is_err());
    }
}
