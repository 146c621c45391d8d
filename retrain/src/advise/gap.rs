//! Where the answers fall short: the failures, by the words that their prompts have and others have not.
//!
//! Words and pairs of words are ranked by their log-odds among failures against all others, with an informative prior, in standard deviations
//! (Monroe, Colaresi and Quinn 2008, "Fightin' Words", Political Analysis 16:372). The first one names a cluster, its failures are set
//! aside, and so on. Names for people to look at; nothing is decided by them.

use std::collections::{BTreeSet, HashMap, HashSet};

use retune_ledger::Exchange;
use serde::Serialize;

/// Clusters at most.
const MOST: usize = 8;
/// Failures that make a cluster.
const LEAST: usize = 5;
/// Standard deviations that a name is above chance.
const FAR: f64 = 2.0;
/// Exchanges of a cluster that are named.
const NAMED: usize = 3;

/// Failures whose prompts have a word, or two in a row, in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cluster {
    /// The words.
    pub words: String,
    pub failures: u64,
    /// Exchanges that have them, in all.
    pub exchanges: u64,
    /// Some of the failures.
    pub request_ids: Vec<String>,
}

pub(super) fn clusters(exchanges: &[Exchange], failed: &HashSet<&str>) -> Vec<Cluster> {
    let prompts: Vec<(&str, BTreeSet<String>)> = exchanges
        .iter()
        .filter_map(|exchange| {
            let messages = exchange.messages.as_ref()?;
            let last = messages.iter().rev().find(|m| m.role == "user")?;
            Some((exchange.request_id.as_str(), grams(&last.content)))
        })
        .collect();
    let (mut left, others): (Vec<_>, Vec<_>) =
        prompts.iter().partition(|(id, _)| failed.contains(id));
    let of_others = counts(&others);
    let mut clusters = Vec::new();
    while clusters.len() < MOST {
        let of_failures = counts(&left);
        let score = |gram: &str, count: usize| {
            let other = of_others.get(gram).copied().unwrap_or(0);
            log_odds((count, left.len()), (other, others.len()))
        };
        let best = of_failures
            .iter()
            .filter(|(_, count)| **count >= LEAST)
            .map(|(gram, count)| (score(gram, *count), *count, *gram))
            // Of equals the one that more have, then the longer, then by the alphabet: the same each time.
            .max_by(|a, b| {
                a.0.total_cmp(&b.0)
                    .then(a.1.cmp(&b.1))
                    .then(a.2.len().cmp(&b.2.len()))
                    .then(b.2.cmp(a.2))
            });
        let Some((score, count, gram)) = best.filter(|(score, ..)| *score >= FAR) else {
            break;
        };
        tracing::debug!(gram, score, count, "failures have words in common");
        let gram = gram.to_owned();
        let (with, without): (Vec<_>, Vec<_>) = left
            .into_iter()
            .partition(|(_, grams)| grams.contains(&gram));
        clusters.push(Cluster {
            failures: with.len() as u64,
            exchanges: (with.len() + of_others.get(gram.as_str()).copied().unwrap_or(0)) as u64,
            request_ids: with
                .iter()
                .take(NAMED)
                .map(|(id, _)| (*id).to_owned())
                .collect(),
            words: gram,
        });
        left = without;
    }
    clusters
}

type Prompt<'a> = (&'a str, BTreeSet<String>);

fn counts<'a>(prompts: &[&'a Prompt<'a>]) -> HashMap<&'a str, usize> {
    let mut counts = HashMap::new();
    for (_, grams) in prompts {
        for gram in grams {
            *counts.entry(gram.as_str()).or_default() += 1;
        }
    }
    counts
}

/// Words, and pairs of neighbours.
fn grams(text: &str) -> BTreeSet<String> {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower
        .split(|c: char| !c.is_alphanumeric() && c != '\'')
        .filter(|word| !word.is_empty())
        .collect();
    let pairs = words.windows(2).map(|pair| pair.join(" "));
    let single = words.iter().filter(|word| word.chars().count() > 2);
    single.map(|word| (*word).to_owned()).chain(pairs).collect()
}

/// By how many standard deviations a gram is more frequent in the first than in the second, each as (prompts with it, prompts).
fn log_odds(first: (usize, usize), second: (usize, usize)) -> f64 {
    // The prior: as frequent in both, with the weight of one prompt.
    let (all, of) = (first.0 + second.0, first.1 + second.1);
    let prior = all as f64 / of.max(1) as f64;
    let odds = |(count, of): (usize, usize)| {
        let with = count as f64 + prior;
        (with, (with / (of as f64 + 1.0 - with).max(0.5)).ln())
    };
    let ((a, log_a), (b, log_b)) = (odds(first), odds(second));
    (log_a - log_b) / (1.0 / a + 1.0 / b).sqrt()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::testing::asked;

    #[test]
    fn failures_are_named_by_what_they_have_in_common() {
        let mut exchanges = Vec::new();
        for n in 0..200 {
            let prompt = match n % 10 {
                0 | 1 => format!("please cancel my gift card number {n}"),
                2 => format!("the drone does not fly, order {n}"),
                _ => format!("where is my parcel, order {n}"),
            };
            exchanges.push(asked(n, &prompt, "x"));
        }
        let failed: HashSet<&str> = exchanges
            .iter()
            .enumerate()
            .filter(|(n, _)| n % 10 < 3)
            .map(|(_, exchange)| exchange.request_id.as_str())
            .collect();
        let found = clusters(&exchanges, &failed);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            "please cancel my gift card number".contains(&found[0].words),
            "{found:?}"
        );
        assert_eq!((found[0].failures, found[0].exchanges), (40, 40));
        assert!(
            "the drone does not fly".contains(&found[1].words),
            "{found:?}"
        );
        assert_eq!(found[1].failures, 20);
        assert!(clusters(&exchanges, &HashSet::new()).is_empty());
    }
}
