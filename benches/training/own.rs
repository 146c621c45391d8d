//! Retune's side: steps of a LoRA's training as a run does them, and the machine's rate of matrix products.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use retune_trainer::{Example, LoraSettings, Sets, train_lora};
use serde_json::json;

use super::VOCABULARY;

#[derive(clap::Args)]
pub(crate) struct Steps {
    #[arg(long)]
    model: PathBuf,
    #[arg(long)]
    batch: usize,
    #[arg(long)]
    steps: usize,
    #[arg(long)]
    length: usize,
    #[arg(long)]
    learned: usize,
}

impl Steps {
    pub(crate) fn run(&self) -> Result<()> {
        let examples: Vec<Example> = (0..self.batch * self.steps)
            .map(|n| self.example(n, self.length, self.learned))
            .collect();
        let short = [self.example(0, 8, 4)];
        let settings = LoraSettings {
            batch_size: self.batch,
            epochs: 1,
            ..LoraSettings::default()
        };
        let mut times = Vec::new();
        let sets = Sets {
            train: &examples,
            development: &short,
            held_out: &short,
        };
        train_lora(&self.model, None, &sets, &settings, None, &mut |_, _| {
            times.push(Instant::now());
            ControlFlow::Continue(())
        })?;
        // The report before the first step, then one after each; the first step is left out.
        let seconds = (*times.last().context("no step")? - times[1]).as_secs_f64();
        let tokens = (self.batch * self.length * (self.steps - 1)) as f64;
        let figures =
            json!({"tokens_per_second": tokens / seconds, "peak_mib": crate::peak::mib()?});
        println!("{figures}");
        Ok(())
    }

    /// The tokens of `peft_steps.py`.
    fn example(&self, n: usize, length: usize, learned: usize) -> Example {
        let token =
            |i: usize| ((n * 7_919 + i * 104_729 + i * i * 31) % (VOCABULARY - 3) + 3) as u32;
        Example {
            tokens: (0..length).map(token).collect(),
            weights: (0..length)
                .map(|i| f32::from(i >= length - learned))
                .collect(),
        }
    }
}

/// All cores, each with products of its own, as a step's are.
pub(crate) fn rate() -> Result<()> {
    const SIDE: usize = 1_024;
    const TIMES: usize = 24;
    let threads = std::thread::available_parallelism()?.get();
    let work = || -> Result<f64> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
        pool.install(|| {
            let a = Tensor::rand(-1f32, 1.0, (SIDE, SIDE), &Device::Cpu)?;
            let warm = a.matmul(&a)?;
            let begun = Instant::now();
            for _ in 0..TIMES {
                std::hint::black_box(a.matmul(&warm)?);
            }
            Ok((2 * SIDE * SIDE * SIDE * TIMES) as f64 / begun.elapsed().as_secs_f64())
        })
    };
    let rates = std::thread::scope(|scope| -> Result<f64> {
        let busy: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        busy.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    println!("{}", json!({ "gflops": rates? / 1e9 }));
    Ok(())
}
