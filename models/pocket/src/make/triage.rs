//! The demo's task, tried on a model: the base with the full prompt, and an adapter with the short one.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use retune_demo::{Message, Texts};
use retune_task::{Check, Format};
use retune_trainer::{Example, LoraSettings, Model, Sets, recommended_learning_rate, train_lora};
use serde_json::{Map, Value};

use super::corpus::Sample;
use super::measure::Pocket;

/// Where the task's prompt and schema are.
#[derive(clap::Args)]
pub(crate) struct TaskFiles {
    #[arg(long, default_value = "task/builtin/triage.txt")]
    prompt: PathBuf,
    #[arg(long, default_value = "task/builtin/triage.schema.json")]
    schema: PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct Settings {
    #[arg(long, default_value = "models/pocket")]
    model: PathBuf,
    #[arg(long, default_value_t = 500)]
    examples: usize,
    /// Share of examples of the new kind.
    #[arg(long, default_value_t = 0.3)]
    new_share: f64,
    #[arg(long, default_value_t = 8)]
    epochs: usize,
    #[arg(long, default_value_t = 16)]
    batch_size: usize,
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Of the examples.
    #[arg(long, default_value_t = 11)]
    seed: u64,
    /// Prompts a kind.
    #[arg(long, default_value_t = 300)]
    prompts: usize,
    /// Show this many wrong answers a kind.
    #[arg(long, default_value_t = 0)]
    wrong: usize,
    #[command(flatten)]
    files: TaskFiles,
}

/// How a task's answers turned out: valid, exactly right, why not valid.
struct Outcome {
    valid: f64,
    right: f64,
    /// Each key's share of right values.
    fields: BTreeMap<String, f64>,
    reasons: BTreeMap<&'static str, usize>,
}

const SHORT_PROMPT: &str = "Triage.";

/// Each kind's share of valid and of right answers, by the base with the full prompt.
pub(crate) fn base(
    pocket: &Pocket,
    files: &TaskFiles,
    seed: u64,
    prompts: usize,
    wrong: usize,
    out: &mut impl Write,
) -> Result<()> {
    let prompt = read(&files.prompt)?;
    let (full, short) = (
        pocket.tokens(prompt.trim())?.len(),
        pocket.tokens(SHORT_PROMPT)?.len(),
    );
    writeln!(
        out,
        "triage, the base with its prompt of {full} tokens (the adapters' has {short}):"
    )?;
    kinds(pocket, prompt.trim(), files, seed, prompts, wrong, out)
}

/// Trains an adapter as the demo does, from right answers, and measures it with the short prompt.
pub(crate) fn adapt(settings: &Settings, out: &mut impl Write) -> Result<()> {
    let pocket = Pocket::load(&settings.model)?;
    let mut texts = Texts::new(settings.seed);
    let mut examples = Vec::with_capacity(settings.examples);
    let [.., new_kind] = Texts::kinds();
    let new = (settings.examples as f64 * settings.new_share) as usize;
    for i in 0..settings.examples {
        let message = if i < new {
            texts.of_kind(new_kind)
        } else {
            Some(texts.normal())
        };
        let sample = sample(&message.context("the demo has no such kind")?, SHORT_PROMPT);
        let mut example = pocket.example(&sample)?;
        let prompt = pocket.tokens(&sample.prompt())?.len();
        example
            .weights
            .iter_mut()
            .take(prompt)
            .for_each(|weight| *weight = 0.0);
        examples.push(example);
    }
    // Every tenth chooses the checkpoint, every seventh of the rest is held out.
    let mut sets: [Vec<Example>; 3] = Default::default();
    for (i, example) in examples.into_iter().enumerate() {
        let [train, development, held_out] = &mut sets;
        if i % 10 == 3 {
            development
        } else if i % 7 == 5 {
            held_out
        } else {
            train
        }
        .push(example);
    }
    let rate = settings
        .learning_rate
        .unwrap_or_else(|| recommended_learning_rate(pocket.model.config().hidden_size));
    let lora = LoraSettings {
        learning_rate: rate,
        batch_size: settings.batch_size,
        epochs: settings.epochs,
        ..LoraSettings::default()
    };
    let begun = std::time::Instant::now();
    let [train, development, held_out] = &sets;
    let named = Sets {
        train,
        development,
        held_out,
    };
    let outcome = train_lora(&settings.model, None, &named, &lora, None, &mut |_, _| {
        ControlFlow::Continue(())
    })?;
    writeln!(
        out,
        "{} steps, {} s, rate {rate:.5}, held-out loss {:.4} to {:.4}, epoch {} of {}",
        outcome.steps,
        begun.elapsed().as_secs(),
        outcome.loss_first,
        outcome.loss_last,
        outcome.chosen_epoch,
        settings.epochs
    )?;
    for point in &outcome.curve {
        let losses = (
            point.train_loss,
            point.development_loss.unwrap_or_default(),
            point.held_out_loss.unwrap_or_default(),
        );
        writeln!(
            out,
            "  epoch {}: train {:.4}, development {:.4}, held out {:.4}",
            point.epoch, losses.0, losses.1, losses.2
        )?;
    }
    let adapted = Pocket {
        model: Model::load(&settings.model, Some(&outcome.adapter))?,
        tokenizer: pocket.tokenizer,
    };
    kinds(
        &adapted,
        SHORT_PROMPT,
        &settings.files,
        settings.seed + 1,
        settings.prompts,
        settings.wrong,
        out,
    )
}

fn kinds(
    pocket: &Pocket,
    prompt: &str,
    files: &TaskFiles,
    seed: u64,
    prompts: usize,
    wrong: usize,
    out: &mut impl Write,
) -> Result<()> {
    let format = Format::json_schema(&read(&files.schema)?).map_err(|error| anyhow!("{error}"))?;
    let mut texts = Texts::new(seed);
    for kind in Texts::kinds() {
        let messages: Vec<Message> = (0..prompts).filter_map(|_| texts.of_kind(kind)).collect();
        let samples: Vec<Sample> = messages
            .iter()
            .map(|message| sample(message, prompt))
            .collect();
        let answers = pocket.answers(&samples)?;
        let outcome = outcome(&format, &messages, &answers);
        writeln!(
            out,
            "  {kind}: {:.1} % valid, {:.1} % right {:?}",
            outcome.valid, outcome.right, outcome.reasons
        )?;
        let fields: Vec<String> = outcome
            .fields
            .iter()
            .map(|(key, share)| format!("{key} {share:.1} %"))
            .collect();
        writeln!(out, "    right by field: {}", fields.join(", "))?;
        let missed = messages
            .iter()
            .zip(&answers)
            .filter(|(message, answer)| message.answer != **answer);
        for (message, answer) in missed.take(wrong) {
            writeln!(
                out,
                "    > {}\n    right {}\n    said  {answer}",
                message.text, message.answer
            )?;
        }
    }
    Ok(())
}

fn outcome(format: &Format, messages: &[Message], answers: &[String]) -> Outcome {
    let mut reasons = BTreeMap::new();
    for answer in answers {
        if let Check::Invalid { reason, .. } = format.check(answer) {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    let all = answers.len().max(1) as f64;
    let right = messages
        .iter()
        .zip(answers)
        .filter(|(message, answer)| message.answer == **answer)
        .count();
    let invalid: usize = reasons.values().sum();
    let object = |text: &str| serde_json::from_str::<Map<String, Value>>(text).unwrap_or_default();
    let mut fields: BTreeMap<String, f64> = BTreeMap::new();
    for (message, answer) in messages.iter().zip(answers) {
        let said = object(answer);
        for (key, value) in object(&message.answer) {
            let is_right = said.get(&key) == Some(&value);
            *fields.entry(key).or_default() += f64::from(u8::from(is_right)) * 100.0 / all;
        }
    }
    Outcome {
        fields,
        valid: 100.0 * (1.0 - invalid as f64 / all),
        right: 100.0 * right as f64 / all,
        reasons,
    }
}

fn sample(message: &Message, prompt: &str) -> Sample {
    Sample {
        system: prompt.to_owned(),
        user: message.text.clone(),
        answer: message.answer.clone(),
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))
}
