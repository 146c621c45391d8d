//! The streams that texts say nothing of, in quarters in which nothing changes: what people say, and how adapters are served.

use chrono::{DateTime, TimeDelta, Utc};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use retune_ledger::Cursor;
use retune_monitor::streams::operations::Operations;
use retune_monitor::streams::quality::{Quality, Said};
use retune_monitor::streams::{Row, Served};

/// Of feedback: ratings of 1 or 2, corrections.
const LOW: f64 = 0.06;
const CORRECTED: f64 = 0.04;
/// Exchanges a day, and how many of 1,000 end in a server's error.
const A_DAY: u64 = 2_000;
const ERRORS: f64 = 0.0005;

/// The feedback at which the quality alarms, of so many; raters differ, and each has a mood.
pub(crate) fn quality(seed: u64, feedback: u64, log_a: f64) -> Option<u64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut quality = Quality::new("", "", None, log_a);
    (1..=feedback).find(|n| {
        let is_low = rng.random_bool(LOW);
        let said = Said {
            ts: DateTime::from_timestamp(*n as i64, 0).unwrap_or_default(),
            feedback_id: n.to_string(),
            request_id: String::new(),
            rating: Some(if is_low { 2 } else { 5 }),
            is_correction: rng.random_bool(CORRECTED),
        };
        quality.observe(&said, log_a);
        quality
            .rates()
            .is_some_and(|rates| rates.crossing().is_some())
    })
}

/// The exchange at which the operations alarm, of so many: `slower` is what all durations are multiplied by from the third day on.
///
/// Durations are log-normal around what the hour has, twice as long in the evening as at night, times a load that wanders (an AR(1) with a
/// memory of about an hour): what comes one after the other is alike, as it is on servers.
pub(crate) fn operations(seed: u64, exchanges: u64, slower: f64, log_a: f64) -> Option<u64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut normal = move || {
        let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        (
            (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos(),
            rng.random::<f64>(),
        )
    };
    let mut operations = Operations::new(None, log_a);
    let (mut load, key) = (0.0_f64, (String::new(), String::new()));
    let step = 86_400.0 / A_DAY as f64;
    let changed = 3 * A_DAY;
    let end = exchanges + changed;
    let alarm = (1..=end).find(|n| {
        let second = *n as f64 * step;
        load = 0.99 * load + 0.02 * normal().0;
        let hour = (second / 86_400.0 * std::f64::consts::TAU).sin();
        let (noise, drawn) = normal();
        let usual = 300.0 * 2.0_f64.powf(0.5 * hour) * (load + 0.3 * noise).exp();
        let served = Served {
            failed: drawn < ERRORS,
            duration_ms: usual * if *n > changed { slower } else { 1.0 },
            tokens: (30.0 * (0.2 * noise).exp()) as u64,
        };
        operations.observe(&key, &row(second), served);
        operations
            .testing()
            .is_some_and(|(_, rates)| rates.crossing().is_some())
    });
    alarm.map(|n| n.saturating_sub(changed))
}

fn row(second: f64) -> Row {
    Row {
        cursor: Cursor {
            ts: DateTime::<Utc>::UNIX_EPOCH + TimeDelta::milliseconds((second * 1000.0) as i64),
            replica: String::new(),
            seq: second as u64,
        },
        request_id: String::new(),
        task: String::new(),
        adapter: String::new(),
        check: None,
        traits: None,
        served: None,
    }
}
