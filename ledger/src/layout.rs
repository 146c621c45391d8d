//! How a table lies on disk: its partitions, its files' compression and encodings, and what a reader can skip by.
//!
//! The questions decide: by time, task and adapter (the log's smallest and largest values skip files), by an answer's id or a user
//! (bloom filters skip row groups), and the whole of a day or a quarter (columns of few values are dictionaries). What is forgotten
//! or thrown away by age is so day by day, therefore a folder a day. A table keeps the layout that it was made with.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::schema::Table;

/// The partition column of exchanges and feedback: the day of `ts`, in UTC.
pub(crate) const DAY: &str = "day";

/// Rows of a row group at most: what is read at once of each column, and by one core.
const GROUP_ROWS: usize = 128 << 10;

impl Table {
    /// The columns that a new table of this kind is partitioned by.
    pub(crate) fn partition_columns(self) -> &'static [&'static str] {
        match self {
            Table::Exchanges | Table::Feedback => &[DAY],
            Table::Windows | Table::Runs => &[],
        }
    }

    /// Columns whose smallest and largest values the table's log has of every file. Texts are not among them: the log must not
    /// know what a deleted file said.
    fn skipping_columns(self) -> Option<&'static str> {
        match self {
            Table::Exchanges => Some("ts,replica,seq,purpose,task,adapter,stage,code,format_valid"),
            Table::Feedback => Some("ts,rating"),
            Table::Windows | Table::Runs => None,
        }
    }

    /// Columns that are asked for one value among many.
    fn bloom_columns(self) -> &'static [&'static str] {
        match self {
            Table::Exchanges => &["request_id", "user", "conversation"],
            Table::Feedback => &["request_id", "feedback_id"],
            Table::Windows => &[],
            Table::Runs => &["run_id"],
        }
    }

    /// Columns whose values hardly ever come twice: a dictionary would be begun and thrown away.
    fn unique_columns(self) -> &'static [&'static str] {
        match self {
            Table::Exchanges => &[
                "request_id",
                "ts",
                "seq",
                "time_to_first_token_ms",
                "duration_ms",
            ],
            Table::Feedback => &["feedback_id", "request_id", "ts"],
            Table::Windows => &["ts", "log_e"],
            Table::Runs => &["ts"],
        }
    }

    /// Long texts, of which no smallest or largest value is kept.
    fn text_columns(self) -> &'static [&'static str] {
        match self {
            Table::Exchanges => &["messages", "answer", "tool_calls", "metadata", "parameters"],
            Table::Feedback => &["correction", "comment", "rubric"],
            Table::Windows => &[],
            Table::Runs => &["report", "error"],
        }
    }

    /// The properties of a new table. Files that no version of the last seven days has are deleted.
    pub(crate) fn configuration(self, version: &str) -> Vec<(&'static str, Option<String>)> {
        let mut properties = vec![
            ("retune.schemaVersion", Some(version.to_owned())),
            (
                "delta.logRetentionDuration",
                Some("interval 7 days".to_owned()),
            ),
            (
                "delta.deletedFileRetentionDuration",
                Some("interval 7 days".to_owned()),
            ),
        ];
        let columns = self.skipping_columns().map(str::to_owned);
        properties.extend(columns.map(|c| ("delta.dataSkippingStatsColumns", Some(c))));
        properties
    }

    /// How its files are written.
    pub(crate) fn writer_properties(self) -> WriterProperties {
        let path = |name: &&str| ColumnPath::from(*name);
        let mut properties = WriterProperties::builder()
            .set_created_by(format!("retune {}", env!("CARGO_PKG_VERSION")))
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_max_row_group_row_count(Some(GROUP_ROWS))
            .set_bloom_filter_max_ndv(GROUP_ROWS as u64);
        for column in self.unique_columns() {
            properties = properties.set_column_dictionary_enabled(path(column), false);
        }
        for column in ["ts", "seq"].iter().filter(|c| self.has(c)) {
            properties =
                properties.set_column_encoding(path(column), Encoding::DELTA_BINARY_PACKED);
        }
        for column in self.bloom_columns() {
            properties = properties.set_column_bloom_filter_enabled(path(column), true);
        }
        for column in self.text_columns() {
            properties =
                properties.set_column_statistics_enabled(path(column), EnabledStatistics::None);
        }
        properties.build()
    }

    fn has(self, column: &str) -> bool {
        self.schema().column_with_name(column).is_some()
    }

    /// Its rows' columns, and those that a new table is partitioned by.
    pub(crate) fn schema_with_partitions(self) -> SchemaRef {
        let schema = self.schema();
        let days = self.partition_columns().iter();
        let days = days.map(|day| Arc::new(Field::new(*day, DataType::Date32, true)));
        let fields: Vec<_> = schema.fields().iter().cloned().chain(days).collect();
        Arc::new(Schema::new(fields))
    }
}

/// The columns of rows, where a table has the day beside them.
pub(crate) fn without_day(schema: &SchemaRef) -> SchemaRef {
    match schema.column_with_name(DAY) {
        None => schema.clone(),
        Some((day, _)) => {
            let others = (0..schema.fields().len()).filter(|i| *i != day);
            let others: Vec<_> = others.map(|i| schema.fields()[i].clone()).collect();
            Arc::new(Schema::new(others))
        }
    }
}

/// Rows as a table of this schema has them, with their day where it has one. What was read from a file that the engine has written, a
/// merged one, has its texts in another form.
pub(crate) fn as_of(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    if batch.schema_ref() == schema {
        return Ok(batch);
    }
    let column = |field: &Arc<Field>| -> Result<ArrayRef, ArrowError> {
        match batch.column_by_name(field.name()) {
            Some(column) => cast(column, field.data_type()),
            None if field.name() == DAY => day(&batch, field.data_type()),
            None => Ok(new_null_array(field.data_type(), batch.num_rows())),
        }
    };
    let columns = schema.fields().iter().map(column);
    RecordBatch::try_new(schema.clone(), columns.collect::<Result<_, _>>()?)
}

fn day(batch: &RecordBatch, to: &DataType) -> Result<ArrayRef, ArrowError> {
    let Some(ts) = batch.column_by_name("ts") else {
        return Err(ArrowError::SchemaError("rows have no `ts`".to_owned()));
    };
    // Without its zone, which is UTC: the day is to be that of UTC in any reader.
    let plain = cast(ts, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
    cast(&cast(&plain, &DataType::Date32)?, to)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use arrow::util::pretty::pretty_format_batches;
    use serde_json::json;

    #[test]
    fn the_day_is_that_of_utc_and_every_column_that_is_named_exists() {
        let rows = ["2026-03-01T23:59:59.999999Z", "2026-03-02T00:00:00Z"];
        let rows = rows.map(|ts| {
            json!({"feedback_id": "f", "ts": ts})
                .as_object()
                .unwrap()
                .clone()
        });
        let table = Table::Feedback;
        let batch = table.batch(&rows).unwrap();
        let batch = as_of(batch, &table.schema_with_partitions()).unwrap();
        let last = batch.num_columns() - 1;
        let days = pretty_format_batches(&[batch.project(&[last]).unwrap()]);
        let days = days.unwrap().to_string();
        assert!(days.contains("| 2026-03-01 |\n| 2026-03-02 |"), "{days}");
        assert_eq!(without_day(batch.schema_ref()), table.schema());

        for table in Table::ALL {
            let skipping = table.skipping_columns().unwrap_or_default();
            let named = skipping.split(',').filter(|c| !c.is_empty());
            let named = named.chain(table.bloom_columns().iter().copied());
            let named = named.chain(table.unique_columns().iter().copied());
            for column in named.chain(table.text_columns().iter().copied()) {
                assert!(table.has(column), "{table} has no {column}");
            }
        }
    }
}
