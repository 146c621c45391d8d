//! What every route needs, in one struct.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use prometheus::Registry;
use retune_ledger::{AdapterRef, Ledger, Source, Stage, Stages};
use retune_task::{Config, Task};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::adapters::{Adapters, name_of};
use crate::admission::Admission;
use crate::console::{Overview, Reviews};
use crate::engine::Engine;
use crate::error::Error;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::rates::Rates;
use crate::routing::{Route, Table, TaskRoutes, adapter_name};
use crate::trace::Traces;

/// How often stages and keys are looked at: another process may have changed them.
const REFRESH: Duration = Duration::from_secs(1);
/// How long stages that could not be served are left alone before they are tried again.
const RETRY: Duration = Duration::from_secs(30);

/// The server's state.
pub(crate) struct App {
    pub(crate) config: Arc<Config>,
    pub(crate) ledger: Ledger,
    pub(crate) registry: Registry,
    /// Where traces go, if anywhere.
    pub(crate) traces: Option<Arc<dyn Traces>>,
    pub(crate) metrics: Metrics,
    pub(crate) engine: Arc<dyn Engine>,
    /// The base's folder.
    pub(crate) base: PathBuf,
    pub(crate) adapters: Adapters,
    pub(crate) admission: Admission,
    pub(crate) table: ArcSwap<Table>,
    /// Who may come in.
    pub(crate) keys: ArcSwap<Keys>,
    /// How much they may ask.
    pub(crate) rates: Rates,
    /// When the base was made, in seconds since 1970: the `created` of models without an own time.
    pub(crate) created: i64,
    /// Owns the tasks of running exchanges.
    pub(crate) exchanges: TaskTracker,
    /// Where they run: not on the threads of the HTTP server.
    pub(crate) runtime: tokio::runtime::Handle,
    /// No new requests.
    pub(crate) stopping: CancellationToken,
    /// The time for running requests is over.
    pub(crate) abandoned: CancellationToken,
    /// One refresh at a time.
    pub(crate) refreshing: tokio::sync::Mutex<()>,
    /// Whether the last refresh failed, so that the log says it once.
    pub(crate) stale: AtomicBool,
    /// Whether there was a refresh for which an engine was there: before it nobody knows who answers for a task.
    pub(crate) known: AtomicBool,
    /// What the console's review remembers between pages.
    pub(crate) reviews: Reviews,
    /// And its overview.
    pub(crate) overview: Overview,
    /// Tasks whose newest stages cannot be served.
    pub(crate) unfit: Mutex<HashMap<String, Unfit>>,
}

/// Stages with an adapter that could not be loaded.
pub(crate) struct Unfit {
    seq: u64,
    at: Instant,
}

impl App {
    /// Reads stages and adapters from the ledger, loads what newly gets traffic, then swaps the table. A task with an adapter that
    /// cannot be loaded goes on with the stages that it had, and the first such error comes back; other tasks are not held up.
    pub(crate) async fn refresh(&self) -> Result<Option<Error>, Error> {
        let _one = self.refreshing.lock().await;
        self.adapters.forget_broken();
        let before = self.table.load_full();
        let mut table = Table::new(&before.base, self.standing(&before).await?);
        let (had, keep) = (in_traffic(&before), in_traffic(&table));
        let (mut places, mut unfit, mut first) = (self.adapters.places(), Vec::new(), None);
        for routes in table.tasks() {
            let task = &routes.task.name;
            if self.is_unfit(task, routes.stages.seq) {
                unfit.push(task.clone());
                continue;
            }
            // What had traffic before is loaded, or left for want of room and comes back with its next request.
            let new = routes
                .in_traffic()
                .filter(|a| !had.contains(&name_of(a)))
                .take(places);
            for adapter in new {
                places -= 1;
                if let Err(e) = self.adapters.ensure(adapter, &keep).await {
                    self.set_unfit(task, routes.stages.seq, &e);
                    unfit.push(task.clone());
                    first.get_or_insert(e);
                    break;
                }
            }
        }
        for task in &unfit {
            table.keep(task, &before);
        }
        self.show_stages(&table);
        self.table.store(Arc::new(table));
        if !first.as_ref().is_some_and(Error::is_passing) {
            self.known.store(true, Ordering::Relaxed);
        }
        Ok(first)
    }

    /// Every task with its stages and adapters: the configuration's, and those that fine-tuning jobs made. One name is never both.
    async fn standing(
        &self,
        before: &Table,
    ) -> Result<Vec<(Arc<Task>, Stages, Vec<AdapterRef>)>, Error> {
        let mut state = Vec::with_capacity(self.config.tasks.len());
        for task in &self.config.tasks {
            let mut adapters = self.ledger.adapters(&task.name).await?;
            // They were trained without the task's prompt.
            adapters.retain(|adapter| adapter.manifest.source != Source::Job);
            let stages = self.ledger.stages(&task.name).await?;
            state.push((Arc::clone(task), stages, adapters));
        }
        for name in self.ledger.tasks_with_adapters().await? {
            if self.config.tasks.iter().any(|task| task.name == name) {
                continue;
            }
            let mut adapters = self.ledger.adapters(&name).await?;
            adapters.retain(|adapter| adapter.manifest.source == Source::Job);
            if adapters.is_empty() {
                continue;
            }
            let known = before.task(&name).map(|routes| Arc::clone(&routes.task));
            let task = known.unwrap_or_else(|| Arc::new(Task::of_job(&name)));
            state.push((task, self.ledger.stages(&name).await?, adapters));
        }
        Ok(state)
    }

    /// Whether a model answers.
    pub(crate) async fn ready(&self) -> bool {
        self.known.load(Ordering::Relaxed) && self.engine.ready().await
    }

    fn unfit(&self) -> MutexGuard<'_, HashMap<String, Unfit>> {
        self.unfit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether these stages of the task were found unfit a short time ago.
    fn is_unfit(&self, task: &str, seq: u64) -> bool {
        let unfit = self.unfit();
        unfit
            .get(task)
            .is_some_and(|u| u.seq == seq && u.at.elapsed() < RETRY)
    }

    /// Keeps in mind that these stages cannot be served, and says it once.
    fn set_unfit(&self, task: &str, seq: u64, error: &Error) {
        // That no engine is there says nothing of the adapter.
        if error.is_passing() {
            return;
        }
        let now = Unfit {
            seq,
            at: Instant::now(),
        };
        let before = self.unfit().insert(task.to_owned(), now);
        if before.is_none_or(|u| u.seq != seq) {
            tracing::error!(
                task,
                seq,
                error = %error,
                "the newest stages of a task cannot be served; its routing stays as it was: promote another adapter, or go back with \
                 `retune adapter rollback`"
            );
        }
    }

    /// Refreshes until the server stops. A ledger that cannot be read leaves the old table in place.
    pub(crate) async fn keep_fresh(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(REFRESH) => {}
            }
            match self.refresh().await {
                Ok(_) => self.stale.store(false, Ordering::Relaxed),
                Err(e) if !self.stale.swap(true, Ordering::Relaxed) => {
                    tracing::error!(error = %e, "stages cannot be brought up to date; the routing stays as it was");
                }
                Err(_) => {}
            }
        }
    }

    /// Keeps up with the ledger's keys until the server stops; by itself, since a refresh of the stages may wait for a model.
    pub(crate) async fn keep_keys_fresh(self: Arc<Self>) {
        let mut told = false;
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(REFRESH) => {}
            }
            match self.refresh_keys().await {
                Ok(()) => told = false,
                Err(e) if !told => {
                    told = true;
                    tracing::error!(error = %e, "a key cannot be read, and lets nobody in");
                }
                Err(_) => {}
            }
        }
    }

    /// Takes over the keys as they are now. What is damaged lets nobody in, and is the error.
    async fn refresh_keys(&self) -> Result<(), Error> {
        let list = self.ledger.keys().await?;
        self.rates.follow(&list.keys, Instant::now());
        self.keys.store(Arc::new(self.keys.load().next(&list)));
        list.whole()?;
        Ok(())
    }

    /// Who answers for `model`. An adapter that this process has not seen yet is looked for in the ledger.
    pub(crate) async fn resolve(&self, model: &str, sticky_key: &str) -> Result<Route, Error> {
        // Before it is known who answers for a task, the baseline must not; what goes on in the background finds out.
        if !self.known.load(Ordering::Relaxed) {
            return Err(Error::UpstreamUnavailable);
        }
        match self.table.load().resolve(model, sticky_key) {
            Err(Error::UnknownModel(_)) if model.contains(['@', ':']) => {
                self.refresh().await?;
                self.table.load().resolve(model, sticky_key)
            }
            found => found,
        }
    }

    /// The engine's name for a route's adapter, loaded if need be; `None` for the base's own weights.
    pub(crate) async fn engine_name(&self, route: &Route) -> Result<Option<String>, Error> {
        match &route.adapter {
            None => Ok(None),
            Some(adapter) => Ok(Some(
                self.adapters.ensure(adapter, &self.in_traffic()).await?,
            )),
        }
    }

    /// The names of all adapters in traffic: those that leave memory last.
    pub(crate) fn in_traffic(&self) -> Vec<String> {
        in_traffic(&self.table.load())
    }

    fn show_stages(&self, table: &Table) {
        for routes in table.tasks() {
            let task = &routes.task.name;
            for number in routes.adapters.keys() {
                let (name, is) = (adapter_name(task, *number), routes.stages.stage(*number));
                for stage in Stage::ALL {
                    self.metrics
                        .adapter_stage
                        .with_label_values(&[task.as_str(), name.as_str(), stage.as_str()])
                        .set(i64::from(is == stage));
                }
            }
        }
    }
}

/// Names of the adapters that traffic may reach.
fn in_traffic(table: &Table) -> Vec<String> {
    table
        .tasks()
        .flat_map(TaskRoutes::in_traffic)
        .map(|a| name_of(a))
        .collect()
}
