//! `retune serve`: the OpenAI API, and nothing else; and the start that `retune up` shares with it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use prometheus::Registry;
use retune_ledger::Ledger;
use retune_serve::{Options, Running};
use retune_task::Config;
use serde_json::json;

use crate::cli::Common;
use crate::stop::{self, Stop};
use crate::{client, log, output, setup};

/// How often /readyz is asked while the model loads, and for how long.
const ASK: Duration = Duration::from_millis(50);
const READY_WITHIN: Duration = Duration::from_secs(300);

#[derive(clap::Args)]
#[command(
    long_about = "Serve the OpenAI API, and nothing else. What is monitored and retrained elsewhere comes in through the ledger.",
    after_help = "Examples:\n  retune serve\n  RETUNE_SERVER__LISTEN=127.0.0.1:9000 retune serve --config retune.toml\n\n\
                  The first line of stdout says where it listens, once a model answers.\n\
                  SIGTERM or Ctrl-C: it finishes what runs, appends every row to the ledger's tables, and exits 0.\n\
                  A second signal abandons what runs, appends every row all the same, and exits 130."
)]
pub(crate) struct Args {
    /// Stop when stdin ends, so that the server never outlives whoever started it.
    #[arg(long, hide = true)]
    pub(crate) stop_with_stdin: bool,
}

pub(crate) async fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    let stop = stop::on_signal(args.stop_with_stdin)?;
    let config = setup::config(common)?;
    // A download may take long.
    let base = tokio::select! {
        base = setup::base_to_serve(&config) => base?,
        () = stop.asked.cancelled() => return Ok(ExitCode::SUCCESS),
    };
    let ledger = Ledger::open(&config.store).await?;
    stop::says_what_is_left(&ledger);
    let served = serve(common, &config, base, &ledger, &stop).await;
    ledger.close().await.context("rows could not be appended")?;
    served.map(|()| stop::code(&stop, ExitCode::SUCCESS))
}

async fn serve(
    common: &Common,
    config: &Arc<Config>,
    base: PathBuf,
    ledger: &Ledger,
    stop: &Stop,
) -> Result<()> {
    let Some(running) = start(config, base, ledger, &Registry::new(), stop).await? else {
        return Ok(());
    };
    if ready(config, &running, stop).await? {
        announce(common, config, &running)?;
    }
    running.stopped().await;
    Ok(())
}

/// Starts the server, whose model is there then unless it is on other servers; none where `stop` came first.
pub(crate) async fn start(
    config: &Arc<Config>,
    base: PathBuf,
    ledger: &Ledger,
    registry: &Registry,
    stop: &Stop,
) -> Result<Option<Running>> {
    let options = Options {
        config: config.clone(),
        base,
        ledger: ledger.clone(),
        registry: registry.clone(),
        traces: log::traces(),
    };
    tokio::select! {
        running = Box::pin(retune_serve::start(options, stop.clone())) => Ok(Some(running?)),
        () = stop.asked.cancelled() => Ok(None),
    }
}

/// Waits until a model answers; false where `stop` came first.
pub(crate) async fn ready(config: &Config, running: &Running, stop: &Stop) -> Result<bool> {
    let probes = match running.ops_addr {
        Some(ops) => setup::ops_url(ops),
        None => setup::url(config, running.addr),
    };
    let http = client::new(config, &probes, Some(running.internal_key.reveal()))?;
    let asked = tokio::time::timeout(READY_WITHIN, async {
        loop {
            if http
                .get(format!("{probes}/readyz"))
                .send()
                .await
                .is_ok_and(|response| response.status().is_success())
            {
                return;
            }
            tokio::time::sleep(ASK).await;
        }
    });
    tokio::select! {
        asked = asked => match asked {
            Ok(()) => Ok(true),
            Err(_) => bail!("no model answered within {} s; see the log above", READY_WITHIN.as_secs()),
        },
        () = stop.asked.cancelled() => Ok(false),
    }
}

/// The first line of stdout, which scripts wait for.
pub(crate) fn announce(common: &Common, config: &Config, running: &Running) -> Result<()> {
    let url = setup::url(config, running.addr);
    let ops = running.ops_addr.map(setup::ops_url);
    if common.json {
        return output::json(&json!({"listening": url, "ops": ops}));
    }
    match ops {
        None => output::line(format_args!("listening on {url}; console at {url}/console")),
        Some(ops) => output::line(format_args!(
            "listening on {url}; console at {url}/console; metrics and probes on {ops}"
        )),
    }
}
