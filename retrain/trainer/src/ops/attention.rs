//! Causal self-attention of several sequences that lie one after another in the rows, nothing padded.
//!
//! Per sequence the heads are gathered (and queries and keys turned to their positions), so that the query heads that
//! share a key head (Ainslie et al. 2023) are one taller matrix: all heads of a sequence are one batched product, and
//! the shared head's gradient sums itself in the product's inner dimension.

use candle_core::{Result, Tensor};

use super::math::{dot, exp, max, scale, sum};
use super::rope::Rotation;
use super::slice::{edit, matrix, read};

#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) dim: usize,
}

impl Heads {
    fn group(&self) -> usize {
        self.queries / self.keys
    }

    fn score_scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
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

/// Scores `[rows, t]` become probabilities; row r belongs to position r mod t and sees the keys up to itself.
fn causal_softmax(scores: &mut [f32], t: usize, by: f32) {
    for (r, row) in scores.chunks_exact_mut(t).enumerate() {
        let (seen, hidden) = row.split_at_mut(r % t + 1);
        let top = max(seen);
        for value in seen.iter_mut() {
            *value = exp((*value - top) * by);
        }
        let mass = sum(seen);
        scale(seen, 1.0 / mass);
        hidden.fill(0.0);
    }
}

/// The gradient by the probabilities becomes that by the scores: p·(dp − Σ p·dp)·scale.
fn causal_softmax_backward(dp: &mut [f32], p: &[f32], t: usize, by: f32) {
    for (r, (dp, p)) in dp.chunks_exact_mut(t).zip(p.chunks_exact(t)).enumerate() {
        let (seen, hidden) = dp.split_at_mut(r % t + 1);
        let p = &p[..seen.len()];
        let mean = dot(seen, p);
        for (dp, p) in seen.iter_mut().zip(p) {
            *dp = p * (*dp - mean) * by;
        }
        hidden.fill(0.0);
    }
}

/// q `[rows, queries·dim]`, k and v `[rows, keys·dim]`, `lengths` the sequences' lengths, which sum to the rows.
pub(crate) fn forward(
    [q, k, v]: [&Tensor; 3],
    lengths: &[usize],
    heads: Heads,
    rotation: &Rotation,
) -> Result<(Tensor, Vec<Sequence>)> {
    let (q, k, v) = (read(q)?, read(k)?, read(v)?);
    let (width, key_width) = (heads.queries * heads.dim, heads.keys * heads.dim);
    let mut out = vec![0.0; q.len()];
    let mut sequences = Vec::with_capacity(lengths.len());
    let mut start = 0;
    for &t in lengths {
        let rows = start * width..(start + t) * width;
        let key_rows = start * key_width..(start + t) * key_width;
        let q = gather(
            &q[rows.clone()],
            heads.queries,
            heads.dim,
            rotation,
            Turn::Forward,
        );
        let k = gather(
            &k[key_rows.clone()],
            heads.keys,
            heads.dim,
            rotation,
            Turn::Forward,
        );
        let v = gather(&v[key_rows], heads.keys, heads.dim, rotation, Turn::Not);
        let tall = (heads.keys, heads.group() * t, heads.dim);
        let q = matrix(q, heads.queries * t, heads.dim)?.reshape(tall)?;
        let k = matrix(k, heads.keys * t, heads.dim)?.reshape((heads.keys, t, heads.dim))?;
        let v = matrix(v, heads.keys * t, heads.dim)?.reshape((heads.keys, t, heads.dim))?;
        let probabilities = q.matmul(&k.t()?)?;
        edit(&probabilities, |scores| {
            causal_softmax(scores, t, heads.score_scale())
        })?;
        let mixed = probabilities.matmul(&v)?;
        scatter(
            &read(&mixed)?,
            &mut out[rows],
            heads.queries,
            heads.dim,
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
    heads: Heads,
    rotation: &Rotation,
) -> Result<[Tensor; 3]> {
    let total = dout.dims2()?.0;
    let dout = read(dout)?;
    let (width, key_width) = (heads.queries * heads.dim, heads.keys * heads.dim);
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
        let dmixed = gather(
            &dout[rows.clone()],
            heads.queries,
            heads.dim,
            rotation,
            Turn::Not,
        );
        let dmixed = matrix(dmixed, heads.queries * t, heads.dim)?.reshape(q.shape())?;
        let dscores = dmixed.matmul(&v.t()?)?;
        let p = read(probabilities)?;
        edit(&dscores, |dp| {
            causal_softmax_backward(dp, &p, t, heads.score_scale())
        })?;
        let turned_dq = dscores.matmul(k)?;
        let turned_dk = dscores.t()?.matmul(q)?;
        let gathered_dv = probabilities.t()?.matmul(&dmixed)?;
        scatter(
            &read(&turned_dq)?,
            &mut dq[rows],
            heads.queries,
            heads.dim,
            rotation,
            Turn::Back,
        );
        scatter(
            &read(&turned_dk)?,
            &mut dk[key_rows.clone()],
            heads.keys,
            heads.dim,
            rotation,
            Turn::Back,
        );
        scatter(
            &read(&gathered_dv)?,
            &mut dv[key_rows],
            heads.keys,
            heads.dim,
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
    use crate::test_support::{assert_gradient, random};

    #[test]
    fn gradients_agree_with_finite_differences() {
        let heads = Heads {
            queries: 4,
            keys: 2,
            dim: 4,
        };
        let lengths = [3, 1, 4];
        let rotation = Rotation::new(&[1.0, 0.2], 0, 4);
        let (q, k, v, dy) = (
            random(1, 8 * 16),
            random(2, 8 * 8),
            random(3, 8 * 8),
            random(4, 8 * 16),
        );
        let run = |q: &[f32], k: &[f32], v: &[f32]| {
            let [q, k, v] =
                [(q, 16), (k, 8), (v, 8)].map(|(x, n)| matrix(x.to_vec(), 8, n).unwrap());
            forward([&q, &k, &v], &lengths, heads, &rotation).unwrap()
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
        let [dq, dk, dv] = backward(
            &matrix(dy.clone(), 8, 16).unwrap(),
            &saved,
            heads,
            &rotation,
        )
        .unwrap();
        assert_gradient(&q, &read(&dq).unwrap(), |q| loss(q, &k, &v));
        assert_gradient(&k, &read(&dk).unwrap(), |k| loss(&q, k, &v));
        assert_gradient(&v, &read(&dv).unwrap(), |v| loss(&q, &k, v));
    }
}
