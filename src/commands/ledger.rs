//! `retune ledger`: questions to everything that was kept, its upkeep, and the ways in and out.

use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use arrow::json::LineDelimitedWriter;
use arrow::util::pretty::pretty_format_batches_with_schema;
use indicatif::{ProgressBar, ProgressStyle};
use retune_ledger::{
    Answer, Export, Forgetting, Forgotten, Imported, Importer, LearnedFrom, Ledger, Table,
};
use retune_retrain::{Report, synth};
use retune_task::Config;
use serde_json::json;

use crate::cli::Common;
use crate::{output, setup};

/// The longest line that is imported, in bytes: as long as a request's body may be.
const LONGEST_LINE: u64 = 16 << 20;

#[derive(clap::Subcommand)]
#[command(
    long_about = "Ask the ledger: the tables exchanges, feedback, windows and runs. Works beside a running server.",
    after_help = "Examples:\n  retune ledger sql \"select adapter, count(*), avg(duration_ms) from exchanges group by adapter\"\n  \
                  retune ledger sql --json \"select * from runs\"\n  retune ledger stats\n  \
                  retune ledger import --task support logs.jsonl\n  retune ledger export --rating-at-least 4 > best.jsonl\n  \
                  retune ledger forget --user alice@example.org"
)]
pub(crate) enum Command {
    /// Answer an SQL query over exchanges, feedback, windows and runs.
    Sql {
        /// One statement that reads; DataFusion's SQL.
        query: String,
    },
    /// Rows, files, bytes and version of each table.
    Stats,
    /// Read every file to its end, and name those that are damaged. Exits 1 where there are any.
    Verify,
    /// Merge small files, and delete those that no version of the last seven days has.
    ///
    /// `serve` and `up` do so by themselves while they run (store.compact_seconds), less thoroughly.
    Compact,
    /// Forget a person: what was asked in their name until now, and what was said of it.
    ///
    /// It goes from every version of the tables, from the logs of this machine, from reports of runs and from what runs asked again.
    /// Adapters that were trained on it are listed, to be retrained: what they learned stays in them. Killed, it is gone on with by the
    /// next server, or by the same command.
    #[command(verbatim_doc_comment)]
    Forget {
        /// As apps name the person in `safety_identifier` or `user`.
        #[arg(long)]
        user: String,
        /// Only tell what there is, and which adapters were trained on it.
        #[arg(long)]
        dry_run: bool,
    },
    /// Take logs from elsewhere, a line each.
    ///
    /// A line is {"task", "messages": [… the answer last], "ts"?, "adapter"?, "user"?, "metadata"?, "rating"?, "correction"?}; OpenAI's chat JSONL
    /// will do with --task. Bad lines are named, and the others kept; then the exit code is 1. Lines that were imported before are
    /// left out, so that an import that was cut off can be run again.
    #[command(verbatim_doc_comment)]
    Import {
        /// The file; - for standard input.
        file: PathBuf,
        /// The task of lines that name none.
        #[arg(long)]
        task: Option<String>,
    },
    /// Print what apps asked and were answered as OpenAI's chat JSONL.
    ///
    /// The answer is the newest correction by a rater, where there is one, else the model's own. What was not kept (store: false),
    /// cut off or refused is left out.
    Export {
        /// Only this task's.
        #[arg(long)]
        task: Option<String>,
        /// Only what was rated, and never lower.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=5))]
        rating_at_least: Option<u8>,
    },
}

pub(crate) async fn run(common: &Common, command: &Command) -> Result<ExitCode> {
    let config = setup::config(common)?;
    setup::says_which_store(&config);
    let ledger = match command {
        // What dead processes left in their logs has to be in the tables before anything can be taken from there.
        Command::Forget { .. } => Ledger::open(&config.store).await?,
        _ => Ledger::open_briefly(&config.store).await?,
    };
    match command {
        Command::Sql { query } => {
            let answer = match &config.store.query_ballista {
                None => ledger.sql_stream(query).await?,
                Some(url) => on_cluster(&ledger, url, query).await?,
            };
            sql(common, answer).await?;
        }
        Command::Stats => stats(common, &ledger).await?,
        Command::Verify => return verify(common, &ledger).await,
        Command::Compact => compact(common, &ledger).await?,
        Command::Forget { user, dry_run } => {
            if user.trim().is_empty() {
                bail!(
                    "--user is empty; expected the name that apps ask in: `user`, or `safety_identifier`"
                );
            }
            return forget(common, &ledger, user, *dry_run).await;
        }
        Command::Import { file, task } => {
            return import(common, &config, &ledger, file, task.as_deref(), Lines::Log).await;
        }
        Command::Export {
            task,
            rating_at_least,
        } => {
            let wanted = Export {
                task: task.clone(),
                rating_at_least: *rating_at_least,
            };
            let lines = export(&ledger, &wanted).await?;
            // One that the configuration has no more may still have rows.
            if let (0, Some(task)) = (lines, task) {
                setup::task(&config, task)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "ballista")]
async fn on_cluster(ledger: &Ledger, url: &str, query: &str) -> Result<Answer> {
    Ok(ledger.sql_on_cluster(url, query).await?)
}

#[cfg(not(feature = "ballista"))]
#[allow(clippy::unused_async, reason = "with the feature it waits")]
async fn on_cluster(_: &Ledger, url: &str, _: &str) -> Result<Answer> {
    bail!(
        "query.ballista is {url:?}, and this program was built without Ballista; build it with `cargo build --release --features ballista`, \
         or leave the key out"
    )
}

async fn sql(common: &Common, mut answer: Answer) -> Result<()> {
    if !common.json {
        let schema = answer.schema();
        let batches = answer.collect().await?;
        return output::line(pretty_format_batches_with_schema(schema, &batches)?);
    }
    // As they come: an answer may be larger than the memory.
    while let Some(batch) = answer.next().await? {
        let mut lines = LineDelimitedWriter::new(Vec::new());
        lines.write(&batch)?;
        lines.finish()?;
        let lines = String::from_utf8(lines.into_inner()).context("the answer is not UTF-8")?;
        lines.lines().try_for_each(output::line)?;
    }
    Ok(())
}

async fn stats(common: &Common, ledger: &Ledger) -> Result<()> {
    let mut rows = Vec::new();
    for table in Table::ALL {
        let size = ledger.size(table).await?;
        if common.json {
            output::json(&json!({
                "table": table.to_string(), "rows": size.rows, "files": size.files, "bytes": size.bytes, "version": size.version
            }))?;
        } else {
            let cells = [size.rows, size.files, size.bytes, size.version];
            let cells = cells.iter().map(u64::to_string);
            rows.push(std::iter::once(table.to_string()).chain(cells).collect());
        }
    }
    if !common.json {
        output::table(&["table", "rows", "files", "bytes", "version"], &rows)?;
    }
    Ok(())
}

async fn verify(common: &Common, ledger: &Ledger) -> Result<ExitCode> {
    let bar = bar("{msg:10} {wide_bar} {pos}/{len} files")?;
    let verified = ledger
        .verify(|table, done, all| {
            bar.set_message(table.name());
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })
        .await?;
    bar.finish_and_clear();
    for finding in &verified.findings {
        let (path, what) = (finding.path.display().to_string(), &finding.what);
        match common.json {
            true => output::json(&json!({"path": path, "problem": what}))?,
            false => output::line(format!("{path}: {what}"))?,
        }
    }
    let (files, bytes, rows) = (verified.files, verified.bytes, verified.rows);
    let problems = verified.findings.len();
    match common.json {
        true => output::json(
            &json!({"files": files, "bytes": bytes, "rows": rows, "problems": problems}),
        )?,
        false => output::line(format!(
            "{files} files read, {bytes} bytes, {rows} rows: {}",
            match problems {
                0 => "all as they were written".to_owned(),
                n => format!("{n} damaged"),
            }
        ))?,
    }
    Ok(match problems {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

async fn compact(common: &Common, ledger: &Ledger) -> Result<()> {
    let Some(kept) = ledger.compact().await? else {
        bail!(
            "another process merges this store's files at this moment; try again when it is done"
        );
    };
    let mut rows = Vec::new();
    for kept in kept {
        let ([files_before, files], [bytes_before, bytes]) = (kept.files, kept.bytes);
        if common.json {
            output::json(&json!({
                "table": kept.table.to_string(), "files_before": files_before, "files": files,
                "bytes_before": bytes_before, "bytes": bytes, "deleted": kept.vacuumed
            }))?;
        } else {
            let cells = [
                files_before,
                files,
                bytes_before,
                bytes,
                kept.vacuumed as u64,
            ];
            let cells = cells.iter().map(u64::to_string);
            rows.push(
                std::iter::once(kept.table.to_string())
                    .chain(cells)
                    .collect(),
            );
        }
    }
    if !common.json {
        let head = [
            "table",
            "files before",
            "files",
            "bytes before",
            "bytes",
            "deleted",
        ];
        output::table(&head, &rows)?;
    }
    Ok(())
}

async fn forget(common: &Common, ledger: &Ledger, user: &str, dry_run: bool) -> Result<ExitCode> {
    let done = if dry_run {
        ledger.would_forget(user).await?
    } else {
        let bar = bar("{msg} {wide_bar} {pos}/{len}")?;
        let mut progress = |at| match at {
            Forgetting::Waiting => bar.set_message("waiting for another process that merges files"),
            Forgetting::Publishing => bar.set_message("waiting for the logs"),
            Forgetting::Files(table, done, all) => {
                bar.set_message(table.name());
                bar.set_length(all as u64);
                bar.set_position(done as u64);
            }
        };
        let done = ledger.forget(user, &mut progress).await?;
        bar.finish_and_clear();
        ledger.close().await?;
        for report in &done.reports {
            Report::write_anew(report)?;
        }
        done
    };
    if done.exchanges + done.feedback == 0 {
        output::problem(format!(
            "nothing of {user:?} is there; names are told apart to the letter"
        ));
    }
    match common.json {
        true => output::json(&serde_json::to_value(&done)?)?,
        false => told(&done, dry_run)?,
    }
    for path in &done.unread {
        let path = path.display();
        output::problem(format!(
            "{path} cannot be read, and may have some of their rows; delete it, or restore it from a copy and forget them again"
        ));
    }
    Ok(match done.unread.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn told(done: &Forgotten, dry_run: bool) -> Result<()> {
    let (exchanges, feedback) = (done.exchanges, done.feedback);
    if dry_run {
        output::line(format!(
            "{exchanges} exchanges, {feedback} feedback: nothing was changed"
        ))?;
    } else {
        let (rewritten, deleted) = (done.files_rewritten, done.files_deleted);
        let reports = done.reports.len();
        output::line(format!(
            "forgotten: {exchanges} exchanges, {feedback} feedback ({rewritten} files written anew, {deleted} of older versions deleted, \
             {reports} reports changed)"
        ))?;
    }
    if !done.adapters.is_empty() {
        output::line("adapters that learned from them:")?;
        let cells = |of: &LearnedFrom| {
            let counts = [of.train, of.development, of.held_out].map(|n| n.to_string());
            std::iter::once(of.adapter.clone()).chain(counts).collect()
        };
        let rows: Vec<Vec<String>> = done.adapters.iter().map(cells).collect();
        output::table(
            &["adapter", "trained on", "chosen by", "examined with"],
            &rows,
        )?;
    }
    if !done.adapters_unknown.is_empty() {
        output::line(format!(
            "not known of adapters that an earlier version trained: {}",
            done.adapters_unknown.join(", ")
        ))?;
    }
    Ok(())
}

/// What a file's lines are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lines {
    /// Logs from elsewhere.
    Log,
    /// Examples: their answers are right. What a model wrote and nobody has reviewed waits in the file, or in the ledger for raters.
    Examples { for_review: bool },
}

/// Takes a file's lines into the ledger.
pub(super) async fn import(
    common: &Common,
    config: &Config,
    ledger: &Ledger,
    file: &Path,
    task: Option<&str>,
    of: Lines,
) -> Result<ExitCode> {
    let as_examples = of != Lines::Log;
    let (mut lines, length): (Box<dyn BufRead>, _) = if file == Path::new("-") {
        (Box::new(BufReader::new(std::io::stdin())), None)
    } else {
        let opened = std::fs::File::open(file);
        let opened = opened.with_context(|| file.display().to_string())?;
        let length = opened.metadata().map(|m| m.len()).ok();
        (Box::new(BufReader::new(opened)), length)
    };
    let bar = bar("{bytes}/{total_bytes} {wide_bar} {eta}")?;
    bar.set_length(length.unwrap_or_default());
    let mut importer = Importer::new(ledger, &config.tasks, task).await?;
    if as_examples {
        importer = importer.as_examples();
    }
    let (mut number, mut kept, mut known, mut bad) = (0_u64, 0_u64, 0_u64, 0_u64);
    let (mut waiting, mut rejected, mut offered) = (0_u64, 0_u64, 0_u64);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = lines
            .by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line);
        if read.with_context(|| file.display().to_string())? == 0 {
            break;
        }
        number += 1;
        bar.inc(line.len() as u64);
        let is_whole = line.ends_with(b"\n") || (line.len() as u64) < LONGEST_LINE;
        let done = if !is_whole {
            lines.skip_until(b'\n')?;
            Imported::Bad(format!("is longer than {LONGEST_LINE} bytes"))
        } else {
            match std::str::from_utf8(&line) {
                Ok(text) if text.trim().is_empty() => continue,
                Ok(text) => match synthetic(text, task.filter(|_| as_examples)) {
                    synth::Import::Other if as_examples => match super::dataset::example(text) {
                        Ok(text) => importer.line(&text).await?,
                        Err(what) => Imported::Bad(what),
                    },
                    synth::Import::Other => importer.line(text).await?,
                    synth::Import::Accepted { line, source } => {
                        importer.synthetic_line(&line, source).await?
                    }
                    synth::Import::Bad(what) => Imported::Bad(what),
                    synth::Import::Waiting { line, source }
                        if of == (Lines::Examples { for_review: true }) =>
                    {
                        offered += 1;
                        importer.unreviewed_line(&line, source).await?
                    }
                    synth::Import::Waiting { .. } => {
                        waiting += 1;
                        continue;
                    }
                    synth::Import::Rejected => {
                        rejected += 1;
                        continue;
                    }
                },
                Err(error) => Imported::Bad(format!("is not UTF-8: {error}")),
            }
        };
        match done {
            Imported::Kept => kept += 1,
            Imported::Known => known += 1,
            Imported::Bad(what) => {
                bad += 1;
                bar.suspend(|| output::problem(format!("{}:{number}: {what}", file.display())));
            }
        }
    }
    bar.finish_and_clear();
    ledger.close().await?;
    let mut done = json!({"lines": number, "kept": kept, "known": known, "bad": bad});
    let mut told = format!("{number} lines: {kept} kept, {known} known before, {bad} bad");
    if waiting + rejected > 0 {
        done["waiting"] = json!(waiting);
        done["rejected"] = json!(rejected);
        told.push_str(&format!(
            ", {waiting} wait for a person's review, {rejected} rejected"
        ));
    }
    if offered > 0 {
        done["offered"] = json!(offered);
        told.push_str(&format!(
            "; {offered} of them wait for raters at /console/review, and are learned from once one of them says that they are right"
        ));
    }
    match common.json {
        true => output::json(&done)?,
        false => output::line(told)?,
    }
    let all_wait = waiting > 0 && kept + known == 0;
    if waiting > 0 {
        let what = match all_wait {
            true => "nothing was imported: a model wrote these rows, and nobody has accepted one",
            false => "what nobody has accepted was not imported",
        };
        output::problem(format_args!(
            "{what}; review them with `retune dataset review {} --rater NAME`, then import the file again, or have raters see them at the console: \
             --for-review",
            file.display()
        ));
    }
    Ok(match bad == 0 && !all_wait {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// What is done with a line of a file of examples for `task`; a line of a log is read as that.
fn synthetic(line: &str, task: Option<&str>) -> synth::Import {
    task.map_or(synth::Import::Other, |task| synth::import(line, task))
}

/// How many lines there were.
async fn export(ledger: &Ledger, wanted: &Export) -> Result<usize> {
    let mut lines = ledger.export(wanted).await?;
    let mut count = 0;
    let mut out = BufWriter::new(std::io::stdout().lock());
    while let Some(some) = lines.next().await? {
        count += some.len();
        for line in some {
            writeln!(out, "{line}")?;
        }
    }
    out.flush()?;
    Ok(count)
}

/// On stderr, and only where a person looks.
fn bar(template: &str) -> Result<ProgressBar> {
    let bar = ProgressBar::no_length();
    bar.set_style(ProgressStyle::with_template(template)?);
    Ok(bar)
}
