//! What some prompts say that others do not: names for kinds of prompts, for people to look at.
//!
//! Words and pairs of words are ranked by how much more frequent they are in the one set than in the other, in standard deviations. The first one
//! names a kind, its prompts are set aside, and so on.

use std::collections::{BTreeSet, HashMap};

use retune_task::{ChatMessage, question};

/// Words of a prompt that are looked at, the first: documents would fill the memory, and say what they are about at their beginning.
const WORDS: usize = 200;

/// A prompt: which one it is, and the words of what was asked last.
pub(crate) struct Prompt<'a> {
    pub(crate) id: &'a str,
    pub(crate) grams: BTreeSet<String>,
}

impl<'a> Prompt<'a> {
    /// None where no user says anything.
    pub(crate) fn of(id: &'a str, messages: &[ChatMessage]) -> Option<Self> {
        let grams = grams(question(messages)?);
        Some(Self { id, grams })
    }
}

/// Prompts that have a word, or two in a row, in common.
pub(crate) struct Kind<'a> {
    pub(crate) words: String,
    pub(crate) prompts: Vec<&'a Prompt<'a>>,
    /// How many of the others have them.
    pub(crate) others: usize,
}

/// How many kinds there are at most, how many prompts make one, and how many standard deviations its name is above chance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) most: usize,
    pub(crate) least: usize,
    pub(crate) far: f64,
}

/// By how many standard deviations something is more frequent in the first than in the second, each as (prompts with it, prompts).
pub(crate) type Score = fn((usize, usize), (usize, usize)) -> f64;

/// Kinds of prompts that there are more of than among the others, the most telling first; no prompt is in two.
pub(crate) fn kinds<'a>(
    prompts: Vec<&'a Prompt<'a>>,
    others: &[&'a Prompt<'a>],
    score: Score,
    limits: Limits,
) -> Vec<Kind<'a>> {
    let (mut left, of_others) = (prompts, counts(others));
    let mut kinds = Vec::new();
    while kinds.len() < limits.most {
        let found = counts(&left);
        let score = |gram: &str, count: usize| {
            let other = of_others.get(gram).copied().unwrap_or(0);
            score((count, left.len()), (other, others.len()))
        };
        let best = found
            .iter()
            .filter(|(_, count)| **count >= limits.least)
            .map(|(gram, count)| (score(gram, *count), *count, *gram))
            // Of equals the one that more have, then the longer, then by the alphabet: the same each time.
            .max_by(|a, b| {
                a.0.total_cmp(&b.0)
                    .then(a.1.cmp(&b.1))
                    .then(a.2.len().cmp(&b.2.len()))
                    .then(b.2.cmp(a.2))
            });
        let Some((_, _, gram)) = best.filter(|(score, ..)| *score >= limits.far) else {
            break;
        };
        let gram = gram.to_owned();
        let (with, without): (Vec<_>, Vec<_>) = left
            .into_iter()
            .partition(|prompt| prompt.grams.contains(&gram));
        kinds.push(Kind {
            prompts: with,
            others: of_others.get(gram.as_str()).copied().unwrap_or(0),
            words: gram,
        });
        left = without;
    }
    kinds
}

fn counts<'a>(prompts: &[&'a Prompt<'a>]) -> HashMap<&'a str, usize> {
    let mut counts = HashMap::new();
    for prompt in prompts {
        for gram in &prompt.grams {
            *counts.entry(gram.as_str()).or_default() += 1;
        }
    }
    counts
}

/// Words, and pairs of neighbours.
fn grams(text: &str) -> BTreeSet<String> {
    let words: Vec<String> = text
        .split(|c: char| !c.is_alphanumeric() && c != '\'')
        .filter(|word| !word.is_empty())
        .take(WORDS)
        .map(str::to_lowercase)
        .collect();
    let pairs = words.windows(2).map(|pair| pair.join(" "));
    let single = words.iter().filter(|word| word.chars().count() > 2);
    single.map(|word| (*word).to_owned()).chain(pairs).collect()
}

/// Of the log-odds, with an informative prior (Monroe, Colaresi and Quinn 2008, "Fightin' Words", Political Analysis 16:372): prefers what is
/// telling to what is frequent.
pub(crate) fn log_odds(first: (usize, usize), second: (usize, usize)) -> f64 {
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

/// Of the share itself, pooled: prefers what is frequent, and what the other has not at all counts in full.
pub(crate) fn shares(first: (usize, usize), second: (usize, usize)) -> f64 {
    let share = |(count, of): (usize, usize)| count as f64 / of.max(1) as f64;
    let pooled = share((first.0 + second.0, first.1 + second.1));
    let each = 1.0 / first.1.max(1) as f64 + 1.0 / second.1.max(1) as f64;
    let error = (pooled * (1.0 - pooled) * each).sqrt();
    match error > 0.0 {
        true => (share(first) - share(second)) / error,
        false => 0.0,
    }
}
