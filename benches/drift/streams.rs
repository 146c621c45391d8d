//! Streams that detectors written in Python can read, and what Retune's own tests do on them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use retune_monitor::streams::rates::{Kind, Rates, Seen};
use serde_json::{Value, json};

use super::corpus::Change;
use super::report::{median, progress};
use super::{FAILURES, SAMPLE, World, cursor, threshold_log};

/// Streams that fail in 2 %, and then in more; how soon the format's test notices each.
pub(crate) fn format(
    folder: &Path,
    runs: u64,
    (before, after): (u64, u64),
    tolerance: f64,
    log_a: f64,
) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut medians = serde_json::Map::new();
    for rate in [FAILURES, 0.04, 0.06, 0.1, 0.2] {
        let (mut lines, mut delays) = (String::new(), Vec::new());
        for seed in 0..runs {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut draw =
                |n: u64, rate| -> Vec<bool> { (0..n).map(|_| rng.random_bool(rate)).collect() };
            let (reference, tested) = (draw(before, FAILURES), draw(after, rate));
            let any = Kind {
                name: "any",
                weight: 1.0,
                failures: reference.iter().filter(|failed| **failed).count() as u64,
                of: before,
                confidence: 0.95,
                tolerance,
            };
            let mut rates = Rates::new(&[any], log_a);
            let alarm = tested.iter().zip(1_u64..).find(|(failed, n)| {
                rates.observe(Seen {
                    cursor: &cursor(*n),
                    request_id: "",
                    failed: &[Some(**failed)],
                });
                rates.crossing().is_some()
            });
            delays.push(alarm.map_or(f64::INFINITY, |(_, n)| n as f64));
            let digits = |bits: &[bool]| -> String {
                bits.iter()
                    .map(|bit| if *bit { '1' } else { '0' })
                    .collect()
            };
            lines += &format!("{} {}\n", digits(&reference), digits(&tested));
        }
        let is_null = rate == FAILURES;
        let name = if is_null {
            "null".to_owned()
        } else {
            rate.to_string()
        };
        std::fs::write(folder.join(format!("format-{name}.txt")), lines)?;
        let noticed = delays.iter().filter(|delay| delay.is_finite()).count();
        let figure = match is_null {
            true => json!(noticed),
            false => json!(median(delays)),
        };
        progress(&format!("{name}: {figure}"));
        medians.insert(name, figure);
    }
    std::fs::write(
        folder.join("retune.json"),
        Value::Object(medians).to_string(),
    )?;
    Ok(())
}

impl World {
    /// Streams of prompts, a file for no change and for each that the texts can show; how soon the input's test notices each.
    pub(crate) fn write_prompts(
        &self,
        folder: &Path,
        runs: u64,
        quarters: u64,
        exchanges: u64,
    ) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        let log_a = threshold_log(exchanges);
        let mut changes = vec![Change::Null];
        changes.extend(self.corpus.changes());
        let mut told = Vec::new();
        for change in changes {
            let is_null = change == Change::Null;
            let name = file_name(change);
            let path = folder.join(&name);
            let file = File::create(&path).with_context(|| path.display().to_string())?;
            let mut file = BufWriter::new(file);
            let mut alarms = Vec::new();
            let seeds = if is_null { quarters } else { runs };
            for seed in 0..seeds {
                let (sample, tested) = self.prompts(change, seed, exchanges);
                let line = json!({"seed": seed, "reference": sample, "stream": tested});
                writeln!(file, "{line}")?;
                alarms.push(self.noticed(&sample, &tested, log_a));
            }
            file.flush()?;
            let noticed = alarms.iter().flatten().count();
            progress(&format!("{change}: {noticed} alarms in {}", alarms.len()));
            told.push(json!({"change": change.to_string(), "is_null": is_null, "file": name, "alarms": alarms}));
        }
        let told = json!({
            "texts": self.corpus.name, "exchanges": exchanges, "sample": SAMPLE, "threshold_log": log_a, "streams": told,
        });
        std::fs::write(folder.join("prompts.json"), told.to_string())?;
        Ok(())
    }
}

fn file_name(change: Change) -> String {
    let (kind, share) = match change {
        Change::Null => return "prompts-null.jsonl".to_owned(),
        Change::Topic(share) => ("topic", share),
        Change::Diffuse(share) => ("diffuse", share),
        Change::Mix(share) => ("mix", share),
    };
    format!("prompts-{kind}-{:.0}.jsonl", share * 100.0)
}
