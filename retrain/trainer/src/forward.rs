//! One forward and backward pass over a pack of sequences, by hand.
//!
//! Rows of every matrix are the pack's tokens. The backward pass walks the layers from the last to the first, each from
//! what its forward pass kept (`Kept`); gradients go to the slots of the weights that have one.

use candle_core::{Device, Result, Tensor};

use crate::batch::Pack;
use crate::linear::{Dropout, Gradients, Parameter};
use crate::llama::{DOWN, GATE, K, Layer, Llama, O, Q, UP, V};
use crate::ops::attention::{self, Sequence};
use crate::ops::rope::Rotation;
use crate::ops::slice::{add, edit, matrix, read};
use crate::ops::{cross_entropy, rms_norm, swiglu};

/// Logits held at a time: 16 MiB, so that neither a long answer nor a large vocabulary fills the memory.
const LOGITS: usize = 4 << 20;

/// What a layer's backward pass wants.
pub(crate) struct Kept {
    input: Tensor,
    input_inverse: Vec<f32>,
    normed: Tensor,
    pub(crate) sequences: Vec<Sequence>,
    mixed: Tensor,
    middle: Tensor,
    middle_inverse: Vec<f32>,
    middle_normed: Tensor,
    gate: Tensor,
    up: Tensor,
    gated: Tensor,
    /// What the LoRAs keep, in the order of the layer's linear maps.
    inner: [Option<Tensor>; 7],
}

/// A model reading one pack.
pub(crate) struct Reader<'a> {
    pub(crate) model: &'a Llama,
    pub(crate) lengths: &'a [usize],
    pub(crate) rotation: Rotation,
    /// Dropout of this pack; its seed differs from step to step and pack to pack.
    pub(crate) dropout: Option<Dropout>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(model: &'a Llama, lengths: &'a [usize], dropout: Option<Dropout>) -> Self {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let rotation = Rotation::new(&model.config.inverse_frequencies(), 0, longest);
        Reader {
            model,
            lengths,
            rotation,
            dropout,
        }
    }

    fn norm(&self, x: &Tensor, weight: &Parameter) -> Result<(Tensor, Vec<f32>)> {
        norm(self.model, x, weight)
    }

    fn norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        weight: &Parameter,
        inverse: &[f32],
        dx: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let (dy, x, w) = (read(dy)?, read(x)?, read(&weight.tensor)?);
        let mut dw = weight.slot.map(|_| vec![0.0; w.len()]);
        edit(dx, |dx| {
            rms_norm::backward(&dy, &x, &w, inverse, dx, dw.as_deref_mut())
        })?;
        if let (Some(slot), Some(dw)) = (weight.slot, dw) {
            gradients.add(slot, Tensor::new(dw, &Device::Cpu)?)?;
        }
        Ok(())
    }

    fn dropout(&self, layer: usize, linear: usize) -> Option<Dropout> {
        self.dropout.map(|dropout| Dropout {
            seed: mix(dropout.seed, (layer * 7 + linear) as u64),
            ..dropout
        })
    }

    /// x `[rows, hidden]` through one layer.
    pub(crate) fn layer(&self, n: usize, layer: &Layer, x: Tensor) -> Result<(Tensor, Kept)> {
        let mut inner: [Option<Tensor>; 7] = Default::default();
        let mut linear = |i: usize, x: &Tensor| -> Result<Tensor> {
            let (y, kept) = layer.linear[i].forward(x, self.dropout(n, i))?;
            inner[i] = kept;
            Ok(y)
        };
        let (normed, input_inverse) = self.norm(&x, &layer.input_norm)?;
        let (q, k, v) = (
            linear(Q, &normed)?,
            linear(K, &normed)?,
            linear(V, &normed)?,
        );
        let (mixed, sequences) = attention::forward(
            [&q, &k, &v],
            self.lengths,
            self.model.config.heads(),
            &self.rotation,
        )?;
        let middle = linear(O, &mixed)?;
        add(&middle, &x)?;
        let (middle_normed, middle_inverse) = self.norm(&middle, &layer.attention_norm)?;
        let (gate, up) = (linear(GATE, &middle_normed)?, linear(UP, &middle_normed)?);
        let (rows, width) = gate.dims2()?;
        let gated = matrix(swiglu::forward(&read(&gate)?, &read(&up)?), rows, width)?;
        let y = linear(DOWN, &gated)?;
        add(&y, &middle)?;
        let kept = Kept {
            input: x,
            input_inverse,
            normed,
            sequences,
            mixed,
            middle,
            middle_inverse,
            middle_normed,
            gate,
            up,
            gated,
            inner,
        };
        Ok((y, kept))
    }

    /// The gradient by a layer's output becomes that by its input.
    fn layer_backward(
        &self,
        n: usize,
        layer: &Layer,
        dy: Tensor,
        kept: &Kept,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let linear = |i: usize, dy: &Tensor, x: &Tensor, gradients: &mut Gradients| {
            layer.linear[i].backward(dy, x, kept.inner[i].as_ref(), self.dropout(n, i), gradients)
        };
        let dgated = linear(DOWN, &dy, &kept.gated, gradients)?;
        let (rows, width) = dgated.dims2()?;
        let (dgate, dup) = swiglu::backward(&read(&dgated)?, &read(&kept.gate)?, &read(&kept.up)?);
        let dnormed = linear(
            GATE,
            &matrix(dgate, rows, width)?,
            &kept.middle_normed,
            gradients,
        )?;
        add(
            &dnormed,
            &linear(
                UP,
                &matrix(dup, rows, width)?,
                &kept.middle_normed,
                gradients,
            )?,
        )?;
        // From here on `dx` is the gradient by the residual stream.
        let dx = dy;
        let inverse = &kept.middle_inverse;
        self.norm_backward(
            &dnormed,
            &kept.middle,
            &layer.attention_norm,
            inverse,
            &dx,
            gradients,
        )?;
        let dmixed = linear(O, &dx, &kept.mixed, gradients)?;
        let [dq, dk, dv] = attention::backward(
            &dmixed,
            &kept.sequences,
            self.model.config.heads(),
            &self.rotation,
        )?;
        let dnormed = linear(Q, &dq, &kept.normed, gradients)?;
        add(&dnormed, &linear(K, &dk, &kept.normed, gradients)?)?;
        add(&dnormed, &linear(V, &dv, &kept.normed, gradients)?)?;
        let inverse = &kept.input_inverse;
        self.norm_backward(
            &dnormed,
            &kept.input,
            &layer.input_norm,
            inverse,
            &dx,
            gradients,
        )?;
        Ok(dx)
    }
}

pub(crate) fn norm(model: &Llama, x: &Tensor, weight: &Parameter) -> Result<(Tensor, Vec<f32>)> {
    let (rows, width) = x.dims2()?;
    let (y, inverse) =
        rms_norm::forward(&read(x)?, &read(&weight.tensor)?, model.config.rms_norm_eps);
    Ok((matrix(y, rows, width)?, inverse))
}

/// The tokens' rows of the embedding.
pub(crate) fn embed(model: &Llama, tokens: &[u32]) -> Result<Tensor> {
    let width = model.config.hidden_size;
    let table = read(&model.embedding.tensor)?;
    let mut rows = Vec::with_capacity(tokens.len() * width);
    for &token in tokens {
        rows.extend_from_slice(&table[token as usize * width..(token as usize + 1) * width]);
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

/// Σ weight·nll over the pack's supervised tokens.
pub(crate) fn loss(model: &Llama, pack: &Pack) -> Result<f64> {
    let reader = Reader::new(model, &pack.lengths, None);
    let mut x = embed(model, &pack.tokens)?;
    for (n, layer) in model.layers.iter().enumerate() {
        x = reader.layer(n, layer, x)?.0;
    }
    let (y, _) = norm(model, &select(&x, &pack.rows)?, &model.norm)?;
    let (loss, _) = head(model, &y, pack, 1.0, None)?;
    Ok(loss)
}

/// Σ weight·nll; adds the gradients of `scale` times it.
pub(crate) fn loss_and_gradients(
    model: &Llama,
    pack: &Pack,
    scale: f32,
    dropout: Option<Dropout>,
    gradients: &mut Gradients,
) -> Result<f64> {
    let reader = Reader::new(model, &pack.lengths, dropout);
    let mut x = embed(model, &pack.tokens)?;
    let mut kept = Vec::with_capacity(model.layers.len());
    for (n, layer) in model.layers.iter().enumerate() {
        let (y, one) = reader.layer(n, layer, x)?;
        kept.push(one);
        x = y;
    }
    let last = select(&x, &pack.rows)?;
    let (y, inverse) = norm(model, &last, &model.norm)?;
    let (loss, dy) = head(model, &y, pack, scale, Some(gradients))?;
    let mut dx = x.zeros_like()?;
    if let Some(dy) = dy {
        let dlast = last.zeros_like()?;
        reader.norm_backward(&dy, &last, &model.norm, &inverse, &dlast, gradients)?;
        let (width, dlast) = (last.dims2()?.1, read(&dlast)?);
        edit(&dx, |dx| {
            for (&row, from) in pack.rows.iter().zip(dlast.chunks_exact(width)) {
                dx[row * width..(row + 1) * width].copy_from_slice(from);
            }
        })?;
    }
    for ((n, layer), kept) in model.layers.iter().enumerate().zip(&kept).rev() {
        dx = reader.layer_backward(n, layer, dx, kept, gradients)?;
    }
    if let Some(slot) = model.embedding.slot {
        let width = model.config.hidden_size;
        let dx = read(&dx)?;
        gradients.edit(slot, model.embedding.tensor.dims(), |table| {
            for (&token, from) in pack.tokens.iter().zip(dx.chunks_exact(width)) {
                let row = &mut table[token as usize * width..(token as usize + 1) * width];
                row.iter_mut().zip(from).for_each(|(a, b)| *a += b);
            }
        })?;
    }
    Ok(loss)
}

/// The output head and the loss at the supervised rows y, in portions; with `gradients`, also the gradient by y.
fn head(
    model: &Llama,
    y: &Tensor,
    pack: &Pack,
    scale: f32,
    mut gradients: Option<&mut Gradients>,
) -> Result<(f64, Option<Tensor>)> {
    let weight = model.head.as_ref().unwrap_or(&model.embedding);
    let vocabulary = model.config.vocab_size;
    let (rows, width) = y.dims2()?;
    let portion = (LOGITS / vocabulary).max(1);
    let mut total = 0.0;
    let mut dy = Vec::with_capacity(if gradients.is_some() { rows * width } else { 0 });
    for start in (0..rows).step_by(portion) {
        let end = (start + portion).min(rows);
        let y = y.narrow(0, start, end - start)?;
        let scaled: Vec<f32> = pack.weights[start..end].iter().map(|w| w * scale).collect();
        let logits = y.matmul(&weight.tensor.t()?)?;
        edit(&logits, |logits| {
            total += cross_entropy::forward_and_gradient(
                logits,
                vocabulary,
                &pack.targets[start..end],
                &scaled,
            );
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
    Ok((total / f64::from(scale), dy))
}

/// A seed of its own for every place (SplitMix64's finaliser).
pub(crate) fn mix(seed: u64, place: u64) -> u64 {
    let mut z = seed.wrapping_add(place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
