//! A LoRA: low-rank deltas of all seven linear maps of every layer.
//!
//! All seven: attention alone loses at equal size ("LoRA Without Regret", Thinking Machines 2025).

use candle_core::Tensor;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::LlamaConfig;
use crate::error::{Error, Result};
use crate::linear::{Delta, Parameter};
use crate::llama::{LINEAR, Llama};
use crate::ops::slice::{matrix, zeros};

/// A adapter's weights. B·A·alpha/r is what it adds to a weight.
#[derive(Clone)]
pub struct LoraAdapter {
    pub(crate) r: usize,
    pub(crate) alpha: f64,
    pub(crate) dropout: f32,
    /// A layer's A `[r, in]` and B `[out, r]`, in the order of `LINEAR`.
    pub(crate) layers: Vec<Vec<(Tensor, Tensor)>>,
}

impl LoraAdapter {
    /// As PEFT begins: A uniform within ±1/√in (kaiming, a = √5), B zero, so that nothing is changed yet.
    pub(crate) fn new(
        config: &LlamaConfig,
        r: usize,
        alpha: f64,
        dropout: f32,
        seed: u64,
    ) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut pair = |[out, inner]: [usize; 2]| -> Result<(Tensor, Tensor)> {
            let bound = 1.0 / (inner as f32).sqrt();
            let a = (0..r * inner)
                .map(|_| rng.random_range(-bound..bound))
                .collect();
            Ok((matrix(a, r, inner)?, zeros(&[out, r])?))
        };
        let mut layer = || {
            config
                .linear_shapes()
                .into_iter()
                .map(&mut pair)
                .collect::<Result<_>>()
        };
        let layers = (0..config.num_hidden_layers)
            .map(|_| layer())
            .collect::<Result<_>>()?;
        Ok(LoraAdapter {
            r,
            alpha,
            dropout,
            layers,
        })
    }

    pub fn r(&self) -> usize {
        self.r
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
        self.layers
            .iter()
            .flatten()
            .flat_map(|(a, b)| [a.clone(), b.clone()])
            .collect()
    }

    /// A copy that further training leaves alone.
    pub(crate) fn snapshot(&self) -> Result<Self> {
        let mut copy = self.clone();
        for (a, b) in copy.layers.iter_mut().flatten() {
            (*a, *b) = (a.copy()?, b.copy()?);
        }
        Ok(copy)
    }

    /// Adds the deltas to the model's linear maps; with `learn`, they get slots.
    pub(crate) fn attach(&self, model: &mut Llama, learn: bool) -> Result<()> {
        if self.layers.len() != model.layers.len() {
            let (own, base) = (self.layers.len(), model.layers.len());
            return Err(Error::Adapter(format!(
                "it has {own} layers, the base {base}: it was made for another base"
            )));
        }
        let shapes = model.config.linear_shapes();
        let mut slot = 0;
        let mut parameter = |tensor: &Tensor| {
            slot += 1;
            Parameter {
                tensor: tensor.clone(),
                slot: learn.then_some(slot - 1),
            }
        };
        for (n, (layer, pairs)) in model.layers.iter_mut().zip(&self.layers).enumerate() {
            for (i, (linear, (a, b))) in layer.linear.iter_mut().zip(pairs).enumerate() {
                let [out, inner] = shapes[i];
                if a.dims() != [self.r, inner] || b.dims() != [out, self.r] {
                    let (name, a, b) = (LINEAR[i].1, a.dims(), b.dims());
                    return Err(Error::Adapter(format!(
                        "layer {n} {name}: A is {a:?} and B {b:?}, the base wants [{}, {inner}] and [{out}, {}]: it \
                         was made for another base",
                        self.r, self.r
                    )));
                }
                linear.delta = Some(Delta {
                    a: parameter(a),
                    b: parameter(b),
                    scale: self.alpha / self.r as f64,
                });
            }
        }
        Ok(())
    }
}
