//! The kinds of requests that moved: both groups' conversations, sorted into kinds by their words.
//!
//! Spherical k-means (Dhillon and Modha 2001, "Concept decompositions for large sparse text data using clustering", Machine Learning 42), its
//! first centres drawn as k-means++ does (Arthur and Vassilvitskii 2007), by a seed that never changes.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use retune_stats::{SparseUnits, stability_index};

use super::{Cluster, FEWEST, Groups, phrases, shares};
use crate::features::ngrams::BUCKETS;

/// Kinds at most, and conversations of a kind at least, on average.
const KINDS: usize = 12;
const OF_A_KIND: usize = 20;
const STEPS: usize = 12;
const SEED: u64 = 0x006b_696e_6473;
/// Phrases that name a kind.
const NAMES: usize = 4;

/// The kinds, those first whose share changed most, and the stability index of all of them.
pub(super) fn moved(groups: &Groups<'_>) -> (Vec<Cluster>, f64) {
    let kinds = (groups.all.len() / OF_A_KIND).min(KINDS);
    if kinds < 2 {
        return (Vec::new(), 0.0);
    }
    let of = sort(&groups.units, kinds);
    let mut counts = vec![(0_u32, 0_u32); kinds];
    for (kind, is_trouble) in of.iter().zip(&groups.is_trouble) {
        match is_trouble {
            true => counts[*kind].1 += 1,
            false => counts[*kind].0 += 1,
        }
    }
    let wide = |n: u32| u64::from(n);
    let both: Vec<(u64, u64)> = counts.iter().map(|(a, b)| (wide(*a), wide(*b))).collect();
    let told = counts.iter().enumerate();
    let told = told.filter(|(_, (usual, trouble))| usual + trouble >= FEWEST);
    let mut clusters: Vec<Cluster> = told
        .map(|(kind, count)| {
            let is_member: Vec<bool> = of.iter().map(|of| *of == kind).collect();
            Cluster {
                phrases: phrases::names(groups, &is_member, NAMES),
                shares: shares(*count, groups.sizes()),
            }
        })
        .collect();
    clusters.sort_by(|a, b| b.shares.z.abs().total_cmp(&a.shares.z.abs()));
    (clusters, stability_index(&both))
}

/// The kind of each unit.
fn sort(units: &SparseUnits, kinds: usize) -> Vec<usize> {
    let mut centres = first_centres(units, kinds);
    let mut of = vec![0; units.len()];
    for _ in 0..STEPS {
        let before = of.clone();
        for (at, of) in of.iter_mut().enumerate() {
            let near = centres.iter().map(|centre| product(units, at, centre));
            let nearest = near
                .enumerate()
                .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
            *of = nearest.map_or(0, |(kind, _)| kind);
        }
        if of == before {
            break;
        }
        for centre in &mut centres {
            centre.fill(0.0);
        }
        for (at, kind) in of.iter().enumerate() {
            for (feature, weight) in units.unit(at) {
                centres[*kind][usize::from(feature)] += weight;
            }
        }
        centres.iter_mut().for_each(|centre| to_unit(centre));
    }
    of
}

fn first_centres(units: &SparseUnits, kinds: usize) -> Vec<Vec<f32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut far = vec![1.0_f64; units.len()];
    let mut centres: Vec<Vec<f32>> = Vec::new();
    while centres.len() < kinds {
        let total: f64 = far.iter().sum();
        let mut drawn = rng.random::<f64>() * total;
        let at = far.iter().position(|far| {
            drawn -= far;
            drawn <= 0.0
        });
        let mut centre = vec![0.0; BUCKETS];
        for (feature, weight) in units.unit(at.unwrap_or(0)) {
            centre[usize::from(feature)] = weight;
        }
        for (at, far) in far.iter_mut().enumerate() {
            let distance = f64::from(1.0 - product(units, at, &centre)).max(0.0);
            *far = far.min(distance);
        }
        centres.push(centre);
    }
    centres
}

fn product(units: &SparseUnits, at: usize, centre: &[f32]) -> f32 {
    let parts = units.unit(at);
    parts
        .map(|(feature, weight)| weight * centre[usize::from(feature)])
        .sum()
}

fn to_unit(centre: &mut [f32]) {
    let length = centre.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        centre.iter_mut().for_each(|x| *x /= length);
    }
}
