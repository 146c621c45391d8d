//! One model in memory, the base or an adapter, with an engine of its own; and what becomes of it when that breaks down.
//!
//! A panic in mistralrs, in a forward pass or while it samples, ends the engine's thread. With the next request it would start another
//! thread on the same weights. That is no way back: the cache of keys and values is locked during a forward pass, a panic leaves its
//! lock poisoned, and every later request would end in the next panic. So a model whose engine broke down is let go of as a whole and
//! loaded anew from its files, as at the start; never are both in memory.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

#[cfg(test)]
use mistralrs_core::Pipeline;
use mistralrs_core::{
    DefaultSchedulerMethod, MistralRs, MistralRsBuilder, Request, SchedulerConfig,
};
use prometheus::IntCounter;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Sender;
use tokio_util::task::TaskTracker;

use super::load::{Files, NAME, SharedPipeline, load, on_its_own_thread};
use crate::error::Error;

/// How long a base that could not be loaded anew is left alone before the next attempt: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A loaded model. Dropped, its engine's thread ends and the weights are freed.
pub(super) struct Model {
    handle: Handle,
    /// Set before the engine is told to end: its end is no breakdown then.
    ending: Arc<AtomicBool>,
    _mistral: Arc<MistralRs>,
    #[cfg(test)]
    pipeline: Weak<tokio::sync::Mutex<dyn Pipeline + Send + Sync>>,
}

/// What a request needs of a model. It keeps no weights in memory.
#[derive(Clone)]
pub(super) struct Handle {
    /// To the engine's thread; closed once that has ended.
    pub(super) engine: Sender<Request>,
    /// One request at a time; first come, first served.
    pub(super) turn: Arc<Semaphore>,
    /// Those that run or wait.
    pub(super) requests: TaskTracker,
    /// What loading it took.
    loading: Duration,
}

impl Handle {
    /// Whether its engine lives.
    pub(super) fn alive(&self) -> bool {
        !self.engine.is_closed()
    }

    /// What its requests get once its engine has broken down: a load takes as long as the last one did.
    pub(super) fn broken(&self) -> Error {
        Error::Restarting {
            seconds: self.loading.as_secs() + 1,
        }
    }
}

impl Model {
    /// Starts the engine of a model that has been loading since `begun`.
    pub(super) fn new(pipeline: SharedPipeline, begun: Instant) -> Result<Self, Error> {
        #[cfg(test)]
        let weak = Arc::downgrade(&pipeline);
        // Its throughput is told for the sake of the thread that tells it, which ends with that (src/log.rs), and else never.
        let throughput = true;
        let mistral = MistralRsBuilder::new(pipeline, scheduler(), throughput, None)
            .with_model_id(NAME)
            .with_no_prefix_cache(true)
            .build();
        let mistral = futures::executor::block_on(mistral);
        // Asked for once: mistralrs starts dead threads again, in its own way, whenever it is asked.
        let engine = mistral
            .get_sender(None)
            .map_err(|e| Error::Engine(e.to_string()))?;
        Ok(Self {
            handle: Handle {
                engine,
                turn: Arc::new(Semaphore::new(1)),
                requests: TaskTracker::new(),
                loading: begun.elapsed(),
            },
            ending: Arc::default(),
            _mistral: mistral,
            #[cfg(test)]
            pipeline: weak,
        })
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits for the engine's end; true if it broke down.
    pub(super) fn ended(&self) -> impl Future<Output = bool> + Send + use<> {
        let (engine, ending) = (self.handle.engine.clone(), Arc::clone(&self.ending));
        async move {
            engine.closed().await;
            !ending.load(Ordering::Relaxed)
        }
    }

    /// Lets the requests finish, then frees the weights. False if the engine had broken down.
    pub(super) async fn end(self) -> Result<bool, Error> {
        let handle = self.handle();
        handle.requests.close();
        handle.requests.wait().await;
        let alive = handle.alive();
        on_its_own_thread(move || {
            drop(self);
            Ok(())
        })
        .await?;
        handle.engine.closed().await;
        Ok(alive)
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::panic, reason = "tests")]
impl Model {
    /// Leaves the lock of the cache as a panic in a forward pass does: the next pass panics as well.
    pub(super) fn poison(&self) {
        let pipeline = self.pipeline.upgrade().expect("a loaded model");
        let cache = futures::executor::block_on(pipeline.lock()).cache().clone();
        let panicked = std::thread::spawn(move || {
            let _held = cache.normal();
            panic!("as in a forward pass");
        });
        panicked.join().expect_err("a panic");
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        if self.handle.alive() {
            self.ending.store(true, Ordering::Relaxed);
        }
    }
}

/// The base, which comes back by itself.
#[derive(Clone)]
pub(super) struct Base(Arc<Mutex<Slot>>);

struct Slot {
    /// Of the model, or of the one before while there is none.
    handle: Handle,
    model: Option<Model>,
}

impl Slot {
    fn new(model: Model) -> Self {
        Self {
            handle: model.handle(),
            model: Some(model),
        }
    }
}

impl Base {
    /// Watches over `model`, and loads it anew from `files` as often as its engine breaks down.
    pub(super) fn new(model: Model, files: Arc<Files>, restarts: IntCounter) -> Self {
        let base = Self(Arc::new(Mutex::new(Slot::new(model))));
        tokio::spawn(kept(Arc::downgrade(&base.0), files, restarts));
        base
    }

    pub(super) fn handle(&self) -> Handle {
        held(&self.0).handle.clone()
    }

    #[cfg(test)]
    pub(super) fn with_model<T>(&self, look: impl FnOnce(&Model) -> T) -> Option<T> {
        held(&self.0).model.as_ref().map(look)
    }
}

/// Ends when the base is no longer wanted.
async fn kept(base: Weak<Mutex<Slot>>, files: Arc<Files>, restarts: IntCounter) {
    loop {
        let ended = base
            .upgrade()
            .and_then(|slot| held(&slot).model.as_ref().map(Model::ended));
        let Some(ended) = ended else { return };
        if !ended.await {
            return;
        }
        told("base", &restarts);
        if let Some(dead) = base.upgrade().and_then(|slot| held(&slot).model.take())
            && let Err(e) = dead.end().await
        {
            tracing::error!(error = %e, "a model whose engine broke down could not be freed");
        }
        let Some(model) = loaded_anew(&base, &files).await else {
            return;
        };
        tracing::info!(
            seconds = model.handle.loading.as_secs_f64(),
            "the base answers again"
        );
        let Some(slot) = base.upgrade() else {
            return;
        };
        *held(&slot) = Slot::new(model);
    }
}

/// Tries until it succeeds, or until nobody wants the base any more.
async fn loaded_anew(base: &Weak<Mutex<Slot>>, files: &Arc<Files>) -> Option<Model> {
    let (mut pause, longest) = PAUSE;
    while base.strong_count() > 0 {
        match load(files, None).await {
            Ok(loaded) => return Some(loaded.model),
            Err(e) => {
                tracing::error!(error = %e, again_in = ?pause, "the base could not be loaded anew");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
        }
    }
    None
}

/// Counts a breakdown and says that there was one; of what was asked, nothing is known here.
pub(super) fn told(model: &str, restarts: &IntCounter) {
    restarts.inc();
    tracing::error!(
        model,
        "an engine panicked: its requests get a 503, and its model is loaded anew"
    );
}

fn held(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

fn scheduler() -> SchedulerConfig {
    SchedulerConfig::DefaultScheduler {
        method: DefaultSchedulerMethod::Fixed(NonZeroUsize::MIN),
    }
}
