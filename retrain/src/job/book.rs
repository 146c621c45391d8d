//! A job's numbered files as its training writes them: what happens is gathered, and written now and then.
//!
//! Others may write too: somebody who cancels or pauses the job. Then the training's next word finds its number taken, and ends it.

use std::time::{Duration, Instant};

use chrono::Utc;
use retune_ledger::{JobEntry, JobEvent, JobLevel, JobState, JobStatus, Ledger};
use serde_json::Value;

use crate::Error;

/// Between two looks at what others say, and the shortest pause between two files.
const PAUSE: Duration = Duration::from_secs(1);
/// A pause's share of the time since the start: a long training leaves no more than a few hundred files.
const SHARE: u32 = 100;

pub(crate) struct Book<'a> {
    ledger: &'a Ledger,
    state: JobState,
    next: JobEntry,
    begun: Instant,
    looked: Instant,
    written: Instant,
}

impl<'a> Book<'a> {
    pub(crate) fn open(ledger: &'a Ledger, state: JobState) -> Self {
        let now = Instant::now();
        Self {
            ledger,
            state,
            next: JobEntry::default(),
            begun: now,
            looked: now,
            written: now,
        }
    }

    pub(crate) fn state(&self) -> &JobState {
        &self.state
    }

    /// What the next file says.
    pub(crate) fn next(&mut self) -> &mut JobEntry {
        &mut self.next
    }

    /// Whether an epoch's adapter is noted, or will be by the next file.
    pub(crate) fn has_checkpoint(&self, epoch: u32) -> bool {
        let noted = self.state.checkpoints.iter().chain(&self.next.checkpoints);
        noted.into_iter().any(|one| one.epoch == epoch)
    }

    pub(crate) fn say(&mut self, level: JobLevel, message: String, metrics: Option<Value>) {
        self.next.events.push(JobEvent {
            at: Utc::now(),
            level,
            message,
            metrics,
        });
    }

    /// Looks, where it is time, whether somebody halted the job, and writes, where it is time, what was gathered.
    pub(crate) async fn tick(&mut self) -> Result<(), Error> {
        if self.looked.elapsed() >= PAUSE {
            self.looked = Instant::now();
            self.follow().await?;
        }
        let pause = PAUSE.max(self.begun.elapsed() / SHARE);
        if self.written.elapsed() >= pause && !self.next.events.is_empty() {
            self.write().await?;
        }
        Ok(())
    }

    /// Writes what was gathered. What somebody else said meanwhile counts first.
    ///
    /// # Errors
    /// `Halted` where they halted the job.
    pub(crate) async fn write(&mut self) -> Result<(), Error> {
        self.written = Instant::now();
        let mut entry = std::mem::take(&mut self.next);
        entry.at = Utc::now();
        loop {
            let (id, after) = (&self.state.job.id, self.state.seq);
            let is_first = self.ledger.add_to_job(id, after, &entry).await?;
            // A halt that comes between leaves what happened before it unwritten: the training tells it again when the job goes on.
            self.follow().await?;
            if is_first {
                return Ok(());
            }
        }
    }

    async fn follow(&mut self) -> Result<(), Error> {
        let before = self.state.status;
        self.ledger.follow_job(&mut self.state).await?;
        match self.state.status {
            JobStatus::Paused | JobStatus::Cancelled if before != self.state.status => {
                Err(Error::Halted)
            }
            // Paused and let go on within one look: the next process does.
            JobStatus::Queued if before == JobStatus::Running => Err(Error::Halted),
            _ => Ok(()),
        }
    }
}
