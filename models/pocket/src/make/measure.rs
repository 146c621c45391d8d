//! What a model can do: greedy answers to prompts that it never saw.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use retune_trainer::{Example, Model};
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::corpus::{Corpus, Kind, Sample, encode};
use super::{tokenizer, triage};

const LONGEST_ANSWER: usize = 160;

#[derive(clap::Args)]
pub(crate) struct Settings {
    #[arg(long, default_value = "models/pocket")]
    model: PathBuf,
    /// Of the prompts; the corpus the model learned from has another.
    #[arg(long, default_value_t = 1_000_003)]
    seed: u64,
    /// Prompts a kind.
    #[arg(long, default_value_t = 500)]
    prompts: usize,
    /// Show this many wrong answers a kind.
    #[arg(long, default_value_t = 0)]
    wrong: usize,
    /// The demo's task alone.
    #[arg(long)]
    triage: bool,
    #[command(flatten)]
    files: triage::TaskFiles,
}

/// A model and its tokenizer.
pub(crate) struct Pocket {
    pub(crate) model: Model,
    pub(crate) tokenizer: Tokenizer,
}

impl Pocket {
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        Ok(Pocket {
            model: Model::load(folder, None)?,
            tokenizer: tokenizer::load(folder)?,
        })
    }

    pub(crate) fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        encode(&self.tokenizer, text)
    }

    pub(crate) fn example(&self, sample: &Sample) -> Result<Example> {
        sample.example(&self.tokenizer)
    }

    /// The greedy answer to each prompt.
    pub(crate) fn answers(&self, samples: &[Sample]) -> Result<Vec<String>> {
        let prompts = samples
            .iter()
            .map(|s| encode(&self.tokenizer, &s.prompt()))
            .collect::<Result<Vec<_>>>()?;
        let answers =
            self.model
                .generate(&prompts, LONGEST_ANSWER, &self.model.config().eos_token_id)?;
        answers
            .iter()
            .map(|ids| {
                self.tokenizer
                    .decode(ids, false)
                    .map_err(|error| anyhow!("{error}"))
            })
            .collect()
    }
}

pub(crate) fn measure(settings: &Settings, out: &mut impl Write) -> Result<()> {
    let pocket = Pocket::load(&settings.model)?;
    triage::base(
        &pocket,
        &settings.files,
        settings.seed,
        settings.prompts,
        settings.wrong,
        out,
    )?;
    if settings.triage {
        return Ok(());
    }
    let mut corpus = Corpus::new(settings.seed)?;
    for kind in Kind::ALL {
        let samples = (0..settings.prompts)
            .map(|_| corpus.sample_of(kind))
            .collect::<Result<Vec<_>>>()?;
        let answers = pocket.answers(&samples)?;
        let pairs: Vec<(&Sample, &String)> = samples.iter().zip(&answers).collect();
        let share = |right: &dyn Fn(&Sample, &str) -> bool| {
            100.0 * pairs.iter().filter(|(s, a)| right(s, a)).count() as f64
                / pairs.len().max(1) as f64
        };
        write!(
            out,
            "{}: {:.1} % exactly right",
            kind.name(),
            share(&|s, a| s.answer == a)
        )?;
        if kind == Kind::Extract {
            write!(
                out,
                ", {:.1} % an object with the right keys",
                share(&|s, a| same_keys(&s.answer, a))
            )?;
        }
        writeln!(out)?;
        for (sample, answer) in pairs
            .iter()
            .filter(|(s, a)| s.answer != **a)
            .take(settings.wrong)
        {
            writeln!(
                out,
                "  {}\n  > {}\n  right {}\n  said  {answer}\n",
                sample.system, sample.user, sample.answer
            )?;
        }
    }
    Ok(())
}

fn same_keys(right: &str, answer: &str) -> bool {
    let keys = |text: &str| -> Option<Vec<String>> {
        let object: Map<String, Value> = serde_json::from_str(text).ok()?;
        Some(object.into_iter().map(|(key, _)| key).collect())
    };
    keys(answer).is_some_and(|answer| keys(right) == Some(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_compared_in_order() {
        assert!(same_keys(r#"{"a": 1, "b": null}"#, r#"{"a": 2, "b": "x"}"#));
        assert!(!same_keys(
            r#"{"a": 1, "b": null}"#,
            r#"{"b": 2, "a": "x"}"#
        ));
        assert!(!same_keys(r#"{"a": 1}"#, r#"{"a": 1"#));
    }
}
