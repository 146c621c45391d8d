//! One layer, forward and backward, whatever its family: each of its steps is there if the layer has the weights for it.
//!
//! Rows of every matrix are tokens. How tokens attend to each other is the caller's: to all before them in their sequence, or to
//! what a cache holds.

use candle_core::{Device, Result, Tensor};

use crate::config::ModelConfig;
use crate::linear::{Dropout, Gradients, Linear, Map, Parameter};
use crate::model::Layer;
use crate::ops::slice::{add, edit, matrix, read};
use crate::ops::{gated, rms_norm};

/// What the backward pass wants of a norm: its input, and each row's 1/rms.
pub(crate) struct Normed {
    input: Tensor,
    inverse: Vec<f32>,
}

impl Normed {
    /// The norm's result, once more.
    fn again(&self, config: &ModelConfig, weight: &Parameter) -> Result<Tensor> {
        let (rows, width) = self.input.dims2()?;
        let weight = offset(config, weight)?;
        let y = rms_norm::again(&read(&self.input)?, &weight, &self.inverse);
        matrix(y, rows, width)
    }
}

/// What a layer's backward pass wants; `S` is what its attention kept. What a few operations make again is not kept: memory is what a long
/// sequence runs out of.
pub(crate) struct Kept<S> {
    input: Normed,
    heads: Option<[Normed; 2]>,
    pub(crate) attended: S,
    mixed: Tensor,
    middle: Normed,
    gate: Tensor,
    up: Tensor,
    results: Option<[Normed; 2]>,
    /// What the LoRAs keep, in the order of the layer's linear maps.
    inner: Vec<Option<Tensor>>,
}

/// A layer of a model; `dropout` is what its linear maps' LoRAs drop.
pub(crate) struct Block<'a, D> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) layer: &'a Layer,
    pub(crate) dropout: D,
}

impl<D: Fn(Map) -> Option<Dropout>> Block<'_, D> {
    /// x `[rows, hidden]` through the layer; `attend` mixes `[q, k, v]`.
    pub(crate) fn forward<S>(
        &self,
        x: Tensor,
        attend: impl FnOnce([&Tensor; 3]) -> Result<(Tensor, S)>,
    ) -> Result<(Tensor, Kept<S>)> {
        let (config, layer) = (self.config, self.layer);
        let mut inner = Vec::new();
        let mut linear = |linear: &Linear, x: &Tensor| -> Result<Tensor> {
            let (y, kept) = linear.forward(x, (self.dropout)(linear.map))?;
            inner.push(kept);
            Ok(y)
        };
        let (normed, input) = norm(config, &x, &layer.input_norm)?;
        let (q, k) = (config.query_width(), config.key_width());
        let attention_in = layer.attention_in.iter();
        let parts: Result<Vec<_>> = attention_in.map(|map| linear(map, &normed)).collect();
        let [mut q, mut k, v] = parted(parts?, [q, k, k])?;
        let heads = match &layer.head_norms {
            None => None,
            Some([of_q, of_k]) => {
                let kept_q;
                let kept_k;
                (q, kept_q) = norm(config, &q, of_q)?;
                (k, kept_k) = norm(config, &k, of_k)?;
                Some([kept_q, kept_k])
            }
        };
        let (mixed, attended) = attend([&q, &k, &v])?;
        let mut middle = linear(&layer.attention_out, &mixed)?;
        let mut results = None;
        if let Some([of_attention, _]) = &layer.result_norms {
            let kept;
            (middle, kept) = norm(config, &middle, of_attention)?;
            results = Some(kept);
        }
        add(&middle, &x)?;
        let (middle_normed, of_middle) = norm(config, &middle, &layer.middle_norm)?;
        let gate_up = layer.gate_up.iter();
        let parts: Result<Vec<_>> = gate_up.map(|map| linear(map, &middle_normed)).collect();
        let [gate, up] = parted(parts?, [config.intermediate_size; 2])?;
        let gated = gated(config, &gate, &up)?;
        let mut y = linear(&layer.down, &gated)?;
        let mut all_results = None;
        if let (Some([_, of_block]), Some(first)) = (&layer.result_norms, results) {
            let kept;
            (y, kept) = norm(config, &y, of_block)?;
            all_results = Some([first, kept]);
        }
        add(&y, &middle)?;
        let kept = Kept {
            input,
            heads,
            attended,
            mixed,
            middle: of_middle,
            gate,
            up,
            results: all_results,
            inner,
        };
        Ok((y, kept))
    }

    /// The gradient by the layer's output becomes that by its input; `attend_back` turns the gradient by what attention mixed into those
    /// by q, k and v.
    pub(crate) fn backward<S>(
        &self,
        dy: Tensor,
        kept: &Kept<S>,
        attend_back: impl FnOnce(&Tensor, &S) -> Result<[Tensor; 3]>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let (config, layer) = (self.config, self.layer);
        let mut inner = kept.inner.iter().rev();
        let mut linear = |linear: &Linear, dy: &Tensor, x: &Tensor, gradients: &mut Gradients| {
            let inner = inner.next().and_then(Option::as_ref);
            linear.backward(dy, x, inner, (self.dropout)(linear.map), gradients)
        };
        // By the result of the block, which a norm may lie over.
        let past_norm = |which: usize, dy: &Tensor, gradients: &mut Gradients| {
            let (Some(norms), Some(kept)) = (&layer.result_norms, &kept.results) else {
                return Ok(dy.clone());
            };
            let dx = dy.zeros_like()?;
            norm_backward(config, dy, &kept[which], &norms[which], &dx, gradients)?;
            Ok::<_, candle_core::Error>(dx)
        };
        let dblock = past_norm(1, &dy, gradients)?;
        let gated = gated(config, &kept.gate, &kept.up)?;
        let dgated = linear(&layer.down, &dblock, &gated, gradients)?;
        drop(gated);
        let (rows, width) = dgated.dims2()?;
        let (gate, up) = (read(&kept.gate)?, read(&kept.up)?);
        let (dgate, dup) = gated::backward(config.activation, &read(&dgated)?, &gate, &up);
        let parts = vec![matrix(dgate, rows, width)?, matrix(dup, rows, width)?];
        let norm = &layer.middle_norm;
        let normed = kept.middle.again(config, norm)?;
        let dnormed = summed(&layer.gate_up, parts, |map, part| {
            linear(map, part, &normed, gradients)
        })?;
        // From here on `dx` is the gradient by the residual stream.
        let dx = dy;
        norm_backward(config, &dnormed, &kept.middle, norm, &dx, gradients)?;
        let dresult = past_norm(0, &dx, gradients)?;
        let dmixed = linear(&layer.attention_out, &dresult, &kept.mixed, gradients)?;
        let [mut dq, mut dk, dv] = attend_back(&dmixed, &kept.attended)?;
        if let (Some([of_q, of_k]), Some([kept_q, kept_k])) = (&layer.head_norms, &kept.heads) {
            let (over_q, over_k) = (dq.zeros_like()?, dk.zeros_like()?);
            norm_backward(config, &dq, kept_q, of_q, &over_q, gradients)?;
            norm_backward(config, &dk, kept_k, of_k, &over_k, gradients)?;
            (dq, dk) = (over_q, over_k);
        }
        let norm = &layer.input_norm;
        let normed = kept.input.again(config, norm)?;
        let dnormed = summed(&layer.attention_in, vec![dq, dk, dv], |map, part| {
            linear(map, part, &normed, gradients)
        })?;
        norm_backward(config, &dnormed, &kept.input, norm, &dx, gradients)?;
        Ok(dx)
    }
}

fn gated(config: &ModelConfig, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (rows, width) = gate.dims2()?;
    let y = gated::forward(config.activation, &read(gate)?, &read(up)?);
    matrix(y, rows, width)
}

/// The gradient by the one input of some linear maps: what `backward` makes of each of their outputs' gradients, the last map first.
fn summed(
    maps: &[Linear],
    parts: Vec<Tensor>,
    mut backward: impl FnMut(&Linear, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let parts = joined(parts, maps.len())?;
    let mut pairs = maps.iter().zip(&parts).rev();
    let Some((map, part)) = pairs.next() else {
        candle_core::bail!("a layer without linear maps")
    };
    let dx = backward(map, part)?;
    for (map, part) in pairs {
        add(&dx, &backward(map, part)?)?;
    }
    Ok(dx)
}

/// Rows of the weight's length, each by itself: whole rows of x, or a head at a time.
pub(crate) fn norm(
    config: &ModelConfig,
    x: &Tensor,
    weight: &Parameter,
) -> Result<(Tensor, Normed)> {
    let (rows, width) = x.dims2()?;
    let weight = offset(config, weight)?;
    let (y, inverse) = rms_norm::forward(&read(x)?, &weight, config.rms_norm_eps);
    let kept = Normed {
        input: x.clone(),
        inverse,
    };
    Ok((matrix(y, rows, width)?, kept))
}

/// Adds the gradient by the norm's input to `dx`.
pub(crate) fn norm_backward(
    config: &ModelConfig,
    dy: &Tensor,
    kept: &Normed,
    weight: &Parameter,
    dx: &Tensor,
    gradients: &mut Gradients,
) -> Result<()> {
    let (dy, x, w) = (read(dy)?, read(&kept.input)?, offset(config, weight)?);
    let mut dw = weight.slot.map(|_| vec![0.0; w.len()]);
    edit(dx, |dx| {
        rms_norm::backward(&dy, &x, &w, &kept.inverse, dx, dw.as_deref_mut())
    })?;
    if let (Some(slot), Some(dw)) = (weight.slot, dw) {
        gradients.add(slot, Tensor::new(dw, &Device::Cpu)?)?;
    }
    Ok(())
}

fn offset(config: &ModelConfig, weight: &Parameter) -> Result<Vec<f32>> {
    let weight = read(&weight.tensor)?;
    Ok(weight.iter().map(|w| w + config.norm_offset).collect())
}

/// The columns of one fused result; results that are apart already stay so.
fn parted<const N: usize>(mut parts: Vec<Tensor>, widths: [usize; N]) -> Result<[Tensor; N]> {
    if let [fused] = &parts[..] {
        let (rows, all) = fused.dims2()?;
        let numbers = read(fused)?;
        let mut start = 0;
        let mut split = Vec::with_capacity(N);
        for width in widths {
            let mut part = Vec::with_capacity(rows * width);
            for row in numbers.chunks_exact(all) {
                part.extend_from_slice(&row[start..start + width]);
            }
            split.push(matrix(part, rows, width)?);
            start += width;
        }
        drop(numbers);
        parts = split;
    }
    parts.try_into().or_else(|parts: Vec<Tensor>| {
        candle_core::bail!("{} parts where {N} are expected", parts.len())
    })
}

/// The other way: columns beside each other where there is one linear map for all.
fn joined(parts: Vec<Tensor>, maps: usize) -> Result<Vec<Tensor>> {
    if maps == parts.len() {
        return Ok(parts);
    }
    Ok(vec![Tensor::cat(&parts, 1)?])
}
