//! The command that made the pocket model, and the one that measures it. The product itself uses the library alone.

mod make;

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use make::corpus::{Corpus, Kind};

/// Makes and measures models/pocket.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Trains tokenizer and model from the corpus generator, and writes the folder.
    Make(make::Settings),
    /// Measures what a model can do, greedily, on prompts it never saw.
    Measure(make::measure::Settings),
    /// Trains an adapter for the demo's task as the demo does, and measures it.
    Adapt(make::triage::Settings),
    /// Shows conversations of the corpus.
    Show {
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 3)]
        each: usize,
    },
    /// Answers one message.
    Ask {
        #[arg(long, default_value = "models/pocket")]
        model: PathBuf,
        #[arg(long, default_value = "")]
        system: String,
        message: String,
    },
}

fn main() -> Result<()> {
    let mut out = std::io::stdout().lock();
    match Arguments::parse().command {
        Command::Make(settings) => make::make(&settings),
        Command::Measure(settings) => make::measure::measure(&settings, &mut out),
        Command::Adapt(settings) => make::triage::adapt(&settings, &mut out),
        Command::Show { seed, each } => {
            let mut corpus = Corpus::new(seed)?;
            for kind in Kind::ALL {
                for _ in 0..each {
                    let sample = corpus.sample_of(kind)?;
                    let job = kind.name();
                    writeln!(
                        out,
                        "== {job}\n{}\n--\n{}\n--\n{}\n",
                        sample.system, sample.user, sample.answer
                    )?;
                }
            }
            Ok(())
        }
        Command::Ask {
            model,
            system,
            message,
        } => {
            let pocket = make::measure::Pocket::load(&model)?;
            let sample = make::corpus::Sample {
                system,
                user: message,
                answer: String::new(),
            };
            for answer in pocket.answers(&[sample])? {
                writeln!(out, "{answer}")?;
            }
            Ok(())
        }
    }
}
