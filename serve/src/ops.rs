//! What operators' programs ask, on an address of its own: beside the API, or of a process that has none, as a monitor apart from the
//! server. Never encrypted, and never asked for a key; so, as the API, on no address that others reach before there are keys.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App as Service, HttpServer, web};
use prometheus::Registry;
use retune_ledger::{KeyList, Ledger};
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::life::{Listening, served};
use crate::metrics::LedgerMetrics;
use crate::routes;

/// `/metrics` and `/healthz`, and nothing else.
pub struct MetricsServer {
    addr: SocketAddr,
    handle: ServerHandle,
    life: JoinHandle<()>,
}

impl MetricsServer {
    /// Listens at `address`, which the configuration calls `key`, and shows `registry` with the figures of this process's ledger.
    ///
    /// # Errors
    /// An address in use, or one that others reach while there are no keys; a ledger that cannot be read.
    pub async fn start(
        address: SocketAddr,
        key: &'static str,
        client_timeout: Duration,
        registry: &Registry,
        ledger: &Ledger,
    ) -> Result<Self, Error> {
        unexposed(address, key, &ledger.keys().await?)?;
        LedgerMetrics::register(registry, ledger.clone())?;
        let listener = bind(address, key)?;
        let addr = self::address(&listener)?;
        let registry = web::Data::new(registry.clone());
        let (server, handle) = listening(listener, client_timeout, move |service| {
            service
                .app_data(registry.clone())
                .configure(routes::metrics_alone);
        })?;
        Ok(Self {
            addr,
            handle,
            life: tokio::spawn(served(Some(server))),
        })
    }

    /// Where it listens; the port is the real one if 0 was configured.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends it; a scrape that runs is cut off.
    pub async fn stop(self) {
        self.handle.stop(false).await;
        if let Err(e) = self.life.await {
            tracing::error!(error = %e, "the end of the server of metrics failed");
        }
    }
}

/// Takes an address, which the configuration calls `key`.
pub(crate) fn bind(address: SocketAddr, key: &'static str) -> Result<TcpListener, Error> {
    TcpListener::bind(address).map_err(|source| Error::Listen {
        address,
        key,
        source,
    })
}

/// Where it is; the port is the real one if 0 was asked for.
pub(crate) fn address(listener: &TcpListener) -> Result<SocketAddr, Error> {
    listener
        .local_addr()
        .map_err(|e| Error::Engine(format!("a listener has no address: {e}")))
}

/// Refuses an address that other machines can reach while there are no keys.
pub(crate) fn unexposed(
    address: SocketAddr,
    key: &'static str,
    keys: &KeyList,
) -> Result<(), Error> {
    match keys.is_empty() && !address.ip().is_loopback() {
        true => Err(Error::Exposed { address, key }),
        false => Ok(()),
    }
}

/// A small server of the routes that `configure` gives.
pub(crate) fn listening(
    listener: TcpListener,
    client_timeout: Duration,
    configure: impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
) -> Result<Listening, Error> {
    let service = move || {
        Service::new()
            .configure(configure.clone())
            .default_service(web::to(routes::unknown_route))
    };
    let server = HttpServer::new(service)
        .workers(1)
        .disable_signals()
        .client_request_timeout(client_timeout)
        .client_disconnect_timeout(client_timeout)
        .listen(listener)
        .map_err(|e| Error::Engine(format!("the HTTP server cannot start: {e}")))?
        .run();
    let handle = server.handle();
    Ok((server, handle))
}
