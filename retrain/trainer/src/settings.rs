//! How an adapter is trained.

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::linear::Map;

/// How to train an adapter. The defaults follow "LoRA Without Regret" (Thinking Machines 2025) and tinker-cookbook.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSettings {
    /// Rank.
    pub r: usize,
    /// The delta is scaled by alpha/r.
    pub alpha: f64,
    /// By alpha/√r instead (Kalajdzievski 2023). It is baked into the adapter's alpha: not every reader knows of it.
    pub rank_stabilised: bool,
    /// Linear maps that get a delta, as PEFT names them (`q_proj`); none named: all.
    pub target_modules: Vec<String>,
    /// Share of the LoRA's inputs that is dropped in training, 0 to below 1; 0.05 helps below some 500 examples.
    pub dropout: f32,
    /// The highest; `recommended_learning_rate` of the base's hidden size.
    pub learning_rate: f64,
    /// What it does after the warmup.
    pub decay: Decay,
    /// Share of the steps over which the learning rate rises.
    pub warmup: f64,
    /// Examples a step; above 32 a LoRA loses. They go through the model a few at a time: memory does not depend on it.
    pub batch_size: usize,
    pub epochs: usize,
    /// Ends after so many epochs in which the development loss was not lower than ever before; 0: never.
    pub patience: usize,
    /// Of the first A, the examples' order and the dropout.
    pub seed: u64,
    /// Longest gradient; 0 is no limit.
    pub clip: f64,
    /// Layers are computed again in the backward pass rather than kept: a third slower, and a long sequence needs little memory.
    pub recompute: bool,
    /// 0 is one a core. Another number rounds otherwise and so gives slightly other weights.
    pub threads: usize,
}

/// The learning rate's course after the warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// Along half a cosine to 0 at the last step.
    Cosine,
    /// In a line to 0.
    Linear,
    Constant,
}

impl Default for LoraSettings {
    fn default() -> Self {
        LoraSettings {
            r: 16,
            alpha: 32.0,
            rank_stabilised: false,
            target_modules: Vec::new(),
            dropout: 0.0,
            learning_rate: 2e-4,
            decay: Decay::Cosine,
            warmup: 0.1,
            batch_size: 16,
            epochs: 3,
            patience: 0,
            seed: 0,
            clip: 1.0,
            recompute: false,
            threads: 0,
        }
    }
}

/// 5e-4·(2000/hidden)^0.781: tinker-cookbook's fit for Llama (`get_lr`).
pub fn recommended_learning_rate(hidden: usize) -> f64 {
    5e-4 * (2000.0 / hidden.max(1) as f64).powf(0.781)
}

impl LoraSettings {
    /// The adapter's alpha.
    pub(crate) fn effective_alpha(&self) -> f64 {
        match self.rank_stabilised {
            true => self.alpha * (self.r as f64).sqrt(),
            false => self.alpha,
        }
    }

    /// The linear maps of a base that get a delta; refuses a name that it has not.
    pub(crate) fn maps(&self, base: &ModelConfig) -> Result<Vec<Map>> {
        if self.target_modules.is_empty() {
            return Ok(base.maps().to_vec());
        }
        let map = |name: &String| {
            let found = base.maps().iter().find(|map| map.name() == name);
            found.copied().ok_or_else(|| {
                let known: Vec<&str> = base.maps().iter().map(|map| map.name()).collect();
                Error::Settings(format!(
                    "target module `{name}` is none of the base's: {}",
                    known.join(", ")
                ))
            })
        };
        self.target_modules.iter().map(map).collect()
    }

    pub(crate) fn check(&self) -> Result<()> {
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
