//! When to stop: SIGTERM, SIGINT, or the parent's end of our stdin. Told once, what runs is finished; told twice, it is abandoned, and
//! what is finished still reaches the tables; told three times, the process leaves as it stands, and the log has the rest.

use std::io::Read;
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use retune_ledger::Ledger;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub(crate) use retune_serve::Stop;

use crate::output;

/// Exit code of a process that was told twice, as shells have it for SIGINT.
const TOLD_TWICE: u8 = 130;
/// And of one that was told three times: like any failure, since requests may be lost.
const TOLD_THRICE: i32 = 1;

/// Where rows wait that the last signal leaves behind.
static LEDGER: OnceLock<Ledger> = OnceLock::new();

/// Told by signals. `with_stdin`: the end of stdin counts as the first as well, so that no child outlives its parent.
pub(crate) fn on_signal(with_stdin: bool) -> Result<Stop> {
    let stop = Stop::default();
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let told = stop.clone();
    tokio::spawn(async move {
        either(&mut terminate, &mut interrupt).await;
        // First of all: what follows may fail where nobody reads stderr any more.
        told.asked.cancel();
        tracing::info!("stopping; a second signal abandons what still runs");
        either(&mut terminate, &mut interrupt).await;
        told.at_once.cancel();
        tracing::warn!(
            "stopping at once, when the last rows are in the tables; a third signal does not wait for them"
        );
        either(&mut terminate, &mut interrupt).await;
        output::problem(format_args!(
            "told three times: leaving at once; {}",
            left()
        ));
        std::process::exit(TOLD_THRICE);
    });
    if with_stdin {
        let asked = stop.asked.clone();
        // A thread of its own: a blocking read would hold up the runtime's end.
        std::thread::spawn(move || {
            let mut bytes = [0; 256];
            while matches!(std::io::stdin().read(&mut bytes), Ok(1..)) {}
            asked.cancel();
        });
    }
    Ok(stop)
}

/// The ledger whose rows a third signal leaves in the log.
pub(crate) fn says_what_is_left(ledger: &Ledger) {
    // A process has one.
    let _ = LEDGER.set(ledger.clone());
}

fn left() -> String {
    let tables = LEDGER.get().map(Ledger::stats).unwrap_or_default();
    let waiting: Vec<String> = tables
        .iter()
        .filter(|stats| stats.waiting > 0)
        .map(|stats| match stats.waiting {
            1 => format!("1 row of {} waits", stats.table),
            rows => format!("{rows} rows of {} wait", stats.table),
        })
        .collect();
    match waiting.is_empty() {
        true => "requests that still ran have no row".to_owned(),
        false => format!(
            "{} in the log for the next start, and requests that still ran have no row",
            waiting.join(" and ")
        ),
    }
}

/// The exit code of a command that ends with `code` unless it was told twice. To be asked last of all.
pub(crate) fn code(stop: &Stop, code: ExitCode) -> ExitCode {
    match stop.at_once.is_cancelled() {
        true => ExitCode::from(TOLD_TWICE),
        false => code,
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
