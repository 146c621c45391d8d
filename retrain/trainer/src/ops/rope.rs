//! Rotary position embedding in the layout of Hugging Face's Llama: dimension i turns together with i + half.

/// Cosines and sines of every position's angles.
pub(crate) struct Rotation {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    /// For the positions `start .. start + length`.
    pub(crate) fn new(inverse_frequencies: &[f32], start: usize, length: usize) -> Self {
        let half = inverse_frequencies.len();
        let mut cos = Vec::with_capacity(half * length);
        let mut sin = Vec::with_capacity(half * length);
        for position in start..start + length {
            for frequency in inverse_frequencies {
                let (s, c) = (position as f32 * frequency).sin_cos();
                cos.push(c);
                sin.push(s);
            }
        }
        Rotation { half, cos, sin }
    }

    /// Turns one head's vector by its position's angles; `index` counts from `start`.
    #[inline]
    pub(crate) fn turn(&self, from: &[f32], to: &mut [f32], index: usize) {
        self.apply(from, to, index, 1.0);
    }

    /// Turns back: the backward pass, since a rotation's transpose is its inverse.
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
        let (to_a, to_b) = to.split_at_mut(half);
        for i in 0..half {
            let s = sin[i] * direction;
            to_a[i] = a[i] * cos[i] - b[i] * s;
            to_b[i] = b[i] * cos[i] + a[i] * s;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_gradient, random};

    #[test]
    fn turning_back_is_the_gradient_and_the_inverse() {
        let rotation = Rotation::new(&[1.0, 0.3, 0.01], 5, 4);
        let (x, dy) = (random(1, 6), random(2, 6));
        let mut y = vec![0.0; 6];
        rotation.turn(&x, &mut y, 3);
        let mut back = vec![0.0; 6];
        rotation.turn_back(&y, &mut back, 3);
        for (a, b) in x.iter().zip(&back) {
            assert!((a - b).abs() < 1e-6);
        }
        let mut dx = vec![0.0; 6];
        rotation.turn_back(&dy, &mut dx, 3);
        assert_gradient(&x, &dx, |x| {
            let mut y = vec![0.0; 6];
            rotation.turn(x, &mut y, 3);
            y.iter().zip(&dy).map(|(a, b)| f64::from(a * b)).sum()
        });
    }
}
