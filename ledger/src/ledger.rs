//! The ledger itself: one handle for everything that is kept.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use retune_task::Store;

use crate::bucket::Bucket;
use crate::error::Error;
use crate::forget::tombstones::Tombstones;
use crate::ids::{self, Ids};
use crate::keys::{self, Key, KeyList};
use crate::lease::{self, Lease};
use crate::place::Place;
use crate::rows::{Exchange, Feedback, Run, Window};
use crate::schema::Table;
use crate::session::Sessions;
use crate::table::Handle;
use crate::upkeep;
use crate::wal::{self, LOGGED, Log};

/// How long other processes may take to publish what they have.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(60);

/// A cheap handle; clones share one ledger.
#[derive(Clone)]
pub struct Ledger(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    store: Place,
    /// The folder on this machine for logs and files; the store itself, where that is a folder.
    local: PathBuf,
    replica: String,
    ids: Ids,
    seq: AtomicU64,
    handles: [Arc<Handle>; 4],
    log: Log,
    sessions: Sessions,
    settled: Duration,
    tombstones: Arc<Tombstones>,
    keep_days: Option<u64>,
    appends: [AtomicU64; 4],
    /// Dropped with the ledger, which ends the upkeep in the background.
    _upkeep: Sender<()>,
}

/// A table's rows in this process's lifetime.
#[derive(Debug, Clone, PartialEq)]
pub struct LedgerStats {
    /// The table.
    pub table: Table,
    /// Rows put into the table by this process: its own, and those that processes which died left in their logs.
    pub appended: u64,
    /// Rows in the log that are not in the table yet.
    pub waiting: u64,
    /// Rows that were not kept, by reason.
    pub dropped: [(&'static str, u64); 5],
    /// Segments of the log whose end was torn by a kill or a power cut.
    pub torn: u64,
    /// Files that cannot be read, and are left out of every answer.
    pub damaged_files: u64,
    /// Age of the oldest waiting row, in seconds.
    pub lag_seconds: f64,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger")
            .field("store", &self.0.store.shown())
            .field("replica", &self.0.replica)
            .finish_non_exhaustive()
    }
}

impl Ledger {
    /// How long after its `ts` a row may become visible. In a folder all processes see each other's logs, so that a row is there when
    /// it is written; this leaves time for a slow disk. In a bucket the rows of other machines come with their next append.
    pub fn settled(&self) -> Duration {
        self.0.settled
    }

    /// Opens a store, and creates what is absent. Several processes may have it open at once. What processes that died left in their
    /// logs goes into the tables in the background.
    pub async fn open(store: &Store) -> Result<Ledger, Error> {
        Self::open_as(store, true).await
    }

    /// Opens a store for a question or a decision: what dead processes left is seen, and left to a process that stays.
    pub async fn open_briefly(store: &Store) -> Result<Ledger, Error> {
        Self::open_as(store, false).await
    }

    async fn open_as(options: &Store, adopts: bool) -> Result<Ledger, Error> {
        let absolute = |path: &str| -> Result<PathBuf, Error> {
            std::fs::create_dir_all(path).map_err(Error::io(Path::new(path)))?;
            std::path::absolute(path).map_err(Error::io(Path::new(path)))
        };
        let (store, local) = match folder_of(&options.url) {
            Some(path) => {
                let folder = absolute(path)?;
                (Place::folder(folder.clone()), folder)
            }
            None => {
                let bucket = Arc::new(Bucket::open(&options.url)?);
                (Place::bucket(bucket), absolute(&options.local)?)
            }
        };
        let replica = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
        let [exchanges, feedback, windows, runs] = Table::ALL;
        let handles = [
            Arc::new(Handle::open(&store, exchanges).await?),
            Arc::new(Handle::open(&store, feedback).await?),
            Arc::new(Handle::open(&store, windows).await?),
            Arc::new(Handle::open(&store, runs).await?),
        ];
        let ids = {
            let (store, replica) = (store.clone(), replica.clone());
            blocking(move || Ids::of(&store, replica)).await?
        };
        let logged = LOGGED.map(|table| Arc::clone(&handles[table as usize]));
        let tombstones = Arc::new(Tombstones::of(&store, *ids.surrogates()));
        let log = wal::Options::of(options);
        let log = Log::start(&local, &replica, log, logged, tombstones.clone(), adopts)?;
        let every = Duration::from_secs_f64(options.compact_seconds);
        let (upkeep, end) = channel();
        let ledger = Ledger(Arc::new(Inner {
            ids,
            seq: AtomicU64::new(0),
            log,
            sessions: Sessions::new(options.query_memory_bytes)?,
            settled: settled(options, &store),
            tombstones,
            keep_days: options.keep_days,
            appends: Default::default(),
            handles,
            replica,
            _upkeep: upkeep,
            store,
            local,
        }));
        if adopts && !every.is_zero() {
            upkeep::begin(Arc::downgrade(&ledger.0), end, every, &ledger.0.local)?;
        }
        Ok(ledger)
    }

    /// This process's own name among those that write to the store: 8 hex digits.
    pub fn replica(&self) -> &str {
        &self.0.replica
    }

    /// A fresh id for an answer. `keeps_text`: whether texts of its exchange may be kept, as long as anybody says something of it.
    pub fn new_request_id(&self, keeps_text: bool) -> String {
        self.0.ids.at(Utc::now(), keeps_text)
    }

    /// A fresh id for an answer that was given at another time.
    pub fn new_request_id_at(&self, ts: DateTime<Utc>) -> String {
        self.0.ids.at(ts, true)
    }

    pub(crate) fn tombstones(&self) -> &Arc<Tombstones> {
        &self.0.tombstones
    }

    pub(crate) fn keep_days(&self) -> Option<u64> {
        self.0.keep_days
    }

    pub(crate) fn is_bucket(&self) -> bool {
        self.0.store.as_bucket().is_some()
    }

    pub(crate) fn secret(&self) -> &[u8; 32] {
        self.0.ids.surrogates()
    }

    pub(crate) fn made_at(&self, id: &str) -> Option<DateTime<Utc>> {
        self.0.ids.made_at(id)
    }

    /// Whether this installation made the id.
    pub fn is_own_request_id(&self, id: &str) -> bool {
        self.0.ids.is_own(id)
    }

    /// What only this installation, of whatever replica, can say of a text: 64 hex digits. For cookies and the like.
    pub fn seal(&self, text: &str) -> String {
        self.0.ids.seal(text)
    }

    /// Keeps an exchange and gives it its sequence number. When this returns, the row is in the log: a kill does not lose it, and
    /// questions see it.
    pub async fn append_exchange(&self, mut row: Exchange) -> Result<(), Error> {
        row.seq = self.0.seq.fetch_add(1, Ordering::Relaxed);
        self.append_logged(Table::Exchanges, &row).await
    }

    /// Keeps a feedback, likewise; without its words where the answer's id says that none are kept.
    pub async fn append_feedback(&self, row: Feedback) -> Result<(), Error> {
        let left = match ids::keeps_text(&row.request_id) {
            true => Some(row),
            false => row.without_text(),
        };
        match left {
            Some(row) => self.append_logged(Table::Feedback, &row).await,
            None => Ok(()),
        }
    }

    async fn append_logged(&self, table: Table, row: &impl serde::Serialize) -> Result<(), Error> {
        let row = table.encode(row)?;
        let text = serde_json::to_vec(&row).map_err(|e| Error::Row {
            table: table.name(),
            what: e.to_string(),
        })?;
        self.0.log.append(table as usize, text).await
    }

    /// Whether a row that comes now will be kept. With `store.on_log_failure = "reject"` an error says that it would not, so that no
    /// answer is to be given; otherwise there is none.
    pub async fn ready(&self) -> Result<(), Error> {
        self.0.log.ready().await
    }

    /// Writes the state of a run, at once.
    pub async fn append_run(&self, row: &Run) -> Result<(), Error> {
        self.append_now(Table::Runs, std::slice::from_ref(row))
            .await
    }

    /// Writes states of streams, at once.
    pub async fn append_windows(&self, rows: &[Window]) -> Result<(), Error> {
        self.append_now(Table::Windows, rows).await
    }

    async fn append_now<T: serde::Serialize>(&self, table: Table, rows: &[T]) -> Result<(), Error> {
        let rows = rows
            .iter()
            .map(|row| table.encode(row))
            .collect::<Result<Vec<_>, _>>()?;
        if rows.is_empty() {
            return Ok(());
        }
        // What this process appended so far numbers the append; the handle's lock lets one through at a time.
        let appended = &self.0.appends[table as usize];
        let number = appended.fetch_add(rows.len() as u64, Ordering::Relaxed);
        self.handle(table)
            .append(vec![table.batch(&rows)?], &self.0.replica, number)
            .await?;
        Ok(())
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    pub(crate) fn handle(&self, table: Table) -> &Handle {
        &self.0.handles[table as usize]
    }

    /// Waits until every row that this process appended is in its table, and what dead processes left.
    pub async fn flush(&self) -> Result<(), Error> {
        self.0.log.flush().await
    }

    /// Flushes, and takes no further rows. Those that cannot be put into their tables stay in the log, for whoever opens the store next.
    pub async fn close(&self) -> Result<(), Error> {
        let left = |source| Error::LeftInLog {
            source: Box::new(source),
        };
        self.0.log.close().await.map_err(left)
    }

    /// Waits until the tables have every row that is in a log of this machine now; other processes are asked to publish theirs.
    pub(crate) async fn publish(&self) -> Result<(), Error> {
        self.flush().await?;
        let give_up = Instant::now() + PUBLISHED_WITHIN;
        let local = self.0.local.clone();
        let waiting = blocking(move || wal::ask_to_publish(&local)).await?;
        loop {
            let left = waiting.clone();
            let left = blocking(move || Ok(wal::not_published(left))).await?;
            let Some(first) = left.first() else {
                return Ok(());
            };
            if Instant::now() >= give_up {
                return Err(Error::NotPublished {
                    path: first.clone(),
                    seconds: PUBLISHED_WITHIN.as_secs(),
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What became of the rows, table by table.
    pub fn stats(&self) -> Vec<LedgerStats> {
        Table::ALL
            .iter()
            .map(|table| self.stats_of(*table))
            .collect()
    }

    /// Bytes of the log that are not in a table yet, those of dead processes included.
    pub fn log_bytes(&self) -> u64 {
        self.0.log.shared.bytes()
    }

    fn stats_of(&self, table: Table) -> LedgerStats {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let none = wal::Counters::default();
        let log = &self.0.log.shared;
        let logged = log.counters.get(table as usize);
        let counters = logged.unwrap_or(&none);
        LedgerStats {
            table,
            appended: get(logged.map_or(&self.0.appends[table as usize], |c| &c.appended)),
            waiting: get(&counters.waiting),
            dropped: [
                ("full", get(&counters.dropped_full)),
                ("log", get(&counters.dropped_log)),
                ("closed", get(&counters.dropped_closed)),
                ("damaged", get(&counters.damaged)),
                ("refused", get(&counters.refused)),
            ],
            torn: get(&counters.torn),
            damaged_files: self.handle(table).damaged(),
            lag_seconds: logged.map_or(0.0, |_| log.lag(table as usize)),
        }
    }

    /// The folder on this machine for reports, checkpoints and staging; in the store, where that is a folder.
    pub fn files(&self) -> PathBuf {
        self.0.local.join("files")
    }

    pub(crate) fn local(&self) -> PathBuf {
        self.0.local.clone()
    }

    /// Keeps a key; false if its id is taken.
    pub async fn put_key(&self, key: &Key) -> Result<bool, Error> {
        let key = key.clone();
        self.blocking(move |store| keys::put(store, &key)).await
    }

    /// Takes a key back for good; false if it was.
    pub async fn revoke_key(&self, id: &str) -> Result<bool, Error> {
        let id = id.to_owned();
        self.blocking(move |store| keys::revoke(store, &id)).await
    }

    /// Every key, revoked ones too.
    pub async fn keys(&self) -> Result<KeyList, Error> {
        self.blocking(keys::all).await
    }

    /// The right to do something alone; None while somebody else has it.
    pub async fn lease(&self, name: &str) -> Result<Option<Lease>, Error> {
        let (name, holder) = (name.to_owned(), self.0.replica.clone());
        self.blocking(move |store| lease::take(store, &name, &holder))
            .await
    }

    /// Work on the store's files.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Place) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let store = self.0.store.clone();
        blocking(move || work(&store)).await
    }
}

/// Work that waits for a disk or the network, on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| {
        Err(Error::Query(format!(
            "work on the store's files was cut off: {e}"
        )))
    })
}

/// The folder that a store's URL names; none where it names a bucket.
fn folder_of(url: &str) -> Option<&str> {
    let path = url
        .strip_prefix("file://")
        .or_else(|| url.strip_prefix("file:"));
    path.or_else(|| (!url.contains("://")).then_some(url))
}

/// In a bucket, what another machine wrote is there with its next append: one that is under way when it is due, and its own time.
fn settled(options: &Store, store: &Place) -> Duration {
    let disk = Duration::from_secs(2);
    match store.as_bucket() {
        None => disk,
        Some(_) => disk + Duration::from_secs_f64(options.append_seconds) * 2,
    }
}
