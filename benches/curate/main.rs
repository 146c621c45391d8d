//! A dataset from as many rated exchanges as a large installation has: what it takes to filter them.
//!
//!     cargo bench --bench curate -- --rows 1000000
//!
//! Prompts are sentences of words with Zipf's frequencies, half of them with a number; of a hundred three say nearly what another says, and one
//! contradicts another. Exchanges and ratings are in memory before the clock starts, as a run has read them; their memory counts.

#![allow(clippy::indexing_slicing, reason = "no product code")]

#[path = "../common/peak.rs"]
mod peak;
#[path = "../common/report.rs"]
mod report;

use std::time::Instant;

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use clap::Parser;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use retune_ledger::{Exchange, Feedback, Purpose};
use retune_task::{ChatMessage, Task, conversation};
use serde_json::json;

use report::{median, progress, round, shown, table};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TASK: &str = "ask";
const WORDS: usize = 20_000;

#[derive(Parser)]
struct Args {
    /// Rated exchanges.
    #[arg(long, default_value_t = 1_000_000)]
    rows: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// What cargo says to a bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    progress(&format!("writing {} exchanges", args.rows));
    let (exchanges, feedback) = logged(&args);
    let before = peak::mib()?;
    let task = Task::of_job(TASK);
    let mut seconds = Vec::new();
    let mut kept = 0;
    let mut curated = json!({});
    for _ in 0..args.rounds {
        let began = Instant::now();
        let dataset = retune_retrain::dataset::build(&task, &exchanges, &feedback);
        seconds.push(began.elapsed().as_secs_f64());
        kept = dataset.len();
        curated = json!(dataset.counts.curated);
        round(&json!({"seconds": seconds.last(), "kept": kept, "curated": curated}))?;
    }
    let (seconds, peak) = (median(seconds), peak::mib()?);
    table(
        &[
            "rows",
            "seconds",
            "rows a second",
            "MiB of the rows",
            "MiB at most",
            "kept",
            "curated",
        ],
        &[vec![
            args.rows.to_string(),
            shown(seconds, 1),
            shown(args.rows as f64 / seconds, 0),
            shown(before, 0),
            shown(peak, 0),
            kept.to_string(),
            curated.to_string(),
        ]],
    )
}

fn logged(args: &Args) -> (Vec<Exchange>, Vec<Feedback>) {
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let words: Vec<String> = (0..WORDS)
        .map(|_| {
            let length = rng.random_range(3..10);
            (0..length).map(|_| rng.random_range('a'..='z')).collect()
        })
        .collect();
    let mut prompts: Vec<String> = Vec::with_capacity(args.rows);
    let (mut exchanges, mut feedback) = (Vec::new(), Vec::new());
    for n in 0..args.rows {
        let kind = rng.random_range(0..100);
        let (prompt, answer) = match kind {
            0..4 if n > 0 => {
                let like = &prompts[rng.random_range(0..n)];
                // Three say it politely, one is answered otherwise.
                match kind {
                    0 => (like.clone() + "?", format!("another answer {n}")),
                    _ => (like.clone() + " please", String::from("an answer")),
                }
            }
            _ => (sentence(&words, &mut rng), String::from("an answer")),
        };
        exchanges.push(exchange(n, &prompt, answer));
        feedback.push(rated(n));
        prompts.push(prompt);
    }
    (exchanges, feedback)
}

fn sentence(words: &[String], rng: &mut ChaCha8Rng) -> String {
    let length = rng.random_range(8..25);
    let word = |rng: &mut ChaCha8Rng| {
        // Zipf's law, about.
        let rank = (WORDS as f64).powf(rng.random::<f64>()) - 1.0;
        words[rank as usize].as_str()
    };
    let mut said: Vec<String> = (0..length).map(|_| word(rng).to_owned()).collect();
    if rng.random_bool(0.5) {
        said.push(format!("order {}", rng.random_range(10_000..99_999)));
    }
    said.join(" ")
}

fn time(n: usize) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::seconds(1_700_000_000 + n as i64)
}

fn exchange(n: usize, prompt: &str, answer: String) -> Exchange {
    let messages = vec![ChatMessage::new("user", prompt)];
    Exchange {
        request_id: format!("chatcmpl-{n:032}"),
        replica: "0000aaaa".to_owned(),
        seq: n as u64,
        ts: time(n),
        purpose: Purpose::User,
        task: Some(TASK.to_owned()),
        model_requested: TASK.to_owned(),
        adapter: Some("ask@base".to_owned()),
        adapter_digest: None,
        stage: Some("baseline".to_owned()),
        base: "base".to_owned(),
        api_key_id: None,
        user: Some(format!("user-{}", n % 10_000)),
        metadata: None,
        conversation: conversation(&messages),
        messages: Some(messages),
        answer: Some(answer),
        tool_calls: None,
        finish_reason: Some("stop".to_owned()),
        prompt_tokens: 40,
        completion_tokens: 20,
        time_to_first_token_ms: Some(9.0),
        duration_ms: 90.0,
        parameters: json!({}),
        code: 200,
        format_valid: Some(true),
        format_reason: None,
        run_id: None,
    }
}

fn rated(n: usize) -> Feedback {
    Feedback {
        feedback_id: format!("fb-{n:024}"),
        request_id: format!("chatcmpl-{n:032}"),
        ts: time(n),
        source: None,
        rater: None,
        rating: Some(5),
        correction: None,
        rubric: None,
        comment: None,
        preferred_over: None,
    }
}
