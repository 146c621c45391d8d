//! What a run cost, what its candidate saves with each exchange, and when that has paid for the run. Pure.
//!
//! Counts come from the examination: both answered the same prompts as they are served, so the means of their tokens are those of the
//! traffic. Where nothing has a price everything costs 0, and the counts still tell.

use chrono::{DateTime, TimeDelta, Utc};
use retune_task::Prices;
use serde::{Deserialize, Serialize};

const BYTES_PER_GIB: f64 = (1_u64 << 30) as f64;

/// Mean tokens of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Tokens {
    pub prompt: f64,
    pub completion: f64,
}

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Counted {
    /// Of all that was trained for the run, in vain too.
    pub(crate) training_seconds: f64,
    /// Prompts that both were asked.
    pub(crate) examined: u64,
    pub(crate) candidate: Tokens,
    pub(crate) baseline: Tokens,
    pub(crate) adapter_bytes: u64,
    /// Of the traffic that the dataset was read from.
    pub(crate) exchanges_per_day: Option<f64>,
}

/// In the currency of `[cost]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    pub currency: String,
    pub training: f64,
    pub examination: f64,
    /// Training and examination.
    pub total: f64,
    /// The adapter's files, for a month.
    pub storage_per_month: f64,
    pub candidate_tokens: Tokens,
    pub baseline_tokens: Tokens,
    /// Of a thousand exchanges.
    pub candidate_per_thousand: f64,
    pub baseline_per_thousand: f64,
    pub exchanges_per_day: Option<f64>,
    /// Exchanges until the candidate's savings have paid for the run; None where it saves nothing.
    pub break_even_exchanges: Option<u64>,
    /// When that is, if the traffic goes on as it was.
    pub break_even: Option<DateTime<Utc>>,
}

/// A sentence or two for people.
impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.candidate_per_thousand + self.baseline_per_thousand + self.total == 0.0 {
            return f.write_str("Nothing has a price: [cost] in the configuration takes them.");
        }
        let currency = &self.currency;
        write!(
            f,
            "A thousand exchanges cost {:.4} {currency} with the candidate, {:.4} with what it was compared with. Training cost {:.2} \
             {currency}, the examination {:.2}, together {:.2}; the adapter's files cost {:.4} a month. ",
            self.candidate_per_thousand,
            self.baseline_per_thousand,
            self.training,
            self.examination,
            self.total,
            self.storage_per_month
        )?;
        match (self.break_even_exchanges, self.break_even) {
            (Some(exchanges), Some(day)) => write!(
                f,
                "That is paid for after {exchanges} exchanges, about {} if the traffic goes on.",
                day.format("%Y-%m-%d")
            ),
            (Some(exchanges), None) => {
                write!(f, "That is paid for after {exchanges} exchanges.")
            }
            (None, _) => {
                f.write_str("Its exchanges are not cheaper: what it is worth is in its answers.")
            }
        }
    }
}

pub(crate) fn cost(prices: &Prices, counted: &Counted, now: DateTime<Utc>) -> Cost {
    let exchange = |tokens: Tokens| {
        (tokens.prompt * prices.prompt_million + tokens.completion * prices.completion_million)
            / 1e6
    };
    let (candidate, baseline) = (exchange(counted.candidate), exchange(counted.baseline));
    let training = counted.training_seconds / 3600.0 * prices.training_hour;
    let examination = counted.examined as f64 * (candidate + baseline);
    let total = training + examination;
    let saved = baseline - candidate;
    let break_even_exchanges = (saved > 0.0).then(|| (total / saved).ceil() as u64);
    let per_day = counted.exchanges_per_day.filter(|rate| *rate > 0.0);
    let days = break_even_exchanges.zip(per_day);
    let days = days.map(|(exchanges, rate)| exchanges as f64 / rate);
    // A date of which nobody will know whether it was right is none.
    let days = days.filter(|days| *days < 36_500.0);
    Cost {
        currency: prices.currency.clone(),
        training,
        examination,
        total,
        storage_per_month: counted.adapter_bytes as f64 / BYTES_PER_GIB * prices.storage_gib_month,
        candidate_tokens: counted.candidate,
        baseline_tokens: counted.baseline,
        candidate_per_thousand: candidate * 1000.0,
        baseline_per_thousand: baseline * 1000.0,
        exchanges_per_day: counted.exchanges_per_day,
        break_even_exchanges,
        break_even: days.map(|days| now + TimeDelta::seconds((days * 86_400.0) as i64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::time;

    fn prices() -> Prices {
        Prices {
            currency: "EUR".to_owned(),
            training_hour: 2.0,
            prompt_million: 1.0,
            completion_million: 4.0,
            storage_gib_month: 0.1,
        }
    }

    fn counted() -> Counted {
        Counted {
            training_seconds: 1_800.0,
            examined: 200,
            candidate: Tokens {
                prompt: 100.0,
                completion: 50.0,
            },
            baseline: Tokens {
                prompt: 900.0,
                completion: 50.0,
            },
            adapter_bytes: 1 << 29,
            exchanges_per_day: Some(1_000.0),
        }
    }

    #[test]
    fn the_shorter_prompt_pays_for_the_run() {
        let cost = cost(&prices(), &counted(), time(0));
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        near(cost.training, 1.0);
        near(cost.candidate_per_thousand, 0.3);
        near(cost.baseline_per_thousand, 1.1);
        near(cost.examination, 0.28);
        near(cost.total, 1.28);
        near(cost.storage_per_month, 0.05);
        // 1.28 over 0.0008 an exchange.
        assert_eq!(cost.break_even_exchanges, Some(1_600));
        assert_eq!(cost.break_even, Some(time(138_240)));
    }

    #[test]
    fn what_saves_nothing_never_pays() {
        let dearer = Counted {
            candidate: counted().baseline,
            ..counted()
        };
        let none = cost(&prices(), &dearer, time(0));
        assert_eq!((none.break_even_exchanges, none.break_even), (None, None));
        let free = cost(&Prices::default(), &counted(), time(0));
        assert_eq!((free.total, free.break_even_exchanges), (0.0, None));
        let unknown = Counted {
            exchanges_per_day: None,
            ..counted()
        };
        assert_eq!(cost(&prices(), &unknown, time(0)).break_even, None);
    }
}
