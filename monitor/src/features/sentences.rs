//! What a text means, by a model's own word vectors: their weighted mean, without what all texts have in common.
//!
//! Smooth inverse frequency (Arora, Liang and Ma 2017, "A simple but tough-to-beat baseline for sentence embeddings", ICLR): each token
//! weighs `a / (a + p)`, p its share of the reference's tokens, and the reference's first principal component is taken out. Then
//! random Fourier features (Rahimi and Recht 2007), whose mean discrepancy is that of a Gaussian kernel as wide as the median distance in
//! the reference (Gretton et al. 2012, section 8). No download, no forward pass: the vectors are in the base's files.

use std::collections::HashMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use retune_stats::DenseUnits;

/// The `a` of the formula, as its authors chose it.
const SMOOTH: f32 = 1e-3;
/// Frequencies; each gives a cosine and a sine.
const FREQUENCIES: usize = 128;
/// Features of a unit.
pub const WIDTH: usize = 2 * FREQUENCIES;
/// Steps of the power iteration.
const STEPS: usize = 30;
/// Reference texts whose component and distances are computed.
const SAMPLE: usize = 1_000;

/// Vectors of tokens.
pub trait Vectors {
    /// Their length.
    fn width(&self) -> usize;
    /// Adds a token's vector, times `weight`, to a sum; a token that has none adds nothing.
    fn add(&self, token: u32, weight: f32, sum: &mut [f32]);
}

/// From tokens to features, as the reference has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sentences {
    share: HashMap<u32, f32>,
    common: Vec<f32>,
    frequencies: Vec<f32>,
}

impl Sentences {
    /// Learns what is common in some texts, each given as its tokens. `seed` chooses the frequencies.
    pub fn of(vectors: &impl Vectors, texts: &[&[u32]], seed: u64) -> Self {
        let mut share: HashMap<u32, f32> = HashMap::new();
        for token in texts.iter().copied().flatten() {
            *share.entry(*token).or_default() += 1.0;
        }
        let tokens = share.values().sum::<f32>().max(1.0);
        share.values_mut().for_each(|count| *count /= tokens);
        let mut sentences = Self {
            share,
            common: vec![0.0; vectors.width()],
            frequencies: Vec::new(),
        };
        let step = texts.len().div_ceil(SAMPLE).max(1);
        let sample = texts.iter().step_by(step);
        let mut sample: Vec<Vec<f32>> = sample.map(|text| sentences.mean(vectors, text)).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        sentences.common = first_component(&sample, vectors.width(), &mut rng);
        sample
            .iter_mut()
            .for_each(|mean| without(mean, &sentences.common));
        let width = median_distance(&sample, &mut rng);
        sentences.frequencies = (0..FREQUENCIES * vectors.width())
            .map(|_| gaussian(&mut rng) / width)
            .collect();
        sentences
    }

    /// Adds a text, or several that belong together, as a unit of length 1.
    pub fn push(&self, vectors: &impl Vectors, tokens: &[u32], units: &mut DenseUnits) {
        let mut mean = self.mean(vectors, tokens);
        without(&mut mean, &self.common);
        let scale = 1.0 / (FREQUENCIES as f32).sqrt();
        let angles = self.frequencies.chunks_exact(mean.len().max(1));
        units.push(angles.flat_map(|frequency| {
            let (sin, cos) = dot(frequency, &mean).sin_cos();
            [cos * scale, sin * scale]
        }));
    }

    fn mean(&self, vectors: &impl Vectors, tokens: &[u32]) -> Vec<f32> {
        let mut sum = vec![0.0; vectors.width()];
        for token in tokens {
            let share = self.share.get(token).copied().unwrap_or(0.0);
            vectors.add(*token, SMOOTH / (SMOOTH + share), &mut sum);
        }
        let n = tokens.len().max(1) as f32;
        sum.iter_mut().for_each(|value| *value /= n);
        sum
    }
}

/// In sixteen sums beside each other, since one sum waits for each of its additions: most of a prompt's time was spent here.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (whole, others) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = whole.remainder().iter().zip(others.remainder());
    let rest: f32 = rest.map(|(a, b)| a * b).sum();
    let mut sums = [0.0; LANES];
    for (a, b) in whole.zip(others) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Takes out a vector's part along a direction of length 1.
fn without(vector: &mut [f32], direction: &[f32]) {
    let along = dot(vector, direction);
    for (value, direction) in vector.iter_mut().zip(direction) {
        *value -= along * direction;
    }
}

/// The direction in which vectors are longest, by power iteration; 0 where all are 0.
fn first_component(vectors: &[Vec<f32>], width: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let mut direction: Vec<f32> = (0..width).map(|_| gaussian(rng)).collect();
    for _ in 0..STEPS {
        let mut next = vec![0.0; width];
        for vector in vectors {
            let along = dot(vector, &direction);
            for (next, value) in next.iter_mut().zip(vector) {
                *next += along * value;
            }
        }
        let length = dot(&next, &next).sqrt();
        if length <= f32::MIN_POSITIVE {
            return vec![0.0; width];
        }
        direction = next.into_iter().map(|value| value / length).collect();
    }
    direction
}

/// Of a few thousand pairs; 1 where there is no distance.
fn median_distance(vectors: &[Vec<f32>], rng: &mut ChaCha8Rng) -> f32 {
    if vectors.len() < 2 {
        return 1.0;
    }
    let mut distances: Vec<f32> = (0..4_000)
        .map(|_| {
            let (a, b) = (
                rng.random_range(0..vectors.len()),
                rng.random_range(0..vectors.len()),
            );
            let pairs = vectors[a].iter().zip(&vectors[b]);
            pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
        })
        .filter(|distance| *distance > 0.0)
        .collect();
    distances.sort_by(f32::total_cmp);
    distances.get(distances.len() / 2).copied().unwrap_or(1.0)
}

/// Box and Muller's method.
fn gaussian(rng: &mut ChaCha8Rng) -> f32 {
    let (a, b): (f32, f32) = (rng.random(), rng.random());
    (-2.0 * (1.0 - a).ln()).sqrt() * (std::f32::consts::TAU * b).cos()
}
