//! The thread that writes the log: everything that waits with one call, then an answer to everybody who waits.
//!
//! It is the only one that gives numbers, so they have no gaps, and the only one that opens, fills and finishes segments.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use retune_record as record;
use retune_task::OnLogFailure;
use tokio::sync::{mpsc as tokio_mpsc, oneshot};

use super::syncer::{self, Dirty};
use super::{LOGGED, Segment, Shared, held, now_ms, publisher, segments};
use crate::error::Error;
use crate::faults;

/// Rows that are written with one call at most, in bytes.
const AT_ONCE: usize = 8 << 20;
/// The least between two looks at what is due.
const AGAIN: Duration = Duration::from_millis(10);
/// Pause before a log that could not be written is tried again for somebody who asks.
const PAUSE: Duration = Duration::from_secs(1);
/// What has to fit before a log that could not be written counts as good again.
const PROBE: usize = 64 << 10;
/// While so many segments wait to be published, the next is not finished before it is large: each is an open file to a question.
const MANY: usize = 64;
const LARGE: u64 = 64 << 20;

type Done = oneshot::Sender<Result<(), Error>>;

pub(crate) enum Message {
    Row {
        table: usize,
        row: Vec<u8>,
        done: Done,
    },
    /// Finish the segments as they are.
    Finish(Option<oneshot::Sender<()>>),
    /// Can the log be written?
    Ready(Done),
}

/// The segment that is being written.
struct Open {
    file: Arc<File>,
    found: segments::Found,
    bytes: u64,
    rows: u64,
    since: Instant,
    since_ms: u64,
    /// Since when it has bytes that were not given to be synced.
    unsynced: Option<Instant>,
    is_new: bool,
}

struct Writer {
    shared: Arc<Shared>,
    publisher: tokio_mpsc::UnboundedSender<publisher::Message>,
    /// None where each row is brought to disk before it is acknowledged.
    syncer: Option<Sender<Dirty>>,
    open: [Option<Open>; 2],
    /// The next row's number.
    next: [u64; 2],
    waiting: [Vec<(Vec<u8>, Done)>; 2],
    /// When the log could not be written last, and why.
    failed: Option<(Instant, String)>,
    closed: bool,
}

/// Ends when the ledger is gone.
pub(crate) fn start(
    shared: Arc<Shared>,
    receiver: Receiver<Message>,
    publisher: tokio_mpsc::UnboundedSender<publisher::Message>,
) -> Result<(), Error> {
    let wal = shared.wal.clone();
    let syncer = match shared.options.fsync {
        Some(_) => Some(syncer::start(shared.clone())?),
        None => None,
    };
    let writer = Writer {
        shared,
        publisher,
        syncer,
        open: [None, None],
        next: [1, 1],
        waiting: Default::default(),
        failed: None,
        closed: false,
    };
    let spawned = std::thread::Builder::new()
        .name("ledger-log".to_owned())
        .spawn(move || writer.run(&receiver));
    spawned.map(drop).map_err(Error::io(&wal))
}

impl Writer {
    fn run(mut self, receiver: &Receiver<Message>) {
        loop {
            let first = match self.due() {
                Some(at) => receiver.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match first {
                Ok(first) => {
                    let mut bytes = self.take(first);
                    while bytes < AT_ONCE
                        && let Ok(more) = receiver.try_recv()
                    {
                        bytes += self.take(more);
                    }
                    self.write_waiting();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.finish_all();
                    return;
                }
            }
            self.look_at_the_time();
        }
    }

    /// When something is to be done though no message comes.
    fn due(&self) -> Option<Instant> {
        let options = &self.shared.options;
        let of = |open: &Open| {
            let sync = open.unsynced.zip(options.fsync).map(|(at, age)| at + age);
            // One that is due and may not be finished yet is looked at again a moment later.
            let finish = (open.since + options.age).max(Instant::now() + AGAIN);
            sync.into_iter().chain([finish]).min()
        };
        self.open.iter().flatten().filter_map(of).min()
    }

    /// Takes a message; the bytes that it adds to the next write.
    fn take(&mut self, message: Message) -> usize {
        match message {
            // Its answer is dropped, and so it is refused as one that came too late.
            Message::Row { .. } if self.closed => 0,
            Message::Row { table, row, done } => {
                if self.is_full(row.len()) {
                    self.shared.counters[table]
                        .dropped_full
                        .fetch_add(1, Ordering::Relaxed);
                    let (bytes, limit) = (self.shared.bytes(), self.shared.options.budget);
                    drop(done.send(Err(Error::LogFull { bytes, limit })));
                    return 0;
                }
                let bytes = row.len();
                self.waiting[table].push((row, done));
                bytes
            }
            Message::Finish(done) => {
                self.write_waiting();
                self.finish_all();
                self.closed = self.shared.closed.load(Ordering::Relaxed);
                if let Some(done) = done {
                    let _ = done.send(());
                }
                0
            }
            Message::Ready(done) => {
                let ready = self.ready();
                drop(done.send(ready));
                0
            }
        }
    }

    /// Where requests are refused instead, those that were let in are kept whatever the budget says.
    fn is_full(&self, bytes: usize) -> bool {
        let waiting = self.waiting.iter().flatten();
        let waiting: usize = waiting.map(|(row, _)| row.len() + record::OVERHEAD).sum();
        self.shared.options.on_failure == OnLogFailure::Drop
            && self.shared.bytes() + (waiting + bytes + record::OVERHEAD) as u64
                > self.shared.options.budget
    }

    fn write_waiting(&mut self) {
        for table in 0..LOGGED.len() {
            let rows = std::mem::take(&mut self.waiting[table]);
            if !rows.is_empty() {
                self.write(table, rows);
            }
        }
    }

    /// Writes rows behind each other, and answers those who wait for them.
    fn write(&mut self, table: usize, rows: Vec<(Vec<u8>, Done)>) {
        let count = rows.len() as u64;
        let written = self.try_write(table, &rows);
        let counters = &self.shared.counters[table];
        self.shared.good.store(written.is_ok(), Ordering::Relaxed);
        match written {
            Ok(()) => {
                counters.waiting.fetch_add(count, Ordering::Relaxed);
                self.failed = None;
                for (_, done) in rows {
                    // Nobody waiting any more is no error: the row is kept.
                    drop(done.send(Ok(())));
                }
            }
            Err(error) => {
                counters.dropped_log.fetch_add(count, Ordering::Relaxed);
                let error = self.fail(error);
                for (_, done) in rows {
                    drop(done.send(Err(self.unwritable(&error))));
                }
            }
        }
    }

    fn fail(&mut self, error: io::Error) -> String {
        let error = error.to_string();
        if self.failed.is_none() {
            let path = self.shared.folder();
            tracing::error!(path = %path.display(), error, "the log cannot be written; rows are lost, or requests refused, as store.on_log_failure says");
        }
        self.failed = Some((Instant::now(), error.clone()));
        error
    }

    fn unwritable(&self, what: &str) -> Error {
        Error::Log {
            path: self.shared.folder(),
            what: what.to_owned(),
        }
    }

    fn try_write(&mut self, table: usize, rows: &[(Vec<u8>, Done)]) -> io::Result<()> {
        let mut bytes = Vec::new();
        if self.open[table].is_none() {
            self.open[table] = Some(self.create(table)?);
            bytes.extend_from_slice(&record::header());
        }
        let Some(open) = &mut self.open[table] else {
            return Ok(());
        };
        let first = self.next[table];
        for (number, (row, _)) in (first..).zip(rows) {
            if !record::push(&mut bytes, number, row) {
                return Err(io::Error::new(
                    ErrorKind::InvalidInput,
                    "a row of over 4 GiB",
                ));
            }
        }
        let mut written = write(&open.file, &bytes);
        if written.is_ok() && self.syncer.is_none() {
            let dirty = Dirty {
                file: open.file.clone(),
                path: open.found.path.clone(),
                is_new: open.is_new,
            };
            written = dirty.sync();
            open.is_new &= written.is_err();
        }
        if let Err(error) = written {
            self.take_back(table, first, rows.len() as u64);
            return Err(error);
        }
        if open.rows == 0 {
            self.shared.counters[table]
                .open_since
                .store(open.since_ms, Ordering::Relaxed);
        }
        self.next[table] += rows.len() as u64;
        open.rows += rows.len() as u64;
        open.bytes += bytes.len() as u64;
        if self.syncer.is_some() {
            open.unsynced.get_or_insert_with(Instant::now);
        }
        let added = bytes.len() as u64;
        self.shared.own_bytes.fetch_add(added, Ordering::Relaxed);
        Ok(())
    }

    /// Undoes a write that failed in the middle: its rows were not acknowledged. Where even that fails, the segment ends
    /// here, and the numbers of these rows are not given again.
    fn take_back(&mut self, table: usize, first: u64, rows: u64) {
        let Some(open) = &mut self.open[table] else {
            return;
        };
        if open.file.set_len(open.bytes).is_err() {
            self.next[table] = first + rows;
            self.finish(table);
        } else if open.rows > 0 {
            // Perhaps another file can be written.
            self.finish(table);
        } else {
            // A segment without its header.
            drop(std::fs::remove_file(&open.found.path));
            self.open[table] = None;
        }
    }

    /// Begins a segment; its header is written with its first rows.
    fn create(&mut self, table: usize) -> io::Result<Open> {
        let folder = self.shared.folder();
        self.hold_folder()?;
        loop {
            let first = self.next[table];
            let path = folder.join(segments::name(LOGGED[table], first));
            faults::at("log-create")?;
            let created = File::options().create_new(true).append(true).open(&path);
            let file = match created {
                Ok(file) => file,
                // What an earlier failure left and could not remove.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    self.next[table] += 1;
                    continue;
                }
                // Somebody deleted the whole folder.
                Err(e) if e.kind() == ErrorKind::NotFound && held(&self.shared.lock).is_some() => {
                    *held(&self.shared.lock) = None;
                    return self.create(table);
                }
                Err(e) => return Err(e),
            };
            return Ok(Open {
                file: Arc::new(file),
                found: segments::Found { path, first },
                bytes: 0,
                rows: 0,
                since: Instant::now(),
                since_ms: now_ms(),
                unsynced: None,
                is_new: true,
            });
        }
    }

    /// Makes this process's folder, with its lock taken before others can see it.
    fn hold_folder(&self) -> io::Result<()> {
        let shared = &self.shared;
        let mut lock = held(&shared.lock);
        if lock.is_some() {
            return Ok(());
        }
        let hidden = shared.wal.join(format!(".new-{}", shared.replica));
        std::fs::create_dir_all(&hidden)?;
        let file = File::create(hidden.join(segments::LOCK))?;
        file.try_lock().map_err(io::Error::from)?;
        std::fs::rename(&hidden, shared.folder())?;
        syncer::folder(&shared.wal)?;
        syncer::folder(shared.wal.parent().unwrap_or(Path::new(".")))?;
        *lock = Some(file);
        // Gone only with the whole process.
        drop(self.publisher.send(publisher::Message::Began));
        Ok(())
    }

    /// Tries to write where the last try failed, or there was none.
    fn ready(&mut self) -> Result<(), Error> {
        if self.shared.good.load(Ordering::Relaxed) {
            return Ok(());
        }
        if let Some((at, what)) = &self.failed
            && at.elapsed() < PAUSE
        {
            return Err(self.unwritable(what));
        }
        let probe = self.shared.folder().join("probe");
        let tried = self.hold_folder().and_then(|()| {
            let mut file = File::create(&probe)?;
            file.write_all(&[0; PROBE])?;
            file.sync_data()
        });
        drop(std::fs::remove_file(&probe));
        self.shared.good.store(tried.is_ok(), Ordering::Relaxed);
        match tried {
            Ok(()) => {
                self.failed = None;
                Ok(())
            }
            Err(error) => {
                let what = self.fail(error);
                Err(self.unwritable(&what))
            }
        }
    }

    /// Syncs and finishes what is due.
    fn look_at_the_time(&mut self) {
        let options = self.shared.options;
        let at_once = self.shared.sync_failed.swap(false, Ordering::Relaxed);
        for table in 0..LOGGED.len() {
            let Some(open) = &mut self.open[table] else {
                continue;
            };
            if let (Some(at), Some(age)) = (open.unsynced, options.fsync)
                && at.elapsed() >= age
            {
                Self::give_to_sync(self.syncer.as_ref(), open);
            }
            let finished = open.rows >= options.rows
                || open.bytes >= options.bytes
                || open.since.elapsed() >= options.age;
            let may = open.bytes >= LARGE || self.shared.finished(table).len() < MANY;
            if at_once || (finished && may) {
                self.finish(table);
            }
        }
    }

    fn give_to_sync(syncer: Option<&Sender<Dirty>>, open: &mut Open) {
        if let (Some(syncer), Some(_)) = (syncer, open.unsynced.take()) {
            let dirty = Dirty {
                file: open.file.clone(),
                path: open.found.path.clone(),
                is_new: std::mem::take(&mut open.is_new),
            };
            // It ends behind this thread.
            drop(syncer.send(dirty));
        }
    }

    fn finish_all(&mut self) {
        for table in 0..LOGGED.len() {
            self.finish(table);
        }
    }

    /// Ends a segment and gives it to be published.
    fn finish(&mut self, table: usize) {
        let Some(mut open) = self.open[table].take() else {
            return;
        };
        Self::give_to_sync(self.syncer.as_ref(), &mut open);
        self.shared.finished(table).push_back(Segment {
            found: open.found,
            bytes: open.bytes,
            rows: open.rows,
            since: open.since_ms,
        });
        self.shared.counters[table]
            .open_since
            .store(0, Ordering::Relaxed);
        // Gone only with the whole process.
        drop(self.publisher.send(publisher::Message::Finished));
    }
}

fn write(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    faults::at("log-write")?;
    file.write_all(bytes)?;
    faults::at("log-written")
}

/// What the publisher asks of the writer; none once the ledger is gone.
pub(crate) fn ask_to_finish(writer: &std::sync::Weak<mpsc::Sender<Message>>) {
    if let Some(writer) = writer.upgrade() {
        drop(writer.send(Message::Finish(None)));
    }
}
