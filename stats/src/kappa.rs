//! How far two raters agree beyond what chance would have it.

/// Cohen's kappa of two raters who put the same things into `N` classes each: `table[i][j]` things are an `i` to the first and a `j` to
/// the second. 1: they always agree; 0: as often as two who draw by lot with the same frequencies (Cohen 1960, Educational and
/// Psychological Measurement 20:37). None where nothing tells: no things, or both put all of them into one class.
pub fn kappa<const N: usize>(table: &[[u64; N]; N]) -> Option<f64> {
    let all: u64 = table.iter().flatten().sum();
    let of = |count: u64| count as f64 / all.max(1) as f64;
    let (mut agreed, mut by_chance) = (0.0, 0.0);
    for (i, row) in table.iter().enumerate() {
        let column: u64 = table.iter().filter_map(|row| row.get(i)).sum();
        agreed += of(row.get(i).copied().unwrap_or_default());
        by_chance += of(row.iter().sum()) * of(column);
    }
    (by_chance > 0.0 && by_chance < 1.0).then(|| (agreed - by_chance) / (1.0 - by_chance))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_scikit_learn_has_it() {
        // sklearn.metrics.cohen_kappa_score of the same counts.
        let near = |kappa: Option<f64>, wanted: f64| {
            assert!(
                kappa.is_some_and(|kappa| (kappa - wanted).abs() < 1e-12),
                "{kappa:?}"
            );
        };
        near(kappa(&[[20, 5], [10, 15]]), 0.4);
        near(
            kappa(&[[22, 2, 5], [3, 30, 1], [4, 6, 12]]),
            0.6198892674616695,
        );
        assert_eq!(kappa(&[[0, 0], [0, 0]]), None);
        assert_eq!(kappa(&[[7, 0], [0, 0]]), None);
    }

    proptest! {
        #[test]
        fn who_is_named_first_is_the_same(table in proptest::array::uniform3(proptest::array::uniform3(0..50_u64))) {
            let mut turned = table;
            for (i, row) in table.iter().enumerate() {
                for (j, count) in row.iter().enumerate() {
                    turned[j][i] = *count;
                }
            }
            match (kappa(&table), kappa(&turned)) {
                (Some(one), Some(two)) => prop_assert!((one - two).abs() < 1e-12 && (-1.0..=1.0 + 1e-12).contains(&one)),
                (one, two) => prop_assert_eq!(one, two),
            }
        }

        #[test]
        fn who_always_agrees_has_one(a in 1..50_u64, b in 1..50_u64, c in 0..50_u64) {
            let kappa = kappa(&[[a, 0, 0], [0, b, 0], [0, 0, c]]);
            prop_assert!(kappa.is_some_and(|kappa| (kappa - 1.0).abs() < 1e-12));
        }
    }
}
