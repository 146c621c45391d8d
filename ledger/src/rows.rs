//! The rows of the tables. A field is a column of the same name.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use chrono::{DateTime, Utc};
use retune_task::ChatMessage;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Why an exchange was made. Only `user` counts in traffic metrics, and in windows, where a `probe` may stand for one; datasets have what
/// is `synthetic` as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// An app asked.
    #[default]
    User,
    /// A run examined a candidate.
    Examination,
    /// Answered beside the champion, not sent.
    Shadow,
    /// What the model says by itself where a task's format was enforced: asked again without the constraint, or the first of two tries.
    Probe,
    /// Nobody asked: a stronger model wrote it for the dataset, where it counts once a person has said that it is right. Servers make none.
    Synthetic,
}

impl Purpose {
    /// The word for it, in tables and headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Purpose::User => "user",
            Purpose::Examination => "examination",
            Purpose::Shadow => "shadow",
            Purpose::Probe => "probe",
            Purpose::Synthetic => "synthetic",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A place in the order of exchanges.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    /// Time.
    pub ts: DateTime<Utc>,
    /// Replica, where times are equal.
    pub replica: String,
    /// Sequence within the replica.
    pub seq: u64,
}

/// One request and its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the columns are the design's, by their names")]
pub struct Exchange {
    pub request_id: String,
    pub replica: String,
    /// Given by the ledger when the row is appended.
    pub seq: u64,
    pub ts: DateTime<Utc>,
    pub purpose: Purpose,
    pub task: Option<String>,
    pub model_requested: String,
    /// The resolved name: `triage@base`, `triage@3`.
    pub adapter: Option<String>,
    pub adapter_digest: Option<String>,
    pub stage: Option<String>,
    pub base: String,
    pub api_key_id: Option<String>,
    pub user: Option<String>,
    pub metadata: Option<Value>,
    pub conversation: String,
    /// As the app sent them; none with `store: false`.
    pub messages: Option<Vec<ChatMessage>>,
    pub answer: Option<String>,
    pub tool_calls: Option<Value>,
    pub finish_reason: Option<String>,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub time_to_first_token_ms: Option<f64>,
    pub duration_ms: f64,
    pub parameters: Value,
    /// HTTP status.
    pub code: u16,
    /// Whether the answer that the model gave by itself holds the task's format. None where it was helped to, where the form was the
    /// request's own, and where there is no whole answer.
    pub format_valid: Option<bool>,
    pub format_reason: Option<String>,
    pub run_id: Option<String>,
}

impl Exchange {
    /// Its place in the order.
    pub fn cursor(&self) -> Cursor {
        Cursor {
            ts: self.ts,
            replica: self.replica.clone(),
            seq: self.seq,
        }
    }
}

/// What somebody said of an exchange.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the columns are the design's, by their names")]
pub struct Feedback {
    pub feedback_id: String,
    pub request_id: String,
    pub ts: DateTime<Utc>,
    pub source: Option<String>,
    pub rater: Option<String>,
    /// 1 to 5.
    pub rating: Option<u8>,
    pub correction: Option<String>,
    pub rubric: Option<Value>,
    pub comment: Option<String>,
    /// Another exchange, whose answer is worse than this one's.
    pub preferred_over: Option<String>,
}

impl Feedback {
    /// Says nothing any more: whoever said something of this exchange before takes it back. Rows stay; this one makes the earlier ones
    /// of the same source and rater count no longer.
    pub fn taking_back(
        feedback_id: String,
        request_id: &str,
        source: Option<String>,
        rater: Option<String>,
    ) -> Self {
        Self {
            feedback_id,
            request_id: request_id.to_owned(),
            ts: Utc::now(),
            source,
            rater,
            rating: None,
            correction: None,
            rubric: None,
            comment: None,
            preferred_over: None,
        }
    }

    /// One that does not takes back what was said.
    pub(crate) fn says_something(&self) -> bool {
        self.rating.is_some()
            || self.correction.is_some()
            || self.rubric.is_some()
            || self.comment.is_some()
            || self.preferred_over.is_some()
    }

    /// Without anybody's words; none where nothing is left, which would take back what the same rater said before.
    pub(crate) fn without_text(mut self) -> Option<Self> {
        let said = self.correction.take().is_some() | self.comment.take().is_some();
        (!said || self.says_something()).then_some(self)
    }

    fn whose(&self) -> (&str, Option<&str>, Option<&str>) {
        let (source, rater) = (self.source.as_deref(), self.rater.as_deref());
        (&self.request_id, source, rater)
    }
}

/// What still holds of feedback in the order of its time: neither what was taken back nor the taking back.
pub(crate) fn standing(mut said: Vec<Feedback>) -> Vec<Feedback> {
    // The place of the last row by which somebody took their words back.
    let taken_back: HashMap<_, usize> = said
        .iter()
        .enumerate()
        .filter(|(_, row)| !row.says_something())
        .map(|(place, row)| (row.whose(), place))
        .collect();
    if taken_back.is_empty() {
        return said;
    }
    let stands = |(place, row): (usize, &Feedback)| {
        let until = taken_back.get(&row.whose());
        until.is_none_or(|until| *until < place)
    };
    let mut stands: VecDeque<bool> = said.iter().enumerate().map(stands).collect();
    said.retain(|_| stands.pop_front().unwrap_or_default());
    said
}

/// The state of one stream of one adapter at one time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the columns are the design's, by their names")]
pub struct Window {
    pub ts: DateTime<Utc>,
    pub task: String,
    pub adapter: String,
    pub stream: String,
    pub state: String,
    /// Exchanges tested so far.
    pub exchanges: u64,
    /// Of these, those that failed.
    pub failures: u64,
    pub log_e: f64,
    pub threshold_log: f64,
}

/// The state of a run at one time; the newest row of a `run_id` is the run's.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the columns are the design's, by their names")]
pub struct Run {
    pub run_id: String,
    pub ts: DateTime<Utc>,
    pub task: String,
    pub started_by: String,
    pub state: String,
    /// Done and total, of the state's own work.
    pub progress: Option<(u64, u64)>,
    pub adapter: Option<String>,
    pub baseline: Option<String>,
    pub exchanges_version: Option<u64>,
    pub feedback_version: Option<u64>,
    pub examples_train: Option<u64>,
    pub examples_development: Option<u64>,
    pub examples_held_out: Option<u64>,
    pub examples_examined: Option<u64>,
    pub loss_first: Option<f64>,
    pub loss_last: Option<f64>,
    pub votes: Option<u64>,
    pub wins: Option<u64>,
    pub ties: Option<u64>,
    pub p_value: Option<f64>,
    pub judge: Option<String>,
    pub verdict: Option<String>,
    pub promoted: Option<bool>,
    pub error: Option<String>,
    pub report: Option<Value>,
}

impl Run {
    /// When it ended, by its report; its row may be younger, since its candidate was promoted later. The row's time where no report says so.
    pub fn ended(&self) -> DateTime<Utc> {
        let report = self.report.as_ref();
        let finished = report.and_then(|report| report["finished"].as_str());
        finished.and_then(|at| at.parse().ok()).unwrap_or(self.ts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(id: u32, of: &str, rater: &str, rating: Option<u8>) -> Feedback {
        let id = format!("fb-{id}");
        let source = Some("console".to_owned());
        Feedback {
            rating,
            ..Feedback::taking_back(id, of, source, Some(rater.to_owned()))
        }
    }

    #[test]
    fn what_somebody_took_back_counts_no_longer_and_what_came_after_does() {
        let rows = vec![
            said(1, "a", "ann", Some(1)),
            said(2, "a", "ben", Some(2)),
            said(3, "b", "ann", Some(3)),
            said(4, "a", "ann", None),
            said(5, "a", "ann", Some(5)),
            said(6, "c", "ann", None),
        ];
        let left = standing(rows);
        let ids: Vec<&str> = left.iter().map(|row| row.feedback_id.as_str()).collect();
        assert_eq!(ids, ["fb-2", "fb-3", "fb-5"]);
        assert_eq!(standing(left.clone()), left);
    }
}
