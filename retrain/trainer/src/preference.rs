//! Learning which of two answers is preferred, by direct preference optimisation.
//!
//! Rafailov et al. 2023, "Direct Preference Optimization", equation 7: of a prompt's two answers, the one that people prefer, w, becomes
//! likelier than the other, l, measured against the model as it was before: with m = β·((log π(w) − log π₀(w)) − (log π(l) − log π₀(l))) the
//! loss is −log σ(m). Its gradient is β·σ(−m) times that of log π(l) − log π(w): the passes over examples, with a weight for each
//! sequence that one pass without gradients finds first. As in TRL, nothing is dropped out: m compares probabilities.
//!
//! The loss says nothing of how likely either answer is, and what both have in common, such as the end of the turn, may get less likely with
//! both: the model then does not stop. So a share of the mean nll of what is preferred is added (Llama Team 2024, "The Llama 3 Herd of
//! Models", 4.1.4: 0.2 of it).

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::batch::Example;
use crate::checkpoint::Checkpoints;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::fine_tune::{LoraOutcome, Observer, Sets, tune};
use crate::items::{Item, Place, check};
use crate::linear::Gradients;
use crate::lora::LoraAdapter;
use crate::model::Model;
use crate::settings::LoraSettings;
use crate::workers::Workers;

/// Two answers to one prompt, each with its prompt; what has a weight of 1 is the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference {
    pub preferred: Example,
    pub other: Example,
}

/// How preferences are learned from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DpoSettings {
    /// How close the model stays to what it was; 0.1 is usual.
    pub beta: f64,
    /// The factor of the mean nll of what is preferred, in nats a token; 0.2 is usual, 0 is none.
    pub sft: f64,
}

impl Default for DpoSettings {
    fn default() -> Self {
        DpoSettings {
            beta: 0.1,
            sft: 0.2,
        }
    }
}

impl DpoSettings {
    fn check(&self) -> Result<()> {
        let DpoSettings { beta, sft } = self;
        let what = if !(beta.is_finite() && *beta > 0.0) {
            format!("beta is {beta}; expected more than 0")
        } else if !(sft.is_finite() && *sft >= 0.0) {
            format!("sft is {sft}; expected 0 (none) or more")
        } else {
            return Ok(());
        };
        Err(Error::Settings(what))
    }
}

/// A preference, and what the model thought of it before.
struct Compared<'a> {
    of: &'a Preference,
    dpo: DpoSettings,
    /// log π₀(w) − log π₀(l).
    before: f64,
}

/// Trains a LoRA for the base in the folder `base` on preferences; an example is one of them, and what else
/// `train_lora` says of its arguments and errors holds.
///
/// It goes on from `adapter`, whose rank, alpha and maps it keeps, and compares with it; without one, with the base.
/// `settings.dropout` does not count.
pub fn train_preferences(
    base: &Path,
    adapter: Option<&LoraAdapter>,
    sets: &Sets<Preference>,
    dpo: DpoSettings,
    settings: &LoraSettings,
    checkpoints: Option<&Checkpoints>,
    observer: Observer<'_>,
) -> Result<LoraOutcome> {
    dpo.check()?;
    let settings = LoraSettings {
        dropout: 0.0,
        ..settings.clone()
    };
    settings.check()?;
    let mut model = Model::load_frozen(base, None)?;
    for (set, preferences) in sets.named() {
        check_preferences(set, preferences, &model.config)?;
    }
    let adapter = LoraAdapter::begin(adapter, &mut model, &settings)?;
    let workers = Workers::new(settings.threads, settings.recompute)?;
    let compared = |preferences| compared(&model, &workers, preferences, dpo);
    let [train, development, held_out] = [
        compared(sets.train)?,
        compared(sets.development)?,
        compared(sets.held_out)?,
    ];
    let sets = Sets {
        train: &train,
        development: &development,
        held_out: &held_out,
    };
    tune(
        &model,
        &adapter,
        workers,
        &sets,
        &settings,
        checkpoints,
        observer,
    )
}

fn check_preferences(
    set: &'static str,
    preferences: &[Preference],
    config: &ModelConfig,
) -> Result<()> {
    let compared = |of| Compared {
        of,
        dpo: DpoSettings::default(),
        before: 0.0,
    };
    check(
        set,
        &preferences.iter().map(compared).collect::<Vec<_>>(),
        config,
    )
}

/// What the model, which has not learned yet, thinks of preferences.
fn compared<'a>(
    model: &Model,
    workers: &Workers,
    preferences: &'a [Preference],
    dpo: DpoSettings,
) -> Result<Vec<Compared<'a>>> {
    let both = preferences.iter().flat_map(|of| [&of.preferred, &of.other]);
    let losses = workers.losses(model, &both.collect::<Vec<_>>())?;
    let known = preferences.iter().zip(losses.chunks_exact(2));
    let known = known.map(|(of, losses)| Compared {
        of,
        dpo,
        before: losses[1] - losses[0],
    });
    Ok(known.collect())
}

/// What a model makes of some preferences.
struct Seen {
    /// Each one's m.
    margins: Vec<f64>,
    /// Σ nll of what is preferred, and its tokens.
    nll: f64,
    tokens: f64,
}

impl Seen {
    fn by(at: Place<'_>, items: &[&Compared<'_>]) -> Result<Self> {
        let both = items.iter().flat_map(|item| item.examples());
        let losses = at.workers.losses(at.model, &both.collect::<Vec<_>>())?;
        let pairs = items.iter().zip(losses.chunks_exact(2));
        let margin = |(item, losses): (&&Compared<'_>, &[f64])| {
            item.dpo.beta * (losses[1] - losses[0] - item.before)
        };
        Ok(Seen {
            margins: pairs.map(margin).collect(),
            nll: losses.iter().step_by(2).sum(),
            tokens: items.iter().map(|item| item.of.preferred.weight()).sum(),
        })
    }

    fn loss(&self, dpo: DpoSettings) -> f64 {
        let all: f64 = self.margins.iter().map(|margin| loss(*margin)).sum();
        all / self.margins.len() as f64 + dpo.sft * self.nll / self.tokens
    }
}

/// −log σ(m), whatever the size of m.
fn loss(margin: f64) -> f64 {
    (-margin).max(0.0) + (-margin.abs()).exp().ln_1p()
}

fn weighted(example: &Example, by: f64) -> Example {
    Example {
        tokens: example.tokens.clone(),
        weights: example.weights.iter().map(|w| w * by as f32).collect(),
    }
}

/// All have the same.
fn settings_of(items: &[&Compared<'_>]) -> DpoSettings {
    items
        .first()
        .map_or_else(DpoSettings::default, |item| item.dpo)
}

impl Item for Compared<'_> {
    fn examples(&self) -> impl Iterator<Item = &Example> {
        [&self.of.preferred, &self.of.other].into_iter()
    }

    fn weight(&self) -> f64 {
        1.0
    }

    fn gradients(at: Place<'_>, batch: &[&Self]) -> Result<(f64, Gradients)> {
        let (seen, dpo) = (Seen::by(at, batch)?, settings_of(batch));
        let of_all = batch.len() as f64;
        // Negative, an answer is pushed away.
        let pulled = batch.iter().zip(&seen.margins).flat_map(|(item, margin)| {
            let pull = dpo.beta / (1.0 + margin.exp()) / of_all;
            [
                weighted(&item.of.preferred, pull + dpo.sft / seen.tokens),
                weighted(&item.of.other, -pull),
            ]
        });
        let pulled: Vec<Example> = pulled.collect();
        let pulled: Vec<&Example> = pulled.iter().collect();
        let gradients = at
            .workers
            .scaled_gradients(at.model, at.slots, &pulled, 1.0, None);
        Ok((seen.loss(dpo), gradients?.1))
    }

    fn loss(at: Place<'_>, items: &[Self]) -> Result<f64> {
        let items: Vec<&Self> = items.iter().collect();
        Ok(Seen::by(at, &items)?.loss(settings_of(&items)))
    }

    fn digest(&self, hash: &mut Sha256) {
        hash.update(self.dpo.beta.to_le_bytes());
        hash.update(self.dpo.sft.to_le_bytes());
        hash.update(self.before.to_le_bytes());
        for example in self.examples() {
            example.digest(hash);
        }
    }
}

#[cfg(test)]
#[path = "preference_tests.rs"]
mod tests;
