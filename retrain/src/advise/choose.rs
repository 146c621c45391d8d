//! From what candidates reached to the baseline that an adapter has to beat. Pure.
//!
//! The smallest base with a prompt that will do, since each request pays for the base again; among its prompts the best, and of those that
//! cannot be told from the best the one that takes the fewest tokens. Two are told apart by the rows that just one of them answers
//! rightly (exact sign test, one-sided at 5 %). Where none will do, the same choice is made among all: it is what people would have
//! without a training, and an adapter that does not beat it is not worth having.

use std::cmp::{Ordering, Reverse};

use serde::Serialize;

use super::measure::{Candidate, Drawn, Measured, Yardstick};
use super::prompts::NamedPrompt;
use super::{BROKEN, Because};
use crate::verdict::Paired;

/// All that was measured, and what follows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measurement {
    /// Rows that each candidate was asked, and those of them that are held out.
    pub rows: usize,
    pub held_out: usize,
    /// Rows that were passed over, since a prompt has them among its examples.
    pub in_prompts: u64,
    pub good_enough: f64,
    pub close_enough: f64,
    /// In the order in which they were measured.
    pub candidates: Vec<Measured>,
    /// Those that could not be.
    pub unmeasured: Vec<Unmeasured>,
    pub baseline: Baseline,
}

/// A candidate that could not be measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unmeasured {
    #[serde(flatten)]
    pub candidate: Candidate,
    pub why: String,
}

/// What an adapter has to beat, and where it will do, makes one needless.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Baseline {
    pub base: String,
    pub prompt: String,
    pub will_do: bool,
    /// For people.
    pub why: String,
    /// The prompt's text, as a task's prompt has it.
    pub text: String,
    /// The figure that decided.
    #[serde(skip)]
    pub(super) because: Because,
}

impl Measurement {
    /// None where no candidate could be measured.
    pub fn new(
        yardstick: &Yardstick<'_>,
        drawn: &Drawn,
        prompts: &[NamedPrompt],
        candidates: Vec<Measured>,
        unmeasured: Vec<Unmeasured>,
    ) -> Option<Self> {
        let chosen = choose(&candidates)?;
        let text = prompts
            .iter()
            .find(|one| one.name == chosen.candidate.prompt)?;
        let baseline = Baseline {
            base: chosen.candidate.base.clone(),
            prompt: chosen.candidate.prompt.clone(),
            will_do: chosen.will_do,
            why: in_words(chosen, &candidates, yardstick.good_enough),
            text: text.text.clone(),
            because: because(chosen, yardstick.good_enough),
        };
        Some(Self {
            rows: drawn.rows.len(),
            held_out: drawn.held_out(),
            in_prompts: drawn.in_prompts,
            good_enough: yardstick.good_enough,
            close_enough: yardstick.close_enough,
            candidates,
            unmeasured,
            baseline,
        })
    }
}

/// The baseline, of candidates that were asked the same rows; none where there are none.
fn choose(all: &[Measured]) -> Option<&Measured> {
    let size = sizes(all);
    let will_do = || all.iter().filter(|one| one.will_do);
    let smallest = will_do().map(&size).min();
    let mut pool: Vec<&Measured> = match smallest {
        Some(smallest) => will_do().filter(|one| size(one) == smallest).collect(),
        None => all.iter().collect(),
    };
    let best = *pool.iter().max_by(|a, b| better(a, b))?;
    pool.retain(|one| !shown_worse(one, best));
    pool.into_iter().min_by(|a, b| {
        let cheaper = a.tokens().total_cmp(&b.tokens());
        let by_size = size(a).cmp(&size(b));
        by_size.then(cheaper).then_with(|| better(b, a))
    })
}

/// More right answers, then closer ones, then fewer tokens; of equals always the same.
fn better(a: &Measured, b: &Measured) -> Ordering {
    let name = |one: &Measured| Reverse((one.candidate.base.clone(), one.candidate.prompt.clone()));
    (a.right.count.cmp(&b.right.count))
        .then(a.closeness.total_cmp(&b.closeness))
        .then(b.tokens().total_cmp(&a.tokens()))
        .then_with(|| name(a).cmp(&name(b)))
}

fn shown_worse(one: &Measured, best: &Measured) -> bool {
    let mut paired = Paired::default();
    let both = one.right_by_row.iter().zip(&best.right_by_row);
    both.for_each(|(one, best)| paired.observe(*one, *best));
    paired.shown_worse_once()
}

/// How large a candidate's base is among the others: by the bytes of its weights; where those of any are not here, by who comes first.
fn sizes(all: &[Measured]) -> impl Fn(&Measured) -> (u64, usize) + '_ {
    let known = all.iter().all(|one| one.candidate.weight_bytes.is_some());
    move |one| {
        let first = all
            .iter()
            .position(|other| other.candidate.base == one.candidate.base);
        let bytes = one.candidate.weight_bytes.filter(|_| known);
        (bytes.unwrap_or_default(), first.unwrap_or_default())
    }
}

/// The figure that keeps it from serving as it is, or says that it may.
fn because(one: &Measured, good_enough: f64) -> Because {
    let Candidate { base, prompt, .. } = &one.candidate;
    let of = format!("{base} with the prompt {prompt}, of {} rows", one.rows);
    match one.format_valid {
        Some(valid) if one.right.at_least >= good_enough && one.breaks_the_format() => Because {
            what: format!(
                "share of answers of {of}, that break the format, above which it falls short (95 % lower limit)"
            ),
            figure: 1.0 - valid.at_most,
            wanted: BROKEN,
        },
        _ => Because {
            what: format!("share of right answers of {of}, at least (95 % lower limit)"),
            figure: one.right.at_least,
            wanted: good_enough,
        },
    }
}

fn in_words(chosen: &Measured, all: &[Measured], good_enough: f64) -> String {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let Candidate { base, prompt, .. } = &chosen.candidate;
    let right = &chosen.right;
    let figures = format!(
        "{} of {} answers are right, which shows {} (95 % lower limit) where {} is wanted",
        right.count,
        chosen.rows,
        percent(right.at_least),
        percent(good_enough)
    );
    if chosen.will_do {
        let several = all.iter().any(|one| one.candidate.base != *base);
        let smallest = match several {
            true => "; no smaller base has a prompt that will do",
            false => "",
        };
        return format!("the prompt {prompt} on {base} will do: {figures}{smallest}");
    }
    let mut words = format!(
        "none will do, and the prompt {prompt} on {base} is what an adapter has to beat: {figures}"
    );
    if chosen.breaks_the_format() {
        words.push_str("; too many break the format");
    } else if right.share >= good_enough {
        words.push_str("; it may be good enough, which more rows would tell");
    }
    words
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
