//! What a LoRA learns from: examples, or preferences. The steps, the epochs and the checkpoints are the same for both.

use sha2::{Digest, Sha256};

use crate::batch::{Example, problem};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::linear::{Dropout, Gradients};
use crate::model::Model;
use crate::workers::Workers;

/// Where a step is taken.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) model: &'a Model,
    pub(crate) workers: &'a Workers,
    /// Parameters that get a gradient.
    pub(crate) slots: usize,
    pub(crate) dropout: Option<Dropout>,
}

pub(crate) trait Item: Sized {
    /// The sequences that it is made of.
    fn examples(&self) -> impl Iterator<Item = &Example>;

    /// Its part in the mean over several.
    fn weight(&self) -> f64;

    /// The mean loss of a batch, and its gradients.
    fn gradients(at: Place<'_>, batch: &[&Self]) -> Result<(f64, Gradients)>;

    /// The mean loss of some.
    fn loss(at: Place<'_>, items: &[Self]) -> Result<f64>;

    /// What tells it from others.
    fn digest(&self, hash: &mut Sha256) {
        for Example { tokens, weights } in self.examples() {
            hash.update((tokens.len() as u64).to_le_bytes());
            let tokens = tokens.iter().map(|token| token.to_le_bytes());
            tokens.for_each(|bytes| hash.update(bytes));
            let weights = weights.iter().map(|weight| weight.to_le_bytes());
            weights.for_each(|bytes| hash.update(bytes));
        }
    }
}

/// Σ weight·nll / Σ weight.
impl Item for Example {
    fn examples(&self) -> impl Iterator<Item = &Example> {
        std::iter::once(self)
    }

    fn weight(&self) -> f64 {
        Example::weight(self)
    }

    fn gradients(at: Place<'_>, batch: &[&Self]) -> Result<(f64, Gradients)> {
        at.workers.gradients(at.model, at.slots, batch, at.dropout)
    }

    fn loss(at: Place<'_>, items: &[Self]) -> Result<f64> {
        at.workers.loss(at.model, items)
    }
}

/// Refuses what could not be trained on. `set` names the list in the error.
pub(crate) fn check<T: Item>(set: &'static str, items: &[T], config: &ModelConfig) -> Result<()> {
    for (index, item) in items.iter().enumerate() {
        if let Some(what) = item.examples().find_map(|example| problem(example, config)) {
            return Err(Error::Example { set, index, what });
        }
    }
    Ok(())
}
