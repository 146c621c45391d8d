//! A LoRA: low-rank deltas of linear maps of every layer, all of them unless some are named.
//!
//! All: attention alone loses at equal size ("LoRA Without Regret", Thinking Machines 2025).

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::linear::{Delta, Linear, Map, Parameter};
use crate::model::Model;
use crate::ops::slice::{matrix, zeros};
use crate::settings::LoraSettings;

/// The low-rank delta of one linear map: A `[r, in]`, B `[out, r]`.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
}

/// An adapter's weights: B·A·alpha/r is what it adds to a weight. It may leave maps alone.
#[derive(Clone, Debug)]
pub struct LoraAdapter {
    pub(crate) r: usize,
    pub(crate) alpha: f64,
    pub(crate) dropout: f32,
    pub(crate) layers: Vec<BTreeMap<Map, Pair>>,
}

impl LoraAdapter {
    /// As PEFT begins: A uniform within ±1/√in (kaiming, a = √5), B zero, so that nothing is changed yet.
    pub(crate) fn new(
        config: &ModelConfig,
        maps: &[Map],
        r: usize,
        alpha: f64,
        dropout: f32,
        seed: u64,
    ) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut pair = |map: &Map| -> Result<(Map, Pair)> {
            let [out, inner] = config.shape(*map);
            let bound = 1.0 / (inner as f32).sqrt();
            let a = (0..r * inner)
                .map(|_| rng.random_range(-bound..bound))
                .collect();
            let pair = Pair {
                a: matrix(a, r, inner)?,
                b: zeros(&[out, r])?,
            };
            Ok((*map, pair))
        };
        let layers = config
            .layers
            .iter()
            .map(|_| maps.iter().map(&mut pair).collect());
        Ok(LoraAdapter {
            r,
            alpha,
            dropout,
            layers: layers.collect::<Result<_>>()?,
        })
    }

    /// What a training begins with, attached to its model: a copy of `from`, or a fresh one as the settings say.
    pub(crate) fn begin(
        from: Option<&Self>,
        model: &mut Model,
        settings: &LoraSettings,
    ) -> Result<Self> {
        let config = &model.config;
        let LoraSettings {
            r, dropout, seed, ..
        } = *settings;
        let adapter = match from {
            Some(from) => from.snapshot()?,
            None => {
                let (maps, alpha) = (settings.maps(config)?, settings.effective_alpha());
                Self::new(config, &maps, r, alpha, dropout, seed)?
            }
        };
        adapter.attach(model, true)?;
        Ok(adapter)
    }

    pub fn r(&self) -> usize {
        self.r
    }

    /// The linear maps that it has a delta for, as PEFT names them.
    pub fn target_modules(&self) -> Vec<String> {
        let maps: BTreeSet<Map> = self
            .layers
            .iter()
            .flat_map(|layer| layer.keys().copied())
            .collect();
        maps.iter().map(|map| map.name().to_owned()).collect()
    }

    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// How many numbers it has.
    pub fn parameter_count(&self) -> usize {
        self.tensors().iter().map(Tensor::elem_count).sum()
    }

    /// Every A and B, in the order of the slots `attach` gives.
    pub(crate) fn tensors(&self) -> Vec<Tensor> {
        let pairs = self.layers.iter().flat_map(BTreeMap::values);
        pairs
            .flat_map(|pair| [pair.a.clone(), pair.b.clone()])
            .collect()
    }

    /// A copy that further training leaves alone.
    pub(crate) fn snapshot(&self) -> Result<Self> {
        let mut copy = self.clone();
        for pair in copy.layers.iter_mut().flat_map(BTreeMap::values_mut) {
            *pair = Pair {
                a: pair.a.copy()?,
                b: pair.b.copy()?,
            };
        }
        Ok(copy)
    }

    /// Adds the deltas to the model's linear maps; with `learn`, they get slots.
    pub(crate) fn attach(&self, model: &mut Model, learn: bool) -> Result<()> {
        if self.layers.len() != model.layers.len() {
            let (own, base) = (self.layers.len(), model.layers.len());
            return Err(Error::Adapter(format!(
                "it has {own} layers, the base {base}: it was made for another base"
            )));
        }
        let mut slot = 0;
        let mut parameter = |tensor: &Tensor, name: String| {
            slot += 1;
            Parameter {
                name,
                tensor: tensor.clone(),
                slot: learn.then_some(slot - 1),
            }
        };
        for (n, (layer, pairs)) in model.layers.iter_mut().zip(&self.layers).enumerate() {
            let mut linear: BTreeMap<Map, &mut Linear> = layer
                .linear_mut()
                .map(|linear| (linear.map, linear))
                .collect();
            for (map, Pair { a, b }) in pairs {
                let Some(linear) = linear.get_mut(map) else {
                    return Err(Error::Adapter(format!(
                        "the base has no {}: it was made for another base",
                        map.name()
                    )));
                };
                let [out, inner] = model.config.shape(*map);
                if a.dims() != [self.r, inner] || b.dims() != [out, self.r] {
                    let (name, a, b) = (map.name(), a.dims(), b.dims());
                    return Err(Error::Adapter(format!(
                        "layer {n} {name}: A is {a:?} and B {b:?}, the base wants [{}, {inner}] and [{out}, {}]: it \
                         was made for another base",
                        self.r, self.r
                    )));
                }
                linear.delta = Some(Delta {
                    a: parameter(a, name(n, *map, 'A')),
                    b: parameter(b, name(n, *map, 'B')),
                    scale: self.alpha / self.r as f64,
                });
            }
        }
        Ok(())
    }
}

/// A tensor's name in PEFT's files.
pub(crate) fn name(layer: usize, map: Map, half: char) -> String {
    let (block, map) = (map.block(), map.name());
    format!("base_model.model.model.layers.{layer}.{block}.{map}.lora_{half}.weight")
}
