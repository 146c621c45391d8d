//! What brings finished segments into their tables, and what dead processes left.
//!
//! The order of the steps is what makes it exact: read a segment, commit its rows with the last number in them, bring the commit to
//! disk, delete the segment. Whoever dies in between leaves a segment of which the table says how much it has; the next one,
//! this process or another, leaves exactly that out. Within one process only this task publishes; a dead one's log belongs to whoever
//! holds its lock.
//!
//! It has threads of its own, of low priority: thousands of rows become Parquet with one call that gives no other task a turn, and a
//! request that waited behind it would take as much longer.

use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak, mpsc as std_mpsc};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::segments::{self, Found};
use super::{Counters, LOGGED, Segment, Shared, held, writer};
use crate::error::Error;
use crate::faults;
use crate::files;
use crate::forget::tombstones::Tombstones;
use crate::schema::Table;
use crate::table::Handle;
use crate::threads;

/// Pause after a failed append; doubled up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Tries of a flush or a close that somebody waits for.
const TRIES: usize = 6;
/// Between two looks for another process's wish to see the rows in their tables.
const LOOK: Duration = Duration::from_millis(250);
/// Between two looks for processes that died.
const ADOPT: Duration = Duration::from_secs(30);
/// Segments that become one commit, in bytes.
const COMMIT_BYTES: u64 = 64 << 20;

pub(crate) type Done = oneshot::Sender<Result<(), Error>>;

pub(crate) enum Message {
    /// There is a folder now, in which other processes may leave their wish.
    Began,
    /// A segment was finished.
    Finished,
    /// Everything that is finished, now.
    Flush(Done),
    /// The same, then the folder goes and the task ends.
    Close(Done),
}

/// Where the rows go, and what keeps some of them from it.
#[derive(Clone)]
pub(crate) struct Tables {
    pub(crate) handles: [Arc<Handle>; 2],
    pub(crate) tombstones: Arc<Tombstones>,
}

pub(crate) fn start(
    shared: Arc<Shared>,
    tables: Tables,
    writer: Weak<std_mpsc::Sender<writer::Message>>,
    receiver: mpsc::UnboundedReceiver<Message>,
    adopts: bool,
) -> Result<(), Error> {
    let wal = shared.wal.clone();
    let publisher = Publisher {
        shared,
        tables,
        again: [false; 2],
        adopts,
    };
    let runtime = threads::runtime("ledger-publish").map_err(Error::io(&wal))?;
    // It ends when the log is closed, or the ledger and the writer are gone.
    let run = move || runtime.block_on(publisher.run(receiver, writer));
    threads::spawn("ledger-publish", run).map_err(Error::io(&wal))
}

struct Publisher {
    shared: Arc<Shared>,
    tables: Tables,
    /// Whether the last commit failed: it may be in the table all the same.
    again: [bool; 2],
    adopts: bool,
}

impl Publisher {
    async fn run(
        mut self,
        mut receiver: mpsc::UnboundedReceiver<Message>,
        writer: Weak<std_mpsc::Sender<writer::Message>>,
    ) {
        let mut pause = PAUSE;
        let mut publish_at: Option<Instant> = None;
        let (mut adopt_at, mut look_at) = (Instant::now(), Instant::now());
        loop {
            let look = held(&self.shared.lock).is_some().then_some(look_at);
            let adopt = self.adopts.then_some(adopt_at);
            let due = [look, adopt, publish_at].into_iter().flatten().min();
            let message = match due {
                Some(at) => timeout_at(at, receiver.recv()).await,
                None => Ok(receiver.recv().await),
            };
            match message {
                Ok(None) => {
                    // What cannot be published now waits for whoever opens the store next.
                    if self.publish().await.is_ok() {
                        self.remove_folder();
                    }
                    return;
                }
                Ok(Some(Message::Close(done))) => {
                    let published = self.publish_patiently().await;
                    if published.is_ok() {
                        self.remove_folder();
                    }
                    drop(done.send(published));
                    return;
                }
                Ok(Some(Message::Flush(done))) => {
                    let published = self.publish_patiently().await;
                    drop(done.send(published.and(self.adopt().await)));
                }
                // While the store is away the pause decides, however many segments there are.
                Ok(Some(Message::Finished)) => publish_at = publish_at.or(Some(Instant::now())),
                Ok(Some(Message::Began)) | Err(_) => {}
            }
            let now = Instant::now();
            if look_at <= now {
                self.look_for_wishes(&writer);
                look_at = now + LOOK;
            }
            if publish_at.is_some_and(|at| at <= now) {
                match self.publish().await {
                    Ok(()) => {
                        pause = PAUSE;
                        publish_at = None;
                    }
                    Err(error) => {
                        tracing::error!(%error, log_bytes = self.shared.bytes(), "rows could not be appended to their table; they wait in the log");
                        publish_at = Some(Instant::now() + pause);
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                }
            }
            if self.adopts && adopt_at <= now {
                if let Err(error) = self.adopt().await {
                    tracing::error!(%error, "what a process that died left in its log could not be appended yet");
                }
                adopt_at = Instant::now() + ADOPT;
            }
        }
    }

    fn look_for_wishes(&self, writer: &Weak<std_mpsc::Sender<writer::Message>>) {
        let wish = self.shared.folder().join(segments::PUBLISH);
        if wish.exists() && std::fs::remove_file(wish).is_ok() {
            writer::ask_to_finish(writer);
        }
    }

    async fn publish_patiently(&mut self) -> Result<(), Error> {
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            match self.publish().await {
                Ok(()) => return Ok(()),
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause *= 2;
        }
        self.publish().await
    }

    /// Every finished segment of this process; one table's trouble is not the other's.
    async fn publish(&mut self) -> Result<(), Error> {
        let mut result = Ok(());
        for table in 0..LOGGED.len() {
            result = result.and(self.publish_table(table).await);
        }
        result
    }

    async fn publish_table(&mut self, table: usize) -> Result<(), Error> {
        loop {
            let some = self.next(table);
            if some.is_empty() {
                return Ok(());
            }
            let source = Source {
                folder: self.shared.folder(),
                replica: &self.shared.replica,
                table: LOGGED[table],
                is_own: true,
            };
            let found = some.iter().map(|segment| segment.found.clone()).collect();
            let again = std::mem::replace(&mut self.again[table], true);
            let counters = &self.shared.counters[table];
            publish(&source, &self.tables, found, again, counters).await?;
            self.again[table] = false;
            let mut finished = self.shared.finished(table);
            for segment in &some {
                finished.pop_front();
                let own = &self.shared.own_bytes;
                own.fetch_sub(segment.bytes, Ordering::Relaxed);
                counters.waiting.fetch_sub(segment.rows, Ordering::Relaxed);
            }
        }
    }

    /// The oldest segments, as many as make a commit.
    fn next(&self, table: usize) -> Vec<Segment> {
        let finished = self.shared.finished(table);
        let count = fitting(finished.iter().map(|segment| segment.bytes));
        finished.iter().take(count).cloned().collect()
    }

    fn remove_folder(&self) {
        let mut lock = held(&self.shared.lock);
        if lock.is_some()
            && let Err(error) = remove(&self.shared.folder())
        {
            tracing::warn!(path = %self.shared.folder().display(), %error, "an empty log could not be removed");
        }
        *lock = None;
    }

    /// Publishes the logs of processes that died.
    async fn adopt(&self) -> Result<(), Error> {
        let (mut result, mut left) = (Ok(()), 0);
        if self.adopts {
            for replica in segments::replicas(&self.shared.wal)? {
                if replica != self.shared.replica
                    && let Err(error) = self.adopt_one(&replica).await
                {
                    left += size(&self.shared.wal.join(&replica));
                    result = Err(error);
                }
            }
        }
        self.shared.dead_bytes.store(left, Ordering::Relaxed);
        result
    }

    async fn adopt_one(&self, replica: &str) -> Result<(), Error> {
        let folder = self.shared.wal.join(replica);
        let path = folder.join(segments::LOCK);
        // Held until all is done: nobody else who opens the store now does the same.
        let lock = match std::fs::File::open(&path) {
            Ok(lock) => Some(lock),
            // Whoever removes a folder does so last with its lock; a folder without one is nobody's.
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io(&path)(e)),
        };
        match lock.as_ref().map(std::fs::File::try_lock) {
            None | Some(Ok(())) => {}
            Some(Err(TryLockError::WouldBlock)) => return Ok(()),
            Some(Err(TryLockError::Error(e))) => return Err(Error::io(&path)(e)),
        }
        for (table, name) in LOGGED.into_iter().enumerate() {
            let mut rest = segments::of(&folder, name)?;
            let source = Source {
                folder: folder.clone(),
                replica,
                table: name,
                is_own: false,
            };
            let counters = &self.shared.counters[table];
            while !rest.is_empty() {
                let length = |found: &Found| std::fs::metadata(&found.path).map_or(0, |m| m.len());
                let count = fitting(rest.iter().map(length));
                let some = rest.drain(..count).collect();
                publish(&source, &self.tables, some, true, counters).await?;
            }
        }
        remove(&folder).map_err(Error::io(&folder))
    }
}

/// How many segments of these lengths make a commit.
fn fitting(lengths: impl Iterator<Item = u64>) -> usize {
    let mut bytes = 0;
    let fit = lengths.take_while(|length| {
        bytes += length;
        bytes <= COMMIT_BYTES
    });
    fit.count().max(1)
}

/// A log without segments, its lock last.
fn remove(folder: &Path) -> io::Result<()> {
    for name in [segments::PUBLISH, "probe", segments::LOCK] {
        match std::fs::remove_file(folder.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    match std::fs::remove_dir(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn size(folder: &Path) -> u64 {
    let names = files::names(folder).unwrap_or_default();
    let bytes = |name: String| std::fs::metadata(folder.join(name)).map_or(0, |m| m.len());
    names.into_iter().map(bytes).sum()
}

/// Whose segments.
struct Source<'a> {
    folder: PathBuf,
    replica: &'a str,
    table: Table,
    is_own: bool,
}

/// Brings some segments' rows into the table, and deletes the segments. `again`: some of them may be there already.
async fn publish(
    source: &Source<'_>,
    tables: &Tables,
    segments: Vec<Found>,
    again: bool,
    counters: &Counters,
) -> Result<(), Error> {
    let handle = &tables.handles[source.table as usize];
    let above = match again {
        true => handle.transaction(source.replica).await?.unwrap_or(0),
        false => 0,
    };
    let (read, mut come) = {
        let (segments, schema) = (segments.clone(), handle.schema().clone());
        let (folder, is_own) = (source.folder.clone(), source.is_own);
        let (table, tombstones) = (source.table, tables.tombstones.clone());
        let read = move || {
            let mut read = read(&segments, above, &schema, is_own, &folder)?;
            // Looked for once the rows are there: whoever forgets waits for the segments that there are after its tombstone.
            tombstones.leave_out(table, &mut read.batches)?;
            // Of a try that was cut off nobody knows whether it looked again.
            let earlier = match above {
                0 => Vec::new(),
                _ => self::read(&segments, 0, &schema, is_own, &folder)?.batches,
            };
            Ok((read, earlier))
        };
        tokio::task::spawn_blocking(read)
            .await
            .unwrap_or_else(|e| Err(Error::Query(format!("reading the log was cut off: {e}"))))?
    };
    let step = |step| faults::at(step).map_err(Error::io(&source.folder));
    step("publish-read")?;
    let rows: usize = read.batches.iter().map(RecordBatch::num_rows).sum();
    if rows > 0 {
        come.extend(read.batches.iter().cloned());
        handle
            .append(read.batches, source.replica, read.last)
            .await?;
    }
    // Whoever began to forget while they were on their way did not find them.
    let (table, tombstones) = (source.table, tables.tombstones.clone());
    let look = move || tombstones.look_again(table, &come);
    tokio::task::spawn_blocking(look)
        .await
        .unwrap_or_else(|e| Err(Error::Query(format!("a look was cut off: {e}"))))?;
    step("publish-committed")?;
    // Also where an earlier try committed them: perhaps it got no further.
    let committed = if rows > 0 { read.last } else { above };
    if committed > 0 {
        handle.sync(source.replica, committed).await?;
    }
    step("publish-synced")?;
    for segment in &segments {
        files::remove(&segment.path)?;
        step("publish-deleted")?;
    }
    if !source.is_own && rows > 0 {
        tracing::info!(
            replica = source.replica,
            table = source.table.name(),
            rows,
            "rows from the log of a process that died are in their table"
        );
    }
    let add = |counter: &std::sync::atomic::AtomicU64, n: u64| {
        counter.fetch_add(n, Ordering::Relaxed);
    };
    add(&counters.appended, rows as u64);
    add(&counters.damaged, read.damaged);
    add(&counters.refused, read.refused);
    add(&counters.torn, read.torn);
    Ok(())
}

/// What segments hold above a number.
#[derive(Default)]
struct Read {
    batches: Vec<RecordBatch>,
    /// The last number; 0 without rows.
    last: u64,
    damaged: u64,
    refused: u64,
    torn: u64,
}

fn read(
    segments: &[Found],
    above: u64,
    schema: &SchemaRef,
    is_own: bool,
    folder: &Path,
) -> Result<Read, Error> {
    let mut read = Read::default();
    for Found { path, first } in segments {
        let Some((mut file, length)) = segments::open(path)? else {
            // Nobody else deletes an own segment. With the folder it may come back; without, it will not.
            if is_own && !folder.join(segments::LOCK).exists() {
                return Err(Error::io(path)(io::ErrorKind::NotFound.into()));
            }
            if is_own {
                tracing::error!(path = %path.display(), "a segment of the log is gone, and its rows are lost: somebody else deleted it");
                read.damaged += 1;
            }
            continue;
        };
        let bytes = segments::read(&mut file, path, length)?;
        let scan = segments::scan(path, *first, &bytes)?;
        for damage in &scan.damaged {
            tracing::error!(path = %path.display(), offset = damage.offset, bytes = damage.bytes, rows = damage.rows, "the log is damaged here; these rows are lost, and those behind them kept");
            read.damaged += damage.rows;
        }
        if scan.torn > 0 {
            tracing::warn!(path = %path.display(), bytes = scan.torn, "the log's end was torn by a kill or a power cut, and is cut off");
            read.torn += 1;
        }
        let fresh = scan.records.iter().filter(|record| record.number > above);
        let rows: Vec<&[u8]> = fresh.map(|record| record.row).collect();
        if !rows.is_empty()
            && let Some(record) = scan.records.last()
        {
            read.last = record.number;
        }
        let (batches, refused) = segments::decode(schema, &rows);
        for (row, error) in &refused {
            // The error may quote the row.
            let kind = error.to_string();
            let kind = kind.split(':').next().unwrap_or_default();
            tracing::error!(id = segments::id(row), path = %path.display(), error = kind, "a row does not fit its table, and is left out");
        }
        read.refused += refused.len() as u64;
        read.batches.extend(batches);
    }
    Ok(read)
}

#[cfg(test)]
#[path = "publisher_tests.rs"]
mod tests;
