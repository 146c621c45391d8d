//! Whether there is anything in a table that was not read yet: a question that is cheaper than reading.

use chrono::{DateTime, Utc};
use retune_ledger::Mark;

/// What was read of a table.
pub(crate) struct Seen {
    mark: Mark,
    /// When the mark was seen first: all that is there is of an earlier time.
    at: DateTime<Utc>,
    /// Up to which time it was read.
    until: DateTime<Utc>,
}

impl Seen {
    /// Whether nothing came since, and all that is there was settled when it was read.
    pub(crate) fn has_all(seen: Option<&Self>, mark: &Mark) -> bool {
        seen.is_some_and(|seen| seen.mark == *mark && seen.until >= seen.at)
    }

    /// After a look at `now` that saw `mark`, and read up to `until`.
    pub(crate) fn after(
        seen: Option<Self>,
        mark: Mark,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
    ) -> Self {
        let at = seen.filter(|seen| seen.mark == mark).map(|seen| seen.at);
        Self {
            mark,
            at: at.unwrap_or(now),
            until,
        }
    }
}
