//! What several test modules need.
#![allow(clippy::unwrap_used, reason = "tests")]

use candle_core::DType;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::ops::slice::edit;
use crate::{Model, ModelConfig};

/// `n` numbers in -1..1.
pub(crate) fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Holds `gradient` against central differences of `f` around `x`.
pub(crate) fn assert_gradient(x: &[f32], gradient: &[f32], f: impl Fn(&[f32]) -> f64) {
    let step = 1e-2f32;
    let mut moved = x.to_vec();
    for i in 0..x.len() {
        let at = |moved: &mut Vec<f32>, delta: f32| {
            moved[i] = x[i] + delta;
            f(moved)
        };
        // Fourth-order central difference: a large step keeps f32's rounding out of it.
        let (a, b) = (at(&mut moved, step), at(&mut moved, -step));
        let (c, d) = (at(&mut moved, 2.0 * step), at(&mut moved, -2.0 * step));
        moved[i] = x[i];
        let numeric = (8.0 * (a - b) - (c - d)) / (12.0 * f64::from(step));
        let difference = (numeric - f64::from(gradient[i])).abs();
        assert!(
            difference < 1e-3 * (1.0 + numeric.abs()),
            "at {i}: {} is not {numeric}",
            gradient[i]
        );
    }
}

/// A Llama small enough for exact comparisons.
pub(crate) fn tiny_config() -> ModelConfig {
    tiny(json!({}))
}

/// The same with other settings.
pub(crate) fn tiny(settings: Value) -> ModelConfig {
    let mut all = json!({
        "model_type": "llama",
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": true,
        "eos_token_id": 0,
    });
    let object = all.as_object_mut().unwrap();
    object.extend(settings.as_object().unwrap().clone());
    ModelConfig::parse(all).unwrap()
}

/// A folder with a tiny base whose embedding is large enough for the head, which is the same and stays frozen, to tell tokens apart.
pub(crate) fn telling_base(dtype: DType) -> tempfile::TempDir {
    let base = tempfile::tempdir().unwrap();
    let model = Model::random(&tiny_config(), 4).unwrap();
    let table = &model.embedding.tensor;
    edit(table, |x| x.iter_mut().for_each(|x| *x *= 40.0)).unwrap();
    model.save(base.path(), dtype).unwrap();
    base
}
