//! The trainer on a thread of its own, which gives way to the others, and its progress told on this one.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use retune_task::Task;
use retune_trainer::{
    Checkpoints, Decay, DpoSettings, Example, LoraAdapter, LoraOutcome, LoraSettings, Preference,
    Progress, Sets,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::{Error, Options, memory};

/// What is learned from, as tokens, split.
#[derive(Default)]
pub(crate) struct Split<T> {
    pub(crate) train: Vec<T>,
    pub(crate) development: Vec<T>,
    pub(crate) held_out: Vec<T>,
}

pub(crate) type Examples = Split<Example>;

impl<T> Split<T> {
    fn sets(&self) -> Sets<'_, T> {
        Sets {
            train: &self.train,
            development: &self.development,
            held_out: &self.held_out,
        }
    }
}

/// What an adapter learns.
pub(crate) enum Material {
    Examples(Examples),
    Preferences(Split<Preference>, DpoSettings),
}

impl Material {
    /// How many there are to train on, and held out.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let (train, held_out) = match self {
            Self::Examples(all) => (all.train.len(), all.held_out.len()),
            Self::Preferences(pairs, _) => (pairs.train.len(), pairs.held_out.len()),
        };
        (train as u64, held_out as u64)
    }
}

/// Of which base an adapter learns what, going on from which.
pub(crate) struct Lesson {
    /// The base's folder.
    pub(crate) base: PathBuf,
    /// None: a fresh one.
    pub(crate) from: Option<LoraAdapter>,
    pub(crate) of: Material,
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

/// The settings as a manifest keeps them.
pub(crate) fn of_manifest(settings: &LoraSettings, chosen_epoch: Option<u64>) -> Value {
    let mut shown = shown(settings);
    shown["chosen_epoch"] = json!(chosen_epoch);
    shown["seed"] = json!(settings.seed);
    shown
}

/// The settings as others read them, but for the seed.
pub(crate) fn shown(settings: &LoraSettings) -> Value {
    json!({
        "r": settings.r,
        "alpha": settings.alpha,
        "rank_stabilised": settings.rank_stabilised,
        "target_modules": settings.target_modules,
        "dropout": settings.dropout,
        "learning_rate": settings.learning_rate,
        "warmup": settings.warmup,
        "decay": match settings.decay {
            Decay::Cosine => "cosine",
            Decay::Linear => "linear",
            Decay::Constant => "constant",
        },
        "clip": settings.clip,
        "patience": settings.patience,
        "batch_size": settings.batch_size,
        "epochs": settings.epochs,
        "recompute": settings.recompute,
    })
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
    outcome: JoinHandle<Result<LoraOutcome, Error>>,
    stop: Arc<AtomicBool>,
}

/// What is done with the adapter at the end of each epoch, before how far the training is gets kept. An error ends the training.
pub(crate) type AtEpoch = Box<dyn FnMut(usize, &LoraAdapter) -> Result<(), Error> + Send>;

impl Training {
    /// One of a run's: on its base, as its server may train. It goes on from `checkpoint`, if that is there.
    pub(crate) fn of_run(
        o: &Options,
        from: Option<LoraAdapter>,
        of: Material,
        settings: LoraSettings,
        checkpoint: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let base = o.base.clone();
        Self::start(
            Lesson { base, from, of },
            settings,
            checkpoint.map(|path| Checkpoints::new(path, o.limits.checkpoint)),
            &o.config.training,
            Box::new(|_, _| Ok(())),
        )
    }

    pub(crate) fn start(
        lesson: Lesson,
        settings: LoraSettings,
        checkpoints: Option<Checkpoints>,
        may: &retune_task::Training,
        mut at_epoch: AtEpoch,
    ) -> Result<Self, Error> {
        let (sender, progress) = mpsc::unbounded_channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (memory, niceness) = (may.memory_bytes, may.niceness);
        let train = move || {
            give_way(niceness);
            let mut failed = None;
            let mut observer = |now: &Progress, adapter: &LoraAdapter| {
                let is_new_epoch = now.ends_epoch && !now.is_past;
                let kept = match is_new_epoch {
                    true => at_epoch(now.epoch, adapter),
                    false => Ok(()),
                };
                if let Err(error) = kept.and_then(|()| memory::within(memory)) {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
                let unheard = sender.send(now.clone()).is_err();
                if unheard || stopped.load(Ordering::Relaxed) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            let Lesson { base, from, of } = &lesson;
            let (from, checkpoints) = (from.as_ref(), checkpoints.as_ref());
            let trained = match of {
                Material::Examples(examples) => {
                    let sets = examples.sets();
                    retune_trainer::train_lora(
                        base,
                        from,
                        &sets,
                        &settings,
                        checkpoints,
                        &mut observer,
                    )
                }
                Material::Preferences(pairs, dpo) => retune_trainer::train_preferences(
                    base,
                    from,
                    &pairs.sets(),
                    *dpo,
                    &settings,
                    checkpoints,
                    &mut observer,
                ),
            };
            match failed {
                Some(error) => Err(error),
                None => trained.map_err(Error::Trainer),
            }
        };
        let thread = std::thread::Builder::new().name("training".to_owned());
        let thread = thread.spawn(train).map_err(Error::Thread)?;
        // The runtime's end waits for it, and so until what was reached is kept; a panic is its outcome, too.
        let outcome =
            tokio::task::spawn_blocking(move || thread.join().map_err(|_| Error::Stopped)?);
        Ok(Self {
            progress,
            outcome,
            stop,
        })
    }

    /// The next step's progress; `None` once the training is over.
    pub(crate) async fn next(&mut self) -> Option<Progress> {
        self.progress.recv().await
    }

    /// Lets it stop at its next step, when how far it is gets kept.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(crate) async fn finish(mut self) -> Result<LoraOutcome, Error> {
        (&mut self.outcome).await.map_err(|_| Error::Stopped)?
    }
}

impl Drop for Training {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What serves or answers somebody goes first. Threads that the training starts inherit it. Only Linux has priorities of single threads.
fn give_way(niceness: u8) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, i32::from(niceness)) {
        tracing::debug!(%error, "the training keeps its priority");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = niceness;
}
