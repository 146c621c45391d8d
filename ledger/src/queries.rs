//! What can be asked of the tables in rows: each question as the conditions of a query.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;

use crate::rows::{Cursor, Purpose};

/// An exchange's `ts` is at most so far from the time in its id: an answer may take hours, and clocks be wrong.
const AROUND: TimeDelta = TimeDelta::days(1);

/// Which exchanges; every field that is set narrows.
#[derive(Debug, Clone, Default)]
pub struct ExchangeQuery {
    /// Of this task.
    pub task: Option<String>,
    /// Answered by this adapter.
    pub adapter: Option<String>,
    /// Made for this.
    pub purpose: Option<Purpose>,
    /// And what was written for the dataset, beside that purpose.
    pub or_synthetic: bool,
    /// Behind this place in the order.
    pub after: Option<Cursor>,
    /// At most so many, the first in order.
    pub limit: Option<usize>,
}

/// Which of the apps' own conversations whose text was kept and whose answer is whole.
#[derive(Debug, Clone, Default)]
pub struct ConversationQuery {
    /// Made for this: apps' own, or what was written for the dataset.
    pub purpose: Purpose,
    /// This one.
    pub request_id: Option<String>,
    /// Asked with this key.
    pub api_key_id: Option<String>,
    /// Of this task.
    pub task: Option<String>,
    /// Asked of this model, or answered by it.
    pub model: Option<String>,
    /// At this time or later.
    pub since: Option<DateTime<Utc>>,
    /// With all of these in the metadata.
    pub metadata: Vec<(String, String)>,
    /// Behind this place in the order.
    pub after: Option<Cursor>,
    /// The newest first, rather than the oldest.
    pub newest_first: bool,
    /// At most so many.
    pub limit: Option<usize>,
}

/// Which feedback.
#[derive(Debug, Clone, Default)]
pub struct FeedbackQuery {
    /// Given at this time or later.
    pub since: Option<DateTime<Utc>>,
    /// Of these exchanges.
    pub of: Option<Vec<String>>,
}

/// Which rows of streams' states.
#[derive(Debug, Clone, Default)]
pub struct WindowQuery {
    /// Of this task.
    pub task: String,
    /// Of this adapter.
    pub adapter: Option<String>,
    /// Of this stream.
    pub stream: Option<String>,
    /// At most so many, the newest.
    pub limit: Option<usize>,
}

impl ExchangeQuery {
    pub(crate) fn conditions(&self) -> Vec<String> {
        let mut conditions: Vec<String> = Vec::new();
        let mut equals = |column: &str, value: Option<&str>| {
            conditions.extend(value.map(|value| format!("{column} = {}", quoted(value))));
        };
        equals("task", self.task.as_deref());
        equals("adapter", self.adapter.as_deref());
        conditions.extend(self.purpose.map(|purpose| {
            let or = match self.or_synthetic {
                true => format!(", {}", quoted(Purpose::Synthetic.as_str())),
                false => String::new(),
            };
            format!("purpose in ({}{or})", quoted(purpose.as_str()))
        }));
        conditions.extend(self.after.as_ref().map(|cursor| behind(cursor, ">")));
        conditions
    }
}

impl ConversationQuery {
    /// `made`: when the `request_id` was made, where it tells, so that only files of that time are looked into.
    pub(crate) fn conditions_and_order(
        &self,
        made: Option<DateTime<Utc>>,
    ) -> (Vec<String>, &'static str) {
        let purpose = quoted(self.purpose.as_str());
        let mut conditions = vec![
            format!("purpose = {purpose} and code = 200 and messages is not null"),
            // Raw prompts are no conversations.
            "strpos(parameters, '\"raw_prompt\":true') = 0".to_owned(),
        ];
        conditions.extend(made.map(around));
        let mut equals = |column: &str, value: Option<&str>| {
            conditions.extend(value.map(|value| format!("{column} = {}", quoted(value))));
        };
        equals("request_id", self.request_id.as_deref());
        equals("api_key_id", self.api_key_id.as_deref());
        equals("task", self.task.as_deref());
        conditions.extend(self.since.map(|ts| format!("ts >= {}", time(ts))));
        if let Some(model) = self.model.as_deref().map(quoted) {
            conditions.push(format!("(model_requested = {model} or adapter = {model})"));
        }
        for (key, value) in &self.metadata {
            // The column is JSON text of a flat object of strings. Inside of a string a quote is escaped, so this is found nowhere else.
            let member = format!(
                "{}:{}",
                Value::from(key.as_str()),
                Value::from(value.as_str())
            );
            conditions.push(format!("strpos(metadata, {}) > 0", quoted(&member)));
        }
        let (sign, order) = if self.newest_first {
            ("<", "ts desc, replica desc, seq desc")
        } else {
            (">", "ts, replica, seq")
        };
        conditions.extend(self.after.as_ref().map(|cursor| behind(cursor, sign)));
        (conditions, order)
    }
}

impl WindowQuery {
    pub(crate) fn conditions(&self) -> Vec<String> {
        let mut conditions = vec![format!("task = {}", quoted(&self.task))];
        for (column, value) in [("adapter", &self.adapter), ("stream", &self.stream)] {
            let value = value.as_deref();
            conditions.extend(value.map(|value| format!("{column} = {}", quoted(value))));
        }
        conditions
    }
}

/// Some by their ids; `made` is when each was, where all of them tell.
pub(crate) fn of_ids(ids: &[&str], made: &[DateTime<Utc>]) -> Vec<String> {
    let quoted: Vec<String> = ids.iter().map(|id| quoted(id)).collect();
    let mut conditions = vec![format!("request_id in ({})", quoted.join(", "))];
    if let (true, Some(first), Some(last)) = (
        made.len() == ids.len(),
        made.iter().min(),
        made.iter().max(),
    ) {
        let (from, to) = (time(*first - AROUND), time(*last + AROUND));
        conditions.push(format!("ts between {from} and {to}"));
    }
    conditions
}

impl FeedbackQuery {
    pub(crate) fn conditions(&self) -> Vec<String> {
        let since = self.since.map(|ts| format!("ts >= {}", time(ts)));
        let of = self.of.as_ref().map(|ids| match ids.as_slice() {
            [] => "false".to_owned(),
            ids => {
                let ids: Vec<String> = ids.iter().map(|id| quoted(id)).collect();
                format!("request_id in ({})", ids.join(", "))
            }
        });
        since.into_iter().chain(of).collect()
    }
}

/// The time that an exchange can have whose id was made at `made`.
fn around(made: DateTime<Utc>) -> String {
    let (from, to) = (time(made - AROUND), time(made + AROUND));
    format!("ts between {from} and {to}")
}

/// Rows on one side of a place in the order: `>` or `<`.
fn behind(cursor: &Cursor, sign: &str) -> String {
    let (ts, replica, seq) = (time(cursor.ts), quoted(&cursor.replica), cursor.seq);
    format!(
        "(ts {sign} {ts} or (ts = {ts} and (replica {sign} {replica} or (replica = {replica} and seq {sign} {seq}))))"
    )
}

pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

pub(crate) fn time(ts: DateTime<Utc>) -> String {
    format!(
        "timestamp '{}'",
        ts.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
    )
}
