//! The OpenAI API over an engine, inside this process or on other servers: apps change `base_url` and learn of nothing else.
//!
//! A request's way: the guard, which knows whose key it has, a thin handler in `routes`, the checked parameters of `retune_wire`, a route
//! from `routing`, a place from `admission`, then `exchange`, which asks the `engine`, checks the answer's format, and leaves the record
//! in the ledger before the last byte goes out.

mod adapters;
mod admission;
mod console;
mod engine;
mod error;
mod exchange;
mod import;
mod keys;
mod life;
mod metrics;
mod ops;
mod probe;
mod rates;
mod routes;
mod routing;
mod state;
#[cfg(test)]
mod tests;
mod tls;
mod trace;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use actix_web::middleware::from_fn;
use actix_web::{App as Service, HttpServer, web};
use arc_swap::ArcSwap;
use prometheus::Registry;
use retune_ledger::{AdapterRef, KeyList, KeyText, Ledger, Stages};
use retune_task::{Config, Enforce, EngineKind, Task, Tls, base_id};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use error::Error;
pub use import::{Imported, check_adapter, import};
pub use life::Stop;
pub use ops::MetricsServer;
pub use trace::{TARGET as TRACES, TraceContext, Traces};

use adapters::{Adapters, Budget, Room};
use admission::Admission;
use engine::{BaseFolder, Constraint, Embedded, Engine, Upstream, Vocabulary};
use keys::Keys;
use life::Listening;
use metrics::{LedgerMetrics, Metrics};
use probe::Prober;
use rates::Rates;
use routing::Table;
use state::App;

/// Threads of the HTTP server; answers are made elsewhere.
const WORKERS: usize = 2;

/// What the server is started with.
pub struct Options {
    /// The configuration.
    pub config: Arc<Config>,
    /// The base model's folder or GGUF file, from which its id follows. With an upstream engine it need not be there.
    pub base: PathBuf,
    /// Where exchanges and feedback go, and adapters and stages come from.
    pub ledger: Ledger,
    /// What `/metrics` shows; the server's own metrics are registered in it.
    pub registry: Registry,
    /// Where traces go, if anywhere.
    pub traces: Option<Arc<dyn Traces>>,
}

/// A server that answers.
pub struct Running {
    /// Where it listens; the port is the real one if 0 was configured.
    pub addr: SocketAddr,
    /// Where `/metrics` and the probes are, if not on `addr`.
    pub ops_addr: Option<SocketAddr>,
    /// An admin key of this process alone, for its children: in no store, and in no log.
    pub internal_key: KeyText,
    life: JoinHandle<()>,
}

impl Running {
    /// Waits for the end, which [`Stop`] asks for; every exchange has been given to the ledger by then. Flushing that is the caller's.
    pub async fn stopped(self) {
        if let Err(e) = self.life.await {
            tracing::error!(error = %e, "the server's end failed");
        }
    }
}

/// Loads the base and the champions, then listens until it is told to stop. Upstreams may be away: then there is no model that answers yet.
///
/// # Errors
/// What keeps it from answering: a missing or broken model file, an address in use, a ledger that cannot be read.
pub async fn start(o: Options, stop: Stop) -> Result<Running, Error> {
    // First, so that what is wrong with an address or a key is known before a model is loaded.
    let entry = Entry::prepare(&o.config, &o.ledger).await?;
    let engine: Arc<dyn Engine> = match &o.config.engine.kind {
        EngineKind::Embedded => {
            let restarts = metrics::engine_restarts(&o.registry)?;
            Arc::new(Embedded::start(&o.base, restarts).await?)
        }
        EngineKind::Upstream(upstream) => {
            Arc::new(Upstream::new(upstream, |name| std::env::var(name).ok())?)
        }
    };
    serve(o, engine, entry, stop).await
}

/// Reads the files of `[server]` that the connection is encrypted with, as the start does.
///
/// # Errors
/// A file that is missing, is not what it should be, or does not go with the other.
pub fn check_tls(tls: &Tls) -> Result<(), Error> {
    tls::config(tls).map(drop)
}

/// The way in: addresses that are taken, what they are encrypted with, and who may come.
struct Entry {
    listeners: Listeners,
    tls: Option<rustls::ServerConfig>,
    keys: KeyList,
}

impl Entry {
    async fn prepare(config: &Config, ledger: &Ledger) -> Result<Self, Error> {
        let mut keys = ledger.keys().await?;
        if let Some(damaged) = keys.damaged.pop() {
            return Err(damaged.into());
        }
        unexposed(config, &keys)?;
        Ok(Self {
            tls: config.server.tls.as_ref().map(tls::config).transpose()?,
            listeners: Listeners::bind(config)?,
            keys,
        })
    }
}

/// Refuses addresses that other machines can reach while there are no keys.
fn unexposed(config: &Config, keys: &KeyList) -> Result<(), Error> {
    let server = &config.server;
    ops::unexposed(server.listen, "server.listen", keys)?;
    if let Some(ops) = server.ops_listen {
        ops::unexposed(ops, "server.ops_listen", keys)?;
    }
    if server.tls.is_none() && !server.listen.ip().is_loopback() {
        tracing::warn!(
            listen = %server.listen,
            "keys and texts travel unencrypted: set server.tls_cert and server.tls_key, unless a proxy in front does it"
        );
    }
    Ok(())
}

/// Addresses that are taken.
struct Listeners {
    api: TcpListener,
    ops: Option<TcpListener>,
}

impl Listeners {
    fn bind(config: &Config) -> Result<Self, Error> {
        let server = &config.server;
        let ops = server.ops_listen;
        Ok(Self {
            api: ops::bind(server.listen, "server.listen")?,
            ops: ops
                .map(|at| ops::bind(at, "server.ops_listen"))
                .transpose()?,
        })
    }
}

async fn serve(
    o: Options,
    engine: Arc<dyn Engine>,
    entry: Entry,
    stop: Stop,
) -> Result<Running, Error> {
    let Entry {
        listeners: Listeners { api, ops },
        tls,
        keys,
    } = entry;
    let internal_key = KeyText::internal()?;
    let (addr, ops_addr) = (
        ops::address(&api)?,
        ops.as_ref().map(ops::address).transpose()?,
    );
    let keys = (Keys::new(&internal_key, &keys), keys);
    let app = state(o, engine, keys, &stop.asked).await?;
    let api = api_server(&app, api, tls, ops.is_none())?;
    let ops = ops.map(|listener| ops_server(&app, listener)).transpose()?;
    let fresh = tokio::spawn(Arc::clone(&app).keep_fresh());
    let fresh_keys = tokio::spawn(Arc::clone(&app).keep_keys_fresh());
    let life = tokio::spawn(async move {
        life::live(&app, api, ops, &stop).await;
        fresh.abort();
        fresh_keys.abort();
    });
    Ok(Running {
        addr,
        ops_addr,
        internal_key,
        life,
    })
}

/// A format that answers cannot be held to is better known now than with the first request.
async fn formats_hold(config: &Config, engine: &dyn Engine) -> Result<(), Error> {
    for (task, constraint) in constraints(config) {
        let held = engine.holds(constraint).await;
        held.map_err(|e| does_not_hold(task, &e))?;
    }
    Ok(())
}

/// Looks for formats that answers are to be held to and cannot be, as the start does, without a base; all of them.
///
/// # Errors
/// No grammar can be made of anything.
pub fn check_formats(config: &Config) -> Result<Vec<Error>, Error> {
    if let EngineKind::Upstream(_) = config.engine.kind {
        // The other server's grammars are its own.
        return Ok(Vec::new());
    }
    let vocabulary = Vocabulary::of_bytes()?;
    let problems = constraints(config).filter_map(|(task, constraint)| {
        let error = vocabulary.matcher(&constraint).err()?;
        Some(does_not_hold(task, &error))
    });
    Ok(problems.collect())
}

/// What the answers of tasks are to be held to.
fn constraints(config: &Config) -> impl Iterator<Item = (&Task, Constraint)> {
    config.tasks.iter().filter_map(|task| {
        let grammar = task.format.as_ref().and_then(|f| f.grammar());
        let (Enforce::Constrain, Some(grammar)) = (task.enforce, grammar) else {
            return None;
        };
        let constraint = Constraint {
            grammar: Arc::clone(grammar),
            param: "enforce",
        };
        Some((task.as_ref(), constraint))
    })
}

fn does_not_hold(task: &Task, error: &Error) -> Error {
    Error::Format {
        task: task.name.clone(),
        what: error.to_string(),
    }
}

async fn state(
    o: Options,
    engine: Arc<dyn Engine>,
    (keys, list): (Keys, KeyList),
    stop: &CancellationToken,
) -> Result<Arc<App>, Error> {
    let rates = Rates::default();
    rates.follow(&list.keys, Instant::now());
    formats_hold(&o.config, engine.as_ref()).await?;
    let metrics = Metrics::new(&o.registry)?;
    LedgerMetrics::register(&o.registry, o.ledger.clone())?;
    let base_id = base_id(&o.base);
    let created = std::fs::metadata(&o.base)
        .and_then(|m| m.modified())
        .map_or_else(|_| chrono::Utc::now(), Into::into);
    let limits = &o.config.engine;
    let budget = match limits.adapters_memory_mib {
        None => None,
        Some(mib) => Some(Budget {
            mib,
            each: BaseFolder::open(&o.base)?.copy_bytes(),
        }),
    };
    let app = Arc::new(App {
        adapters: Adapters::new(
            Arc::clone(&engine),
            o.ledger.clone(),
            Prober::new(Arc::clone(&engine), Arc::clone(&o.config)),
            Room {
                max_loaded: limits.max_loaded,
                budget,
            },
            metrics.adapters_loaded.clone(),
        ),
        admission: Admission::new(
            limits.max_running,
            limits.max_queue,
            metrics.running.clone(),
            metrics.waiting.clone(),
        ),
        table: ArcSwap::from_pointee(Table::new(&base_id, nothing_known(&o.config))),
        keys: ArcSwap::from_pointee(keys),
        rates,
        config: o.config,
        ledger: o.ledger,
        registry: o.registry,
        traces: o.traces,
        metrics,
        engine,
        base: o.base,
        created: created.timestamp(),
        exchanges: TaskTracker::new(),
        runtime: tokio::runtime::Handle::current(),
        stopping: stop.clone(),
        abandoned: CancellationToken::new(),
        refreshing: tokio::sync::Mutex::default(),
        stale: AtomicBool::new(false),
        known: AtomicBool::new(false),
        reviews: console::Reviews::default(),
        overview: console::Overview::default(),
        unfit: std::sync::Mutex::default(),
    });
    match app.refresh().await? {
        // Nobody is answered before somebody is there: see `App::resolve`.
        Some(Error::UpstreamUnavailable) => {
            tracing::warn!("no upstream answers yet; adapters are loaded once one does");
            Ok(app)
        }
        Some(e) => Err(e),
        None => Ok(app),
    }
}

/// The tasks before anybody has looked into the ledger.
fn nothing_known(config: &Config) -> Vec<(Arc<Task>, Stages, Vec<AdapterRef>)> {
    let tasks = config.tasks.iter();
    tasks
        .map(|task| (Arc::clone(task), Stages::default(), Vec::new()))
        .collect()
}

fn api_server(
    app: &Arc<App>,
    listener: TcpListener,
    tls: Option<rustls::ServerConfig>,
    with_ops: bool,
) -> Result<Listening, Error> {
    let data = web::Data::from(Arc::clone(app));
    let service = move || {
        let service = Service::new()
            .app_data(data.clone())
            .wrap(from_fn(routes::guard));
        let service = if with_ops {
            service.configure(routes::operations)
        } else {
            service
        };
        service.configure(routes::api)
    };
    let server = HttpServer::new(service)
        .workers(WORKERS)
        .disable_signals()
        // A token goes out when it is there. Otherwise it waits until the client's system has acknowledged the one before, which
        // that may put off for 40 ms.
        .tcp_nodelay(true)
        // A client that closes its side has left.
        .h1_allow_half_closed(false)
        // Longer than the grace period, so that what is abandoned is told so before its connection closes.
        .shutdown_timeout(app.config.server.grace.as_secs() + 5)
        .client_request_timeout(app.config.server.client_timeout)
        .client_disconnect_timeout(app.config.server.client_timeout)
        .tls_handshake_timeout(app.config.server.client_timeout);
    let server = match tls {
        Some(tls) => server.listen_rustls_0_23(listener, tls),
        None => server.listen(listener),
    };
    let server = server
        .map_err(|e| Error::Engine(format!("the HTTP server cannot start: {e}")))?
        .run();
    let handle = server.handle();
    Ok((server, handle))
}

fn ops_server(app: &Arc<App>, listener: TcpListener) -> Result<Listening, Error> {
    let data = web::Data::from(Arc::clone(app));
    ops::listening(listener, app.config.server.client_timeout, move |service| {
        service.app_data(data.clone()).configure(routes::operations);
    })
}
