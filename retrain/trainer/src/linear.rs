//! Weights that may or may not learn, and the linear layer, with its LoRA where it has one.
//!
//! A weight that learns has a slot, the place of its gradient; for one without, no gradient is computed at all.

use candle_core::{DType, Device, Result, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::ops::slice::{add, edit, matrix, read, zeros};

#[derive(Clone)]
pub(crate) struct Parameter {
    /// As Hugging Face's files have it, and PEFT's.
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
    pub(crate) slot: Option<usize>,
}

/// The gradients of one backward pass, or the sum of several.
#[derive(Default)]
pub(crate) struct Gradients {
    slots: Vec<Option<Tensor>>,
}

impl Gradients {
    pub(crate) fn new(slots: usize) -> Self {
        Gradients {
            slots: (0..slots).map(|_| None).collect(),
        }
    }

    /// Takes over `gradient`, which nobody else may hold.
    pub(crate) fn add(&mut self, slot: usize, gradient: Tensor) -> Result<()> {
        match &self.slots[slot] {
            Some(sum) => add(sum, &gradient)?,
            None => self.slots[slot] = Some(gradient),
        }
        Ok(())
    }

    /// Adds in place into a gradient of `shape`, which starts as zeros.
    pub(crate) fn edit(
        &mut self,
        slot: usize,
        shape: &[usize],
        change: impl FnMut(&mut [f32]),
    ) -> Result<()> {
        if self.slots[slot].is_none() {
            self.slots[slot] = Some(zeros(shape)?);
        }
        self.slots[slot]
            .as_ref()
            .map_or(Ok(()), |sum| edit(sum, change))
    }

    pub(crate) fn merge(&mut self, other: Gradients) -> Result<()> {
        for (slot, gradient) in other.slots.into_iter().enumerate() {
            if let Some(gradient) = gradient {
                self.add(slot, gradient)?;
            }
        }
        Ok(())
    }

    pub(crate) fn get(&self, slot: usize) -> Option<&Tensor> {
        self.slots[slot].as_ref()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Tensor> {
        self.slots.iter().flatten()
    }
}

/// A layer's linear maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Map {
    Q,
    K,
    V,
    /// q, k and v in one, as Phi-3 has them.
    Qkv,
    O,
    Gate,
    Up,
    /// gate and up in one, likewise.
    GateUp,
    Down,
}

impl Map {
    pub(crate) const ALL: [Map; 9] = [
        Map::Q,
        Map::K,
        Map::V,
        Map::Qkv,
        Map::O,
        Map::Gate,
        Map::Up,
        Map::GateUp,
        Map::Down,
    ];

    /// As PEFT's `target_modules` name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Map::Q => "q_proj",
            Map::K => "k_proj",
            Map::V => "v_proj",
            Map::Qkv => "qkv_proj",
            Map::O => "o_proj",
            Map::Gate => "gate_proj",
            Map::Up => "up_proj",
            Map::GateUp => "gate_up_proj",
            Map::Down => "down_proj",
        }
    }

    /// The part of a layer that it stands in.
    pub(crate) fn block(self) -> &'static str {
        match self {
            Map::Q | Map::K | Map::V | Map::Qkv | Map::O => "self_attn",
            Map::Gate | Map::Up | Map::GateUp | Map::Down => "mlp",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Map::ALL.into_iter().find(|map| map.name() == name)
    }
}

/// Δ = scale · B·A (Hu et al. 2021): A `[r, in]`, B `[out, r]`.
#[derive(Clone)]
pub(crate) struct Delta {
    pub(crate) a: Parameter,
    pub(crate) b: Parameter,
    pub(crate) scale: f64,
}

/// y = x·Wᵀ + bias, W `[out, in]` as in Hugging Face's files, plus the LoRA's share.
#[derive(Clone)]
pub(crate) struct Linear {
    pub(crate) map: Map,
    pub(crate) weight: Parameter,
    pub(crate) bias: Option<Parameter>,
    pub(crate) delta: Option<Delta>,
}

/// Dropout on what the LoRA sees. The mask is drawn again from the seed in the backward pass rather than kept.
#[derive(Clone, Copy)]
pub(crate) struct Dropout {
    pub(crate) rate: f32,
    pub(crate) seed: u64,
}

impl Dropout {
    fn apply(self, x: &Tensor) -> Result<Tensor> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let keep = 1.0 / (1.0 - self.rate);
        let (rows, columns) = x.dims2()?;
        let kept = read(x)?
            .iter()
            .map(|x| {
                if rng.random::<f32>() < self.rate {
                    0.0
                } else {
                    x * keep
                }
            })
            .collect();
        matrix(kept, rows, columns)
    }
}

impl Linear {
    /// W in f32.
    pub(crate) fn weights(&self) -> Result<Tensor> {
        self.weight.tensor.to_dtype(DType::F32)
    }

    /// Returns y and, with a LoRA, scale·x·Aᵀ, which the backward pass wants.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        dropout: Option<Dropout>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let y = x.matmul(&self.weights()?.t()?)?;
        if let Some(bias) = &self.bias {
            let bias = read(&bias.tensor)?;
            edit(&y, |y| {
                for row in y.chunks_exact_mut(bias.len()) {
                    row.iter_mut().zip(bias.iter()).for_each(|(y, b)| *y += b);
                }
            })?;
        }
        let Some(delta) = &self.delta else {
            return Ok((y, None));
        };
        let dropped = dropout.map(|dropout| dropout.apply(x)).transpose()?;
        let inner = dropped.as_ref().unwrap_or(x).matmul(&delta.a.tensor.t()?)?;
        edit(&inner, |inner| {
            inner.iter_mut().for_each(|v| *v *= delta.scale as f32)
        })?;
        add(&y, &inner.matmul(&delta.b.tensor.t()?)?)?;
        Ok((y, Some(inner)))
    }

    /// Adds the weights' gradients to `gradients` and returns the input's.
    pub(crate) fn backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        inner: Option<&Tensor>,
        dropout: Option<Dropout>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        if let Some(slot) = self.weight.slot {
            gradients.add(slot, dy.t()?.matmul(x)?)?;
        }
        if let Some((bias, slot)) = self.bias.as_ref().and_then(|bias| Some((bias, bias.slot?))) {
            let mut sum = vec![0.0; bias.tensor.elem_count()];
            for row in read(dy)?.chunks_exact(sum.len()) {
                sum.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy);
            }
            gradients.add(slot, Tensor::new(sum, &Device::Cpu)?)?;
        }
        let dx = dy.matmul(&self.weights()?)?;
        let (Some(delta), Some(inner)) = (&self.delta, inner) else {
            return Ok(dx);
        };
        if let Some(slot) = delta.b.slot {
            gradients.add(slot, dy.t()?.matmul(inner)?)?;
        }
        let dinner = dy.matmul(&delta.b.tensor)?;
        edit(&dinner, |inner| {
            inner.iter_mut().for_each(|v| *v *= delta.scale as f32)
        })?;
        let seen = dropout.map(|dropout| dropout.apply(x)).transpose()?;
        if let Some(slot) = delta.a.slot {
            gradients.add(slot, dinner.t()?.matmul(seen.as_ref().unwrap_or(x))?)?;
        }
        let through = dinner.matmul(&delta.a.tensor)?;
        // The same mask again: dropout is its own transpose.
        let through = dropout
            .map(|dropout| dropout.apply(&through))
            .transpose()?
            .unwrap_or(through);
        add(&dx, &through)?;
        Ok(dx)
    }
}
