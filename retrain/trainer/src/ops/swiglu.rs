//! The gate of Llama's feed-forward block (Shazeer 2020): y = silu(gate) · up.

use super::math::exp;

pub(crate) fn forward(gate: &[f32], up: &[f32]) -> Vec<f32> {
    gate.iter()
        .zip(up)
        .map(|(&g, &u)| g / (1.0 + exp(-g)) * u)
        .collect()
}

/// Returns (dgate, dup).
pub(crate) fn backward(dy: &[f32], gate: &[f32], up: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut dgate = vec![0.0; dy.len()];
    let mut dup = vec![0.0; dy.len()];
    let outputs = dgate.iter_mut().zip(dup.iter_mut());
    for ((((dg, du), &dy), &g), &u) in outputs.zip(dy).zip(gate).zip(up) {
        let sigmoid = 1.0 / (1.0 + exp(-g));
        let silu = g * sigmoid;
        *du = dy * silu;
        *dg = dy * u * (sigmoid + silu * (1.0 - sigmoid));
    }
    (dgate, dup)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_gradient, random};

    #[test]
    fn gradients_agree_with_finite_differences() {
        let (g, u, dy) = (random(1, 20), random(2, 20), random(3, 20));
        let loss = |g: &[f32], u: &[f32]| -> f64 {
            forward(g, u)
                .iter()
                .zip(&dy)
                .map(|(a, b)| f64::from(a * b))
                .sum()
        };
        let (dg, du) = backward(&dy, &g, &u);
        assert_gradient(&g, &dg, |g| loss(g, &u));
        assert_gradient(&u, &du, |u| loss(&g, u));
    }
}
