//! After the examples, preferences: the adapter that a run has trained learns which of two answers people like better.
//!
//! Only what helps is kept. Where the loss on the development pairs, which are not trained on, does not fall, the adapter stays as the
//! examples made it; the examination judges what comes of it either way.

use std::time::Instant;

use retune_task::Task;
use retune_trainer::{DpoSettings, LoraAdapter, LoraOutcome, LoraSettings};

use crate::book::Book;
use crate::preferences::Preferences;
use crate::report::{PreferenceTraining, Report};
use crate::run::Event;
use crate::stages::Observer;
use crate::train::{Material, Split, Training};
use crate::{Encoder, Error, Options, staging};

/// The adapter as it is after preferences; none where it stays as it was.
#[expect(
    clippy::too_many_arguments,
    reason = "one call: what the run knows by now, side by side"
)]
pub(crate) async fn learn(
    o: &Options,
    task: &Task,
    book: &mut Book<'_>,
    preferences: &Preferences,
    encoder: &Encoder,
    (adapter, settings): (&LoraAdapter, &LoraSettings),
    report: &mut Report,
    observer: Observer<'_>,
) -> Result<Option<LoraAdapter>, Error> {
    let policy = &task.retrain.dpo;
    if policy.epochs == 0 {
        return Ok(None);
    }
    let train = encoder.preferences(task, &preferences.train)?;
    let development = encoder.preferences(task, &preferences.development)?;
    let held_out = encoder.preferences(task, &preferences.held_out)?;
    let mut said = PreferenceTraining {
        counts: preferences.counts.clone(),
        pairs_train: train.examples.len() as u64,
        pairs_development: development.examples.len() as u64,
        pairs_held_out: held_out.examples.len() as u64,
        pairs_too_long: train.too_long + development.too_long + held_out.too_long,
        skipped: None,
        kept: false,
        loss_first: None,
        loss_last: None,
        training_steps: None,
        training_seconds: None,
    };
    let pairs = Split {
        train: train.examples,
        development: development.examples,
        held_out: held_out.examples,
    };
    if let Some(why) = too_few(&pairs, policy.min_preferences) {
        tracing::info!(task = task.name, why, "nothing is learned of preferences");
        said.skipped = Some(why);
        report.preferences = Some(said);
        return Ok(None);
    }
    let settings = LoraSettings {
        epochs: policy.epochs,
        learning_rate: settings.learning_rate * policy.learning_rate,
        ..settings.clone()
    };
    let dpo = DpoSettings {
        beta: policy.beta,
        sft: policy.sft,
    };
    let of = Material::Preferences(pairs, dpo);
    let checkpoint = staging::preferences_checkpoint(o, &task.name, &report.run_id);
    let started = Instant::now();
    let from = Some(adapter.clone());
    let mut training = Training::of_run(o, from, of, settings, Some(checkpoint))?;
    while let Some(step) = training.next().await {
        book.progress(step.step, step.steps).await?;
        observer(&Event::Preferring(step));
    }
    let outcome = training.finish().await?;
    said.kept = helped(&outcome);
    let finite = |loss: f64| loss.is_finite().then_some(loss);
    said.loss_first = finite(outcome.loss_first);
    said.loss_last = finite(outcome.loss_last);
    said.training_steps = Some(outcome.steps as u64);
    said.training_seconds = Some(started.elapsed().as_secs_f64());
    let kept = said.kept;
    report.preferences = Some(said);
    Ok(kept.then_some(outcome.adapter))
}

fn too_few<T>(pairs: &Split<T>, wanted: usize) -> Option<String> {
    let have = pairs.train.len();
    if have < wanted {
        return Some(format!(
            "{have} pairs to train on, and the policy wants {wanted} (dpo.min_preferences)"
        ));
    }
    let none = pairs.development.is_empty();
    none.then(|| "no pair is left to choose the checkpoint by".to_owned())
}

/// Whether the loss on the development pairs fell.
fn helped(outcome: &LoraOutcome) -> bool {
    let loss = |epoch: usize| outcome.curve.get(epoch)?.development_loss;
    let (before, after) = (loss(0), loss(outcome.chosen_epoch));
    before
        .zip(after)
        .is_some_and(|(before, after)| after < before)
}

#[cfg(test)]
#[path = "prefer_tests.rs"]
mod tests;
