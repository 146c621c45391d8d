//! One run as a small state machine: dataset -> training -> examining -> done, or failed; between examining and done it may be judging, by people,
//! for days and without a process.
//!
//! Each state is a row of the `runs` table before its work begins, so that others can watch and a killed process leaves a trace.
//! The run's id follows from what started it and a lease per task keeps a second process away, so nobody does a run twice:
//! - a run that is done is answered from its row;
//! - one that waits for people goes on at their votes;
//! - one whose verdict stood (the row has it before anything is promoted) goes on at the promotion;
//! - any other half-done one begins again: what it staged is removed, and a candidate that it had already published is rejected. Its training goes
//!   on where it was, if the examples are still the same.

use chrono::{DateTime, TimeDelta, Utc};
use retune_ledger::Run;
use retune_task::{Task, Trainer, sha256};

use crate::book::{self, Book, DONE, FAILED, JUDGING};
use crate::dataset::Counts;
use crate::report::Report;
use crate::verdict::Verdict;
use crate::{Error, Options, Start, StartedBy, people, stages, staging};

/// What happens, as it happens: for progress bars.
#[derive(Debug, Clone)]
pub enum Event {
    /// The run's id, and the state it enters.
    State {
        run_id: String,
        state: &'static str,
    },
    Dataset {
        counts: Counts,
        train: usize,
        development: usize,
        held_out: usize,
    },
    /// Of a small experiment before it.
    Experiment(retune_trainer::Progress),
    Training(retune_trainer::Progress),
    /// On preferences, after the examples.
    Preferring(retune_trainer::Progress),
    /// Prompts with a known answer are awaited.
    Pairs {
        have: usize,
        wanted: usize,
    },
    Examining {
        done: usize,
        total: usize,
    },
    Judging {
        done: usize,
        total: usize,
    },
    /// For people's votes on pairs, until a time.
    Waiting {
        voted: usize,
        asked: usize,
        until: DateTime<Utc>,
    },
    Verdict {
        verdict: Verdict,
        reasons: Vec<String>,
    },
    Promoted {
        adapter: String,
    },
}

/// The id of the run that `start` asks for; a person's request has no other name than its time.
pub fn run_id(start: &Start) -> String {
    let when = match &start.started_by {
        StartedBy::Before(run_id) => return run_id.clone(),
        StartedBy::Person => format!(":{}", Utc::now().to_rfc3339()),
        StartedBy::Trigger(_) | StartedBy::Schedule(_) => String::new(),
    };
    let digest = sha256(&format!("{}\n{}{when}", start.task, start.started_by));
    format!("run-{}", &digest[..12])
}

/// Makes the run that `start` asks for, in this process, from dataset to promotion; a run that is done already is returned as it was.
pub async fn run(
    o: &Options,
    start: &Start,
    observer: &mut (dyn FnMut(&Event) + Send),
) -> Result<Report, Error> {
    let task = o.task(&start.task)?;
    if task.retrain.trainer == Trainer::Native {
        crate::trainable(&o.base)?;
    }
    let lease = o.ledger.lease(&lease(&task.name)).await?;
    let lease = lease.ok_or_else(|| Error::Busy {
        task: task.name.clone(),
    })?;
    // Nobody else works at the task now: an open run of a person's is one that was stopped, and goes on.
    let run_id = match start.started_by {
        StartedBy::Person => stopped(&o.ledger.runs().await?, &task.name, Utc::now()),
        StartedBy::Before(_) | StartedBy::Trigger(_) | StartedBy::Schedule(_) => None,
    };
    let run_id = run_id.unwrap_or_else(|| self::run_id(start));
    let alone = Box::pin(alone(o, task, start, run_id, observer));
    lease.during(alone).await
}

/// What a process that works at a task's runs holds.
pub(crate) fn lease(task: &str) -> String {
    format!("retrain-{task}")
}

/// The task's newest run that a person asked for, if it neither ended nor failed, and waits for people or is not so old that nobody means it
/// any more.
pub(crate) fn stopped(runs: &[Run], task: &str, now: DateTime<Utc>) -> Option<String> {
    let by_person = StartedBy::Person.to_string();
    let of = runs
        .iter()
        .filter(|run| run.task == task && run.started_by == by_person);
    let newest = of.max_by_key(|run| run.ts)?;
    // One that failed behind its verdict has that to be carried out.
    let is_decided = newest.verdict.is_some();
    let is_open = newest.state != DONE && (newest.state != FAILED || is_decided);
    let is_young = now - newest.ts < TimeDelta::days(1);
    let is_meant = newest.state == JUDGING || is_decided || is_young;
    (is_open && is_meant).then(|| newest.run_id.clone())
}

/// What one process at a time does for a task.
async fn alone(
    o: &Options,
    task: &Task,
    start: &Start,
    run_id: String,
    observer: &mut (dyn FnMut(&Event) + Send),
) -> Result<Report, Error> {
    let before = o
        .ledger
        .runs()
        .await?
        .into_iter()
        .find(|run| run.run_id == run_id);
    if let Some(report) = before.as_ref().and_then(finished) {
        return Ok(report);
    }
    if before.is_none()
        && let StartedBy::Before(_) = start.started_by
    {
        return Err(Error::NoRun { run_id });
    }
    let report = before.as_ref().and_then(report_of);
    let mut book;
    let done = match (report, before) {
        (Some(report), Some(run)) if run.state == JUDGING && run.verdict.is_none() => {
            book = Book::open(&o.ledger, run);
            Box::pin(people::go_on(o, task, &mut book, report, observer)).await
        }
        (Some(report), Some(run)) => {
            book = Book::open(&o.ledger, run);
            Box::pin(stages::finish(o, task, &mut book, report, observer)).await
        }
        (None, Some(run)) if run.state == JUDGING => return Err(Error::OldReport { run_id }),
        (_, before) => {
            // Of what was done before nothing counts but what it cost.
            let report = before.and_then(|run| run.report);
            let row = book::new_row(&task.name, start.started_by.to_string(), run_id);
            book = Book::open(&o.ledger, Run { report, ..row });
            Box::pin(stages::from_the_start(o, task, &mut book, observer)).await
        }
    };
    if let Err(error) = &done {
        book.failed(error).await;
        // Nobody takes it up again, and the examples that another trainer was given are people's words.
        if start.started_by == StartedBy::Person
            || matches!(error, Error::Ledger(retune_ledger::Error::Forgotten { .. }))
        {
            staging::remove_folder(&staging::handed_over(o, &task.name, &book.run.run_id))?;
        }
    }
    done
}

fn finished(run: &Run) -> Option<Report> {
    (run.state == DONE).then(|| report_of(run)).flatten()
}

fn report_of(run: &Run) -> Option<Report> {
    serde_json::from_value(run.report.clone()?).ok()
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "run_faults_tests.rs"]
mod faults;
