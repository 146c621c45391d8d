//! Answers to rate and correct, one after the other: a keystroke each.

use askama::Template;
use chrono::{DateTime, Utc};
use retune_ledger::{Exchange, Purpose};
use retune_task::{CRITERIA, ChatMessage};
use serde_json::{Map, Value};

use crate::figures::{from_now, time};
use crate::frame::Frame;
use crate::queue::Why;

/// The page.
#[derive(Template)]
#[template(path = "review.html")]
pub struct Page {
    /// What is around it.
    pub frame: Frame,
    /// All tasks.
    pub tasks: Vec<String>,
    /// Whose answers are shown.
    pub task: String,
    /// The answer to judge; none where none waits.
    pub shown: Option<Shown>,
    /// How many wait, this one included.
    pub waiting: usize,
    /// What was judged last, which can be taken back.
    pub last: Option<Last>,
    /// Why what was sent was not taken.
    pub refused: Option<String>,
}

/// An answer to judge.
pub struct Shown {
    pub(crate) request_id: String,
    pub(crate) messages: Vec<ChatMessage>,
    pub(crate) answer: String,
    pub(crate) correction: String,
    pub(crate) comment: String,
    pub(crate) why: Vec<&'static str>,
    pub(crate) by: String,
    pub(crate) asked: String,
    pub(crate) ago: String,
    pub(crate) format: Option<String>,
    pub(crate) calls: Option<String>,
    marks: Map<String, Value>,
}

/// What was judged last.
pub struct Last {
    /// The exchange.
    pub request_id: String,
    /// What was said of it.
    pub said: String,
}

/// What somebody wrote that was not taken, so that they need not write it again.
#[derive(Debug, Default)]
pub struct Written {
    /// In place of the answer.
    pub correction: Option<String>,
    /// Beside it.
    pub comment: Option<String>,
    /// By criterion.
    pub marks: Map<String, Value>,
}

impl Shown {
    /// An exchange as raters see it.
    pub fn of(row: Exchange, why: &[Why], written: Written, now: DateTime<Utc>) -> Self {
        let answer = row.answer.unwrap_or_default();
        Self {
            calls: row.tool_calls.as_ref().map(Value::to_string),
            marks: written.marks,
            correction: written.correction.unwrap_or_else(|| answer.clone()),
            comment: written.comment.unwrap_or_default(),
            answer,
            messages: row.messages.unwrap_or_default(),
            why: why.iter().map(|why| why.in_words()).collect(),
            by: match row.purpose {
                Purpose::Synthetic => format!(
                    "{}, for the dataset",
                    row.parameters["synthetic"]["model"]
                        .as_str()
                        .unwrap_or("a model")
                ),
                _ => row.adapter.unwrap_or(row.base),
            },
            asked: time(row.ts),
            ago: from_now(row.ts, now),
            format: match row.format_valid {
                Some(false) => Some(row.format_reason.unwrap_or_else(|| "broken".to_owned())),
                _ => None,
            },
            request_id: row.request_id,
        }
    }
}

impl Shown {
    fn is_marked(&self, criterion: &str, mark: &i64) -> bool {
        self.marks.get(criterion).and_then(Value::as_i64) == Some(*mark)
    }
}

/// A criterion of the rubric.
pub(crate) struct Criterion {
    pub(crate) name: &'static str,
    pub(crate) key: char,
}

impl Page {
    fn criteria(&self) -> [Criterion; 4] {
        let keys = ['a', 'r', 'y', 'f'];
        let mut place = 0;
        CRITERIA.map(|name| {
            let key = keys.get(place).copied().unwrap_or(' ');
            place += 1;
            Criterion { name, key }
        })
    }

    fn ratings(&self) -> [(u8, &'static str); 5] {
        [
            (1, "wrong"),
            (2, "poor"),
            (3, "so-so"),
            (4, "good"),
            (5, "right"),
        ]
    }
}
