//! Training a LoRA from end to end: it learns, repeats itself, goes on where it was cut off, and refuses by name what it cannot do.
#![allow(clippy::unwrap_used, reason = "tests")]
use std::path::PathBuf;
use std::time::Duration;

use candle_core::DType;

use super::*;
use crate::ops::slice::read;
use crate::settings::{Decay, recommended_learning_rate};
use crate::test_support::{telling_base, tiny_config};

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

struct World {
    base: tempfile::TempDir,
    sets: [Vec<Example>; 3],
}

impl World {
    fn new() -> Self {
        World {
            base: telling_base(DType::BF16),
            sets: [examples(0, 60), examples(3, 10), examples(6, 10)],
        }
    }

    /// Until `progress` breaks.
    fn train(
        &self,
        settings: &LoraSettings,
        checkpoints: Option<&Checkpoints>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<LoraOutcome> {
        let [train, development, held_out] = &self.sets;
        let sets = Sets {
            train,
            development,
            held_out,
        };
        let mut observer = |now: &Progress, _: &LoraAdapter| progress(now);
        train_lora(
            self.base.path(),
            None,
            &sets,
            settings,
            checkpoints,
            &mut observer,
        )
    }

    /// To the end.
    fn run(&self, settings: &LoraSettings) -> Result<LoraOutcome> {
        let mut seen = Vec::new();
        let outcome = self.train(settings, None, &mut |now| {
            seen.push(now.step);
            ControlFlow::Continue(())
        })?;
        let all: Vec<usize> = (0..=outcome.steps).collect();
        assert_eq!(seen, all, "every step is told once, in order");
        Ok(outcome)
    }
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

fn few() -> LoraSettings {
    LoraSettings {
        epochs: 3,
        dropout: 0.1,
        ..settings()
    }
}

fn bits(of: &LoraOutcome) -> Vec<u32> {
    let tensors = of.adapter.tensors();
    let numbers = tensors.iter().flat_map(|t| read(t).unwrap().to_vec());
    numbers.map(f32::to_bits).collect()
}

fn go_on(_: &Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn it_learns_leaves_the_base_alone_and_repeats_itself() {
    let world = World::new();
    let file = world.base.path().join("model.safetensors");
    let before = std::fs::read(&file).unwrap();
    for dropout in [0.0, 0.1] {
        let settings = LoraSettings {
            dropout,
            ..settings()
        };
        let outcome = world.run(&settings).unwrap();
        assert_eq!((outcome.steps, outcome.curve.len()), (320, 41));
        assert!(
            outcome.loss_first > 3.0 && outcome.loss_last < 1.0,
            "{:?}",
            outcome.curve
        );
        let chosen = &outcome.curve[outcome.chosen_epoch];
        assert_eq!(chosen.held_out_loss, Some(outcome.loss_last));
        let losses = outcome.curve[1..].iter();
        let losses = losses.filter_map(|p| p.development_loss);
        assert_eq!(chosen.development_loss, losses.reduce(f64::min));
        assert!(bits(&outcome) == bits(&world.run(&settings).unwrap()));
        // The kept adapter, saved and loaded, has exactly the loss that was reported.
        let folder = tempfile::tempdir().unwrap();
        outcome.adapter.save(folder.path(), "base").unwrap();
        let adapter = LoraAdapter::load(folder.path()).unwrap();
        let model = Model::load(world.base.path(), Some(&adapter)).unwrap();
        let loss = Workers::new(2, false).unwrap().loss(&model, &world.sets[2]);
        assert_eq!(loss.unwrap(), outcome.loss_last);
        assert!(
            model.save(folder.path(), DType::F32).is_err(),
            "an attached adapter is not lost silently"
        );
    }
    assert!(before == std::fs::read(&file).unwrap());
}

/// B starts at 0, so that A has no gradient in the first step; by the second each of them moves.
#[test]
fn every_weight_of_the_adapter_moves_by_the_second_step() {
    let two = LoraSettings {
        epochs: 1,
        batch_size: 30,
        ..settings()
    };
    let outcome = World::new().run(&two).unwrap();
    let config = tiny_config();
    let start = LoraAdapter::new(&config, config.maps(), 16, 32.0, 0.0, two.seed).unwrap();
    let pairs = start.tensors().into_iter().zip(outcome.adapter.tensors());
    for (i, (a, b)) in pairs.enumerate() {
        assert!(
            *read(&a).unwrap() != *read(&b).unwrap(),
            "tensor {i} stayed"
        );
    }
}

fn checkpoints(folder: &Path) -> (Checkpoints, PathBuf) {
    let path = folder.join("checkpoint.safetensors");
    // Each step is written.
    (Checkpoints::new(path.clone(), Duration::ZERO), path)
}

/// Cut off anywhere: in the middle of an epoch, at its end, before the first step; by a word, or by a death that leaves the last file.
#[test]
fn a_training_that_was_cut_off_goes_on_bit_for_bit() {
    let world = World::new();
    let mut all = Vec::new();
    let whole = world.train(&few(), None, &mut |now| {
        all.push(now.clone());
        ControlFlow::Continue(())
    });
    let whole = whole.unwrap();
    for (at, dies) in [(0, false), (3, false), (8, true), (11, true), (24, false)] {
        let folder = tempfile::tempdir().unwrap();
        let (checkpoints, path) = checkpoints(folder.path());
        let mut left = None;
        let cut = world.train(&few(), Some(&checkpoints), &mut |now| {
            if now.step < at {
                return ControlFlow::Continue(());
            }
            left = left.take().or_else(|| std::fs::read(&path).ok());
            ControlFlow::Break(())
        });
        assert!(matches!(cut, Err(Error::Cancelled { step, .. }) if step == at));
        if dies {
            std::fs::write(&path, left.unwrap()).unwrap();
        }
        let mut told = Vec::new();
        let resumed = world.train(&few(), Some(&checkpoints), &mut |now| {
            told.push(now.clone());
            ControlFlow::Continue(())
        });
        let resumed = resumed.unwrap();
        assert!(bits(&resumed) == bits(&whole), "cut at {at}");
        let figures = |of: &LoraOutcome| {
            let curve = of.curve.iter();
            let curve: Vec<_> = curve.map(|p| (p.step, p.held_out_loss, p.tokens)).collect();
            (of.chosen_epoch, of.loss_last, of.steps, of.tokens, curve)
        };
        assert_eq!(figures(&resumed), figures(&whole));
        // All of it is told, and nothing that was done is done again: a killed one's checkpoint may be a step older.
        let steps: Vec<usize> = told.iter().map(|now| now.step).collect();
        assert_eq!(steps, (0..=24).collect::<Vec<_>>());
        let past = told.iter().filter(|now| now.is_past).count();
        assert_eq!(
            past,
            if at == 0 {
                0
            } else if dies {
                at
            } else {
                at + 1
            }
        );
        let losses = |told: &[Progress]| -> Vec<u64> {
            told.iter().map(|now| now.train_loss.to_bits()).collect()
        };
        assert_eq!(losses(&told), losses(&all));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn another_trainings_checkpoint_is_not_gone_on_from_and_a_damaged_one_is_named() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let (checkpoints, path) = checkpoints(folder.path());
    world.train(&few(), Some(&checkpoints), &mut go_on).unwrap();
    let mut first = None;
    let other = LoraSettings { seed: 1, ..few() };
    let outcome = world.train(&other, Some(&checkpoints), &mut |now| {
        first = first.or(Some((now.step, now.epoch)));
        ControlFlow::Continue(())
    });
    assert_eq!((outcome.unwrap().steps, first), (24, Some((0, 0))));
    let bytes = std::fs::read(&path).unwrap();
    for damage in [&bytes[..bytes.len() / 2], &bytes[..4], &b"{}"[..]] {
        std::fs::write(&path, damage).unwrap();
        let refused = world.train(&other, Some(&checkpoints), &mut go_on);
        let message = refused.unwrap_err().to_string();
        for word in ["checkpoint.safetensors", "damaged", "remove it"] {
            assert!(message.contains(word), "{message}");
        }
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_ends_it_by_name() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let (checkpoints, _) = checkpoints(&folder.path().join("nowhere"));
    let ended = world.train(&few(), Some(&checkpoints), &mut go_on);
    assert!(ended.unwrap_err().to_string().contains("nowhere"));
}

#[test]
fn layers_that_are_computed_again_change_no_bit() {
    let world = World::new();
    let recompute = LoraSettings {
        recompute: true,
        ..few()
    };
    assert!(bits(&world.run(&few()).unwrap()) == bits(&world.run(&recompute).unwrap()));
}

#[test]
fn it_stops_where_nothing_gets_better() {
    let mut world = World::new();
    // What is learned makes these less likely.
    world.sets[1] = vec![Example {
        tokens: vec![1, 10, 11, 12, 13],
        weights: vec![0.0, 0.0, 1.0, 1.0, 1.0],
    }];
    let patient = LoraSettings {
        patience: 2,
        learning_rate: 5e-2,
        ..settings()
    };
    let outcome = world.run(&patient).unwrap();
    assert_eq!(outcome.curve.len() - 1, outcome.chosen_epoch + 2);
    assert!(outcome.curve.len() < 41);
}

#[test]
fn only_named_maps_learn_and_the_ranks_root_is_in_alpha() {
    let world = World::new();
    let named = LoraSettings {
        target_modules: vec!["v_proj".to_owned(), "q_proj".to_owned()],
        rank_stabilised: true,
        decay: Decay::Linear,
        ..few()
    };
    let adapter = world.run(&named).unwrap().adapter;
    assert_eq!(adapter.tensors().len(), 2 * 2 * 2);
    assert_eq!(adapter.alpha(), 32.0 * 4.0);
    let wrong = LoraSettings {
        target_modules: vec!["qkv_proj".to_owned()],
        ..few()
    };
    let message = world.run(&wrong).unwrap_err().to_string();
    assert!(
        message.contains("`qkv_proj`") && message.contains("gate_proj"),
        "{message}"
    );
}

#[test]
fn bad_input_is_refused_by_name() {
    let mut world = World::new();
    let refused = |world: &World, settings: &LoraSettings| {
        let ended = world.train(settings, None, &mut go_on);
        ended.unwrap_err().to_string()
    };
    world.sets[2][2].tokens[1] = 50;
    let message = refused(&world, &settings());
    assert!(
        message.contains("held_out example 2: token 50"),
        "{message}"
    );
    world.sets[2].clear();
    world.sets[0].clear();
    let message = refused(&world, &settings());
    assert!(message.contains("no train examples"), "{message}");
    let wrong = LoraSettings {
        r: 0,
        batch_size: 0,
        dropout: 1.0,
        learning_rate: f64::NAN,
        ..settings()
    };
    let message = refused(&world, &wrong);
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

#[test]
fn without_development_examples_the_last_epoch_is_kept_and_each_is_told() {
    let world = World::new();
    let sets = Sets {
        train: &world.sets[0],
        development: &[],
        held_out: &[],
    };
    let mut told = Vec::new();
    let outcome = train_lora(
        world.base.path(),
        None,
        &sets,
        &few(),
        None,
        &mut |now, adapter| {
            assert!(now.development_loss.is_none() && now.held_out_loss.is_none());
            assert_eq!(
                now.step > 0,
                now.gradient_norm > 0.0 && now.learning_rate > 0.0
            );
            if now.ends_epoch {
                told.push(adapter.snapshot().unwrap());
            }
            ControlFlow::Continue(())
        },
    )
    .unwrap();
    assert_eq!((told.len(), outcome.chosen_epoch), (3, 3));
    let numbers = |of: &LoraAdapter| -> Vec<u32> {
        let tensors = of.tensors();
        let all = tensors.iter().flat_map(|t| read(t).unwrap().to_vec());
        all.map(f32::to_bits).collect()
    };
    assert_eq!(numbers(&told[2]), bits(&outcome));
    assert_ne!(numbers(&told[1]), bits(&outcome));
    assert!(outcome.loss_first.is_nan() && outcome.loss_last.is_nan());
}

#[test]
fn a_base_in_half_precision_takes_half_the_memory_and_changes_no_bit() {
    let world = World::new();
    let frozen = Model::load_frozen(world.base.path(), None).unwrap();
    let whole = Model::load(world.base.path(), None).unwrap();
    let maps = |model: &Model| -> Vec<DType> {
        let maps = model.layers.iter().flat_map(|layer| layer.linear());
        maps.map(|map| map.weight.tensor.dtype()).collect()
    };
    assert!(maps(&frozen).iter().all(|dtype| *dtype == DType::BF16));
    assert!(maps(&whole).iter().all(|dtype| *dtype == DType::F32));
    // The same numbers in f32: what is learned over them is the same.
    let other = tempfile::tempdir().unwrap();
    whole.save(other.path(), DType::F32).unwrap();
    let learned = |base: &Path| {
        let sets = Sets {
            train: &world.sets[0],
            development: &world.sets[1],
            held_out: &world.sets[2],
        };
        train_lora(base, None, &sets, &few(), None, &mut |_, _| {
            ControlFlow::Continue(())
        })
        .unwrap()
    };
    let (half, full) = (learned(world.base.path()), learned(other.path()));
    assert!(bits(&half) == bits(&full));
    assert_eq!(half.loss_last, full.loss_last);
}
