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

/// A column: its name, what it holds, and what it says.
type Column = (&'static str, Kind, &'static str);

const EXCHANGES: &[Column] = &[
    (
        "request_id",
        Text,
        "The answer's `id`: who made it, when, and a proof that this installation did",
    ),
    ("replica", Text, "The process that answered"),
    ("seq", Whole, "Its number within the replica"),
    ("ts", Time, "When the request came"),
    (
        "purpose",
        Text,
        "`user`, `examination`, `shadow`, `probe` or `synthetic`",
    ),
    ("task", Text, "The task; none for the bare base"),
    ("model_requested", Text, "What the app asked for"),
    ("adapter", Text, "Who answered: `support@3`, `support@base`"),
    ("adapter_digest", Text, "The adapter's digest"),
    ("stage", Text, "Where it stood then"),
    ("base", Text, "The base's id"),
    ("api_key_id", Text, "With which key"),
    ("user", Text, "`safety_identifier`, or `user`"),
    ("metadata", Json, "The request's own"),
    (
        "conversation",
        Text,
        "A digest of the first user message: what belongs together",
    ),
    (
        "messages",
        Json,
        "As the app sent them; none with `store: false`",
    ),
    ("answer", Text, "The text of the answer"),
    ("tool_calls", Json, "What it calls"),
    ("finish_reason", Text, "`stop`, `length`, `tool_calls`"),
    ("prompt_tokens", Whole, "Read"),
    ("completion_tokens", Whole, "Written"),
    (
        "time_to_first_token_ms",
        Real,
        "From the arrival to the first text",
    ),
    ("duration_ms", Real, "From the arrival to the last token"),
    ("parameters", Json, "Sampling, and whatever else was asked"),
    ("code", Whole, "The HTTP status; 499: the client left"),
    (
        "format_valid",
        Flag,
        "Whether the model's own answer keeps the task's format; none where it was not checked",
    ),
    ("format_reason", Text, "Why not"),
    ("run_id", Text, "The run that asked"),
];
const FEEDBACK: &[Column] = &[
    ("feedback_id", Text, "Its id"),
    ("request_id", Text, "Of which answer"),
    ("ts", Time, "When it was said"),
    (
        "source",
        Text,
        "Where it comes from, in the app's words; `console`",
    ),
    ("rater", Text, "The id of the key that it came by"),
    ("rating", Whole, "1 to 5"),
    ("correction", Text, "What the answer should have been"),
    (
        "rubric",
        Json,
        "Marks, 1 to 5: accuracy, relevance, style, usefulness",
    ),
    ("comment", Text, "In words"),
    (
        "preferred_over",
        Text,
        "Another answer, which is worse. Where nothing at all is said, what the same rater said of the answer before is taken back",
    ),
];
const WINDOWS: &[Column] = &[
    ("ts", Time, "When the monitor looked"),
    ("task", Text, "The task"),
    ("adapter", Text, "Whose answers"),
    (
        "stream",
        Text,
        "`format`, `quality`, `input`, `output` or `operations`",
    ),
    (
        "state",
        Text,
        "`ok`, `warning`, `alarm`, `not enough data`, `no reference`",
    ),
    ("exchanges", Whole, "Tested so far"),
    ("failures", Whole, "Of them, those that failed"),
    (
        "log_e",
        Real,
        "The evidence, as the natural logarithm of an e-value",
    ),
    ("threshold_log", Real, "Where it raises an alarm"),
];
const RUNS: &[Column] = &[
    (
        "run_id",
        Text,
        "Its id, which follows from what started it; its newest row is what it is",
    ),
    ("ts", Time, "When the row was written"),
    ("task", Text, "The task"),
    (
        "started_by",
        Text,
        "An alarm, a time of the schedule, or a person",
    ),
    (
        "state",
        Text,
        "`waiting`, `dataset`, `training`, `examining`, `judging`, `done` or `failed`",
    ),
    ("progress", Json, "Done and total of the state's work"),
    ("adapter", Text, "The candidate"),
    ("baseline", Text, "What it is held against"),
    (
        "exchanges_version",
        Whole,
        "The table's version that the dataset was read from",
    ),
    ("feedback_version", Whole, "The same of `feedback`"),
    ("examples_train", Whole, "Trained on"),
    ("examples_development", Whole, "Chose the checkpoint"),
    ("examples_held_out", Whole, "Held out"),
    ("examples_examined", Whole, "Prompts that both were asked"),
    (
        "loss_first",
        Real,
        "Held-out loss for each token before the first step",
    ),
    ("loss_last", Real, "The same at the chosen checkpoint"),
    ("votes", Whole, "Wins and losses"),
    ("wins", Whole, "Votes for the candidate"),
    ("ties", Whole, "Prompts without a better answer"),
    ("p_value", Real, "Of the votes"),
    ("judge", Text, "Who judged"),
    ("verdict", Text, "`promote`, `canary`, `wait` or `reject`"),
    ("promoted", Flag, "Whether it became the champion"),
    ("error", Text, "Why it failed"),
    (
        "report",
        Json,
        "All of its figures; while it trains `{\"training_seconds\", \"curve\"}`",
    ),
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

    fn columns(self) -> &'static [Column] {
        match self {
            Table::Exchanges => EXCHANGES,
            Table::Feedback => FEEDBACK,
            Table::Windows => WINDOWS,
            Table::Runs => RUNS,
        }
    }

    pub(crate) fn schema(self) -> SchemaRef {
        let field = |(name, kind, _): &Column| {
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
        let of_name = |(name, kind, _): &Column| (*name == column).then_some(*kind);
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
#[path = "../../tests/support/reference.rs"]
mod reference;

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, clippy::panic, reason = "tests")]

    use super::*;

    #[test]
    fn the_reference_is_what_the_code_says() {
        for table in Table::ALL {
            let row = |(name, kind, what): &Column| {
                let kind = match kind {
                    Text => "text",
                    Json => "JSON as text",
                    Whole => "whole number",
                    Real => "number",
                    Flag => "true or false",
                    Time => "time, UTC",
                };
                reference::row(&[&format!("`{name}`"), kind, what])
            };
            let made: String = table.columns().iter().map(row).collect();
            reference::holds("tables.md", table.name(), &made);
        }
    }

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
