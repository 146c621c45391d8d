//! How answers were, in figures: what an overview shows of a day, computed from the rows themselves.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::queries::{quoted, time};

/// What figures are asked for.
#[derive(Debug, Clone)]
pub struct TrafficQuery {
    /// Of this task.
    pub task: String,
    /// From then on.
    pub since: DateTime<Utc>,
}

/// One adapter's answers to apps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Who answered; none where nobody came to.
    pub adapter: Option<String>,
    /// Requests.
    pub requests: u64,
    /// Of them, those that failed.
    pub failed: u64,
    /// Half of the answers took no longer, in milliseconds.
    pub duration_ms: Option<f64>,
    /// Of twenty answers nineteen took no longer.
    pub slow_ms: Option<f64>,
    /// Read.
    pub prompt_tokens: u64,
    /// Written.
    pub completion_tokens: u64,
    /// Answers whose format was checked.
    pub checked: u64,
    /// Of them, those that keep it.
    pub valid: u64,
}

impl TrafficQuery {
    pub(crate) fn sql(&self) -> String {
        format!(
            "select adapter, count(*) as requests, count(*) filter (where code <> 200) as failed, \
             approx_percentile_cont(duration_ms, 0.5) filter (where code = 200) as duration_ms, \
             approx_percentile_cont(duration_ms, 0.95) filter (where code = 200) as slow_ms, \
             coalesce(sum(prompt_tokens), 0) as prompt_tokens, coalesce(sum(completion_tokens), 0) as completion_tokens, \
             count(format_valid) as checked, count(*) filter (where format_valid) as valid \
             from exchanges where purpose = 'user' and task = {} and ts >= {} group by adapter order by requests desc, adapter",
            quoted(&self.task),
            time(self.since)
        )
    }
}
