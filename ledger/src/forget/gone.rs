//! What is to go, as a question to rows: of whom, which exchanges, how old. Pure.
//!
//! The same question is asked wherever rows are: in files of the tables, in what a log is about to put there, in reports. So what was
//! forgotten cannot come back by another way.

use std::collections::{HashMap, HashSet};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Float64Type, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::ids;
use crate::rows::Purpose;
use crate::schema::{Table, column, text};

/// How long after it a run that was under way may still ask what the forgotten one had asked.
const UNDER_WAY: TimeDelta = TimeDelta::days(1);
/// Where a report says how much of it was taken out.
const LEFT_OUT: &str = "forgotten";

/// Who and what is to go.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    /// With the installation's secret a user's name becomes the key below.
    pub(crate) secret: [u8; 32],
    /// Users by [`user_key`], and until when what they asked is to go.
    pub(crate) users: HashMap<String, DateTime<Utc>>,
    /// Exchanges, by their ids.
    pub(crate) exchanges: HashSet<String>,
    /// Their conversations: an examination that asked one of them again says no user in the rows of earlier versions.
    pub(crate) conversations: HashSet<String>,
    /// Whatever is of an earlier day.
    pub(crate) before: Option<NaiveDate>,
}

/// What a user is called where the name must not be: nobody without the installation's secret can find out whose it is.
pub(crate) fn user_key(secret: &[u8; 32], user: &str) -> String {
    retune_task::sha256(&format!("user {} {user}", retune_task::hex(secret)))
}

impl Gone {
    pub(crate) fn is_nothing(&self) -> bool {
        self.users.is_empty() && self.exchanges.is_empty() && self.before.is_none()
    }

    /// The columns of a table that tell whether a row is to go.
    pub(crate) fn columns(table: Table) -> &'static [&'static str] {
        match table {
            Table::Exchanges => &[
                "request_id",
                "user",
                "ts",
                "duration_ms",
                "purpose",
                "conversation",
            ],
            Table::Feedback => &["request_id", "preferred_over", "ts"],
            Table::Runs => &["report"],
            Table::Windows => &[],
        }
    }

    /// Whether all rows of that day are to go.
    pub(crate) fn has_day(&self, table: Table, day: NaiveDate) -> bool {
        let is_aging = matches!(table, Table::Exchanges | Table::Feedback);
        is_aging && self.before.is_some_and(|before| day < before)
    }

    /// Whether there can be rows of that day that are to go; `since` is [`Self::since`].
    pub(crate) fn may_touch(&self, day: NaiveDate, since: Option<NaiveDate>) -> bool {
        let is_before = self.before.is_some_and(|before| day < before);
        is_before || since.is_some_and(|since| day >= since)
    }

    /// Whether an exchange is to go, by its id alone.
    pub(crate) fn has_exchange(&self, id: &str) -> bool {
        let is_older = |before| ids::made(id).is_some_and(|made| made.date_naive() < before);
        self.exchanges.contains(id) || self.before.is_some_and(is_older)
    }

    /// What stays of some rows; none if all of them do. They need to have no more than [`Self::columns`].
    pub(crate) fn clean(
        &self,
        table: Table,
        batch: &RecordBatch,
    ) -> Result<Option<RecordBatch>, ArrowError> {
        if table == Table::Runs {
            return self.reports(batch);
        }
        let goes = self.going(table, batch)?;
        if !goes.contains(&true) {
            return Ok(None);
        }
        let stays: BooleanArray = goes.into_iter().map(|goes| Some(!goes)).collect();
        filter_record_batch(batch, &stays).map(Some)
    }

    /// Of each row whether it is to go.
    pub(crate) fn going(&self, table: Table, batch: &RecordBatch) -> Result<Vec<bool>, ArrowError> {
        match table {
            Table::Exchanges => self.exchanges(batch),
            Table::Feedback => self.feedback(batch),
            Table::Runs | Table::Windows => Ok(vec![false; batch.num_rows()]),
        }
    }

    fn exchanges(&self, batch: &RecordBatch) -> Result<Vec<bool>, ArrowError> {
        let text = |name| text(batch, name);
        let (ids, users) = (text("request_id")?, text("user")?);
        let (purposes, conversations) = (text("purpose")?, text("conversation")?);
        let days = Times::of(batch)?;
        let durations = column(batch, "duration_ms")?;
        let durations = cast(durations, &DataType::Float64)?;
        let mut known: HashMap<&str, Option<DateTime<Utc>>> = HashMap::new();
        let mut until = |user| {
            let look = || self.users.get(&user_key(&self.secret, user)).copied();
            match self.users.is_empty() {
                true => None,
                false => *known.entry(user).or_insert_with(look),
            }
        };
        let goes = |row| {
            if self.exchanges.contains(ids.value(row)) || days.is_before(row, self.before) {
                return true;
            }
            let purpose = purposes.value(row);
            let is_examination = purpose == Purpose::Examination.as_str();
            if is_examination && self.conversations.contains(conversations.value(row)) {
                return true;
            }
            let again = purpose != Purpose::User.as_str();
            let user = users.is_valid(row).then(|| users.value(row));
            user.and_then(&mut until).is_some_and(|until| {
                let until = if again { until + UNDER_WAY } else { until };
                // What was asked before, and answered later, is among it.
                let asked = days.get(row).map(|ts| ts - took(&durations, row));
                asked.is_none_or(|asked| asked <= until)
            })
        };
        Ok((0..batch.num_rows()).map(goes).collect())
    }

    fn feedback(&self, batch: &RecordBatch) -> Result<Vec<bool>, ArrowError> {
        let (ids, days) = (text(batch, "request_id")?, Times::of(batch)?);
        // Files of earlier versions have no such column.
        let others = text(batch, "preferred_over").ok();
        let goes = |row| {
            let worse = others.as_ref().filter(|others| others.is_valid(row));
            self.exchanges.contains(ids.value(row))
                || worse.is_some_and(|worse| self.exchanges.contains(worse.value(row)))
                || days.is_before(row, self.before)
        };
        Ok((0..batch.num_rows()).map(goes).collect())
    }

    /// Rows of runs stay, without what their reports show of forgotten exchanges.
    fn reports(&self, batch: &RecordBatch) -> Result<Option<RecordBatch>, ArrowError> {
        let reports = text(batch, "report")?;
        let mut changed = false;
        let cleaned: StringArray = reports
            .iter()
            .map(|report| {
                let report = report?;
                let cleaned = self.clean_report(report);
                changed |= cleaned.is_some();
                Some(cleaned.unwrap_or_else(|| report.to_owned()))
            })
            .collect();
        if !changed {
            return Ok(None);
        }
        let place = batch.schema().index_of("report")?;
        let mut columns = batch.columns().to_vec();
        let to = columns[place].data_type().clone();
        columns[place] = cast(&(std::sync::Arc::new(cleaned) as ArrayRef), &to)?;
        RecordBatch::try_new(batch.schema(), columns).map(Some)
    }

    /// A report of JSON without forgotten exchanges; none if it names none of them.
    pub(crate) fn clean_report(&self, report: &str) -> Option<String> {
        let mut value: Value = serde_json::from_str(report).ok()?;
        let taken_out = self.take_out(&mut value);
        if taken_out == 0 {
            return None;
        }
        if let Value::Object(report) = &mut value {
            let before = report.get(LEFT_OUT).and_then(Value::as_u64);
            let all = before.unwrap_or_default() + taken_out;
            report.insert(LEFT_OUT.to_owned(), json!(all));
        }
        Some(value.to_string())
    }

    /// Takes from every list what is about a forgotten exchange; how many such things.
    fn take_out(&self, value: &mut Value) -> u64 {
        match value {
            Value::Array(list) => {
                let before = list.len();
                list.retain(|item| {
                    let id = item.get("request_id").unwrap_or(item).as_str();
                    !id.is_some_and(|id| self.has_exchange(id))
                });
                let gone = (before - list.len()) as u64;
                gone + list.iter_mut().map(|v| self.take_out(v)).sum::<u64>()
            }
            Value::Object(map) => map.values_mut().map(|v| self.take_out(v)).sum(),
            _ => 0,
        }
    }

    /// The first day that an exchange to go can have, or what was said of it: its id says when it was made.
    pub(crate) fn since(&self) -> Option<NaiveDate> {
        let made = self.exchanges.iter().filter_map(|id| ids::made(id));
        made.min()?.date_naive().pred_opt()
    }
}

/// From the request to the row.
fn took(durations: &ArrayRef, row: usize) -> TimeDelta {
    let durations = durations.as_primitive::<Float64Type>();
    let milliseconds = if durations.is_valid(row) {
        durations.value(row)
    } else {
        0.0
    };
    // No request takes a day.
    TimeDelta::milliseconds(milliseconds.clamp(0.0, 86_400_000.0) as i64)
}

/// The column `ts`.
struct Times(ArrayRef);

impl Times {
    fn of(batch: &RecordBatch) -> Result<Self, ArrowError> {
        let plain = DataType::Timestamp(TimeUnit::Microsecond, None);
        cast(column(batch, "ts")?, &plain).map(Times)
    }

    fn get(&self, row: usize) -> Option<DateTime<Utc>> {
        let times = self.0.as_primitive::<TimestampMicrosecondType>();
        let is_there = times.is_valid(row);
        is_there
            .then(|| DateTime::from_timestamp_micros(times.value(row)))
            .flatten()
    }

    fn is_before(&self, row: usize, day: Option<NaiveDate>) -> bool {
        let ts = day.and_then(|day| Some((day, self.get(row)?)));
        ts.is_some_and(|(day, ts)| ts.date_naive() < day)
    }
}

#[cfg(test)]
#[path = "gone_tests.rs"]
mod tests;
