//! Sums, products and the exponential in a form the compiler turns into vector instructions.
//!
//! Rust keeps the order of floating-point additions, so a plain `sum()` runs one number at a time; sixteen running
//! sums are as deterministic and sixteen times as fast. `f32::exp` is a call into libm for each number.

const LANES: usize = 16;

#[inline]
fn fold(lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    let mut lanes = lanes;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[inline]
pub(crate) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += chunk[i];
        }
    }
    fold(lanes) + rest.iter().sum::<f32>()
}

#[inline]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (x_chunks, x_rest) = x.as_chunks::<LANES>();
    let (y_chunks, y_rest) = y.as_chunks::<LANES>();
    for (a, b) in x_chunks.iter().zip(y_chunks) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    fold(lanes) + x_rest.iter().zip(y_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[inline]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] {
                chunk[i]
            } else {
                lanes[i]
            };
        }
    }
    lanes
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

/// e^x within 2 units in the last place, 0 below -87 and the largest finite power above 88. Not-a-number stays one.
///
/// Range reduction and polynomial of Cephes' `expf` (Moshier, 1992).
#[inline(always)]
#[allow(
    clippy::excessive_precision,
    reason = "the constants are quoted as Cephes has them"
)]
pub(crate) fn exp(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to the nearest integer
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = clamped * std::f32::consts::LOG2_E + SHIFT;
    let power = shifted - SHIFT;
    let r = clamped - power * 0.693_359_375 + power * 2.121_944_4e-4;
    let mut p = 1.987_569_15e-4;
    p = p * r + 1.398_199_950_7e-3;
    p = p * r + 8.333_451_907_3e-3;
    p = p * r + 4.166_579_589_4e-2;
    p = p * r + 1.666_666_545_9e-1;
    p = p * r + 5.000_000_120_1e-1;
    let y = p * r * r + r + 1.0;
    // The integer sits in the low bits of `shifted`; moved into the exponent it multiplies by 2^power.
    let exponent = (shifted.to_bits() << 23).wrapping_add(127 << 23);
    let scaled = y * f32::from_bits(exponent);
    if x < -87.3 { 0.0 } else { scaled }
}

/// tanh x within 3 units in the last place, near 0 too, where 1 − 2/(e^2x + 1) would lose its digits.
///
/// Polynomial of Cephes' `tanhf` (Moshier, 1992).
#[inline(always)]
#[allow(
    clippy::excessive_precision,
    reason = "the constants are quoted as Cephes has them"
)]
pub(crate) fn tanh(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_988_727_45e-3;
    p = p * z + 2.063_908_879_54e-2;
    p = p * z - 5.373_971_555_31e-2;
    p = p * z + 1.333_144_220_36e-1;
    p = p * z - 3.333_328_194_22e-1;
    let near = x + x * z * p;
    let far = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if x.abs() < 0.625 { near } else { far }
}

/// x ← e^(x - top); returns the sum.
#[inline]
pub(crate) fn exp_all(x: &mut [f32], top: f32) -> f32 {
    for value in x.iter_mut() {
        *value = exp(*value - top);
    }
    sum(x)
}

#[inline]
pub(crate) fn scale(x: &mut [f32], by: f32) {
    for value in x {
        *value *= by;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_units() {
        let mut worst = 0.0f64;
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0 + 1e-4;
            let truth = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - truth).abs() / truth);
        }
        assert!(worst < 2.4e-7, "{worst}");
        assert_eq!(
            (exp(0.0), exp(-200.0), exp(f32::NEG_INFINITY)),
            (1.0, 0.0, 0.0)
        );
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(500.0).is_finite());
    }

    #[test]
    fn tanh_is_exact_to_three_units() {
        for i in -40_000..40_000 {
            let x = i as f32 / 3_000.0;
            let truth = f64::from(x).tanh();
            let apart = (f64::from(tanh(x)) - truth).abs() / truth.abs().max(1e-30);
            assert!(apart < 3.6e-7, "{x}: {apart}");
        }
    }

    #[test]
    fn sums_agree_with_the_plain_ones() {
        let x: Vec<f32> = (0..531).map(|i| (i as f32 * 0.37).sin()).collect();
        let y: Vec<f32> = (0..531).map(|i| (i as f32 * 0.11).cos()).collect();
        let plain: f64 = x.iter().map(|&v| f64::from(v)).sum();
        let product: f64 = x
            .iter()
            .zip(&y)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum();
        assert!((f64::from(sum(&x)) - plain).abs() < 1e-4);
        assert!((f64::from(dot(&x, &y)) - product).abs() < 1e-4);
        assert_eq!(max(&x), x.iter().copied().fold(f32::MIN, f32::max));
    }
}
