//! Causal self-attention of several sequences that lie one after another in the rows, nothing padded.
//!
//! Per sequence the heads are gathered (and queries and keys turned to their positions), so that the query heads that
//! share a key head (Ainslie et al. 2023) are rows of one matrix: all heads are one batched product, and the shared head's gradient
//! sums itself in the product's inner dimension.
//!
//! Queries come in tiles, and a tile meets the keys up to its end alone: half of all products of a long sequence would be hidden
//! anyway. The backward pass computes a tile's probabilities again rather than keep them: they are the largest thing a layer could
//! keep, and a product of few (Dao et al. 2022, section 3.1).

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

    /// Key heads, query heads of each, and their dimensions: of queries, and of keys and values.
    fn heads(&self) -> ((usize, usize, usize), (usize, usize, usize)) {
        let group = self.group();
        ((self.keys, group, self.dim), (self.keys, 1, self.dim))
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

/// Positions of a tile.
const TILE: usize = 128;

/// What the backward pass wants of one sequence of `t` tokens: q `[keys, t·group, dim]`, k and v `[keys, t, dim]`, q and k turned.
pub(crate) struct Sequence {
    q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
}

#[derive(Clone, Copy)]
enum Turn {
    Forward,
    Back,
    Not,
}

/// `[t, keys·group·dim]` to `[keys, t·group, dim]`.
fn gather(
    from: &[f32],
    (keys, group, dim): (usize, usize, usize),
    rotation: &Rotation,
    turn: Turn,
) -> Result<Tensor> {
    let t = from.len() / (keys * group * dim);
    let mut to = vec![0.0; from.len()];
    for (position, row) in from.chunks_exact(keys * group * dim).enumerate() {
        for (key, heads) in row.chunks_exact(group * dim).enumerate() {
            let at = (key * t + position) * group * dim;
            let to = &mut to[at..at + group * dim];
            for (from, to) in heads.chunks_exact(dim).zip(to.chunks_exact_mut(dim)) {
                place(from, to, rotation, position, turn);
            }
        }
    }
    matrix(to, keys * t * group, dim)?.reshape((keys, t * group, dim))
}

/// `[keys, t·group, dim]` to `[t, keys·group·dim]`.
fn scatter(
    from: &[f32],
    to: &mut [f32],
    (keys, group, dim): (usize, usize, usize),
    rotation: &Rotation,
    turn: Turn,
) {
    let t = from.len() / (keys * group * dim);
    for (position, row) in to.chunks_exact_mut(keys * group * dim).enumerate() {
        for (key, heads) in row.chunks_exact_mut(group * dim).enumerate() {
            let at = (key * t + position) * group * dim;
            let from = &from[at..at + group * dim];
            for (from, to) in from.chunks_exact(dim).zip(heads.chunks_exact_mut(dim)) {
                place(from, to, rotation, position, turn);
            }
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

/// Queries at the positions `start..end`, and the keys that any of them sees.
#[derive(Clone, Copy)]
struct Tile {
    of: Attention,
    start: usize,
    end: usize,
    first: usize,
}

impl Tile {
    fn all(of: Attention, t: usize) -> impl DoubleEndedIterator<Item = Tile> {
        (0..t).step_by(TILE).map(move |start| Tile {
            of,
            start,
            end: (start + TILE).min(t),
            first: of.first(start),
        })
    }

    /// The tile's rows of a tensor as q is.
    fn queries(&self, of: &Tensor) -> Result<Tensor> {
        let group = self.of.group();
        of.narrow(1, self.start * group, (self.end - self.start) * group)
    }

    /// The keys' rows of a tensor as k is.
    fn keys(&self, of: &Tensor) -> Result<Tensor> {
        of.narrow(1, self.first, self.end - self.first)
    }

    /// Adds `[keys, rows, dim]` to the rows from `at` on of `into`, which has `t` rows a key.
    fn put(part: &Tensor, into: &mut [f32], t: usize, at: usize) -> Result<()> {
        let (_, rows, dim) = part.dims3()?;
        let part = read(part)?;
        let into = into.chunks_exact_mut(t * dim);
        for (into, part) in into.zip(part.chunks_exact(rows * dim)) {
            let into = &mut into[at * dim..(at + rows) * dim];
            into.iter_mut().zip(part).for_each(|(a, b)| *a += b);
        }
        Ok(())
    }

    fn products(&self, q: &Tensor, k: &Tensor) -> Result<Tensor> {
        self.queries(q)?.matmul(&self.keys(k)?.t()?)
    }

    /// `[keys, rows, seen keys]`.
    fn probabilities(&self, q: &Tensor, k: &Tensor) -> Result<Tensor> {
        let products = self.products(q, k)?;
        edit(&products, |products| self.softmax(products))?;
        Ok(products)
    }

    /// The position of a row, and the columns that it sees.
    fn seen(&self, row: usize) -> std::ops::Range<usize> {
        let rows = (self.end - self.start) * self.of.group();
        let position = self.start + row % rows / self.of.group();
        self.of.first(position) - self.first..position + 1 - self.first
    }

    /// Products become probabilities; no query sees a key after itself.
    fn softmax(&self, products: &mut [f32]) {
        let columns = self.end - self.first;
        for (r, row) in products.chunks_exact_mut(columns).enumerate() {
            let seen = self.seen(r);
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            let seen = &mut row[seen];
            // The scale goes with the exponent, unless something comes between.
            let by = match self.of.cap {
                Some(_) => {
                    self.of.score(seen);
                    1.0
                }
                None => self.of.scale,
            };
            let top = max(seen);
            for value in seen.iter_mut() {
                *value = exp((*value - top) * by);
            }
            let mass = sum(seen);
            scale(seen, 1.0 / mass);
        }
    }

    /// The gradient by the probabilities becomes that by the products: p·(dp − Σ p·dp)·scale, and by the cap's slope where there is one,
    /// for which the products are wanted again.
    fn softmax_backward(&self, dp: &mut [f32], p: &[f32], products: Option<&[f32]>) {
        let columns = self.end - self.first;
        let rows = dp.chunks_exact_mut(columns).zip(p.chunks_exact(columns));
        for (r, (dp, p)) in rows.enumerate() {
            let seen = self.seen(r);
            dp[..seen.start].fill(0.0);
            dp[seen.end..].fill(0.0);
            let (dp, p) = (&mut dp[seen.clone()], &p[seen.clone()]);
            let mean = dot(dp, p);
            for (dp, p) in dp.iter_mut().zip(p) {
                *dp = p * (*dp - mean) * self.of.scale;
            }
            if let (Some(products), Some(cap)) = (products, self.of.cap) {
                let products = &products[r * columns + seen.start..r * columns + seen.end];
                for (dp, product) in dp.iter_mut().zip(products) {
                    let capped = tanh(product * self.of.scale / cap);
                    *dp *= 1.0 - capped * capped;
                }
            }
        }
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
    let (heads, key_heads) = of.heads();
    let mut out = vec![0.0; q.len()];
    let mut sequences = Vec::with_capacity(lengths.len());
    let mut start = 0;
    for &t in lengths {
        let rows = start * width..(start + t) * width;
        let key_rows = start * key_width..(start + t) * key_width;
        let q = gather(&q[rows.clone()], heads, rotation, Turn::Forward)?;
        let k = gather(&k[key_rows.clone()], key_heads, rotation, Turn::Forward)?;
        let v = gather(&v[key_rows], key_heads, rotation, Turn::Not)?;
        let mut mixed = vec![0.0; t * width];
        for tile in Tile::all(of, t) {
            let part = tile.probabilities(&q, &k)?.matmul(&tile.keys(&v)?)?;
            let group = of.group();
            Tile::put(&part, &mut mixed, t * group, tile.start * group)?;
        }
        scatter(&mixed, &mut out[rows], heads, rotation, Turn::Not);
        sequences.push(Sequence { q, k, v });
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
    let (heads, key_heads) = of.heads();
    let group = of.group();
    let mut dq = vec![0.0; total * width];
    let mut dk = vec![0.0; total * key_width];
    let mut dv = vec![0.0; total * key_width];
    let mut start = 0;
    for Sequence { q, k, v } in sequences {
        let t = k.dims3()?.1;
        let rows = start * width..(start + t) * width;
        let key_rows = start * key_width..(start + t) * key_width;
        let dmixed = gather(&dout[rows.clone()], heads, rotation, Turn::Not)?;
        let mut turned_dq = vec![0.0; t * width];
        let mut turned_dk = vec![0.0; t * key_width];
        let mut gathered_dv = vec![0.0; t * key_width];
        for tile in Tile::all(of, t) {
            let p = tile.probabilities(q, k)?;
            let dmixed = tile.queries(&dmixed)?;
            let dscores = dmixed.matmul(&tile.keys(v)?.t()?)?;
            let products = of.cap.map(|_| tile.products(q, k)).transpose()?;
            let products = products.as_ref().map(read).transpose()?;
            {
                let p = read(&p)?;
                edit(&dscores, |dp| {
                    tile.softmax_backward(dp, &p, products.as_deref())
                })?;
            }
            let part = dscores.matmul(&tile.keys(k)?)?;
            Tile::put(&part, &mut turned_dq, t * group, tile.start * group)?;
            let part = dscores.t()?.matmul(&tile.queries(q)?)?;
            Tile::put(&part, &mut turned_dk, t, tile.first)?;
            let part = p.t()?.matmul(&dmixed)?;
            Tile::put(&part, &mut gathered_dv, t, tile.first)?;
        }
        scatter(&turned_dq, &mut dq[rows], heads, rotation, Turn::Back);
        let rows = key_rows.clone();
        scatter(&turned_dk, &mut dk[rows], key_heads, rotation, Turn::Back);
        let rows = key_rows;
        scatter(&gathered_dv, &mut dv[rows], key_heads, rotation, Turn::Not);
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

    /// Sequences of several tiles are one of a tile's length each: the first tokens see nothing of what follows, and a window cuts the others off.
    #[test]
    fn tiles_are_seamless() {
        let of = Attention {
            queries: 2,
            keys: 1,
            dim: 2,
            scale: 0.8,
            cap: None,
            window: None,
        };
        let rope = Rope {
            inverse_frequencies: vec![0.1],
            magnitude: 1.0,
        };
        for window in [None, Some(TILE / 2), Some(TILE + 9)] {
            let of = Attention { window, ..of };
            let t = 2 * TILE + 7;
            let rotation = Rotation::new(Some(&rope), 0, t);
            let (q, k, v) = (random(1, t * 4), random(2, t * 2), random(3, t * 2));
            let tensors =
                [(&q, 4), (&k, 2), (&v, 2)].map(|(x, n)| matrix(x.clone(), t, n).unwrap());
            let [tq, tk, tv] = &tensors;
            let (found, _) = forward([tq, tk, tv], &[t], of, &rotation).unwrap();
            let found = read(&found).unwrap();
            let turned = |x: &[f32], position: usize| {
                let mut to = [0.0; 2];
                rotation.turn(x, &mut to, position);
                to
            };
            for position in [0, TILE - 1, TILE, t - 1] {
                for head in 0..2 {
                    let at = position * 4 + head * 2;
                    let query = turned(&q[at..at + 2], position);
                    let keys = of.first(position)..position + 1;
                    let scores = keys.clone().map(|key| {
                        let key = turned(&k[key * 2..key * 2 + 2], key);
                        f64::from((query[0] * key[0] + query[1] * key[1]) * of.scale).exp()
                    });
                    let scores: Vec<f64> = scores.collect();
                    let mass: f64 = scores.iter().sum();
                    for i in 0..2 {
                        let values = keys.clone().map(|key| f64::from(v[key * 2 + i]));
                        let by_hand: f64 = values.zip(&scores).map(|(v, s)| v * s / mass).sum();
                        assert!((by_hand - f64::from(found[at + i])).abs() < 1e-5);
                    }
                }
            }
        }
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
