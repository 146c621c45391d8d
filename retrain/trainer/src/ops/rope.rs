//! Rotary position embedding in the layout of Hugging Face's models: dimension i turns together with i + half.

use crate::config::Rope;

/// Cosines and sines of every position's angles.
pub(crate) struct Rotation {
    /// Pairs that are turned; the dimensions behind them stay.
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    /// For the positions `start .. start + length`; without an embedding nothing is turned.
    pub(crate) fn new(rope: Option<&Rope>, start: usize, length: usize) -> Self {
        let frequencies = rope.map_or(&[][..], |rope| &rope.inverse_frequencies);
        let magnitude = rope.map_or(1.0, |rope| rope.magnitude);
        let half = frequencies.len();
        let mut cos = Vec::with_capacity(half * length);
        let mut sin = Vec::with_capacity(half * length);
        for position in start..start + length {
            for frequency in frequencies {
                let (s, c) = (position as f32 * frequency).sin_cos();
                cos.push(c * magnitude);
                sin.push(s * magnitude);
            }
        }
        Rotation { half, cos, sin }
    }

    /// Turns one head's vector by its position's angles; `index` counts from `start`.
    #[inline]
    pub(crate) fn turn(&self, from: &[f32], to: &mut [f32], index: usize) {
        self.apply(from, to, index, 1.0);
    }

    /// Turns back: the backward pass, since a rotation's transpose turns the other way.
    #[inline]
    pub(crate) fn turn_back(&self, from: &[f32], to: &mut [f32], index: usize) {
        self.apply(from, to, index, -1.0);
    }

    #[inline]
    fn apply(&self, from: &[f32], to: &mut [f32], index: usize, direction: f32) {
        let half = self.half;
        let cos = &self.cos[index * half..(index + 1) * half];
        let sin = &self.sin[index * half..(index + 1) * half];
        let (a, b) = from.split_at(half);
        let (b, rest) = b.split_at(half);
        let (to_a, to_b) = to.split_at_mut(half);
        let (to_b, to_rest) = to_b.split_at_mut(half);
        for i in 0..half {
            let s = sin[i] * direction;
            to_a[i] = a[i] * cos[i] - b[i] * s;
            to_b[i] = b[i] * cos[i] + a[i] * s;
        }
        to_rest.copy_from_slice(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_gradient, random};

    fn rope(magnitude: f32) -> Rope {
        Rope {
            inverse_frequencies: vec![1.0, 0.3, 0.01],
            magnitude,
        }
    }

    #[test]
    fn turning_back_is_the_gradient_and_the_inverse() {
        // Two dimensions stay.
        let (x, dy) = (random(1, 8), random(2, 8));
        let rotation = Rotation::new(Some(&rope(1.0)), 5, 4);
        let (mut y, mut back) = (vec![0.0; 8], vec![0.0; 8]);
        rotation.turn(&x, &mut y, 3);
        rotation.turn_back(&y, &mut back, 3);
        for (a, b) in x.iter().zip(&back) {
            assert!((a - b).abs() < 1e-6);
        }
        assert_eq!(x[6..], y[6..]);
        let longer = Rotation::new(Some(&rope(1.2)), 5, 4);
        let mut dx = vec![0.0; 8];
        longer.turn_back(&dy, &mut dx, 3);
        assert_gradient(&x, &dx, |x| {
            let mut y = vec![0.0; 8];
            longer.turn(x, &mut y, 3);
            y.iter().zip(&dy).map(|(a, b)| f64::from(a * b)).sum()
        });
    }

    #[test]
    fn without_an_embedding_nothing_is_turned() {
        let x = random(1, 4);
        let mut y = vec![0.0; 4];
        Rotation::new(None, 7, 2).turn(&x, &mut y, 1);
        assert_eq!(x, y);
    }
}
