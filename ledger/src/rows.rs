//! The rows of the tables. A field is a column of the same name.

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
    /// Nobody asked: a stronger model wrote it for the dataset, and a person accepted it. Servers make none.
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
