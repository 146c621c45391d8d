//! A fine-tuning job: an uploaded file becomes an adapter, without the playbook that a run goes by.
//!
//! What was asked and what becomes of it are the ledger's files ([`retune_ledger::Job`]); a lease sees to it that one process trains.
//! After each epoch its adapter is saved, then how far the training is, then the adapter is published: killed between any two of them,
//! the next process finds what is missing. An epoch's adapter answers by its name at once, and the last one's is the job's model.

mod book;
mod lesson;
mod lines;
mod recipe;
mod result;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use chrono::{TimeDelta, Utc};
use retune_ledger::{
    AdapterRef, JobCheckpoint, JobEntry, JobError, JobLevel, JobStatus, Manifest, Source,
};
use retune_task::{Task, base_id};
use retune_trainer::{Checkpoints, LoraAdapter, LoraSettings, ModelConfig, Progress};
use serde_json::json;

use crate::train::{self, AtEpoch, Training};
use crate::{Encoder, Error, Options, probes, staging};
use book::Book;

/// Trains what a job asks for, in this process, until its end or until somebody halts it. One that is over, or paused, is left alone.
///
/// # Errors
/// What kept the job from being looked at; why it failed is its own to say.
pub async fn run_job(
    o: &Options,
    id: &str,
    observer: &mut (dyn FnMut(&Progress) + Send),
) -> Result<JobStatus, Error> {
    let lease = o.ledger.lease(&lease(id)).await?;
    let lease = lease.ok_or_else(|| Error::BusyJob(id.to_owned()))?;
    lease.during(alone(o, id, observer)).await
}

/// The name of the right to train it.
pub(crate) fn lease(id: &str) -> String {
    format!("job-{id}")
}

async fn alone(
    o: &Options,
    id: &str,
    observer: &mut (dyn FnMut(&Progress) + Send),
) -> Result<JobStatus, Error> {
    let state = o.ledger.job(id).await?;
    let state = state.ok_or_else(|| Error::UnknownJob(id.to_owned()))?;
    if !matches!(state.status, JobStatus::Queued | JobStatus::Running) {
        return Ok(state.status);
    }
    let task = Task::of_job(&state.job.task);
    let mut work = Work {
        o,
        task,
        folder: folder(o, id),
        book: Book::open(&o.ledger, state),
    };
    match work.all(observer).await {
        Ok(()) | Err(Error::Halted) => {}
        // Its server or its watcher ends: the next one goes on.
        Err(Error::Stopped) => return Err(Error::Stopped),
        Err(error) => work.fail(&error).await?,
    }
    let status = work.book.state().status;
    if status.is_end() {
        staging::remove_folder(&work.folder)?;
    }
    Ok(status)
}

/// Ends a job whose process died too often to be started once more.
pub(crate) async fn give_up(o: &Options, id: &str, why: &str) -> Result<(), Error> {
    let Some(state) = o.ledger.job(id).await? else {
        return Ok(());
    };
    if state.status.is_end() {
        return Ok(());
    }
    let mut book = Book::open(&o.ledger, state);
    book.say(JobLevel::Error, why.to_owned(), None);
    *book.next() = failed(book.next().clone(), "training_process_died", why, None);
    match book.write().await {
        Ok(()) | Err(Error::Halted) => staging::remove_folder(&folder(o, id)),
        Err(error) => Err(error),
    }
}

fn failed(entry: JobEntry, code: &str, message: &str, param: Option<&str>) -> JobEntry {
    JobEntry {
        status: Some(JobStatus::Failed),
        error: Some(JobError {
            code: code.to_owned(),
            message: message.to_owned(),
            param: param.map(str::to_owned),
        }),
        ..entry
    }
}

/// What a job has on this machine: how far the training is, and adapters that are not published yet.
fn folder(o: &Options, id: &str) -> PathBuf {
    o.ledger.files().join("jobs").join(id)
}

struct Work<'a> {
    o: &'a Options,
    task: Task,
    folder: PathBuf,
    book: Book<'a>,
}

impl Work<'_> {
    async fn all(&mut self, observer: &mut (dyn FnMut(&Progress) + Send)) -> Result<(), Error> {
        let again = self.book.state().status == JobStatus::Running;
        let message = if again || self.folder.exists() {
            "Fine-tuning job goes on"
        } else {
            "Fine-tuning job started"
        };
        self.book.next().status = Some(JobStatus::Running);
        self.book.say(JobLevel::Info, message.to_owned(), None);
        self.book.write().await?;

        crate::trainable(&self.o.base)?;
        let model = ModelConfig::load(&self.o.base)?;
        let encoder = Encoder::from_folder(&self.o.base, model.max_position_embeddings)?;
        let (lesson, settings) = self.lesson(&encoder, model.hidden_size).await?;
        let counts = lesson.of.counts();

        let mut published = self.published().await?;
        std::fs::create_dir_all(&self.folder).map_err(Error::file(&self.folder))?;
        let checkpoints = Checkpoints::new(
            self.folder.join("checkpoint.safetensors"),
            self.o.limits.checkpoint,
        );
        let mut training = Training::start(
            lesson,
            settings.clone(),
            Some(checkpoints),
            &self.o.config.training,
            self.saves(published.keys().copied().collect()),
        )?;
        let mut pace = Pace::default();
        while let Some(step) = training.next().await {
            observer(&step);
            self.tell(&step, &mut pace);
            if step.ends_epoch && !published.contains_key(&step.epoch) {
                let adapter = self.publish(&encoder, &settings, counts, &step).await?;
                published.insert(step.epoch, adapter);
            }
            if step.ends_epoch {
                self.checkpoint(&step, &published);
            }
            if let Err(error) = self.book.tick().await {
                // How far it is gets kept before this process ends.
                training.stop();
                drop(training.finish().await);
                return Err(error);
            }
        }
        let outcome = training.finish().await?;
        let model = published.last_entry().map(|last| last.remove());
        let model = model.ok_or(Error::Stopped)?;
        self.succeed(&model, outcome.tokens).await
    }

    /// Adapters of this job that are in the ledger, by their epochs.
    async fn published(&self) -> Result<BTreeMap<usize, AdapterRef>, Error> {
        let id = &self.book.state().job.id;
        let adapters = self.o.ledger.adapters(&self.task.name).await?;
        let of_job = adapters.into_iter().filter_map(|adapter| {
            let manifest = &adapter.manifest;
            let epoch = manifest.lora["chosen_epoch"].as_u64()?;
            let is_own = manifest.run_id.as_ref() == Some(id);
            is_own.then_some((usize::try_from(epoch).ok()?, adapter))
        });
        Ok(of_job.collect())
    }

    /// Saves an epoch's adapter, unless it was.
    fn saves(&self, published: Vec<usize>) -> AtEpoch {
        let (folder, base) = (self.folder.clone(), base_id(&self.o.base));
        Box::new(move |epoch: usize, adapter: &LoraAdapter| {
            let to = epoch_folder(&folder, epoch);
            if published.contains(&epoch) || to.exists() {
                return Ok(());
            }
            let part = folder.join("part");
            staging::remove_folder(&part)?;
            std::fs::create_dir_all(&part).map_err(Error::file(&part))?;
            adapter.save(&part, &base)?;
            std::fs::rename(&part, &to).map_err(Error::file(&to))
        })
    }

    /// Tells of a step, unless an earlier process did.
    fn tell(&mut self, step: &Progress, pace: &mut Pace) {
        let rates = pace.after(step);
        if step.step == 0 || self.is_told(step.step) {
            return;
        }
        let finite = |x: f64| x.is_finite().then_some(x);
        let metrics = json!({
            "step": step.step,
            "total_steps": step.steps,
            "train_loss": step.train_loss,
            "full_valid_loss": step.held_out_loss,
            "gradient_norm": finite(step.gradient_norm),
            "learning_rate": step.learning_rate,
            "tokens_per_second": rates.map(|(_, tokens)| tokens),
        });
        let mut message = format!(
            "Step {}/{}: training loss={:.2}",
            step.step, step.steps, step.train_loss
        );
        if let Some(loss) = step.held_out_loss {
            message.push_str(&format!(", full validation loss={loss:.2}"));
        }
        self.book.say(JobLevel::Info, message, Some(metrics));
        if let Some((steps, _)) = rates {
            let left = (step.steps - step.step) as f64 / steps;
            let left = TimeDelta::milliseconds((left * 1e3) as i64);
            self.book.next().estimated_finish = Some(Utc::now() + left);
        }
    }

    fn is_told(&self, step: usize) -> bool {
        let events = self.book.state().events.iter().rev();
        let steps = events.filter_map(|event| event.metrics.as_ref()?["step"].as_u64());
        steps.take(1).any(|last| step as u64 <= last)
    }

    async fn publish(
        &self,
        encoder: &Encoder,
        settings: &LoraSettings,
        (examples_train, examples_held_out): (u64, u64),
        step: &Progress,
    ) -> Result<AdapterRef, Error> {
        let staging = epoch_folder(&self.folder, step.epoch);
        let (folder, base) = (staging.clone(), self.o.base.clone());
        let name = self.task.name.clone();
        let begun = tokio::task::spawn_blocking(move || {
            let manifest = Manifest::begin(&Task::of_job(&name), Source::Job, &base)?;
            Ok::<_, Error>((manifest, LoraAdapter::load(&folder)?))
        });
        let (manifest, adapter) = begun.await.map_err(|_| Error::Stopped)??;
        let probes = probes::taken(&self.o.base, &adapter, encoder, &self.task).await?;
        let manifest = Manifest {
            run_id: Some(self.book.state().job.id.clone()),
            parent: self.book.state().job.from.clone(),
            examples_train,
            examples_held_out,
            lora: train::of_manifest(settings, Some(step.epoch as u64)),
            loss_last: step.held_out_loss,
            probes,
            ..manifest
        };
        let ledger = &self.o.ledger;
        Ok(ledger
            .put_adapter(&self.task.name, &staging, manifest, None)
            .await?)
    }

    /// Notes an epoch's adapter, unless it is.
    fn checkpoint(&mut self, step: &Progress, published: &BTreeMap<usize, AdapterRef>) {
        let epoch = u32::try_from(step.epoch).unwrap_or(u32::MAX);
        let adapter = published.get(&step.epoch);
        let Some(adapter) = adapter.filter(|_| !self.book.has_checkpoint(epoch)) else {
            return;
        };
        let checkpoint = JobCheckpoint {
            at: Utc::now(),
            epoch,
            step: step.step as u64,
            number: adapter.number,
            metrics: json!({
                "step": step.step,
                "train_loss": step.train_loss,
                "full_valid_loss": step.held_out_loss,
            }),
        };
        let name = crate::stages::name(&self.task.name, adapter.number);
        self.book.next().checkpoints.push(checkpoint);
        let message = format!("Checkpoint of epoch {} created: {name}", step.epoch);
        self.book.say(JobLevel::Info, message, None);
    }

    async fn succeed(&mut self, model: &AdapterRef, tokens: u64) -> Result<(), Error> {
        // All steps are in the ledger then, an earlier process's too.
        self.book.write().await?;
        let state = self.book.state();
        let files = result::keep(&self.o.ledger, &self.folder, state, model).await?;
        let next = self.book.next();
        next.result_files = files;
        next.trained_tokens = Some(tokens);
        next.status = Some(JobStatus::Succeeded);
        self.book.say(
            JobLevel::Info,
            "The job has successfully completed".to_owned(),
            None,
        );
        self.book.write().await
    }

    async fn fail(&mut self, error: &Error) -> Result<(), Error> {
        let job = &self.book.state().job;
        let (code, param) = match error {
            Error::NoFile(id) if Some(id) == job.validation_file.as_ref() => {
                ("invalid_validation_file", Some("validation_file"))
            }
            Error::NoFile(_) | Error::Line { .. } | Error::NoExamples { .. } => {
                ("invalid_training_file", Some("training_file"))
            }
            Error::Base { .. } | Error::NoAdapter(_) => ("model_not_trainable", Some("model")),
            Error::Trainer(retune_trainer::Error::Diverged { .. }) => {
                ("training_diverged", Some("hyperparameters"))
            }
            Error::Memory { .. } => ("out_of_memory", None),
            _ => ("training_failed", None),
        };
        let message = error.to_string();
        tracing::error!(job = job.id, error = message, "a fine-tuning job failed");
        self.book
            .say(JobLevel::Error, format!("The job failed: {message}"), None);
        *self.book.next() = failed(self.book.next().clone(), code, &message, param);
        match self.book.write().await {
            Err(Error::Halted) => Ok(()),
            written => written,
        }
    }
}

/// How fast this process trains: what went before it took no time of its own.
#[derive(Default)]
struct Pace(Option<(Instant, usize, u64)>);

impl Pace {
    /// Steps and tokens a second, up to this step.
    fn after(&mut self, step: &Progress) -> Option<(f64, f64)> {
        let now = (Instant::now(), step.step, step.tokens);
        let (at, steps, tokens) = match self.0 {
            Some(begun) if !step.is_past => begun,
            _ => *self.0.insert(now),
        };
        let seconds = at.elapsed().as_secs_f64();
        let rate = |n: f64| n / seconds;
        (step.step > steps && seconds > 0.0).then(|| {
            (
                rate((step.step - steps) as f64),
                rate((step.tokens - tokens) as f64),
            )
        })
    }
}

fn epoch_folder(folder: &Path, epoch: usize) -> PathBuf {
    folder.join(format!("epoch-{epoch}"))
}

/// The examples of one line.
#[cfg(test)]
pub(crate) fn learned(
    encoder: &Encoder,
    task: &Task,
    line: &str,
) -> Result<Vec<retune_trainer::Example>, Error> {
    Ok(lines::examples(encoder, task, line.as_bytes())?.examples)
}

#[cfg(test)]
pub(crate) mod tests;
