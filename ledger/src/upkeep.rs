//! Keeping the tables quick to ask: small files become larger ones, and files that no recent version has are deleted.
//!
//! A server appends every few seconds, so that rows are soon where other programs see them; each append is a file, and a question
//! opens them all. So files of a day are merged when there are enough of them: into middling ones while the day lasts, into large ones
//! after it. What is written anew at a time is small while rows are coming, however busy the day. Rows are never changed by it,
//! and whoever reads a version goes on reading its files, which are kept for seven days.
//!
//! One process at a time does it, by a lease; the others append and read meanwhile.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Weak;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use chrono::Utc;

use crate::error::Error;
use crate::ledger::{Inner, Ledger};
use crate::schema::Table;
use crate::threads;

/// Files of this size are not merged again while their day lasts.
const MIDDLING: u64 = 16 << 20;
/// And files of this size never.
const LARGE: u64 = 256 << 20;
/// So many files are worth it while rows are still coming.
const MANY: usize = 16;
/// And so many of a day that is over.
const SOME: usize = 4;
/// Between two looks for files that no version has: those of killed processes, and merged ones.
const VACUUM: Duration = Duration::from_secs(24 * 3600);
/// The lease's name.
pub(crate) const LEASE: &str = "upkeep";

/// A file of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Of its rows; none where the table is not partitioned.
    pub(crate) day: Option<String>,
    pub(crate) bytes: u64,
    /// As the table's log says.
    pub(crate) rows: Option<u64>,
    /// In the table's folder.
    pub(crate) path: String,
}

/// Files below a size that are to become files of about that size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Merge {
    pub(crate) day: Option<String>,
    pub(crate) target_bytes: u64,
}

/// What upkeep made of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The table.
    pub table: Table,
    /// Its files before and after.
    pub files: [u64; 2],
    /// Their bytes before and after.
    pub bytes: [u64; 2],
    /// Files deleted that no version has.
    pub vacuumed: usize,
}

/// How much of it is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thoroughness {
    /// What pays while rows are coming.
    Worthwhile,
    /// Whatever leaves fewer files.
    Everything,
}

/// What is to be merged of a table's files.
fn merges(files: &[Part], today: &str, how: Thoroughness) -> Vec<Merge> {
    let mut days: BTreeMap<Option<&str>, Vec<u64>> = BTreeMap::new();
    for file in files {
        let sizes = days.entry(file.day.as_deref()).or_default();
        sizes.push(file.bytes);
    }
    let due = |(day, sizes): (Option<&str>, Vec<u64>)| {
        let below = |limit: u64| sizes.iter().filter(|size| **size < limit).count();
        let is_over = day.is_some_and(|day| day < today);
        let enough = if is_over { SOME } else { MANY };
        let target_bytes = match how {
            Thoroughness::Everything if below(LARGE) > 1 => LARGE,
            Thoroughness::Worthwhile if below(MIDDLING) >= MANY => MIDDLING,
            Thoroughness::Worthwhile
                if below(LARGE / 2) >= enough && (is_over || below(MIDDLING) == 0) =>
            {
                LARGE
            }
            _ => return None,
        };
        Some(Merge {
            day: day.map(str::to_owned),
            target_bytes,
        })
    };
    days.into_iter().filter_map(due).collect()
}

impl Ledger {
    /// Merges every table's small files as far as that leaves fewer, and deletes files that no version of the last seven days has.
    /// None while another process does it.
    pub async fn compact(&self) -> Result<Option<Vec<Kept>>, Error> {
        let Some(lease) = self.lease(LEASE).await? else {
            return Ok(None);
        };
        let all = async {
            self.forget_begun(None, &mut |_| {}).await?;
            self.let_go_by_age().await?;
            let mut kept = Vec::new();
            for table in Table::ALL {
                kept.push(self.keep_up(table, Thoroughness::Everything, true).await?);
            }
            Ok(Some(kept))
        };
        lease.during(all).await
    }

    async fn keep_up(&self, table: Table, how: Thoroughness, vacuum: bool) -> Result<Kept, Error> {
        let handle = self.handle(table);
        let before = handle.parts().await?;
        let today = Utc::now().date_naive().to_string();
        let merges = merges(&before, &today, how);
        for merge in &merges {
            handle.merge(merge).await?;
        }
        let after = match merges.is_empty() {
            true => before.clone(),
            false => handle.parts().await?,
        };
        let vacuumed = match vacuum {
            true => handle.vacuum().await?,
            false => 0,
        };
        let bytes = |parts: &[Part]| parts.iter().map(|part| part.bytes).sum();
        Ok(Kept {
            table,
            files: [before.len() as u64, after.len() as u64],
            bytes: [bytes(&before), bytes(&after)],
            vacuumed,
        })
    }

    /// What the background does from time to time: one table's trouble is not the others'. Whether all of it was done.
    async fn keep_all_up(&self, vacuum: bool) -> Result<bool, Error> {
        let Some(lease) = self.lease(LEASE).await? else {
            return Ok(false);
        };
        let all = async {
            let mut is_done = true;
            if let Err(error) = self.forget_begun(None, &mut |_| {}).await {
                tracing::error!(%error, "what was begun to be forgotten is not gone yet; it is tried again");
            }
            if vacuum && let Err(error) = self.let_go_by_age().await {
                is_done = false;
                tracing::error!(%error, "rows older than store.keep_days are not gone yet; it is tried again");
            }
            for table in Table::ALL {
                match self.keep_up(table, Thoroughness::Worthwhile, vacuum).await {
                    Ok(kept) if kept.files[0] != kept.files[1] || kept.vacuumed > 0 => {
                        tracing::debug!(
                            %table, before = kept.files[0], after = kept.files[1], deleted = kept.vacuumed, "files merged"
                        )
                    }
                    Ok(_) => {}
                    Err(error) => {
                        is_done = false;
                        tracing::warn!(%table, %error, "small files could not be merged; questions take longer meanwhile");
                    }
                }
            }
            Ok(is_done)
        };
        lease.during(all).await
    }
}

/// Looks at the tables again and again, on a thread of its own, until the ledger, which holds the sender of `end`, is gone.
pub(crate) fn begin(
    ledger: Weak<Inner>,
    end: Receiver<()>,
    every: Duration,
    local: &Path,
) -> Result<(), Error> {
    let runtime = threads::runtime("ledger-upkeep").map_err(Error::io(local))?;
    let run = move || {
        let mut vacuumed: Option<Instant> = None;
        let mut forgotten = 0;
        // The ledger is not held between the looks.
        while end.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            let Some(ledger) = ledger.upgrade().map(Ledger) else {
                return;
            };
            let vacuum = vacuumed.is_none_or(|at| at.elapsed() >= VACUUM);
            match runtime.block_on(ledger.keep_all_up(vacuum)) {
                // Where another process was at it, or it failed, the next look is another try.
                Ok(is_done) if vacuum && is_done => vacuumed = Some(Instant::now()),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "small files could not be merged"),
            }
            if vacuum && let Err(error) = runtime.block_on(ledger.let_reports_go_by_age()) {
                tracing::error!(%error, "reports still show what is older than store.keep_days");
            }
            if vacuum && let Err(error) = runtime.block_on(ledger.clear_uploads()) {
                tracing::warn!(%error, "what uploads that were broken off have left stays");
            }
            match runtime.block_on(ledger.clean_own_reports(forgotten)) {
                Ok(known) => forgotten = known,
                Err(error) => tracing::error!(%error, "reports still show what was forgotten"),
            }
        }
    };
    threads::spawn("ledger-upkeep", run).map_err(Error::io(local))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(day: Option<&str>, bytes: &[u64]) -> Vec<Part> {
        let part = |bytes: &u64| Part {
            day: day.map(str::to_owned),
            bytes: *bytes,
            rows: None,
            path: String::new(),
        };
        bytes.iter().map(part).collect()
    }

    fn due(files: &[Part], how: Thoroughness) -> Vec<(Option<String>, u64)> {
        let merges = merges(files, "2026-03-02", how);
        merges
            .into_iter()
            .map(|m| (m.day, m.target_bytes))
            .collect()
    }

    #[test]
    fn files_are_merged_when_there_are_enough_of_them() {
        use Thoroughness::{Everything, Worthwhile};
        let (today, yesterday) = (Some("2026-03-02"), Some("2026-03-01"));
        let is = |day: Option<&str>, target| vec![(day.map(str::to_owned), target)];
        let small = |n| vec![1 << 20; n];
        assert_eq!(due(&files(today, &small(15)), Worthwhile), []);
        assert_eq!(
            due(&files(today, &small(16)), Worthwhile),
            is(today, MIDDLING)
        );
        assert_eq!(
            due(&files(None, &small(16)), Worthwhile),
            is(None, MIDDLING)
        );
        // Middling ones of today wait for small ones, and for their like.
        let mut middling = vec![20 << 20; 15];
        assert_eq!(due(&files(today, &middling), Worthwhile), []);
        middling.push(17 << 20);
        assert_eq!(due(&files(today, &middling), Worthwhile), is(today, LARGE));
        middling.push(1);
        assert_eq!(due(&files(today, &middling), Worthwhile), []);
        // A day that is over is finished, and then left alone.
        assert_eq!(
            due(&files(yesterday, &small(4)), Worthwhile),
            is(yesterday, LARGE)
        );
        assert_eq!(
            due(&files(yesterday, &[200 << 20, 1, 1, 1]), Worthwhile),
            []
        );
        // On wish, whatever leaves fewer.
        assert_eq!(due(&files(today, &small(2)), Everything), is(today, LARGE));
        assert_eq!(due(&files(today, &[1, LARGE]), Everything), []);
        let mut both = files(yesterday, &small(5));
        both.extend(files(today, &small(20)));
        assert_eq!(due(&both, Worthwhile).len(), 2);
    }
}
