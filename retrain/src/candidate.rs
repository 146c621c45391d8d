//! The training state of a run: from a dataset to a candidate in the ledger, by whichever trainer the task's policy names.
//!
//! Retune's own trainer works here, on tokens. Another program, or another server, gets conversations and gives PEFT's two files
//! back; what is not known of how it trained stays open in the report.

use std::path::{Path, PathBuf};
use std::time::Instant;

use retune_ledger::{AdapterRef, Manifest, Probe, Source};
use retune_task::{ChatTemplate, Task, Trainer, base_id};
use retune_trainer::{LoraAdapter, LoraOutcome, LoraSettings, Progress};

use crate::book::{Book, TRAINING};
use crate::dataset::{Dataset, Row};
use crate::elsewhere::{self, Order};
use crate::experiment;
use crate::report::{Curve, Report};
use crate::run::Event;
use crate::shape::Shape;
use crate::stages::{Observer, name};
use crate::train::{self, Examples, Material, Training};
use crate::{Encoder, Error, Options, prefer, probes, shelf, staging};

/// Trains, and publishes what came of it.
pub(crate) async fn make(
    o: &Options,
    task: &Task,
    book: &mut Book<'_>,
    dataset: &Dataset,
    report: &mut Report,
    observer: Observer<'_>,
) -> Result<AdapterRef, Error> {
    let shape = Shape::of(&o.base)?;
    let mut settings = train::settings(task, shape.hidden, &report.run_id);
    let staging = staging::folder(o, &task.name).join(&report.run_id);
    std::fs::create_dir_all(&staging).map_err(Error::file(&staging))?;
    let made = match &task.retrain.trainer {
        Trainer::Native => {
            let encoder = Encoder::from_folder(&o.base, shape.context)?;
            let (outcome, used) =
                natively(o, task, book, dataset, &encoder, settings, report, observer).await?;
            let adapter = prefer::learn(
                o,
                task,
                book,
                &dataset.preferences,
                &encoder,
                (&outcome.adapter, &used),
                report,
                observer,
            )
            .await?;
            settings = used;
            let adapter = adapter.unwrap_or(outcome.adapter);
            adapter.save(&staging, &base_id(&o.base))?;
            probes::taken(&o.base, &adapter, &encoder, task).await?
        }
        Trainer::Other(other) => {
            book.fill(report);
            book.enter(TRAINING, observer).await?;
            let order = Order {
                run_id: report.run_id.clone(),
                task: task.name.clone(),
                base: o.base.clone(),
                end_of_turn: ChatTemplate::from_folder(&o.base)?.end_of_turn().to_owned(),
                max_length: shape.context,
                settings: settings.clone(),
                train: conversations(task, &dataset.train),
                development: conversations(task, &dataset.development),
            };
            let folder = staging::handed_over(o, &task.name, &report.run_id);
            let started = Instant::now();
            let mut training = elsewhere::start(other, &order, &folder, &o.limits)?;
            while let Some(step) = training.next().await {
                book.step(point(&step), step.steps).await?;
                report
                    .curve
                    .extend(step.development_loss.map(|_| point(&step)));
                report.training_steps = Some(step.step as u64);
                observer(&Event::Training(step));
            }
            take_over(&training.finish().await?, &staging)?;
            report.training_seconds = Some(started.elapsed().as_secs_f64());
            // What it answers is known only where it was made.
            Vec::new()
        }
    };
    publish(o, task, dataset, report, &settings, &staging, made).await
}

async fn publish(
    o: &Options,
    task: &Task,
    dataset: &Dataset,
    report: &mut Report,
    settings: &LoraSettings,
    staging: &Path,
    probes: Vec<Probe>,
) -> Result<AdapterRef, Error> {
    let manifest = manifest(o, task, report, settings, probes).await?;
    let examples = Some(dataset.examples());
    let adapter = o
        .ledger
        .put_adapter(&task.name, staging, manifest, examples)
        .await?;
    // What is left says more of the examples than an adapter that may be published.
    staging::clear(o, &task.name, &report.run_id)?;
    report.adapter = Some(name(&task.name, adapter.number));
    report.digest = Some(adapter.manifest.digest.clone());
    Ok(adapter)
}

#[expect(
    clippy::too_many_arguments,
    reason = "one call: what the run knows by now, side by side"
)]
async fn natively(
    o: &Options,
    task: &Task,
    book: &mut Book<'_>,
    dataset: &Dataset,
    encoder: &Encoder,
    settings: LoraSettings,
    report: &mut Report,
    observer: Observer<'_>,
) -> Result<(LoraOutcome, LoraSettings), Error> {
    let train = encoder.examples(task, &dataset.train)?;
    let development = encoder.examples(task, &dataset.development)?;
    let held_out = encoder.examples(task, &dataset.held_out)?;
    report.examples_too_long = train.too_long + development.too_long + held_out.too_long;
    report.examples_train = train.examples.len() as u64;
    report.examples_development = development.examples.len() as u64;
    report.examples_held_out = held_out.examples.len() as u64;
    if [&train, &development, &held_out]
        .iter()
        .any(|part| part.examples.is_empty())
    {
        return Err(Error::NothingToTrain {
            task: task.name.clone(),
            too_long: report.examples_too_long,
            context: encoder.context(),
        });
    }
    book.fill(report);
    book.enter(TRAINING, observer).await?;
    let examples = Examples {
        train: train.examples,
        development: development.examples,
        held_out: held_out.examples,
    };
    let started = Instant::now();
    let policy = &task.retrain.lora;
    let tried = (policy.sweep.as_slice(), policy.sweep_share);
    let (settings, trials) = experiment::choose(o, &examples, settings, tried, observer).await?;
    report.trials = trials;
    let checkpoint = staging::checkpoint(o, &task.name, &report.run_id);
    let of = Material::Examples(examples);
    let mut training = Training::of_run(o, None, of, settings.clone(), Some(checkpoint))?;
    while let Some(step) = training.next().await {
        book.run.loss_first = book.run.loss_first.or(step.held_out_loss);
        book.run.loss_last = step.held_out_loss.or(book.run.loss_last);
        book.step(point(&step), step.steps).await?;
        observer(&Event::Training(step));
    }
    let outcome = training.finish().await?;
    report.loss_first = Some(outcome.loss_first);
    report.loss_last = Some(outcome.loss_last);
    report.chosen_epoch = Some(outcome.chosen_epoch as u64);
    report.training_steps = Some(outcome.steps as u64);
    report.training_tokens = Some(outcome.tokens);
    report.training_seconds = Some(started.elapsed().as_secs_f64());
    report.curve = outcome.curve.iter().map(point).collect();
    Ok((outcome, settings))
}

fn conversations(task: &Task, rows: &[Row]) -> Vec<serde_json::Value> {
    rows.iter()
        .map(|row| shelf::conversation(task, row))
        .collect()
}

/// PEFT's two files into the staging folder, if they are an adapter.
fn take_over(made: &Path, staging: &Path) -> Result<(), Error> {
    LoraAdapter::load(made)?;
    for file in retune_ledger::ADAPTER_FILES {
        let (from, to): (PathBuf, PathBuf) = (made.join(file), staging.join(file));
        std::fs::copy(&from, to).map_err(Error::file(from))?;
    }
    Ok(())
}

fn point(progress: &Progress) -> Curve {
    Curve {
        step: progress.step as u64,
        epoch: progress.epoch as u64,
        // Before the first step there is none, and JSON has no NaN.
        train_loss: (progress.step > 0 && progress.train_loss.is_finite())
            .then_some(progress.train_loss),
        held_out_loss: progress.held_out_loss,
        development_loss: progress.development_loss,
    }
}

/// What a candidate is and what it came from. Its number and digest are the ledger's to fill in.
async fn manifest(
    o: &Options,
    task: &Task,
    report: &Report,
    settings: &LoraSettings,
    probes: Vec<Probe>,
) -> Result<Manifest, Error> {
    let (options, name) = (o.clone(), task.name.clone());
    let begun = tokio::task::spawn_blocking(move || {
        let task = options.task(&name)?;
        Ok::<_, Error>(Manifest::begin(task, Source::Run, &options.base)?)
    });
    let mut lora = train::of_manifest(settings, report.chosen_epoch);
    if report.preferences.as_ref().is_some_and(|of| of.kept) {
        let dpo = &task.retrain.dpo;
        lora["dpo"] = serde_json::json!({
            "epochs": dpo.epochs,
            "beta": dpo.beta,
            "sft": dpo.sft,
            "learning_rate": dpo.learning_rate * settings.learning_rate,
        });
    }
    Ok(Manifest {
        run_id: Some(report.run_id.clone()),
        parent: Some(report.baseline.clone()),
        examples_train: report.examples_train,
        examples_development: report.examples_development,
        examples_held_out: report.examples_held_out,
        lora,
        loss_first: report.loss_first,
        loss_last: report.loss_last,
        probes,
        ..begun.await.map_err(|_| Error::Stopped)??
    })
}

#[cfg(test)]
#[path = "candidate_tests.rs"]
mod tests;
