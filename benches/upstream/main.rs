//! Retune in front of another server, with every exchange logged, beside a bare proxy and LiteLLM's in front of the same.
//!
//!     cargo bench --bench upstream -- --retune target/release/retune --litellm ~/.cache/retune-tools/litellm/bin/litellm
//!
//! The server is a stand-in that answers at once: 16 pieces in a stream, or one JSON object. So all that takes time is what lies between.
//! First each system answers as fast as it can, then at a constant rate of half of what Retune could, beside the stand-in asked directly.
//! Everything, the load included, shares this machine's processors; systems take turns in each round, figures are medians over rounds.

#![allow(clippy::indexing_slicing, reason = "no product code")]

#[path = "../common/cpu.rs"]
mod cpu;
#[path = "../common/http.rs"]
mod http;
mod litellm;
mod load;
mod peers;
#[path = "../common/report.rs"]
mod report;
#[path = "../common/servers.rs"]
mod servers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};

use cpu::{Quiet, used_by};
use litellm::LiteLlm;
use load::Asking;
use peers::{MODEL, Role};
use report::{median, progress, shown};
use servers::Server;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Age at which Retune's rows go from its log into a table, in seconds. By default it is ten, and what one round wrote would move
/// while the next system is measured. A second is dearer for Retune, never cheaper.
const APPEND_SECONDS: &str = "1";
/// After each round rows may still be moving, for that second.
const PAUSE: Duration = Duration::from_millis(1200);
/// Connections of a constant rate.
const CONNECTIONS: usize = 32;

#[derive(Parser)]
struct Args {
    /// The built program
    #[arg(long, default_value = "target/release/retune")]
    retune: PathBuf,
    /// LiteLLM's program; without it, it is left out
    #[arg(long)]
    litellm: Option<PathBuf>,
    /// Requests at once
    #[arg(long, value_delimiter = ',', default_value = "1,8,32,64")]
    at_once: Vec<usize>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of a round of one system
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    #[command(flatten)]
    quiet: Quiet,
    /// What `cargo bench` says
    #[arg(long, hide = true)]
    bench: bool,
    /// Be one of the other ends
    #[arg(long, hide = true)]
    be: Option<Role>,
    #[arg(long, hide = true)]
    upstream: Option<SocketAddr>,
}

/// How the answer comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Streamed,
    Whole,
}

impl Mode {
    const ALL: [Self; 2] = [Self::Streamed, Self::Whole];

    fn name(self) -> &'static str {
        match self {
            Self::Streamed => "streamed",
            Self::Whole => "whole",
        }
    }

    /// What is asked: some 120 tokens, as a task with a short prompt has them.
    fn body(self) -> Value {
        let system = "You answer customers of a web shop in one sentence. Be exact about dates, never promise what the shop cannot hold, and \
                      do not ask for data that the customer has already given. Orders have six digits; parcels leave on working days \
                      before four in the afternoon and take three days within the country, six days elsewhere.";
        let user = "Hello, I ordered a Lumo lamp on Friday, order 169109, and have heard nothing since. When will it come?";
        let mut body = json!({
            "model": MODEL,
            "messages": [{ "role": "system", "content": system }, { "role": "user", "content": user }],
            "temperature": 0,
            "max_tokens": 64,
        });
        if self == Self::Streamed {
            body["stream"] = json!(true);
            body["stream_options"] = json!({ "include_usage": true });
        }
        body
    }

    /// What stands at each answer's end.
    fn expected(self) -> &'static str {
        match self {
            Self::Streamed => "data: [DONE]",
            Self::Whole => "by Thursday noon.",
        }
    }
}

/// What is asked.
struct System {
    name: String,
    address: SocketAddr,
    pid: u32,
}

/// A round of one system.
struct Round {
    system: usize,
    mode: Mode,
    at_once: usize,
    per_second: f64,
    cpu_us: f64,
}

/// A round at a constant rate.
struct Paced {
    system: usize,
    mode: Mode,
    p50: f64,
    p99: f64,
}

/// The systems' places.
const STAND_IN: usize = 0;
const PROXY: usize = 1;
const RETUNE: usize = 2;

struct Bench<'a> {
    args: &'a Args,
    systems: Vec<System>,
    /// What Retune was asked.
    asked: u64,
    noisy: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(role) = args.be {
        return peers::serve(role, args.upstream);
    }
    let program = args.retune.canonicalize().with_context(|| {
        format!(
            "{} is not there; build it, or name it with --retune",
            args.retune.display()
        )
    })?;
    let peer = |arguments: &[&str]| {
        Server::start(
            Command::new(std::env::current_exe()?)
                .arg("--be")
                .args(arguments),
        )
    };
    let stand_in = peer(&["stand-in"])?;
    let upstream = stand_in.address.to_string();
    let proxy = peer(&["proxy", "--upstream", &upstream])?;
    let retune = retune(&program, stand_in.address)?;
    let system = |name: &str, address, pid| System {
        name: name.to_owned(),
        address,
        pid,
    };
    let mut systems = vec![
        system("stand-in", stand_in.address, stand_in.pid()),
        system("bare proxy", proxy.address, proxy.pid()),
        system("Retune", retune.address, retune.pid()),
    ];
    let mut litellms = Vec::new();
    for workers in [1, 2] {
        let Some(program) = &args.litellm else { break };
        let started = LiteLlm::start(program, workers, stand_in.address)?;
        let name = match workers {
            1 => "LiteLLM, 1 worker".to_owned(),
            _ => format!("LiteLLM, {workers} workers"),
        };
        systems.push(system(&name, started.address, started.pid()));
        litellms.push(started);
    }
    let mut bench = Bench {
        args: &args,
        systems,
        asked: 0,
        noisy: 0,
    };
    let rounds = bench.saturate()?;
    // They need not be in memory while milliseconds are counted.
    drop(litellms);
    bench.throughput(&rounds)?;
    for mode in Mode::ALL {
        let rate = bench.best(&rounds, RETUNE, mode) / 2.0;
        let paced = bench.pace(mode, rate)?;
        bench.latency(mode, rate, &paced)?;
    }
    let logged = retune.logged(&program)?;
    ensure!(
        logged == bench.asked,
        "{} exchanges, of which {logged} were logged",
        bench.asked
    );
    progress(&format!(
        "medians of {} rounds; all {logged} exchanges of Retune's were logged; others used the machine in {} rounds",
        args.rounds, bench.noisy
    ));
    Ok(())
}

fn retune(program: &Path, upstream: SocketAddr) -> Result<Server> {
    let word = |text: &str| text.to_owned();
    Server::retune(
        program,
        &[
            ("RETUNE_ENGINE__KIND", word("upstream")),
            ("RETUNE_ENGINE__URL", format!("http://{upstream}")),
            ("RETUNE_ENGINE__BASE", word(MODEL)),
            ("RETUNE_ENGINE__MODEL", word(MODEL)),
            ("RETUNE_STORE__APPEND_SECONDS", word(APPEND_SECONDS)),
        ],
    )
}

impl Bench<'_> {
    /// Measures one system, as often as it takes to be undisturbed.
    fn measured<T>(
        &mut self,
        system: usize,
        mode: Mode,
        mut work: impl FnMut(&Asking<'_>) -> Result<(T, usize)>,
    ) -> Result<(T, f64)> {
        let body = mode.body();
        let asking = Asking {
            address: self.systems[system].address,
            body: &body,
            expected: mode.expected(),
        };
        let mut asked = 0;
        let (result, others) = self.args.quiet.measured(|| {
            let (result, count) = work(&asking)?;
            asked += count as u64;
            Ok(result)
        })?;
        if system == RETUNE {
            self.asked += asked;
        }
        self.noisy += usize::from(self.args.quiet.is_noise(others));
        Ok((result, others))
    }

    fn saturate(&mut self) -> Result<Vec<Round>> {
        let mut rounds = Vec::new();
        let args = self.args;
        for number in 1..=args.rounds {
            for mode in Mode::ALL {
                for &at_once in &args.at_once {
                    for system in 0..self.systems.len() {
                        let pid = self.systems[system].pid;
                        let ((per_second, cpu_us), others) =
                            self.measured(system, mode, |asking| {
                                let before = used_by(pid)?;
                                let (per_second, asked) = asking.saturate(at_once, args.seconds)?;
                                std::thread::sleep(PAUSE);
                                let cpu_us = (used_by(pid)? - before) * 1e6 / asked as f64;
                                Ok(((per_second, cpu_us), asked))
                            })?;
                        report::round(&json!({
                            "round": number,
                            "mode": mode.name(),
                            "at_once": at_once,
                            "system": self.systems[system].name,
                            "requests_per_second": per_second,
                            "processor_us_per_request": cpu_us,
                            "processors_used_by_others": others,
                        }))?;
                        rounds.push(Round {
                            system,
                            mode,
                            at_once,
                            per_second,
                            cpu_us,
                        });
                    }
                }
            }
            progress(&format!("round {number} of {} is done", args.rounds));
        }
        Ok(rounds)
    }

    /// What a system can do: its best number of requests at once.
    fn best(&self, rounds: &[Round], system: usize, mode: Mode) -> f64 {
        let medians = self.args.at_once.iter().map(|&at_once| {
            let these = rounds
                .iter()
                .filter(|r| r.system == system && r.mode == mode && r.at_once == at_once);
            median(these.map(|r| r.per_second))
        });
        medians.fold(f64::NAN, f64::max)
    }

    fn throughput(&self, rounds: &[Round]) -> Result<()> {
        let mut head = vec!["requests/s", "at once"];
        for (i, system) in self.systems.iter().enumerate() {
            head.push(&system.name);
            if i != STAND_IN && i != RETUNE {
                head.push("Retune's share");
            }
        }
        let mut rows = Vec::new();
        for mode in Mode::ALL {
            for at_once in self.args.at_once.iter().map(|n| Some(*n)).chain([None]) {
                let speed = |system: usize| match at_once {
                    None => self.best(rounds, system, mode),
                    Some(n) => {
                        let these = rounds
                            .iter()
                            .filter(|r| r.system == system && r.mode == mode && r.at_once == n);
                        median(these.map(|r| r.per_second))
                    }
                };
                let at = at_once.map_or_else(|| "best".to_owned(), |n| n.to_string());
                let mut row = vec![mode.name().to_owned(), at];
                for system in 0..self.systems.len() {
                    row.push(shown(speed(system), 0));
                    if system != STAND_IN && system != RETUNE {
                        row.push(shown(speed(RETUNE) / speed(system), 2));
                    }
                }
                rows.push(row);
            }
            let mut row = vec![
                mode.name().to_owned(),
                "µs of processor a request".to_owned(),
            ];
            for system in 0..self.systems.len() {
                let these = rounds
                    .iter()
                    .filter(|r| r.system == system && r.mode == mode);
                row.push(shown(median(these.map(|r| r.cpu_us)), 0));
                if system != STAND_IN && system != RETUNE {
                    row.push(String::new());
                }
            }
            rows.push(row);
        }
        report::table(&head, &rows)
    }

    fn pace(&mut self, mode: Mode, rate: f64) -> Result<Vec<Paced>> {
        let mut rounds = Vec::new();
        let args = self.args;
        for number in 1..=args.rounds {
            for system in [STAND_IN, PROXY, RETUNE] {
                let (waits, others) = self.measured(system, mode, |asking| {
                    let waits = asking.paced(rate, args.seconds, CONNECTIONS)?;
                    std::thread::sleep(PAUSE);
                    let asked = waits.len() + CONNECTIONS;
                    Ok((waits, asked))
                })?;
                let at = |share: f64| {
                    let index = (waits.len() as f64 * share) as usize;
                    waits.get(index).copied().unwrap_or(f64::NAN)
                };
                let paced = Paced {
                    system,
                    mode,
                    p50: at(0.5),
                    p99: at(0.99),
                };
                report::round(&json!({
                    "round": number,
                    "mode": mode.name(),
                    "system": self.systems[system].name,
                    "rate": rate,
                    "p50_ms": paced.p50,
                    "p99_ms": paced.p99,
                    "processors_used_by_others": others,
                }))?;
                rounds.push(paced);
            }
        }
        Ok(rounds)
    }

    fn latency(&self, mode: Mode, rate: f64, paced: &[Paced]) -> Result<()> {
        let figure = |system: usize, of: fn(&Paced) -> f64| {
            let these = paced
                .iter()
                .filter(|p| p.system == system && p.mode == mode);
            median(these.map(of))
        };
        let p50 = |system| figure(system, |p| p.p50);
        let p99 = |system| figure(system, |p| p.p99);
        let rows = [STAND_IN, PROXY, RETUNE].map(|system| {
            vec![
                mode.name().to_owned(),
                shown(rate, 0),
                self.systems[system].name.clone(),
                shown(p50(system), 3),
                shown(p99(system), 3),
                shown(p50(system) - p50(STAND_IN), 3),
                shown(p99(system) - p99(STAND_IN), 3),
            ]
        });
        let head = [
            "answers",
            "requests/s",
            "",
            "p50, ms",
            "p99, ms",
            "added p50",
            "added p99",
        ];
        report::table(&head, &rows)
    }
}
