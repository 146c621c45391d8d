//! Training a LoRA over a frozen base.
//!
//! Everything that a step depends on follows from the seed and the step's number, so that a training that was cut off goes on from its
//! checkpoint bit for bit as if it had not been.

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::Tensor;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::batch::Example;
use crate::checkpoint::{self, Checkpoints, Reached};
use crate::error::{Error, Result};
use crate::forward::mix;
use crate::items::{Item, Place, check};
use crate::linear::Dropout;
use crate::lora::LoraAdapter;
use crate::model::Model;
use crate::optimizer::{AdamW, clip, learning_rate, norm};
use crate::settings::LoraSettings;
use crate::train::{Progress, finite};
use crate::workers::Workers;

/// A trained adapter and how it came about.
#[derive(Debug, Clone)]
pub struct LoraOutcome {
    /// As it was after the chosen epoch.
    pub adapter: LoraAdapter,
    /// Held-out loss before the first step; not a number where nothing is held out.
    pub loss_first: f64,
    /// Held-out loss after the chosen epoch.
    pub loss_last: f64,
    /// The one with the lowest development loss, or the last, from 1.
    pub chosen_epoch: usize,
    pub steps: usize,
    /// Tokens trained on, prompts included.
    pub tokens: u64,
    /// Before the first step, and after each epoch.
    pub curve: Vec<Progress>,
}

/// What is learned from, what chooses the epoch, and what is only measured: what chooses must not be what proves.
#[derive(Debug)]
pub struct Sets<'a, T = Example> {
    pub train: &'a [T],
    /// None: the last epoch is kept.
    pub development: &'a [T],
    /// None: nothing is measured.
    pub held_out: &'a [T],
}

/// Is told how far the training is, with the adapter as it is then; may end it.
pub type Observer<'a> = &'a mut dyn FnMut(&Progress, &LoraAdapter) -> ControlFlow<()>;

impl<T> Sets<'_, T> {
    pub(crate) fn named(&self) -> [(&'static str, &[T]); 3] {
        [
            ("train", self.train),
            ("development", self.development),
            ("held_out", self.held_out),
        ]
    }
}

/// Trains a LoRA for the base in the folder `base`: a fresh one, or a copy of `adapter`, whose rank, alpha and maps it keeps.
///
/// The epoch with the lowest loss on `development` is kept; `held_out` is measured before the first step and
/// after each epoch. A batch's loss is Σ weight·nll / Σ weight over all of it.
/// `observer` is called before the first step and after each one, the last of an epoch with the epoch's figures; if it
/// breaks, the training ends with `Error::Cancelled`. With `checkpoints` it goes on from the file that is there, telling what came
/// before once more, and writes it after each epoch, now and then in between, and when it is cancelled.
///
/// Errors: nothing to train on, an example that cannot be trained on, settings out of range, an unreadable base, a damaged checkpoint, a loss
/// that is no finite number.
pub fn train_lora(
    base: &Path,
    adapter: Option<&LoraAdapter>,
    sets: &Sets,
    settings: &LoraSettings,
    checkpoints: Option<&Checkpoints>,
    observer: Observer<'_>,
) -> Result<LoraOutcome> {
    settings.check()?;
    let mut model = Model::load_frozen(base, None)?;
    for (set, examples) in sets.named() {
        check(set, examples, &model.config)?;
    }
    let adapter = LoraAdapter::begin(adapter, &mut model, settings)?;
    let workers = Workers::new(settings.threads, settings.recompute)?;
    tune(
        &model,
        &adapter,
        workers,
        sets,
        settings,
        checkpoints,
        observer,
    )
}

/// Trains an adapter that is attached to the model.
pub(crate) fn tune<T: Item>(
    model: &Model,
    adapter: &LoraAdapter,
    workers: Workers,
    sets: &Sets<T>,
    settings: &LoraSettings,
    checkpoints: Option<&Checkpoints>,
    observer: Observer<'_>,
) -> Result<LoraOutcome> {
    if sets.train.is_empty() {
        let what = "no train examples; at least one is needed, collect more";
        return Err(Error::Settings(what.to_owned()));
    }
    let parameters = adapter.tensors();
    let mut training = Training {
        model,
        adapter,
        adam: AdamW::new(&parameters, 0.999, 0.0),
        parameters,
        workers,
        sets,
        settings,
        steps: settings.epochs * sets.train.len().div_ceil(settings.batch_size),
        checkpoints: checkpoints.map(|checkpoints| {
            (
                checkpoints,
                checkpoint::digest(model, adapter, sets, settings),
            )
        }),
        reached: Reached::default(),
    };
    training.begin(observer)?;
    training.run(observer)?;
    training.outcome()
}

struct Training<'a, T> {
    model: &'a Model,
    adapter: &'a LoraAdapter,
    parameters: Vec<Tensor>,
    adam: AdamW,
    workers: Workers,
    sets: &'a Sets<'a, T>,
    settings: &'a LoraSettings,
    /// In all.
    steps: usize,
    /// Where they go, and what the training is known by.
    checkpoints: Option<(&'a Checkpoints, String)>,
    reached: Reached,
}

impl<T: Item> Training<'_, T> {
    fn place(&self, dropout: Option<Dropout>) -> Place<'_> {
        Place {
            model: self.model,
            workers: &self.workers,
            slots: self.parameters.len(),
            dropout,
        }
    }

    /// From the checkpoint, or with the losses before the first step.
    fn begin(&mut self, observer: Observer<'_>) -> Result<()> {
        let found = match &self.checkpoints {
            Some((checkpoints, digest)) => {
                checkpoints.read(digest, self.adapter, &mut self.adam)?
            }
            None => None,
        };
        match found {
            Some(reached) => self.reached = reached,
            None => {
                let first = Progress {
                    step: 0,
                    steps: self.steps,
                    epoch: 0,
                    ends_epoch: false,
                    train_loss: f64::NAN,
                    development_loss: self.loss(self.sets.development)?,
                    held_out_loss: self.loss(self.sets.held_out)?,
                    gradient_norm: f64::NAN,
                    learning_rate: 0.0,
                    tokens: 0,
                    is_past: false,
                };
                self.reached.told.push(first);
            }
        }
        let mut known = self.reached.told.iter();
        known.try_for_each(|known| self.tell(known, observer))
    }

    /// Of some, where there are any.
    fn loss(&self, items: &[T]) -> Result<Option<f64>> {
        if items.is_empty() {
            return Ok(None);
        }
        T::loss(self.place(None), items).map(Some)
    }

    fn tell(&self, now: &Progress, observer: Observer<'_>) -> Result<()> {
        match observer(now, self.adapter) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled {
                step: now.step,
                steps: now.steps,
            }),
        }
    }

    fn run(&mut self, observer: Observer<'_>) -> Result<()> {
        let epoch_steps = self.steps / self.settings.epochs;
        while self.reached.step < self.steps && !self.is_patience_over() {
            let epoch = self.reached.step / epoch_steps;
            let order = order(self.sets.train, self.settings.seed, epoch);
            let in_epoch = self.reached.step % epoch_steps;
            for batch in order.chunks(self.settings.batch_size).skip(in_epoch) {
                let mut now = self.step(batch)?;
                let is_last = self.reached.step.is_multiple_of(epoch_steps);
                if is_last {
                    self.end_epoch(&mut now, epoch + 1)?;
                }
                let told = self.tell(&now, observer);
                self.reached.told.push(now);
                if let Some((checkpoints, digest)) = &self.checkpoints
                    && (told.is_err() || is_last || checkpoints.is_due())
                {
                    checkpoints.write(digest, self.adapter, &self.adam, &self.reached)?;
                }
                told?;
            }
        }
        Ok(())
    }

    fn step(&mut self, batch: &[&T]) -> Result<Progress> {
        let (settings, step) = (self.settings, self.reached.step);
        let dropout = (settings.dropout > 0.0).then_some(Dropout {
            rate: settings.dropout,
            seed: mix(settings.seed, step as u64 + 1),
        });
        let (loss, gradients) = T::gradients(self.place(dropout), batch)?;
        let length = norm(&gradients)?;
        finite(step + 1, loss, length)?;
        let warmup = (settings.warmup * self.steps as f64).ceil() as usize;
        let rate = learning_rate(
            settings.decay,
            step,
            self.steps,
            warmup,
            settings.learning_rate,
        );
        let clip = clip(length, settings.clip);
        self.adam.step(&self.parameters, &gradients, rate, clip)?;
        let reached = &mut self.reached;
        let weight: f64 = batch.iter().map(|item| item.weight()).sum();
        reached.epoch_loss += loss * weight;
        reached.epoch_weight += weight;
        reached.step += 1;
        let examples = batch.iter().flat_map(|item| item.examples());
        let tokens = examples.map(|example| example.tokens.len() as u64);
        reached.tokens += tokens.sum::<u64>();
        Ok(Progress {
            step: reached.step,
            steps: self.steps,
            epoch: reached.epochs(),
            ends_epoch: false,
            train_loss: loss,
            development_loss: None,
            held_out_loss: None,
            gradient_norm: length,
            learning_rate: rate,
            tokens: reached.tokens,
            is_past: false,
        })
    }

    /// The epoch's figures; it may be the best so far.
    fn end_epoch(&mut self, now: &mut Progress, epoch: usize) -> Result<()> {
        let development_loss = self.loss(self.sets.development)?;
        if let Some(loss) = development_loss {
            finite(now.step, loss, 0.0)?;
        }
        now.epoch = epoch;
        now.ends_epoch = true;
        now.train_loss = self.reached.epoch_loss / self.reached.epoch_weight;
        now.development_loss = development_loss;
        now.held_out_loss = self.loss(self.sets.held_out)?;
        (self.reached.epoch_loss, self.reached.epoch_weight) = (0.0, 0.0);
        let lowest = self.reached.lowest();
        let is_lowest = |loss| lowest.is_none_or(|lowest| loss < lowest);
        if development_loss.is_none_or(is_lowest) {
            self.reached.best = Some(checkpoint::Best {
                epoch,
                adapter: self.adapter.snapshot()?,
            });
        }
        Ok(())
    }

    fn is_patience_over(&self) -> bool {
        let (patience, epochs) = (self.settings.patience, self.reached.epochs());
        let best = self.reached.best.as_ref();
        patience > 0 && best.is_some_and(|best| epochs - best.epoch >= patience)
    }

    fn outcome(self) -> Result<LoraOutcome> {
        let curve: Vec<Progress> = self.reached.curve().cloned().collect();
        let Reached {
            step, tokens, best, ..
        } = self.reached;
        let (Some(best), Some(first)) = (best, curve.first()) else {
            let what = "epochs is 0; expected at least 1";
            return Err(Error::Settings(what.to_string()));
        };
        let loss = |progress: Option<&Progress>| progress.and_then(|p| p.held_out_loss);
        Ok(LoraOutcome {
            loss_first: loss(Some(first)).unwrap_or(f64::NAN),
            loss_last: loss(curve.get(best.epoch)).unwrap_or(f64::NAN),
            chosen_epoch: best.epoch,
            adapter: best.adapter,
            steps: step,
            tokens,
            curve,
        })
    }
}

/// The examples as an epoch has them.
fn order<T>(train: &[T], seed: u64, epoch: usize) -> Vec<&T> {
    let mut order: Vec<&T> = train.iter().collect();
    let seed = mix(mix(seed, 0), epoch as u64);
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    order
}

#[cfg(test)]
#[path = "fine_tune_tests.rs"]
mod tests;
