//! Has a failure rate risen above what was expected? Answered anew after every single observation.
//!
//! A mixture e-CUSUM for Bernoulli observations (Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for
//! sequential change detection", New England Journal of Statistics in Data Science 2(2), 2024, arXiv 2203.03532). For each of
//! several alternatives q > q0, a CUSUM of likelihood ratios: `M = max(M, 1) * LR`. Their mean is an e-detector: where the true rate
//! is at most q0, at whatever values below it and however it moves, an alarm at `mean >= A` comes on average not before A observations.
//!
//! The alternatives are odds ratios rather than multiples of q0, which would pass 1 from moderate q0 on: with
//! `q = o q0 / (1 - q0 + o q0)` a failure multiplies by `o / (1 - q0 + o q0)`, a success by `1 / (1 - q0 + o q0)`.
//! Not in logarithms, since an exchange would cost as many exponentials as there are alternatives: M stays within what an f64 holds instead.

/// From a slight rise to a collapse: each alternative is quickest near its own odds ratio.
const ODDS_RATIOS: [f64; 6] = [1.5, 2.0, 3.0, 5.0, 10.0, 20.0];
/// M grows no further: nothing needs to be surer than that.
const CERTAIN: f64 = 1e300;

/// Evidence that failures are more frequent than `q0`, one observation after the other; constant memory and time.
#[derive(Debug, Clone, PartialEq)]
pub struct BernoulliCusum {
    q0: f64,
    components: [Component; ODDS_RATIOS.len()],
}

/// One alternative's CUSUM.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Component {
    if_failed: f64,
    if_succeeded: f64,
    m: f64,
    /// Observations since `max(M, 1)` last was 1.
    run: u64,
}

impl BernoulliCusum {
    /// `q0` is the highest failure rate that is no reason for an alarm; outside of [0, 1] the nearest end is taken.
    /// At 1 nothing can ever be worse, and there is never an alarm.
    pub fn new(q0: f64) -> Self {
        let q0 = q0.clamp(0.0, 1.0);
        let components = ODDS_RATIOS.map(|odds_ratio| {
            let norm = 1.0 - q0 + odds_ratio * q0;
            Component {
                if_failed: odds_ratio / norm,
                if_succeeded: 1.0 / norm,
                m: 1.0,
                run: 0,
            }
        });
        Self { q0, components }
    }

    /// Takes the next observation.
    pub fn observe(&mut self, failed: bool) {
        for component in &mut self.components {
            let ratio = if failed {
                component.if_failed
            } else {
                component.if_succeeded
            };
            if component.m <= 1.0 {
                component.run = 0;
            }
            component.run += 1;
            component.m = (component.m.max(1.0) * ratio).min(CERTAIN);
        }
    }

    /// The mean of M; 1 before the first observation, at most 1e300. An alarm stands where it reaches the threshold.
    pub fn e(&self) -> f64 {
        let sum: f64 = self.components.iter().map(|component| component.m).sum();
        sum / ODDS_RATIOS.len() as f64
    }

    /// Its natural logarithm.
    pub fn log_e(&self) -> f64 {
        self.e().ln()
    }

    /// How many of the last observations speak for a change: those since the leading alternative's CUSUM last began anew, which is
    /// the maximum-likelihood estimate of when the change came (Page 1954, "Continuous inspection schemes", Biometrika 41).
    /// 0 where nothing speaks for one.
    pub fn since_change(&self) -> u64 {
        let leader = self.leader();
        if leader.m > 1.0 { leader.run } else { 0 }
    }

    /// The failure rate that it tests against.
    pub fn q0(&self) -> f64 {
        self.q0
    }

    fn leader(&self) -> Component {
        let [first, rest @ ..] = self.components;
        rest.into_iter().fold(first, |best, component| {
            if component.m > best.m {
                component
            } else {
                best
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// The definition, word for word, without logarithms.
    fn by_definition(q0: f64, observations: &[bool]) -> f64 {
        let mut sum = 0.0;
        for o in ODDS_RATIOS {
            let q = o * q0 / (1.0 - q0 + o * q0);
            let mut m: f64 = 1.0;
            for &failed in observations {
                let ratio = if failed {
                    q / q0
                } else {
                    (1.0 - q) / (1.0 - q0)
                };
                m = m.max(1.0) * ratio;
            }
            sum += m;
        }
        sum / ODDS_RATIOS.len() as f64
    }

    fn after(q0: f64, observations: &[bool]) -> BernoulliCusum {
        let mut cusum = BernoulliCusum::new(q0);
        for &failed in observations {
            cusum.observe(failed);
        }
        cusum
    }

    /// Observations until `log_e` reaches `log_a`, at most `limit`.
    fn delay(rng: &mut ChaCha8Rng, rate: f64, log_a: f64, limit: usize) -> Option<usize> {
        let mut cusum = BernoulliCusum::new(0.02);
        (1..=limit).find(|_| {
            cusum.observe(rng.random_bool(rate));
            cusum.log_e() >= log_a
        })
    }

    proptest! {
        #[test]
        fn equals_its_definition(q0 in 0.001_f64..0.6, observations in prop::collection::vec(any::<bool>(), 0..80)) {
            let expected = by_definition(q0, &observations).ln();
            prop_assert!((after(q0, &observations).log_e() - expected).abs() < 1e-9);
        }

        #[test]
        fn a_failure_says_more_than_a_success(q0 in 0.0_f64..0.99, observations in prop::collection::vec(any::<bool>(), 0..80)) {
            let cusum = after(q0, &observations);
            let [mut failed, mut succeeded] = [cusum.clone(), cusum];
            failed.observe(true);
            succeeded.observe(false);
            prop_assert!(failed.log_e() > succeeded.log_e());
        }

        #[test]
        fn a_higher_expectation_is_more_patient(low in 0.0_f64..1.0, high in 0.0_f64..1.0, observations in prop::collection::vec(any::<bool>(), 0..80)) {
            let (low, high) = (low.min(high), low.max(high));
            prop_assert!(after(high, &observations).log_e() <= after(low, &observations).log_e() + 1e-9);
        }

        #[test]
        fn the_change_lies_within_what_was_seen(q0 in 0.0_f64..1.0, observations in prop::collection::vec(any::<bool>(), 0..80)) {
            prop_assert!(after(q0, &observations).since_change() <= observations.len() as u64);
        }
    }

    #[test]
    fn stays_finite_at_the_ends() {
        for q0 in [-1.0, 0.0, 1e-300, 0.5, 1.0, 2.0] {
            for failed in [true, false] {
                let cusum = after(q0, &vec![failed; 100_000]);
                assert!(cusum.log_e().is_finite(), "{q0} {failed}");
            }
        }
        assert!(after(0.02, &vec![true; 100_000]).log_e() > 600.0);
        let hopeless = after(1.0, &vec![true; 1_000]);
        assert!(
            hopeless.log_e() <= 0.0,
            "nothing is worse than always failing"
        );
    }

    #[test]
    fn finds_where_the_failures_began() {
        let mut observations = vec![false; 500];
        observations.extend((0..60).map(|i| i % 3 == 0));
        let cusum = after(0.02, &observations);
        assert_eq!(cusum.since_change(), 60);
        assert_eq!(after(0.02, &[false; 500]).since_change(), 0);
        assert_eq!(BernoulliCusum::new(0.02).since_change(), 0);
    }

    /// The guarantee is an average of at least A requests to a false alarm, so up to 63 % of the runs of A requests might have one.
    /// At exactly q0, the worst case, it is 3.5 % (2,000 runs of an independent implementation in NumPy).
    #[test]
    fn keeps_well_below_its_budget_of_false_alarms() {
        let (runs, log_a) = (400, 20_000_f64.ln());
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let alarms = (0..runs)
            .filter(|_| delay(&mut rng, 0.02, log_a, 20_000).is_some())
            .count();
        assert!(
            alarms * 100 <= runs * 6,
            "{alarms} of {runs} runs of 20,000 requests"
        );
    }

    /// Medians of 2,000 runs, against those of 4,000 runs of the NumPy implementation. 10^7 is the default configuration's A.
    #[test]
    fn notices_within_tens_to_hundreds_of_requests() {
        for (rate, a, expected, tolerance) in [
            (0.10, 2e4, 110, 8),
            (0.20, 2e4, 32, 3),
            (0.04, 2e4, 1_140, 60),
            (0.10, 1e7, 190, 9),
        ] {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let mut delays: Vec<usize> = (0..2_000)
                .map(|_| delay(&mut rng, rate, f64::ln(a), 100_000).unwrap_or(usize::MAX))
                .collect();
            delays.sort_unstable();
            let median = delays[delays.len() / 2];
            assert!(
                median.abs_diff(expected) <= tolerance,
                "{rate} at {a}: {median}, not {expected}"
            );
        }
    }
}
