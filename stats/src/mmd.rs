//! How far apart are two groups of units in a space of features? The maximum mean discrepancy of permutation tests.
//!
//! With features f, MMD² = |mean of f over one group - mean over the other|² (Gretton et al. 2012, "A kernel two-sample test", JMLR
//! 13; the biased estimate, which orders splits as the unbiased one does where all units have the same length). By S, the sum over the
//! second group, and T, the sum over all: `|a S - b T|²` with `a = 1/m + 1/(n-m)`, `b = 1/(n-m)`. T is the same for
//! all splits, so a split costs its second group's features and not the first one's, which is the larger by far.

use crate::permutation::Statistic;

/// Units with few features of many, as texts have n-grams.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SparseUnits {
    ends: Vec<usize>,
    features: Vec<u16>,
    weights: Vec<f32>,
    sum: Vec<f64>,
}

impl SparseUnits {
    /// Adds a unit: features, each at most once, and their weights.
    pub fn push(&mut self, unit: impl IntoIterator<Item = (u16, f32)>) {
        for (feature, weight) in unit {
            self.features.push(feature);
            self.weights.push(weight);
            let at = usize::from(feature);
            if self.sum.len() <= at {
                self.sum.resize(at + 1, 0.0);
            }
            self.sum[at] += f64::from(weight);
        }
        self.ends.push(self.features.len());
    }

    /// How many units there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// A unit's features and weights; nothing beyond the last.
    pub fn unit(&self, unit: usize) -> impl Iterator<Item = (u16, f32)> + '_ {
        let start = match unit {
            0 => 0,
            unit => self.ends.get(unit - 1).copied().unwrap_or(0),
        };
        let range = start..self.ends.get(unit).copied().unwrap_or(start);
        let weights = self.weights[range.clone()].iter();
        self.features[range].iter().copied().zip(weights.copied())
    }
}

/// Units with all features, as embeddings have them.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseUnits {
    values: Vec<f32>,
    sum: Vec<f64>,
}

impl DenseUnits {
    /// None yet, of `width` features each.
    pub fn new(width: usize) -> Self {
        Self {
            values: Vec::new(),
            sum: vec![0.0; width.max(1)],
        }
    }

    /// Adds a unit; what is missing to the width is 0, what is beyond it is left out.
    pub fn push(&mut self, unit: impl IntoIterator<Item = f32>) {
        let start = self.values.len();
        let end = start + self.sum.len();
        self.values.extend(unit.into_iter().take(self.sum.len()));
        self.values.resize(end, 0.0);
        add(&mut self.sum, &self.values[start..end]);
    }

    /// How many units there are.
    pub fn len(&self) -> usize {
        self.values.len() / self.sum.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// A unit's features.
    pub fn unit(&self, unit: usize) -> &[f32] {
        let width = self.sum.len();
        &self.values[unit * width..(unit + 1) * width]
    }
}

/// |a S - b T|², by |S|², S·T and |T|², for a second group of `m` of `n` units.
fn mmd2(n: usize, m: usize, s_s: f64, s_t: f64, t_t: f64) -> f64 {
    let (n, m) = (n as f64, m as f64);
    let (a, b) = (1.0 / m + 1.0 / (n - m), 1.0 / (n - m));
    a * a * s_s - 2.0 * a * b * s_t + b * b * t_t
}

/// MMD² of splits of two groups of sparse units.
pub struct SparseMmd<'a> {
    groups: [&'a SparseUnits; 2],
    /// Each unit's product with the sum over all units, which is the same for all splits.
    products: Vec<f64>,
    square: f64,
    /// All 0 between two splits.
    sum: Vec<f64>,
}

impl<'a> SparseMmd<'a> {
    /// Of these units: the second group's are the last ones.
    pub fn new(first: &'a SparseUnits, second: &'a SparseUnits) -> Self {
        let mut total = vec![0.0; first.sum.len().max(second.sum.len())];
        for group in [first, second] {
            for (total, sum) in total.iter_mut().zip(&group.sum) {
                *total += sum;
            }
        }
        let product = |unit: &mut dyn Iterator<Item = (u16, f32)>| -> f64 {
            unit.map(|(feature, weight)| f64::from(weight) * total[usize::from(feature)])
                .sum()
        };
        let of = |group: &SparseUnits| -> Vec<f64> {
            (0..group.len())
                .map(|at| product(&mut group.unit(at)))
                .collect()
        };
        Self {
            groups: [first, second],
            products: [of(first), of(second)].concat(),
            square: total.iter().map(|t| t * t).sum(),
            sum: vec![0.0; total.len()],
        }
    }

    fn unit(&self, at: u32) -> impl Iterator<Item = (u16, f32)> + 'a {
        let [first, second] = self.groups;
        let at = at as usize;
        match at < first.len() {
            true => first.unit(at),
            false => second.unit(at - first.len()),
        }
    }
}

impl Statistic for SparseMmd<'_> {
    fn of(&mut self, second: &[u32]) -> f64 {
        let (mut s_s, mut s_t) = (0.0, 0.0);
        for at in second {
            s_t += self.products[*at as usize];
            for (feature, weight) in self.unit(*at) {
                let weight = f64::from(weight);
                let sum = &mut self.sum[usize::from(feature)];
                s_s += weight * (2.0 * *sum + weight);
                *sum += weight;
            }
        }
        for at in second {
            for (feature, _) in self.unit(*at) {
                self.sum[usize::from(feature)] = 0.0;
            }
        }
        let n = self.groups[0].len() + self.groups[1].len();
        mmd2(n, second.len(), s_s, s_t, self.square)
    }
}

/// MMD² of splits of two groups of dense units.
pub struct DenseMmd<'a> {
    groups: [&'a DenseUnits; 2],
    total: Vec<f64>,
    sum: Vec<f64>,
}

impl<'a> DenseMmd<'a> {
    /// Of these units, all of one width: the second group's are the last ones.
    pub fn new(first: &'a DenseUnits, second: &'a DenseUnits) -> Self {
        let sums = first.sum.iter().zip(&second.sum);
        let total: Vec<f64> = sums.map(|(first, second)| first + second).collect();
        Self {
            groups: [first, second],
            sum: vec![0.0; total.len()],
            total,
        }
    }
}

impl Statistic for DenseMmd<'_> {
    fn of(&mut self, second: &[u32]) -> f64 {
        let [first, last] = self.groups;
        self.sum.fill(0.0);
        for at in second {
            let at = *at as usize;
            let unit = match at < first.len() {
                true => first.unit(at),
                false => last.unit(at - first.len()),
            };
            add(&mut self.sum, unit);
        }
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
        let (s_s, s_t) = (dot(&self.sum, &self.sum), dot(&self.sum, &self.total));
        let n = first.len() + last.len();
        mmd2(n, second.len(), s_s, s_t, dot(&self.total, &self.total))
    }
}

fn add(sum: &mut [f64], unit: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(unit) {
        *sum += f64::from(*value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, by means.
    fn by_definition(units: &[Vec<f32>], second: &[u32]) -> f64 {
        let mean = |is_second: bool, feature: usize| {
            let of_group = units.iter().zip(0_u32..);
            let of_group = of_group.filter(|(_, at)| second.contains(at) == is_second);
            let values: Vec<f64> = of_group.map(|(unit, _)| f64::from(unit[feature])).collect();
            values.iter().sum::<f64>() / values.len() as f64
        };
        let differences = (0..units[0].len()).map(|f| mean(true, f) - mean(false, f));
        differences.map(|d| d * d).sum()
    }

    fn filled(units: &[Vec<f32>]) -> (DenseUnits, SparseUnits) {
        let (mut dense, mut sparse) = (DenseUnits::new(units[0].len()), SparseUnits::default());
        for unit in units {
            dense.push(unit.iter().copied());
            let features = unit.iter().zip(0_u16..).filter(|(value, _)| **value != 0.0);
            sparse.push(features.map(|(value, feature)| (feature, *value)));
        }
        (dense, sparse)
    }

    proptest! {
        #[test]
        fn equals_its_definition(
            units in prop::collection::vec(prop::collection::vec(prop_oneof![Just(0.0_f32), -1.0_f32..1.0], 6), 4..20),
            m in 1_usize..4,
        ) {
            let (first, last) = units.split_at(units.len() - m);
            let ((dense, sparse), (last_dense, last_sparse)) = (filled(first), filled(last));
            prop_assert_eq!((dense.len(), last_sparse.len()), (units.len() - m, m));
            let (mut dense, mut sparse) = (DenseMmd::new(&dense, &last_dense), SparseMmd::new(&sparse, &last_sparse));
            // Several splits: what one leaves behind would show in the next.
            for from in 0..=units.len() - m {
                let second: Vec<u32> = (from..from + m).map(|at| at as u32).collect();
                let expected = by_definition(&units, &second);
                prop_assert!((dense.of(&second) - expected).abs() < 1e-9, "{} {expected}", dense.of(&second));
                prop_assert!((sparse.of(&second) - expected).abs() < 1e-9, "{} {expected}", sparse.of(&second));
            }
        }

        #[test]
        fn units_come_back(units in prop::collection::vec(prop::collection::vec(prop_oneof![Just(0.0_f32), -1.0_f32..1.0], 3), 1..9)) {
            let (dense, sparse) = filled(&units);
            for (at, unit) in units.iter().enumerate() {
                prop_assert_eq!(dense.unit(at), &unit[..]);
                let mut seen = vec![0.0; 3];
                for (feature, weight) in sparse.unit(at) {
                    seen[usize::from(feature)] = weight;
                }
                prop_assert_eq!(&seen, unit);
            }
        }
    }

    /// NumPy's figures for the kernel `exp(-(x - y)² / 2σ²)`, by the definition of the biased estimate; alibi-detect 0.13.0's unbiased one
    /// agrees with its definition to 5e-16 (`benches/drift/reference_figures.py`). The kernel's features are
    /// `exp(-x² / 2σ²) (x / σ)^k / √k!`; those from the 40th on are nothing here.
    #[test]
    fn is_the_gaussian_kernel_s_where_the_features_are() {
        for (sigma, expected) in [
            (0.5, 0.004_726_696_328_816_282),
            (1.0, 0.002_979_684_872_718_602),
            (2.0, 0.001_677_781_325_356_120_2),
        ] {
            let units = |values: &mut dyn Iterator<Item = f64>| {
                let mut units = DenseUnits::new(40);
                for x in values {
                    let first = (-x * x / (2.0 * sigma * sigma)).exp();
                    let next = |feature: &mut f64, k: i32| {
                        let this = *feature;
                        *feature *= x / sigma / f64::from(k + 1).sqrt();
                        Some(this as f32)
                    };
                    units.push((0..40).scan(first, next));
                }
                units
            };
            let first = units(&mut (0..200).map(|i| f64::from(i).sin()));
            let second = units(&mut (0..150).map(|i| (1.1 * f64::from(i)).sin() + 0.1));
            let last: Vec<u32> = (200..350).collect();
            let found = DenseMmd::new(&first, &second).of(&last);
            assert!(
                (found - expected).abs() < 1e-9,
                "{sigma}: {found}, expected {expected}"
            );
        }
    }

    #[test]
    fn what_is_missing_or_too_much_does_no_harm() {
        let mut dense = DenseUnits::new(2);
        dense.push([1.0]);
        dense.push([1.0, 2.0, 3.0]);
        assert_eq!(
            (dense.unit(0), dense.unit(1)),
            (&[1.0, 0.0][..], &[1.0, 2.0][..])
        );
        let mut sparse = SparseUnits::default();
        sparse.push([]);
        assert_eq!(
            (sparse.len(), sparse.unit(0).count(), sparse.unit(7).count()),
            (1, 0, 0)
        );
    }
}
