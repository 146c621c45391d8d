//! Starts the runs that alarms and schedules ask for, and fine-tuning jobs, each in a process of its own, one at a time.
//!
//! An alarm says that the traffic has changed; it does not bring the examples to learn the change from. So a run waits until enough
//! usable rows have arrived since its alarm, and its row says how many there are and how many are wanted. A schedule's run begins at
//! its time, or when somebody watches again, if the task had any traffic by then; too few examples are its verdict's to tell. A
//! process that failed is started again, with doubled pauses, three times in all.
//!
//! An alarm soon after a promotion speaks against what was promoted: the former champion comes back. One that somebody silenced starts
//! nothing until then, and for a while after a run that an alarm started no other one does.

mod jobs;
mod judging;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use retune_ledger::{ExchangeQuery, FeedbackQuery, Ledger, Run, Stages, Trigger};
use retune_task::{Task, Trainer};
use tokio_util::sync::CancellationToken;

use crate::book::{self, DONE, FAILED, JUDGING, WAITING};
use crate::canary;
use crate::dataset::Dataset;
use crate::next::{Due, Look, Next, due};
use crate::run::run_id;
use crate::server::Server;
use crate::shelf;
use crate::soon::Held;
use crate::{Error, Launch, Limits, Options, Start, StartedBy, trust};

/// Processes started for one run before it is left to a person.
const LAUNCHES: u32 = 3;

/// A launcher's answer: how the run's process ended.
pub type Launched = Pin<Box<dyn Future<Output = io::Result<ExitStatus>> + Send>>;

/// Why a run waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// For examples: there are, wanted.
    Examples(usize, usize),
    NotBefore(Held, DateTime<Utc>),
}

/// Watches until `stop`, which `launch` has to obey as well; trouble with the ledger is logged and tried again at the next look.
pub async fn watch(
    o: &Options,
    launch: impl Fn(&Launch) -> Launched + Send + Sync,
    stop: CancellationToken,
) {
    // A canary is looked after while a run trains, too.
    tokio::join!(starts(o, launch, stop.clone()), canary::watch(o, stop));
}

async fn starts(
    o: &Options,
    launch: impl Fn(&Launch) -> Launched + Send + Sync,
    stop: CancellationToken,
) {
    let trainable = crate::trainable(&o.base);
    let needs_it = |task: &Arc<Task>| task.retrain.trainer == Trainer::Native;
    if let Err(error) = &trainable
        && o.config.tasks.iter().any(needs_it)
    {
        tracing::warn!(%error, "no alarm and no schedule starts a run that trains here");
    }
    let mut watcher = Watcher {
        o,
        launch,
        stop: stop.clone(),
        attempts: HashMap::new(),
        over: HashSet::new(),
        waited: Duration::ZERO,
        trainable: trainable.is_ok(),
    };
    loop {
        let began = Instant::now();
        // A pass is not cut off: the launcher stops the process that it waits for.
        watcher.pass().await;
        let looked = began
            .elapsed()
            .saturating_sub(std::mem::take(&mut watcher.waited));
        // Reading the ledger may take long when it is large: it gets at most a tenth of the time.
        let pause = o.limits.poll.max(looked.min(Duration::from_secs(6)) * 10);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

#[derive(Default)]
struct Attempts {
    launches: u32,
    not_before: Option<Instant>,
    told: Option<Waits>,
    /// Its run is done: nothing is looked up any more.
    done: bool,
    /// Going back was tried: once is enough, done or refused.
    rolled_back: bool,
    /// Votes of people when its pairs were last counted.
    votes: Option<usize>,
}

impl Attempts {
    fn may_begin(&self) -> bool {
        !self.done
            && self.launches < LAUNCHES
            && self.not_before.is_none_or(|time| Instant::now() >= time)
    }
}

struct Watcher<'a, L> {
    o: &'a Options,
    launch: L,
    stop: CancellationToken,
    attempts: HashMap<String, Attempts>,
    /// Jobs to which nothing comes any more.
    over: HashSet<String>,
    /// For processes, in this pass.
    waited: Duration,
    /// Whether the base is one that can be trained on here; a job that wants another is told so.
    trainable: bool,
}

impl<L: Fn(&Launch) -> Launched + Send + Sync> Watcher<'_, L> {
    /// One look at every trigger and schedule; waits for the processes that it starts, one after another. What goes wrong with one task
    /// keeps no other one from its run.
    async fn pass(&mut self) {
        let o = self.o;
        if let Err(error) = Box::pin(self.judged()).await {
            tracing::warn!(%error, "runs that people judge could not be looked through; trying again");
        }
        for task in &o.config.tasks {
            if !self.may_train(task) {
                continue;
            }
            if let Err(error) = Box::pin(self.look_at(task)).await {
                tracing::warn!(
                    task = task.name,
                    %error,
                    "alarms and schedule could not be looked through; trying again"
                );
            }
        }
        if let Err(error) = self.jobs().await {
            tracing::warn!(%error, "fine-tuning jobs could not be looked through; trying again");
        }
    }

    fn may_train(&self, task: &Task) -> bool {
        self.trainable || task.retrain.trainer != Trainer::Native
    }

    async fn look_at(&mut self, task: &Task) -> Result<(), Error> {
        for trigger in self.o.ledger.triggers(Some(&task.name)).await? {
            if self.stop.is_cancelled() {
                return Ok(());
            }
            self.consider(task, &trigger).await?;
        }
        let due = task.retrain.schedule.as_ref();
        if let Some(time) = due.and_then(|schedule| schedule.last(Utc::now())) {
            self.consider_time(task, time).await?;
        }
        Ok(())
    }

    /// The last time that the schedule named: its run begins if none has, and there was something to learn from by then.
    async fn consider_time(&mut self, task: &Task, time: DateTime<Utc>) -> Result<(), Error> {
        let o = self.o;
        let start = Start {
            task: task.name.clone(),
            started_by: StartedBy::Schedule(time),
        };
        let id = run_id(&start);
        let attempts = self.attempts.entry(id.clone()).or_default();
        if self.stop.is_cancelled() || !attempts.may_begin() {
            return Ok(());
        }
        let (runs, first) = (o.ledger.runs().await?, first(&o.ledger, task).await?);
        match look(o, task, &runs, &[]).time(time, first) {
            // A time before the task's first exchange had nothing to train on, and never will have.
            Next::NoTraffic => attempts.done = first.is_some(),
            Next::NotBefore(why, until) => {
                let waits = Some(Waits::NotBefore(why, until));
                if attempts.told != waits {
                    attempts.told = waits;
                    let why = why.shown();
                    tracing::info!(task = task.name, run_id = id, %until, why, "a schedule's run waits");
                }
            }
            Next::CarryOut | Next::GoOn | Next::Begin => return self.launch(&start, id).await,
            Next::Judging => {}
            _ => attempts.done = true,
        }
        Ok(())
    }

    async fn consider(&mut self, task: &Task, trigger: &Trigger) -> Result<(), Error> {
        let o = self.o;
        let start = Start {
            task: task.name.clone(),
            started_by: StartedBy::Trigger(trigger.alarm.clone()),
        };
        let id = run_id(&start);
        let attempts = self.attempts.entry(id.clone()).or_default();
        if !attempts.may_begin() {
            return Ok(());
        }
        let word = o.ledger.last_word(trigger).await?;
        let (runs, history) = (
            o.ledger.runs().await?,
            o.ledger.stages_history(&task.name).await?,
        );
        let look = look(o, task, &runs, &history);
        let is_silenced = word.is_some_and(|word| word.holds_back(look.now));
        let row = look.row(&start.started_by);
        let new = || book::new_row(&task.name, start.started_by.to_string(), id.clone());
        let close = || {
            close(
                &o.ledger,
                row.cloned().unwrap_or_else(new),
                &trigger.adapter,
            )
        };
        let mut next = look.alarm(trigger, is_silenced, !attempts.rolled_back);
        if next == Next::RollBack {
            let is_back = roll_back(o, task, trigger).await?;
            attempts.rolled_back = true;
            if is_back {
                return close().await;
            }
            next = look.alarm(trigger, is_silenced, false);
        }
        let waits = match next {
            Next::CarryOut | Next::GoOn => None,
            Next::Begin => match due(&task.retrain, &read(&o.ledger, task).await?, trigger.ts) {
                Due::Ready => None,
                Due::Waiting { have, wanted } => Some(Waits::Examples(have, wanted)),
            },
            Next::NotBefore(why, until) => Some(Waits::NotBefore(why, until)),
            Next::Retired => return close().await,
            Next::Done | Next::Unasked => {
                attempts.done = true;
                return Ok(());
            }
            Next::Silenced | Next::Judging | Next::NoTraffic | Next::RollBack => return Ok(()),
        };
        if waits.is_none() {
            return self.launch(&start, id).await;
        }
        if attempts.told != waits {
            attempts.told = waits;
            let mut run = new();
            WAITING.clone_into(&mut run.state);
            match waits {
                Some(Waits::Examples(have, wanted)) => {
                    run.progress = Some((have as u64, wanted as u64));
                }
                Some(Waits::NotBefore(why, until)) => {
                    run.error = Some(format!("not before {until}: {}", why.shown()));
                }
                None => {}
            }
            o.ledger.append_run(&run).await?;
        }
        Ok(())
    }

    /// Starts the run's process and waits for its end.
    async fn launch(&mut self, start: &Start, id: String) -> Result<(), Error> {
        let o = self.o;
        let attempts = self.attempts.entry(id.clone()).or_default();
        attempts.launches += 1;
        let was_judging = attempts.votes.is_some();
        tracing::info!(
            task = start.task,
            run_id = id,
            launch = attempts.launches,
            "starting a run"
        );
        let launched = (self.launch)(&Launch::Run(start.clone()));
        let how = end_of(launched, &mut self.waited).await;
        let row = latest(&o.ledger, &id).await?;
        if self.stop.is_cancelled() || row.as_ref().is_some_and(|run| run.state == DONE) {
            return Ok(());
        }
        let is_judging = row.as_ref().is_some_and(|run| run.state == JUDGING);
        if is_judging && !was_judging {
            // It has done what it could: the rest is people's.
            *attempts = Attempts::default();
            return Ok(());
        }
        let launches = attempts.launches;
        attempts.not_before = Some(Instant::now() + pause(&o.limits, launches));
        tracing::warn!(
            task = start.task,
            run_id = id,
            launch = launches,
            how,
            "a run did not finish"
        );
        // A run that failed has said why; one that was killed could not.
        if !is_judging && row.as_ref().is_none_or(|run| run.state != FAILED) {
            let mut run =
                row.unwrap_or_else(|| book::new_row(&start.task, start.started_by.to_string(), id));
            run.ts = Utc::now();
            FAILED.clone_into(&mut run.state);
            run.error = Some(how);
            o.ledger.append_run(&run).await?;
        }
        Ok(())
    }
}

/// Waits for a process; how it ended, in words.
async fn end_of(launched: Launched, waited: &mut Duration) -> String {
    let begun = Instant::now();
    let ended = launched.await;
    *waited += begun.elapsed();
    match ended {
        Ok(status) => format!("its process ended with {status}"),
        Err(error) => format!("its process could not be started: {error}"),
    }
}

fn pause(limits: &Limits, launches: u32) -> Duration {
    limits.relaunch * 2_u32.pow(launches.saturating_sub(1).min(16))
}

async fn latest(ledger: &Ledger, run_id: &str) -> Result<Option<Run>, Error> {
    Ok(ledger
        .runs()
        .await?
        .into_iter()
        .find(|run| run.run_id == run_id))
}

/// What decides of a task's runs now.
fn look<'a>(o: &'a Options, task: &'a Task, runs: &'a [Run], history: &'a [Stages]) -> Look<'a> {
    Look {
        task,
        prices: &o.config.cost,
        runs,
        history,
        now: Utc::now(),
    }
}

/// When a task was first asked something.
pub(crate) async fn first(ledger: &Ledger, task: &Task) -> Result<Option<DateTime<Utc>>, Error> {
    let first = ExchangeQuery {
        limit: Some(1),
        ..shelf::of(task)
    };
    let first = ledger.exchanges(&first).await?.into_iter().next();
    Ok(first.map(|first| first.ts))
}

/// Brings the former champion back where an alarm came soon after the promotion of the one that it is about; whether it did.
async fn roll_back(o: &Options, task: &Task, trigger: &Trigger) -> Result<bool, Error> {
    let server = Server::new(o.http.clone(), &o.server, &o.limits).by(&trigger.alarm);
    let reason = format!("an alarm ({}) came soon after its promotion", trigger.kind);
    match server.roll_back(&trigger.adapter, &reason).await {
        Ok(()) => {
            tracing::warn!(
                task = task.name,
                adapter = trigger.adapter,
                alarm = trigger.alarm,
                "an alarm came soon after a promotion: the former champion is back"
            );
            Ok(true)
        }
        // A server that is away, or busy, is asked again; what it does not allow now, it will not later.
        Err(Error::Refused {
            status, message, ..
        }) if (400..500).contains(&status) && status != 429 => {
            tracing::warn!(
                task = task.name,
                adapter = trigger.adapter,
                alarm = trigger.alarm,
                message,
                "an alarm came soon after a promotion, and there is no going back"
            );
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// The last row of a run whose alarm has had its answer; what it cost stays in it.
async fn close(ledger: &Ledger, mut run: Run, adapter: &str) -> Result<(), Error> {
    let begun = run.state != WAITING && run.report.is_some();
    let how = if begun { "not ended" } else { "not begun" };
    run.ts = Utc::now();
    DONE.clone_into(&mut run.state);
    run.progress = None;
    run.promoted = Some(false);
    run.error = Some(format!(
        "{how}: its alarm is about `{adapter}`, which is the champion no longer"
    ));
    Ok(ledger.append_run(&run).await?)
}

/// At no version that anybody reads again: each look would bring the logs' rows into the tables otherwise.
pub(crate) async fn read(ledger: &Ledger, task: &Task) -> Result<Dataset, Error> {
    let exchanges = ledger.exchanges(&shelf::of_dataset(task)).await?;
    let feedback = trust::feedback(ledger, &FeedbackQuery::default()).await?;
    Ok(shelf::build(task, &exchanges, &feedback))
}

#[cfg(test)]
mod tests;
