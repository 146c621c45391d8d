//! Who uses the processors: the load average counts our own work, so what others use is the whole less what this process and those
//! that it started use. A round that others disturbed is measured again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// A tick of /proc, on every Linux that there is.
const TICK: f64 = 0.01;
/// A look before a round.
const LOOK: Duration = Duration::from_millis(500);

/// What may disturb a round, and what is done then.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Quiet {
    /// Processors that others may use during a round, beyond which it is measured again
    #[arg(long, default_value_t = 0.1)]
    noise: f64,
    /// Times that a disturbed round is measured again; then the quietest one stands
    #[arg(long, default_value_t = 4)]
    again: usize,
    /// Seconds to wait for others to be done before a round
    #[arg(long, default_value_t = 120.0)]
    wait: f64,
}

impl Quiet {
    /// `work`'s result, of the first time that was quiet, or else of the quietest; and how many processors others used then.
    pub(crate) fn measured<T>(self, mut work: impl FnMut() -> Result<T>) -> Result<(T, f64)> {
        let mut best: Option<(T, f64)> = None;
        for _ in 0..=self.again {
            self.wait_for_it()?;
            let before = Usage::now()?;
            let result = work()?;
            let others = before.others_since()?;
            if best.as_ref().is_none_or(|(_, least)| others < *least) {
                best = Some((result, others));
            }
            if others <= self.noise {
                break;
            }
        }
        best.context("nothing was measured")
    }

    /// Whether so much use by others counts as a disturbance.
    pub(crate) fn is_noise(self, others: f64) -> bool {
        others > self.noise
    }

    fn wait_for_it(self) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed().as_secs_f64() < self.wait {
            let before = Usage::now()?;
            std::thread::sleep(LOOK);
            if before.others_since()? <= self.noise {
                break;
            }
        }
        Ok(())
    }
}

/// Seconds of processor time since the machine began.
struct Usage {
    at: Instant,
    all: f64,
    ours: f64,
}

impl Usage {
    fn now() -> Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("/proc/stat is empty")?;
        // user, nice, system; interrupts belong to nobody.
        let all = line.split_whitespace().skip(1).take(3);
        Ok(Self {
            at: Instant::now(),
            all: all.filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() * TICK,
            ours: used_by(std::process::id())?,
        })
    }

    /// Processors that others used, on average, since then.
    fn others_since(&self) -> Result<f64> {
        let now = Self::now()?;
        let others = (now.all - self.all) - (now.ours - self.ours);
        Ok((others / (now.at - self.at).as_secs_f64()).max(0.0))
    }
}

/// Seconds of processor time that a process and all that it started have used.
pub(crate) fn used_by(pid: u32) -> Result<f64> {
    let mut processes = HashMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // One that has just ended is in its parent's sum.
        if let Some(process) = process(pid) {
            processes.insert(pid, process);
        }
    }
    let belongs = |mut to: u32| {
        while to != pid {
            match processes.get(&to) {
                Some((parent, _)) => to = *parent,
                None => return false,
            }
        }
        true
    };
    let ours = processes.iter().filter(|(one, _)| belongs(**one));
    Ok(ours.map(|(_, (_, ticks))| ticks).sum::<f64>() * TICK)
}

/// A process's parent and its ticks, those of its ended children included.
fn process(pid: u32) -> Option<(u32, f64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = fields
        .get(11..15)?
        .iter()
        .filter_map(|n| n.parse::<f64>().ok());
    Some((fields.get(1)?.parse().ok()?, ticks.sum()))
}
