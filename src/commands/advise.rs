//! `retune advise`: is fine-tuning what a task needs at all?

use std::process::ExitCode;

use anyhow::Result;
use retune_ledger::Ledger;
use retune_retrain::{Advice, Advised};
use serde_json::json;

use crate::cli::Common;
use crate::{output, setup};

#[derive(clap::Args)]
#[command(
    long_about = "Say whether fine-tuning is what a task needs, from its own logs: how many usable examples there are, how often the answers \
                  break their format or leave people discontent, what learning the prompt would save, how often the prompt changed, and \
                  whether knowledge is missing rather than behaviour. Works beside a running server, and without one.\n\n\
                  The advice is one of: fine-tune; collect (rate and correct more answers first); prompt (it does the job as it is); \
                  retrieve (give the model what it does not know); wait (nothing to gain now).",
    after_help = "Examples:\n  retune advise --task triage\n  retune advise --task triage --json | jq -r .verdict"
)]
pub(crate) struct Args {
    /// The task.
    #[arg(long)]
    task: String,
}

pub(crate) async fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    let config = setup::config(common)?;
    let task = setup::task(&config, &args.task)?;
    // Only its tokenizer is wanted, and advice is worth having without.
    let base = setup::base_here(&config);
    let ledger = Ledger::open_briefly(&config.store).await?;
    let advice = retune_retrain::advise(&ledger, task, base.as_deref()).await?;
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
