//! Is one of two better, given how often each was preferred?
//!
//! The exact sign test: under "equally good" the wins are binomial with rate 1/2 (Arbuthnot 1710; Conover 1999, "Practical
//! nonparametric statistics", 3.4). It assumes nothing but that the pairs are independent. Summed in logarithms, since 0.5^n leaves
//! what an f64 holds at n = 1,075.

use statrs::function::factorial::ln_binomial;

/// Exact two-sided p value of `wins` against `losses`; ties have to be left out by the caller. 1 where there are neither.
///
/// Twice the smaller tail, at most 1. The distribution is symmetric, so every definition of two-sided agrees.
pub fn sign_test(wins: u64, losses: u64) -> f64 {
    let n = wins + losses;
    let fewer = wins.min(losses);
    if wins.abs_diff(losses) <= 1 {
        return 1.0;
    }
    // P(X = fewer), and the tail below it in multiples of that: each term is i / (n - i + 1) of the one above it.
    let log_highest = ln_binomial(n, fewer) - n as f64 * std::f64::consts::LN_2;
    let (mut sum, mut term) = (1.0, 1.0);
    for i in (1..=fewer).rev() {
        term *= i as f64 / (n - i + 1) as f64;
        sum += term;
        if term < sum * 1e-17 {
            break;
        }
    }
    (2.0 * (log_highest + f64::ln(sum)).exp()).min(1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By SciPy 1.17: `binomtest(wins, wins + losses).pvalue`.
    #[test]
    fn agrees_with_scipy() {
        for (wins, losses, expected) in [
            (0, 1, 1.0),
            (5, 0, 0.0625),
            (6, 0, 0.03125),
            (7, 3, 0.34375),
            (16, 0, 3.0517578125e-05),
            (16, 5, 0.02660369873046875),
            (21, 9, 0.042773945257067694),
            (20, 10, 0.09873714670538905),
            (33, 17, 0.032839137564268484),
            (32, 18, 0.06490864707227217),
            (61, 39, 0.035200200217704855),
            (60, 40, 0.05688793364098089),
            (115, 85, 0.04003719161339955),
            (114, 86, 0.05596574049426471),
            (150, 0, 1.401298464324817e-45),
            (1_000, 2_000, 1.0090148627940651e-75),
            (90_000, 91_000, 0.018866574504949392),
            (500_100, 499_900, 0.8422627570516166),
        ] {
            let p = sign_test(wins, losses);
            assert!(
                (p / expected - 1.0).abs() < 1e-7,
                "{wins} against {losses}: {p}, not {expected}"
            );
        }
    }

    #[test]
    fn no_pair_says_nothing() {
        assert_eq!(sign_test(0, 0), 1.0);
        assert_eq!(sign_test(7, 7), 1.0);
    }

    /// The fewest wins that are significant, as everybody's tables have them.
    #[test]
    fn wins_needed() {
        for (n, needed) in [(30, 21), (50, 33), (100, 61), (200, 115)] {
            let fewest = (n / 2..=n).find(|wins| sign_test(*wins, n - wins) < 0.05);
            assert_eq!(fewest, Some(needed));
        }
    }

    proptest! {
        #[test]
        fn symmetric_and_a_probability(a in 0_u64..3_000_000, b in 0_u64..3_000_000) {
            let p = sign_test(a, b);
            prop_assert!((0.0..=1.0).contains(&p));
            prop_assert_eq!(p, sign_test(b, a));
        }

        #[test]
        fn a_clearer_result_is_less_likely(n in 1_u64..5_000, share in 0.5_f64..1.0) {
            let wins = (share * n as f64).ceil() as u64;
            let p = sign_test(wins, n - wins);
            if wins < n {
                prop_assert!(sign_test(wins + 1, n - wins - 1) <= p);
            }
        }

        /// Summed without logarithms or shortcuts.
        #[test]
        fn equals_its_definition(n in 0_u64..60, share in 0.0_f64..1.0) {
            let wins = (share * n as f64) as u64;
            let (mut choose, mut tail) = (1.0, 0.0);
            for i in 0..=wins.min(n - wins) {
                tail += choose;
                choose *= (n - i) as f64 / (i + 1) as f64;
            }
            let expected = f64::min(2.0 * tail * 0.5_f64.powi(n as i32), 1.0);
            prop_assert!((sign_test(wins, n - wins) - expected).abs() < 1e-12);
        }
    }
}
