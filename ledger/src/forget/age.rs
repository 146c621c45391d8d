//! Retention: exchanges, and what was said of them, go when they are so many days old.

use std::sync::Arc;

use chrono::{Days, NaiveDate, Utc};

use super::gone::Gone;
use crate::error::Error;
use crate::ledger::Ledger;

impl Ledger {
    /// Lets go what is older than `store.keep_days`: whole days, from every version of the tables, and from reports. For who holds the
    /// right to upkeep.
    pub(crate) async fn let_go_by_age(&self) -> Result<(), Error> {
        let Some((before, gone)) = self.too_old() else {
            return Ok(());
        };
        let cleaned = self.clean(&gone, &mut |_| {}).await?;
        if cleaned.rewritten + cleaned.deleted > 0 {
            tracing::info!(%before, files = cleaned.rewritten + cleaned.deleted, "rows of earlier days are gone, as store.keep_days says");
        }
        self.let_reports_go_by_age().await
    }

    /// From this machine's reports, which nobody else can reach.
    pub(crate) async fn let_reports_go_by_age(&self) -> Result<(), Error> {
        if let Some((_, gone)) = self.too_old() {
            self.clean_reports(gone).await?;
        }
        Ok(())
    }

    /// The first day that is kept, and what is of an earlier one.
    fn too_old(&self) -> Option<(NaiveDate, Arc<Gone>)> {
        let days = Days::new(self.keep_days()?);
        let before = Utc::now().date_naive().checked_sub_days(days)?;
        let gone = Gone {
            before: Some(before),
            ..Gone::default()
        };
        Some((before, Arc::new(gone)))
    }
}
