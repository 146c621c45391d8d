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

/// The low-rank delta of one linear map: A `[r, in]`, B `[out, r]`.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
}

/// An adapter's weights: B·A·alpha/r is what it adds to a weight. One from elsewhere may leave maps alone.
#[derive(Clone, Debug)]
pub struct LoraAdapter {
    pub(crate) r: usize,
    pub(crate) alpha: f64,
    pub(crate) dropout: f32,
    pub(crate) layers: Vec<[Option<Pair>; 7]>,
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
        let mut pair = |[out, inner]: [usize; 2]| -> Result<Pair> {
            let bound = 1.0 / (inner as f32).sqrt();
            let a = (0..r * inner)
                .map(|_| rng.random_range(-bound..bound))
                .collect();
            Ok(Pair {
                a: matrix(a, r, inner)?,
                b: zeros(&[out, r])?,
            })
        };
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for _ in 0..config.num_hidden_layers {
            let mut layer: [Option<Pair>; 7] = Default::default();
            for (place, shape) in layer.iter_mut().zip(config.linear_shapes()) {
                *place = Some(pair(shape)?);
            }
            layers.push(layer);
        }
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
            .flatten()
            .flat_map(|pair| [pair.a.clone(), pair.b.clone()])
            .collect()
    }

    /// A copy that further training leaves alone.
    pub(crate) fn snapshot(&self) -> Result<Self> {
        let mut copy = self.clone();
        for pair in copy.layers.iter_mut().flatten().flatten() {
            *pair = Pair {
                a: pair.a.copy()?,
                b: pair.b.copy()?,
            };
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
            for (i, (linear, pair)) in layer.linear.iter_mut().zip(pairs).enumerate() {
                let Some(Pair { a, b }) = pair else { continue };
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
