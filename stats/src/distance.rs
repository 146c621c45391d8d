//! How far apart are two distributions? Figures that tell people how much something moved; none of them decides an alarm.

/// The Jensen-Shannon distance of two mixes of the same kinds, from 0 (the same) to 1 (nothing in common): the square root of the
/// divergence to base 2 (Endres and Schindelin 2003, "A new metric for probability distributions"). Counts or shares of any total; 0
/// where one of them has none.
pub fn jensen_shannon(first: impl IntoIterator<Item = (f64, f64)> + Clone) -> f64 {
    let totals = first.clone().into_iter();
    let (all_p, all_q) = totals.fold((0.0, 0.0), |(a, b), (p, q)| (a + p, b + q));
    if all_p <= 0.0 || all_q <= 0.0 {
        return 0.0;
    }
    let part = |p: f64, mean: f64| if p > 0.0 { p * (p / mean).log2() } else { 0.0 };
    let divergence: f64 = first
        .into_iter()
        .map(|(p, q)| {
            let (p, q) = (p / all_p, q / all_q);
            let mean = (p + q) / 2.0;
            (part(p, mean) + part(q, mean)) / 2.0
        })
        .sum();
    divergence.clamp(0.0, 1.0).sqrt()
}

/// The population stability index of counts of the same kinds: the sum of `(q - p) ln(q / p)`, with half an observation added to each
/// count, so that an empty one is no infinity (as Yurdakul 2018, "Statistical properties of population stability index", has it; below
/// 0.1 is usually called stable, above 0.25 changed).
pub fn stability_index(counts: &[(u64, u64)]) -> f64 {
    let kinds = counts.len() as f64;
    let total =
        |of: &dyn Fn(&(u64, u64)) -> u64| counts.iter().map(of).sum::<u64>() as f64 + kinds / 2.0;
    let (all_p, all_q) = (total(&|c| c.0), total(&|c| c.1));
    let part = |(p, q): &(u64, u64)| {
        let (p, q) = ((*p as f64 + 0.5) / all_p, (*q as f64 + 0.5) / all_q);
        (q - p) * (q / p).ln()
    };
    counts.iter().map(part).sum()
}

/// What the test of Kolmogorov and Smirnov says of two samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KolmogorovSmirnov {
    /// The largest distance between the two distribution functions.
    pub statistic: f64,
    /// How likely it is to be so large if both samples are of one distribution: the limit for large samples.
    pub p: f64,
}

/// Compares two samples; None where one of them is empty.
pub fn kolmogorov_smirnov(first: &[f64], second: &[f64]) -> Option<KolmogorovSmirnov> {
    if first.is_empty() || second.is_empty() {
        return None;
    }
    let sorted = |sample: &[f64]| {
        let mut sample = sample.to_vec();
        sample.sort_by(f64::total_cmp);
        sample
    };
    let (first, second) = (sorted(first), sorted(second));
    let (n, m) = (first.len() as f64, second.len() as f64);
    let share = |sample: &[f64], value: f64| sample.partition_point(|x| *x <= value) as f64;
    let statistic = first
        .iter()
        .chain(&second)
        .map(|value| (share(&first, *value) / n - share(&second, *value) / m).abs())
        .fold(0.0, f64::max);
    Some(KolmogorovSmirnov {
        statistic,
        p: beyond((n * m / (n + m)).sqrt() * statistic),
    })
}

/// The chance that a Brownian bridge goes beyond `x` (Kolmogorov 1933); by the series that needs few terms there.
fn beyond(x: f64) -> f64 {
    use std::f64::consts::PI;
    if x <= 0.0 {
        return 1.0;
    }
    let terms = (1..=20).map(f64::from);
    if x < 1.0 {
        let odd = terms.map(|k| (-(2.0 * k - 1.0).powi(2) * PI * PI / (8.0 * x * x)).exp());
        1.0 - (2.0 * PI).sqrt() / x * odd.sum::<f64>()
    } else {
        let sign = |k: f64| if k % 2.0 == 1.0 { 1.0 } else { -1.0 };
        2.0 * terms
            .map(|k| sign(k) * (-2.0 * k * k * x * x).exp())
            .sum::<f64>()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < 1e-12,
            "{found}, expected {expected}"
        );
    }

    /// `scipy.spatial.distance.jensenshannon(p, q, base=2)` of SciPy 1.17.1.
    #[test]
    fn jensen_shannon_is_scipys() {
        let of = |p: [f64; 4], q: [f64; 4]| jensen_shannon(p.into_iter().zip(q));
        close(
            of([10.0, 20.0, 30.0, 40.0], [12.0, 18.0, 33.0, 37.0]),
            0.044_425_503_779_225_294,
        );
        close(
            of([0.0, 5.0, 10.0, 0.0], [5.0, 0.0, 10.0, 0.0]),
            0.577_350_269_189_625_7,
        );
        close(of([1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]), 1.0);
        close(of([1.0, 0.0, 0.0, 0.0], [0.0; 4]), 0.0);
    }

    /// The formula in NumPy.
    #[test]
    fn stability_index_is_its_formula() {
        let found = stability_index(&[(10, 12), (20, 18), (30, 33), (40, 37)]);
        close(found, 0.010_454_455_602_657_56);
        let with_empty = stability_index(&[(0, 5), (5, 0), (10, 10)]);
        close(with_empty, 1.453_269_862_302_042_4);
    }

    /// `scipy.special.kolmogorov`, and `scipy.stats.ks_2samp(x, y).statistic`, of SciPy 1.17.1.
    #[test]
    fn kolmogorov_smirnov_is_scipys() {
        for (x, expected) in [
            (0.3, 0.999_990_694_198_665_5),
            (0.5, 0.963_945_243_664_875_1),
            (0.9, 0.392_730_707_940_654_3),
            (1.2, 0.112_249_666_670_724_97),
            (2.0, 0.000_670_925_255_779_695_3),
            (4.0, 2.532_833_109_818_835e-14),
        ] {
            close(beyond(x), expected);
        }
        let first: Vec<f64> = (0..200).map(|i| f64::from(i).sin()).collect();
        let second: Vec<f64> = (0..150).map(|i| (1.1 * f64::from(i)).sin() + 0.1).collect();
        let found = kolmogorov_smirnov(&first, &second).unwrap();
        close(found.statistic, 0.14);
        close(found.p, 0.069_467_606_420_700_81);
        assert_eq!(kolmogorov_smirnov(&[], &second), None);
    }

    proptest! {
        #[test]
        fn stay_within_their_bounds(
            counts in prop::collection::vec((0_u64..100, 0_u64..100), 1..9),
            x in prop::collection::vec(-1.0_f64..1.0, 1..30),
            y in prop::collection::vec(-1.0_f64..1.0, 1..30),
        ) {
            let shares = counts.iter().map(|(p, q)| (*p as f64, *q as f64));
            prop_assert!((0.0..=1.0).contains(&jensen_shannon(shares)));
            prop_assert!(stability_index(&counts) >= 0.0);
            let (one, other) = (kolmogorov_smirnov(&x, &y).unwrap(), kolmogorov_smirnov(&y, &x).unwrap());
            prop_assert_eq!(one.statistic, other.statistic);
            prop_assert!((0.0..=1.0).contains(&one.statistic) && (0.0..=1.0).contains(&one.p));
            prop_assert_eq!(kolmogorov_smirnov(&x, &x).unwrap().statistic, 0.0);
        }
    }
}
