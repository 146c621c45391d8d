//! One Delta table: opened or created, appended to, asked.

use std::collections::{BTreeSet, HashSet};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use deltalake::datafusion::catalog::TableProvider;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{Action, Transaction};
use deltalake::operations::vacuum::VacuumMode;
use deltalake::operations::write::SchemaMode;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::writer::{DeltaWriter, RecordBatchWriter};
use deltalake::{DeltaTable, DeltaTableError, FilterOp, FilterValue, StructType};
use futures::TryStreamExt;
use tokio::sync::Mutex;
use tokio::sync::mpsc::Receiver;

use crate::bucket;
use crate::commit::Commit;
use crate::error::Error;
use crate::faults;
use crate::layout::{DAY, as_of};
use crate::ledger::blocking;
use crate::place::Place;
use crate::schema::{Table, VERSION};
use crate::upkeep::{Merge, Part};
use crate::verify;

/// How its files' names end.
const PARQUET: &str = ".parquet";

/// A handle that is kept and brought up to date, rather than opened anew for every question.
pub(crate) struct Handle {
    table: Table,
    place: Place,
    /// What its files are to be written with: the rows' columns, and their day where it is partitioned by it.
    schema: SchemaRef,
    delta: Mutex<DeltaTable>,
    appending: Mutex<()>,
    /// Files that cannot be read, and are left out of every question.
    damaged: Mutex<BTreeSet<String>>,
}

impl Handle {
    pub(crate) async fn open(store: &Place, table: Table) -> Result<Self, Error> {
        let delta = |source: DeltaTableError| Error::Delta {
            table: table.name(),
            source: Box::new(source),
        };
        let place = store.join(table.name());
        let url = match place.as_bucket() {
            Some(bucket) => bucket.table(table.name())?,
            None => {
                let folder = place.shown();
                std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
                deltalake::ensure_table_uri(folder.to_string_lossy()).map_err(delta)?
            }
        };
        let load = async || {
            DeltaTable::try_from_url_with_storage_options(url.clone(), bucket::options()).await
        };
        let mut opened = load().await.map_err(delta)?;
        if opened.version().is_none() {
            let schema: StructType = table
                .schema_with_partitions()
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
                .with_partition_columns(table.partition_columns().iter().copied())
                .with_save_mode(SaveMode::Ignore)
                .with_raise_if_key_not_exists(false)
                .with_configuration(table.configuration(&VERSION.to_string()))
                .await;
            opened = match created {
                Ok(created) => created,
                // Another process created it at this moment.
                Err(_) => load().await.map_err(delta)?,
            };
        }
        let snapshot = opened.snapshot().map_err(delta)?;
        let metadata = snapshot.metadata();
        let version = metadata.configuration().get("retune.schemaVersion");
        let version = version.map_or("none", String::as_str);
        if version.parse().is_ok_and(|version: u32| version > VERSION) {
            return Err(Error::Damaged {
                path: place.shown(),
                what: format!(
                    "was made by a newer Retune: its schema version is {version}, and this program knows those up to {VERSION}"
                ),
            });
        }
        let schema = match metadata.partition_columns().iter().any(|c| c == DAY) {
            true => table.schema_with_partitions(),
            // Version 1 had no partitions.
            false => table.schema(),
        };
        Ok(Handle {
            table,
            place,
            schema,
            delta: Mutex::new(opened),
            appending: Mutex::new(()),
            damaged: Mutex::default(),
        })
    }

    fn error(&self, source: DeltaTableError) -> Error {
        Error::Delta {
            table: self.table.name(),
            source: Box::new(source),
        }
    }

    pub(crate) fn table(&self) -> Table {
        self.table
    }

    /// Its folder, or its place in a bucket.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Whether it is partitioned by days; tables of schema version 1 are not.
    pub(crate) fn is_by_day(&self) -> bool {
        self.schema.column_with_name(DAY).is_some()
    }

    /// The columns of its batches.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
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
            // A table of an earlier version gets the columns that it lacks with the first row that may have something in them.
            .with_schema_mode(SchemaMode::Merge)
            .with_writer_properties(self.table.writer_properties())
            .with_commit_properties(commit)
            .await
            .map_err(|e| self.error(e))?;
        self.keep(written).await;
        Ok(())
    }

    async fn keep(&self, newer: DeltaTable) {
        let mut delta = self.delta.lock().await;
        if newer.version() > delta.version() {
            *delta = newer;
        }
    }

    /// The files that it has now.
    pub(crate) async fn parts(&self) -> Result<Vec<Part>, Error> {
        let mut delta = self.delta.lock().await;
        delta.update_state().await.map_err(|e| self.error(e))?;
        let snapshot = delta.snapshot().map_err(|e| self.error(e))?;
        let part = |file: deltalake::kernel::LogicalFileView| Part {
            day: file.partition_values_map().remove(DAY).flatten(),
            bytes: u64::try_from(file.size()).unwrap_or_default(),
            rows: file.num_records().map(|rows| rows as u64),
            path: file.path().into_owned(),
        };
        Ok(snapshot.log_data().iter().map(part).collect())
    }

    /// Writes small files anew as larger ones, beside others who append; the rows are the same.
    pub(crate) async fn merge(&self, merge: &Merge) -> Result<(), Error> {
        let step = |step| faults::at(step).map_err(Error::io(&self.place.shown()));
        step("merge")?;
        let delta = self.delta.lock().await.clone();
        let day = merge.day.as_deref();
        let is_of_day = day.map(|day| (DAY, FilterOp::Eq, FilterValue::Scalar(day)));
        let filters: Vec<_> = is_of_day.into_iter().collect();
        let target = NonZeroU64::new(merge.target_bytes).unwrap_or(NonZeroU64::MAX);
        let (merged, _) = delta
            .optimize()
            .with_filters(&filters)
            .with_target_size(target)
            .with_writer_properties(self.table.writer_properties())
            .with_max_concurrent_tasks(1)
            .await
            .map_err(|e| self.error(e))?;
        step("merge-committed")?;
        let version = merged.version().unwrap_or_default();
        self.keep(merged).await;
        self.sync_version(version).await
    }

    /// Replaces a file by what is left of its rows, in one commit; none: by nothing. The files that came for it; none where the newest version
    /// does not have it any more, and nothing was done.
    pub(crate) async fn replace(
        &self,
        path: &str,
        left: Option<Receiver<Result<RecordBatch, Error>>>,
    ) -> Result<Option<Vec<String>>, Error> {
        let delta = {
            let mut delta = self.delta.lock().await;
            delta.update_state().await.map_err(|e| self.error(e))?;
            delta.clone()
        };
        let snapshot = delta.snapshot().map_err(|e| self.error(e))?;
        let files = snapshot.log_data();
        let Some(file) = files.iter().find(|file| file.path() == path) else {
            return Ok(None);
        };
        let mut actions = vec![Action::Remove(file.remove_action(true))];
        let mut came = Vec::new();
        if let Some(mut left) = left {
            let writer = RecordBatchWriter::for_table(&delta).map_err(|e| self.error(e))?;
            let mut writer = writer.with_writer_properties(self.table.writer_properties());
            while let Some(batch) = left.recv().await {
                let batch = as_of(batch?, &self.schema).map_err(|e| self.error(e.into()))?;
                writer.write(batch).await.map_err(|e| self.error(e))?;
            }
            let added = writer.flush().await.map_err(|e| self.error(e))?;
            came.extend(added.iter().map(|add| add.path.clone()));
            actions.extend(added.into_iter().map(Action::Add));
        }
        // Without a condition: the log keeps what it is told, and must not know of whom these rows were.
        let operation = DeltaOperation::Delete { predicate: None };
        let commit = CommitBuilder::from(CommitProperties::default())
            .with_actions(actions)
            .build(Some(snapshot), delta.log_store(), operation)
            .await
            .map_err(|e| self.error(e))?;
        self.version().await?;
        self.sync_version(commit.version()).await?;
        Ok(Some(came))
    }

    /// Files that an earlier version has, and the newest does not.
    pub(crate) async fn removed(&self) -> Result<HashSet<String>, Error> {
        let delta = self.delta.lock().await.clone();
        let snapshot = delta.snapshot().map_err(|e| self.error(e))?;
        let log_store = delta.log_store();
        let tombstones = snapshot.all_tombstones(log_store.as_ref());
        let paths = tombstones.map_ok(|file| file.path().into_owned());
        paths.try_collect().await.map_err(|e| self.error(e))
    }

    /// All files of rows in its folder, whatever version has them, if any.
    pub(crate) async fn files(&self) -> Result<Vec<String>, Error> {
        let place = self.place.clone();
        blocking(move || {
            let mut files = Vec::new();
            for name in place.names()? {
                if name.ends_with(PARQUET) {
                    files.push(name);
                } else if name.starts_with(DAY) {
                    let within = place.join(&name).names()?.into_iter();
                    let within = within.filter(|file| file.ends_with(PARQUET));
                    files.extend(within.map(|file| format!("{name}/{file}")));
                }
            }
            Ok(files)
        })
        .await
    }

    /// A file of it, and what is wrong with it; the rows that it has, if nothing is.
    pub(crate) async fn check(&self, part: &Part) -> Result<(PathBuf, Result<u64, String>), Error> {
        let (place, part) = (self.place.join(&part.path), part.clone());
        blocking(move || Ok((place.shown(), verify::check(&place, &part)?))).await
    }

    /// Looks for files that cannot be read, and leaves them out from now on; how many are new.
    pub(crate) async fn leave_damaged_out(&self) -> Result<usize, Error> {
        let mut found = 0;
        let parts = self.parts().await?;
        let mut damaged = self.damaged.lock().await.clone();
        damaged.retain(|path| parts.iter().any(|part| part.path == *path));
        *self.damaged.lock().await = damaged.clone();
        for part in parts {
            if damaged.contains(&part.path) {
                continue;
            }
            if let (path, Err(what)) = self.check(&part).await? {
                // One that went meanwhile was merged, or had rows that were to be forgotten.
                if !self.parts().await?.contains(&part) {
                    continue;
                }
                tracing::error!(path = %path.display(), rows = part.rows, what, "a file of a table is damaged");
                self.damaged.lock().await.insert(part.path);
                found += 1;
            }
        }
        Ok(found)
    }

    /// Files that are left out.
    pub(crate) fn damaged(&self) -> u64 {
        self.damaged.try_lock().map_or(0, |d| d.len() as u64)
    }

    /// Deletes files that no version has which the table's properties tell to keep, those of commits that never came among them; how
    /// many.
    pub(crate) async fn vacuum(&self) -> Result<usize, Error> {
        faults::at("vacuum").map_err(Error::io(&self.place.shown()))?;
        let delta = self.delta.lock().await.clone();
        let vacuum = delta.vacuum().with_mode(VacuumMode::Full);
        let (after, metrics) = vacuum.await.map_err(|e| self.error(e))?;
        self.keep(after).await;
        Ok(metrics.files_deleted.len())
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
        let writer = writer.to_owned();
        let newest = self.delta.lock().await.version().unwrap_or_default();
        self.syncing(move |folder| {
            // From the newest one back. Older ones became a checkpoint.
            for version in (0..=newest).rev() {
                let Some(commit) = Commit::read(folder, version)? else {
                    return Ok(());
                };
                if commit.has(&writer, last) {
                    return commit.sync(folder);
                }
            }
            Ok(())
        })
        .await
    }

    async fn sync_version(&self, version: u64) -> Result<(), Error> {
        self.syncing(move |folder| match Commit::read(folder, version)? {
            Some(commit) => commit.sync(folder),
            None => Ok(()),
        })
        .await
    }

    async fn syncing(
        &self,
        work: impl FnOnce(&Path) -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), Error> {
        // What a bucket acknowledged, it has.
        if self.place.as_bucket().is_some() {
            return Ok(());
        }
        let folder = self.place.shown();
        blocking(move || work(&folder).map_err(Error::io(&folder))).await
    }

    /// The table as it stands now, for a question, and up to which number it has these writers' rows.
    pub(crate) async fn see(&self, writers: &[String]) -> Result<Seen, Error> {
        let mut delta = self.delta.lock().await;
        delta.update_state().await.map_err(|e| self.error(e))?;
        let mut published = Vec::with_capacity(writers.len());
        for writer in writers {
            published.push(self.last_of(&delta, writer).await?.unwrap_or(0));
        }
        let mut provider = delta.table_provider();
        let damaged = self.damaged.lock().await;
        if !damaged.is_empty() {
            let snapshot = delta.snapshot().map_err(|e| self.error(e))?;
            let files = snapshot.log_data();
            let paths = files.iter().map(|file| file.path().into_owned());
            provider = provider.with_file_paths(paths.filter(|path| !damaged.contains(path)));
        }
        Ok(Seen {
            provider: provider.await.map_err(|e| self.error(e.into()))?,
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
