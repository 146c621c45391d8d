//! One Delta table: opened or created, appended to, asked.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use deltalake::datafusion::catalog::TableProvider;
use deltalake::kernel::Transaction;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::CommitProperties;
use deltalake::protocol::SaveMode;
use deltalake::{DeltaTable, DeltaTableError, StructType};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::error::Error;
use crate::schema::{Table, VERSION};

/// A handle that is kept and brought up to date, rather than opened anew for every question.
pub(crate) struct Handle {
    table: Table,
    folder: PathBuf,
    delta: Mutex<DeltaTable>,
    appending: Mutex<()>,
}

impl Handle {
    pub(crate) async fn open(store: &Path, table: Table) -> Result<Self, Error> {
        let folder = store.join(table.name());
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let delta = |source: DeltaTableError| Error::Delta {
            table: table.name(),
            source: Box::new(source),
        };
        let url = deltalake::ensure_table_uri(folder.to_string_lossy()).map_err(delta)?;
        let mut opened = DeltaTable::try_from_url(url.clone()).await.map_err(delta)?;
        if opened.version().is_none() {
            let schema: StructType =
                table
                    .schema()
                    .as_ref()
                    .try_into_kernel()
                    .map_err(|e| Error::Row {
                        table: table.name(),
                        what: e.to_string(),
                    })?;
            let created = opened
                .create()
                .with_table_name(table.name())
                .with_columns(schema.fields().cloned())
                .with_save_mode(SaveMode::Ignore)
                .with_raise_if_key_not_exists(false)
                .with_configuration([("retune.schemaVersion", Some(VERSION))])
                .await;
            opened = match created {
                Ok(created) => created,
                // Another process created it at this moment.
                Err(_) => DeltaTable::try_from_url(url).await.map_err(delta)?,
            };
        }
        Ok(Handle {
            table,
            folder,
            delta: Mutex::new(opened),
            appending: Mutex::new(()),
        })
    }

    fn error(&self, source: DeltaTableError) -> Error {
        Error::Delta {
            table: self.table.name(),
            source: Box::new(source),
        }
    }

    /// Appends batches, and notes with them that the table now has `writer`'s rows up to number `last`.
    pub(crate) async fn append(
        &self,
        batches: Vec<RecordBatch>,
        writer: &str,
        last: u64,
    ) -> Result<(), Error> {
        // Two commits of one writer at the same time would be in each other's way.
        let _alone = self.appending.lock().await;
        let last = i64::try_from(last).unwrap_or(i64::MAX);
        let commit = CommitProperties::default()
            .with_application_transaction(Transaction::new(writer, last));
        // Questions need not wait for the writing.
        let delta = self.delta.lock().await.clone();
        let written = delta
            .write(batches)
            .with_save_mode(SaveMode::Append)
            .with_commit_properties(commit)
            .await
            .map_err(|e| self.error(e))?;
        let mut delta = self.delta.lock().await;
        if written.version() > delta.version() {
            *delta = written;
        }
        Ok(())
    }

    /// Up to which number the table has `writer`'s rows, as far as anybody knows now.
    pub(crate) async fn transaction(&self, writer: &str) -> Result<Option<u64>, Error> {
        let mut delta = self.delta.lock().await;
        delta.update_state().await.map_err(|e| self.error(e))?;
        self.last_of(&delta, writer).await
    }

    async fn last_of(&self, delta: &DeltaTable, writer: &str) -> Result<Option<u64>, Error> {
        let log_store = delta.log_store();
        let snapshot = delta.snapshot().map_err(|e| self.error(e))?;
        let last = snapshot
            .transaction_version(log_store.as_ref(), writer)
            .await
            .map_err(|e| self.error(e))?;
        Ok(last.and_then(|last| u64::try_from(last).ok()))
    }

    /// Brings the commit that has `writer`'s rows up to `last`, and its files, to disk: the object store's local folder does not.
    pub(crate) async fn sync(&self, writer: &str, last: u64) -> Result<(), Error> {
        let (folder, writer) = (self.folder.clone(), writer.to_owned());
        let newest = self.delta.lock().await.version().unwrap_or_default();
        let synced = tokio::task::spawn_blocking(move || {
            sync_commit(&folder, newest, &writer, last).map_err(Error::io(&folder))
        });
        synced.await.unwrap_or_else(|e| {
            Err(Error::Query(format!(
                "bringing a table to disk was cut off: {e}"
            )))
        })
    }

    /// The table as it stands now, for a question, and up to which number it has these writers' rows.
    pub(crate) async fn see(&self, writers: &[String]) -> Result<Seen, Error> {
        let mut delta = self.delta.lock().await;
        delta.update_state().await.map_err(|e| self.error(e))?;
        let mut published = Vec::with_capacity(writers.len());
        for writer in writers {
            published.push(self.last_of(&delta, writer).await?.unwrap_or(0));
        }
        let provider = delta.table_provider().await;
        Ok(Seen {
            provider: provider.map_err(|e| self.error(e.into()))?,
            version: delta.version().unwrap_or_default(),
            published,
        })
    }

    /// Its version now: the number of its commits.
    pub(crate) async fn version(&self) -> Result<u64, Error> {
        let mut delta = self.delta.lock().await;
        delta.update_state().await.map_err(|e| self.error(e))?;
        Ok(delta.version().unwrap_or_default())
    }
}

/// A table at one version.
pub(crate) struct Seen {
    pub(crate) provider: Arc<dyn TableProvider>,
    pub(crate) version: u64,
    /// Of each writer asked for, the last number of its rows that are in it.
    pub(crate) published: Vec<u64>,
}

/// Looks for the commit from the newest one back, and syncs what it added before itself.
fn sync_commit(folder: &Path, newest: u64, writer: &str, last: u64) -> std::io::Result<()> {
    #[derive(Deserialize)]
    struct Line {
        add: Option<Add>,
        txn: Option<Txn>,
    }
    #[derive(Deserialize)]
    struct Add {
        path: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Txn {
        app_id: String,
        version: u64,
    }
    let log = folder.join("_delta_log");
    for version in (0..=newest).rev() {
        let path = log.join(format!("{version:020}.json"));
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            // Older ones became a checkpoint.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let lines: Vec<Line> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let txn = lines.iter().filter_map(|line| line.txn.as_ref());
        if !txn
            .into_iter()
            .any(|txn| txn.app_id == writer && txn.version >= last)
        {
            continue;
        }
        for add in lines.iter().filter_map(|line| line.add.as_ref()) {
            File::open(folder.join(&add.path))?.sync_all()?;
        }
        File::open(folder)?.sync_all()?;
        File::open(&path)?.sync_all()?;
        return File::open(&log)?.sync_all();
    }
    Ok(())
}
