//! Training every weight, from random ones.

use std::ops::ControlFlow;

use crate::batch::Example;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::items::check;
use crate::model::Model;
use crate::optimizer::{AdamW, clip, learning_rate, norm};
use crate::settings::Decay;
use crate::workers::Workers;

/// How far a training is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Steps done, from 1; 0 is the report before the first step.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// Epochs done; a full training has none.
    pub epoch: usize,
    /// Whether this is the last step of an epoch.
    pub ends_epoch: bool,
    /// The step's loss on its own batch (after an epoch: the epoch's mean), in nats a weighted token;
    /// not a number before the first step.
    pub train_loss: f64,
    /// At the end of an epoch.
    pub development_loss: Option<f64>,
    /// At the end of an epoch, and before the first step.
    pub held_out_loss: Option<f64>,
    /// The gradient's length before it was clipped; not a number before the first step.
    pub gradient_norm: f64,
    /// The step's.
    pub learning_rate: f64,
    /// Tokens trained on so far, prompts included.
    pub tokens: u64,
    /// Whether it is of before the checkpoint that this training goes on from, and told once more.
    pub is_past: bool,
}

#[derive(Debug, Clone)]
pub struct FullSettings {
    pub steps: usize,
    /// The highest; it rises to it over `warmup` steps and falls along a cosine to 0 at the last.
    pub learning_rate: f64,
    /// Steps.
    pub warmup: usize,
    /// Of the first weights. The batches' own seed is the caller's.
    pub seed: u64,
    /// Of matrices, a step and unit of learning rate.
    pub weight_decay: f64,
    /// Longest gradient; 0 is no limit.
    pub clip: f64,
    /// 0 is one a core. Another number rounds otherwise and so gives slightly other weights.
    pub threads: usize,
}

impl Default for FullSettings {
    fn default() -> Self {
        let (steps, learning_rate, warmup) = (2_000, 2e-3, 100);
        FullSettings {
            steps,
            learning_rate,
            warmup,
            seed: 0,
            weight_decay: 0.1,
            clip: 1.0,
            threads: 0,
        }
    }
}

/// Trains a random model on the batches `next_batch` gives for steps 0, 1, …; the loss of a batch is
/// Σ weight·nll / Σ weight over it.
///
/// `progress` is called after each step with the model as it is then, to measure or save it; it may stop the training,
/// which is then `Error::Cancelled`.
pub fn train_full(
    config: &ModelConfig,
    next_batch: &mut dyn FnMut(usize) -> Vec<Example>,
    settings: &FullSettings,
    progress: &mut dyn FnMut(&Progress, &Model) -> ControlFlow<()>,
) -> Result<Model> {
    let mut model = Model::random(config, settings.seed)?;
    let workers = Workers::new(settings.threads, false)?;
    let parameters = model.train_everything();
    // 0.95: with small batches and few steps the squares' mean must follow faster than PyTorch's 0.999 lets it.
    let mut adam = AdamW::new(&parameters, 0.95, settings.weight_decay);
    let mut tokens = 0;
    for step in 0..settings.steps {
        let batch = next_batch(step);
        check("batch", &batch, config)?;
        if batch.is_empty() {
            return Err(Error::Settings(format!(
                "the batch of step {step} has no example"
            )));
        }
        tokens += batch
            .iter()
            .map(|example| example.tokens.len() as u64)
            .sum::<u64>();
        let batch: Vec<&Example> = batch.iter().collect();
        let (loss, gradients) = workers.gradients(&model, parameters.len(), &batch, None)?;
        let length = norm(&gradients)?;
        finite(step + 1, loss, length)?;
        let rate = learning_rate(
            Decay::Cosine,
            step,
            settings.steps,
            settings.warmup,
            settings.learning_rate,
        );
        adam.step(&parameters, &gradients, rate, clip(length, settings.clip))?;
        let now = Progress {
            step: step + 1,
            steps: settings.steps,
            epoch: 0,
            ends_epoch: false,
            train_loss: loss,
            development_loss: None,
            held_out_loss: None,
            gradient_norm: length,
            learning_rate: rate,
            tokens,
            is_past: false,
        };
        if progress(&now, &model).is_break() {
            return Err(Error::Cancelled {
                step: step + 1,
                steps: settings.steps,
            });
        }
    }
    Ok(model)
}

pub(crate) fn finite(step: usize, loss: f64, norm: f64) -> Result<()> {
    match (loss.is_finite(), norm.is_finite()) {
        (false, _) => Err(Error::Diverged { step, what: "loss" }),
        (_, false) => Err(Error::Diverged {
            step,
            what: "gradient",
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::slice::read;
    use crate::test_support::tiny_config;

    /// Sequences that count up by a step they state first.
    fn batch(step: usize) -> Vec<Example> {
        let one = |i: usize| {
            let (by, from) = ((step + i) % 3 + 1, (step * 5 + i * 11) % 20 + 4);
            let tokens: Vec<u32> = [by, from, from + by, from + 2 * by, from + 3 * by]
                .map(|t| t as u32)
                .to_vec();
            Example {
                tokens,
                weights: vec![0.0, 0.0, 1.0, 1.0, 1.0],
            }
        };
        (0..8).map(one).collect()
    }

    fn settings(steps: usize) -> FullSettings {
        FullSettings {
            steps,
            learning_rate: 1e-2,
            warmup: 5,
            threads: 2,
            ..FullSettings::default()
        }
    }

    #[test]
    fn it_learns_and_repeats_itself_bit_for_bit() {
        let mut runs = Vec::new();
        for _ in 0..2 {
            let mut losses = Vec::new();
            let model = train_full(&tiny_config(), &mut batch, &settings(500), &mut |now, _| {
                losses.push(now.train_loss);
                ControlFlow::Continue(())
            })
            .unwrap();
            assert_eq!(losses.len(), 500);
            assert!(
                losses[0] > 3.0 && losses[499] < 0.3,
                "{} to {}",
                losses[0],
                losses[499]
            );
            assert_eq!(
                model.generate(&[vec![2, 10]], 3, &[]).unwrap(),
                [[12, 14, 16]]
            );
            let weights: Vec<u32> = model
                .parameters()
                .flat_map(|p| read(&p.tensor).unwrap().to_vec())
                .map(f32::to_bits)
                .collect();
            runs.push(weights);
        }
        assert!(runs[0] == runs[1]);
    }

    #[test]
    fn it_stops_when_it_is_told_to() {
        let result = train_full(
            &tiny_config(),
            &mut batch,
            &settings(50),
            &mut |now, _| match now.step {
                3 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            },
        );
        assert!(matches!(
            result,
            Err(Error::Cancelled { step: 3, steps: 50 })
        ));
    }

    #[test]
    fn a_loss_that_is_no_number_ends_it() {
        let wild = FullSettings {
            learning_rate: 1e30,
            warmup: 0,
            clip: 0.0,
            ..settings(50)
        };
        let result = train_full(&tiny_config(), &mut batch, &wild, &mut |_, _| {
            ControlFlow::Continue(())
        });
        assert!(matches!(result, Err(Error::Diverged { .. })));
    }
}
