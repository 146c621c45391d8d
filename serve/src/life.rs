//! The server's end. Asked once it takes nothing new and finishes what runs; asked twice, or after the grace period, it abandons what
//! still runs. Either way every exchange has its row before the end, the abandoned ones with code 503.

use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use tokio_util::sync::CancellationToken;

use crate::state::App;

/// What an abandoned answer is ended with has so long to reach its client.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// When to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Nothing new; what runs may finish within `server.grace_seconds`.
    pub asked: CancellationToken,
    /// What runs is abandoned as well. Counts once `asked` is cancelled.
    pub at_once: CancellationToken,
}

/// An HTTP server and what tells it to stop.
pub(crate) type Listening = (Server, ServerHandle);

/// Serves until the end.
pub(crate) async fn live(app: &App, api: Listening, ops: Option<Listening>, stop: &Stop) {
    let (api, api_handle) = api;
    let (ops, ops_handle) = ops.unzip();
    let whole = async {
        tokio::join!(
            served(Some(api)),
            served(ops),
            finish(app, &api_handle, ops_handle.as_ref(), stop)
        );
    };
    tokio::select! {
        () = whole => {}
        // Connections that clients hold open are left to the process's end.
        () = cut_short(app, stop) => {}
    }
}

/// Until it is told to stop.
pub(crate) async fn served(server: Option<Server>) {
    if let Some(server) = server
        && let Err(e) = server.await
    {
        tracing::error!(error = %e, "the HTTP server failed");
    }
}

async fn finish(app: &App, api: &ServerHandle, ops: Option<&ServerHandle>, stop: &Stop) {
    stop.asked.cancelled().await;
    app.exchanges.close();
    // Stops accepting at once, and waits for open connections.
    tokio::join!(api.stop(true), app.exchanges.wait());
    app.adapters.settled().await;
    if let Some(ops) = ops {
        ops.stop(false).await;
    }
}

async fn cut_short(app: &App, stop: &Stop) {
    stop.asked.cancelled().await;
    let grace = app.config.server.grace;
    tokio::select! {
        () = tokio::time::sleep(grace) => tracing::warn!(
            seconds = grace.as_secs_f64(),
            running = app.exchanges.len(),
            "the grace period is over; requests that still run are abandoned"
        ),
        () = stop.at_once.cancelled() => tracing::warn!(
            running = app.exchanges.len(),
            "told to stop at once; requests that still run are abandoned"
        ),
    }
    app.abandoned.cancel();
    app.exchanges.wait().await;
    tokio::time::sleep(LAST_WORDS).await;
}
