//! Where questions are computed: one share of memory for all of them together, and the disk beyond it.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use deltalake::datafusion::catalog::TableProvider;
use deltalake::datafusion::error::DataFusionError;
use deltalake::datafusion::execution::SendableRecordBatchStream;
use deltalake::datafusion::execution::context::SQLOptions;
use deltalake::datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use deltalake::datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use deltalake::datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt;

use crate::error::Error;
use crate::schema::Table;

/// Memory's largest users that an error names.
const NAMED: std::num::NonZeroUsize = std::num::NonZeroUsize::MIN.saturating_add(2);

/// What all questions of a ledger share.
pub(crate) struct Sessions {
    runtime: Arc<RuntimeEnv>,
    memory_bytes: usize,
}

impl Sessions {
    /// Questions that may take so many bytes together.
    pub(crate) fn new(memory_bytes: usize) -> Result<Self, Error> {
        let pool = TrackConsumersPool::new(FairSpillPool::new(memory_bytes), NAMED);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(pool))
            .build_arc()
            .map_err(|e| Error::Query(e.strip_backtrace()))?;
        Ok(Self {
            runtime,
            memory_bytes,
        })
    }

    /// Starts to answer a question over some tables; refuses whatever would change something.
    pub(crate) async fn answer(
        &self,
        query: &str,
        tables: Vec<(Table, Arc<dyn TableProvider>)>,
    ) -> Result<Answer, Error> {
        // What a sort wrote to disk it merges a batch of each piece at a time, and rows are long: little memory means small batches, and
        // less that is kept back for that than the default of 10 MiB.
        let batch_rows = (self.memory_bytes >> 17).clamp(512, 8192);
        let mut config = SessionConfig::new()
            .with_information_schema(true)
            .with_batch_size(batch_rows);
        // Sorts side by side take from each other what merging them needs; a single one gets by with any share of memory.
        config.options_mut().optimizer.repartition_sorts = false;
        // Long texts are only read of rows that are wanted.
        let execution = &mut config.options_mut().execution;
        execution.parquet.pushdown_filters = true;
        execution.sort_spill_reservation_bytes = (self.memory_bytes / 32).clamp(1 << 20, 10 << 20);
        let context = SessionContext::new_with_config_rt(config, self.runtime.clone());
        for (table, provider) in tables {
            let registered = context.register_table(table.name(), provider);
            registered.map_err(|e| Error::Query(e.strip_backtrace()))?;
        }
        ask(&context, query).await
    }
}

/// Starts to answer a question, wherever that is; refuses whatever would change something.
pub(crate) async fn ask(context: &SessionContext, query: &str) -> Result<Answer, Error> {
    let options = SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false);
    let refused = |e: DataFusionError| {
        let text = e.strip_backtrace();
        if text.contains("not supported:") {
            Error::ReadOnly(text)
        } else {
            Error::Query(text)
        }
    };
    let frame = context.sql_with_options(query, options).await;
    let stream = frame.map_err(refused)?.execute_stream().await;
    Ok(Answer {
        stream: stream.map_err(|e| failed(&e))?,
        first: None,
    })
}

/// A question's rows, as they are computed.
pub struct Answer {
    stream: SendableRecordBatchStream,
    first: Option<RecordBatch>,
}

impl Answer {
    /// Its columns.
    pub fn schema(&self) -> SchemaRef {
        self.stream.schema()
    }

    /// The next rows; none at the end.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, Error> {
        match self.first.take() {
            None => self.stream.next().await.transpose().map_err(|e| failed(&e)),
            first => Ok(first),
        }
    }

    /// Waits for the first rows, so that what fails at once fails here.
    pub(crate) async fn begun(mut self) -> Result<Self, Error> {
        self.first = self.next().await?;
        Ok(self)
    }

    /// All of them.
    pub async fn collect(mut self) -> Result<Vec<RecordBatch>, Error> {
        let mut batches = Vec::new();
        while let Some(batch) = self.next().await? {
            batches.push(batch);
        }
        Ok(batches)
    }
}

fn failed(error: &DataFusionError) -> Error {
    let root = error.find_root();
    let text = root.strip_backtrace();
    match root {
        // The question's own doing, whatever the files are like.
        DataFusionError::ArrowError(own, _)
            if matches!(
                **own,
                ArrowError::CastError(_)
                    | ArrowError::ParseError(_)
                    | ArrowError::ComputeError(_)
                    | ArrowError::DivideByZero
                    | ArrowError::ArithmeticOverflow(_)
            ) =>
        {
            Error::Query(text)
        }
        DataFusionError::ResourcesExhausted(_) => Error::Query(format!(
            "{text}\nquery.memory_bytes allows no more; allow more, or ask for less: fewer columns, a filter, a limit"
        )),
        DataFusionError::ParquetError(_)
        | DataFusionError::ObjectStore(_)
        | DataFusionError::ArrowError(..)
        | DataFusionError::IoError(_)
        | DataFusionError::External(_) => Error::Unreadable(text),
        _ => Error::Query(text),
    }
}
