//! The monitor's tests on their own: how often they call for nothing, how soon for something, what they cost.
//!
//!     cargo bench --bench drift -- false-alarms --clinc data/clinc150
//!     cargo bench --bench drift -- delay --clinc data/clinc150
//!     cargo bench --bench drift -- speed
//!
//! Rows come from memory: the ledger's part is measured with the ledger. A quarter has few exchanges here, and thresholds follow from
//! that as they do for a million: what is held is false alarms a quarter, however long it is. Texts are drawn from one pool, with
//! replacement, for the reference and for what follows, so that nothing but a change that was made is one.

#![allow(clippy::indexing_slicing, reason = "no product code")]

mod corpus;
mod nulls;
#[path = "../common/report.rs"]
mod report;
mod streams;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use chrono::DateTime;
use clap::{Parser, Subcommand};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use retune_ledger::{Cursor, Reference, Sample};
use retune_monitor::features::vectors::TokenVectors;
use retune_monitor::features::{Said, Space};
use retune_monitor::streams::input::{Input, Prompt};
use retune_monitor::streams::kinds::{self, Rules};
use retune_monitor::streams::rates::{Rates, Seen};
use retune_monitor::streams::{Checked, Row, Stream};
use retune_stats::{threshold, upper_limit};
use retune_task::Traits;
use serde_json::json;

use corpus::{Change, Corpus};
use report::{progress, round, shown, table};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As configured by default.
const FALSE_ALARMS: f64 = 0.1;
const REFERENCE: u64 = 300;
const TOLERANCE: f64 = 0.01;
/// How many answers fail in normal times.
const FAILURES: f64 = 0.02;
const SAMPLE: usize = 5_000;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
    /// The folder with CLINC150's `data_full.json` and `domains.json`; without it the demo's generator writes the texts.
    #[arg(long, global = true)]
    clinc: Option<PathBuf>,
    /// A model's folder, for its vectors of words.
    #[arg(long, global = true, default_value = "models/pocket")]
    model: PathBuf,
    /// Given by `cargo bench`.
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum What {
    /// Quarters in which nothing changes.
    FalseAlarms {
        #[arg(long, default_value_t = 200)]
        quarters: u64,
        /// Exchanges of a quarter.
        #[arg(long, default_value_t = 20_000)]
        exchanges: u64,
    },
    /// Exchanges from a change to its alarm.
    Delay {
        #[arg(long, default_value_t = 25)]
        runs: u64,
        /// After so many without an alarm there is none.
        #[arg(long, default_value_t = 20_000)]
        exchanges: u64,
    },
    /// The format's test alone, on streams of failures that other detectors can read (`peers.py`).
    Format {
        /// Where the streams are written, one a line: the reference, then what is tested.
        #[arg(long)]
        streams: PathBuf,
        #[arg(long, default_value_t = 200)]
        runs: u64,
        #[arg(long, default_value_t = 20_000)]
        exchanges: u64,
        /// Exchanges of the reference.
        #[arg(long, default_value_t = 20_000)]
        reference: u64,
        /// Added to the limit of its rate.
        #[arg(long, default_value_t = 0.0)]
        tolerance: f64,
        /// Where it alarms.
        #[arg(long, default_value_t = 20_000.0)]
        threshold: f64,
    },
    /// The input's test alone, on streams of prompts that other detectors can read (`peers_prompts.py`).
    Prompts {
        /// Where the streams are written, a file a change, one a line: the sample, then what is tested.
        #[arg(long)]
        streams: PathBuf,
        /// Streams of each change.
        #[arg(long, default_value_t = 15)]
        runs: u64,
        /// Streams without a change.
        #[arg(long, default_value_t = 50)]
        quarters: u64,
        #[arg(long, default_value_t = 10_000)]
        exchanges: u64,
    },
    /// Time an exchange, and a window.
    Speed,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let corpus = Corpus::new(args.clinc.as_deref())?;
    let vectors = TokenVectors::open(&args.model)?.context("no vectors of words in --model")?;
    let world = World {
        corpus,
        vectors: Arc::new(vectors),
    };
    progress(&format!("texts: {}", world.corpus.name));
    match args.what {
        What::FalseAlarms {
            quarters,
            exchanges,
        } => world.false_alarms(quarters, exchanges),
        What::Delay { runs, exchanges } => world.delay(runs, exchanges),
        What::Format {
            streams: folder,
            runs,
            exchanges,
            reference,
            tolerance,
            threshold,
        } => {
            let lengths = (reference, exchanges);
            streams::format(&folder, runs, lengths, tolerance, threshold.ln())
        }
        What::Prompts {
            streams: folder,
            runs,
            quarters,
            exchanges,
        } => world.write_prompts(&folder, runs, quarters, exchanges),
        What::Speed => world.speed(),
    }
}

struct World {
    corpus: Corpus,
    vectors: Arc<TokenVectors>,
}

fn cursor(n: u64) -> Cursor {
    Cursor {
        ts: DateTime::from_timestamp(n as i64, 0).unwrap_or_default(),
        replica: String::new(),
        seq: n,
    }
}

fn threshold_log(exchanges: u64) -> f64 {
    threshold(exchanges, Stream::ALL.len(), FALSE_ALARMS).ln()
}

/// An exchange whose answer is `text`, and fails or not.
fn row(n: u64, text: &str, failed: bool) -> Row {
    Row {
        cursor: cursor(n),
        request_id: String::new(),
        task: String::new(),
        adapter: String::new(),
        check: Some(Checked {
            failed: failed.then(|| "required".to_owned()),
            was_cut_off: false,
        }),
        traits: Some(Traits::of(text)),
        served: None,
    }
}

/// A stream's tests against a reference, as the monitor does them.
struct Tested {
    stream: Stream,
    reference: Reference,
    rates: Rates,
    failed: Vec<Option<bool>>,
}

impl Tested {
    /// None where the reference says nothing of the stream.
    fn new(stream: Stream, rows: &[Row], log_a: f64) -> Option<Self> {
        let mut sample = Sample::default();
        for row in rows {
            let failed = row.check.as_ref().and_then(|check| check.failed.as_deref());
            sample.check(failed, false);
            row.traits.iter().for_each(|traits| sample.text(traits));
        }
        let reference = Reference {
            task: String::new(),
            adapter: String::new(),
            digest: None,
            created: cursor(0).ts,
            last: None,
            counts: sample.freeze(),
            prompts: None,
        };
        let rules = Rules {
            reference_exchanges: REFERENCE,
            tolerance: TOLERANCE,
            threshold_log: log_a,
        };
        Some(Self {
            rates: Rates::new(&kinds::kinds(stream, &reference, &rules)?, log_a),
            stream,
            reference,
            failed: Vec::new(),
        })
    }

    /// Takes the next row; whether there is an alarm.
    fn observe(&mut self, row: &Row) -> bool {
        self.failed.clear();
        kinds::failed(self.stream, &self.reference, row, &mut self.failed);
        self.rates.observe(Seen {
            cursor: &row.cursor,
            request_id: &row.request_id,
            failed: &self.failed,
        });
        self.rates.crossing().is_some()
    }
}

impl World {
    /// A stream of rows, against a reference of first rows; the exchange at which it alarms.
    fn rates(
        &self,
        stream: Stream,
        rate: f64,
        seed: u64,
        exchanges: u64,
        log_a: f64,
    ) -> Option<u64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut next = |n, rate| {
            let failed = rng.random_bool(rate);
            row(n, self.corpus.draw(Change::Null, &mut rng), failed)
        };
        let reference: Vec<Row> = (0..REFERENCE).map(|n| next(n, FAILURES)).collect();
        let mut tested = Tested::new(stream, &reference, log_a)?;
        for n in 0..exchanges {
            if tested.observe(&next(n, rate)) {
                return Some(n + 1);
            }
        }
        None
    }

    fn said(&self, text: &str) -> Said {
        let mut said = Said::default();
        said.add(text, Some(&self.vectors));
        said
    }

    /// What is asked, for a sample and after it.
    fn prompts(&self, change: Change, seed: u64, exchanges: u64) -> (Vec<&str>, Vec<&str>) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let sample = (0..SAMPLE).map(|_| self.corpus.draw(Change::Null, &mut rng));
        let sample = sample.collect();
        let tested = (0..exchanges).map(|_| self.corpus.draw(change, &mut rng));
        (sample, tested.collect())
    }

    /// The exchange at which prompts, each a conversation of its own, alarm against a sample.
    fn noticed(&self, sample: &[&str], tested: &[&str], log_a: f64) -> Option<u64> {
        let sample: Vec<Said> = sample.iter().map(|text| self.said(text)).collect();
        let mut input = Input::new(Space::new(&sample, Some(self.vectors.clone())), log_a);
        let alarm = tested.iter().zip(1_u64..).find(|(text, n)| {
            input.observe(&Prompt {
                cursor: cursor(*n),
                request_id: String::new(),
                conversation: n.to_string(),
                said: Arc::new(self.said(text)),
            });
            input.crossing().is_some()
        });
        alarm.map(|(_, n)| n)
    }

    fn input(&self, change: Change, seed: u64, exchanges: u64, log_a: f64) -> Option<u64> {
        let (sample, tested) = self.prompts(change, seed, exchanges);
        self.noticed(&sample, &tested, log_a)
    }

    fn false_alarms(&self, quarters: u64, exchanges: u64) -> Result<()> {
        let log_a = threshold_log(exchanges);
        let budget = FALSE_ALARMS / Stream::ALL.len() as f64;
        let mut rows = Vec::new();
        let mut count = |name: &str, alarm: &dyn Fn(u64) -> Option<u64>| {
            let alarms = (0..quarters).filter(|seed| alarm(*seed).is_some()).count() as u64;
            let limit = upper_limit(alarms, quarters, 0.95);
            let line = json!({"stream": name, "alarms": alarms, "quarters": quarters});
            if let Err(e) = round(&line) {
                progress(&e.to_string());
            }
            rows.push(vec![
                name.to_owned(),
                format!("{alarms} of {quarters}"),
                format!("{limit:.3}"),
                format!("{budget:.3}"),
            ]);
        };
        count("format", &|seed| {
            self.rates(Stream::Format, FAILURES, seed, exchanges, log_a)
        });
        count("output", &|seed| {
            self.rates(Stream::Output, FAILURES, seed, exchanges, log_a)
        });
        count("input", &|seed| {
            self.input(Change::Null, seed, exchanges, log_a)
        });
        count("quality", &|seed| nulls::quality(seed, exchanges, log_a));
        count("operations", &|seed| {
            nulls::operations(seed, exchanges, 1.0, log_a)
        });
        let head = [
            "stream",
            "false alarms in quarters",
            "upper 95 % limit a quarter",
            "its part of the budget",
        ];
        table(&head, &rows)
    }

    fn delay(&self, runs: u64, exchanges: u64) -> Result<()> {
        ensure!(runs > 0, "no runs");
        let log_a = threshold_log(exchanges);
        let mut rows = Vec::new();
        let mut measure = |name: String, alarm: &dyn Fn(u64) -> Option<u64>| {
            let mut delays: Vec<u64> = (0..runs)
                .map(|seed| alarm(seed).unwrap_or(u64::MAX))
                .collect();
            delays.sort_unstable();
            let told = |n: u64| {
                if n == u64::MAX {
                    "none".to_owned()
                } else {
                    n.to_string()
                }
            };
            let at = |share: f64| told(delays[((delays.len() - 1) as f64 * share) as usize]);
            progress(&format!("{name}: {}", at(0.5)));
            rows.push(vec![name, at(0.5), at(0.1), at(0.9)]);
        };
        for rate in [0.04, 0.06, 0.1, 0.2] {
            let name = format!("format: 2 % to {:.0} % fail", rate * 100.0);
            measure(name, &|seed| {
                self.rates(Stream::Format, rate, seed, exchanges, log_a)
            });
        }
        for slower in [1.5, 2.0, 3.0] {
            measure(format!("operations: {slower} times as slow"), &|seed| {
                nulls::operations(seed, exchanges, slower, log_a)
            });
        }
        for change in self.corpus.changes() {
            measure(format!("input: {change}"), &|seed| {
                self.input(change, seed, exchanges, log_a)
            });
        }
        table(
            &["change", "exchanges to the alarm, median", "10 %", "90 %"],
            &rows,
        )
    }

    fn speed(&self) -> Result<()> {
        let exchanges = 1_000_000;
        let begun = Instant::now();
        let alarm = self.rates(
            Stream::Format,
            FAILURES,
            1,
            exchanges,
            threshold_log(exchanges),
        );
        let with_texts = begun.elapsed();
        let rows: Vec<Row> = (0..10_000)
            .map(|n| row(n, "an answer", n % 50 == 0))
            .collect();
        let log_a = threshold_log(exchanges);
        let mut tested = Tested::new(Stream::Format, &rows[..300], log_a).context("no kinds")?;
        let begun = Instant::now();
        for row in rows.iter().cycle().take(exchanges as usize) {
            tested.observe(row);
        }
        let each = begun.elapsed().as_secs_f64() / exchanges as f64;
        let begun = Instant::now();
        let windows_of = 20_000;
        ensure!(
            self.input(Change::Null, 1, windows_of, threshold_log(exchanges))
                .is_none(),
            "a false alarm"
        );
        let windows = begun.elapsed().as_secs_f64();
        table(
            &["what", "time"],
            &[
                vec![
                    "the format's tests, an exchange".into(),
                    format!("{} ns", shown(each * 1e9, 0)),
                ],
                vec![
                    format!("a stream of {exchanges} exchanges with their texts drawn ({alarm:?})"),
                    format!("{:.2} s", with_texts.as_secs_f64()),
                ],
                vec![
                    format!(
                        "{windows_of} prompts, {SAMPLE} of a sample before them: 100 windows of 200, 20 of 1,000"
                    ),
                    format!("{windows:.2} s"),
                ],
            ],
        )
    }
}
