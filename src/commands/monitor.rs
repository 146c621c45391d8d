//! `retune monitor`: the drift tests, once over what is there or for as long as it runs.

use std::process::ExitCode;

use anyhow::{Context, Result};
use prometheus::Registry;
use retune_ledger::Ledger;
use retune_monitor::{Monitor, State, StreamReport};

use crate::cli::Common;
use crate::{output, setup, stop};

/// Exit code where an alarm stands.
const ALARM: u8 = 3;

#[derive(clap::Args)]
#[command(
    long_about = "Test what the ledger holds against each adapter's reference, and raise alarms, as rows and as triggers for retraining.\n\n\
                  `retune up` has a monitor of its own, whose metrics stand on /metrics. This one is for a process apart, or for a look.",
    after_help = "Examples:\n  retune monitor --once            a line per adapter and stream; exit code 3 where an alarm stands\n  \
                  retune monitor --once --json     the same for scripts\n  retune monitor                   go on watching"
)]
pub(crate) struct Args {
    /// Analyse what is there, print it, and leave: exit code 3 where an alarm stands.
    #[arg(long)]
    once: bool,
    /// Stop when stdin ends, so that the monitor never outlives whoever started it.
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

pub(crate) async fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    let config = setup::config(common)?;
    let ledger = Ledger::open(&config.store).await?;
    let base = setup::base_here(&config);
    let mut monitor = Monitor::new(&config, ledger.clone(), &Registry::new(), base.as_deref())?;
    let code = if args.once {
        let reports = monitor.pass().await?;
        print(common, &reports)?;
        match reports.iter().any(|report| report.state == State::Alarm) {
            true => ExitCode::from(ALARM),
            false => ExitCode::SUCCESS,
        }
    } else {
        let stop = stop::on_signal(args.stop_with_stdin)?;
        tokio::select! {
            () = monitor.run(stop.asked.clone()) => {}
            // In the middle of a pass: what it had not written yet, the next one finds again.
            () = stop.at_once.cancelled() => {}
        }
        stop::code(&stop, ExitCode::SUCCESS)
    };
    ledger.close().await.context("rows could not be appended")?;
    Ok(code)
}

fn print(common: &Common, reports: &[StreamReport]) -> Result<()> {
    if common.json {
        return reports
            .iter()
            .try_for_each(|report| output::json(&serde_json::to_value(report)?));
    }
    let cell =
        |number: Option<f64>| number.map_or_else(|| "-".into(), |number| format!("{number:.2}"));
    let rows: Vec<Vec<String>> = reports
        .iter()
        .map(|report| {
            vec![
                report.adapter.clone(),
                report.stream.to_string(),
                report.state.to_string(),
                report.exchanges.to_string(),
                cell(report.log_e),
                cell(report.threshold_log),
                report
                    .since
                    .map_or_else(|| "-".into(), |since| since.to_rfc3339()),
            ]
        })
        .collect();
    output::table(
        &[
            "adapter",
            "stream",
            "state",
            "exchanges",
            "log e",
            "threshold",
            "since",
        ],
        &rows,
    )
}
