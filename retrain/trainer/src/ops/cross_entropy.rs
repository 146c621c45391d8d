//! Weighted cross-entropy, fused with its gradient: the logits' buffer becomes their gradient in the same pass.

use super::math::{exp_all, max, scale};

/// `logits` is `[rows, vocabulary]`, `targets` each row's right token, `weights` its weight. Returns weight·nll of each row and
/// leaves weight·(softmax − one-hot) in `logits`.
pub(crate) fn forward_and_gradient(
    logits: &mut [f32],
    vocabulary: usize,
    targets: &[u32],
    weights: &[f32],
) -> Vec<f64> {
    let mut losses = Vec::with_capacity(targets.len());
    for ((row, &target), &weight) in logits
        .chunks_exact_mut(vocabulary)
        .zip(targets)
        .zip(weights)
    {
        let top = max(row);
        let right = row[target as usize];
        let mass = exp_all(row, top);
        losses.push(f64::from(weight) * (f64::from(mass).ln() - f64::from(right - top)));
        scale(row, weight / mass);
        row[target as usize] -= weight;
    }
    losses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_gradient, random};

    #[test]
    fn gradient_agrees_with_finite_differences() {
        let (x, targets, weights) = (random(1, 3 * 7), [2, 6, 0], [1.0, 0.2, 0.7]);
        let mut gradient = x.clone();
        let losses = forward_and_gradient(&mut gradient, 7, &targets, &weights);
        let total: f64 = losses.iter().sum();
        let plain = |x: &[f32]| -> f64 {
            let rows = x.chunks_exact(7).zip(targets).zip(weights);
            rows.map(|((row, target), weight)| {
                let mass: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
                f64::from(weight) * (mass.ln() - f64::from(row[target as usize]))
            })
            .sum()
        };
        assert!((total - plain(&x)).abs() < 1e-5);
        assert_gradient(&x, &gradient, plain);
    }
}
