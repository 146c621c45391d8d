//! The training of a run: the trainer on its own thread, its progress told on this one.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use retune_task::Task;
use retune_trainer::{Checkpoints, Decay, Example, LoraOutcome, LoraSettings, Progress, Sets};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::Error;

/// A task's examples as tokens, split.
pub(crate) struct Examples {
    pub(crate) train: Vec<Example>,
    pub(crate) development: Vec<Example>,
    pub(crate) held_out: Vec<Example>,
}

/// The task's policy as the trainer's settings; the run's id is the seed.
pub(crate) fn settings(task: &Task, hidden: usize, run_id: &str) -> LoraSettings {
    let policy = &task.retrain.lora;
    LoraSettings {
        r: policy.r,
        alpha: policy.alpha,
        rank_stabilised: policy.rank_stabilised,
        target_modules: policy
            .target_modules
            .iter()
            .map(|&name| name.to_owned())
            .collect(),
        dropout: policy.dropout as f32,
        learning_rate: policy
            .learning_rate
            .unwrap_or_else(|| retune_trainer::recommended_learning_rate(hidden)),
        warmup: policy.warmup,
        decay: match policy.decay {
            retune_task::Decay::Cosine => Decay::Cosine,
            retune_task::Decay::Linear => Decay::Linear,
            retune_task::Decay::Constant => Decay::Constant,
        },
        batch_size: policy.batch_size,
        epochs: policy.epochs,
        patience: policy.patience,
        clip: policy.clip,
        recompute: policy.recompute,
        seed: seed(run_id),
        threads: 0,
    }
}

fn seed(run_id: &str) -> u64 {
    Sha256::digest(run_id.as_bytes())
        .iter()
        .take(8)
        .fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

/// A training under way on a thread of its own. Dropping it stops the training at its next step.
pub(crate) struct Training {
    progress: mpsc::UnboundedReceiver<Progress>,
    outcome: JoinHandle<Result<LoraOutcome, retune_trainer::Error>>,
    stop: Arc<AtomicBool>,
}

impl Training {
    pub(crate) fn start(
        base: PathBuf,
        examples: Examples,
        settings: LoraSettings,
        checkpoints: Checkpoints,
    ) -> Self {
        let (sender, progress) = mpsc::unbounded_channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let outcome = tokio::task::spawn_blocking(move || {
            let sets = Sets {
                train: &examples.train,
                development: &examples.development,
                held_out: &examples.held_out,
            };
            retune_trainer::train_lora(&base, &sets, &settings, Some(&checkpoints), &mut |step| {
                let unheard = sender.send(step.clone()).is_err();
                if unheard || stopped.load(Ordering::Relaxed) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
        });
        Self {
            progress,
            outcome,
            stop,
        }
    }

    /// The next step's progress; `None` once the training is over.
    pub(crate) async fn next(&mut self) -> Option<Progress> {
        self.progress.recv().await
    }

    pub(crate) async fn finish(mut self) -> Result<LoraOutcome, Error> {
        (&mut self.outcome)
            .await
            .map_err(|_| Error::Stopped)?
            .map_err(Error::Trainer)
    }
}

impl Drop for Training {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
