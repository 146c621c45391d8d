//! A training that was cut off goes on: everything that it had reached, in one file that is whole or not there.
//!
//! Figures are kept as their bits, so that what follows is the same to the last one.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files::{self, Store};
use crate::fine_tune::Sets;
use crate::items::Item;
use crate::lora::LoraAdapter;
use crate::model::Model;
use crate::ops::slice::{edit, matrix, read};
use crate::optimizer::AdamW;
use crate::settings::LoraSettings;
use crate::train::Progress;

const STATE: &str = "retune_training";

/// Where a training keeps what it has reached.
#[derive(Debug)]
pub struct Checkpoints {
    path: PathBuf,
    every: Duration,
    last: Mutex<Instant>,
}

/// How far a training is, beside the adapter and the optimiser.
#[derive(Debug, Default)]
pub(crate) struct Reached {
    pub(crate) step: usize,
    pub(crate) tokens: u64,
    /// Σ weight·nll and Σ weight of the epoch under way.
    pub(crate) epoch_loss: f64,
    pub(crate) epoch_weight: f64,
    /// Before the first step, and after each one: whoever was told of them may have died before writing them down.
    pub(crate) told: Vec<Progress>,
    pub(crate) best: Option<Best>,
}

impl Reached {
    /// Before the first step, and after each epoch.
    pub(crate) fn curve(&self) -> impl Iterator<Item = &Progress> {
        let told = self.told.iter();
        told.filter(|now| now.step == 0 || now.ends_epoch)
    }

    /// Done.
    pub(crate) fn epochs(&self) -> usize {
        self.told.last().map_or(0, |now| now.epoch)
    }

    /// Of the best epoch.
    pub(crate) fn lowest(&self) -> Option<f64> {
        let best = self.best.as_ref()?.epoch;
        self.curve().nth(best)?.development_loss
    }
}

/// The epoch with the lowest development loss, from 1, and the adapter as it was then.
#[derive(Debug)]
pub(crate) struct Best {
    pub(crate) epoch: usize,
    pub(crate) adapter: LoraAdapter,
}

/// `Reached` in the file, and the optimiser's step.
#[derive(Serialize, Deserialize)]
struct Saved {
    /// Of the training that it belongs to.
    digest: String,
    step: usize,
    adam: i32,
    tokens: u64,
    epoch_loss: u64,
    epoch_weight: u64,
    told: Vec<SavedProgress>,
    best: Option<usize>,
}

#[derive(Serialize, Deserialize)]
struct SavedProgress {
    step: usize,
    steps: usize,
    epoch: usize,
    ends_epoch: bool,
    tokens: u64,
    train: u64,
    development: Option<u64>,
    held_out: Option<u64>,
    gradient_norm: u64,
    learning_rate: u64,
}

impl Checkpoints {
    /// In the file `path`, after each epoch and so often in between.
    pub fn new(path: PathBuf, every: Duration) -> Self {
        Checkpoints {
            path,
            every,
            last: Mutex::new(Instant::now()),
        }
    }

    pub(crate) fn is_due(&self) -> bool {
        self.last
            .lock()
            .is_ok_and(|last| last.elapsed() >= self.every)
    }

    pub(crate) fn write(
        &self,
        digest: &str,
        adapter: &LoraAdapter,
        adam: &AdamW,
        reached: &Reached,
    ) -> Result<()> {
        let saved = Saved {
            digest: digest.to_owned(),
            step: reached.step,
            adam: adam.steps_done(),
            tokens: reached.tokens,
            epoch_loss: reached.epoch_loss.to_bits(),
            epoch_weight: reached.epoch_weight.to_bits(),
            told: reached.told.iter().map(SavedProgress::from).collect(),
            best: reached.best.as_ref().map(|best| best.epoch),
        };
        let mut tensors = BTreeMap::new();
        let mut put = |what: &str, n: usize, tensor: Tensor| {
            tensors.insert(format!("{what}.{n}"), tensor);
        };
        for (n, tensor) in adapter.tensors().into_iter().enumerate() {
            put("now", n, tensor);
        }
        for (n, (mean, square)) in adam.moments().enumerate() {
            put("mean", n, matrix(mean.to_vec(), 1, mean.len())?);
            put("square", n, matrix(square.to_vec(), 1, square.len())?);
        }
        let best = reached.best.iter().flat_map(|best| best.adapter.tensors());
        for (n, tensor) in best.enumerate() {
            put("best", n, tensor);
        }
        let state = serde_json::to_string(&saved)
            .map_err(|error| Error::file(&self.path, error.to_string()))?;
        let metadata = HashMap::from([(STATE.to_owned(), state)]);
        files::write_safetensors(&self.path, tensors, metadata)?;
        if let Ok(mut last) = self.last.lock() {
            *last = Instant::now();
        }
        Ok(())
    }

    /// What was reached, with the adapter and the optimiser as they were; None where there is no file, or one of another training.
    pub(crate) fn read(
        &self,
        digest: &str,
        adapter: &LoraAdapter,
        adam: &mut AdamW,
    ) -> Result<Option<Reached>> {
        if !self.path.exists() {
            return Ok(None);
        }
        let damaged = |what: String| {
            Error::file(
                &self.path,
                format!("a damaged checkpoint, {what}; remove it, and the training begins anew"),
            )
        };
        let open = Store::open_file(&self.path);
        let mut store = open.map_err(|error| damaged(error.to_string()))?;
        let state = store.metadata(STATE);
        let state = state.ok_or_else(|| damaged("without a training's state".to_owned()))?;
        let saved: Saved =
            serde_json::from_str(state).map_err(|error| damaged(error.to_string()))?;
        if saved.digest != digest {
            return Ok(None);
        }
        let mut take = |what: &str, n: usize, into: &Tensor| -> Result<()> {
            let tensor = store.take_any(&format!("{what}.{n}"))?;
            if tensor.elem_count() != into.elem_count() {
                return Err(damaged(format!("{what}.{n} has another size")));
            }
            let numbers = read(&tensor)?;
            Ok(edit(into, |into| into.copy_from_slice(&numbers))?)
        };
        for (n, tensor) in adapter.tensors().iter().enumerate() {
            take("now", n, tensor)?;
        }
        let best = match saved.best {
            None => None,
            Some(epoch) if saved.told.last().is_some_and(|now| epoch <= now.epoch) => {
                let adapter = adapter.snapshot()?;
                for (n, tensor) in adapter.tensors().iter().enumerate() {
                    take("best", n, tensor)?;
                }
                Some(Best { epoch, adapter })
            }
            Some(epoch) => return Err(damaged(format!("the best epoch {epoch} is not in it"))),
        };
        let mut moments = Vec::new();
        for (n, tensor) in adapter.tensors().iter().enumerate() {
            let (mean, square) = (tensor.zeros_like()?, tensor.zeros_like()?);
            take("mean", n, &mean)?;
            take("square", n, &square)?;
            moments.push((read(&mean)?.to_vec(), read(&square)?.to_vec()));
        }
        adam.restore(saved.adam, moments);
        Ok(Some(Reached {
            step: saved.step,
            tokens: saved.tokens,
            epoch_loss: f64::from_bits(saved.epoch_loss),
            epoch_weight: f64::from_bits(saved.epoch_weight),
            told: saved.told.iter().map(Progress::from).collect(),
            best,
        }))
    }
}

impl From<&Progress> for SavedProgress {
    fn from(of: &Progress) -> Self {
        SavedProgress {
            step: of.step,
            steps: of.steps,
            epoch: of.epoch,
            ends_epoch: of.ends_epoch,
            tokens: of.tokens,
            train: of.train_loss.to_bits(),
            development: of.development_loss.map(f64::to_bits),
            held_out: of.held_out_loss.map(f64::to_bits),
            gradient_norm: of.gradient_norm.to_bits(),
            learning_rate: of.learning_rate.to_bits(),
        }
    }
}

impl From<&SavedProgress> for Progress {
    fn from(of: &SavedProgress) -> Self {
        Progress {
            step: of.step,
            steps: of.steps,
            epoch: of.epoch,
            ends_epoch: of.ends_epoch,
            tokens: of.tokens,
            train_loss: f64::from_bits(of.train),
            development_loss: of.development.map(f64::from_bits),
            held_out_loss: of.held_out.map(f64::from_bits),
            gradient_norm: f64::from_bits(of.gradient_norm),
            learning_rate: f64::from_bits(of.learning_rate),
            is_past: true,
        }
    }
}

/// What a training is known by: the base's shape and first weights, the adapter that it begins with, the examples, the settings.
pub(crate) fn digest<T: Item>(
    model: &Model,
    adapter: &LoraAdapter,
    sets: &Sets<T>,
    settings: &LoraSettings,
) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{settings:?}\n{}\n", model.config.raw));
    for tensor in std::iter::once(&model.norm.tensor).chain(&adapter.tensors()) {
        if let Ok(numbers) = read(tensor) {
            numbers.iter().for_each(|x| hash.update(x.to_le_bytes()));
        }
    }
    for set in [sets.train, sets.development, sets.held_out] {
        hash.update((set.len() as u64).to_le_bytes());
        set.iter().for_each(|item| item.digest(&mut hash));
    }
    format!("{:x}", hash.finalize())
}
