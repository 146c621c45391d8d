//! The ledger itself: one handle for everything that is kept.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use chrono::Utc;
use deltalake::datafusion::execution::context::SQLOptions;
use deltalake::datafusion::prelude::{SessionConfig, SessionContext};
use retune_task::Store;

use crate::adapters::{self, AdapterRef};
use crate::decisions::{self, Lease, Reference, Trigger};
use crate::error::Error;
use crate::ids::Ids;
use crate::keys::{self, Key, KeyList};
use crate::manifest::Manifest;
use crate::queries::{ConversationQuery, ExchangeQuery, FeedbackQuery};
use crate::queue::{Limits, Queue};
use crate::rows::{Exchange, Feedback, Run, Window};
use crate::schema::Table;
use crate::stages::Stages;
use crate::table::Handle;

/// A cheap handle; clones share one ledger.
#[derive(Clone)]
pub struct Ledger(Arc<Inner>);

struct Inner {
    store: PathBuf,
    replica: String,
    ids: Ids,
    seq: AtomicU64,
    handles: [Arc<Handle>; 4],
    exchanges: Queue,
    feedback: Queue,
    appends: [AtomicU64; 4],
}

/// A table's rows in this process's lifetime.
#[derive(Debug, Clone, PartialEq)]
pub struct LedgerStats {
    /// The table.
    pub table: Table,
    /// Rows in the table, put there by this process.
    pub appended: u64,
    /// Rows that wait.
    pub waiting: u64,
    /// Rows lost because too many waited.
    pub dropped_full: u64,
    /// Rows lost because they came after the close.
    pub dropped_closed: u64,
    /// Age of the oldest waiting row, in seconds.
    pub lag_seconds: f64,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger")
            .field("store", &self.0.store)
            .field("replica", &self.0.replica)
            .finish_non_exhaustive()
    }
}

impl Ledger {
    /// Opens a store, and creates what is absent. Several processes may have it open at once.
    pub async fn open(store: &Store) -> Result<Ledger, Error> {
        let url = store.url.as_str();
        if let Some((scheme, _)) = url
            .split_once("://")
            .filter(|(scheme, _)| *scheme != "file")
        {
            let what = format!(
                "this version keeps its store in a local folder, not at {scheme}://; use file: and a folder"
            );
            return Err(Error::Url {
                url: url.to_owned(),
                what,
            });
        }
        let path = url
            .strip_prefix("file://")
            .or_else(|| url.strip_prefix("file:"))
            .unwrap_or(url);
        std::fs::create_dir_all(path).map_err(Error::io(Path::new(path)))?;
        let folder = std::path::absolute(path).map_err(Error::io(Path::new(path)))?;
        let replica = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
        let [exchanges, feedback, windows, runs] = Table::ALL;
        let handles = [
            Arc::new(Handle::open(&folder, exchanges).await?),
            Arc::new(Handle::open(&folder, feedback).await?),
            Arc::new(Handle::open(&folder, windows).await?),
            Arc::new(Handle::open(&folder, runs).await?),
        ];
        let limits = Limits {
            rows: store.append_rows,
            bytes: store.append_bytes,
            age: Duration::from_secs_f64(store.append_seconds),
        };
        Ok(Ledger(Arc::new(Inner {
            ids: Ids::of(&folder, replica.clone())?,
            seq: AtomicU64::new(0),
            exchanges: Queue::start(handles[0].clone(), exchanges, replica.clone(), limits),
            feedback: Queue::start(handles[1].clone(), feedback, replica.clone(), limits),
            appends: Default::default(),
            handles,
            replica,
            store: folder,
        })))
    }

    /// This process's own name among those that write to the store: 8 hex digits.
    pub fn replica(&self) -> &str {
        &self.0.replica
    }

    /// A fresh id for an answer.
    pub fn new_request_id(&self) -> String {
        self.0.ids.next()
    }

    /// Whether this installation made the id.
    pub fn is_own_request_id(&self, id: &str) -> bool {
        self.0.ids.is_own(id)
    }

    /// Queues an exchange and gives it its sequence number. Never waits.
    pub fn append_exchange(&self, mut row: Exchange) -> Result<(), Error> {
        row.seq = self.0.seq.fetch_add(1, Ordering::Relaxed);
        self.0.exchanges.push(Table::Exchanges.encode(&row)?)
    }

    /// Queues a feedback. Never waits.
    pub fn append_feedback(&self, row: Feedback) -> Result<(), Error> {
        self.0.feedback.push(Table::Feedback.encode(&row)?)
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
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        self.handle(table)
            .append(table.batch(&rows)?, &self.0.replica, number, false)
            .await?;
        Ok(())
    }

    fn handle(&self, table: Table) -> &Handle {
        &self.0.handles[table as usize]
    }

    /// Waits until every queued row is in its table.
    pub async fn flush(&self) -> Result<(), Error> {
        let (a, b) = tokio::join!(self.0.exchanges.flush(), self.0.feedback.flush());
        a.and(b)
    }

    /// Flushes, and takes no further rows.
    pub async fn close(&self) -> Result<(), Error> {
        let (a, b) = tokio::join!(self.0.exchanges.close(), self.0.feedback.close());
        a.and(b)
    }

    /// Exchanges in the order (ts, replica, seq). A row is visible once its append is; rows of other replicas may
    /// become visible later with an earlier time, so that whoever reads on from a cursor stays
    /// some multiples of `append_seconds` behind the present.
    pub async fn exchanges(&self, q: &ExchangeQuery) -> Result<Vec<Exchange>, Error> {
        self.rows(
            Table::Exchanges,
            &q.conditions(),
            "ts, replica, seq",
            q.limit,
        )
        .await
    }

    /// Conversations in the order (ts, replica, seq), or its reverse.
    pub async fn conversations(&self, q: &ConversationQuery) -> Result<Vec<Exchange>, Error> {
        let (conditions, order) = q.conditions_and_order();
        self.rows(Table::Exchanges, &conditions, order, q.limit)
            .await
    }

    /// Feedback in the order of its time.
    pub async fn feedback(&self, q: &FeedbackQuery) -> Result<Vec<Feedback>, Error> {
        self.rows(Table::Feedback, &q.conditions(), "ts, feedback_id", None)
            .await
    }

    /// The newest row of every run, oldest run first.
    pub async fn runs(&self) -> Result<Vec<Run>, Error> {
        let rows: Vec<Run> = self.rows(Table::Runs, &[], "ts", None).await?;
        let mut newest: Vec<Run> = Vec::new();
        for row in rows {
            match newest.iter_mut().find(|run| run.run_id == row.run_id) {
                Some(run) => *run = row,
                None => newest.push(row),
            }
        }
        Ok(newest)
    }

    async fn rows<T: serde::de::DeserializeOwned>(
        &self,
        table: Table,
        conditions: &[String],
        order: &str,
        limit: Option<usize>,
    ) -> Result<Vec<T>, Error> {
        let mut query = format!("select * from {table}");
        if !conditions.is_empty() {
            query.push_str(&format!(" where {}", conditions.join(" and ")));
        }
        query.push_str(&format!(" order by {order}"));
        if let Some(limit) = limit {
            query.push_str(&format!(" limit {limit}"));
        }
        table.decode(&self.ask(&query, &[table]).await?)
    }

    /// A table's version: the number of its commits.
    pub async fn table_version(&self, table: Table) -> Result<u64, Error> {
        Ok(self.handle(table).provider().await?.1)
    }

    /// Answers a question over `exchanges`, `feedback`, `windows`, `runs`; refuses whatever would change something.
    pub async fn sql(&self, query: &str) -> Result<Vec<RecordBatch>, Error> {
        self.ask(query, &Table::ALL).await
    }

    async fn ask(&self, query: &str, tables: &[Table]) -> Result<Vec<RecordBatch>, Error> {
        let context =
            SessionContext::new_with_config(SessionConfig::new().with_information_schema(true));
        for table in tables {
            let (provider, _) = self.handle(*table).provider().await?;
            context
                .register_table(table.name(), provider)
                .map_err(|e| Error::Query(e.to_string()))?;
        }
        let options = SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false);
        let frame = context
            .sql_with_options(query, options)
            .await
            .map_err(|e| {
                let text = e.strip_backtrace();
                if text.contains("not supported:") {
                    Error::ReadOnly(text)
                } else {
                    Error::Query(text)
                }
            })?;
        frame
            .collect()
            .await
            .map_err(|e| Error::Query(e.strip_backtrace()))
    }

    /// What became of the rows, table by table.
    pub fn stats(&self) -> Vec<LedgerStats> {
        Table::ALL
            .iter()
            .map(|table| self.stats_of(*table))
            .collect()
    }

    fn stats_of(&self, table: Table) -> LedgerStats {
        let queue = match table {
            Table::Exchanges => &self.0.exchanges,
            Table::Feedback => &self.0.feedback,
            Table::Windows | Table::Runs => {
                let appended = self.0.appends[table as usize].load(Ordering::Relaxed);
                return LedgerStats {
                    table,
                    appended,
                    waiting: 0,
                    dropped_full: 0,
                    dropped_closed: 0,
                    lag_seconds: 0.0,
                };
            }
        };
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let counters = &queue.counters;
        let oldest = get(&counters.oldest_ms);
        let now = u64::try_from(Utc::now().timestamp_millis()).unwrap_or_default();
        LedgerStats {
            table,
            appended: get(&counters.appended),
            waiting: get(&counters.waiting),
            dropped_full: get(&counters.dropped_full),
            dropped_closed: get(&counters.dropped_closed),
            lag_seconds: if oldest == 0 {
                0.0
            } else {
                now.saturating_sub(oldest) as f64 / 1000.0
            },
        }
    }

    /// The folder for reports, checkpoints and staging, on the store's own file system.
    pub fn files(&self) -> PathBuf {
        self.0.store.join("files")
    }

    /// Publishes a staging folder with PEFT's two files as the task's next adapter.
    pub async fn put_adapter(
        &self,
        task: &str,
        staging: &Path,
        manifest: Manifest,
    ) -> Result<AdapterRef, Error> {
        let (task, staging) = (task.to_owned(), staging.to_owned());
        self.blocking(move |store| adapters::publish(store, &task, &staging, manifest))
            .await
    }

    /// A task's adapters, in order.
    pub async fn adapters(&self, task: &str) -> Result<Vec<AdapterRef>, Error> {
        let task = task.to_owned();
        self.blocking(move |store| adapters::all(store, &task))
            .await
    }

    /// One adapter.
    pub async fn adapter(&self, task: &str, number: u32) -> Result<AdapterRef, Error> {
        let task = task.to_owned();
        self.blocking(move |store| adapters::get(store, &task, number))
            .await
    }

    /// Checks that an adapter's files are those that were published.
    pub async fn verify_adapter(&self, adapter: &AdapterRef) -> Result<(), Error> {
        let adapter = adapter.clone();
        self.blocking(move |_| adapters::verify(&adapter)).await
    }

    /// The stages of a task's adapters.
    pub async fn stages(&self, task: &str) -> Result<Stages, Error> {
        let task = task.to_owned();
        self.blocking(move |store| decisions::stages(store, &task))
            .await
    }

    /// All stages that were ever decided, oldest first.
    pub async fn stages_history(&self, task: &str) -> Result<Vec<Stages>, Error> {
        let task = task.to_owned();
        self.blocking(move |store| decisions::history(store, &task))
            .await
    }

    /// Decides the stages anew, if nobody did since `expected`.
    pub async fn set_stages(&self, task: &str, expected: u64, after: Stages) -> Result<(), Error> {
        let task = task.to_owned();
        self.blocking(move |store| decisions::set_stages(store, &task, expected, &after))
            .await
    }

    /// Creates a trigger; false if it was there.
    pub async fn put_trigger(&self, trigger: &Trigger) -> Result<bool, Error> {
        let trigger = trigger.clone();
        self.blocking(move |store| decisions::put_trigger(store, &trigger))
            .await
    }

    /// A task's triggers, or all, oldest first.
    pub async fn triggers(&self, task: Option<&str>) -> Result<Vec<Trigger>, Error> {
        let task = task.map(str::to_owned);
        self.blocking(move |store| decisions::triggers(store, task.as_deref()))
            .await
    }

    /// Freezes a reference; false if there was one.
    pub async fn put_reference(&self, reference: &Reference) -> Result<bool, Error> {
        let reference = reference.clone();
        self.blocking(move |store| decisions::put_reference(store, &reference))
            .await
    }

    /// An adapter's reference; with a digest only if it is that version's.
    pub async fn reference(
        &self,
        task: &str,
        adapter: &str,
        digest: Option<&str>,
    ) -> Result<Option<Reference>, Error> {
        let (task, adapter, digest) = (
            task.to_owned(),
            adapter.to_owned(),
            digest.map(str::to_owned),
        );
        self.blocking(move |store| decisions::reference(store, &task, &adapter, digest.as_deref()))
            .await
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
        let name = name.to_owned();
        self.blocking(move |store| decisions::lease(store, &name))
            .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let store = self.0.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.unwrap_or_else(|e| {
            Err(Error::Query(format!(
                "work on the store's files was cut off: {e}"
            )))
        })
    }
}
