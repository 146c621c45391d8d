//! `retune advise`: is fine-tuning what a task needs at all?

mod measure;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use indicatif::BinaryBytes;
use retune_ledger::Ledger;
use retune_retrain::advise::{Measured, Measurement, Share};
use retune_retrain::{Advice, Advised};
use serde_json::json;

use crate::cli::Common;
use crate::{output, setup, stop};

#[derive(clap::Args)]
#[command(
    group = clap::ArgGroup::new("measured").multiple(true),
    long_about = "Say whether fine-tuning is what a task needs, from its own logs: how many usable examples there are, how often the answers \
                  break their format or leave people discontent, what learning the prompt would save, how often the prompt changed, and \
                  whether knowledge is missing rather than behaviour. Works beside a running server, and without one.\n\n\
                  The advice is one of: fine-tune; collect (rate and correct more answers first); prompt (it does the job as it is); \
                  retrieve (give the model what it does not know); wait (nothing to gain now).\n\n\
                  With --bases or --prompts it tries first whether another base or another prompt would do. Each base with each prompt is \
                  asked the same rows, on a server of its own that is started for it on this machine and takes what a server takes; with \
                  kind = \"upstream\" the configured servers answer. The rows are those with a known answer (corrected, or rated 5), held-out \
                  ones first. Nothing of it gets into the ledger. The answer is the smallest base with a prompt that will do: that is the \
                  baseline which an adapter would have to beat. Where one will do, the advice is prompt; where none will, it stays what the \
                  logs say. With --json `candidates` has every figure, and `baseline` the choice with its prompt's text.",
    after_help = "Examples:\n  retune advise --task triage\n  retune advise --task triage --json | jq -r .verdict\n  \
                  retune advise --task triage --prompts prompts/            the present prompt, and each in a folder\n  \
                  retune advise --task triage --bases models/small,models/large --prompts prompts/ --rows 200\n  \
                  retune advise --task triage --prompts prompts/ --json | jq -r .baseline.text > triage.txt\n\n\
                  A few-shot prompt is a text with examples in it, or a *.jsonl with a message a line; where the first is no system message, \
                  the task's own prompt comes before them:\n  \
                  {\"role\": \"system\", \"content\": \"Sort the message.\"}\n  \
                  {\"role\": \"user\", \"content\": \"My parcel never came.\"}\n  \
                  {\"role\": \"assistant\", \"content\": \"shipping\"}"
)]
pub(crate) struct Args {
    /// The task.
    #[arg(long)]
    task: String,
    /// Bases to measure, as engine.base names them (with kind = "upstream", as engine.model does) [default: the configured one].
    ///
    /// Nothing is downloaded for it. The smallest is the one with the fewest bytes of weights; where these cannot be told, whichever is
    /// named first.
    #[arg(
        long,
        value_name = "BASE,...",
        value_delimiter = ',',
        group = "measured"
    )]
    bases: Vec<String>,
    /// A folder whose files *.txt and *.jsonl are measured as the task's full prompt, beside the present one ("current").
    #[arg(long, value_name = "FOLDER", group = "measured")]
    prompts: Option<PathBuf>,
    /// Rows that each base is asked with each prompt, at most; those that a prompt shows as its examples are passed over.
    #[arg(long, value_name = "N", default_value_t = 100, requires = "measured", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rows: u32,
    /// Share of right answers that will do, if it is shown (by the 95 % lower limit: 96 of 100 show 0.9).
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 0.9,
        requires = "measured"
    )]
    good_enough: f64,
    /// How close to the known answer a right one is, up to 1, equal. Less where answers are free in their words.
    ///
    /// Of JSON it is the share of fields that are the same, of other text 1 less the share of words that have to be changed.
    #[arg(
        long,
        value_name = "CLOSENESS",
        default_value_t = 1.0,
        requires = "measured"
    )]
    close_enough: f64,
}

pub(crate) async fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    ensure!(
        args.good_enough > 0.0 && args.good_enough < 1.0,
        "--good-enough {}: expected above 0 and below 1",
        args.good_enough
    );
    ensure!(
        args.close_enough > 0.0 && args.close_enough <= 1.0,
        "--close-enough {}: expected above 0, and 1 at most",
        args.close_enough
    );
    let config = setup::config(common)?;
    let task = setup::task(&config, &args.task)?;
    // Only its tokenizer is wanted, and advice is worth having without.
    let base = setup::base_here(&config);
    let ledger = Ledger::open_briefly(&config.store).await?;
    let mut advice = retune_retrain::advise(&ledger, task, base.as_deref()).await?;
    if !args.bases.is_empty() || args.prompts.is_some() {
        let stop = stop::on_signal(false)?;
        let measured = measure::measure(common, (&config, task), &ledger, args, &stop);
        let Some(measured) = Box::pin(measured).await? else {
            output::problem("stopped before everything was measured");
            return Ok(stop::code(&stop, ExitCode::FAILURE));
        };
        advice = advice.after(measured);
    }
    if common.json {
        output::json(&json!(advice))?;
    } else {
        print(task.name.as_str(), &advice)?;
    }
    if let Some(why_not) = advice.unread {
        output::problem(format_args!(
            "nothing is said of the prompt's tokens: {why_not}"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn print(task: &str, advice: &Advice) -> Result<()> {
    let why = match advice.verdict {
        Advised::FineTune => "train an adapter: `retune retrain --task` makes one and proves it",
        Advised::Collect => "rate and correct more answers first",
        Advised::Prompt if advice.measured.is_some() => "a prompt does the job",
        Advised::Prompt => "the prompt does the job: keep it",
        Advised::Retrieve => {
            "the answers lack knowledge, which training does not teach: look it up and put it into the prompt"
        }
        Advised::Wait => "there is nothing to gain from training now",
    };
    output::line(format_args!("{task}: {} ({why})\n", advice.verdict))?;
    let shown = |figure: f64| {
        let text = format!("{figure:.3}");
        let text = text.trim_end_matches('0').trim_end_matches('.');
        text.to_owned()
    };
    let rows: Vec<Vec<String>> = advice
        .reasons
        .iter()
        .map(|one| vec![shown(one.figure), shown(one.wanted), one.what.clone()])
        .collect();
    output::table(&["figure", "wanted", "what"], &rows)?;
    if let Some(measured) = &advice.measured {
        print_measured(measured)?;
    }
    if !advice.gap.is_empty() {
        output::line("\nWhere the answers fall short, by what the prompts have in common:\n")?;
        let rows: Vec<Vec<String>> = advice
            .gap
            .iter()
            .map(|of| {
                vec![
                    of.words.clone(),
                    of.failures.to_string(),
                    of.exchanges.to_string(),
                    of.request_ids.join(" "),
                ]
            })
            .collect();
        output::table(&["words", "failures", "of", "such as"], &rows)?;
    }
    Ok(())
}

fn print_measured(all: &Measurement) -> Result<()> {
    output::line(format_args!(
        "\nMeasured on {} rows with a known answer, {} of them held out{}:\n",
        all.rows,
        all.held_out,
        match all.in_prompts {
            0 => String::new(),
            shown => format!(" ({shown} were passed over, since a prompt shows them)"),
        }
    ))?;
    let rows: Vec<Vec<String>> = all.candidates.iter().map(row).collect();
    let head = [
        "base",
        "size",
        "prompt",
        "valid",
        "right",
        "limits",
        "close",
        "tokens in",
        "out",
        "seconds",
        "will do",
    ];
    output::table(&head, &rows)?;
    output::line(format_args!("\n{}.", all.baseline.why))
}

fn row(one: &Measured) -> Vec<String> {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let share = |of: Share| percent(of.share);
    let size = one.candidate.weight_bytes;
    vec![
        one.candidate.base.clone(),
        size.map_or_else(|| "-".to_owned(), |bytes| BinaryBytes(bytes).to_string()),
        one.candidate.prompt.clone(),
        one.format_valid.map_or_else(|| "-".to_owned(), share),
        share(one.right),
        format!(
            "{} to {}",
            percent(one.right.at_least),
            percent(one.right.at_most)
        ),
        format!("{:.3}", one.closeness),
        format!("{:.0}", one.prompt_tokens),
        format!("{:.0}", one.completion_tokens),
        format!("{:.2}", one.seconds),
        if one.will_do { "yes" } else { "no" }.to_owned(),
    ]
}
