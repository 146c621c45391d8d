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
use crate::report::parts::cell;
use crate::verdict::{Paired, SIGNIFICANCE};

/// Prompts of a value of metadata below which it has no part of its own: so few could show nothing, and might name somebody.
const LEAST: usize = 6;
/// What parts are by beside the policy's keys.
pub(crate) const OWN_PARTS: [&str; 2] = ["known by", "prompt"];
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
    pub(crate) fn in_words(&self) -> String {
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

/// The parts that each of some prompts belongs to, by what it is one of; `keys` are the policy's.
pub(crate) fn parts<'a>(
    keys: &[String],
    rows: impl Iterator<Item = &'a Row>,
) -> Vec<Vec<(String, String)>> {
    let rows: Vec<&Row> = rows.collect();
    let mut parts = vec![Vec::new(); rows.len()];
    let mut add = |by: &str, value: &dyn Fn(&Row) -> String| {
        for (row, parts) in rows.iter().zip(&mut parts) {
            parts.push((by.to_owned(), value(row)));
        }
    };
    for key in keys {
        let own = own_parts(key, &rows);
        add(key, &|row| match row.metadata.get(key) {
            None => "not given".to_owned(),
            Some(value) if own.contains(value.as_str()) => value.clone(),
            Some(_) => "others".to_owned(),
        });
    }
    add(OWN_PARTS[0], &|row| match row.known_by {
        KnownBy::Correction => "correction".to_owned(),
        KnownBy::Rating(_) => "rating".to_owned(),
        // None is examined.
        KnownBy::Synthetic => "synthetic".to_owned(),
    });
    if let Some((short, medium)) = thirds(&rows) {
        add(OWN_PARTS[1], &|row| match length(row) {
            length if length <= short => format!("short (up to {short} characters)"),
            length if length <= medium => format!("medium (up to {medium} characters)"),
            _ => format!("long (above {medium} characters)"),
        });
    }
    parts
}

/// Characters of its messages.
fn length(row: &Row) -> usize {
    let characters = |content: &String| content.chars().count();
    row.messages.iter().map(|m| characters(&m.content)).sum()
}

/// The values of a key that are frequent enough.
fn own_parts<'a>(key: &str, rows: &[&'a Row]) -> BTreeSet<&'a str> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for value in rows.iter().filter_map(|row| row.metadata.get(key)) {
        *counts.entry(value).or_default() += 1;
    }
    let mut counts: Vec<(&str, usize)> = counts.into_iter().filter(|of| of.1 >= LEAST).collect();
    counts.sort_by_key(|(value, count)| (std::cmp::Reverse(*count), *value));
    let kept = counts.into_iter().take(VALUES);
    kept.map(|(value, _)| value).collect()
}

/// The longest of the shorter third of the prompts, and of the shorter two thirds.
fn thirds(rows: &[&Row]) -> Option<(usize, usize)> {
    let mut lengths: Vec<usize> = rows.iter().map(|row| length(row)).collect();
    lengths.sort_unstable();
    let last_of = |part: usize| lengths.get((lengths.len() * part / 3).checked_sub(1)?);
    Some((*last_of(1)?, *last_of(2)?))
}

/// The results of parts: of each vote, with the parts that its prompt belongs to.
pub(crate) fn slices<'a>(
    votes: impl Iterator<Item = (&'a [(String, String)], &'a Voted)>,
) -> Vec<Slice> {
    // By the order in which each is first named, and then by value.
    let mut order: Vec<&str> = Vec::new();
    let mut slices: BTreeMap<(usize, &str), Slice> = BTreeMap::new();
    for (parts, voted) in votes {
        for (by, value) in parts {
            let place = order.iter().position(|one| one == by);
            let place = place.unwrap_or_else(|| {
                order.push(by);
                order.len() - 1
            });
            let empty = || Slice::empty(by, value);
            let slice = slices.entry((place, value)).or_insert_with(empty);
            match voted.vote {
                Vote::Win => slice.wins += 1,
                Vote::Loss => slice.losses += 1,
                Vote::Tie => slice.ties += 1,
            }
            let valid = (voted.format_valid, voted.baseline_format_valid);
            slice.format.observe(valid.0, valid.1);
        }
    }
    let mut of: BTreeMap<usize, usize> = BTreeMap::new();
    for (place, _) in slices.keys() {
        *of.entry(*place).or_default() += 1;
    }
    // A single part would be the whole again.
    slices.retain(|(place, _), _| of.get(place).is_some_and(|parts| *parts > 1));
    let mut slices: Vec<Slice> = slices.into_values().collect();
    test(&mut slices);
    slices
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

#[cfg(test)]
#[path = "slices_tests.rs"]
mod tests;
