//! Does one of two, served side by side, fail more often? To be looked at as often as one likes.
//!
//! The e-variable for two streams of yes and no of Turner, Ly and Grünwald ("Generic E-variables for exact sequential k-sample tests that
//! allow for optional stopping", 2024, Journal of Statistical Planning and Inference 230) in its form for any convex null hypothesis (Turner
//! and Grünwald 2023, "Exact anytime-valid confidence intervals for contingency tables and beyond", Statistics & Probability Letters 198). The
//! outcomes come in blocks with some of both. A block's factor is its likelihood under what the earlier blocks let expect, over that
//! under the point of the null hypothesis that is nearest to it. The product is at most 1 in expectation if the null hypothesis is true, so it ever
//! reaches 1/α with a chance of at most α (Ville's inequality), however often it is looked at.

/// Added to hits and misses of each side when its rate is estimated: what Turner et al. recommend.
const PRIOR: f64 = 0.18;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    First,
    Second,
}

/// Outcomes of one side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub hits: u64,
    pub misses: u64,
}

impl Tally {
    pub fn count(&self) -> u64 {
        self.hits + self.misses
    }

    /// NaN where there is no outcome.
    pub fn rate(&self) -> f64 {
        self.hits as f64 / self.count() as f64
    }

    fn expected(&self) -> f64 {
        (self.hits as f64 + PRIOR) / (self.count() as f64 + 2.0 * PRIOR)
    }

    fn add(&mut self, other: Tally) {
        self.hits += other.hits;
        self.misses += other.misses;
    }

    /// Log likelihood of these outcomes at one rate, over that at another.
    fn log_ratio(&self, rate: f64, other: f64) -> f64 {
        let part = |count: u64, a: f64, b: f64| match count {
            // 0 · ln(0/0) is nothing.
            0 => 0.0,
            _ => count as f64 * (a / b).ln(),
        };
        part(self.hits, rate, other) + part(self.misses, 1.0 - rate, 1.0 - other)
    }
}

/// Evidence against "the first one's rate is at most the second one's plus `shift`".
#[derive(Debug, Clone, PartialEq)]
pub struct TwoRates {
    shift: f64,
    /// Of the blocks that are closed.
    seen: [Tally; 2],
    /// The block that is not.
    open: [Tally; 2],
    log_e: f64,
    highest: f64,
}

impl TwoRates {
    /// `shift` is between -1 and 1.
    pub fn new(shift: f64) -> Self {
        Self {
            shift,
            seen: [Tally::default(); 2],
            open: [Tally::default(); 2],
            log_e: 0.0,
            highest: 0.0,
        }
    }

    /// One outcome, in the order of their coming.
    pub fn observe(&mut self, side: Side, hit: bool) {
        let tally = &mut self.open[side as usize];
        match hit {
            true => tally.hits += 1,
            false => tally.misses += 1,
        }
        if self.open.iter().all(|tally| tally.count() > 0) {
            self.close();
        }
    }

    /// The highest natural logarithm of the evidence so far: at ln(1/α) the null hypothesis is given up, with a chance of at most α that it is true.
    pub fn highest_log_e(&self) -> f64 {
        self.highest
    }

    /// All outcomes of one side.
    pub fn tally(&self, side: Side) -> Tally {
        let mut all = self.seen[side as usize];
        all.add(self.open[side as usize]);
        all
    }

    fn close(&mut self) {
        let [first, second] = self.seen.map(|tally| tally.expected());
        let block = std::mem::take(&mut self.open);
        // What is expected may lie in the null hypothesis: then nothing speaks against it.
        if first > second + self.shift {
            let weight = block.map(|tally| tally.count() as f64);
            let null = nearest([first, second], weight, self.shift);
            self.log_e +=
                block[0].log_ratio(first, null + self.shift) + block[1].log_ratio(second, null);
            self.highest = self.highest.max(self.log_e);
        }
        for (seen, new) in self.seen.iter_mut().zip(block) {
            seen.add(new);
        }
    }
}

/// The second one's rate at the point on the border of the null hypothesis with the least Kullback-Leibler distance from `rates`, each side
/// weighted by its outcomes in the block: where the distance's derivative, which only rises, is 0.
fn nearest([first, second]: [f64; 2], weight: [f64; 2], shift: f64) -> f64 {
    let slope = |rate: f64, at: f64| (at - rate) / (at * (1.0 - at));
    let (mut low, mut high) = (f64::max(0.0, -shift), f64::min(1.0, 1.0 - shift));
    for _ in 0..60 {
        let at = 0.5 * (low + high);
        let rising = weight[0] * slope(first, at + shift) + weight[1] * slope(second, at);
        if rising > 0.0 {
            high = at;
        } else {
            low = at;
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// `share` of the outcomes are the first one's.
    fn play(seed: u64, share: f64, rates: [f64; 2], shift: f64, outcomes: usize) -> TwoRates {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut test = TwoRates::new(shift);
        for _ in 0..outcomes {
            let side = match rng.random_bool(share) {
                true => Side::First,
                false => Side::Second,
            };
            test.observe(side, rng.random_bool(rates[side as usize]));
        }
        test
    }

    fn given_up(share: f64, rates: [f64; 2], shift: f64, outcomes: usize) -> f64 {
        let runs = 400;
        let found = (0..runs)
            .filter(|seed| play(*seed, share, rates, shift, outcomes).highest_log_e() >= 20f64.ln())
            .count();
        found as f64 / runs as f64
    }

    /// Looked at after every outcome, 400 times each: at most 5 %, with three standard errors for the draw.
    #[test]
    fn a_true_null_hypothesis_is_seldom_given_up() {
        for share in [0.1, 0.5] {
            for (rates, shift) in [
                ([0.1, 0.1], 0.0),
                ([0.02, 0.1], 0.0),
                ([0.5, 0.5], 0.0),
                ([0.15, 0.1], 0.05),
                ([0.85, 0.9], -0.05),
                ([0.0, 0.0], 0.0),
            ] {
                let rate = given_up(share, rates, shift, 4_000);
                assert!(rate <= 0.0827, "{share} {rates:?} {shift}: {rate}");
            }
        }
    }

    #[test]
    fn a_false_one_is_given_up() {
        // Half of the first one's fail: seen within a few hundred outcomes, of which a tenth are its own.
        assert!(given_up(0.1, [0.5, 0.1], 0.0, 600) > 0.95);
        // It is as good, and that it is 0.05 worse is ruled out.
        assert!(given_up(0.1, [0.95, 0.95], -0.05, 6_000) > 0.9);
        assert!(given_up(0.5, [0.9, 0.9], -0.05, 6_000) > 0.9);
    }

    #[test]
    fn nothing_is_told_before_both_were_seen() {
        let mut test = TwoRates::new(0.0);
        for _ in 0..100 {
            test.observe(Side::First, true);
        }
        assert_eq!(test.highest_log_e(), 0.0);
        assert_eq!(
            test.tally(Side::First),
            Tally {
                hits: 100,
                misses: 0
            }
        );
        test.observe(Side::Second, false);
        assert_eq!(test.tally(Side::Second).count(), 1);
    }

    proptest! {
        /// No point of the null hypothesis gives a block's factor an expectation above 1, whatever was expected: the property that all rests on.
        #[test]
        fn a_factor_is_at_most_one_in_expectation(
            first in 0.01_f64..0.99, second in 0.01_f64..0.99, shift in -0.5_f64..0.5,
            n in 1_u64..4, m in 1_u64..4, at in 0.0_f64..1.0, below in 0.0_f64..1.0,
        ) {
            prop_assume!(first > second + shift);
            let null = nearest([first, second], [n as f64, m as f64], shift);
            prop_assert!((0.0..=1.0).contains(&null) && (0.0..=1.0).contains(&(null + shift)));
            // A point with a ≤ b + shift.
            let b = f64::max(0.0, -shift) + at * (f64::min(1.0, 1.0 - shift) - f64::max(0.0, -shift));
            let a = (b + shift) * below;
            let choose = |n: u64, k: u64| (0..k).map(|i| (n - i) as f64 / (i + 1) as f64).product::<f64>();
            let mut expectation = 0.0;
            for hits in 0..=n {
                for other in 0..=m {
                    let chance = choose(n, hits) * a.powi(hits as i32) * (1.0 - a).powi((n - hits) as i32)
                        * choose(m, other) * b.powi(other as i32) * (1.0 - b).powi((m - other) as i32);
                    let factor = Tally { hits, misses: n - hits }.log_ratio(first, null + shift)
                        + Tally { hits: other, misses: m - other }.log_ratio(second, null);
                    if chance > 0.0 {
                        expectation += chance * factor.exp();
                    }
                }
            }
            prop_assert!(expectation <= 1.0 + 1e-6, "{expectation}");
        }
    }
}
