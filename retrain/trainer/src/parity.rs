//! What transformers and PEFT make of a tiny model of every family, and what this trainer makes of it. For tests alone.
//!
//! `tests/parity/families.py` wrote the cases, and says what is in one. `RETUNE_PARITY` names a folder with others than those kept here.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::Deserialize;

use crate::batch::Example;
use crate::block::norm;
use crate::files::Store;
use crate::forward::{Reader, embed};
use crate::linear::{Linear, Parameter};
use crate::lora::LoraAdapter;
use crate::model::Model;
use crate::ops::slice::read;
use crate::optimizer::{AdamW, clip, norm as length};
use crate::workers::Workers;

#[derive(Deserialize)]
struct Expected {
    batch: Vec<Sequence>,
    loss: f64,
    losses: Vec<f64>,
    learning_rate: f64,
    clip: f64,
}

#[derive(Deserialize)]
struct Sequence {
    tokens: Vec<u32>,
    weights: Vec<f32>,
}

pub(crate) struct Case {
    pub(crate) folder: PathBuf,
    pub(crate) name: String,
    pub(crate) model: Model,
    pub(crate) adapter: LoraAdapter,
    expected: Expected,
    figures: BTreeMap<String, Vec<f32>>,
}

pub(crate) fn cases() -> Vec<Case> {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("parity");
    let root = std::env::var_os("RETUNE_PARITY").map_or(kept, PathBuf::from);
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("expected.json").exists())
        .collect();
    folders.sort();
    assert!(
        folders.len() >= 9,
        "{} cases in {}",
        folders.len(),
        root.display()
    );
    folders.iter().map(|folder| Case::open(folder)).collect()
}

impl Case {
    fn open(folder: &Path) -> Self {
        let adapter = LoraAdapter::load(&folder.join("adapter")).unwrap();
        let mut model = Model::load(folder, None).unwrap();
        adapter.attach(&mut model, true).unwrap();
        let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
        let mut store = Store::open_file(&folder.join("expected.safetensors")).unwrap();
        let names: Vec<String> = store.names().map(str::to_owned).collect();
        let figures = names.into_iter().map(|name| {
            let tensor = store.take_any(&name).unwrap();
            let numbers = read(&tensor).unwrap().to_vec();
            (name, numbers)
        });
        Case {
            folder: folder.to_owned(),
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            figures: figures.collect(),
            expected: serde_json::from_str(&text).unwrap(),
            model,
            adapter,
        }
    }

    fn examples(&self) -> Vec<Example> {
        let example = |sequence: &Sequence| Example {
            tokens: sequence.tokens.clone(),
            weights: sequence.weights.clone(),
        };
        self.expected.batch.iter().map(example).collect()
    }

    /// The LoRA's parameters by their slots.
    pub(crate) fn parameters(&self) -> Vec<&Parameter> {
        let linear = self.model.layers.iter().flat_map(|layer| layer.linear());
        let deltas = linear.filter_map(|linear: &Linear| linear.delta.as_ref());
        let mut all: Vec<&Parameter> = deltas.flat_map(|delta| [&delta.a, &delta.b]).collect();
        all.sort_by_key(|parameter| parameter.slot.unwrap());
        all
    }

    fn logits(&self, tokens: &[u32]) -> Vec<f32> {
        let (model, lengths) = (&self.model, [tokens.len()]);
        let reader = Reader::new(model, &lengths, None);
        let mut x = embed(model, tokens).unwrap();
        for n in 0..model.layers.len() {
            x = reader.layer(n, x).unwrap().0;
        }
        let (y, _) = norm(&model.config, &x, &model.norm).unwrap();
        let weight = model.head.as_ref().unwrap_or(&model.embedding);
        let logits = y.matmul(&weight.tensor.t().unwrap()).unwrap();
        let logits = read(&logits).unwrap();
        let capped = logits.iter().map(|value| match model.config.logit_cap {
            Some(cap) => cap * (value / cap).tanh(),
            None => *value,
        });
        capped.collect()
    }
}

pub(crate) fn farthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    apart.fold(0.0, f32::max)
}

/// |a − b| / |b|, as lengths.
pub(crate) fn apart(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    let length: f64 = b.iter().map(|b| square(*b)).sum();
    assert!(length > 0.0, "the reference has no gradient");
    (difference / length).sqrt()
}

#[test]
fn logits_and_losses_are_transformers() {
    for case in cases() {
        for (i, example) in case.examples().iter().enumerate() {
            let found = case.logits(&example.tokens);
            let expected = &case.figures[&format!("logits.{i}")];
            // Of the largest: f32 has seven digits.
            let largest = expected
                .iter()
                .fold(1f32, |top, value| top.max(value.abs()));
            let apart = farthest(&found, expected) / largest;
            assert!(
                apart < 1e-5,
                "{}: logits of {i} are apart by {apart}",
                case.name
            );
        }
        let workers = Workers::new(2, false).unwrap();
        let loss = workers.loss(&case.model, &case.examples()).unwrap();
        let expected = case.expected.loss;
        assert!(
            (loss - expected).abs() < 1e-5,
            "{}: loss {loss}, not {expected}",
            case.name
        );
    }
}

#[test]
fn gradients_are_pefts() {
    for case in cases() {
        let parameters = case.parameters();
        let examples = case.examples();
        let batch: Vec<&Example> = examples.iter().collect();
        let workers = Workers::new(2, false).unwrap();
        let gradients = workers.gradients(&case.model, parameters.len(), &batch, None);
        let (_, gradients) = gradients.unwrap();
        for (slot, parameter) in parameters.iter().enumerate() {
            let found = read(gradients.get(slot).unwrap()).unwrap();
            let expected = &case.figures[&format!("gradient.{}", parameter.name)];
            let apart = apart(&found, expected);
            assert!(
                apart < 1e-4,
                "{} {}: apart by {apart}",
                case.name,
                parameter.name
            );
        }
        let names = case
            .figures
            .keys()
            .filter(|name| name.starts_with("gradient."));
        assert_eq!(names.count(), parameters.len(), "{}", case.name);
    }
}

#[test]
fn fifty_steps_end_where_pefts_do() {
    for case in cases() {
        let examples = case.examples();
        let batch: Vec<&Example> = examples.iter().collect();
        let tensors: Vec<Tensor> = case.adapter.tensors();
        let workers = Workers::new(1, true).unwrap();
        let mut adam = AdamW::new(&tensors, 0.999, 0.0);
        for (step, expected) in case.expected.losses.iter().enumerate() {
            let found = workers.gradients(&case.model, tensors.len(), &batch, None);
            let (loss, gradients) = found.unwrap();
            assert!(
                (loss - expected).abs() < 1e-4,
                "{} step {step}: loss {loss}, not {expected}",
                case.name
            );
            let clip = clip(length(&gradients).unwrap(), case.expected.clip);
            let rate = case.expected.learning_rate;
            adam.step(&tensors, &gradients, rate, clip).unwrap();
        }
        let (mut sum, mut count) = (0.0, 0);
        for parameter in case.parameters() {
            let found = read(&parameter.tensor).unwrap();
            let expected = &case.figures[&format!("after.{}", parameter.name)];
            let farthest = farthest(&found, expected);
            assert!(
                farthest < 1e-4,
                "{} {}: apart by {farthest}",
                case.name,
                parameter.name
            );
            let all = found.iter().zip(expected);
            sum += all.map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
            count += found.len();
        }
        let mean = sum / count as f64;
        assert!(mean < 1e-5, "{}: apart by {mean} on average", case.name);
    }
}

/// Generation reads each prompt whole and goes on with a cache; so it must say what the whole sequence's logits say.
#[test]
fn answers_follow_the_logits() {
    for case in cases() {
        let prompts: Vec<Vec<u32>> = vec![vec![5, 9, 11, 4, 30, 7, 8], vec![3, 40]];
        let answers = case.model.generate(&prompts, 12, &[]).unwrap();
        for (prompt, answer) in prompts.iter().zip(&answers) {
            let mut tokens = prompt.clone();
            for said in answer {
                let logits = case.logits(&tokens);
                let last = &logits[logits.len() - case.model.config.vocab_size..];
                let top = last.iter().copied().fold(f32::MIN, f32::max);
                assert!(last[*said as usize] >= top - 1e-5, "{}", case.name);
                tokens.push(*said);
            }
        }
    }
}

/// The order of A and B within a file is PEFT's, and so are their names: what was read is written the same.
#[test]
fn an_adapter_that_is_read_and_written_is_pefts() {
    for case in cases() {
        let folder = tempfile::tempdir().unwrap();
        case.adapter.save(folder.path(), "base").unwrap();
        let again = LoraAdapter::load(folder.path()).unwrap();
        for (a, b) in case.adapter.tensors().iter().zip(again.tensors()) {
            assert_eq!(*read(a).unwrap(), *read(&b).unwrap());
        }
    }
}
