//! Fine-tuning jobs, started as runs are.

use std::time::Instant;

use retune_ledger::JobStatus;

use super::{LAUNCHES, Launched, Watcher, end_of, pause};
use crate::{Error, Launch, job};

impl<L: Fn(&Launch) -> Launched + Send + Sync> Watcher<'_, L> {
    /// Jobs that wait, and those whose process died, oldest first.
    pub(super) async fn jobs(&mut self) -> Result<(), Error> {
        let mut due = Vec::new();
        for id in self.o.ledger.job_ids().await? {
            if self.over.contains(&id) {
                continue;
            }
            let Some(state) = self.o.ledger.job(&id).await? else {
                continue;
            };
            if state.status.is_end() {
                self.over.insert(id);
            } else if state.status != JobStatus::Paused {
                due.push(state.job);
            }
        }
        due.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        for job in due {
            if !self.stop.is_cancelled() {
                self.job(job.id).await?;
            }
        }
        Ok(())
    }

    async fn job(&mut self, id: String) -> Result<(), Error> {
        let o = self.o;
        let attempts = self.attempts.entry(id.clone()).or_default();
        if !attempts.may_begin() {
            return Ok(());
        }
        match o.ledger.lease(&job::lease(&id)).await? {
            // Another process trains it.
            None => return Ok(()),
            Some(lease) => lease.give_back().await,
        }
        attempts.launches += 1;
        let launches = attempts.launches;
        tracing::info!(job = id, launch = launches, "starting a fine-tuning job");
        let launched = (self.launch)(&Launch::Job(id.clone()));
        let how = end_of(launched, &mut self.waited).await;
        let state = o.ledger.job(&id).await?;
        let is_open = |status| matches!(status, JobStatus::Queued | JobStatus::Running);
        if !state.is_some_and(|state| is_open(state.status)) {
            self.attempts.remove(&id);
            return Ok(());
        }
        if self.stop.is_cancelled() {
            return Ok(());
        }
        attempts.not_before = Some(Instant::now() + pause(&o.limits, launches));
        tracing::warn!(
            job = id,
            launch = launches,
            how,
            "a fine-tuning job did not finish"
        );
        if launches == LAUNCHES {
            job::give_up(o, &id, &format!("{how}, {LAUNCHES} times")).await?;
        }
        Ok(())
    }
}
