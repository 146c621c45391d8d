//! Making the model: corpus, tokenizer, training, the files of a Hugging Face folder.

mod classify;
pub(crate) mod corpus;
mod extract;
mod jobs;
pub(crate) mod measure;
mod message;
mod tokenizer;
pub(crate) mod triage;
mod wording;
mod words;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use retune_trainer::{DType, Example, FullSettings, Model, ModelConfig, train_full};
use serde_json::json;
use tokenizers::Tokenizer;

use corpus::{Corpus, END_OF_TURN};

/// The longest conversation, in tokens.
pub(crate) const CONTEXT: usize = 1024;
const VOCABULARY: usize = 2048;
const CHECKPOINT: Duration = Duration::from_secs(180);

/// The defaults made models/pocket.
#[derive(clap::Args)]
pub(crate) struct Settings {
    /// The folder to write.
    #[arg(long, default_value = "models/pocket")]
    out: PathBuf,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 10_000)]
    steps: usize,
    /// Conversations a step.
    #[arg(long, default_value_t = 24)]
    batch: usize,
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f64,
    /// Also save the model here every three minutes.
    #[arg(long)]
    checkpoints: Option<PathBuf>,
    /// Append `step, tokens, seconds, loss` here every 25 steps.
    #[arg(long)]
    log: Option<PathBuf>,
}

/// The one command: everything from the seed.
pub(crate) fn make(settings: &Settings) -> Result<()> {
    let begun = Instant::now();
    let tokenizer = tokenizer::train(settings.seed, VOCABULARY, tokenizer::SAMPLES)?;
    let config = shape(&tokenizer)?;
    let mut corpus = Corpus::new(settings.seed + 1)?;
    let bar = ProgressBar::new(settings.steps as u64);
    bar.set_style(ProgressStyle::with_template(
        "{bar:40} {pos}/{len} steps, {eta} left, {msg}",
    )?);
    let mut failed = None;
    let mut next_batch = |_| {
        batch(&mut corpus, &tokenizer, settings.batch).unwrap_or_else(|error| {
            failed = Some(error);
            Vec::new()
        })
    };
    let full = FullSettings {
        steps: settings.steps,
        learning_rate: settings.learning_rate,
        warmup: settings.steps / 40,
        seed: settings.seed,
        ..FullSettings::default()
    };
    let mut loss = 0.0;
    let mut saved = Instant::now();
    let mut could_not = None;
    let trained = train_full(&config, &mut next_batch, &full, &mut |now, model| {
        // A mean over about the last fifty steps.
        loss = if now.step == 1 {
            now.train_loss
        } else {
            0.98 * loss + 0.02 * now.train_loss
        };
        bar.set_position(now.step as u64);
        bar.set_message(format!(
            "loss {loss:.4}, {:.1} M tokens",
            now.tokens as f64 / 1e6
        ));
        let mut written = Ok(());
        if let Some(log) = settings.log.as_ref().filter(|_| now.step % 25 == 0) {
            let seconds = begun.elapsed().as_secs();
            written = append(
                log,
                &format!("{}, {}, {seconds}, {loss:.4}\n", now.step, now.tokens),
            );
        }
        if let Some(folder) = settings
            .checkpoints
            .as_ref()
            .filter(|_| saved.elapsed() > CHECKPOINT)
        {
            written = written.and_then(|()| save(model, &tokenizer, folder));
            saved = Instant::now();
        }
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                could_not = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    if let Some(error) = failed.or(could_not) {
        return Err(error);
    }
    save(&trained?, &tokenizer, &settings.out)?;
    bar.finish_with_message(format!(
        "loss {loss:.4}, {} s, written to {}",
        begun.elapsed().as_secs(),
        settings.out.display()
    ));
    Ok(())
}

fn batch(corpus: &mut Corpus, tokenizer: &Tokenizer, count: usize) -> Result<Vec<Example>> {
    let mut examples = Vec::with_capacity(count);
    while examples.len() < count {
        let example = corpus.sample()?.example(tokenizer)?;
        if example.tokens.len() <= CONTEXT {
            examples.push(example);
        }
    }
    Ok(examples)
}

fn shape(tokenizer: &Tokenizer) -> Result<ModelConfig> {
    let end = tokenizer
        .token_to_id(END_OF_TURN)
        .context("the tokenizer lacks <|im_end|>")?;
    if tokenizer.get_vocab_size(true) != VOCABULARY {
        bail!(
            "the tokenizer has {} tokens; expected {VOCABULARY}",
            tokenizer.get_vocab_size(true)
        );
    }
    // Readers differ in which spelling of the rotary embedding they want, and in what they take for a key that is not there.
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 192,
        "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 512,
        "hidden_act": "silu", "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "rope_scaling": null,
        "rope_parameters": { "rope_type": "default", "rope_theta": 10_000.0 }, "tie_word_embeddings": true, "attention_bias": false,
        "mlp_bias": false, "attention_dropout": 0.0, "initializer_range": 0.02, "bos_token_id": null, "eos_token_id": end,
        "use_cache": true,
    });
    Ok(ModelConfig::parse(config)?)
}

/// Writes the whole folder: weights, shape, tokenizer, how to generate.
fn save(model: &Model, tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    model.save(folder, DType::BF16)?;
    tokenizer::save(tokenizer, folder)?;
    let generation = json!({"do_sample": false, "eos_token_id": model.config().eos_token_id,
        "pad_token_id": tokenizer.token_to_id(tokenizer::PAD), "max_length": CONTEXT});
    write(
        &folder.join("generation_config.json"),
        &format!("{}\n", serde_json::to_string_pretty(&generation)?),
    )
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("could not write {}", path.display()))
}

fn append(path: &Path, line: &str) -> Result<()> {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, line.as_bytes()))
        .with_context(|| format!("could not write {}", path.display()))
}
