//! Causal self-attention of several sequences that lie one after another in the rows, nothing padded.
//!
//! Per sequence the heads are gathered (and queries and keys turned to their positions), so that the query heads that
//! share a key head (Ainslie et al. 2023) are one taller matrix: all heads of a sequence are one batched product, and
//! the shared head's gradient sums itself in the product's inner dimension.

use candle_core::{Result, Tensor};

use super::math::{dot, exp, max, scale, sum, tanh};
use super::rope::Rotation;
use super::slice::{edit, matrix, read};

/// How a layer attends.
#[derive(Clone, Copy)]
pub(crate) struct Attention {
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) dim: usize,
    /// The factor of queries' products with keys.
    pub(crate) scale: f32,
    /// Scores become cap·tanh(score / cap), as Gemma 2 has it.
    pub(crate) cap: Option<f32>,
    /// Keys that a query sees, itself included; None: all before it.
    pub(crate) window: Option<usize>,
}

impl Attention {
    fn group(&self) -> usize {
        self.queries / self.keys
    }

    /// The first key that the query at a position sees.
    pub(crate) fn first(&self, position: usize) -> usize {
        self.window
            .map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Products become scores.
    pub(crate) fn score(&self, products: &mut [f32]) {
        scale(products, self.scale);
        if let Some(cap) = self.cap {
            for value in products {
                *value = cap * tanh(*value / cap);
            }
        }
    }
}

/// What the backward pass wants of one sequence of `t` tokens: q `[keys, group·t, dim]`, k and v `[keys, t, dim]`,
/// q and k turned, and the probabilities `[keys, group·t, t]`.
pub(crate) struct Sequence {
    q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
    probabilities: Tensor,
}

#[derive(Clone, Copy)]
enum Turn {
    Forward,
    Back,
    Not,
}

/// `[t, heads·dim]` to `[heads, t, dim]`.
fn gather(from: &[f32], heads: usize, dim: usize, rotation: &Rotation, turn: Turn) -> Vec<f32> {
    let t = from.len() / (heads * dim);
    let mut to = vec![0.0; from.len()];
    for (position, row) in from.chunks_exact(heads * dim).enumerate() {
        for (head, part) in row.chunks_exact(dim).enumerate() {
            let at = (head * t + position) * dim;
            place(part, &mut to[at..at + dim], rotation, position, turn);
        }
    }
    to
}

/// `[heads, t, dim]` to `[t, heads·dim]`.
fn scatter(
    from: &[f32],
    to: &mut [f32],
    heads: usize,
    dim: usize,
    rotation: &Rotation,
    turn: Turn,
) {
    let t = from.len() / (heads * dim);
    for (position, row) in to.chunks_exact_mut(heads * dim).enumerate() {
        for (head, part) in row.chunks_exact_mut(dim).enumerate() {
            let at = (head * t + position) * dim;
            place(&from[at..at + dim], part, rotation, position, turn);
        }
    }
}

#[inline]
fn place(from: &[f32], to: &mut [f32], rotation: &Rotation, position: usize, turn: Turn) {
    match turn {
        Turn::Forward => rotation.turn(from, to, position),
        Turn::Back => rotation.turn_back(from, to, position),
        Turn::Not => to.copy_from_slice(from),
    }
}

/// Products `[rows, t]` become probabilities; row r belongs to position r mod t and sees no key after itself.
fn causal_softmax(products: &mut [f32], t: usize, of: Attention) {
    for (r, row) in products.chunks_exact_mut(t).enumerate() {
        let position = r % t;
        let (before, hidden) = row.split_at_mut(position + 1);
        let (passed, seen) = before.split_at_mut(of.first(position));
        // The scale goes with the exponent, unless something comes between.
        let by = match of.cap {
            Some(_) => {
                of.score(seen);
                1.0
            }
            None => of.scale,
        };
        let top = max(seen);
        for value in seen.iter_mut() {
            *value = exp((*value - top) * by);
        }
        let mass = sum(seen);
        scale(seen, 1.0 / mass);
        passed.fill(0.0);
        hidden.fill(0.0);
    }
}

/// The gradient by the probabilities becomes that by the products: p·(dp − Σ p·dp)·scale, and by the cap's slope where there is one,
/// for which the products are wanted again.
fn causal_softmax_backward(
    dp: &mut [f32],
    p: &[f32],
    products: Option<&[f32]>,
    t: usize,
    of: Attention,
) {
    for (r, (dp, p)) in dp.chunks_exact_mut(t).zip(p.chunks_exact(t)).enumerate() {
        let position = r % t;
        let first = of.first(position);
        let (before, hidden) = dp.split_at_mut(position + 1);
        let (passed, seen) = before.split_at_mut(first);
        let p = &p[first..=position];
        let mean = dot(seen, p);
        for (dp, p) in seen.iter_mut().zip(p) {
            *dp = p * (*dp - mean) * of.scale;
        }
        if let (Some(products), Some(cap)) = (products, of.cap) {
            let products = &products[r * t + first..=r * t + position];
            for (dp, product) in seen.iter_mut().zip(products) {
                let capped = tanh(product * of.scale / cap);
                *dp *= 1.0 - capped * capped;
            }
        }
        passed.fill(0.0);
        hidden.fill(0.0);
    }
}

/// q `[rows, queries·dim]`, k and v `[rows, keys·dim]`, `lengths` the sequences' lengths, which sum to the rows.
pub(crate) fn forward(
    [q, k, v]: [&Tensor; 3],
    lengths: &[usize],
    of: Attention,
    rotation: &Rotation,
) -> Result<(Tensor, Vec<Sequence>)> {
    let (q, k, v) = (read(q)?, read(k)?, read(v)?);
    let (width, key_width) = (of.queries * of.dim, of.keys * of.dim);
    let mut out = vec![0.0; q.len()];
    let mut sequences = Vec::with_capacity(lengths.len());
    let mut start = 0;
    for &t in lengths {
        let rows = start * width..(start + t) * width;
        let key_rows = start * key_width..(start + t) * key_width;
        let q = gather(
            &q[rows.clone()],
            of.queries,
            of.dim,
            rotation,
            Turn::Forward,
        );
        let k = gather(
            &k[key_rows.clone()],
            of.keys,
            of.dim,
            rotation,
            Turn::Forward,
        );
        let v = gather(&v[key_rows], of.keys, of.dim, rotation, Turn::Not);
        let tall = (of.keys, of.group() * t, of.dim);
        let q = matrix(q, of.queries * t, of.dim)?.reshape(tall)?;
        let k = matrix(k, of.keys * t, of.dim)?.reshape((of.keys, t, of.dim))?;
        let v = matrix(v, of.keys * t, of.dim)?.reshape((of.keys, t, of.dim))?;
        let probabilities = q.matmul(&k.t()?)?;
        edit(&probabilities, |scores| causal_softmax(scores, t, of))?;
        let mixed = probabilities.matmul(&v)?;
        scatter(
            &read(&mixed)?,
            &mut out[rows],
            of.queries,
            of.dim,
            rotation,
            Turn::Not,
        );
        sequences.push(Sequence {
            q,
            k,
            v,
            probabilities,
        });
        start += t;
    }
    Ok((matrix(out, start, width)?, sequences))
}

/// The gradients by q, k and v, shaped as they were.
pub(crate) fn backward(
    dout: &Tensor,
    sequences: &[Sequence],
    of: Attention,
    rotation: &Rotation,
) -> Result<[Tensor; 3]> {
    let total = dout.dims2()?.0;
    let dout = read(dout)?;
    let (width, key_width) = (of.queries * of.dim, of.keys * of.dim);
    let mut dq = vec![0.0; total * width];
    let mut dk = vec![0.0; total * key_width];
    let mut dv = vec![0.0; total * key_width];
    let mut start = 0;
    for Sequence {
        q,
        k,
        v,
        probabilities,
    } in sequences
    {
        let t = k.dims3()?.1;
        let rows = start * width..(start + t) * width;
        let key_rows = start * key_width..(start + t) * key_width;
        let dmixed = gather(&dout[rows.clone()], of.queries, of.dim, rotation, Turn::Not);
        let dmixed = matrix(dmixed, of.queries * t, of.dim)?.reshape(q.shape())?;
        let dscores = dmixed.matmul(&v.t()?)?;
        let p = read(probabilities)?;
        let products = of.cap.map(|_| q.matmul(&k.t()?)).transpose()?;
        let products = products.as_ref().map(read).transpose()?;
        edit(&dscores, |dp| {
            causal_softmax_backward(dp, &p, products.as_deref(), t, of)
        })?;
        let turned_dq = dscores.matmul(k)?;
        let turned_dk = dscores.t()?.matmul(q)?;
        let gathered_dv = probabilities.t()?.matmul(&dmixed)?;
        scatter(
            &read(&turned_dq)?,
            &mut dq[rows],
            of.queries,
            of.dim,
            rotation,
            Turn::Back,
        );
        scatter(
            &read(&turned_dk)?,
            &mut dk[key_rows.clone()],
            of.keys,
            of.dim,
            rotation,
            Turn::Back,
        );
        scatter(
            &read(&gathered_dv)?,
            &mut dv[key_rows],
            of.keys,
            of.dim,
            rotation,
            Turn::Not,
        );
        start += t;
    }
    Ok([
        matrix(dq, total, width)?,
        matrix(dk, total, key_width)?,
        matrix(dv, total, key_width)?,
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::config::Rope;
    use crate::test_support::{assert_gradient, random};

    #[test]
    fn gradients_agree_with_finite_differences() {
        let plain = Attention {
            queries: 4,
            keys: 2,
            dim: 4,
            scale: 0.5,
            cap: None,
            window: None,
        };
        let capped = Attention {
            cap: Some(0.7),
            ..plain
        };
        let windowed = Attention {
            window: Some(2),
            scale: 0.3,
            ..plain
        };
        [plain, capped, windowed].into_iter().for_each(agrees);
    }

    fn agrees(of: Attention) {
        let lengths = [3, 1, 4];
        let rope = Rope {
            inverse_frequencies: vec![1.0, 0.2],
            magnitude: 1.0,
        };
        let rotation = Rotation::new(Some(&rope), 0, 4);
        let (q, k, v, dy) = (
            random(1, 8 * 16),
            random(2, 8 * 8),
            random(3, 8 * 8),
            random(4, 8 * 16),
        );
        let run = |q: &[f32], k: &[f32], v: &[f32]| {
            let [q, k, v] =
                [(q, 16), (k, 8), (v, 8)].map(|(x, n)| matrix(x.to_vec(), 8, n).unwrap());
            forward([&q, &k, &v], &lengths, of, &rotation).unwrap()
        };
        let loss = |q: &[f32], k: &[f32], v: &[f32]| -> f64 {
            let y = run(q, k, v).0;
            read(&y)
                .unwrap()
                .iter()
                .zip(&dy)
                .map(|(a, b)| f64::from(a * b))
                .sum()
        };
        let (_, saved) = run(&q, &k, &v);
        let [dq, dk, dv] =
            backward(&matrix(dy.clone(), 8, 16).unwrap(), &saved, of, &rotation).unwrap();
        assert_gradient(&q, &read(&dq).unwrap(), |q| loss(q, &k, &v));
        assert_gradient(&k, &read(&dk).unwrap(), |k| loss(&q, k, &v));
        assert_gradient(&v, &read(&dv).unwrap(), |v| loss(&q, &k, v));
    }
}
