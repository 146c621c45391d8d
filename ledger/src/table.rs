//! One Delta table: opened or created, appended to, asked.

use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use deltalake::datafusion::catalog::TableProvider;
use deltalake::kernel::Transaction;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::CommitProperties;
use deltalake::protocol::SaveMode;
use deltalake::{DeltaTable, DeltaTableError, StructType};
use tokio::sync::Mutex;

use crate::error::Error;
use crate::schema::{Table, VERSION};

/// A handle that is kept and brought up to date, rather than opened anew for every question.
pub(crate) struct Handle {
    table: Table,
    delta: Mutex<DeltaTable>,
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
            delta: Mutex::new(opened),
        })
    }

    fn error(&self, source: DeltaTableError) -> Error {
        Error::Delta {
            table: self.table.name(),
            source: Box::new(source),
        }
    }

    /// Appends a batch as number `number` of `writer`. Asked again for a number that is in the table already, as after
    /// a commit whose answer was lost, it does nothing.
    pub(crate) async fn append(
        &self,
        batch: RecordBatch,
        writer: &str,
        number: i64,
        again: bool,
    ) -> Result<(), Error> {
        let mut delta = self.delta.lock().await;
        if again {
            delta.update_state().await.map_err(|e| self.error(e))?;
            let log_store = delta.log_store();
            let snapshot = delta.snapshot().map_err(|e| self.error(e))?;
            let done = snapshot
                .transaction_version(log_store.as_ref(), writer)
                .await
                .map_err(|e| self.error(e))?;
            if done.is_some_and(|done| done >= number) {
                return Ok(());
            }
        }
        let commit = CommitProperties::default()
            .with_application_transaction(Transaction::new(writer, number));
        let written = delta
            .clone()
            .write(vec![batch])
            .with_save_mode(SaveMode::Append)
            .with_commit_properties(commit)
            .await
            .map_err(|e| self.error(e))?;
        *delta = written;
        Ok(())
    }

    /// The table as it stands now, for a query, and its version.
    pub(crate) async fn provider(&self) -> Result<(Arc<dyn TableProvider>, u64), Error> {
        let mut delta = self.delta.lock().await;
        delta.update_state().await.map_err(|e| self.error(e))?;
        let version = delta.version().unwrap_or_default();
        let provider = delta
            .table_provider()
            .await
            .map_err(|e| self.error(e.into()))?;
        Ok((provider, version))
    }
}
