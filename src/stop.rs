//! When to stop: SIGTERM, SIGINT, or the parent's end of our stdin. Asked a second time, the process leaves at once.

use std::io::Read;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of a process that was told twice, as shells have it for SIGINT.
const TOLD_TWICE: i32 = 130;

/// Cancelled by the first signal. `with_stdin`: by the end of stdin as well, so that no child outlives its parent.
pub(crate) fn on_signal(with_stdin: bool) -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let cancel = stop.clone();
    tokio::spawn(async move {
        either(&mut terminate, &mut interrupt).await;
        // First of all: what follows may fail where nobody reads stderr any more.
        cancel.cancel();
        tracing::info!("stopping; a second signal leaves at once");
        either(&mut terminate, &mut interrupt).await;
        std::process::exit(TOLD_TWICE);
    });
    if with_stdin {
        let cancel = stop.clone();
        // A thread of its own: a blocking read would hold up the runtime's end.
        std::thread::spawn(move || {
            let mut bytes = [0; 256];
            while matches!(std::io::stdin().read(&mut bytes), Ok(1..)) {}
            cancel.cancel();
        });
    }
    Ok(stop)
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
