//! Tokens a second of full training and of generating, for the pocket model's shape: `cargo run --release --example
//! speed`.
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::ops::ControlFlow;
use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use retune_trainer::{Example, FullSettings, LlamaConfig, Result, train_full};

fn main() -> Result<()> {
    let config: LlamaConfig = serde_json::from_value(serde_json::json!({
        "vocab_size": 2048, "hidden_size": 192, "num_hidden_layers": 5, "num_attention_heads": 6,
        "num_key_value_heads": 2, "intermediate_size": 512, "max_position_embeddings": 1024,
        "tie_word_embeddings": true,
    }))
    .map_err(|error| retune_trainer::Error::Config(error.to_string()))?;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut batch = |_| {
        (0..24)
            .map(|_| {
                let n = rng.random_range(100..300);
                let tokens = (0..n).map(|_| rng.random_range(0..2048)).collect();
                Example {
                    tokens,
                    weights: (0..n).map(|i| if i == 0 { 0.0 } else { 0.2 }).collect(),
                }
            })
            .collect()
    };
    let settings = FullSettings {
        steps: 20,
        ..FullSettings::default()
    };
    let start = Instant::now();
    let mut tokens = 0;
    let model = train_full(&config, &mut batch, &settings, &mut |p, _| {
        tokens = p.tokens;
        ControlFlow::Continue(())
    })?;
    println!(
        "training: {:.0} tokens/s",
        tokens as f64 / start.elapsed().as_secs_f64()
    );
    let prompts: Vec<Vec<u32>> = (0..32).map(|i| vec![i + 1; 100]).collect();
    let start = Instant::now();
    let answers = model.generate(&prompts, 100, &[])?;
    let made: usize = answers.iter().map(Vec::len).sum();
    println!(
        "generating, 32 at once: {:.0} tokens/s",
        made as f64 / start.elapsed().as_secs_f64()
    );
    Ok(())
}
