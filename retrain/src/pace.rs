//! How long answers take, the candidate's beside the baseline's: an adapter that talks twice as much is better at everything but patience. Pure.
//!
//! Both are asked the same prompts at the same time, so what slows one down slows the other: what counts is who took half as long
//! again on the same prompt.

use retune_stats::sign_test;
use serde::{Deserialize, Serialize};

use crate::verdict::SIGNIFICANCE;

/// So many times as long is slower.
const SLOWER: f64 = 1.5;
/// Seconds more that nobody notices (Miller 1968, "Response time in man-computer conversational transactions").
const UNNOTICED: f64 = 0.1;

/// Seconds from question to answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Medians.
    pub candidate: f64,
    pub baseline: f64,
    /// Prompts for which the candidate took half as long again as the baseline, and the other way round.
    pub slower: u64,
    pub faster: u64,
}

impl Pace {
    /// Of (candidate, baseline) for each prompt; None where there is none.
    pub(crate) fn of(seconds: &[(f64, f64)]) -> Option<Self> {
        let count = |is_one: fn(f64, f64) -> bool| {
            let of = seconds.iter().filter(|(a, b)| is_one(*a, *b));
            of.count() as u64
        };
        Some(Self {
            candidate: median(seconds.iter().map(|of| of.0))?,
            baseline: median(seconds.iter().map(|of| of.1))?,
            slower: count(|candidate, baseline| candidate > SLOWER * baseline),
            faster: count(|candidate, baseline| baseline > SLOWER * candidate),
        })
    }

    /// Shown to be slower, on most prompts and by an exact sign test.
    pub(crate) fn is_slower(&self) -> bool {
        self.candidate > SLOWER * self.baseline
            && self.candidate > self.baseline + UNNOTICED
            && self.slower > self.faster
            && sign_test(self.faster, self.slower) < SIGNIFICANCE
    }

    /// For people.
    pub(crate) fn in_words(&self) -> String {
        let also = match self.is_slower() {
            true => "; that is slower",
            false => "",
        };
        format!(
            "an answer takes {:.2} s, the baseline's {:.2} (medians){also}",
            self.candidate, self.baseline
        )
    }
}

fn median(seconds: impl Iterator<Item = f64>) -> Option<f64> {
    let mut seconds: Vec<f64> = seconds.collect();
    seconds.sort_unstable_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn slower_is_shown_on_many_prompts_and_not_by_a_few_that_hang() {
        let pace = |seconds: &[(f64, f64)]| Pace::of(seconds).unwrap();
        let twice = pace(&[(2.0, 1.0); 20]);
        assert!(twice.is_slower() && twice.in_words().contains("slower"));
        assert!(!pace(&[(1.4, 1.0); 20]).is_slower());
        assert!(!pace(&[(2.0, 1.0); 4]).is_slower());
        assert!(!pace(&[(1.0, 2.0); 20]).is_slower());
        assert!(!pace(&[(0.06, 0.02); 20]).is_slower());
        let mut hangs = vec![(1.0, 1.0); 20];
        hangs.extend([(60.0, 1.0); 8]);
        assert!(!pace(&hangs).is_slower());
        assert_eq!(Pace::of(&[]), None);
    }
}
