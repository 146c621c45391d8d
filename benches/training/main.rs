//! A LoRA's training steps, Retune's beside PEFT's with transformers: tokens a second, and the memory of the whole process.
//!
//!     cargo bench -p retune-trainer --bench training -- --python ~/.cache/retune-tools/parity/bin/python
//!
//! Random models of three sizes, a LoRA of rank 16 on all linear layers, sequences of 512 tokens of which the last 30 % are learned, the same
//! tokens for all, f32 (and beside it PEFT's bf16, and a base that Retune keeps in bf16, computing in f32), as many threads as there are cores. Every system runs in a process of its own, one after
//! the other in each round, so that a machine's moods hit all alike; figures are medians over the rounds. The first step of each is
//! left out. The ceiling of the speed is the machine's rate of matrix products, measured in each round, over the products that a step cannot do
//! without: two for each frozen weight, two for the head's at learned tokens, six for attention's scores and sums (each query against half of the keys).

#![allow(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "no product code"
)]

mod own;
#[path = "../common/peak.rs"]
mod peak;
#[path = "../common/report.rs"]
mod report;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use retune_trainer::{DType, Model, ModelConfig};
use serde::Deserialize;
use serde_json::{Value, json};

use report::{median, progress, round, shown, table};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LENGTH: usize = 512;
const LEARNED: usize = 154;
const VOCABULARY: usize = 32_000;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    child: Option<Child>,
    /// Python with tests/parity/requirements.txt installed; without it Retune alone is measured
    #[arg(long)]
    python: Option<PathBuf>,
    /// Only these sizes: 3M, 107M, 0.5B
    #[arg(long, value_delimiter = ',', default_value = "3M,107M,0.5B")]
    sizes: Vec<String>,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Given by `cargo bench`
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Child {
    /// Retune's steps, in a process of their own
    Own(own::Steps),
    /// The rate of matrix products, in GFLOP/s
    Rate,
}

/// A model's shape, and how much of it is measured.
struct Size {
    name: &'static str,
    config: Value,
    batch: usize,
    steps: usize,
}

fn sizes() -> [Size; 3] {
    let size = |name, hidden: usize, layers, heads, keys, inner, batch, steps| Size {
        name,
        config: json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": hidden,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": keys, "head_dim": hidden / heads,
            "intermediate_size": inner, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
        }),
        batch,
        steps,
    };
    // Without their embeddings: 3 M, 107 M (as SmolLM-135M), 0.36 B (as Qwen2.5-0.5B).
    [
        size("3M", 256, 4, 4, 2, 704, 8, 12),
        size("107M", 576, 30, 9, 3, 1536, 4, 4),
        size("0.5B", 896, 24, 14, 2, 4864, 2, 4),
    ]
}

impl Size {
    fn get(&self, key: &str) -> f64 {
        self.config[key].as_f64().unwrap_or(0.0)
    }

    /// Operations that a token's share of a step cannot do without.
    fn operations(&self) -> f64 {
        let (hidden, dim) = (self.get("hidden_size"), self.get("head_dim"));
        let (q, k) = (
            self.get("num_attention_heads") * dim,
            self.get("num_key_value_heads") * dim,
        );
        let layer = 2.0 * hidden * (q + k) + 3.0 * hidden * self.get("intermediate_size");
        let attention = 6.0 * q * LENGTH as f64;
        let learned = LEARNED as f64 / LENGTH as f64;
        self.get("num_hidden_layers") * (4.0 * layer + attention)
            + 4.0 * hidden * VOCABULARY as f64 * learned
    }
}

#[derive(Debug, Deserialize)]
struct Figures {
    tokens_per_second: f64,
    peak_mib: f64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.child {
        Some(Child::Own(steps)) => return steps.run(),
        Some(Child::Rate) => return own::rate(),
        None => {}
    }
    for size in sizes() {
        if args.sizes.iter().any(|name| name == size.name) {
            measure(&args, &size)?;
        }
    }
    Ok(())
}

const SYSTEMS: [&str; 5] = [
    "Retune",
    "Retune, base in bf16",
    "PEFT, eager",
    "PEFT, sdpa",
    "PEFT, sdpa, bf16",
];

fn measure(args: &Args, size: &Size) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = ModelConfig::parse(size.config.clone())?;
    let model = Model::random(&config, 1)?;
    let (full, half) = (folder.path().join("f32"), folder.path().join("bf16"));
    model.save(&full, DType::F32)?;
    model.save(&half, DType::BF16)?;
    drop(model);
    let systems = if args.python.is_some() {
        &SYSTEMS[..]
    } else {
        &SYSTEMS[..2]
    };
    let mut rates = Vec::new();
    let mut figures: Vec<Vec<Figures>> = systems.iter().map(|_| Vec::new()).collect();
    for n in 0..args.rounds {
        rates.push(
            child(&mut own_command(&["rate"])?)?["gflops"]
                .as_f64()
                .unwrap_or(f64::NAN),
        );
        for (system, figures) in systems.iter().zip(&mut figures) {
            let model = match *system {
                "Retune, base in bf16" => &half,
                _ => &full,
            };
            let found = child(&mut command(args, system, size, model)?)?;
            round(&json!({"size": size.name, "round": n, "system": system, "found": found}))?;
            figures.push(serde_json::from_value(found)?);
        }
        progress(&format!(
            "{}: round {} of {}",
            size.name,
            n + 1,
            args.rounds
        ));
    }
    let rate = median(rates);
    let speed = |of: &[Figures]| median(of.iter().map(|f| f.tokens_per_second));
    let memory = |of: &[Figures]| median(of.iter().map(|f| f.peak_mib));
    let (own_speed, own_memory) = (speed(&figures[0]), memory(&figures[0]));
    let rows = systems.iter().zip(&figures).map(|(system, figures)| {
        let (speed, memory) = (speed(figures), memory(figures));
        vec![
            (*system).to_owned(),
            shown(speed, 0),
            shown(memory, 0),
            shown(own_speed / speed, 2),
            shown(own_memory / memory, 2),
            shown(speed * size.operations() / rate / 1e9, 2),
        ]
    });
    println!(
        "\n{}: {} sequences a step, products at {rate:.0} GFLOP/s",
        size.name, size.batch
    );
    table(
        &[
            "",
            "tokens/s",
            "MiB at most",
            "Retune's speed / its",
            "Retune's memory / its",
            "share of the products' rate",
        ],
        &rows.collect::<Vec<_>>(),
    )
}

fn own_command(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    Ok(command)
}

fn command(args: &Args, system: &str, size: &Size, folder: &Path) -> Result<Command> {
    let mut command = match (system, &args.python) {
        (own, _) if own.starts_with("Retune") => own_command(&["own"])?,
        (_, Some(python)) => {
            let mut command = Command::new(python);
            command.arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../benches/training/peft_steps.py"
            ));
            command.args([
                "--attention",
                if system.contains("eager") {
                    "eager"
                } else {
                    "sdpa"
                },
            ]);
            command.args([
                "--dtype",
                if system.contains("bf16") {
                    "bfloat16"
                } else {
                    "float32"
                },
            ]);
            command
        }
        _ => anyhow::bail!("--python is missing"),
    };
    command.arg("--model").arg(folder);
    for (name, value) in [
        ("--batch", size.batch),
        ("--steps", size.steps),
        ("--length", LENGTH),
        ("--learned", LEARNED),
    ] {
        command.arg(name).arg(value.to_string());
    }
    Ok(command)
}

/// The last line of what it prints.
fn child(command: &mut Command) -> Result<Value> {
    let output = command.stderr(std::process::Stdio::inherit()).output();
    let output = output.with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}",
        output.status
    );
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().context("it printed nothing")?;
    Ok(serde_json::from_str(line)?)
}
