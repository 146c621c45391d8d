//! `retune up`: serves, monitors and retrains in one process; training itself runs in a child of its own, so that a run
//! that dies cannot take the server along.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use prometheus::Registry;
use retune_ledger::Ledger;
use retune_monitor::Monitor;
use retune_retrain::{Launch, Options, StartedBy};
use retune_task::Config;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::Common;
use crate::commands::serve;
use crate::stop::{self, Stop};
use crate::{client, setup};

/// How long a run may take to leave when everything stops.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
#[command(
    long_about = "Serve the OpenAI API, watch what is asked and answered, and retrain when an alarm or a schedule says so: all in one.",
    after_help = "Examples:\n  retune up\n  retune up --config retune.toml\n  RETUNE_SERVER__LISTEN=127.0.0.1:9000 retune up\n\n\
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
    let everything = everything(common, &config, base, &ledger, &stop).await;
    ledger.close().await.context("rows could not be appended")?;
    everything.map(|()| stop::code(&stop, ExitCode::SUCCESS))
}

async fn everything(
    common: &Common,
    config: &Arc<Config>,
    base: PathBuf,
    ledger: &Ledger,
    stop: &Stop,
) -> Result<()> {
    // Whatever ends this function ends all of it.
    let _all = stop.asked.clone().drop_guard();
    let registry = Registry::new();
    let vectors = setup::vectors_here(config)?;
    let monitor = Monitor::new(config, ledger.clone(), &registry, vectors)?;
    let Some(running) = serve::start(config, base.clone(), ledger, &registry, stop).await? else {
        return Ok(());
    };
    if !serve::ready(config, &running, stop).await? {
        running.stopped().await;
        return Ok(());
    }
    serve::announce(common, config, &running)?;
    let url = setup::url(config, running.addr);
    let key = running.internal_key.reveal();
    let http = client::new(config, &url, Some(key.clone()))?;
    let mut beside = JoinSet::new();
    beside.spawn(monitor.run(stop.asked.clone()));
    let options = Options::new(config.clone(), base, ledger.clone(), url.clone(), http);
    let launch = launcher(common, &url, Some(key), &stop.asked)?;
    let watch_stop = stop.asked.clone();
    beside.spawn(async move { retune_retrain::watch(&options, launch, watch_stop).await });
    running.stopped().await;
    tokio::select! {
        ended = all(&mut beside) => return ended,
        () = stop.at_once.cancelled() => {}
    }
    // A run's process is killed with the watch: its rows were written as it went, and it is taken up again.
    beside.shutdown().await;
    Ok(())
}

async fn all(beside: &mut JoinSet<()>) -> Result<()> {
    while let Some(ended) = beside.join_next().await {
        ended.context("the monitor or the watch broke down")?;
    }
    Ok(())
}

type Launched = std::pin::Pin<Box<dyn Future<Output = std::io::Result<ExitStatus>> + Send>>;

/// What starts a run, or a fine-tuning job, in a child process: this same program, with this same configuration and environment, and with `key` where the
/// environment's is not meant. It goes by the environment, which only the owner sees; arguments everybody does.
pub(crate) fn launcher(
    common: &Common,
    server: &str,
    key: Option<String>,
    stop: &CancellationToken,
) -> Result<impl Fn(&Launch) -> Launched + Send + Sync + 'static> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let config = common.config.clone();
    let server = server.to_owned();
    let stop = stop.clone();
    Ok(move |launch: &Launch| -> Launched {
        let mut command = child(&program, launch, &server, key.as_deref());
        if let Some(config) = &config {
            command.arg("--config").arg(config);
        }
        // The child's stdin ends with this process, however that ends, and the child with its stdin.
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        Box::pin(until_ended(command, stop.clone()))
    })
}

fn child(program: &Path, launch: &Launch, server: &str, key: Option<&str>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments(launch, server)).kill_on_drop(true);
    if let Some(key) = key {
        command.env(client::API_KEY, key);
    }
    command
}

fn arguments(launch: &Launch, server: &str) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = ["retrain", "--server", server, "--stop-with-stdin"]
        .map(OsString::from)
        .into();
    match launch {
        Launch::Job(id) => arguments.extend(["--job".into(), id.into()]),
        Launch::Run(start) => {
            arguments.extend(["--task".into(), start.task.as_str().into()]);
            match &start.started_by {
                StartedBy::Trigger(alarm) => {
                    arguments.extend(["--trigger".into(), alarm.into()]);
                }
                StartedBy::Schedule(time) => {
                    arguments.extend(["--scheduled".into(), time.to_rfc3339().into()]);
                }
                StartedBy::Before(run_id) => {
                    arguments.extend(["--run".into(), run_id.into()]);
                }
                StartedBy::Person => {}
            }
        }
    }
    arguments
}

async fn until_ended(mut command: Command, stop: CancellationToken) -> std::io::Result<ExitStatus> {
    let mut child = command.spawn()?;
    let stdin = child.stdin.take();
    tokio::select! {
        status = child.wait() => return status,
        () = stop.cancelled() => drop(stdin),
    }
    match tokio::time::timeout(LEAVE_WITHIN, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            child.kill().await?;
            child.wait().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_in_the_child_s_environment_and_in_no_argument() {
        let start = Launch::Job("ftjob-1".to_owned());
        let child = child(
            Path::new("retune"),
            &start,
            "http://[::1]:1",
            Some("rt-key"),
        );
        let child = child.as_std();
        let given: Vec<_> = child
            .get_envs()
            .filter(|(_, value)| value.is_some_and(|value| value == "rt-key"))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(given, [client::API_KEY]);
        assert!(child.get_args().all(|argument| argument != "rt-key"));
    }
}
