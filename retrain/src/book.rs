//! A run's row in the `runs` table: written at each state, and every few seconds while a state makes progress.
//!
//! Until its verdict, or until people are asked, the row's `report` is no more than `{"training_seconds", "curve"}`: the seconds of all processes that have
//! worked at the run, so that what one cost that failed, or was killed, is known as well, and the losses so far, for whoever watches.

use std::time::{Duration, Instant};

use chrono::Utc;
use retune_ledger::{Ledger, Run};
use serde_json::{Value, json};

use crate::Error;
use crate::report::{Curve, Report};
use crate::run::Event;

pub(crate) const WAITING: &str = "waiting";
pub(crate) const DATASET: &str = "dataset";
pub(crate) const TRAINING: &str = "training";
pub(crate) const EXAMINING: &str = "examining";
/// By people; its process has ended, and the row has the whole report.
pub(crate) const JUDGING: &str = "judging";
pub(crate) const DONE: &str = "done";
pub(crate) const FAILED: &str = "failed";

/// Between two rows that only tell progress, at least; of what takes long each hundredth of it tells enough.
const PROGRESS: Duration = Duration::from_millis(2500);

/// Points of the losses that a row has, at most: each row has them all.
const POINTS: usize = 100;

/// Keeps the run's row.
pub(crate) struct Book<'a> {
    ledger: &'a Ledger,
    pub(crate) run: Run,
    written: Instant,
    /// When this state began.
    entered: Instant,
    /// Seconds of training before this state.
    trained: f64,
    /// Since when it trains.
    training: Option<Instant>,
    /// The losses so far.
    curve: Vec<Curve>,
}

impl<'a> Book<'a> {
    pub(crate) fn open(ledger: &'a Ledger, run: Run) -> Self {
        Self {
            ledger,
            trained: training_seconds(&run).unwrap_or_default(),
            run,
            written: Instant::now(),
            entered: Instant::now(),
            training: None,
            curve: Vec::new(),
        }
    }

    /// Seconds of training, experiments and preferences included, in all processes that have worked at this run.
    pub(crate) fn training_seconds(&self) -> f64 {
        let now = self.training.map(|since| since.elapsed().as_secs_f64());
        self.trained + now.unwrap_or_default()
    }

    pub(crate) async fn enter(
        &mut self,
        state: &'static str,
        observer: &mut (dyn FnMut(&Event) + Send),
    ) -> Result<(), Error> {
        observer(&Event::State {
            run_id: self.run.run_id.clone(),
            state,
        });
        self.trained = self.training_seconds();
        self.entered = Instant::now();
        self.training = (state == TRAINING).then(Instant::now);
        if state == TRAINING {
            self.curve.clear();
        }
        state.clone_into(&mut self.run.state);
        self.run.progress = None;
        self.write().await
    }

    pub(crate) async fn progress(&mut self, done: usize, total: usize) -> Result<(), Error> {
        self.run.progress = Some((done as u64, total as u64));
        if !self.is_due() {
            Ok(())
        } else {
            self.write().await
        }
    }

    /// A step of the training is done.
    pub(crate) async fn step(&mut self, at: Curve, steps: usize) -> Result<(), Error> {
        if self.is_due() || is_measured(&at) {
            self.curve.push(at);
            thin(&mut self.curve);
        }
        let step = usize::try_from(at.step).unwrap_or(usize::MAX);
        self.progress(step, steps).await
    }

    fn is_due(&self) -> bool {
        self.written.elapsed() >= PROGRESS.max(self.entered.elapsed() / 100)
    }

    /// People have said so much of it.
    pub(crate) async fn waits(&mut self, voted: usize, asked: usize) -> Result<(), Error> {
        let progress = Some((voted as u64, asked as u64));
        if self.run.progress == progress {
            return Ok(());
        }
        self.run.progress = progress;
        self.write().await
    }

    pub(crate) async fn write(&mut self) -> Result<(), Error> {
        if self.run.verdict.is_none() && self.run.state != JUDGING {
            self.run.report =
                Some(json!({ "training_seconds": self.training_seconds(), "curve": self.curve }));
        }
        self.run.ts = Utc::now();
        self.written = Instant::now();
        Ok(self.ledger.append_run(&self.run).await?)
    }

    /// The report's figures in the row's columns.
    pub(crate) fn fill(&mut self, report: &Report) {
        let run = &mut self.run;
        run.adapter.clone_from(&report.adapter);
        run.baseline = Some(report.baseline.clone());
        run.exchanges_version = Some(report.exchanges_version);
        run.feedback_version = Some(report.feedback_version);
        run.examples_train = Some(report.examples_train);
        run.examples_development = Some(report.examples_development);
        run.examples_held_out = Some(report.examples_held_out);
        run.examples_examined = report.examples_examined;
        run.loss_first = report.loss_first;
        run.loss_last = report.loss_last;
        run.votes = report.votes;
        run.wins = report.wins;
        run.ties = report.ties;
        run.p_value = report.p_value;
        run.judge.clone_from(&report.judge);
    }

    /// The verdict stands: from here on the run is carried out, never made again.
    pub(crate) fn decide(&mut self, report: &Report) -> Result<(), Error> {
        self.fill(report);
        self.run.verdict = Some(report.verdict.to_string());
        self.run.promoted = Some(report.promoted);
        self.run.report = Some(serde_json::to_value(report).map_err(Error::Report)?);
        Ok(())
    }

    pub(crate) async fn failed(&mut self, error: &Error) {
        // What people have said is worth more than another training: it is tried again from there.
        if self.run.state != JUDGING || self.run.verdict.is_some() {
            FAILED.clone_into(&mut self.run.state);
        }
        self.run.error = Some(error.to_string());
        if let Err(unkept) = self.write().await {
            tracing::error!(run_id = self.run.run_id, %error, %unkept, "the run failed, and its row could not be written");
        }
    }
}

fn is_measured(point: &Curve) -> bool {
    point.held_out_loss.is_some() || point.development_loss.is_some()
}

/// Of too many points every second one that tells the training's loss alone goes, or of all where those are too few.
fn thin(curve: &mut Vec<Curve>) {
    if curve.len() <= POINTS {
        return;
    }
    let few = curve.iter().filter(|point| is_measured(point)).count() <= POINTS / 2;
    let mut place = 0;
    curve.retain(|point| {
        let stays = few && is_measured(point);
        place += usize::from(!stays);
        stays || !place.is_multiple_of(2)
    });
}

fn training_seconds(run: &Run) -> Option<f64> {
    run.report.as_ref()?.get("training_seconds")?.as_f64()
}

/// What a run has cost so far, with that price of an hour's training: its report's total, or its training alone where it came to none.
pub(crate) fn spent(run: &Run, training_hour: f64) -> f64 {
    let total = run
        .report
        .as_ref()
        .and_then(|report| report.pointer("/cost/total"));
    let training = || Some(training_seconds(run)? / 3600.0 * training_hour);
    total
        .and_then(Value::as_f64)
        .or_else(training)
        .unwrap_or_default()
}

pub(crate) fn new_row(task: &str, started_by: String, run_id: String) -> Run {
    Run {
        run_id,
        ts: Utc::now(),
        task: task.to_owned(),
        started_by,
        state: DATASET.to_owned(),
        ..Run::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: u64, held_out_loss: Option<f64>) -> Curve {
        Curve {
            step,
            epoch: 0,
            train_loss: Some(1.0),
            held_out_loss,
            development_loss: None,
        }
    }

    #[test]
    fn a_long_training_s_curve_stays_short_and_keeps_what_was_measured() {
        let (mut curve, mut most) = (Vec::new(), 0);
        for step in 0..10_000 {
            curve.push(point(step, (step % 200 == 0).then_some(1.0)));
            thin(&mut curve);
            most = most.max(curve.len());
        }
        assert!(most <= POINTS, "{most}");
        assert!(curve.len() > POINTS / 4, "{}", curve.len());
        let measured = curve.iter().filter(|point| is_measured(point));
        assert_eq!(measured.count(), 50);
        assert!(curve.is_sorted_by_key(|point| point.step));

        let mut all = (0..=POINTS as u64).map(|n| point(n, Some(1.0))).collect();
        thin(&mut all);
        assert!(all.len() <= POINTS && all.len() >= POINTS / 2);
    }
}
