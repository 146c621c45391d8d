//! `retune ledger`: questions to everything that was kept.

use std::process::ExitCode;

use anyhow::{Context, Result};
use arrow::json::LineDelimitedWriter;
use arrow::util::pretty::pretty_format_batches;
use retune_ledger::{Ledger, Table};
use serde_json::json;

use crate::cli::Common;
use crate::{output, setup};

#[derive(clap::Subcommand)]
#[command(
    long_about = "Ask the ledger: the tables exchanges, feedback, windows and runs. Works beside a running server.",
    after_help = "Examples:\n  retune ledger sql \"select adapter, count(*), avg(duration_ms) from exchanges group by adapter\"\n  \
                  retune ledger sql --json \"select * from runs\"\n  retune ledger stats"
)]
pub(crate) enum Command {
    /// Answer an SQL query over exchanges, feedback, windows and runs.
    Sql {
        /// One statement that reads; DataFusion's SQL.
        query: String,
    },
    /// Rows and version of each table.
    Stats,
}

pub(crate) async fn run(common: &Common, command: &Command) -> Result<ExitCode> {
    let config = setup::config(common)?;
    let ledger = Ledger::open_briefly(&config.store).await?;
    match command {
        Command::Sql { query } => sql(common, &ledger, query).await?,
        Command::Stats => stats(common, &ledger).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn sql(common: &Common, ledger: &Ledger, query: &str) -> Result<()> {
    let batches = ledger.sql(query).await?;
    if !common.json {
        return output::line(pretty_format_batches(&batches)?);
    }
    let mut lines = LineDelimitedWriter::new(Vec::new());
    lines.write_batches(&batches.iter().collect::<Vec<_>>())?;
    lines.finish()?;
    let lines = String::from_utf8(lines.into_inner()).context("the answer is not UTF-8")?;
    lines.lines().try_for_each(output::line)
}

async fn stats(common: &Common, ledger: &Ledger) -> Result<()> {
    let mut rows = Vec::new();
    for table in Table::ALL {
        let count = ledger
            .sql(&format!("select count(*) as n from {table}"))
            .await?;
        let count = pretty_count(&count);
        let version = ledger.table_version(table).await?;
        if common.json {
            output::json(&json!({"table": table.to_string(), "rows": count, "version": version}))?;
        } else {
            rows.push(vec![
                table.to_string(),
                count.to_string(),
                version.to_string(),
            ]);
        }
    }
    if !common.json {
        output::table(&["table", "rows", "version"], &rows)?;
    }
    Ok(())
}

fn pretty_count(batches: &[arrow::record_batch::RecordBatch]) -> i64 {
    let column = batches.first().map(|batch| batch.column(0));
    let counts =
        column.and_then(|column| column.as_any().downcast_ref::<arrow::array::Int64Array>());
    counts
        .filter(|counts| !counts.is_empty())
        .map_or(0, |counts| counts.value(0))
}
