//! Can the trouble be told from the usual, and which of it is the most typical?
//!
//! A logistic regression on the words, trained on four fifths and asked about the last one, five times (the domain classifier of
//! Rabanser, Günnemann and Lipton 2019, "Failing loudly", NeurIPS 32). Steps by AdaGrad (Duchi, Hazan and Singer 2011), both groups with
//! the same weight, whatever their sizes.

use retune_stats::SparseUnits;

use super::{Groups, Typical};
use crate::features::ngrams::BUCKETS;

const FOLDS: usize = 5;
/// Fewer of either group say nothing of the next.
const FEWEST: u32 = 8;
const EPOCHS: usize = 8;
const RATE: f32 = 0.5;
const DECAY: f32 = 1e-4;
/// So many are told.
const TOLD: usize = 20;

/// The area under the curve, and the trouble's most typical conversations.
pub(super) fn rank(groups: &Groups<'_>) -> (Option<f64>, Vec<Typical>) {
    let (usual, trouble) = groups.sizes();
    let is_enough = usual.min(trouble) >= FEWEST;
    let scores = match is_enough {
        true => scores(&groups.units, &groups.is_trouble, (usual, trouble)),
        false => vec![0.0; groups.all.len()],
    };
    let told = groups.all.iter().zip(&groups.is_trouble).zip(&scores);
    let told = told.filter(|((_, is_trouble), _)| **is_trouble);
    let mut rows: Vec<Typical> = told
        .map(|((one, _), score)| Typical {
            request_id: one.first.request_id.clone(),
            score: f64::from(*score),
        })
        .collect();
    rows.sort_by(|a, b| b.score.total_cmp(&a.score));
    rows.truncate(TOLD);
    (is_enough.then(|| area(&scores, &groups.is_trouble)), rows)
}

/// Of each unit by a classifier that has not seen it.
fn scores(units: &SparseUnits, is_trouble: &[bool], (usual, trouble): (u32, u32)) -> Vec<f32> {
    let weights = [0.5 / usual as f32, 0.5 / trouble as f32];
    let scale = units.len() as f32;
    let mut scores = vec![0.0; units.len()];
    for fold in 0..FOLDS {
        let mut model = Model::new();
        for _ in 0..EPOCHS {
            for (at, is_trouble) in is_trouble.iter().enumerate() {
                if at % FOLDS != fold {
                    let weight = weights[usize::from(*is_trouble)] * scale;
                    model.step(units, at, *is_trouble, weight);
                }
            }
        }
        for at in (fold..units.len()).step_by(FOLDS) {
            scores[at] = model.score(units, at);
        }
    }
    scores
}

struct Model {
    /// The last one is the constant's.
    weights: Vec<f32>,
    squares: Vec<f32>,
}

impl Model {
    fn new() -> Self {
        Self {
            weights: vec![0.0; BUCKETS + 1],
            squares: vec![1e-6; BUCKETS + 1],
        }
    }

    fn score(&self, units: &SparseUnits, at: usize) -> f32 {
        let parts = units.unit(at);
        let parts = parts.map(|(feature, x)| x * self.weights[usize::from(feature)]);
        parts.sum::<f32>() + self.weights[BUCKETS]
    }

    fn step(&mut self, units: &SparseUnits, at: usize, is_trouble: bool, weight: f32) {
        let chance = 1.0 / (1.0 + (-self.score(units, at)).exp());
        let error = weight * (chance - f32::from(u8::from(is_trouble)));
        let mut step = |feature: usize, x: f32| {
            let slope = error * x + DECAY * self.weights[feature];
            self.squares[feature] += slope * slope;
            self.weights[feature] -= RATE * slope / self.squares[feature].sqrt();
        };
        for (feature, x) in units.unit(at) {
            step(usize::from(feature), x);
        }
        step(BUCKETS, 1.0);
    }
}

/// The chance that one of the trouble has a higher score than one of the usual, ties counting half (Mann and Whitney 1947).
fn area(scores: &[f32], is_trouble: &[bool]) -> f64 {
    let mut order: Vec<(f32, bool)> = scores
        .iter()
        .copied()
        .zip(is_trouble.iter().copied())
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut wins, mut trouble) = (0.0_f64, 0.0, 0.0);
    for same in order.chunk_by(|a, b| a.0 == b.0) {
        let of_trouble = same.iter().filter(|(_, is)| *is).count() as f64;
        let of_usual = same.len() as f64 - of_trouble;
        wins += of_trouble * (below + of_usual / 2.0);
        below += of_usual;
        trouble += of_trouble;
    }
    wins / (below * trouble)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_the_share_of_pairs_in_order() {
        let area = |scores: &[f32]| area(scores, &[false, true, false, true]);
        assert_eq!(area(&[0.0, 1.0, 0.0, 1.0]), 1.0);
        assert_eq!(area(&[1.0, 0.0, 1.0, 0.0]), 0.0);
        assert_eq!(area(&[0.0; 4]), 0.5);
        // Of the four pairs three are in order.
        assert_eq!(area(&[0.1, 0.3, 0.2, 0.15]), 0.75);
    }
}
