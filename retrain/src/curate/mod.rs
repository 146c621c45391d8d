//! Which of the usable rows are worth learning from.
//!
//! What nobody would call wrong can still teach badly: the same thing said a hundred times, two answers that cannot both be right, an answer
//! of a length like no other's, a row that gives away what the examination will ask. Each filter says which rows it took, and what they
//! were like; nothing is taken silently. Pure, and independent of the order of what comes in.

mod near;
mod twins;

use std::collections::BTreeMap;

use retune_task::{ChatMessage, Redaction, Split};
use serde::{Deserialize, Serialize};

use crate::dataset::Row;
pub(crate) use near::{Index, Shingles, plain};
pub(crate) use twins::NEAR;
use twins::Twin;
pub(crate) use twins::leaks;

/// Fewer rows have no usual length.
const LEAST: usize = 50;
/// Robust standard deviations of a length's logarithm from its median. Of lengths as they usually are, one in a million lies beyond.
const FAR: f64 = 5.0;

/// Why a usable row is not learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It holds personal data of a kind that no example may hold.
    Personal,
    /// Its prompt's or its answer's length is like no other's.
    Outlier,
    /// Another row says the same.
    Duplicate,
    /// Another row says otherwise, and is known better.
    Overruled,
    /// Another row says otherwise, and nobody knows who is right.
    Contradiction,
    /// A row that is held out asks the same.
    NearHeldOut,
    /// There is more of its kind than in the traffic.
    Surplus,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Personal => "with personal data left in it",
            Self::Outlier => "of a length like no other's",
            Self::Duplicate => "nearly the same as another",
            Self::Overruled => "contradicted by one that is known better",
            Self::Contradiction => "contradicted, and nobody knows who is right",
            Self::NearHeldOut => "nearly the same as one that is held out",
            Self::Surplus => "of a kind that there is more of than in the traffic",
        })
    }
}

/// A row that is not learned from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    pub request_id: String,
    pub reason: Reason,
    /// The row that it is like.
    pub like: Option<String>,
}

/// Rows that are worth learning from, in their order, and those that are not; `personal` is what none may hold.
pub(crate) fn curate(mut rows: Vec<Row>, personal: &Redaction) -> (Vec<Row>, Vec<Taken>) {
    let mut taken = Vec::new();
    keep(&mut rows, &mut taken, |place, rows| {
        let row = &rows[place];
        let texts = row.messages.iter().map(|said| &said.content);
        let holds = texts
            .chain([&row.answer])
            .any(|text| !personal.find(text).is_empty());
        holds.then_some((Reason::Personal, None))
    });
    let far = outliers(&rows);
    keep(&mut rows, &mut taken, |place, _| {
        far[place].then_some((Reason::Outlier, None))
    });
    let twins = twins::twins(&rows);
    keep(&mut rows, &mut taken, |place, rows| {
        let (reason, like) = match twins[place]? {
            Twin::Duplicate(like) => (Reason::Duplicate, like),
            Twin::Overruled(like) => (Reason::Overruled, like),
            Twin::Contradiction(like) => (Reason::Contradiction, like),
        };
        Some((reason, Some(rows[like].request_id.clone())))
    });
    let held_out: Vec<Row> = rows
        .iter()
        .filter(|row| row.split == Split::HeldOut)
        .cloned()
        .collect();
    let prompts: Vec<&[ChatMessage]> = rows.iter().map(|row| &row.messages[..]).collect();
    let leaks = twins::leaks(&prompts, &held_out);
    keep(&mut rows, &mut taken, |place, rows| {
        let like = leaks[place].filter(|_| rows[place].split != Split::HeldOut)?;
        Some((Reason::NearHeldOut, Some(held_out[like].request_id.clone())))
    });
    (rows, taken)
}

/// Takes out the rows (by their place) for which there is a reason.
fn keep(
    rows: &mut Vec<Row>,
    taken: &mut Vec<Taken>,
    why: impl Fn(usize, &[Row]) -> Option<(Reason, Option<String>)>,
) {
    let why: Vec<_> = (0..rows.len()).map(|place| why(place, rows)).collect();
    let mut why = why.into_iter();
    rows.retain_mut(|row| {
        let Some((reason, like)) = why.next().flatten() else {
            return true;
        };
        taken.push(Taken {
            request_id: std::mem::take(&mut row.request_id),
            reason,
            like,
        });
        false
    });
}

/// How many each reason took.
pub(crate) fn counts(taken: &[Taken]) -> BTreeMap<Reason, u64> {
    let mut counts = BTreeMap::new();
    for one in taken {
        *counts.entry(one.reason).or_default() += 1;
    }
    counts
}

/// Rows whose prompt or answer has a length far from the others'.
fn outliers(rows: &[Row]) -> Vec<bool> {
    let prompt = |row: &Row| -> usize {
        let messages = row.messages.iter();
        messages
            .map(|message| message.content.chars().count())
            .sum()
    };
    let far = [
        far(rows.iter().map(prompt).collect()),
        far(rows.iter().map(|row| row.answer.chars().count()).collect()),
    ];
    (0..rows.len())
        .map(|place| far.iter().any(|far| far[place]))
        .collect()
}

/// Which lengths are far from the others': by median and median absolute deviation of their logarithms, which a few far ones do not
/// move (Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers").
fn far(lengths: Vec<usize>) -> Vec<bool> {
    if lengths.len() < LEAST {
        return vec![false; lengths.len()];
    }
    let logs: Vec<f64> = lengths.iter().map(|n| (*n as f64 + 1.0).ln()).collect();
    let middle = median(logs.clone());
    let deviation = median(logs.iter().map(|log| (log - middle).abs()).collect());
    // Where most are of one length, twice that is still nothing to worry about.
    let unit = (1.4826 * deviation).max(0.2);
    logs.iter()
        .map(|log| (log - middle).abs() > FAR * unit)
        .collect()
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
