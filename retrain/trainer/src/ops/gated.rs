//! The gate of the feed-forward block (Shazeer 2020): y = act(gate) · up.

use super::math::exp;

/// What the gate goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// x·σ(x).
    Silu,
    /// The tanh approximation of x·Φ(x) (Hendrycks & Gimpel 2016), ½·x·(1 + tanh u) = x·σ(2u) with u = √(2/π)·(x + 0.044715·x³).
    GeluTanh,
}

const ROOT: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

impl Activation {
    /// act(x) and its slope.
    #[inline(always)]
    fn at(self, x: f32) -> (f32, f32) {
        match self {
            Activation::Silu => {
                let sigmoid = sigmoid(x);
                (x * sigmoid, sigmoid + x * sigmoid * (1.0 - sigmoid))
            }
            Activation::GeluTanh => {
                let sigmoid = sigmoid(2.0 * ROOT * (x + CUBE * x * x * x));
                let inner = 2.0 * ROOT * (1.0 + 3.0 * CUBE * x * x);
                (x * sigmoid, sigmoid + x * sigmoid * (1.0 - sigmoid) * inner)
            }
        }
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

pub(crate) fn forward(activation: Activation, gate: &[f32], up: &[f32]) -> Vec<f32> {
    // Chosen once, not for each number.
    match activation {
        Activation::Silu => forward_by(|g| Activation::Silu.at(g).0, gate, up),
        Activation::GeluTanh => forward_by(|g| Activation::GeluTanh.at(g).0, gate, up),
    }
}

fn forward_by(act: impl Fn(f32) -> f32, gate: &[f32], up: &[f32]) -> Vec<f32> {
    gate.iter().zip(up).map(|(&g, &u)| act(g) * u).collect()
}

/// Returns (dgate, dup).
pub(crate) fn backward(
    activation: Activation,
    dy: &[f32],
    gate: &[f32],
    up: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    match activation {
        Activation::Silu => backward_by(|g| Activation::Silu.at(g), dy, gate, up),
        Activation::GeluTanh => backward_by(|g| Activation::GeluTanh.at(g), dy, gate, up),
    }
}

fn backward_by(
    act: impl Fn(f32) -> (f32, f32),
    dy: &[f32],
    gate: &[f32],
    up: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let mut dgate = vec![0.0; dy.len()];
    let mut dup = vec![0.0; dy.len()];
    let outputs = dgate.iter_mut().zip(dup.iter_mut());
    for ((((dg, du), &dy), &g), &u) in outputs.zip(dy).zip(gate).zip(up) {
        let (value, slope) = act(g);
        *du = dy * value;
        *dg = dy * u * slope;
    }
    (dgate, dup)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_gradient, random};

    #[test]
    fn gradients_agree_with_finite_differences() {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let (g, u, dy) = (random(1, 20), random(2, 20), random(3, 20));
            let g: Vec<f32> = g.iter().map(|g| g * 3.0).collect();
            let loss = |g: &[f32], u: &[f32]| -> f64 {
                let y = forward(activation, g, u);
                y.iter().zip(&dy).map(|(a, b)| f64::from(a * b)).sum()
            };
            let (dg, du) = backward(activation, &dy, &g, &u);
            assert_gradient(&g, &dg, |g| loss(g, &u));
            assert_gradient(&u, &du, |u| loss(&g, u));
        }
    }

    /// torch.nn.functional.gelu(x, approximate="tanh").
    #[test]
    fn gelu_is_pytorchs() {
        for (x, y) in [
            (-3.0, -0.003_637_4),
            (-0.5, -0.154_286),
            (0.0, 0.0),
            (1.0, 0.841_192),
            (4.0, 3.999_93),
        ] {
            let found = forward(Activation::GeluTanh, &[x], &[1.0])[0];
            assert!((found - y).abs() < 1e-5, "gelu({x}) is {found}");
        }
    }
}
