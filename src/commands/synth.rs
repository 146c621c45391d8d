//! `retune dataset synth`: examples that a stronger model writes, into a file that a person reviews.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use retune_ledger::Ledger;
use retune_retrain::Limits;
use retune_retrain::synth::{self, Api, Known, Order, Sheet, Tally};
use serde_json::json;

use crate::cli::Common;
use crate::{output, setup, stop};

#[derive(clap::Args)]
#[command(
    long_about = "Have a stronger model write new messages of the kind that a task gets, and answer them under the task's full prompt.\n\n\
                  What users said goes to that API: with each request some of the task's rated and corrected examples, drawn anew. Held-out \
                  conversations never do. --from shows a file's examples in their place; then nothing of the ledger leaves this machine but \
                  the task's prompt and format.\n\n\
                  An answer that breaks the task's format is refused, and so is a message that is empty, nearly one of the dataset, of the \
                  file or held out, and what repeats a held-out conversation; what was refused is counted, with examples. What is kept waits \
                  in the file for a person (`retune dataset review`); until then nothing learns from it. Stopped, or run again with a \
                  higher --count, it adds to the file that is there.",
    after_help = "Examples:\n  retune dataset synth --task triage --url https://api.openai.com/v1 --model gpt-4.1 \\\n      \
                  --api-key-env OPENAI_API_KEY --count 200 --out new.jsonl\n  \
                  retune dataset synth --task triage --url http://127.0.0.1:8000/v1 --model Qwen3-235B --count 50 \\\n      \
                  --from examples.jsonl --out new.jsonl\n\n\
                  Then:\n  retune dataset review new.jsonl --rater ann\n  retune dataset import --task triage new.jsonl"
)]
pub(crate) struct Args {
    #[arg(long)]
    task: String,
    /// An API with OpenAI's chat completions, with its /v1.
    #[arg(long)]
    url: String,
    /// What that API calls the model.
    #[arg(long)]
    model: String,
    /// The variable of the environment that holds its key, such as OPENAI_API_KEY.
    #[arg(long, value_name = "NAME")]
    api_key_env: Option<String>,
    /// Rows that the file is to have, those that are in it included.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// OpenAI's chat JSONL whose examples are shown, in place of the task's own.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// The file to add to.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Draws the same examples again, and is sent along.
    #[arg(long)]
    seed: Option<u64>,
    /// Of the messages, from 0 to 2; answers are asked for at 0 then [default: the API's own, for both].
    #[arg(long)]
    temperature: Option<f64>,
}

pub(crate) async fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    if let Some(given) = args.temperature {
        ensure!(
            (0.0..=2.0).contains(&given),
            "--temperature {given}: expected 0 to 2"
        );
    }
    let config = setup::config(common)?;
    let task = setup::task(&config, &args.task)?;
    let key = match &args.api_key_env {
        None => None,
        Some(name) => match std::env::var(name) {
            Ok(key) if !key.trim().is_empty() => Some(key.trim().to_owned()),
            _ => bail!(
                "the variable {name} (--api-key-env) is to hold the API's key, and holds none"
            ),
        },
    };
    let api = Api::new(&args.url, &args.model, key.as_deref(), &limits())?;
    let stop = stop::on_signal(false)?;
    let mut sheet = Sheet::create_or_open(&args.out)?;
    let ledger = Ledger::open_briefly(&config.store).await?;
    let mut known = Known::read(&ledger, task).await?;
    match &args.from {
        None => output::problem(format_args!(
            "texts of users go to {}: some of {} rated or corrected examples with each request; --from FILE shows a file's instead",
            api.url(),
            known.seeds.len()
        )),
        Some(file) => {
            let held_out = known.read_file(&ledger, task, file)?;
            output::problem(format_args!(
                "texts of {} go to {}: some of {} examples with each request; {held_out} more are held out, and stay here",
                file.display(),
                api.url(),
                known.seeds.len()
            ));
        }
    }
    let order = Order {
        count: args.count as usize,
        seed: args.seed.unwrap_or_else(by_the_clock),
        sends_seed: args.seed.is_some(),
        temperature: args.temperature,
    };
    let there = sheet.rows.len();
    let bar = bar(order.count, there)?;
    let mut tally = Tally::default();
    let mut observer = |rows: usize| bar.set_position(rows as u64);
    let ended = tokio::select! {
        ended = Box::pin(synth::write(&api, task, &known, &order, &mut sheet, &mut tally, &mut observer)) => Some(ended),
        () = stop.asked.cancelled() => None,
    };
    bar.finish_and_clear();
    let rows = there + usize::try_from(tally.kept)?;
    print(common, args, rows, &tally)?;
    match ended {
        Some(Ok(())) => Ok(ExitCode::SUCCESS),
        Some(Err(error)) => Err(error).with_context(|| left(args, rows)),
        None => {
            output::problem(format_args!("stopped; {}", left(args, rows)));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// An API elsewhere is slower to have room again than a server that one runs.
fn limits() -> Limits {
    Limits {
        retry: std::time::Duration::from_secs(1),
        ..Limits::default()
    }
}

fn by_the_clock() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_nanos() as u64)
}

fn left(args: &Args, rows: usize) -> String {
    format!(
        "{} has {rows} of {} rows; the same command goes on from there",
        args.out.display(),
        args.count
    )
}

fn bar(count: usize, there: usize) -> Result<ProgressBar> {
    let bar = ProgressBar::new(count as u64);
    bar.set_style(ProgressStyle::with_template(
        "{bar:30} {pos} of {len} rows, {elapsed}, {eta} left",
    )?);
    bar.set_position(there as u64);
    bar.reset_eta();
    Ok(bar)
}

fn print(common: &Common, args: &Args, rows: usize, tally: &Tally) -> Result<()> {
    if common.json {
        return output::json(&json!({
            "file": args.out, "rows": rows, "wanted": args.count, "kept": tally.kept, "refused": tally.refused,
            "requests": tally.requests, "prompt_tokens": tally.prompt_tokens, "completion_tokens": tally.completion_tokens,
        }));
    }
    output::line(format_args!(
        "{}: {rows} of {} rows, {} of them new; {} refused; {} requests, {} tokens in, {} out",
        args.out.display(),
        args.count,
        tally.kept,
        tally.refused(),
        tally.requests,
        tally.prompt_tokens,
        tally.completion_tokens,
    ))?;
    if !tally.refused.is_empty() {
        let told = tally.refused.iter().map(|(why, told)| {
            let such = synth::shown(&told.such_as.join(", "));
            vec![told.count.to_string(), why.clone(), such]
        });
        output::line("")?;
        output::table(
            &["refused", "since it is", "such as"],
            &told.collect::<Vec<_>>(),
        )?;
    }
    if rows > 0 {
        output::line(format_args!(
            "\nNothing learns from them before somebody has accepted them: retune dataset review {} --rater NAME",
            args.out.display()
        ))?;
    }
    Ok(())
}
