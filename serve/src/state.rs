//! What every route needs, in one struct.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use prometheus::Registry;
use retune_ledger::{Ledger, Stage};
use retune_task::Config;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::adapters::{Adapters, name_of};
use crate::admission::Admission;
use crate::engine::Engine;
use crate::error::Error;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::rates::Rates;
use crate::routing::{Route, Table, TaskRoutes, adapter_name};

/// How often stages and keys are looked at: another process may have changed them.
const REFRESH: Duration = Duration::from_secs(1);

/// The server's state.
pub(crate) struct App {
    pub(crate) config: Arc<Config>,
    pub(crate) ledger: Ledger,
    pub(crate) registry: Registry,
    pub(crate) metrics: Metrics,
    pub(crate) engine: Arc<dyn Engine>,
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
}

impl App {
    /// Reads stages and adapters from the ledger, loads what gets traffic, then swaps the table.
    pub(crate) async fn refresh(&self) -> Result<(), Error> {
        let _one = self.refreshing.lock().await;
        let mut state = Vec::with_capacity(self.config.tasks.len());
        for task in &self.config.tasks {
            state.push((
                self.ledger.stages(&task.name).await?,
                self.ledger.adapters(&task.name).await?,
            ));
        }
        let before = self.table.load_full();
        let table = Table::new(&self.config, &before.base, state);
        let (had, keep) = (in_traffic(&before), in_traffic(&table));
        // What had traffic before is loaded, or left for want of room and comes back with its next request.
        let new = table
            .tasks()
            .flat_map(TaskRoutes::in_traffic)
            .filter(|a| !had.contains(&name_of(a)));
        for adapter in new.take(self.config.engine.max_loaded) {
            self.adapters.ensure(adapter, &keep).await?;
        }
        self.show_stages(&table);
        self.table.store(Arc::new(table));
        Ok(())
    }

    /// Refreshes until the server stops. A failure leaves the old table in place.
    pub(crate) async fn keep_fresh(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(REFRESH) => {}
            }
            match self.refresh().await {
                Ok(()) => self.stale.store(false, Ordering::Relaxed),
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
                self.adapters
                    .ensure(adapter, &in_traffic(&self.table.load()))
                    .await?,
            )),
        }
    }

    fn show_stages(&self, table: &Table) {
        for routes in table.tasks() {
            for number in routes.adapters.keys() {
                let is = routes.stage(*number);
                for stage in [
                    Stage::Candidate,
                    Stage::Canary,
                    Stage::Champion,
                    Stage::Retired,
                    Stage::Rejected,
                ] {
                    let labels = [
                        &routes.task.name,
                        &adapter_name(&routes.task.name, *number),
                        &stage.to_string(),
                    ];
                    self.metrics
                        .adapter_stage
                        .with_label_values(&labels)
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
