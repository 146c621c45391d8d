//! What is normal for an adapter: the counts of some of its answers, frozen. No text is in it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use retune_task::{Traits, failure_class};
use serde::{Deserialize, Serialize};

use crate::rows::Cursor;

/// The share of answers below the lower, and above the upper bound of what is a usual length.
const TAIL: f64 = 0.01;

/// The yardstick of an adapter's streams.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// The task.
    pub task: String,
    /// The adapter's name, `triage@base` or `triage@3`.
    pub adapter: String,
    /// The adapter's digest; none for the baseline.
    pub digest: Option<String>,
    /// When it was frozen.
    pub created: DateTime<Utc>,
    /// For first exchanges: the one that completed it. None for an examination.
    pub last: Option<Cursor>,
    /// What was counted.
    #[serde(flatten)]
    pub counts: Counts,
    /// Where the prompts are that are normal; none where nothing is known of them.
    #[serde(default)]
    pub prompts: Option<Span>,
}

/// A stretch of a task's traffic, whichever adapter answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// The first time in it; none for all there is.
    pub from: Option<DateTime<Utc>>,
    /// The last exchange in it.
    pub until: Cursor,
}

/// Answers, and what they are like.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Answers whose format was checked.
    pub exchanges: u64,
    /// Of these, invalid ones.
    pub format_invalid: u64,
    /// Of these, by class ([`retune_task::FAILURE_CLASSES`]); none in files of earlier versions.
    #[serde(default)]
    pub failures: Option<BTreeMap<String, u64>>,
    /// Texts, and what they are like; none in files of earlier versions, and where no text was kept.
    #[serde(default)]
    pub texts: Option<Texts>,
}

/// Answers as texts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Texts {
    /// How many there are.
    pub answers: u64,
    /// Of these, empty ones.
    pub empty: u64,
    /// Refusals.
    pub refusals: u64,
    /// Those that repeat themselves.
    pub repetitions: u64,
    /// The bounds of what is usual, in characters.
    pub characters: (u64, u64),
    /// Answers shorter than that, and longer.
    pub outside: (u64, u64),
}

/// What people said of an adapter's answers at first: the yardstick of what they say later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratings {
    /// The task.
    pub task: String,
    /// The adapter's name.
    pub adapter: String,
    /// When it was frozen: the time of the last feedback in it.
    pub created: DateTime<Utc>,
    /// The last feedback in it.
    pub last: String,
    /// Feedback in it.
    pub feedback: u64,
    /// Of these, with a rating.
    pub rated: u64,
    /// Of the rated ones, with a 1 or a 2.
    pub low: u64,
    /// Of all, with a correction.
    pub corrected: u64,
}

/// How an adapter was served at first: the yardstick of how it is served later. What is counted are stretches of time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// The task.
    pub task: String,
    /// The adapter's name.
    pub adapter: String,
    /// When it was frozen: the end of the last stretch in it.
    pub created: DateTime<Utc>,
    /// Stretches in it.
    pub stretches: u64,
    /// Of these, with a server's error.
    pub with_errors: u64,
    /// The bound of what is usual of a stretch's median duration, in milliseconds.
    pub slowest_ms: f64,
    /// The bounds of what is usual of its mean number of tokens an answer.
    pub tokens: (f64, f64),
    /// Stretches beyond each bound: slower, fewer tokens, more.
    pub outside: (u64, u64, u64),
}

/// Answers on their way to become a reference.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    counts: Counts,
    texts: Texts,
    characters: Vec<u64>,
}

impl Sample {
    /// Adds a check of an answer's format: why it failed, if it did, and whether the answer was cut off at its limit of tokens.
    pub fn check(&mut self, failed: Option<&str>, was_cut_off: bool) {
        self.counts.exchanges += 1;
        let failures = self.counts.failures.get_or_insert_default();
        if let Some(reason) = failed {
            self.counts.format_invalid += 1;
            let class = failure_class(reason, was_cut_off);
            *failures.entry(class.to_owned()).or_default() += 1;
        }
    }

    /// Adds an answer's text.
    pub fn text(&mut self, traits: &Traits) {
        self.texts.answers += 1;
        self.texts.empty += u64::from(traits.is_empty);
        self.texts.refusals += u64::from(traits.refuses);
        self.texts.repetitions += u64::from(traits.repeats);
        self.characters.push(traits.characters);
    }

    /// Answers whose format was checked.
    pub fn checked(&self) -> u64 {
        self.counts.exchanges
    }

    /// Answers whose text was there.
    pub fn answers(&self) -> u64 {
        self.texts.answers
    }

    /// What was counted; the same for the same answers in any order.
    pub fn freeze(&self) -> Counts {
        let mut characters = self.characters.clone();
        characters.sort_unstable();
        let last = characters.len().saturating_sub(1);
        let tail = (last as f64 * TAIL) as usize;
        let bound = |at: usize| characters.get(at).copied().unwrap_or(0);
        let (low, high) = (bound(tail), bound(last - tail));
        let count = |is: &dyn Fn(u64) -> bool| characters.iter().filter(|n| is(**n)).count() as u64;
        Counts {
            texts: (!characters.is_empty()).then(|| Texts {
                characters: (low, high),
                outside: (count(&|n| n < low), count(&|n| n > high)),
                ..self.texts
            }),
            ..self.counts.clone()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn counts_what_was_added() {
        let mut sample = Sample::default();
        for n in 0..300_u64 {
            sample.check((n % 10 == 0).then_some("required"), n % 20 == 0);
            sample.text(&Traits {
                characters: n,
                is_empty: n == 0,
                refuses: n % 100 == 1,
                repeats: false,
            });
        }
        let counts = sample.freeze();
        let failures = counts.failures.clone().unwrap();
        assert_eq!((counts.exchanges, counts.format_invalid), (300, 30));
        assert_eq!((failures["schema"], failures["truncated"]), (15, 15));
        let texts = counts.texts.unwrap();
        assert_eq!((texts.answers, texts.empty, texts.refusals), (300, 1, 3));
        assert_eq!((texts.characters, texts.outside), ((2, 297), (2, 2)));
        assert_eq!(Sample::default().freeze(), Counts::default());
    }

    /// As versions before this one wrote it.
    #[test]
    fn earlier_files_are_read() {
        let text = r#"{"task": "t", "adapter": "t@1", "digest": "d", "created": "2026-01-01T00:00:00Z", "exchanges": 150,
            "format_invalid": 3, "last": null, "prompts": null}"#;
        let reference: Reference = serde_json::from_str(text).unwrap();
        assert_eq!(
            (reference.counts.exchanges, reference.counts.format_invalid),
            (150, 3)
        );
        assert_eq!(
            (reference.counts.failures, reference.counts.texts),
            (None, None)
        );
    }
}
