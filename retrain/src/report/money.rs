//! What a report says of money.

use std::fmt::Write as _;

use super::Report;
use super::parts::cell;
use crate::cost::Cost;

impl Report {
    /// How often people corrected what the candidate was compared with; empty where nobody could.
    pub(super) fn corrections_in_words(&self) -> String {
        match self.corrections.exchanges {
            0 => String::new(),
            exchanges => format!(
                "People corrected {} of the {exchanges} exchanges of {} that the dataset was read from.",
                self.corrections.corrected, self.baseline
            ),
        }
    }

    pub(super) fn write_cost(&self, page: &mut String, cost: &Cost) -> std::fmt::Result {
        writeln!(page, "\n## Cost\n\n{cost} {}", self.corrections_in_words())?;
        let rows = cost.by_kind();
        if rows.is_empty() {
            return Ok(());
        }
        let candidate = self.adapter.as_deref().unwrap_or("no candidate");
        writeln!(
            page,
            "\n| a thousand exchanges, {} | `{candidate}` | `{}` |\n|---|---|---|",
            cell(&cost.currency),
            self.baseline
        )?;
        for [what, candidate, baseline] in rows {
            writeln!(page, "| {what} | {candidate} | {baseline} |")?;
        }
        Ok(())
    }
}
