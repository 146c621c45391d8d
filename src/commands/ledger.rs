//! `retune ledger`: questions to everything that was kept, its upkeep, and the ways in and out.

use std::io::{BufRead, BufReader, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use arrow::json::LineDelimitedWriter;
use arrow::util::pretty::pretty_format_batches;
use indicatif::{ProgressBar, ProgressStyle};
use retune_ledger::{Export, Imported, Importer, Ledger, Table};
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
                  retune ledger import --task support logs.jsonl\n  retune ledger export --rating-at-least 4 > best.jsonl"
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
    /// Take logs from elsewhere, a line each.
    ///
    /// A line is {"task", "messages": [… the answer last], "ts"?, "adapter"?, "user"?, "rating"?, "correction"?}; OpenAI's chat JSONL
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
    let ledger = Ledger::open_briefly(&config.store).await?;
    match command {
        Command::Sql { query } => sql(common, &ledger, query).await?,
        Command::Stats => stats(common, &ledger).await?,
        Command::Verify => return verify(common, &ledger).await,
        Command::Compact => compact(common, &ledger).await?,
        Command::Import { file, task } => {
            return import(common, &config, &ledger, file, task.as_deref()).await;
        }
        Command::Export {
            task,
            rating_at_least,
        } => {
            let wanted = Export {
                task: task.clone(),
                rating_at_least: *rating_at_least,
            };
            export(&ledger, &wanted).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn sql(common: &Common, ledger: &Ledger, query: &str) -> Result<()> {
    if !common.json {
        let batches = ledger.sql(query).await?;
        return output::line(pretty_format_batches(&batches)?);
    }
    // As they come: an answer may be larger than the memory.
    let mut answer = ledger.sql_stream(query).await?;
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

async fn import(
    common: &Common,
    config: &Config,
    ledger: &Ledger,
    file: &Path,
    task: Option<&str>,
) -> Result<ExitCode> {
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
    let (mut number, mut kept, mut known, mut bad) = (0_u64, 0_u64, 0_u64, 0_u64);
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
                Ok(text) => importer.line(text).await?,
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
    match common.json {
        true => output::json(&json!({"lines": number, "kept": kept, "known": known, "bad": bad}))?,
        false => output::line(format!(
            "{number} lines: {kept} kept, {known} known before, {bad} bad"
        ))?,
    }
    Ok(match bad {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

async fn export(ledger: &Ledger, wanted: &Export) -> Result<()> {
    let mut lines = ledger.export(wanted).await?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    while let Some(some) = lines.next().await? {
        for line in some {
            writeln!(out, "{line}")?;
        }
    }
    out.flush()?;
    Ok(())
}

/// On stderr, and only where a person looks.
fn bar(template: &str) -> Result<ProgressBar> {
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::no_length(),
        false => ProgressBar::hidden(),
    };
    bar.set_style(ProgressStyle::with_template(template)?);
    Ok(bar)
}
