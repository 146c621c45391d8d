//! What a run cost, what its candidate saves with each exchange, and when that has paid for the run. Pure.
//!
//! Counts come from the examination: both answered the same prompts as they are served, so the means of their tokens are those of the
//! traffic. Where nothing has a price everything costs 0, and the counts still tell.
//!
//! What was spent is known; what an exchange costs beside its tokens is an estimate:
//! - *Retries.* An answer that breaks the task's format is asked for once more, at the price of that side's mean exchange. So a share p
//!   of such answers costs p exchanges more, and not the p / (1 - p) of asking until it holds (the mean of a geometric distribution;
//!   Feller 1968, "An Introduction to Probability Theory and Its Applications", volume 1, chapter IX). That would need tries that know
//!   nothing of each other, while a model that broke the format for a prompt likely breaks it again; it knows no end where p is 1; and
//!   `enforce = "retry"` asks once. Whoever asks more often saves more than is said here. Under `enforce = "constrain"` there are none.
//! - *Edits.* Of the baseline's exchanges with users people corrected a share, which is counted. Of the candidate's they will correct as
//!   much less, or more, as it was less often right in the examination, where right is what equals the known answer. That takes it that
//!   people find and mend the same share of both sides' wrong answers. It cannot be told where nobody could correct anything, or where
//!   the baseline was never wrong.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use retune_ledger::{Exchange, Feedback, Purpose};
use retune_task::Prices;
use serde::{Deserialize, Serialize};

use crate::judge::known;

const BYTES_PER_GIB: f64 = (1_u64 << 30) as f64;

/// Mean tokens of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Tokens {
    pub prompt: f64,
    pub completion: f64,
}

/// How many of an adapter's exchanges with users people corrected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Corrections {
    pub exchanges: u64,
    pub corrected: u64,
}

impl Corrections {
    /// Of one task's exchanges and the feedback whose corrections are trusted; what repeats the answer corrects nothing.
    pub(crate) fn of(adapter: &str, exchanges: &[Exchange], feedback: &[Feedback]) -> Self {
        let mut corrections: HashMap<&str, Vec<&str>> = HashMap::new();
        for said in feedback {
            if let Some(correction) = &said.correction {
                let of = corrections.entry(&said.request_id).or_default();
                of.push(correction);
            }
        }
        let mut counts = Self::default();
        let of_users = exchanges.iter().filter(|exchange| {
            exchange.purpose == Purpose::User
                && exchange.code == 200
                && exchange.adapter.as_deref() == Some(adapter)
        });
        for exchange in of_users {
            let answer = exchange.answer.as_deref().unwrap_or_default();
            let of = corrections.get(exchange.request_id.as_str());
            let mut of = of.into_iter().flatten();
            counts.exchanges += 1;
            counts.corrected += u64::from(of.any(|right| !known::is_right(right, answer)));
        }
        counts
    }

    fn share(self) -> Option<f64> {
        (self.exchanges > 0).then(|| self.corrected as f64 / self.exchanges as f64)
    }
}

/// One side's answers in the examination.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Side {
    pub(crate) tokens: Tokens,
    /// Share of the answers that a user would ask for again, since they break the task's format.
    pub(crate) invalid: f64,
    /// Share of the answers that are not the known one.
    pub(crate) wrong: f64,
}

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Counted {
    /// Of all that was trained for the run, in vain too.
    pub(crate) training_seconds: f64,
    /// Prompts that both were asked.
    pub(crate) examined: u64,
    pub(crate) candidate: Side,
    pub(crate) baseline: Side,
    /// Of the baseline, in the traffic that the dataset was read from.
    pub(crate) corrections: Corrections,
    pub(crate) adapter_bytes: u64,
    /// All tokens that were asked for beside those.
    pub(crate) beside: Tokens,
    /// Of the traffic that the dataset was read from.
    pub(crate) exchanges_per_day: Option<f64>,
}

/// What a thousand exchanges with one side cost, by what for, in the currency of `[cost]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Kinds {
    pub prompt: f64,
    pub completion: f64,
    pub retries: f64,
    /// 0 where it could not be estimated.
    pub edits: f64,
    /// How many of the thousand are asked for again.
    pub asked_again: f64,
    /// How many of the thousand people correct; None where that could not be estimated.
    pub corrected: Option<f64>,
}

impl Kinds {
    fn of(prices: &Prices, side: &Side, corrected: Option<f64>) -> Self {
        let prompt = side.tokens.prompt * prices.prompt_million / 1e3;
        let completion = side.tokens.completion * prices.completion_million / 1e3;
        Self {
            prompt,
            completion,
            retries: side.invalid * (prompt + completion),
            edits: corrected.unwrap_or_default() * 1e3 * prices.edit,
            asked_again: side.invalid * 1e3,
            corrected: corrected.map(|share| share * 1e3),
        }
    }

    fn tokens(&self) -> f64 {
        self.prompt + self.completion
    }

    fn total(&self) -> f64 {
        self.tokens() + self.retries + self.edits
    }
}

/// In the currency of `[cost]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    pub currency: String,
    pub training: f64,
    pub examination: f64,
    /// Training and examination: what was spent.
    pub total: f64,
    /// The adapter's files, for a month.
    pub storage_per_month: f64,
    pub candidate_tokens: Tokens,
    pub baseline_tokens: Tokens,
    /// Of a thousand exchanges, all kinds together; of tokens alone in a report without kinds.
    pub candidate_per_thousand: f64,
    pub baseline_per_thousand: f64,
    /// None in reports of before they were told apart.
    #[serde(default)]
    pub candidate_kinds: Option<Kinds>,
    #[serde(default)]
    pub baseline_kinds: Option<Kinds>,
    pub exchanges_per_day: Option<f64>,
    /// Exchanges until the candidate's savings have paid for the run; None where it saves nothing.
    pub break_even_exchanges: Option<u64>,
    /// When that is, if the traffic goes on as it was.
    pub break_even: Option<DateTime<Utc>>,
}

impl Cost {
    /// What a thousand exchanges cost by kind, the candidate's and the baseline's: rows of a table.
    pub(crate) fn by_kind(&self) -> Vec<[String; 3]> {
        let Some((candidate, baseline)) = self.candidate_kinds.zip(self.baseline_kinds) else {
            return Vec::new();
        };
        let row =
            |what: &str, of: fn(&Kinds) -> String| [what.to_owned(), of(&candidate), of(&baseline)];
        vec![
            row("prompts", |kinds| format!("{:.4}", kinds.prompt)),
            row("answers", |kinds| format!("{:.4}", kinds.completion)),
            row("asked again, since the format is broken", |kinds| {
                format!("{:.4} ({:.0} times)", kinds.retries, kinds.asked_again)
            }),
            row("corrected by hand", |kinds| match kinds.corrected {
                Some(corrected) => format!("{:.4} ({corrected:.0} times)", kinds.edits),
                None => "cannot be told".to_owned(),
            }),
            row("together", |kinds| format!("{:.4}", kinds.total())),
        ]
    }
}

/// A few sentences for people.
impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.candidate_per_thousand + self.baseline_per_thousand + self.total == 0.0 {
            return f.write_str(
                "Nothing that was counted has a price: [cost] in the configuration takes them.",
            );
        }
        let currency = &self.currency;
        write!(
            f,
            "A thousand exchanges cost {:.4} {currency} with the candidate, {:.4} with what it was compared with",
            self.candidate_per_thousand, self.baseline_per_thousand,
        )?;
        let both = self.candidate_kinds.zip(self.baseline_kinds);
        let is_more = |(a, b): &(Kinds, Kinds)| a.total() + b.total() > a.tokens() + b.tokens();
        if let Some((candidate, baseline)) = both.filter(is_more) {
            write!(
                f,
                "; tokens are {:.4} and {:.4} of it. The rest is an estimate: an answer that breaks the format is asked for once more, and people \
                 correct the candidate's answers as much less or more often as they are less or more often wrong",
                candidate.tokens(),
                baseline.tokens()
            )?;
        }
        write!(
            f,
            ". Training cost {:.2} {currency}, the examination {:.2}, together {:.2}; the adapter's files cost {:.4} a month. ",
            self.training, self.examination, self.total, self.storage_per_month
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

/// Which shares of the candidate's and of the baseline's exchanges people correct; None where that cannot be told.
fn corrected(counted: &Counted) -> Option<(f64, f64)> {
    let share = counted.corrections.share()?;
    let (candidate, baseline) = (counted.candidate.wrong, counted.baseline.wrong);
    // Nobody corrects more than everything.
    (baseline > 0.0).then(|| ((share * candidate / baseline).min(1.0), share))
}

pub(crate) fn cost(prices: &Prices, counted: &Counted, now: DateTime<Utc>) -> Cost {
    let corrected = corrected(counted);
    let candidate = Kinds::of(prices, &counted.candidate, corrected.map(|both| both.0));
    let baseline = Kinds::of(prices, &counted.baseline, corrected.map(|both| both.1));
    let training = counted.training_seconds / 3600.0 * prices.training_hour;
    // The examination asks nothing twice, and nobody corrects it.
    let beside = counted.beside.prompt * prices.prompt_million
        + counted.beside.completion * prices.completion_million;
    let examination =
        counted.examined as f64 * (candidate.tokens() + baseline.tokens()) / 1e3 + beside / 1e6;
    let total = training + examination;
    let saved = (baseline.total() - candidate.total()) / 1e3;
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
        candidate_tokens: counted.candidate.tokens,
        baseline_tokens: counted.baseline.tokens,
        candidate_per_thousand: candidate.total(),
        baseline_per_thousand: baseline.total(),
        candidate_kinds: Some(candidate),
        baseline_kinds: Some(baseline),
        exchanges_per_day: counted.exchanges_per_day,
        break_even_exchanges,
        break_even: days.map(|days| now + TimeDelta::seconds((days * 86_400.0) as i64)),
    }
}

#[cfg(test)]
#[path = "cost_tests.rs"]
mod tests;
