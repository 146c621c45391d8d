//! The exchanges as the tests need them: a few columns, in the ledger's order, page by page.
//!
//! Asked as SQL rather than as whole rows: prompts are most of a table. An answer is read, and what it is like is all that is kept of it.

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType};
use chrono::{DateTime, SecondsFormat, Utc};
use retune_ledger::{Cursor, Ledger};
use retune_task::Traits;

use crate::error::Error;
use crate::streams::{Checked, Row, Served, Stream};

/// Rows a question, so that a long history is read in bounded memory.
const PAGE: usize = 100_000;

/// What every row has to be to count: an app's own request that a task answered, or failed to. Where the server held an answer to its format, the row
/// says nothing of that, and the probe that was asked without that help counts in its place, for the format alone.
const COUNTED: &str = "purpose in ('user', 'probe') and (code = 200 or code >= 500) and task is not null and adapter is not null";

/// The next page of rows behind `after`, or else behind a time, oldest first; empty at the end.
pub(crate) async fn page(
    ledger: &Ledger,
    after: Option<&Cursor>,
    from: Option<DateTime<Utc>>,
) -> Result<Vec<Row>, Error> {
    let behind = behind(after, from);
    let sql = format!(
        "select request_id, replica, seq, ts, purpose, task, adapter, code, format_valid, format_reason, finish_reason, \
         answer, duration_ms, completion_tokens from exchanges \
         where {COUNTED}{behind} order by ts, replica, seq limit {PAGE}"
    );
    ask(ledger, &sql, read).await
}

/// What a question finds, as `read` takes it from each part of the answer.
pub(crate) async fn ask<T>(
    ledger: &Ledger,
    sql: &str,
    read: impl Fn(&RecordBatch, &mut Vec<T>) -> Result<(), Error>,
) -> Result<Vec<T>, Error> {
    let batches = ledger.sql(sql).await?;
    let mut found = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for batch in &batches {
        read(batch, &mut found)?;
    }
    Ok(found)
}

/// Was this page the last one?
pub(crate) fn is_last(page: &[Row]) -> bool {
    page.len() < PAGE
}

/// How many rows there are now up to a time.
pub(crate) async fn count(ledger: &Ledger, until: DateTime<Utc>) -> Result<u64, Error> {
    let batches = ledger
        .sql(&format!(
            "select count(*) as n from exchanges where {COUNTED} and ts <= {}",
            time(until)
        ))
        .await?;
    let table = Answer("exchanges");
    let mut n = 0;
    for batch in &batches {
        let column = table.numbers(batch, "n")?;
        n += column.iter().flatten().sum::<i64>();
    }
    Ok(n.unsigned_abs())
}

/// How many exchanges the newest row of `windows` counts, for every stream that has one.
pub(crate) async fn windows(ledger: &Ledger) -> Result<Vec<(String, String, Stream, u64)>, Error> {
    let sql = "select task, adapter, stream, max(exchanges) as n from windows group by task, adapter, stream";
    ask(ledger, sql, read_window).await
}

fn read_window(
    batch: &RecordBatch,
    found: &mut Vec<(String, String, Stream, u64)>,
) -> Result<(), Error> {
    let table = Answer("windows");
    let [tasks, adapters, streams] = ["task", "adapter", "stream"].map(|c| table.texts(batch, c));
    let (tasks, adapters, streams) = (tasks?, adapters?, streams?);
    let numbers = table.numbers(batch, "n")?;
    for i in 0..batch.num_rows() {
        if let Some(stream) = Stream::parse(streams.value(i)) {
            found.push((
                tasks.value(i).to_owned(),
                adapters.value(i).to_owned(),
                stream,
                numbers.value(i).unsigned_abs(),
            ));
        }
    }
    Ok(())
}

/// The condition for rows behind a place, or else behind a time, to be added to others. Nobody's rows are still to come before the time,
/// so where somebody has none, what is there needs no second look.
pub(crate) fn behind(after: Option<&Cursor>, from: Option<DateTime<Utc>>) -> String {
    match (after, from) {
        // The time said apart, so that whole files are passed over.
        (Some(cursor), _) => format!(" and ts >= {} and not {}", time(cursor.ts), up_to(cursor)),
        (None, Some(from)) => format!(" and ts > {}", time(from)),
        (None, None) => String::new(),
    }
}

/// The condition for rows of a time or later, to be added to others.
pub(crate) fn since(from: Option<DateTime<Utc>>) -> String {
    from.map_or_else(String::new, |from| format!(" and ts >= {}", time(from)))
}

/// The condition for rows up to and with `cursor`.
pub(crate) fn up_to(cursor: &Cursor) -> String {
    let (ts, replica, seq) = (time(cursor.ts), quoted(&cursor.replica), cursor.seq);
    format!(
        "(ts < {ts} or (ts = {ts} and (replica < {replica} or (replica = {replica} and seq <= {seq}))))"
    )
}

/// A text, as SQL has it.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A time, as SQL has it.
pub(crate) fn time(time: DateTime<Utc>) -> String {
    let time = time.to_rfc3339_opts(SecondsFormat::Micros, true);
    format!("timestamp '{time}'")
}

/// The places of a batch's rows in the order.
pub(crate) fn cursors(batch: &RecordBatch) -> Result<Vec<Cursor>, Error> {
    let table = Answer("exchanges");
    let replicas = table.texts(batch, "replica")?;
    let seqs = table.numbers(batch, "seq")?;
    let times = table.times(batch, "ts")?;
    let cursor = |i| {
        Ok(Cursor {
            ts: to_time(times.value(i))?,
            replica: replicas.value(i).to_owned(),
            seq: seqs.value(i).unsigned_abs(),
        })
    };
    (0..batch.num_rows()).map(cursor).collect()
}

fn read(batch: &RecordBatch, rows: &mut Vec<Row>) -> Result<(), Error> {
    let table = Answer("exchanges");
    let request_ids = table.texts(batch, "request_id")?;
    let tasks = table.texts(batch, "task")?;
    let adapters = table.texts(batch, "adapter")?;
    let purposes = table.texts(batch, "purpose")?;
    let valid = table.flags(batch, "format_valid")?;
    let reasons = table.texts(batch, "format_reason")?;
    let finishes = table.texts(batch, "finish_reason")?;
    let answers = table.texts(batch, "answer")?;
    let codes = table.numbers(batch, "code")?;
    let durations = table.decimals(batch, "duration_ms")?;
    let tokens = table.numbers(batch, "completion_tokens")?;
    for (i, cursor) in cursors(batch)?.into_iter().enumerate() {
        let failed = codes.value(i) != 200;
        let is_app = purposes.value(i) == "user";
        let check = (valid.is_valid(i) && !failed).then(|| Checked {
            failed: (!valid.value(i)).then(|| {
                // Rows from elsewhere may not say why.
                let said = reasons.is_valid(i).then(|| reasons.value(i));
                said.unwrap_or("unknown").to_owned()
            }),
            was_cut_off: finishes.is_valid(i) && finishes.value(i) == "length",
        });
        let is_text = answers.is_valid(i) && is_app && !failed;
        rows.push(Row {
            cursor,
            request_id: request_ids.value(i).to_owned(),
            task: tasks.value(i).to_owned(),
            adapter: adapters.value(i).to_owned(),
            check,
            traits: is_text.then(|| Traits::of(answers.value(i))),
            // Rows from elsewhere do not say how long they took.
            served: (is_app && durations.value(i) > 0.0).then(|| Served {
                failed,
                duration_ms: durations.value(i),
                tokens: tokens.value(i).unsigned_abs(),
            }),
        });
    }
    Ok(())
}

pub(crate) fn to_time(micros: i64) -> Result<DateTime<Utc>, Error> {
    DateTime::from_timestamp_micros(micros).ok_or_else(|| Error::Table {
        table: "exchanges",
        column: "ts",
        what: format!("{micros} microseconds since 1970 is no time"),
    })
}

/// An answer's columns, as the types that are read here: a query engine may give texts and times in several forms.
pub(crate) struct Answer(pub(crate) &'static str);

impl Answer {
    fn column(
        &self,
        batch: &RecordBatch,
        column: &'static str,
        wanted: &DataType,
    ) -> Result<ArrayRef, Error> {
        let error = |what: String| Error::Table {
            table: self.0,
            column,
            what,
        };
        let found = batch
            .column_by_name(column)
            .ok_or_else(|| error("it is missing".to_owned()))?;
        cast(found, wanted).map_err(|e| error(e.to_string()))
    }

    pub(crate) fn texts(
        &self,
        batch: &RecordBatch,
        column: &'static str,
    ) -> Result<StringArray, Error> {
        let array = self.column(batch, column, &DataType::Utf8)?;
        Ok(array.as_string::<i32>().clone())
    }

    pub(crate) fn numbers(
        &self,
        batch: &RecordBatch,
        column: &'static str,
    ) -> Result<Int64Array, Error> {
        let array = self.column(batch, column, &DataType::Int64)?;
        Ok(array.as_primitive::<Int64Type>().clone())
    }

    pub(crate) fn decimals(
        &self,
        batch: &RecordBatch,
        column: &'static str,
    ) -> Result<Float64Array, Error> {
        let array = self.column(batch, column, &DataType::Float64)?;
        Ok(array.as_primitive::<Float64Type>().clone())
    }

    pub(crate) fn flags(
        &self,
        batch: &RecordBatch,
        column: &'static str,
    ) -> Result<BooleanArray, Error> {
        let array = self.column(batch, column, &DataType::Boolean)?;
        Ok(array.as_boolean().clone())
    }

    pub(crate) fn times(
        &self,
        batch: &RecordBatch,
        column: &'static str,
    ) -> Result<TimestampMicrosecondArray, Error> {
        let wanted = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let array = self.column(batch, column, &wanted)?;
        Ok(array.as_primitive::<TimestampMicrosecondType>().clone())
    }
}
