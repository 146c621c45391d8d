//! `retune retrain`: one run now, or a watch that waits for what starts runs.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, FixedOffset};
use indicatif::{ProgressBar, ProgressStyle};
use retune_ledger::{JobStatus, Ledger};
use retune_retrain::{Event, Options, Progress, Report, Start, StartedBy};
use retune_task::{Config, Task, Trainer};
use serde_json::json;

use crate::cli::Common;
use crate::commands::up;
use crate::{client, output, setup, stop};

#[derive(clap::Args)]
#[command(
    long_about = "Make an adapter of a task from what users rated and corrected, examine it against what serves now through the running \
                  server, and promote it where it is proven better and the task's policy says so.\n\n\
                  The server must be running. Where it has keys, an admin's is expected in RETUNE_API_KEY.",
    after_help = "Examples:\n  retune retrain --task triage                      one run now, with its report\n  \
                  retune retrain --task triage --json | jq .verdict\n  \
                  retune retrain --dry-run                          what alarms and schedules would start now, and why not\n  \
                  retune retrain --watch                            wait for alarms and schedules beside a `retune serve`"
)]
pub(crate) struct Args {
    /// The task to make an adapter for.
    #[arg(long, required_unless_present_any = ["watch", "job", "dry_run"])]
    task: Option<String>,
    /// Wait for alarms, schedules and fine-tuning jobs, and start what they ask for, until stopped.
    #[arg(long, conflicts_with_all = ["task", "job", "trigger", "scheduled"])]
    watch: bool,
    /// Train this fine-tuning job, which POST /v1/fine_tuning/jobs made.
    #[arg(long, value_name = "ID", conflicts_with_all = ["task", "trigger", "scheduled"])]
    job: Option<String>,
    /// Say what would happen now: which alarms and schedules start a run, and what keeps the others from it. Needs no server.
    #[arg(long, conflicts_with_all = ["job", "trigger", "scheduled"])]
    dry_run: bool,
    /// The alarm that this run answers.
    #[arg(long, value_name = "ALARM", conflicts_with = "scheduled")]
    trigger: Option<String>,
    /// The schedule's time that this run answers, as RFC 3339 has it.
    #[arg(long, value_name = "TIME", value_parser = DateTime::parse_from_rfc3339)]
    scheduled: Option<DateTime<FixedOffset>>,
    /// The run of a person's that this goes on with, where people have judged its pairs.
    #[arg(long, value_name = "ID", hide = true, requires = "task", conflicts_with_all = ["trigger", "scheduled"])]
    run: Option<String>,
    /// The running server [default: the configuration's address].
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Stop when stdin ends, so that a run never outlives whoever started it.
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

pub(crate) async fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    let stop = stop::on_signal(args.stop_with_stdin)?;
    let config = setup::config(common)?;
    if args.dry_run {
        return dry_run(common, &config, args.task.as_deref()).await;
    }
    let base = tokio::select! {
        base = setup::base(&config) => base?,
        () = stop.asked.cancelled() => return Ok(ExitCode::FAILURE),
    };
    // A job says itself why it cannot be.
    let here = |task: &&Arc<Task>| {
        task.retrain.trainer == Trainer::Native
            && args.task.as_ref().is_none_or(|name| *name == task.name)
    };
    if args.job.is_none() && config.tasks.iter().any(|task| here(&task)) {
        retune_retrain::trainable(&base)?;
    }
    let server = client::server(args.server.as_deref(), &config)?;
    let http = client::new(&config, &server, None)?;
    if !args.watch {
        retune_retrain::goes_first();
    }
    let ledger = Ledger::open(&config.store).await?;
    let options = Options::new(config.clone(), base, ledger.clone(), server, http);
    let result = match (&args.task, &args.job) {
        (None, Some(job)) => tokio::select! {
            ended = train(common, &options, job) => ended,
            () = stop.asked.cancelled() => {
                output::problem("stopped before the job's end; it goes on where it was");
                Ok(ExitCode::FAILURE)
            }
        },
        (None, None) => {
            let launch = up::launcher(common, &options.server, None, &stop.asked)?;
            tokio::select! {
                () = retune_retrain::watch(&options, launch, stop.asked.clone()) => {}
                // The process of a run is killed with it.
                () = stop.at_once.cancelled() => {}
            }
            Ok(ExitCode::SUCCESS)
        }
        (Some(task), _) => {
            setup::task(&config, task)?;
            if let Some(alarm) = &args.trigger {
                let known = ledger.triggers(Some(task)).await?;
                ensure!(
                    known.iter().any(|trigger| trigger.alarm == *alarm),
                    "{task} has no alarm {alarm}; `retune monitor report --all` names all"
                );
            }
            let started_by = match (&args.trigger, args.scheduled) {
                (Some(alarm), _) => StartedBy::Trigger(alarm.clone()),
                (None, Some(time)) => StartedBy::Schedule(time.to_utc()),
                (None, None) => match &args.run {
                    Some(run_id) => StartedBy::Before(run_id.clone()),
                    None => StartedBy::Person,
                },
            };
            let start = Start {
                task: task.clone(),
                started_by,
            };
            tokio::select! {
                report = once(common, &options, &start) => report,
                () = stop.asked.cancelled() => {
                    output::problem("stopped before the run's end; the same run takes up again when asked again");
                    Ok(ExitCode::FAILURE)
                }
            }
        }
    };
    ledger.close().await.context("rows could not be appended")?;
    result.map(|code| stop::code(&stop, code))
}

fn bar() -> Result<ProgressBar> {
    let bar = ProgressBar::no_length();
    bar.set_style(ProgressStyle::with_template(
        "{msg} {bar:30} {pos} of {len}, {elapsed}",
    )?);
    Ok(bar)
}

/// What would happen now.
async fn dry_run(common: &Common, config: &Config, task: Option<&str>) -> Result<ExitCode> {
    if let Some(task) = task {
        setup::task(config, task)?;
    }
    let ledger = Ledger::open_briefly(&config.store).await?;
    let planned = retune_retrain::plan(&ledger, config, task).await?;
    if common.json {
        for one in planned {
            output::json(&json!(one))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = planned
        .into_iter()
        .map(|one| {
            let begins = if one.begins { "yes" } else { "no" };
            vec![one.task, one.started_by, begins.to_owned(), one.what]
        })
        .collect();
    output::table(&["task", "asked for by", "a run", "what"], &rows)?;
    Ok(ExitCode::SUCCESS)
}

/// A fine-tuning job, to its end or until somebody halts it.
async fn train(common: &Common, options: &Options, job: &str) -> Result<ExitCode> {
    let bar = bar()?;
    let mut observer = |step: &Progress| observe(&bar, &Event::Training(step.clone()));
    let status = retune_retrain::run_job(options, job, &mut observer).await;
    bar.finish_and_clear();
    let status = status?;
    if common.json {
        output::json(&json!({ "job": job, "status": status.as_str() }))?;
    } else {
        output::line(format_args!("{job}: {}", status.as_str()))?;
    }
    Ok(match status {
        JobStatus::Failed => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

async fn once(common: &Common, options: &Options, start: &Start) -> Result<ExitCode> {
    let bar = bar()?;
    let mut observer = |event: &Event| observe(&bar, event);
    let report = retune_retrain::run(options, start, &mut observer).await;
    bar.finish_and_clear();
    print(common, &report?)?;
    Ok(ExitCode::SUCCESS)
}

fn print(common: &Common, report: &Report) -> Result<()> {
    if common.json {
        return output::json(&serde_json::to_value(report)?);
    }
    output::line(report.markdown().trim_end())
}

/// A bar for whatever goes on, and a line on stderr when something else begins.
fn observe(bar: &ProgressBar, event: &Event) {
    match event {
        Event::State { run_id, state } => {
            bar.println(format!("{run_id}: {state}"));
            bar.set_length(0);
        }
        Event::Dataset { counts, train, development, held_out } => bar.println(format!(
            "{} exchanges, {} of them usable: {train} to train on, {development} to choose the checkpoint by, {held_out} held out",
            counts.exchanges,
            counts.kept()
        )),
        Event::Experiment(progress) => {
            bar.set_message(format!("experiment, loss {:.3}", progress.train_loss));
            at(bar, progress.step, progress.steps);
        }
        Event::Training(progress) => {
            bar.set_message(format!("training, loss {:.3}", progress.train_loss));
            at(bar, progress.step, progress.steps);
        }
        Event::Preferring(progress) => {
            bar.set_message(format!("preferences, loss {:.3}", progress.train_loss));
            at(bar, progress.step, progress.steps);
        }
        Event::Pairs { have, wanted } => {
            bar.set_message("prompts with a known answer");
            at(bar, *have, *wanted);
        }
        Event::Examining { done, total } => {
            bar.set_message("examined");
            at(bar, *done, *total);
        }
        Event::Judging { done, total } => {
            bar.set_message("judged");
            at(bar, *done, *total);
        }
        Event::Waiting { voted, asked, until } => bar.println(format!(
            "{voted} of {asked} pairs have a vote; the others wait for people until {}: GET /v1/pairs",
            until.format("%F %T UTC")
        )),
        Event::Verdict { verdict, reasons } => {
            bar.println(format!("verdict: {verdict}"));
            reasons.iter().for_each(|reason| bar.println(format!("  {reason}")));
        }
        Event::Promoted { adapter } => bar.println(format!("{adapter} answers now")),
    }
}

fn at(bar: &ProgressBar, done: usize, total: usize) {
    bar.set_length(total as u64);
    bar.set_position(done as u64);
}
