//! `retune dataset review`: a person goes through what a model wrote, and says of each row whether it may be learned from.
//!
//! A line a key, so that it works on any terminal and from a pipe. The file is written after each word: whoever is interrupted has lost
//! nothing.

use std::io::{BufRead, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use retune_retrain::synth::{self, Desk, Key, Progress, Row, Sheet, Verdict};
use retune_task::Config;
use serde_json::json;

use crate::cli::Common;
use crate::{output, setup};

const KEYS: &str = "a accept   e edit the answer   r reject   s skip   u undo   q quit";

#[derive(clap::Args)]
#[command(
    long_about = "Go through a file that `retune dataset synth` wrote. Each exchange that nobody has reviewed is shown, and waits for a letter \
                  and Enter:\n\n  a accept   e edit the answer   r reject   s skip   u undo   q quit\n\n\
                  To edit opens $VISUAL or $EDITOR with the answer, or, where there is none or no terminal, reads it as the next line. An \
                  answer that breaks the task's format cannot be accepted. The file is written after each; `retune dataset import` then \
                  takes what was accepted.",
    after_help = "Examples:\n  retune dataset review new.jsonl --rater ann\n  printf 'a\\nr\\nq\\n' | retune dataset review new.jsonl --rater ann"
)]
pub(crate) struct Args {
    /// The file.
    file: PathBuf,
    /// Who reviews: the name stays with each row.
    #[arg(long, value_name = "NAME")]
    rater: String,
}

pub(crate) fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    let rater = args.rater.trim();
    ensure!(
        !rater.is_empty() && rater.len() <= 200 && !rater.contains(char::is_control),
        "--rater {:?}: expected a name of up to 200 bytes",
        args.rater
    );
    let config = setup::config(common)?;
    let mut sheet = Sheet::open(&args.file)?;
    let mut desk = Desk::new(rater);
    let before = Progress::of(&sheet.rows);
    while let Some(place) = desk.place(&sheet.rows) {
        show(common, &sheet.rows, place)?;
        if !ask(&config, &mut sheet, &mut desk, place)? {
            break;
        }
    }
    let now = Progress::of(&sheet.rows);
    if common.json {
        output::json(&json!(now))?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = args.file.display();
    if before.waiting == 0 {
        output::line(format_args!("{file}: nothing waits for a review"))?;
    }
    output::line(format_args!(
        "{file}: {} accepted, {} rejected, {} left",
        now.accepted, now.rejected, now.waiting
    ))?;
    if now.accepted > 0 {
        let mut tasks: Vec<&str> = sheet
            .rows
            .iter()
            .map(|r| r.synthetic.task.as_str())
            .collect();
        tasks.dedup();
        output::line(format_args!(
            "retune dataset import --task {} {file} takes what was accepted",
            tasks.first().unwrap_or(&"TASK")
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(common: &Common, rows: &[Row], place: usize) -> Result<()> {
    let Some(row) = rows.get(place) else {
        return Ok(());
    };
    let left = Progress::of(rows).waiting;
    if common.json {
        let messages = &row.messages;
        return output::json(&json!({"line": place + 1, "left": left, "messages": messages}));
    }
    let (line, model) = (place + 1, synth::shown(&row.synthetic.model));
    output::line(format_args!("\n── line {line}, by {model}; {left} left ──"))?;
    for message in &row.messages {
        output::line(format_args!(
            "{}:\n  {}\n",
            message.role,
            synth::shown(&message.content).replace('\n', "\n  ")
        ))?;
    }
    output::line(KEYS)
}

/// Takes one word about a row; whether there are to be more.
fn ask(config: &Arc<Config>, sheet: &mut Sheet, desk: &mut Desk, place: usize) -> Result<bool> {
    loop {
        let Some(said) = next_line()? else {
            return Ok(false);
        };
        match Key::read(&said) {
            None => output::problem(format_args!("expected one of {KEYS}")),
            Some(Key::Quit) => return Ok(false),
            Some(Key::Skip) => {
                desk.skip(place);
                return Ok(true);
            }
            Some(Key::Undo) => {
                if desk.undo(&mut sheet.rows) {
                    sheet.replace()?;
                    return Ok(true);
                }
                output::problem("there is nothing to take back");
            }
            Some(Key::Reject) => {
                desk.say(&mut sheet.rows, place, Verdict::Rejected, None, Utc::now());
                sheet.replace()?;
                return Ok(true);
            }
            Some(key) => {
                let Some(row) = sheet.rows.get(place) else {
                    return Ok(false);
                };
                let answer = match key {
                    Key::Edit => match edited(row.answer())? {
                        Some(answer) => answer,
                        None => return Ok(false),
                    },
                    _ => row.answer().to_owned(),
                };
                let task = setup::task(config, &row.synthetic.task)?;
                if let Some(what) = synth::objection(task, &answer) {
                    let what = synth::shown(&what);
                    output::problem(format_args!("this answer cannot be accepted: {what}"));
                    continue;
                }
                let answer = Some(answer);
                desk.say(
                    &mut sheet.rows,
                    place,
                    Verdict::Accepted,
                    answer,
                    Utc::now(),
                );
                sheet.replace()?;
                return Ok(true);
            }
        }
    }
}

/// Another answer in place of one: by an editor where a person has one, else the next line.
fn edited(answer: &str) -> Result<Option<String>> {
    let editor = ["VISUAL", "EDITOR"].map(|name| std::env::var(name).ok());
    let editor = editor
        .into_iter()
        .flatten()
        .find(|said| !said.trim().is_empty());
    let Some(editor) = editor.filter(|_| std::io::stdin().is_terminal()) else {
        output::line("the answer, on one line:")?;
        return next_line();
    };
    // Nobody else reads it, and it goes with this function.
    let mut file = tempfile::Builder::new().suffix(".txt").tempfile()?;
    file.write_all(answer.as_bytes())?;
    file.flush()?;
    // As Git has it: an editor may come with arguments.
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{editor} \"$1\""), &editor])
        .arg(file.path());
    let status = command
        .status()
        .with_context(|| format!("the editor {editor:?}"))?;
    ensure!(
        status.success(),
        "the editor {editor:?} ended with {status}"
    );
    let text = std::fs::read_to_string(file.path()).context("the edited answer")?;
    // Editors end a file with a line's end.
    let text = match answer.ends_with('\n') {
        true => text.as_str(),
        false => text.trim_end_matches(['\r', '\n']),
    };
    Ok(Some(text.to_owned()))
}

/// How far a file of a model's rows is, where it has some.
pub(super) fn told(of: &Progress) -> String {
    let all = of.accepted + of.rejected + of.waiting;
    match all {
        0 => String::new(),
        _ => format!(
            "; {all} synthetic rows: {} accepted, {} rejected, {} wait for `retune dataset review`",
            of.accepted, of.rejected, of.waiting
        ),
    }
}

/// The next line of stdin; `None` at its end.
fn next_line() -> Result<Option<String>> {
    let mut line = String::new();
    let read = std::io::stdin()
        .lock()
        .read_line(&mut line)
        .context("stdin")?;
    Ok((read > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned()))
}
