//! The tables' columns, and rows to Arrow and back.
//!
//! Values that have no fixed shape (messages, metadata, parameters, reports) are JSON texts in a string column: every
//! engine reads those, and a new field in them is no change of schema. Numbers are signed: Delta has no others.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use arrow::json::{ArrayWriter, ReaderBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::Error;

/// The version of the tables' schema and layout; tables of older ones stay as they were made, and are read and appended to. 2: by day.
pub(crate) const VERSION: u32 = 2;

/// One of the ledger's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// One request and its answer a row.
    Exchanges,
    /// What was said of exchanges.
    Feedback,
    /// The monitor's streams over time.
    Windows,
    /// Retrainings over time.
    Runs,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Json,
    Whole,
    Real,
    Flag,
    Time,
}

use Kind::{Flag, Json, Real, Text, Time, Whole};

const EXCHANGES: &[(&str, Kind)] = &[
    ("request_id", Text),
    ("replica", Text),
    ("seq", Whole),
    ("ts", Time),
    ("purpose", Text),
    ("task", Text),
    ("model_requested", Text),
    ("adapter", Text),
    ("adapter_digest", Text),
    ("stage", Text),
    ("base", Text),
    ("api_key_id", Text),
    ("user", Text),
    ("metadata", Json),
    ("conversation", Text),
    ("messages", Json),
    ("answer", Text),
    ("tool_calls", Json),
    ("finish_reason", Text),
    ("prompt_tokens", Whole),
    ("completion_tokens", Whole),
    ("time_to_first_token_ms", Real),
    ("duration_ms", Real),
    ("parameters", Json),
    ("code", Whole),
    ("format_valid", Flag),
    ("format_reason", Text),
    ("run_id", Text),
];
const FEEDBACK: &[(&str, Kind)] = &[
    ("feedback_id", Text),
    ("request_id", Text),
    ("ts", Time),
    ("source", Text),
    ("rater", Text),
    ("rating", Whole),
    ("correction", Text),
    ("rubric", Json),
    ("comment", Text),
    ("preferred_over", Text),
];
const WINDOWS: &[(&str, Kind)] = &[
    ("ts", Time),
    ("task", Text),
    ("adapter", Text),
    ("stream", Text),
    ("state", Text),
    ("exchanges", Whole),
    ("failures", Whole),
    ("log_e", Real),
    ("threshold_log", Real),
];
const RUNS: &[(&str, Kind)] = &[
    ("run_id", Text),
    ("ts", Time),
    ("task", Text),
    ("started_by", Text),
    ("state", Text),
    ("progress", Json),
    ("adapter", Text),
    ("baseline", Text),
    ("exchanges_version", Whole),
    ("feedback_version", Whole),
    ("examples_train", Whole),
    ("examples_development", Whole),
    ("examples_held_out", Whole),
    ("examples_examined", Whole),
    ("loss_first", Real),
    ("loss_last", Real),
    ("votes", Whole),
    ("wins", Whole),
    ("ties", Whole),
    ("p_value", Real),
    ("judge", Text),
    ("verdict", Text),
    ("promoted", Flag),
    ("error", Text),
    ("report", Json),
];

impl Table {
    /// All, in one order.
    pub const ALL: [Table; 4] = [
        Table::Exchanges,
        Table::Feedback,
        Table::Windows,
        Table::Runs,
    ];

    /// Its folder's and its view's name.
    pub fn name(self) -> &'static str {
        match self {
            Table::Exchanges => "exchanges",
            Table::Feedback => "feedback",
            Table::Windows => "windows",
            Table::Runs => "runs",
        }
    }

    fn columns(self) -> &'static [(&'static str, Kind)] {
        match self {
            Table::Exchanges => EXCHANGES,
            Table::Feedback => FEEDBACK,
            Table::Windows => WINDOWS,
            Table::Runs => RUNS,
        }
    }

    pub(crate) fn schema(self) -> SchemaRef {
        let field = |(name, kind): &(&str, Kind)| {
            let data_type = match kind {
                Text | Json => DataType::Utf8,
                Whole => DataType::Int64,
                Real => DataType::Float64,
                Flag => DataType::Boolean,
                Time => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            };
            Field::new(*name, data_type, true)
        };
        Arc::new(Schema::new(
            self.columns().iter().map(field).collect::<Vec<_>>(),
        ))
    }

    fn kind(self, column: &str) -> Option<Kind> {
        let of_name = |(name, kind): &(&str, Kind)| (*name == column).then_some(*kind);
        self.columns().iter().find_map(of_name)
    }

    fn is_json(self, column: &str) -> bool {
        matches!(self.kind(column), Some(Json))
    }

    /// A row's columns, shapeless values as JSON texts. Refuses what Arrow would refuse later, when the row is one of many.
    pub(crate) fn encode(self, row: &impl Serialize) -> Result<Map<String, Value>, Error> {
        let wrong = |what: String| Error::Row {
            table: self.name(),
            what,
        };
        let Value::Object(mut map) = serde_json::to_value(row).map_err(|e| wrong(e.to_string()))?
        else {
            return Err(wrong("it is not an object".into()));
        };
        for (key, value) in &mut map {
            match self.kind(key) {
                Some(Json) if !value.is_null() => *value = Value::String(value.to_string()),
                Some(Whole) if !value.is_null() && value.as_i64().is_none() => {
                    return Err(wrong(format!(
                        "{key} is {value}, and the column holds whole numbers up to {}",
                        i64::MAX
                    )));
                }
                _ => {}
            }
        }
        Ok(map)
    }

    pub(crate) fn batch(self, rows: &[Map<String, Value>]) -> Result<RecordBatch, Error> {
        let wrong = |e: ArrowError| Error::Row {
            table: self.name(),
            what: e.to_string(),
        };
        let mut decoder = ReaderBuilder::new(self.schema())
            .with_batch_size(rows.len().max(1))
            .build_decoder()
            .map_err(wrong)?;
        decoder.serialize(rows).map_err(wrong)?;
        Ok(decoder
            .flush()
            .map_err(wrong)?
            .unwrap_or_else(|| RecordBatch::new_empty(self.schema())))
    }

    /// Rows out of what a query gave.
    pub(crate) fn decode<T: DeserializeOwned>(
        self,
        batches: &[RecordBatch],
    ) -> Result<Vec<T>, Error> {
        let wrong = |what: String| Error::Row {
            table: self.name(),
            what,
        };
        let mut writer = ArrayWriter::new(Vec::new());
        writer
            .write_batches(&batches.iter().collect::<Vec<_>>())
            .map_err(|e| wrong(e.to_string()))?;
        writer.finish().map_err(|e| wrong(e.to_string()))?;
        let bytes = writer.into_inner();
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        let maps: Vec<Map<String, Value>> =
            serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        let mut rows = Vec::with_capacity(maps.len());
        for mut map in maps {
            for (key, value) in &mut map {
                if let (true, Value::String(text)) = (self.is_json(key), &*value) {
                    *value = serde_json::from_str(text)
                        .map_err(|e| wrong(format!("column {key}: {e}")))?;
                }
            }
            rows.push(
                serde_json::from_value(Value::Object(map)).map_err(|e| wrong(e.to_string()))?,
            );
        }
        Ok(rows)
    }
}

/// A column, by its name.
pub(crate) fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, ArrowError> {
    batch
        .column_by_name(name)
        .ok_or_else(|| ArrowError::SchemaError(format!("there is no column {name}")))
}

/// A column's texts, whatever form a file or a question gave them.
pub(crate) fn text(batch: &RecordBatch, name: &str) -> Result<StringArray, ArrowError> {
    texts(column(batch, name)?)
}

/// The same of a column itself.
pub(crate) fn texts(column: &ArrayRef) -> Result<StringArray, ArrowError> {
    Ok(cast(column, &DataType::Utf8)?.as_string::<i32>().clone())
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_no_column_holds_is_refused_before_it_blocks_others() {
        let row = |version| crate::Run {
            exchanges_version: Some(version),
            ..crate::Run::default()
        };
        assert!(Table::Runs.encode(&row(7)).is_ok());
        let refused = Table::Runs
            .encode(&row(u64::MAX))
            .map_err(|e| e.to_string());
        assert!(refused.is_err_and(|e| e.contains("exchanges_version")));
    }
}
