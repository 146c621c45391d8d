//! Tokens a second of full training, of training a LoRA and of generating, for the pocket model's shape: `cargo run --release --example
//! speed`.
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::ops::ControlFlow;
use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use retune_trainer::{
    DType, Error, Example, FullSettings, LoraSettings, ModelConfig, Result, train_full, train_lora,
};

fn main() -> Result<()> {
    let config = ModelConfig::parse(serde_json::json!({
        "vocab_size": 2048, "hidden_size": 192, "num_hidden_layers": 5, "num_attention_heads": 6,
        "num_key_value_heads": 2, "intermediate_size": 512, "max_position_embeddings": 1024,
        "tie_word_embeddings": true,
    }))?;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut examples = |n, lengths: std::ops::Range<usize>, answer: usize| -> Vec<Example> {
        let mut one = |_| {
            let n = rng.random_range(lengths.clone());
            let tokens = (0..n).map(|_| rng.random_range(0..2048)).collect();
            let weights = (0..n)
                .map(|i| if i + answer >= n && i > 0 { 1.0 } else { 0.0 })
                .collect();
            Example { tokens, weights }
        };
        (0..n).map(&mut one).collect()
    };
    let mut batch = |_| examples(24, 100..300, 300);
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
    let folder = tempfile::tempdir().map_err(|source| Error::Io {
        path: std::env::temp_dir(),
        source,
    })?;
    model.save(folder.path(), DType::BF16)?;
    let (train, held_out) = (examples(600, 60..120, 40), examples(60, 60..120, 40));
    let settings = LoraSettings {
        epochs: 1,
        ..LoraSettings::default()
    };
    let start = Instant::now();
    let outcome = train_lora(
        folder.path(),
        &train,
        &held_out,
        &held_out,
        &settings,
        &mut |_| ControlFlow::Continue(()),
    )?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "a LoRA's epoch: {:.0} tokens/s, {seconds:.1} s",
        outcome.tokens as f64 / seconds
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
