//! Is a dataset made of what users ask? Raters look at what catches the eye, and so a dataset has too much of the one and too little of the
//! other. Which kinds of prompts that are is told by their words, for people to see; where the policy says so, what there is too much of is
//! cut to a multiple of its share of the traffic. Pure.

use std::collections::HashSet;

use retune_ledger::{Exchange, Purpose};
use retune_task::Task;
use serde::{Deserialize, Serialize};

use crate::curate::{Reason, Taken};
use crate::dataset::{Dataset, KnownBy, Row, asked};
use crate::words::{Limits, Prompt, kinds, shares};

const LIMITS: Limits = Limits {
    most: 5,
    least: 20,
    // Thousands of words are looked at.
    far: 4.0,
};
/// A share this many times the other is worth a word.
const NOTABLE: f64 = 1.5;
/// Prompts of either that are looked at: more would say the same.
const SAMPLE: usize = 5_000;
/// People, or conversations of unnamed ones, that a kind has at least: a name is nobody's own word.
const PEOPLE: usize = 5;

/// Prompts with a word, or two in a row, in common: their share of the traffic, and of the dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Covered {
    pub words: String,
    pub traffic: f64,
    pub dataset: f64,
}

/// Kinds of prompts that a dataset has not as the traffic has them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// Less than there is in the traffic.
    pub missing: Vec<Covered>,
    /// More.
    pub surplus: Vec<Covered>,
}

impl Coverage {
    /// For people: what there is less of, and more of.
    pub fn sentences(&self) -> Vec<String> {
        let told = |what: &str, of: &[Covered]| {
            let percent = |share: f64| format!("{:.1} %", 100.0 * share);
            let each = of.iter().map(|one| {
                let (dataset, traffic) = (percent(one.dataset), percent(one.traffic));
                format!("“{}” ({dataset}, of the traffic {traffic})", one.words)
            });
            let each: Vec<String> = each.collect();
            (!each.is_empty()).then(|| format!("{what} {}.", each.join(", ")))
        };
        let less = told(
            "The examples have less than the traffic of prompts with the words",
            &self.missing,
        );
        let more = told("They have more of", &self.surplus);
        less.into_iter().chain(more).collect()
    }
}

/// A dataset against all that users asked of the task.
pub(crate) fn coverage(task: &Task, exchanges: &[Exchange], dataset: &Dataset) -> Coverage {
    let usable = exchanges
        .iter()
        .filter(|e| e.purpose == Purpose::User)
        .filter_map(|e| Some((who(e.user.as_ref(), &e.conversation), asked(task, e).ok()?)));
    let traffic = prompts(&every(usable.collect()));
    let rows = dataset.rows().map(|row| {
        (
            who(row.user.as_ref(), &row.conversation),
            row.messages.as_slice(),
        )
    });
    let rows = prompts(&every(rows.collect()));
    let share = |of: &[Prompt<'_>], words: &str| {
        let with = of.iter().filter(|prompt| prompt.grams.contains(words));
        with.count() as f64 / of.len().max(1) as f64
    };
    let of = |these: &[Prompt<'_>], those: &[Prompt<'_>]| -> Vec<Covered> {
        let those: Vec<&Prompt<'_>> = those.iter().collect();
        let found = kinds(these.iter().collect(), &those, shares, LIMITS);
        let found = found.into_iter().filter(|kind| {
            let people: HashSet<&str> = kind.prompts.iter().map(|prompt| prompt.id).collect();
            people.len() >= PEOPLE
        });
        let covered = found.map(|kind| Covered {
            traffic: share(&traffic, &kind.words),
            dataset: share(&rows, &kind.words),
            words: kind.words,
        });
        covered.collect()
    };
    let (mut missing, mut surplus) = (of(&traffic, &rows), of(&rows, &traffic));
    missing.retain(|one| one.traffic >= NOTABLE * one.dataset);
    surplus.retain(|one| one.dataset >= NOTABLE * one.traffic);
    Coverage { missing, surplus }
}

/// Whose a prompt is; a conversation's, where nobody is named.
fn who<'a>(user: Option<&'a String>, conversation: &'a str) -> &'a str {
    user.filter(|user| !user.is_empty())
        .map_or(conversation, String::as_str)
}

/// Cuts what there is too much of to train on to so many times its share of the traffic; the newest stay.
pub(crate) fn balance(task: &Task, exchanges: &[Exchange], dataset: &mut Dataset, times: f64) {
    let surplus = coverage(task, exchanges, dataset).surplus;
    for kind in surplus.into_iter().filter(|kind| kind.traffic > 0.0) {
        let share = times * kind.traffic;
        // What was written for the dataset is there since users' own words are too few.
        let is_one = |row: &Row| {
            row.known_by != KnownBy::Synthetic
                && Prompt::of(&row.request_id, &row.messages)
                    .is_some_and(|prompt| prompt.grams.contains(&kind.words))
        };
        let places: Vec<usize> = (0..dataset.train.len())
            .filter(|place| dataset.train.get(*place).is_some_and(is_one))
            .collect();
        let others = (dataset.train.len() - places.len()) as f64;
        // So many of them are the share, of them and the others.
        let most = (share * others / (1.0 - share)).ceil();
        if share >= 1.0 || most >= places.len() as f64 {
            continue;
        }
        let surplus = places.len() - most as usize;
        // Oldest first, as they stand.
        for place in places.into_iter().take(surplus).rev() {
            let row = dataset.train.remove(place);
            *dataset.counts.kept_by(row.known_by) -= 1;
            let curated = &mut dataset.counts.curated;
            *curated.entry(Reason::Surplus).or_default() += 1;
            dataset.taken.push(Taken {
                request_id: row.request_id,
                reason: Reason::Surplus,
                like: None,
            });
        }
    }
}

fn prompts<'a>(of: &[(&'a str, &'a [retune_task::ChatMessage])]) -> Vec<Prompt<'a>> {
    of.iter()
        .filter_map(|(id, messages)| Prompt::of(id, messages))
        .collect()
}

/// As many as are looked at, from all of the list.
fn every<T: Copy>(list: Vec<T>) -> Vec<T> {
    let step = list.len().div_ceil(SAMPLE).max(1);
    list.into_iter().step_by(step).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::dataset::build;
    use crate::testing::{asked, corrected, task};

    /// A thousand prompts, a tenth of them about refunds and a fifth about parcels; all of the first are corrected, none of the second, and half of the
    /// others.
    fn traffic() -> (Vec<Exchange>, Dataset) {
        let (mut exchanges, mut feedback) = (Vec::new(), Vec::new());
        for n in 0..1000_u64 {
            let word = retune_task::sha256(&n.to_string());
            let prompt = match n % 10 {
                0 => format!("refund {word} please"),
                1 | 2 => format!("parcel {word} please"),
                _ => format!("something {word} please"),
            };
            exchanges.push(asked(n, &prompt, "?"));
            if n % 10 == 0 || n % 10 > 2 && n % 2 == 0 {
                let right = format!(r#"{{"is":"{word}"}}"#);
                feedback.push(corrected(n, 100, "ann", &right));
            }
        }
        let dataset = build(&task(), &exchanges, &feedback);
        (exchanges, dataset)
    }

    #[test]
    fn what_is_missing_and_what_is_too_much_is_named() {
        let (exchanges, dataset) = traffic();
        let found = coverage(&task(), &exchanges, &dataset);
        let missing: Vec<&str> = found.missing.iter().map(|one| one.words.as_str()).collect();
        assert_eq!(missing, ["parcel"], "{found:?}");
        let parcel = &found.missing[0];
        assert!((parcel.traffic - 0.2).abs() < 1e-9 && parcel.dataset == 0.0);
        assert_eq!(found.surplus.len(), 1, "{found:?}");
        assert_eq!(found.surplus[0].words, "refund");
    }

    #[test]
    fn the_words_of_a_few_are_named_to_nobody() {
        let (mut exchanges, dataset) = traffic();
        for exchange in &mut exchanges {
            let said = &exchange.messages.as_ref().unwrap()[0].content;
            if said.starts_with("parcel") {
                exchange.user = Some("ann".to_owned());
            }
        }
        let found = coverage(&task(), &exchanges, &dataset);
        assert!(
            found.missing.iter().all(|one| one.words != "parcel"),
            "{found:?}"
        );
    }

    #[test]
    fn what_is_too_much_is_cut_and_counted() {
        let (exchanges, mut dataset) = traffic();
        let before = dataset.clone();
        let refunds = |dataset: &Dataset| {
            let train = dataset.train.iter();
            train
                .filter(|row| row.messages[0].content.starts_with("refund"))
                .count()
        };
        balance(&task(), &exchanges, &mut dataset, 1.0);
        let (all, kept) = (dataset.train.len() as f64, refunds(&dataset) as f64);
        assert!((kept / all - 0.1).abs() < 0.01, "{kept} of {all}");
        assert_eq!(
            (before.held_out, before.development),
            (dataset.held_out.clone(), dataset.development.clone())
        );
        let cut = before.train.len() - dataset.train.len();
        assert_eq!(dataset.counts.curated[&Reason::Surplus] as usize, cut);
        assert_eq!(
            dataset.counts.kept() + dataset.counts.dropped(),
            dataset.counts.exchanges
        );
        let newest = before
            .train
            .iter()
            .rev()
            .find(|row| row.messages[0].content.starts_with("refund"));
        assert!(dataset.train.contains(newest.unwrap()));
        // Five times its share is more than there is.
        let (exchanges, mut dataset) = traffic();
        balance(&task(), &exchanges, &mut dataset, 5.0);
        assert_eq!(dataset.train.len(), before.train.len());
    }
}
