//! Runs that wait for people: each is taken up again once its votes have decided, or its time is over.

use chrono::Utc;
use retune_ledger::Run;
use retune_task::Task;

use super::{Launched, Watcher};
use crate::book::JUDGING;
use crate::{Error, Launch, Start, StartedBy, people, soon};

impl<L: Fn(&Launch) -> Launched + Send + Sync> Watcher<'_, L> {
    pub(super) async fn judged(&mut self, task: &Task) -> Result<(), Error> {
        let mut runs = self.o.ledger.runs().await?;
        runs.retain(|run| run.task == task.name && run.state == JUDGING && run.verdict.is_none());
        for run in runs {
            if self.stop.is_cancelled() || !self.is_decided(task, &run).await? {
                continue;
            }
            if let Some(started_by) = StartedBy::read(&run.started_by) {
                let start = Start {
                    task: task.name.clone(),
                    started_by,
                };
                self.launch(&start, run.run_id).await?;
            }
        }
        Ok(())
    }

    /// Votes are read only where there are new ones: a store elsewhere takes its time for each.
    async fn is_decided(&mut self, task: &Task, run: &Run) -> Result<bool, Error> {
        let ledger = &self.o.ledger;
        let attempts = self.attempts.entry(run.run_id.clone()).or_default();
        if !attempts.may_begin() {
            return Ok(false);
        }
        let voted = people::voted(ledger, task, run).await?;
        let may_be = attempts.votes.replace(voted) != Some(voted)
            || attempts.launches > 0
            || soon::waits_until(run, Utc::now()).is_none();
        Ok(may_be && people::is_settled(ledger, task, run).await?)
    }
}
