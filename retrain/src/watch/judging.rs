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
    /// Of all tasks, which share the table of runs: it is read once.
    pub(super) async fn judged(&mut self) -> Result<(), Error> {
        let o = self.o;
        let is_decided = |run: &Run| run.state != DONE && run.verdict.is_some();
        let mut runs = o.ledger.runs().await?;
        runs.retain(|run| run.state == JUDGING || is_decided(run));
        for run in runs {
            let task = o.config.tasks.iter().find(|task| task.name == run.task);
            let Some(task) = task.filter(|task| self.may_train(task)) else {
                continue;
            };
            if let Err(error) = self.take_up(task, &run).await {
                tracing::warn!(task = task.name, run_id = run.run_id, %error, "a run that people judge could not be looked at; trying again");
            }
        }
        Ok(())
    }

    async fn take_up(&mut self, task: &Task, run: &Run) -> Result<(), Error> {
        if self.stop.is_cancelled() || !self.is_due(task, run).await? {
            return Ok(());
        }
        // Whoever works at the task is not in its way: another look will find it free.
        match self.o.ledger.lease(&run::lease(&task.name)).await? {
            None => return Ok(()),
            Some(lease) => lease.give_back().await,
        }
        let started_by = match StartedBy::read(&run.started_by) {
            Some(StartedBy::Person) => StartedBy::Before(run.run_id.clone()),
            Some(started_by) => started_by,
            None => return Ok(()),
        };
        let start = Start {
            task: task.name.clone(),
            started_by,
        };
        self.launch(&start, run.run_id.clone()).await
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
