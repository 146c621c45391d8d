//! Runs that wait for people, and those that people have decided and that somebody still has to carry out: each is taken up again once its votes
//! have decided, or its time is over.

use chrono::Utc;
use retune_ledger::Run;
use retune_task::Task;

use super::{Launched, Watcher};
use crate::book::{DONE, JUDGING};
use crate::run;
use crate::{Error, Launch, Start, StartedBy, people, soon};

impl<L: Fn(&Launch) -> Launched + Send + Sync> Watcher<'_, L> {
    pub(super) async fn judged(&mut self, task: &Task) -> Result<(), Error> {
        let mut runs = self.o.ledger.runs().await?;
        runs.retain(|run| {
            let is_decided = run.state != DONE && run.verdict.is_some();
            run.task == task.name && (run.state == JUDGING || is_decided)
        });
        for run in runs {
            if self.stop.is_cancelled() || !self.is_due(task, &run).await? {
                continue;
            }
            // Whoever works at the task is not in its way: another look will find it free.
            let lease = self.o.ledger.lease(&run::lease(&task.name)).await?;
            match lease {
                None => continue,
                Some(lease) => lease.give_back().await,
            }
            let started_by = match StartedBy::read(&run.started_by) {
                Some(StartedBy::Person) => StartedBy::Before(run.run_id.clone()),
                Some(started_by) => started_by,
                None => continue,
            };
            let start = Start {
                task: task.name.clone(),
                started_by,
            };
            self.launch(&start, run.run_id).await?;
        }
        Ok(())
    }

    /// Votes are read only where there are new ones: a store elsewhere takes its time for each.
    async fn is_due(&mut self, task: &Task, run: &Run) -> Result<bool, Error> {
        let ledger = &self.o.ledger;
        let attempts = self.attempts.entry(run.run_id.clone()).or_default();
        if !attempts.may_begin() {
            return Ok(false);
        }
        if run.verdict.is_some() {
            // It is no first time.
            attempts.votes.get_or_insert_default();
            return Ok(true);
        }
        let voted = people::voted(ledger, task, run).await?;
        let may_be = attempts.votes.replace(voted) != Some(voted)
            || attempts.launches > 0
            || soon::waits_until(run, Utc::now()).is_none()
            || people::is_moved(ledger, task, run).await?;
        Ok(may_be && people::is_settled(ledger, task, run).await?)
    }
}
