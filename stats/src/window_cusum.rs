//! Has a distribution changed for good? Answered after each window that was tested, from its p value.
//!
//! A p value becomes an e value by `(1 - p + p ln p) / (p ln² p)`, the mixture of all `k p^(k-1)` (Vovk and Wang 2021, "E-values:
//! calibration, combination and applications", Annals of Statistics 49, section 2; Sellke, Bayarri and Berger's bound is its
//! envelope). E values of windows multiply to an e-CUSUM, `M = max(M, 1) * e` (Shin, Ramdas and Rinaldo 2024, arXiv 2203.03532): where
//! nothing changes, an alarm at `M >= A` comes on average not before A windows.

/// The e value of a p value. Infinite nowhere: a p value of 0, which no permutation test gives, counts as the smallest positive one.
pub fn p_to_e(p: f64) -> f64 {
    let p = p.clamp(f64::MIN_POSITIVE, 1.0);
    let below = 1.0 - p;
    // Numerator and denominator vanish at 1 like below²/2 and below²; the series keeps what the difference loses.
    if below < 1e-3 {
        return 0.5 + below / 6.0 + below * below / 8.0;
    }
    let log = p.ln();
    (below + p * log) / (p * log * log)
}

/// Evidence that windows do not look like the reference any more; constant memory and time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WindowCusum {
    log_m: f64,
    run: u64,
}

impl WindowCusum {
    /// Takes the next window's p value.
    pub fn observe(&mut self, p: f64) {
        if self.log_m <= 0.0 {
            self.run = 0;
        }
        self.run += 1;
        self.log_m = self.log_m.max(0.0) + p_to_e(p).ln();
    }

    /// The natural logarithm of M; 0 before the first window.
    pub fn log_e(&self) -> f64 {
        self.log_m
    }

    /// How many of the last windows speak for a change; 0 where none does.
    pub fn since_change(&self) -> u64 {
        if self.log_m > 0.0 { self.run } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Its integral over uniform p values is 1: by the midpoint rule in ln p, where it is smooth.
    #[test]
    fn an_e_value_is_one_on_average() {
        let (steps, lowest) = (2_000_000, -2_000.0_f64);
        let width = -lowest / f64::from(steps);
        let sum: f64 = (0..steps)
            .map(|step| {
                let log = lowest + (f64::from(step) + 0.5) * width;
                // e(p) p: what p_to_e says times dp = p dlog, and beyond f64's smallest p its limit.
                match log.exp() {
                    p if p > 1e-300 => p_to_e(p) * p * width,
                    _ => width / (log * log),
                }
            })
            .sum();
        // What is left below: the integral of 1 / log².
        let total = sum - 1.0 / lowest;
        assert!((total - 1.0).abs() < 1e-6, "{total}");
    }

    #[test]
    fn is_continuous_and_finite() {
        for (p, expected) in [
            (1.0, 0.5),
            (0.999, 0.500_166_79),
            (0.05, 1.783_322),
            (0.001, 20.791_13),
            (1e-4, 117.761_9),
        ] {
            assert!(
                (p_to_e(p) / expected - 1.0).abs() < 1e-3,
                "{p}: {}",
                p_to_e(p)
            );
        }
        let (just_below, just_above) = (p_to_e(1.0 - 1.001e-3), p_to_e(1.0 - 0.999e-3));
        assert!((just_below - just_above).abs() < 1e-5);
        assert!(p_to_e(0.0).is_finite() && p_to_e(-1.0).is_finite());
    }

    #[test]
    fn comes_no_sooner_than_promised() {
        let (a, runs) = (200.0_f64, 2_000);
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let lengths: f64 = (0..runs)
            .map(|_| {
                let mut cusum = WindowCusum::default();
                let alarm = (1..=20_000).find(|_| {
                    cusum.observe(rng.random());
                    cusum.log_e() >= a.ln()
                });
                f64::from(alarm.unwrap_or(20_000))
            })
            .sum();
        assert!(
            lengths / f64::from(runs) > a,
            "{}",
            lengths / f64::from(runs)
        );
    }

    proptest! {
        #[test]
        fn a_smaller_p_says_more(low in 0.0_f64..1.0, high in 0.0_f64..1.0) {
            let (low, high) = (low.min(high), low.max(high));
            prop_assert!(p_to_e(low) >= p_to_e(high) - 1e-9);
        }
    }
}
