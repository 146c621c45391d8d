//! `retune monitor`: the drift tests, once over what is there or for as long as it runs; what they found, for people.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use chrono::{SecondsFormat, TimeDelta, Utc};
use prometheus::Registry;
use retune_ledger::{Ledger, Word};
use retune_monitor::why::Shares;
use retune_monitor::{Alarm, Monitor, Report, State, StreamReport};
use retune_serve::MetricsServer;
use retune_task::Config;
use serde_json::json;

use crate::cli::Common;
use crate::stop::{self, Stop};
use crate::{output, setup};

/// Exit code where an alarm stands.
const ALARM: u8 = 3;
/// An alarm that is silenced for longer than a year is acknowledged, or its task's `on` changed.
const MOST_HOURS: i64 = 8784;
/// Lines of each view of an alarm in a terminal; the page has all.
const LINES: usize = 5;

#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    long_about = "Test what the ledger holds against each adapter's reference, and raise alarms, as rows and as triggers for retraining.\n\n\
                  `retune up` has a monitor of its own, whose metrics stand among the server's. This one is for a process apart, which shows them \
                  at monitor.listen, or for a look.",
    after_help = "Examples:\n  retune monitor --once            a line per adapter and stream; exit code 3 where an alarm stands\n  \
                  retune monitor --once --json     the same for scripts\n  \
                  retune monitor report            why each alarm is there: what moved, where it sits, which requests to look at\n  \
                  retune monitor report --html drift.html\n  \
                  retune monitor acknowledge ALARM --reason \"a campaign\"\n  retune monitor                   go on watching\n  \
                  RETUNE_MONITOR__LISTEN=127.0.0.1:9091 retune monitor      with /metrics for Prometheus"
)]
pub(crate) struct Args {
    /// Analyse what is there, print it, and leave: exit code 3 where an alarm stands.
    #[arg(long)]
    once: bool,
    /// Stop when stdin ends, so that the monitor never outlives whoever started it.
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(clap::Subcommand)]
enum What {
    /// Tell why each alarm is there, with the requests that are the most typical of it.
    Report {
        /// Write one page with everything in it, plots and requests too; it loads nothing.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        /// Alarms of the past as well: of adapters that serve no more.
        #[arg(long)]
        all: bool,
    },
    /// Say that an alarm is known: it calls nobody any more, and the run that it asked for goes on.
    Acknowledge {
        /// As `retune monitor report` names it.
        alarm: String,
        /// Why; whoever looks next reads it.
        #[arg(long)]
        reason: String,
    },
    /// Have an alarm call nobody for some hours, and no run begin.
    Silence {
        /// As `retune monitor report` names it.
        alarm: String,
        /// Why; whoever looks next reads it.
        #[arg(long)]
        reason: String,
        /// How long, from now: at most a year.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MOST_HOURS))]
        hours: u32,
    },
}

pub(crate) async fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    let config = setup::config(common)?;
    let ledger = Ledger::open(&config.store).await?;
    let code = match &args.what {
        Some(What::Acknowledge { alarm, reason }) => say(&ledger, alarm, reason, None).await?,
        Some(What::Silence {
            alarm,
            reason,
            hours,
        }) => say(&ledger, alarm, reason, Some(*hours)).await?,
        Some(What::Report { html, all }) => {
            let streams = monitor(&config, &ledger, &Registry::new())?.pass().await?;
            let report = Report::read(&ledger, streams, *all, Utc::now()).await?;
            show(common, &report, html.as_ref())?;
            ExitCode::SUCCESS
        }
        None if args.once => {
            let reports = monitor(&config, &ledger, &Registry::new())?.pass().await?;
            print(common, &reports)?;
            match reports.iter().any(|report| report.state == State::Alarm) {
                true => ExitCode::from(ALARM),
                false => ExitCode::SUCCESS,
            }
        }
        None => {
            let stop = stop::on_signal(args.stop_with_stdin)?;
            watch(common, &config, &ledger, &stop).await?;
            stop::code(&stop, ExitCode::SUCCESS)
        }
    };
    ledger.close().await.context("rows could not be appended")?;
    Ok(code)
}

fn monitor(config: &Config, ledger: &Ledger, registry: &Registry) -> Result<Monitor> {
    let vectors = setup::vectors_here(config)?;
    Ok(Monitor::new(config, ledger.clone(), registry, vectors)?)
}

/// Goes on until it is told to stop, with metrics where the configuration has a place for them.
async fn watch(common: &Common, config: &Config, ledger: &Ledger, stop: &Stop) -> Result<()> {
    let registry = Registry::new();
    let monitor = monitor(config, ledger, &registry)?;
    let metrics = match config.monitor.listen {
        None => None,
        Some(at) => {
            let timeout = config.server.client_timeout;
            let key = "monitor.listen";
            let shown = MetricsServer::start(at, key, timeout, &registry, ledger).await?;
            announce(common, &setup::ops_url(shown.addr()))?;
            Some(shown)
        }
    };
    tokio::select! {
        () = monitor.run(stop.asked.clone()) => {}
        // In the middle of a pass: what it had not written yet, the next one finds again.
        () = stop.at_once.cancelled() => {}
    }
    if let Some(metrics) = metrics {
        metrics.stop().await;
    }
    Ok(())
}

/// The first line of stdout, which scripts wait for.
fn announce(common: &Common, ops: &str) -> Result<()> {
    match common.json {
        true => output::json(&json!({ "ops": ops })),
        false => output::line(format_args!("metrics on {ops}")),
    }
}

async fn say(ledger: &Ledger, alarm: &str, reason: &str, hours: Option<u32>) -> Result<ExitCode> {
    let alarms = ledger.triggers(None).await?;
    let found = alarms.iter().find(|trigger| trigger.alarm == alarm);
    let found = found
        .with_context(|| format!("no alarm {alarm}; `retune monitor report --all` names all"))?;
    let now = Utc::now();
    let until = hours.map(|hours| now + TimeDelta::hours(hours.into()));
    let word = Word::new(now, None, reason, until)?;
    ledger.say(found, &word).await?;
    match until {
        Some(until) => output::line(format_args!(
            "{alarm} calls nobody until {}, and no run begins for it",
            until.to_rfc3339_opts(SecondsFormat::Secs, true)
        )),
        None => output::line(format_args!(
            "{alarm} calls nobody any more; a run that it asked for goes on"
        )),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn show(common: &Common, report: &Report, html: Option<&PathBuf>) -> Result<()> {
    if let Some(path) = html {
        std::fs::write(path, report.html()?)
            .with_context(|| format!("the report could not be written to {}", path.display()))?;
        if !common.json {
            return output::line(format_args!("{}", path.display()));
        }
    }
    if common.json {
        return output::json(&serde_json::to_value(report)?);
    }
    print(common, &report.streams)?;
    if report.alarms.is_empty() {
        output::line("\nNo alarm stands; --all tells those of the past, too.")?;
    }
    report.alarms.iter().try_for_each(explain)
}

fn explain(alarm: &Alarm) -> Result<()> {
    let trigger = &alarm.trigger;
    output::line("")?;
    output::line(format_args!(
        "The {} of {}: {}",
        trigger.kind, trigger.adapter, trigger.alarm
    ))?;
    output::line(format_args!(
        "  reached {} with log e {:.2} of {:.2}, after {} observations; the change began {}",
        trigger.ts.to_rfc3339_opts(SecondsFormat::Secs, true),
        trigger.log_e,
        trigger.threshold_log,
        trigger.exchanges,
        trigger.evidence["change"]["since"]
            .as_str()
            .unwrap_or("at an unknown time"),
    ))?;
    if let Some(word) = &alarm.word {
        output::line(format_args!("  somebody said: {}", word.reason))?;
    }
    let Some(why) = &alarm.why else {
        return Ok(());
    };
    output::line(format_args!("  {}", why.verdict()))?;
    let moved = |what: &str, lines: Vec<(String, Shares)>| -> Result<()> {
        for (name, shares) in lines.iter().take(LINES) {
            output::line(format_args!(
                "  {what:<7} {:>5.1} % usual, {:>5.1} % trouble   {name}",
                shares.usual * 100.0,
                shares.trouble * 100.0
            ))?;
        }
        Ok(())
    };
    let phrases = why.phrases.iter();
    moved(
        "phrase",
        phrases.map(|p| (p.phrase.clone(), p.shares)).collect(),
    )?;
    let clusters = why.clusters.iter();
    moved(
        "kind",
        clusters.map(|c| (c.phrases.join(", "), c.shares)).collect(),
    )?;
    let slices = why.slices.iter();
    moved(
        "slice",
        slices
            .map(|s| (format!("{} = {}", s.by, s.value), s.shares))
            .collect(),
    )?;
    for request in alarm.requests.iter().take(LINES) {
        let prompt: String = request.prompt.chars().take(100).collect();
        let prompt = prompt.split_whitespace().collect::<Vec<_>>().join(" ");
        output::line(format_args!("  request {}   {prompt}", request.request_id))?;
    }
    Ok(())
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
