//! The passes over a pack of sequences, by hand.
//!
//! Rows of every matrix are the pack's tokens. The backward pass walks the layers from the last to the first, each from
//! what its forward pass kept (`Kept`); gradients go to the slots of the weights that have one.

use candle_core::{Result, Tensor};

use crate::batch::Pack;
use crate::block::{Block, Kept, norm, norm_backward};
use crate::linear::{Dropout, Gradients, Map};
use crate::model::{Layer, Model};
use crate::ops::attention::{self, Sequence};
use crate::ops::cross_entropy;
use crate::ops::math::tanh;
use crate::ops::rope::Rotation;
use crate::ops::slice::{edit, matrix, read};

/// Logits held at a time: 16 MiB, so that neither a long answer nor a large vocabulary fills the memory.
const LOGITS: usize = 4 << 20;

/// A model reading one pack.
pub(crate) struct Reader<'a> {
    model: &'a Model,
    lengths: &'a [usize],
    rotations: Rotations,
    /// Dropout of this pack; its seed differs from step to step and pack to pack.
    dropout: Option<Dropout>,
}

/// A model's rotary embeddings at some positions, and none at all.
pub(crate) struct Rotations(Vec<Rotation>);

impl Rotations {
    /// For the positions `start .. start + length`.
    pub(crate) fn new(model: &Model, start: usize, length: usize) -> Self {
        let ropes = model.config.ropes.iter().map(Some).chain([None]);
        Rotations(
            ropes
                .map(|rope| Rotation::new(rope, start, length))
                .collect(),
        )
    }

    pub(crate) fn of(&self, layer: &Layer) -> &Rotation {
        &self.0[layer.kind.rope.unwrap_or(self.0.len() - 1)]
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(model: &'a Model, lengths: &'a [usize], dropout: Option<Dropout>) -> Self {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        Reader {
            model,
            lengths,
            rotations: Rotations::new(model, 0, longest),
            dropout,
        }
    }

    fn block(&self, n: usize) -> Block<'a, impl Fn(Map) -> Option<Dropout>> {
        let dropout = self.dropout;
        let place = move |map: Map| (n * Map::ALL.len() + map as usize) as u64;
        Block {
            config: &self.model.config,
            layer: &self.model.layers[n],
            dropout: move |map| {
                dropout.map(|dropout| Dropout {
                    seed: mix(dropout.seed, place(map)),
                    ..dropout
                })
            },
        }
    }

    /// x `[rows, hidden]` through one layer.
    pub(crate) fn layer(&self, n: usize, x: Tensor) -> Result<(Tensor, Kept<Vec<Sequence>>)> {
        let block = self.block(n);
        let of = self.model.config.attention(block.layer.kind);
        let rotation = self.rotations.of(block.layer);
        block.forward(x, |qkv| attention::forward(qkv, self.lengths, of, rotation))
    }

    /// The gradient by a layer's output becomes that by its input.
    fn layer_backward(
        &self,
        n: usize,
        dy: Tensor,
        kept: &Kept<Vec<Sequence>>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let block = self.block(n);
        let of = self.model.config.attention(block.layer.kind);
        let rotation = self.rotations.of(block.layer);
        let back =
            |dmixed: &Tensor, kept: &Vec<Sequence>| attention::backward(dmixed, kept, of, rotation);
        block.backward(dy, kept, back, gradients)
    }
}

/// The tokens' rows of the embedding.
pub(crate) fn embed(model: &Model, tokens: &[u32]) -> Result<Tensor> {
    let width = model.config.hidden_size;
    let table = read(&model.embedding.tensor)?;
    let mut rows = Vec::with_capacity(tokens.len() * width);
    for &token in tokens {
        let row = &table[token as usize * width..(token as usize + 1) * width];
        rows.extend(row.iter().map(|x| x * model.config.embedding_scale));
    }
    matrix(rows, tokens.len(), width)
}

/// Some rows of x, one after another.
pub(crate) fn select(x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let width = x.dims2()?.1;
    let x = read(x)?;
    let mut selected = Vec::with_capacity(rows.len() * width);
    for &row in rows {
        selected.extend_from_slice(&x[row * width..(row + 1) * width]);
    }
    matrix(selected, rows.len(), width)
}

/// Σ weight·nll over each sequence's supervised tokens.
pub(crate) fn losses(model: &Model, pack: &Pack) -> Result<Vec<f64>> {
    let reader = Reader::new(model, &pack.lengths, None);
    let mut x = embed(model, &pack.tokens)?;
    for n in 0..model.layers.len() {
        x = reader.layer(n, x)?.0;
    }
    let (y, _) = norm(&model.config, &select(&x, &pack.rows)?, &model.norm)?;
    let (losses, _) = head(model, &y, pack, 1.0, None)?;
    let mut losses = losses.into_iter();
    let mut next = |count: &usize| losses.by_ref().take(*count).sum();
    Ok(pack.counts.iter().map(&mut next).collect())
}

/// How a pack's gradients are computed.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    /// The factor of the loss.
    pub(crate) scale: f32,
    pub(crate) dropout: Option<Dropout>,
    /// A layer keeps its input alone, and is computed again in the backward pass (Chen et al. 2016).
    pub(crate) recompute: bool,
}

/// What a layer leaves for the backward pass.
enum Held {
    All(Box<Kept<Vec<Sequence>>>),
    Input(Tensor),
}

/// Σ weight·nll; adds the gradients of `way.scale` times it.
pub(crate) fn loss_and_gradients(
    model: &Model,
    pack: &Pack,
    way: Way,
    gradients: &mut Gradients,
) -> Result<f64> {
    let reader = Reader::new(model, &pack.lengths, way.dropout);
    let mut x = embed(model, &pack.tokens)?;
    let mut held = Vec::with_capacity(model.layers.len());
    for n in 0..model.layers.len() {
        let input = way.recompute.then(|| x.clone());
        let (y, kept) = reader.layer(n, x)?;
        held.push(match input {
            Some(input) => Held::Input(input),
            None => Held::All(Box::new(kept)),
        });
        x = y;
    }
    let last = select(&x, &pack.rows)?;
    let (y, normed) = norm(&model.config, &last, &model.norm)?;
    let (losses, dy) = head(model, &y, pack, way.scale, Some(gradients))?;
    let mut dx = x.zeros_like()?;
    if let Some(dy) = dy {
        let dlast = last.zeros_like()?;
        norm_backward(&model.config, &dy, &normed, &model.norm, &dlast, gradients)?;
        let (width, dlast) = (last.dims2()?.1, read(&dlast)?);
        edit(&dx, |dx| {
            for (&row, from) in pack.rows.iter().zip(dlast.chunks_exact(width)) {
                dx[row * width..(row + 1) * width].copy_from_slice(from);
            }
        })?;
    }
    // What a layer kept goes with it.
    for (n, held) in held.into_iter().enumerate().rev() {
        let kept = match held {
            Held::All(kept) => kept,
            Held::Input(x) => Box::new(reader.layer(n, x)?.1),
        };
        dx = reader.layer_backward(n, dx, &kept, gradients)?;
    }
    if let Some(slot) = model.embedding.slot {
        let width = model.config.hidden_size;
        let dx = read(&dx)?;
        gradients.edit(slot, model.embedding.tensor.dims(), |table| {
            for (&token, from) in pack.tokens.iter().zip(dx.chunks_exact(width)) {
                let row = &mut table[token as usize * width..(token as usize + 1) * width];
                let scale = model.config.embedding_scale;
                row.iter_mut().zip(from).for_each(|(a, b)| *a += b * scale);
            }
        })?;
    }
    Ok(losses.iter().sum::<f64>() / f64::from(way.scale))
}

/// The output head and `scale`·weight·nll at each supervised row of y, in portions; with `gradients`, also the gradient by y.
fn head(
    model: &Model,
    y: &Tensor,
    pack: &Pack,
    scale: f32,
    mut gradients: Option<&mut Gradients>,
) -> Result<(Vec<f64>, Option<Tensor>)> {
    let weight = model.head.as_ref().unwrap_or(&model.embedding);
    let cap = model.config.logit_cap;
    let vocabulary = model.config.vocab_size;
    let (rows, width) = y.dims2()?;
    let portion = (LOGITS / vocabulary).max(1);
    let mut losses = Vec::with_capacity(rows);
    let mut dy = Vec::with_capacity(if gradients.is_some() { rows * width } else { 0 });
    for start in (0..rows).step_by(portion) {
        let end = (start + portion).min(rows);
        let y = y.narrow(0, start, end - start)?;
        let scaled: Vec<f32> = pack.weights[start..end].iter().map(|w| w * scale).collect();
        let logits = y.matmul(&weight.tensor.t()?)?;
        // The cap's slope, 1 − tanh², where there is a cap.
        let mut slopes = Vec::new();
        edit(&logits, |logits| {
            if let Some(cap) = cap {
                slopes.reserve_exact(logits.len());
                for value in logits.iter_mut() {
                    let tanh = tanh(*value / cap);
                    *value = cap * tanh;
                    slopes.push(1.0 - tanh * tanh);
                }
            }
            losses.extend(cross_entropy::forward_and_gradient(
                logits,
                vocabulary,
                &pack.targets[start..end],
                &scaled,
            ));
            logits
                .iter_mut()
                .zip(&slopes)
                .for_each(|(d, slope)| *d *= slope);
        })?;
        if let Some(gradients) = gradients.as_deref_mut() {
            if let Some(slot) = weight.slot {
                gradients.add(slot, logits.t()?.matmul(&y)?)?;
            }
            dy.extend_from_slice(&read(&logits.matmul(&weight.tensor)?)?);
        }
    }
    let dy = if gradients.is_some() {
        Some(matrix(dy, rows, width)?)
    } else {
        None
    };
    Ok((losses, dy))
}

/// A seed of its own for every place (SplitMix64's finaliser).
pub(crate) fn mix(seed: u64, place: u64) -> u64 {
    let mut z = seed.wrapping_add(place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
