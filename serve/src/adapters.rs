//! Adapters in the engine's memory: loaded when they are needed, the least recently used one leaves.
//!
//! The engine's name of an adapter is made of its content and of a counter, and never used twice: an adapter replaced under one name
//! is how servers come to answer from a stale cache.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus::IntGauge;
use retune_ledger::{AdapterRef, Ledger};
use retune_task::ChatMessage;
use tokio_util::task::TaskTracker;

use crate::engine::{Engine, Event, Generation, Prompt, Sampling};
use crate::error::Error;
use crate::routing::adapter_name;

/// Which adapters are loaded.
pub(crate) struct Adapters {
    engine: Arc<dyn Engine>,
    ledger: Ledger,
    max_loaded: usize,
    loaded: Mutex<HashMap<String, Loaded>>,
    /// One load at a time: each needs the memory of a model.
    loading: tokio::sync::Mutex<()>,
    counter: AtomicU64,
    /// Owns the tasks that drain adapters on their way out.
    leaving: TaskTracker,
    gauge: IntGauge,
}

struct Loaded {
    digest: String,
    engine_name: String,
    last_used: Instant,
}

impl Adapters {
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        ledger: Ledger,
        max_loaded: usize,
        gauge: IntGauge,
    ) -> Self {
        Self {
            engine,
            ledger,
            max_loaded: max_loaded.max(1),
            loaded: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            counter: AtomicU64::default(),
            leaving: TaskTracker::new(),
            gauge,
        }
    }

    fn loaded(&self) -> MutexGuard<'_, HashMap<String, Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_loaded(&self, adapter: &AdapterRef) -> bool {
        let loaded = self.loaded();
        loaded
            .get(&name_of(adapter))
            .is_some_and(|l| l.digest == adapter.manifest.digest)
    }

    /// The adapter's engine name; loads it if it is not there. `keep`: names that must not leave for it.
    pub(crate) async fn ensure(
        &self,
        adapter: &AdapterRef,
        keep: &[String],
    ) -> Result<String, Error> {
        if let Some(name) = self.use_loaded(adapter) {
            return Ok(name);
        }
        let _one = self.loading.lock().await;
        if let Some(name) = self.use_loaded(adapter) {
            return Ok(name);
        }
        let name = name_of(adapter);
        // Another content under the same name: the old one leaves.
        self.leave(&name);
        self.make_room(keep);
        self.ledger.verify_adapter(adapter).await?;
        let begun = Instant::now();
        let digest = adapter.manifest.digest.clone();
        let short = digest.get(..12).unwrap_or(&digest);
        let engine_name = format!(
            "{name}#{short}/{}",
            self.counter.fetch_add(1, Ordering::Relaxed)
        );
        self.engine.load(&engine_name, &adapter.folder).await?;
        if let Err(e) = self.probe(&engine_name).await {
            self.engine.unload(&engine_name).await?;
            return Err(e);
        }
        tracing::info!(
            adapter = name,
            digest = short,
            seconds = begun.elapsed().as_secs_f64(),
            "adapter loaded"
        );
        self.loaded().insert(
            name,
            Loaded {
                digest,
                engine_name: engine_name.clone(),
                last_used: Instant::now(),
            },
        );
        self.count();
        Ok(engine_name)
    }

    /// Takes an adapter out of memory once its requests are done.
    pub(crate) fn unload(&self, adapter: &AdapterRef) -> Result<(), Error> {
        let name = name_of(adapter);
        if self.leave(&name) {
            Ok(())
        } else {
            Err(Error::Conflict(format!("{name} is not loaded.")))
        }
    }

    /// Waits for the adapters on their way out.
    pub(crate) async fn settled(&self) {
        self.leaving.close();
        self.leaving.wait().await;
    }

    fn use_loaded(&self, adapter: &AdapterRef) -> Option<String> {
        let mut loaded = self.loaded();
        let found = loaded
            .get_mut(&name_of(adapter))
            .filter(|l| l.digest == adapter.manifest.digest)?;
        found.last_used = Instant::now();
        Some(found.engine_name.clone())
    }

    /// Lets the least recently used adapters leave until one more fits; those in `keep` only if there are no others.
    fn make_room(&self, keep: &[String]) {
        loop {
            let leaves = {
                let loaded = self.loaded();
                if loaded.len() < self.max_loaded {
                    return;
                }
                let oldest = loaded
                    .iter()
                    .min_by_key(|(name, l)| (keep.contains(name), l.last_used));
                oldest.map(|(name, _)| name.clone())
            };
            match leaves {
                Some(name) => self.leave(&name),
                None => return,
            };
        }
    }

    /// New requests don't find it any more; the engine frees it when the last of the old ones is done. False if it was not there.
    fn leave(&self, name: &str) -> bool {
        let Some(gone) = self.loaded().remove(name) else {
            return false;
        };
        self.count();
        let engine = Arc::clone(&self.engine);
        let name = name.to_owned();
        self.leaving.spawn(async move {
            match engine.unload(&gone.engine_name).await {
                Ok(()) => tracing::info!(adapter = name, "adapter unloaded"),
                Err(e) => {
                    tracing::error!(adapter = name, error = %e, "an adapter could not be unloaded")
                }
            }
        });
        true
    }

    fn count(&self) {
        self.gauge
            .set(i64::try_from(self.loaded().len()).unwrap_or(i64::MAX));
    }

    /// One token, before anybody else gets one.
    async fn probe(&self, engine_name: &str) -> Result<(), Error> {
        let generation = Generation {
            adapter: Some(engine_name.to_owned()),
            prompt: Prompt::Messages {
                messages: vec![ChatMessage::new("user", "Hello")],
                tools: None,
            },
            sampling: Sampling::GREEDY,
            max_tokens: 1,
            stop: Vec::new(),
            logprobs: None,
            constraint: None,
        };
        let mut generating = self.engine.generate(generation).await?;
        loop {
            match generating.events.recv().await {
                Some(Event::Text { .. }) => {}
                Some(Event::Done { .. }) => return Ok(()),
                Some(Event::Failed(e)) => return Err(e),
                None => {
                    return Err(Error::Engine(
                        "the probe of a loaded adapter got no answer".to_owned(),
                    ));
                }
            }
        }
    }
}

/// `support@3`.
pub(crate) fn name_of(adapter: &AdapterRef) -> String {
    adapter_name(&adapter.task, adapter.number)
}
