//! Retune over HTTP, with every exchange logged, beside the bare engine that it is built on.
//!
//!     cargo bench --bench engine -- --retune target/release/retune
//!
//! The same model, prompts and limits; greedy, f32, on the CPU. Each round every system answers the same prompts, one system after the
//! other, so that a machine's moods hit all alike; figures are medians over the rounds. The bare engine is measured as Retune uses it, one
//! sequence at a time, and as it comes, with 32 in a batch. Its attention mixes up a batch's sequences, so beside the second figure
//! stands how many of its answers are not those that it gives one at a time.

#![allow(
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "no product code"
)]

mod bare;
#[path = "../common/cpu.rs"]
mod cpu;
#[path = "../common/http.rs"]
mod http;
#[path = "../common/report.rs"]
mod report;
#[path = "../common/servers.rs"]
mod servers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use retune_demo::Texts;
use retune_task::{ChatMessage, ChatTemplate};
use serde_json::{Value, json};

use bare::Bare;
use cpu::Quiet;
use http::Connection;
use report::{median, progress, shown};
use servers::Server;

/// As in the program: the engine's speed is this allocator's as well.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a batch of the bare engine holds.
const BATCH: usize = 32;
/// What the customers' messages are asked under.
const SYSTEM: &str = include_str!("../../task/builtin/triage.txt");

#[derive(Parser)]
struct Args {
    /// The built program
    #[arg(long, default_value = "target/release/retune")]
    retune: PathBuf,
    /// The model's folder
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/models/pocket"))]
    model: PathBuf,
    /// Requests at once
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    streams: Vec<usize>,
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Prompts of a round
    #[arg(long, default_value_t = 96)]
    prompts: usize,
    /// An answer's limit in tokens
    #[arg(long, default_value_t = 64)]
    max_tokens: usize,
    #[command(flatten)]
    quiet: Quiet,
    /// What `cargo bench` says
    #[arg(long, hide = true)]
    bench: bool,
}

/// What came of one prompt.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: usize,
    pub(crate) prompt_tokens: usize,
}

impl Answer {
    fn is(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// One of the systems.
#[derive(Clone, Copy, PartialEq, Eq)]
enum System {
    Whole,
    Streamed,
    Alone,
    Batched,
}

impl System {
    const ALL: [Self; 4] = [Self::Alone, Self::Whole, Self::Streamed, Self::Batched];

    fn name(self) -> &'static str {
        match self {
            Self::Whole => "retune, whole",
            Self::Streamed => "retune, streamed",
            Self::Alone => "bare, one at a time",
            Self::Batched => "bare, batched",
        }
    }
}

/// A round of one system.
struct Round {
    system: System,
    streams: usize,
    tokens_per_second: f64,
    /// Answers that are not those of the bare engine, one at a time.
    differ: usize,
    noisy: bool,
}

struct Bench {
    prompts: Vec<Prompt>,
    max_tokens: usize,
    retune: SocketAddr,
    alone: Bare,
    batched: Bare,
}

/// One question, in each system's words.
struct Prompt {
    rendered: String,
    whole: Vec<u8>,
    streamed: Vec<u8>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let retune = args.retune.canonicalize().with_context(|| {
        format!(
            "{} is not there; build it, or name it with --retune",
            args.retune.display()
        )
    })?;
    let model = args.model.canonicalize()?;
    let most = args.streams.iter().copied().max().unwrap_or_default();
    let server = Server::retune(
        &retune,
        &[
            ("RETUNE_ENGINE__BASE", model.display().to_string()),
            ("RETUNE_ENGINE__MAX_QUEUE", most.max(1).to_string()),
        ],
    )?;
    let bench = Bench {
        prompts: prompts(&model, &args, server.address)?,
        max_tokens: args.max_tokens,
        retune: server.address,
        alone: Bare::load(&model, 1)?,
        batched: Bare::load(&model, BATCH)?,
    };
    let right = bench.ask_all(System::Alone, 1)?.1;
    let tokens: usize = right.iter().map(|a| a.tokens).sum();
    let read: usize = right.iter().map(|a| a.prompt_tokens).sum();
    progress(&format!(
        "{} prompts of {:.0} tokens, answers of {:.1} tokens on average",
        right.len(),
        read as f64 / right.len() as f64,
        tokens as f64 / right.len() as f64
    ));
    let mut asked = 0;
    for system in [System::Whole, System::Streamed] {
        let answers = bench.ask_all(system, most)?.1;
        asked += answers.len();
        for (got, right) in answers.iter().zip(&right) {
            ensure!(
                got.is(right) && got.prompt_tokens == right.prompt_tokens,
                "{} answers {got:?}, the bare engine {right:?}",
                system.name()
            );
        }
    }
    let rounds = measure(&bench, &args, &right, &mut asked)?;
    summary(&args, &rounds)?;
    let logged = server.logged(&retune)?;
    ensure!(
        logged == asked as u64,
        "{asked} exchanges, of which {logged} were logged"
    );
    progress(&format!("all {logged} exchanges of Retune's were logged"));
    Ok(())
}

/// Messages as the demo's customers write them.
fn prompts(model: &Path, args: &Args, address: SocketAddr) -> Result<Vec<Prompt>> {
    let template = ChatTemplate::from_folder(model)?;
    let id = model.file_name().context("a model without a name")?;
    let id = id.to_string_lossy();
    let mut texts = Texts::new(1);
    let one = |_| {
        let message = texts.normal().text;
        let body = |stream: bool| {
            let mut body = json!({
                "model": id,
                "messages": [{ "role": "system", "content": SYSTEM }, { "role": "user", "content": message }],
                "temperature": 0,
                "max_tokens": args.max_tokens,
            });
            if stream {
                body["stream"] = json!(true);
                body["stream_options"] = json!({ "include_usage": true });
            }
            http::request(address, &body)
        };
        let messages = [
            ChatMessage::new("system", SYSTEM),
            ChatMessage::new("user", &*message),
        ];
        Ok(Prompt {
            whole: body(false),
            streamed: body(true),
            rendered: template.render_with_tools(&messages, None, true)?,
        })
    };
    (0..args.prompts).map(one).collect()
}

impl Bench {
    /// All prompts, so many at once: seconds, and the answers in the prompts' order.
    fn ask_all(&self, system: System, streams: usize) -> Result<(f64, Vec<Answer>)> {
        let next = AtomicUsize::new(0);
        let mut clients = Vec::with_capacity(streams);
        for _ in 0..streams {
            clients.push(Connection::open(self.retune)?);
        }
        let begun = Instant::now();
        let work = |mut client: Connection| -> Result<Vec<(usize, Raw)>> {
            let mut done = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(prompt) = self.prompts.get(at) else {
                    return Ok(done);
                };
                done.push((at, self.ask(system, prompt, &mut client)?));
            }
        };
        let done: Result<Vec<_>> = std::thread::scope(|scope| {
            let threads: Vec<_> = clients
                .into_iter()
                .map(|client| scope.spawn(|| work(client)))
                .collect();
            let joined = threads.into_iter().map(|thread| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.collect()
        });
        let seconds = begun.elapsed().as_secs_f64();
        let mut done: Vec<(usize, Raw)> = done?.into_iter().flatten().collect();
        done.sort_by_key(|(at, _)| *at);
        let answers = done.into_iter().map(|(_, raw)| raw.read());
        Ok((seconds, answers.collect::<Result<_>>()?))
    }

    fn ask(&self, system: System, prompt: &Prompt, client: &mut Connection) -> Result<Raw> {
        Ok(match system {
            System::Whole => Raw::Whole(client.ask(&prompt.whole)?.to_vec()),
            System::Streamed => Raw::Streamed(client.ask(&prompt.streamed)?.to_vec()),
            System::Alone => Raw::Bare(self.alone.ask(&prompt.rendered, self.max_tokens)?),
            System::Batched => Raw::Bare(self.batched.ask(&prompt.rendered, self.max_tokens)?),
        })
    }
}

/// An answer as it came; it is read when the clock has stopped.
enum Raw {
    Whole(Vec<u8>),
    Streamed(Vec<u8>),
    Bare(Answer),
}

impl Raw {
    fn read(self) -> Result<Answer> {
        let (text, usage) = match self {
            Self::Bare(answer) => return Ok(answer),
            Self::Whole(body) => {
                let value: Value = serde_json::from_slice(&body)?;
                let text = value["choices"][0]["message"]["content"].as_str();
                (text.unwrap_or_default().to_owned(), value["usage"].clone())
            }
            Self::Streamed(body) => {
                let body = String::from_utf8(body)?;
                ensure!(
                    body.contains("data: [DONE]"),
                    "a stream without an end: {body}"
                );
                let (mut text, mut usage) = (String::new(), Value::Null);
                // A chunk holds whole events, so that the lines between them can be passed over.
                for event in body.lines().filter_map(|line| line.strip_prefix("data: {")) {
                    let event: Value = serde_json::from_str(&format!("{{{event}"))?;
                    text.push_str(
                        event["choices"][0]["delta"]["content"]
                            .as_str()
                            .unwrap_or_default(),
                    );
                    usage = event["usage"].clone();
                }
                (text, usage)
            }
        };
        let count = |key: &str| {
            let count = usage[key].as_u64();
            count.with_context(|| format!("an answer without {key}"))
        };
        Ok(Answer {
            text,
            tokens: usize::try_from(count("completion_tokens")?)?,
            prompt_tokens: usize::try_from(count("prompt_tokens")?)?,
        })
    }
}

fn measure(bench: &Bench, args: &Args, right: &[Answer], asked: &mut usize) -> Result<Vec<Round>> {
    let mut rounds = Vec::new();
    for number in 1..=args.rounds {
        for &streams in &args.streams {
            for system in System::ALL {
                let ((seconds, answers), others) = args.quiet.measured(|| {
                    let done = bench.ask_all(system, streams)?;
                    if matches!(system, System::Whole | System::Streamed) {
                        *asked += done.1.len();
                    }
                    Ok(done)
                })?;
                // The same texts are the same tokens, whether or not a system counts the end of the turn.
                let counted = match system {
                    System::Batched => answers.as_slice(),
                    _ => right,
                };
                let tokens: usize = counted.iter().map(|a| a.tokens).sum();
                let differ = answers.iter().zip(right).filter(|(a, b)| !a.is(b)).count();
                ensure!(
                    differ == 0 || system == System::Batched,
                    "{} gave {differ} answers that it does not give alone",
                    system.name()
                );
                let round = Round {
                    system,
                    streams,
                    tokens_per_second: tokens as f64 / seconds,
                    differ,
                    noisy: args.quiet.is_noise(others),
                };
                report::round(&json!({
                    "round": number,
                    "streams": streams,
                    "system": system.name(),
                    "tokens": tokens,
                    "seconds": seconds,
                    "tokens_per_second": round.tokens_per_second,
                    "answers_that_differ": differ,
                    "processors_used_by_others": others,
                }))?;
                rounds.push(round);
            }
        }
        progress(&format!("round {number} of {} is done", args.rounds));
    }
    Ok(rounds)
}

fn summary(args: &Args, rounds: &[Round]) -> Result<()> {
    let rows = args.streams.iter().map(|&streams| {
        let of = |system| {
            let these = move |r: &&Round| r.system == system && r.streams == streams;
            rounds.iter().filter(these)
        };
        let speed = |system| median(of(system).map(|r| r.tokens_per_second));
        let alone = speed(System::Alone);
        let mut row = vec![streams.to_string(), shown(alone, 0)];
        for system in [System::Whole, System::Streamed] {
            row.push(shown(speed(system), 0));
            row.push(shown(speed(system) / alone, 3));
        }
        let wrong = median(of(System::Batched).map(|r| r.differ as f64));
        row.push(shown(speed(System::Batched), 0));
        row.push(format!("{} of {}", shown(wrong, 0), args.prompts));
        row
    });
    let head = [
        "streams",
        "bare, one at a time",
        "Retune, whole",
        "ratio",
        "Retune, streamed",
        "ratio",
        "bare, batched",
        "of these wrong",
    ];
    report::table(&head, &rows.collect::<Vec<_>>())?;
    let noisy = rounds.iter().filter(|r| r.noisy).count();
    progress(&format!(
        "tokens/s, medians of {} rounds; others used the machine in {noisy} of {}",
        args.rounds,
        rounds.len()
    ));
    Ok(())
}
