//! An examination's results by parts of the traffic: a whole that is better can hide a part that is worse.
//!
//! The parts are what requests carry (the metadata that the policy names), where the known answer came from, and how long the prompt is. A part in which the
//! candidate is shown worse makes a `promote` a `canary`. Pure.
//!
//! In each part two exact sign tests ask whether the candidate is worse: of its votes, and of the answers of which only one keeps the format. Holm's
//! adjustment holds the chance that any of them errs at 5 % for all together, however the parts overlap. A test with so few differences that it
//! could show nothing, whichever way they point, is none of them (Tarone 1990, Biometrics 46:515): their number says nothing of
//! who is better.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use retune_stats::{holm, sign_test};
use serde::{Deserialize, Serialize};

use crate::dataset::{KnownBy, Row};
use crate::examine::Voted;
use crate::judge::Vote;
use crate::pace::Pace;
use crate::regression::{self, Regression};
use crate::report::parts::cell;
use crate::verdict::{Paired, SIGNIFICANCE, Verdict};

/// Prompts of a value of metadata below which it has no part of its own: so few could show nothing, and might name somebody.
const LEAST: usize = 6;
/// Values of a key that have a part of their own, the most frequent ones.
const VALUES: usize = 12;

/// A part's results.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// `known by`, `prompt`, or a key of metadata.
    pub by: String,
    /// `correction`; `short (up to 80 characters)`; a value.
    pub value: String,
    pub wins: u64,
    pub losses: u64,
    pub ties: u64,
    /// Answers that keep the task's format.
    pub format: Paired,
    /// Shown worse in its votes.
    pub votes_worse: bool,
    /// Shown worse in its format.
    pub format_worse: bool,
}

impl Slice {
    fn empty(by: &str, value: &str) -> Self {
        Self {
            by: by.to_owned(),
            value: value.to_owned(),
            wins: 0,
            losses: 0,
            ties: 0,
            format: Paired::default(),
            votes_worse: false,
            format_worse: false,
        }
    }

    pub fn prompts(&self) -> u64 {
        self.wins + self.losses + self.ties
    }

    pub fn is_worse(&self) -> bool {
        self.votes_worse || self.format_worse
    }

    /// For people.
    fn in_words(&self) -> String {
        let mut what = Vec::new();
        if self.votes_worse {
            what.push(format!(
                "{} answers are better than the baseline's and {} worse",
                self.wins, self.losses
            ));
        }
        if self.format_worse {
            what.push(format!(
                "{} of {} answers keep the format, {} of the baseline's",
                self.format.candidate, self.format.prompts, self.format.baseline
            ));
        }
        format!(
            "of {} = {}, {}; that is worse",
            cell(&self.by),
            cell(&self.value),
            what.join(", and ")
        )
    }
}

/// What is known of one examined prompt.
#[derive(Debug, Clone, Copy)]
struct Seen<'a> {
    metadata: &'a BTreeMap<String, String>,
    known_by: KnownBy,
    /// Characters of its messages.
    length: usize,
    vote: Vote,
    format_valid: bool,
    baseline_format_valid: bool,
}

/// The parts' results, `keys` being the policy's; `rows` and `votes` stand in the same order.
pub(crate) fn slices<'a>(
    keys: &[String],
    rows: impl Iterator<Item = &'a Row>,
    votes: &[Voted],
) -> Vec<Slice> {
    let seen = |(row, voted): (&'a Row, &Voted)| Seen {
        metadata: &row.metadata,
        known_by: row.known_by,
        length: length(row),
        vote: voted.vote,
        format_valid: voted.format_valid,
        baseline_format_valid: voted.baseline_format_valid,
    };
    of(keys, &rows.zip(votes).map(seen).collect::<Vec<_>>())
}

fn length(row: &Row) -> usize {
    let characters = |content: &String| content.chars().count();
    row.messages.iter().map(|m| characters(&m.content)).sum()
}

fn of(keys: &[String], seen: &[Seen<'_>]) -> Vec<Slice> {
    let mut slices = Vec::new();
    for key in keys {
        let own = own_parts(key, seen);
        let value = |one: &Seen<'_>| match one.metadata.get(key) {
            None => "not given".to_owned(),
            Some(value) if own.contains(value.as_str()) => value.clone(),
            Some(_) => "others".to_owned(),
        };
        add(&mut slices, key, seen, value);
    }
    add(&mut slices, "known by", seen, |one| match one.known_by {
        KnownBy::Correction => "correction".to_owned(),
        KnownBy::Rating(_) => "rating".to_owned(),
        // None is examined.
        KnownBy::Synthetic => "synthetic".to_owned(),
    });
    if let Some((short, medium)) = thirds(seen) {
        add(&mut slices, "prompt", seen, |one| match one.length {
            length if length <= short => format!("short (up to {short} characters)"),
            length if length <= medium => format!("medium (up to {medium} characters)"),
            _ => format!("long (above {medium} characters)"),
        });
    }
    test(&mut slices);
    slices
}

/// The values of a key that are frequent enough.
fn own_parts<'a>(key: &str, seen: &[Seen<'a>]) -> BTreeSet<&'a str> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for value in seen.iter().filter_map(|one| one.metadata.get(key)) {
        *counts.entry(value).or_default() += 1;
    }
    let mut counts: Vec<(&str, usize)> = counts.into_iter().filter(|of| of.1 >= LEAST).collect();
    counts.sort_by_key(|(value, count)| (std::cmp::Reverse(*count), *value));
    let kept = counts.into_iter().take(VALUES);
    kept.map(|(value, _)| value).collect()
}

/// The longest of the shorter third of the prompts, and of the shorter two thirds.
fn thirds(seen: &[Seen<'_>]) -> Option<(usize, usize)> {
    let mut lengths: Vec<usize> = seen.iter().map(|one| one.length).collect();
    lengths.sort_unstable();
    let last_of = |part: usize| lengths.get((lengths.len() * part / 3).checked_sub(1)?);
    Some((*last_of(1)?, *last_of(2)?))
}

/// The parts by one thing; a single one would be the whole again.
fn add(slices: &mut Vec<Slice>, by: &str, seen: &[Seen<'_>], value: impl Fn(&Seen<'_>) -> String) {
    let mut parts: BTreeMap<String, Slice> = BTreeMap::new();
    for one in seen {
        let value = value(one);
        let empty = || Slice::empty(by, &value);
        let part = parts.entry(value.clone()).or_insert_with(empty);
        match one.vote {
            Vote::Win => part.wins += 1,
            Vote::Loss => part.losses += 1,
            Vote::Tie => part.ties += 1,
        }
        part.format
            .observe(one.format_valid, one.baseline_format_valid);
    }
    if parts.len() > 1 {
        slices.extend(parts.into_values());
    }
}

fn test(slices: &mut [Slice]) {
    let tests = slices.iter().enumerate().flat_map(|(n, slice)| {
        let votes = (slice.wins, slice.losses);
        let format = (slice.format.gained, slice.format.lost);
        [(n, true, votes), (n, false, format)]
    });
    let could_show = |(better, worse): (u64, u64)| sign_test(0, better + worse) < SIGNIFICANCE;
    let tests: Vec<(usize, bool, (u64, u64))> = tests.filter(|test| could_show(test.2)).collect();
    let p: Vec<f64> = tests
        .iter()
        .map(|test| sign_test(test.2.0, test.2.1))
        .collect();
    for ((n, of_votes, (better, worse)), p) in tests.into_iter().zip(holm(&p)) {
        let is_worse = worse > better && p < SIGNIFICANCE;
        if let Some(slice) = slices.get_mut(n).filter(|_| is_worse) {
            match of_votes {
                true => slice.votes_worse = true,
                false => slice.format_worse = true,
            }
        }
    }
}

/// The verdict on the whole in the light of its parts, of a suite that rejects nobody, and of how long answers take; with reasons.
pub(crate) fn temper(
    verdict: Verdict,
    slices: &[Slice],
    regression: Option<&Regression>,
    pace: Option<&Pace>,
) -> (Verdict, Vec<String>) {
    let worse: Vec<&Slice> = slices.iter().filter(|slice| slice.is_worse()).collect();
    let mut reasons: Vec<String> = worse.iter().map(|slice| slice.in_words()).collect();
    let default = regression.filter(|suite| !suite.own);
    reasons.extend(default.and_then(|suite| regression::in_words(&suite.suite)));
    reasons.extend(pace.map(Pace::in_words));
    let asks = !worse.is_empty()
        || default.is_some_and(Regression::asks_for_a_canary)
        || pace.is_some_and(Pace::is_slower);
    if verdict != Verdict::Promote || !asks {
        return (verdict, reasons);
    }
    reasons.push(
        "the whole is better and something in it or beside it is worse: a share of the live traffic has to tell whether that matters"
            .to_owned(),
    );
    (Verdict::Canary, reasons)
}

#[cfg(test)]
#[path = "slices_tests.rs"]
mod tests;
