//! Learning from preferences: TRL's figures, and what a training from end to end must do.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use candle_core::DType;
use serde::Deserialize;

use super::*;
use crate::files::Store;
use crate::ops::slice::read;
use crate::optimizer::{AdamW, clip, norm};
use crate::parity::{Case, apart, cases, farthest};
use crate::test_support::telling_base;
use crate::train::Progress;

/// As `tests/parity/preferences.py` writes them.
#[derive(Deserialize)]
struct Expected {
    preferences: Vec<Tokens>,
    beta: f64,
    sft: f64,
    losses: Vec<f64>,
    learning_rate: f64,
    clip: f64,
}

#[derive(Deserialize)]
struct Tokens {
    prompt: Vec<u32>,
    preferred: Vec<u32>,
    other: Vec<u32>,
}

fn example(prompt: &[u32], answer: &[u32]) -> Example {
    Example {
        tokens: [prompt, answer].concat(),
        weights: [vec![0.0; prompt.len()], vec![1.0; answer.len()]].concat(),
    }
}

fn preference(prompt: &[u32], preferred: &[u32], other: &[u32]) -> Preference {
    Preference {
        preferred: example(prompt, preferred),
        other: example(prompt, other),
    }
}

fn place<'a>(case: &'a Case, workers: &'a Workers, slots: usize) -> Place<'a> {
    Place {
        model: &case.model,
        workers,
        slots,
        dropout: None,
    }
}

#[test]
fn losses_gradients_and_twenty_steps_are_trls() {
    for case in cases() {
        let name = &case.name;
        let text = std::fs::read(case.folder.join("preferences.json")).unwrap();
        let expected: Expected = serde_json::from_slice(&text).unwrap();
        let mut figures = Store::open_file(&case.folder.join("preferences.safetensors")).unwrap();
        let mut figures = |name: String| read(&figures.take_any(&name).unwrap()).unwrap().to_vec();
        let all = expected.preferences.iter();
        let all: Vec<Preference> = all
            .map(|of| preference(&of.prompt, &of.preferred, &of.other))
            .collect();
        let (beta, sft) = (expected.beta, expected.sft);
        let dpo = DpoSettings { beta, sft };
        let workers = Workers::new(2, false).unwrap();
        let all = compared(&case.model, &workers, &all, dpo).unwrap();
        let batch: Vec<&Compared<'_>> = all.iter().collect();
        let tensors = case.adapter.tensors();
        let mut adam = AdamW::new(&tensors, 0.999, 0.0);
        for (step, expected_loss) in expected.losses.iter().enumerate() {
            let at = place(&case, &workers, tensors.len());
            let (loss, gradients) = Compared::gradients(at, &batch).unwrap();
            assert_eq!(Compared::loss(at, &all).unwrap(), loss);
            let off = (loss - expected_loss).abs();
            assert!(
                off < 1e-4,
                "{name} step {step}: {loss}, not {expected_loss}"
            );
            if step == 0 {
                for (slot, parameter) in case.parameters().iter().enumerate() {
                    let found = read(gradients.get(slot).unwrap()).unwrap();
                    let apart = apart(&found, &figures(format!("gradient.{}", parameter.name)));
                    assert!(apart < 1e-4, "{name} {}: {apart}", parameter.name);
                }
            }
            let clip = clip(norm(&gradients).unwrap(), expected.clip);
            adam.step(&tensors, &gradients, expected.learning_rate, clip)
                .unwrap();
        }
        for parameter in case.parameters() {
            let found = read(&parameter.tensor).unwrap();
            let farthest = farthest(&found, &figures(format!("after.{}", parameter.name)));
            assert!(farthest < 1e-4, "{name} {}: {farthest}", parameter.name);
        }
    }
}

#[test]
fn the_loss_is_that_of_the_logistic_whatever_its_size() {
    for (margin, expected) in [(0.0, std::f64::consts::LN_2), (800.0, 0.0), (-800.0, 800.0)] {
        assert!((loss(margin) - expected).abs() < 1e-12, "{margin}");
    }
}

/// Without a share of the nll, so that the loss is ln 2 before anything is learned.
const DPO: DpoSettings = DpoSettings {
    beta: 0.1,
    sft: 0.0,
};

struct World {
    base: tempfile::TempDir,
    sets: [Vec<Preference>; 3],
}

/// After each of eight first tokens one answer is liked, and another not.
fn preferences(from: u32, to: u32) -> Vec<Preference> {
    let one = |i: u32| {
        let first = i % 8 + 10;
        preference(&[1, first, 3], &[first + 20, 5, 0], &[49 - first, 5, 0])
    };
    (from..to).map(one).collect()
}

impl World {
    fn new() -> Self {
        World {
            base: telling_base(DType::F32),
            sets: [preferences(0, 40), preferences(3, 11), preferences(4, 12)],
        }
    }

    fn train(
        &self,
        adapter: Option<&LoraAdapter>,
        checkpoints: Option<&Checkpoints>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<LoraOutcome> {
        let [train, development, held_out] = &self.sets;
        let sets = Sets {
            train,
            development,
            held_out,
        };
        let settings = LoraSettings {
            learning_rate: 1e-2,
            batch_size: 8,
            epochs: 4,
            dropout: 0.5,
            threads: 2,
            ..LoraSettings::default()
        };
        let mut observer = |now: &Progress, _: &LoraAdapter| progress(now);
        let base = self.base.path();
        train_preferences(
            base,
            adapter,
            &sets,
            DPO,
            &settings,
            checkpoints,
            &mut observer,
        )
    }
}

fn go_on(_: &Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn numbers(adapter: &LoraAdapter) -> Vec<f32> {
    let tensors = adapter.tensors();
    let numbers = tensors.iter().flat_map(|t| read(t).unwrap().to_vec());
    numbers.collect()
}

#[test]
fn what_is_preferred_becomes_likelier_and_an_adapter_is_gone_on_from() {
    let world = World::new();
    let first = world.train(None, None, &mut go_on).unwrap();
    assert_eq!(
        first.loss_first,
        std::f64::consts::LN_2,
        "nothing is learned yet"
    );
    assert!(first.loss_last < 0.3, "{}", first.loss_last);
    let second = world.train(Some(&first.adapter), None, &mut go_on).unwrap();
    // It is compared with what it was, not with the base.
    assert_eq!(second.loss_first, std::f64::consts::LN_2);
    assert!(second.loss_last < std::f64::consts::LN_2);
    assert_ne!(numbers(&first.adapter), numbers(&second.adapter));
    assert_eq!(second.adapter.r(), first.adapter.r());
}

#[test]
fn one_that_was_cut_off_goes_on_bit_for_bit() {
    let world = World::new();
    let start = world.train(None, None, &mut go_on).unwrap().adapter;
    let whole = world.train(Some(&start), None, &mut go_on).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("checkpoint.safetensors");
    let checkpoints = Checkpoints::new(path, Duration::from_secs(3600));
    let cut = world.train(
        Some(&start),
        Some(&checkpoints),
        &mut |now| match now.step {
            7 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        },
    );
    assert!(matches!(cut, Err(Error::Cancelled { step: 7, .. })));
    let mut new = Vec::new();
    let resumed = world.train(Some(&start), Some(&checkpoints), &mut |now| {
        new.extend((!now.is_past).then_some(now.step));
        ControlFlow::Continue(())
    });
    let resumed = resumed.unwrap();
    assert_eq!(new, (8..=20).collect::<Vec<_>>());
    assert_eq!(numbers(&resumed.adapter), numbers(&whole.adapter));
    assert_eq!(resumed.loss_last, whole.loss_last);
}

#[test]
fn bad_input_is_refused_by_name() {
    let mut world = World::new();
    let base = world.base.path().to_owned();
    let [train, ..] = &world.sets;
    let sets = Sets {
        train,
        development: &[],
        held_out: &[],
    };
    for (beta, sft, says) in [
        (0.0, 0.0, "beta is 0"),
        (-1.0, 0.0, "beta is -1"),
        (f64::NAN, 0.0, "beta is NaN"),
        (0.1, -0.5, "sft is -0.5"),
    ] {
        let (dpo, settings) = (DpoSettings { beta, sft }, LoraSettings::default());
        let refused = train_preferences(&base, None, &sets, dpo, &settings, None, &mut |_, _| {
            ControlFlow::Continue(())
        });
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    }
    world.sets[1][2].other.weights = vec![0.0; 6];
    let message = world.train(None, None, &mut go_on).unwrap_err().to_string();
    assert!(
        message.starts_with("development example 2: no token has a weight"),
        "{message}"
    );
    world.sets[0].clear();
    world.sets[1].clear();
    let message = world.train(None, None, &mut go_on).unwrap_err().to_string();
    assert!(message.contains("no train examples"), "{message}");
}
