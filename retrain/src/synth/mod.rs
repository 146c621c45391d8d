//! Examples that a stronger model writes, and that a person reviews before anything learns from them.
//!
//! A model is shown some of what users asked and were rightly answered, writes other messages of that kind, and answers each under the
//! task's own prompt. What breaks the task's format, says what is there already, or gives a held-out conversation away is refused, and
//! counted with its reason. What is left waits in a file, a line each, until a person has accepted or rejected it; only what was
//! accepted becomes rows. Such rows say for good that they are synthetic: they are trained on, and neither choose a checkpoint nor examine.
//!
//! What is asked (`ask`), what is refused (`filter`) and what a person said (`review`) is pure; `sheet` holds the file,
//! `seeds` reads the ledger, `write` goes from one to the other.

mod ask;
mod filter;
mod review;
mod seeds;
mod sheet;
mod write;

use chrono::{DateTime, Utc};
use retune_task::{ChatMessage, question};
use retune_wire::TrainingLine;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use crate::api::Api;
pub use filter::{Refusal, Why};
pub use review::{Desk, Key, Progress, objection, shown};
pub use seeds::{Known, Seed};
pub use sheet::Sheet;
pub use write::{Order, Tally, Told, write};

/// The member that makes a line a synthetic row.
const MEMBER: &str = "synthetic";

/// A line of the file: an example in OpenAI's chat shape, where it comes from, and what a person said of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The answer last.
    pub messages: Vec<ChatMessage>,
    pub synthetic: Source,
    /// None while it waits.
    #[serde(default)]
    pub review: Option<Review>,
}

/// Where a row comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub task: String,
    /// As the API calls it.
    pub model: String,
    pub at: DateTime<Utc>,
    /// The examples that the model was shown.
    pub seeds: Vec<String>,
}

/// What a person said of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Review {
    pub said: Verdict,
    pub by: String,
    pub at: DateTime<Utc>,
    /// The answer is theirs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub edited: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Accepted,
    Rejected,
}

impl Row {
    /// Reads a line; `None` where it is no synthetic row, which others read.
    ///
    /// # Errors
    /// What is wrong with the row, in words without its text.
    pub fn read(line: &str) -> Option<Result<Self, String>> {
        // Most files have none: no line is read twice for nothing.
        if !line.contains(MEMBER) {
            return None;
        }
        let value: Value = serde_json::from_str(line).ok()?;
        value.get(MEMBER)?;
        Some(Self::of(value))
    }

    fn of(value: Value) -> Result<Self, String> {
        let messages = json!({ "messages": value["messages"] });
        TrainingLine::read(messages.to_string().as_bytes()).map_err(|refusal| refusal.message)?;
        let row: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        let [.., question, answer] = row.messages.as_slice() else {
            return Err("expected a question and its answer".to_owned());
        };
        if question.role != "user" || answer.role != "assistant" {
            return Err("expected messages that end with a user's and its answer".to_owned());
        }
        if row.review.as_ref().is_some_and(|r| r.by.trim().is_empty()) {
            return Err("its review does not say whose it is (\"by\")".to_owned());
        }
        Ok(row)
    }

    /// What the model answers, or whoever reviewed it.
    pub fn answer(&self) -> &str {
        self.messages.last().map_or("", |last| &last.content)
    }

    /// What is asked.
    pub fn question(&self) -> &str {
        question(&self.messages).unwrap_or_default()
    }

    /// OpenAI's chat shape alone.
    pub fn conversation(&self) -> Value {
        json!({ "messages": self.messages })
    }
}

/// What an import does with a line.
#[derive(Debug, Clone, PartialEq)]
pub enum Import {
    /// It is no synthetic row: whoever reads lines reads it.
    Other,
    /// Somebody accepted it: OpenAI's chat shape, and where it comes from.
    Accepted {
        line: String,
        source: Value,
    },
    /// Nobody has said anything of it.
    Waiting {
        line: String,
        source: Value,
    },
    Rejected,
    Bad(String),
}

/// What an import of examples for `task` does with a line.
pub fn import(line: &str, task: &str) -> Import {
    let row = match Row::read(line) {
        None => return Import::Other,
        Some(Err(what)) => return Import::Bad(what),
        Some(Ok(row)) => row,
    };
    if row.synthetic.task != task {
        let of = row.synthetic.task;
        return Import::Bad(format!(
            "was written for the task {of:?}, and reviewed as that; expected rows of {task:?}"
        ));
    }
    match &row.review {
        None => Import::Waiting {
            line: row.conversation().to_string(),
            source: json!(row.synthetic),
        },
        Some(review) if review.said == Verdict::Rejected => Import::Rejected,
        Some(review) => {
            let mut source = json!(row.synthetic);
            source["review"] = json!(review);
            Import::Accepted {
                line: row.conversation().to_string(),
                source,
            }
        }
    }
}

#[cfg(test)]
mod row_tests;
#[cfg(test)]
mod tests;
