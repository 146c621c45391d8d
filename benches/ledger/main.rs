//! The ledger: rows written a second, bytes a row, and questions to millions of rows beside DuckDB on the same files.
//!
//!     cargo bench --bench ledger -- --rows 10000000 --store /tmp/ledger-bench --python ~/.cache/retune-tools/readers/bin/python
//!
//! Rows go in as a server's do, one by one from many tasks, and count as written when they are in their table. Questions are asked in turns, Retune first, DuckDB in a process
//! of its own with as many threads and as much memory; each pair once unmeasured, then medians. DuckDB gets the list of the table's files,
//! and so need not read the Delta log; Retune asks its table each time, and looks for rows in logs. At the end whoever asked most is
//! forgotten: with the rows of a hundred days' files, the most that one person can cost.

#![allow(clippy::indexing_slicing, reason = "no product code")]

#[path = "../common/peak.rs"]
mod peak;
#[path = "../common/report.rs"]
mod report;
mod rows;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use clap::Parser;
use retune_ledger::{ConversationQuery, Ledger, Table};
use retune_task::{Config, Store};
use serde_json::{Value, json};

use report::{median, progress, shown};
use rows::Source;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What questions may take.
const MEMORY: usize = 2 << 30;
/// Tasks that write, each one row after the other.
const WRITERS: usize = 256;
/// Rows of the sample whose bytes are compared.
const SAMPLE: u64 = 200_000;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// The store's folder: filled where it is empty, else asked as it is
    #[arg(long)]
    store: PathBuf,
    /// A Python with duckdb and deltalake; without it only Retune answers
    #[arg(long)]
    python: Option<PathBuf>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What `cargo bench` says
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(run(&args))
}

async fn run(args: &Args) -> Result<()> {
    let url = format!("file:{}", args.store.display());
    let environment = [
        ("RETUNE_STORE__URL".to_owned(), url),
        ("RETUNE_QUERY__MEMORY_BYTES".to_owned(), MEMORY.to_string()),
        // Compacted once, when all is written.
        ("RETUNE_STORE__COMPACT_SECONDS".to_owned(), "0".to_owned()),
    ];
    let store = Config::load(None, environment)
        .map_err(|e| anyhow::anyhow!("{e}"))?
        .store;
    if !args.store.join("exchanges").exists() {
        write(args, &store).await?;
    }
    ask(args, &store).await?;
    forget(&store).await
}

async fn write(args: &Args, store: &Store) -> Result<()> {
    progress(&format!("writing {} rows", args.rows));
    let ledger = Ledger::open(store).await?;
    let mut source = Source::new(args.seed, args.rows, Utc::now());
    // Made beforehand in pieces, so that making them is not measured.
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Vec<_>>(4);
    let maker = {
        let ledger = ledger.clone();
        std::thread::spawn(move || {
            loop {
                let piece: Vec<_> = std::iter::from_fn(|| source.row(&ledger))
                    .take(20_000)
                    .collect();
                if piece.is_empty() || sender.blocking_send(piece).is_err() {
                    return;
                }
            }
        })
    };
    let (mut written, mut busy, mut json_bytes) = (0_u64, 0.0, 0_u64);
    while let Some(piece) = receiver.recv().await {
        if written < SAMPLE {
            for (exchange, _) in &piece {
                json_bytes += serde_json::to_vec(exchange)?.len() as u64 + 1;
            }
        }
        let count = piece.len() as u64;
        let start = Instant::now();
        put(&ledger, piece).await?;
        busy += start.elapsed().as_secs_f64();
        written += count;
        if written.is_multiple_of(1_000_000) {
            progress(&format!(
                "{written} rows, {:.0} a second",
                written as f64 / busy
            ));
        }
    }
    let start = Instant::now();
    ledger.flush().await?;
    busy += start.elapsed().as_secs_f64();
    maker
        .join()
        .map_err(|_| anyhow::anyhow!("making rows failed"))?;
    let stats = ledger.stats();
    let dropped: u64 = stats.iter().flat_map(|s| s.dropped).map(|(_, n)| n).sum();
    // Those that found the log full came again.
    let before = ledger.size(Table::Exchanges).await?;
    ensure!(
        before.rows == written,
        "{} of {written} rows are there, {dropped} were refused once",
        before.rows
    );
    let start = Instant::now();
    ledger.compact().await?;
    let compacting = start.elapsed().as_secs_f64();
    let after = ledger.size(Table::Exchanges).await?;
    let json_row = json_bytes as f64 / written.min(SAMPLE) as f64;
    report::round(&json!({
        "rows": written,
        "rows_per_second": written as f64 / busy,
        "json_bytes_per_row": json_row,
        "bytes_per_row": before.bytes as f64 / written as f64,
        "files": before.files,
        "compact_seconds": compacting,
        "compacted_bytes_per_row": after.bytes as f64 / written as f64,
        "compacted_files": after.files,
    }))?;
    ledger.close().await?;
    Ok(())
}

/// Many at once, as requests are.
async fn put(
    ledger: &Ledger,
    piece: Vec<(retune_ledger::Exchange, Option<retune_ledger::Feedback>)>,
) -> Result<()> {
    let mut writers = tokio::task::JoinSet::new();
    let share = piece.len().div_ceil(WRITERS);
    let mut rest = piece.into_iter();
    loop {
        let some: Vec<_> = rest.by_ref().take(share).collect();
        if some.is_empty() {
            break;
        }
        let ledger = ledger.clone();
        writers.spawn(async move {
            for (exchange, feedback) in some {
                while let Err(error) = ledger.append_exchange(exchange.clone()).await {
                    make_room(&ledger, error).await?;
                }
                let Some(feedback) = feedback else { continue };
                while let Err(error) = ledger.append_feedback(feedback.clone()).await {
                    make_room(&ledger, error).await?;
                }
            }
            Ok::<(), retune_ledger::Error>(())
        });
    }
    while let Some(done) = writers.join_next().await {
        done??;
    }
    Ok(())
}

/// Rows come faster than tables take them: as a client that is told to wait.
async fn make_room(
    ledger: &Ledger,
    error: retune_ledger::Error,
) -> Result<(), retune_ledger::Error> {
    match error {
        retune_ledger::Error::LogFull { .. } => ledger.flush().await,
        error => Err(error),
    }
}

/// A question, in SQL that both understand.
struct Question {
    name: &'static str,
    sql: String,
}

async fn ask(args: &Args, store: &Store) -> Result<()> {
    let ledger = Ledger::open_briefly(store).await?;
    let some = ledger
        .sql("select request_id, ts from exchanges order by ts limit 1 offset 1000")
        .await?;
    let text = |batch: &arrow::array::RecordBatch| {
        arrow::util::display::array_value_to_string(batch.column(0), 0)
    };
    let id = text(some.first().context("the store is empty")?)?;
    let day = (Utc::now() - TimeDelta::days(40)).date_naive();
    let next = day + TimeDelta::days(1);
    let quarter = (Utc::now() - TimeDelta::days(90)).date_naive();
    let questions = [
        Question {
            name: "a row by its id",
            sql: format!("select * from exchanges where request_id = '{id}'"),
        },
        Question {
            name: "a day's counts by adapter",
            sql: format!(
                "select adapter, count(*) as n from exchanges where ts >= timestamp '{day}T00:00:00Z' and ts < timestamp '{next}T00:00:00Z' group by adapter"
            ),
        },
        Question {
            name: "all counts by adapter and validity",
            sql: "select adapter, format_valid, count(*) as n, avg(duration_ms) as ms from exchanges group by adapter, format_valid".to_owned(),
        },
        Question {
            name: "a quarter's best-rated, with feedback",
            sql: format!(
                "select e.request_id, e.messages, e.answer, f.rating from exchanges e join feedback f on e.request_id = f.request_id \
                 where e.ts >= timestamp '{quarter}T00:00:00Z' and f.rating >= 4"
            ),
        },
    ];
    let mut duck = args
        .python
        .as_deref()
        .map(|python| Duck::start(python, &args.store))
        .transpose()?;
    let mut lines = Vec::new();
    for question in &questions {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..=args.rounds {
            let start = Instant::now();
            let mut answer = ledger.sql_stream(&question.sql).await?;
            let mut rows = 0;
            while let Some(batch) = answer.next().await? {
                rows += batch.num_rows() as u64;
            }
            let seconds = start.elapsed().as_secs_f64();
            let mut line = json!({"question": question.name, "round": round, "retune_seconds": seconds, "rows": rows});
            if let Some(duck) = &mut duck {
                let (other, other_rows) = duck.ask(&question.sql)?;
                ensure!(
                    rows == other_rows,
                    "{}: {rows} rows, DuckDB has {other_rows}",
                    question.name
                );
                line["duckdb_seconds"] = json!(other);
                if round > 0 {
                    theirs.push(other);
                }
            }
            if round > 0 {
                ours.push(seconds);
            }
            report::round(&line)?;
        }
        let (ours, theirs) = (median(ours), median(theirs));
        lines.push(vec![
            question.name.to_owned(),
            shown(ours * 1000.0, 1),
            shown(theirs * 1000.0, 1),
            shown(theirs / ours, 2),
        ]);
    }
    // As `GET /v1/chat/completions/{id}` asks: the id tells its time.
    let mut by_id = Vec::new();
    for _ in 0..=args.rounds {
        let query = ConversationQuery {
            request_id: Some(id.clone()),
            ..ConversationQuery::default()
        };
        let start = Instant::now();
        ensure!(
            ledger.conversations(&query).await?.len() == 1,
            "the row is gone"
        );
        by_id.push(start.elapsed().as_secs_f64());
    }
    by_id.remove(0);
    lines.push(vec![
        "the same row as the API asks for it".to_owned(),
        shown(median(by_id) * 1000.0, 1),
        shown(f64::NAN, 0),
        shown(f64::NAN, 0),
    ]);
    report::table(
        &[
            "question",
            "Retune, ms",
            "DuckDB, ms",
            "DuckDB's time / Retune's",
        ],
        &lines,
    )?;
    report::round(
        &json!({"peak_memory_mib": peak::mib()?.round(), "query_memory_mib": MEMORY >> 20}),
    )
}

/// As `retune ledger forget --user` does it.
async fn forget(store: &Store) -> Result<()> {
    let ledger = Ledger::open_briefly(store).await?;
    let most = "select \"user\" from exchanges where \"user\" is not null group by \"user\" order by count(*) desc, \"user\" limit 1";
    let most = ledger.sql(most).await?;
    let most = most.first().context("nobody is named")?;
    let user = arrow::util::display::array_value_to_string(most.column(0), 0)?;
    progress(&format!("forgetting {user}"));
    // The peak is of this alone (proc(5)).
    std::fs::write("/proc/self/clear_refs", "5")?;
    let start = Instant::now();
    let done = ledger.forget(&user, &mut |_| {}).await?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(
        ledger.would_forget(&user).await?.exchanges == 0,
        "{user} is still there"
    );
    report::round(&json!({
        "forget_seconds": seconds,
        "exchanges": done.exchanges,
        "feedback": done.feedback,
        "files_rewritten": done.files_rewritten,
        "files_deleted": done.files_deleted,
        "peak_memory_mib": peak::mib()?.round(),
    }))?;
    ledger.close().await?;
    Ok(())
}

/// DuckDB in a process of its own.
struct Duck {
    child: Child,
    asked: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Duck {
    fn start(python: &Path, store: &Path) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/ledger/duck.py");
        let mut child = Command::new(python)
            .arg(script)
            .arg(store)
            .arg(MEMORY.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| python.display().to_string())?;
        let asked = child.stdin.take().context("no stdin")?;
        let answers = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Self {
            child,
            asked,
            answers,
        })
    }

    fn ask(&mut self, sql: &str) -> Result<(f64, u64)> {
        writeln!(self.asked, "{sql}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).context("DuckDB ended")?;
        let seconds = answer["seconds"].as_f64().context("no seconds")?;
        Ok((seconds, answer["rows"].as_u64().context("no rows")?))
    }
}

impl Drop for Duck {
    fn drop(&mut self) {
        // It ends with its input; nobody waits longer.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
