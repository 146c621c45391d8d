//! Adapters in the engine's memory: loaded when they are needed, the least recently used one leaves.
//!
//! The engine's name of an adapter is made of its content and of a counter, and never used twice: an adapter replaced under one name
//! is how servers come to answer from a stale cache. A load runs in a task of its own, so that nobody who leaves meanwhile leaves half
//! a load behind.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus::IntGauge;
use retune_ledger::{AdapterRef, Ledger};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::engine::Engine;
use crate::error::Error;
use crate::probe::Prober;
use crate::routing::adapter_name;

const MIB: u64 = 1 << 20;

/// How much of the memory adapters may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// `engine.max_loaded`.
    pub(crate) max_loaded: usize,
    pub(crate) budget: Option<Budget>,
}

/// A limit in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// `engine.adapters_memory_mib`.
    pub(crate) mib: u64,
    /// Bytes of one adapter: each is a copy of the base's weights.
    pub(crate) each: u64,
}

impl Room {
    /// Adapters that fit; at least one, or the error says what one needs.
    fn places(&self) -> Result<usize, Error> {
        let most = self.max_loaded.max(1);
        let Some(Budget { mib, each }) = self.budget else {
            return Ok(most);
        };
        let fit = (mib * MIB).checked_div(each).unwrap_or(u64::MAX);
        match usize::try_from(fit).unwrap_or(usize::MAX) {
            0 => Err(Error::NoRoom {
                needed_mib: each.div_ceil(MIB),
                budget_mib: mib,
            }),
            fit => Ok(fit.min(most)),
        }
    }
}

/// Which adapters are loaded.
pub(crate) struct Adapters(Arc<Shared>);

struct Shared {
    engine: Arc<dyn Engine>,
    ledger: Ledger,
    prober: Prober,
    room: Room,
    loaded: Mutex<HashMap<String, Loaded>>,
    /// One load at a time: each needs the memory of a model.
    loading: tokio::sync::Mutex<()>,
    counter: AtomicU64,
    /// Owns the tasks that load adapters, and that drain them on their way out.
    tasks: TaskTracker,
    /// How many are on their way out.
    leaving: watch::Sender<usize>,
    gauge: IntGauge,
    /// Where the tasks run: not on the threads of the HTTP server, which end before their work does.
    runtime: tokio::runtime::Handle,
}

struct Loaded {
    digest: String,
    engine_name: String,
    last_used: Instant,
}

impl Adapters {
    /// Its tasks run on the runtime that this is called on.
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        ledger: Ledger,
        prober: Prober,
        room: Room,
        gauge: IntGauge,
    ) -> Self {
        Self(Arc::new(Shared {
            engine,
            ledger,
            prober,
            room,
            loaded: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            counter: AtomicU64::default(),
            tasks: TaskTracker::new(),
            leaving: watch::Sender::new(0),
            gauge,
            runtime: tokio::runtime::Handle::current(),
        }))
    }

    pub(crate) fn is_loaded(&self, adapter: &AdapterRef) -> bool {
        self.forget_broken();
        let loaded = self.0.loaded();
        loaded
            .get(&name_of(adapter))
            .is_some_and(|l| l.digest == adapter.manifest.digest)
    }

    /// Forgets those whose engine broke down; the next request loads them again.
    pub(crate) fn forget_broken(&self) {
        let engine = &self.0.engine;
        let held = |loaded: &Loaded| engine.holds_adapter(&loaded.engine_name);
        self.0.loaded().retain(|_, loaded| held(loaded));
        self.0.count();
    }

    /// How many can be in memory at once; 1 where not even one can: the attempt to load it says so.
    pub(crate) fn places(&self) -> usize {
        self.0.room.places().unwrap_or(1)
    }

    /// The adapter's engine name; loads it if it is not there. `keep`: names that must not leave for it.
    pub(crate) async fn ensure(
        &self,
        adapter: &AdapterRef,
        keep: &[String],
    ) -> Result<String, Error> {
        if let Some(name) = self.0.use_loaded(adapter) {
            return Ok(name);
        }
        let (shared, adapter, keep) = (Arc::clone(&self.0), adapter.clone(), keep.to_vec());
        let load = async move { shared.ensure(&adapter, &keep).await };
        let loaded = self.0.tasks.spawn_on(load, &self.0.runtime).await;
        loaded.unwrap_or_else(|e| Err(Error::Engine(format!("a load was cut off: {e}"))))
    }

    /// Takes an adapter out of memory once its requests are done.
    pub(crate) fn unload(&self, adapter: &AdapterRef) -> Result<(), Error> {
        let name = name_of(adapter);
        if self.0.leave(&name) {
            Ok(())
        } else {
            Err(Error::Conflict(format!("{name} is not loaded.")))
        }
    }

    /// Waits for loads under way, and for the adapters on their way out.
    pub(crate) async fn settled(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Shared {
    fn loaded(&self) -> MutexGuard<'_, HashMap<String, Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ensure(&self, adapter: &AdapterRef, keep: &[String]) -> Result<String, Error> {
        let _one = self.loading.lock().await;
        if let Some(name) = self.use_loaded(adapter) {
            return Ok(name);
        }
        let name = name_of(adapter);
        let places = self.room.places()?;
        self.ledger.verify_adapter(adapter).await?;
        // Another content under the same name: the old one leaves.
        self.leave(&name);
        self.make_room(places, keep).await;
        let begun = Instant::now();
        let digest = adapter.manifest.digest.clone();
        let short = digest.get(..12).unwrap_or(&digest);
        let engine_name = format!(
            "{name}#{short}/{}",
            self.counter.fetch_add(1, Ordering::Relaxed)
        );
        self.engine.load(&engine_name, &adapter.folder).await?;
        if let Err(e) = self.prober.prove(adapter, &engine_name).await {
            return Err(match self.engine.unload(&engine_name).await {
                Ok(()) => e,
                // No passing trouble: it is this adapter's questions that the engine broke down on.
                Err(Error::NotLoaded(_)) => {
                    Error::Engine(format!("it broke down while {name} was proved"))
                }
                Err(e) => e,
            });
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

    fn use_loaded(&self, adapter: &AdapterRef) -> Option<String> {
        let name = name_of(adapter);
        let mut loaded = self.loaded();
        let found = loaded
            .get_mut(&name)
            .filter(|l| l.digest == adapter.manifest.digest)?;
        if self.engine.holds_adapter(&found.engine_name) {
            found.last_used = Instant::now();
            return Some(found.engine_name.clone());
        }
        loaded.remove(&name);
        drop(loaded);
        self.count();
        None
    }

    /// Lets the least recently used adapters leave until one more fits; those in `keep` only if there are no others. With a budget of
    /// memory it waits until they have left, that is until their last requests are done.
    async fn make_room(&self, places: usize, keep: &[String]) {
        loop {
            let leaves = {
                let loaded = self.loaded();
                let oldest = loaded
                    .iter()
                    .min_by_key(|(name, l)| (keep.contains(name), l.last_used));
                oldest
                    .filter(|_| loaded.len() >= places)
                    .map(|(name, _)| name.clone())
            };
            match leaves {
                Some(name) => self.leave(&name),
                None => break,
            };
        }
        if self.room.budget.is_none() {
            return;
        }
        let mut leaving = self.leaving.subscribe();
        while !self.fits(places) {
            if leaving.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether one more fits beside those that are loaded and those that have not left yet.
    fn fits(&self, places: usize) -> bool {
        // Both locks in the order of [`Self::leave`].
        let loaded = self.loaded();
        loaded.len() + *self.leaving.borrow() < places
    }

    /// New requests don't find it any more; the engine frees it when the last of the old ones is done. False if it was not there.
    fn leave(&self, name: &str) -> bool {
        let gone = {
            let mut loaded = self.loaded();
            let gone = loaded.remove(name);
            if gone.is_some() {
                // While the lock is held: whoever counts finds it here or there.
                self.leaving.send_modify(|leaving| *leaving += 1);
            }
            gone
        };
        let Some(gone) = gone else {
            return false;
        };
        self.count();
        let (engine, leaving) = (Arc::clone(&self.engine), self.leaving.clone());
        let name = name.to_owned();
        let drain = async move {
            match engine.unload(&gone.engine_name).await {
                Ok(()) | Err(Error::NotLoaded(_)) => {
                    tracing::info!(adapter = name, "adapter unloaded")
                }
                Err(e) => {
                    tracing::error!(adapter = name, error = %e, "an adapter could not be unloaded")
                }
            }
            leaving.send_modify(|leaving| *leaving -= 1);
        };
        self.tasks.spawn_on(drain, &self.runtime);
        true
    }

    fn count(&self) {
        self.gauge
            .set(i64::try_from(self.loaded().len()).unwrap_or(i64::MAX));
    }
}

/// `support@3`.
pub(crate) fn name_of(adapter: &AdapterRef) -> String {
    adapter_name(&adapter.task, adapter.number)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn places(max_loaded: usize, budget: Option<(u64, u64)>) -> Result<usize, String> {
        let budget = budget.map(|(mib, each)| Budget { mib, each });
        Room { max_loaded, budget }
            .places()
            .map_err(|e| e.to_string())
    }

    #[test]
    fn the_budget_and_the_number_limit_each_other() {
        assert_eq!(places(4, None), Ok(4));
        assert_eq!(places(4, Some((100, 30 * MIB))), Ok(3));
        assert_eq!(places(2, Some((100, 30 * MIB))), Ok(2));
        assert_eq!(places(2, Some((30, 30 * MIB))), Ok(1));
        assert_eq!(places(2, Some((1, 0))), Ok(2));
        let none = places(2, Some((30, 30 * MIB + 1))).unwrap_err();
        assert!(
            none.contains("takes 31 MiB") && none.contains("adapters_memory_mib allows 30"),
            "{none}"
        );
    }
}
