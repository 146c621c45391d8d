//! Training a LoRA over a frozen base.

use std::ops::ControlFlow;
use std::path::Path;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::batch::{Example, check};
use crate::error::{Error, Result};
use crate::forward::mix;
use crate::linear::Dropout;
use crate::lora::LoraAdapter;
use crate::model::Model;
use crate::optimizer::{AdamW, clip, learning_rate, norm};
use crate::train::{Progress, finite};
use crate::workers::Workers;

/// How to train an adapter. The defaults follow "LoRA Without Regret" (Thinking Machines 2025) and tinker-cookbook.
#[derive(Debug, Clone)]
pub struct LoraSettings {
    /// Rank.
    pub r: usize,
    /// The delta is scaled by alpha/r.
    pub alpha: f64,
    /// Share of the LoRA's inputs that is dropped in training, 0 to below 1; 0.05 helps below some 500 examples.
    pub dropout: f32,
    /// The highest; `recommended_learning_rate` of the base's hidden size.
    pub learning_rate: f64,
    /// Examples a step; above 32 a LoRA loses.
    pub batch_size: usize,
    pub epochs: usize,
    /// Of the first A, the examples' order and the dropout.
    pub seed: u64,
    /// Share of the steps over which the learning rate rises.
    pub warmup: f64,
    /// Longest gradient; 0 is no limit.
    pub clip: f64,
    /// 0 is one a core. Another number rounds otherwise and so gives slightly other weights.
    pub threads: usize,
}

impl Default for LoraSettings {
    fn default() -> Self {
        LoraSettings {
            r: 16,
            alpha: 32.0,
            dropout: 0.0,
            learning_rate: 2e-4,
            batch_size: 16,
            epochs: 3,
            seed: 0,
            warmup: 0.1,
            clip: 1.0,
            threads: 0,
        }
    }
}

/// 5e-4·(2000/hidden)^0.781: tinker-cookbook's fit for Llama (`get_lr`).
pub fn recommended_learning_rate(hidden: usize) -> f64 {
    5e-4 * (2000.0 / hidden.max(1) as f64).powf(0.781)
}

/// A trained adapter and how it came about.
#[derive(Debug, Clone)]
pub struct LoraOutcome {
    /// As it was after the chosen epoch.
    pub adapter: LoraAdapter,
    /// Held-out loss before the first step.
    pub loss_first: f64,
    /// Held-out loss after the chosen epoch.
    pub loss_last: f64,
    /// The one with the lowest development loss, from 1.
    pub chosen_epoch: usize,
    pub steps: usize,
    /// Tokens trained on, prompts included.
    pub tokens: u64,
    /// Before the first step, and after each epoch.
    pub curve: Vec<Progress>,
}

/// Trains a LoRA for the base in the folder `base`.
///
/// The epoch with the lowest loss on `development` is kept; `held_out` is only measured, before the first step and
/// after each epoch: what chooses must not be what proves. A batch's loss is Σ weight·nll / Σ weight over all of it.
/// `progress` is called before the first step and after each one, the last of an epoch with the epoch's figures; if it
/// breaks, the training ends with `Error::Cancelled`.
///
/// Errors: an empty list, an example that cannot be trained on, settings out of range, an unreadable base, a loss that
/// is no finite number.
pub fn train_lora(
    base: &Path,
    train: &[Example],
    development: &[Example],
    held_out: &[Example],
    settings: &LoraSettings,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<LoraOutcome> {
    settings.check()?;
    let mut model = Model::load(base, None)?;
    for (set, examples) in [
        ("train", train),
        ("development", development),
        ("held_out", held_out),
    ] {
        check(set, examples, &model.config)?;
        if examples.is_empty() {
            return Err(Error::Settings(format!(
                "no {set} examples; at least one is needed, collect more"
            )));
        }
    }
    let adapter = LoraAdapter::new(
        &model.config,
        model.config.maps(),
        settings.r,
        settings.alpha,
        settings.dropout,
        settings.seed,
    )?;
    adapter.attach(&mut model, true)?;
    let parameters = adapter.tensors();
    let workers = Workers::new(settings.threads)?;
    let mut adam = AdamW::new(&parameters, 0.999, 0.0);
    let mut rng = ChaCha8Rng::seed_from_u64(mix(settings.seed, 0));

    let steps = settings.epochs * train.len().div_ceil(settings.batch_size);
    let warmup = (settings.warmup * steps as f64).ceil() as usize;
    let mut now = Progress {
        step: 0,
        steps,
        epoch: 0,
        train_loss: f64::NAN,
        development_loss: Some(workers.loss(&model, development)?),
        held_out_loss: Some(workers.loss(&model, held_out)?),
        tokens: 0,
    };
    let mut report = |now: &Progress| match progress(now) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled {
            step: now.step,
            steps,
        }),
    };
    report(&now)?;
    let loss_first = now.held_out_loss.unwrap_or(f64::NAN);
    let mut curve = vec![now.clone()];
    let mut best: Option<(f64, Progress, LoraAdapter)> = None;
    let mut order: Vec<&Example> = train.iter().collect();
    for epoch in 1..=settings.epochs {
        order.shuffle(&mut rng);
        let (mut epoch_loss, mut epoch_weight) = (0.0, 0.0);
        for batch in order.chunks(settings.batch_size) {
            let seed = mix(settings.seed, now.step as u64 + 1);
            let dropout = (settings.dropout > 0.0).then_some(Dropout {
                rate: settings.dropout,
                seed,
            });
            let (loss, gradients) = workers.gradients(&model, parameters.len(), batch, dropout)?;
            let length = norm(&gradients)?;
            finite(now.step + 1, loss, length)?;
            let rate = learning_rate(now.step, steps, warmup, settings.learning_rate);
            adam.step(&parameters, &gradients, rate, clip(length, settings.clip))?;
            let weight: f64 = batch.iter().map(|example| example.weight()).sum();
            epoch_loss += loss * weight;
            epoch_weight += weight;
            now.step += 1;
            now.tokens += batch
                .iter()
                .map(|example| example.tokens.len() as u64)
                .sum::<u64>();
            (now.train_loss, now.development_loss, now.held_out_loss) = (loss, None, None);
            if now.step < epoch * steps / settings.epochs {
                report(&now)?;
            }
        }
        let development_loss = workers.loss(&model, development)?;
        finite(now.step, development_loss, 0.0)?;
        now.epoch = epoch;
        now.train_loss = epoch_loss / epoch_weight;
        now.development_loss = Some(development_loss);
        now.held_out_loss = Some(workers.loss(&model, held_out)?);
        report(&now)?;
        curve.push(now.clone());
        if best
            .as_ref()
            .is_none_or(|(lowest, ..)| development_loss < *lowest)
        {
            best = Some((development_loss, now.clone(), adapter.snapshot()?));
        }
    }
    let Some((_, chosen, adapter)) = best else {
        return Err(Error::Settings(
            "epochs is 0; expected at least 1".to_string(),
        ));
    };
    Ok(LoraOutcome {
        adapter,
        loss_first,
        loss_last: chosen.held_out_loss.unwrap_or(f64::NAN),
        chosen_epoch: chosen.epoch,
        steps: now.step,
        tokens: now.tokens,
        curve,
    })
}

impl LoraSettings {
    fn check(&self) -> Result<()> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let wrong: Vec<String> = [
            (self.r >= 1, format!("r is {}; expected at least 1", self.r)),
            (
                positive(self.alpha),
                format!("alpha is {}; expected more than 0", self.alpha),
            ),
            (
                (0.0..1.0).contains(&self.dropout),
                format!("dropout is {}; expected 0 to below 1", self.dropout),
            ),
            (
                positive(self.learning_rate),
                format!(
                    "learning_rate is {}; expected more than 0",
                    self.learning_rate
                ),
            ),
            (
                self.batch_size >= 1,
                "batch_size is 0; expected at least 1".to_string(),
            ),
            (
                self.epochs >= 1,
                "epochs is 0; expected at least 1".to_string(),
            ),
            (
                (0.0..=1.0).contains(&self.warmup),
                format!("warmup is {}; expected a share, 0 to 1", self.warmup),
            ),
            (
                self.clip >= 0.0,
                format!("clip is {}; expected 0 (no limit) or more", self.clip),
            ),
        ]
        .into_iter()
        .filter_map(|(fine, what)| (!fine).then_some(what))
        .collect();
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(Error::Settings(wrong.join("; ")))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::slice::{edit, read};
    use crate::test_support::tiny_config;
    use candle_core::DType;

    /// A word of four tokens follows each of eight first tokens: nothing a random base can know.
    fn examples(seed: u32, n: u32) -> Vec<Example> {
        let one = |i: u32| {
            let first = (i * 5 + seed) % 8 + 10;
            let tokens = vec![1, first, first + 20, 49 - first, 5, 0];
            Example {
                tokens,
                weights: vec![0.0, 0.0, 1.0, 1.0, 1.0, 1.0],
            }
        };
        (0..n).map(one).collect()
    }

    /// Its embedding is large enough for the head, which is the same and stays frozen, to tell tokens apart.
    fn base() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let model = Model::random(&tiny_config(), 4).unwrap();
        edit(&model.embedding.tensor, |x| {
            x.iter_mut().for_each(|x| *x *= 40.0)
        })
        .unwrap();
        model.save(folder.path(), DType::BF16).unwrap();
        folder
    }

    /// Gentle enough that another order of additions ends at much the same loss.
    fn settings() -> LoraSettings {
        LoraSettings {
            learning_rate: 5e-3,
            batch_size: 8,
            epochs: 40,
            threads: 2,
            ..LoraSettings::default()
        }
    }

    fn run(base: &Path, settings: &LoraSettings) -> Result<LoraOutcome> {
        let mut seen = Vec::new();
        let go = &mut |now: &Progress| {
            seen.push(now.step);
            ControlFlow::Continue(())
        };
        let outcome = train_lora(
            base,
            &examples(0, 60),
            &examples(3, 10),
            &examples(6, 10),
            settings,
            go,
        )?;
        assert_eq!(
            seen,
            (0..=outcome.steps).collect::<Vec<_>>(),
            "every step is told once, in order"
        );
        Ok(outcome)
    }

    #[test]
    fn it_learns_leaves_the_base_alone_and_repeats_itself() {
        let base = base();
        let before = std::fs::read(base.path().join("model.safetensors")).unwrap();
        for dropout in [0.0, 0.1] {
            let settings = LoraSettings {
                dropout,
                ..settings()
            };
            let outcome = run(base.path(), &settings).unwrap();
            assert_eq!((outcome.steps, outcome.curve.len()), (320, 41));
            assert!(
                outcome.loss_first > 3.0 && outcome.loss_last < 1.0,
                "{:?}",
                outcome.curve
            );
            let chosen = &outcome.curve[outcome.chosen_epoch];
            assert_eq!(chosen.held_out_loss, Some(outcome.loss_last));
            let lowest = outcome.curve[1..]
                .iter()
                .filter_map(|p| p.development_loss)
                .fold(f64::MAX, f64::min);
            assert_eq!(chosen.development_loss, Some(lowest));
            let bits = |o: &LoraOutcome| -> Vec<u32> {
                o.adapter
                    .tensors()
                    .iter()
                    .flat_map(|t| read(t).unwrap().to_vec())
                    .map(f32::to_bits)
                    .collect()
            };
            assert!(bits(&outcome) == bits(&run(base.path(), &settings).unwrap()));
            // The kept adapter, saved and loaded, has exactly the loss that was reported.
            let folder = tempfile::tempdir().unwrap();
            outcome.adapter.save(folder.path(), "base").unwrap();
            let adapter = LoraAdapter::load(folder.path()).unwrap();
            let model = Model::load(base.path(), Some(&adapter)).unwrap();
            let loss = Workers::new(2)
                .unwrap()
                .loss(&model, &examples(6, 10))
                .unwrap();
            assert_eq!(loss, outcome.loss_last);
            assert!(
                model.save(folder.path(), DType::F32).is_err(),
                "an attached adapter is not lost silently"
            );
        }
        assert!(before == std::fs::read(base.path().join("model.safetensors")).unwrap());
    }

    /// B starts at 0, so that A has no gradient in the first step; by the second each of them moves.
    #[test]
    fn every_weight_of_the_adapter_moves_by_the_second_step() {
        let base = base();
        let two = LoraSettings {
            epochs: 1,
            batch_size: 30,
            ..settings()
        };
        let outcome = run(base.path(), &two).unwrap();
        let start = LoraAdapter::new(
            &tiny_config(),
            tiny_config().maps(),
            16,
            32.0,
            0.0,
            two.seed,
        )
        .unwrap();
        for (i, (a, b)) in start
            .tensors()
            .iter()
            .zip(outcome.adapter.tensors())
            .enumerate()
        {
            assert!(*read(a).unwrap() != *read(&b).unwrap(), "tensor {i} stayed");
        }
    }

    #[test]
    fn it_stops_when_it_is_told_to() {
        let base = base();
        let mut stop = |now: &Progress| {
            if now.step == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let result = train_lora(
            base.path(),
            &examples(0, 60),
            &examples(3, 9),
            &examples(6, 9),
            &settings(),
            &mut stop,
        );
        assert!(matches!(
            result,
            Err(Error::Cancelled {
                step: 2,
                steps: 320
            })
        ));
    }

    #[test]
    fn bad_input_is_refused_by_name() {
        let base = base();
        let go = &mut |_: &Progress| ControlFlow::Continue(());
        let good = examples(0, 4);
        let message = train_lora(base.path(), &good, &[], &good, &settings(), go)
            .unwrap_err()
            .to_string();
        assert!(message.contains("development"), "{message}");
        let mut bad = good.clone();
        bad[2].tokens[1] = 50;
        let message = train_lora(base.path(), &good, &good, &bad, &settings(), go)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("held_out example 2: token 50"),
            "{message}"
        );
        let wrong = LoraSettings {
            r: 0,
            batch_size: 0,
            dropout: 1.0,
            learning_rate: f64::NAN,
            ..settings()
        };
        let message = train_lora(base.path(), &good, &good, &good, &wrong, go)
            .unwrap_err()
            .to_string();
        for word in [
            "r is 0",
            "batch_size",
            "dropout is 1",
            "learning_rate is NaN",
        ] {
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn the_recommended_rate_is_the_cookbooks() {
        assert!((recommended_learning_rate(2000) - 5e-4).abs() < 1e-12);
        assert!((recommended_learning_rate(192) - 3.117e-3).abs() < 1e-5);
    }
}
