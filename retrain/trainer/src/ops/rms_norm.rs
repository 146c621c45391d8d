//! Root-mean-square normalisation (Zhang & Sennrich 2019): y = w · x / sqrt(mean(x²) + eps), row by row.

use super::math::dot;

/// Returns y and each row's 1/sqrt(mean(x²) + eps), which the backward pass wants.
pub(crate) fn forward(x: &[f32], weight: &[f32], eps: f64) -> (Vec<f32>, Vec<f32>) {
    let width = weight.len();
    let mut y = Vec::with_capacity(x.len());
    let mut inverse = Vec::with_capacity(x.len() / width);
    for row in x.chunks_exact(width) {
        let mean = dot(row, row) / width as f32;
        let r = 1.0 / (mean + eps as f32).sqrt();
        inverse.push(r);
        y.extend(row.iter().zip(weight).map(|(x, w)| x * r * w));
    }
    (y, inverse)
}

/// y from what `forward` returned beside it.
pub(crate) fn again(x: &[f32], weight: &[f32], inverse: &[f32]) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len());
    for (row, &r) in x.chunks_exact(weight.len()).zip(inverse) {
        y.extend(row.iter().zip(weight).map(|(x, w)| x * r * w));
    }
    y
}

/// Adds the input's gradient to `dx`, and the weight's to `dw` if it is wanted.
///
/// With g = dy·w: dx = r·(g - x·r²·mean(g·x)), dw = Σ dy·x·r.
pub(crate) fn backward(
    dy: &[f32],
    x: &[f32],
    weight: &[f32],
    inverse: &[f32],
    dx: &mut [f32],
    mut dw: Option<&mut [f32]>,
) {
    let width = weight.len();
    let mut g = vec![0.0; width];
    let rows = dy
        .chunks_exact(width)
        .zip(x.chunks_exact(width))
        .zip(dx.chunks_exact_mut(width))
        .zip(inverse);
    for (((dy, x), dx), &r) in rows {
        for ((g, dy), w) in g.iter_mut().zip(dy).zip(weight) {
            *g = dy * w;
        }
        let along = dot(&g, x) * r * r / width as f32;
        for ((dx, g), x) in dx.iter_mut().zip(&g).zip(x) {
            *dx += r * (g - x * along);
        }
        if let Some(dw) = &mut dw {
            for ((dw, dy), x) in dw.iter_mut().zip(dy).zip(x) {
                *dw += dy * x * r;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_gradient, random};

    #[test]
    fn gradients_agree_with_finite_differences() {
        let (rows, width) = (3, 8);
        let (x, w, dy) = (
            random(1, rows * width),
            random(2, width),
            random(3, rows * width),
        );
        let loss = |x: &[f32], w: &[f32]| -> f64 {
            forward(x, w, 1e-5)
                .0
                .iter()
                .zip(&dy)
                .map(|(a, b)| f64::from(a * b))
                .sum()
        };
        let (y, inverse) = forward(&x, &w, 1e-5);
        assert_eq!(again(&x, &w, &inverse), y);
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; width]);
        backward(&dy, &x, &w, &inverse, &mut dx, Some(&mut dw));
        assert_gradient(&x, &dx, |x| loss(x, &w));
        assert_gradient(&w, &dw, |w| loss(&x, w));
    }
}
