//! Retention: exchanges, and what was said of them, go when they are so many days old.

use std::sync::Arc;

use chrono::{Days, Utc};

use super::gone::Gone;
use crate::error::Error;
use crate::ledger::Ledger;

impl Ledger {
    /// Lets go what is older than `store.keep_days`: whole days, from every version of the tables, and from reports. For who holds the
    /// right to upkeep.
    pub(crate) async fn let_go_by_age(&self) -> Result<(), Error> {
        let Some(before) = self
            .keep_days()
            .and_then(|days| Utc::now().date_naive().checked_sub_days(Days::new(days)))
        else {
            return Ok(());
        };
        let gone = Arc::new(Gone {
            before: Some(before),
            ..Gone::default()
        });
        let cleaned = self.clean(&gone, &mut |_| {}).await?;
        self.clean_reports(gone).await?;
        if cleaned.rewritten + cleaned.deleted > 0 {
            tracing::info!(%before, files = cleaned.rewritten + cleaned.deleted, "rows of earlier days are gone, as store.keep_days says");
        }
        Ok(())
    }
}
