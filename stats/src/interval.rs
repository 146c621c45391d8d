//! How high, or how low, a rate may really be, given what was counted.
//!
//! Clopper and Pearson (1934), "The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika 26,
//! by quantiles of the beta distribution. Exact: never less cover than stated, for any rate and any n, which approximations lack just
//! where it matters here, near a failure rate of 0.

use statrs::function::beta::{beta_reg, inv_beta_reg};

/// One-sided upper limit of the rate behind `failures` of `n`, at `confidence` (0.95: too low in at most 5 % of samples).
///
/// 1 where all failed or nothing was counted. More failures than `n` count as `n`.
pub fn upper_limit(failures: u64, n: u64, confidence: f64) -> f64 {
    if failures >= n {
        return 1.0;
    }
    beta_quantile(failures as f64 + 1.0, (n - failures) as f64, confidence)
}

/// One-sided lower limit of the rate behind `failures` of `n`, at `confidence`; 0 where none failed.
pub fn lower_limit(failures: u64, n: u64, confidence: f64) -> f64 {
    1.0 - upper_limit(n.saturating_sub(failures), n, confidence)
}

/// The beta distribution's quantile: Newton's method (statrs), then bisection where that did not arrive.
fn beta_quantile(a: f64, b: f64, p: f64) -> f64 {
    let p = p.clamp(0.0, 1.0);
    let guess = inv_beta_reg(a, b, p);
    if guess.is_finite() && (0.0..=1.0).contains(&guess) && (beta_reg(a, b, guess) - p).abs() < 1e-9
    {
        return guess;
    }
    let (mut low, mut high) = (0.0_f64, 1.0_f64);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if beta_reg(a, b, middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By SciPy 1.17: `beta.ppf(confidence, failures + 1, n - failures)`.
    #[test]
    fn agrees_with_scipy() {
        for (failures, n, confidence, expected) in [
            (0, 1, 0.95, 0.95),
            (0, 10, 0.95, 0.2588655508930522),
            (1, 10, 0.95, 0.39416330243650466),
            (5, 10, 0.95, 0.7775588989918706),
            (9, 10, 0.95, 0.9948838031081763),
            (3, 20, 0.975, 0.37892682654531396),
            (0, 300, 0.95, 0.009936081944457708),
            (6, 300, 0.95, 0.03909105868095858),
            (75, 300, 0.95, 0.29453702311169855),
            (150, 300, 0.95, 0.5489912452912065),
            (299, 300, 0.95, 0.9998290369678865),
            (100, 5_000, 0.95, 0.02357300302543311),
            (1, 1_000_000, 0.95, 4.743855638214234e-6),
            (200_000, 1_000_000, 0.95, 0.20065908275837238),
        ] {
            let found = upper_limit(failures, n, confidence);
            assert!(
                (found / expected - 1.0).abs() < 1e-7,
                "{failures} of {n}: {found}, not {expected}"
            );
        }
    }

    #[test]
    fn ends_are_exact() {
        assert_eq!(upper_limit(0, 0, 0.95), 1.0);
        assert_eq!(upper_limit(10, 10, 0.95), 1.0);
        assert_eq!(upper_limit(11, 10, 0.95), 1.0);
        assert_eq!(lower_limit(0, 10, 0.95), 0.0);
        assert_eq!(lower_limit(0, 0, 0.95), 0.0);
        // None of 10: (1 - limit)^10 = 0.05.
        assert!((upper_limit(0, 10, 0.95) - (1.0 - 0.05_f64.powf(0.1))).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn encloses_the_observed_rate_and_grows_with_it(n in 1_u64..5_000, share in 0.0_f64..1.0) {
            let failures = (share * n as f64) as u64;
            let (low, high) = (lower_limit(failures, n, 0.95), upper_limit(failures, n, 0.95));
            let rate = failures as f64 / n as f64;
            prop_assert!((0.0..=rate).contains(&low) && (rate..=1.0).contains(&high), "{low} {rate} {high}");
            prop_assert!(upper_limit(failures + 1, n, 0.95) >= high);
            prop_assert!(upper_limit(failures, n, 0.99) >= high);
            prop_assert!(upper_limit(failures * 2, n * 2, 0.95) <= high + 1e-9);
        }
    }
}
