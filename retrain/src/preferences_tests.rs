//! Tests of `preferences`.

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use retune_ledger::{Exchange, Feedback, Purpose};

use super::{Pair, Preferences, build};
use crate::testing::{asked, corrected, rated, task};

const A: &str = r#"{"is":"a"}"#;
const B: &str = r#"{"is":"b"}"#;

/// That the answer `n` is better than `over`.
fn over(n: u64, over: u64, at: i64, rater: &str) -> Feedback {
    Feedback {
        rating: None,
        preferred_over: Some(format!("request-{over}")),
        ..rated(n, at, rater, 1)
    }
}

fn pairs(found: &Preferences) -> Vec<&Pair> {
    let parts = [&found.train, &found.development, &found.held_out];
    parts.into_iter().flatten().collect()
}

fn only(found: &Preferences) -> (&str, &str) {
    let pairs = pairs(found);
    assert_eq!(pairs.len(), 1, "{:?}", found.counts);
    (&pairs[0].preferred, &pairs[0].other)
}

fn dropped(found: &Preferences) -> Vec<(&str, u64)> {
    assert!(pairs(found).is_empty(), "{found:?}");
    let dropped = found.counts.dropped.iter();
    dropped.map(|(reason, n)| (reason.as_str(), *n)).collect()
}

#[test]
fn a_correction_is_better_than_what_it_corrects() {
    let found = build(&task(), &[asked(1, "x", A)], &[corrected(1, 9, "ann", B)]);
    assert_eq!(only(&found), (B, A));
    assert_eq!(found.counts.kept_corrections, 1);
    assert_eq!(pairs(&found)[0].request_ids, ["request-1"]);
    let same = build(&task(), &[asked(1, "x", A)], &[corrected(1, 9, "ann", A)]);
    assert_eq!(dropped(&same), [("both answers are the same", 1)]);
}

#[test]
fn a_pair_near_a_row_that_is_held_out_is_not_learned() {
    let task = task();
    let question = |n: u64| {
        format!("the handle of my kettle leaks, can you send another one please, number {n}")
    };
    // Whichever numbers the split takes: those of the training, and the rows, are the same questions.
    let exchanges: Vec<Exchange> = (0..40).map(|n| asked(n, &question(n), A)).collect();
    let feedback: Vec<Feedback> = (0..40).map(|n| corrected(n, 90, "ann", B)).collect();
    let mut found = build(&task, &exchanges, &feedback);
    let rows = crate::dataset::build(&task, &exchanges, &feedback);
    let before = found.train.len() + found.development.len();
    found.leave_out_near(&rows.held_out);
    assert_eq!(found.train.len() + found.development.len(), before);
    let of_training: Vec<_> = rows.train.iter().take(3).cloned().collect();
    found.leave_out_near(&of_training);
    assert_eq!(found.train.len() + found.development.len(), before - 3);
    assert_eq!(
        found.counts.dropped["nearly the same as a row that is held out"],
        3
    );
}

#[test]
fn what_more_raters_prefer_is_better_and_each_one_s_newest_word_counts() {
    let exchanges = [asked(1, "x", A), asked(2, "x", B)];
    for (said, expected) in [
        (vec![over(1, 2, 9, "ann")], Some((A, B))),
        (vec![over(2, 1, 9, "ann")], Some((B, A))),
        (vec![over(1, 2, 9, "ann"), over(2, 1, 9, "bob")], None),
        (
            vec![
                over(1, 2, 9, "ann"),
                over(2, 1, 9, "bob"),
                over(2, 1, 9, "cem"),
            ],
            Some((B, A)),
        ),
        (
            vec![over(1, 2, 9, "ann"), over(2, 1, 10, "ann")],
            Some((B, A)),
        ),
    ] {
        let found = build(&task(), &exchanges, &said);
        match expected {
            Some(expected) => assert_eq!(only(&found), expected, "{said:?}"),
            None => assert_eq!(dropped(&found), [("raters disagree", 1)]),
        }
    }
}

#[test]
fn what_cannot_be_compared_is_counted_with_its_reason() {
    let with = |n, change: fn(&mut Exchange)| {
        let mut exchange = asked(n, "x", B);
        change(&mut exchange);
        exchange
    };
    for (other, reason) in [
        (
            with(2, |e| e.purpose = Purpose::Examination),
            "no answer of a user's",
        ),
        (with(2, |e| e.answer = None), "no answer of a user's"),
        (with(2, |e| e.messages = None), "no answer of a user's"),
        (asked(3, "x", B), "no answer of a user's"),
        (asked(2, "y", B), "different messages"),
        (asked(2, "x", A), "the same"),
    ] {
        let found = build(&task(), &[asked(1, "x", A), other], &[over(1, 2, 9, "ann")]);
        let dropped = dropped(&found);
        assert!(
            dropped.len() == 1 && dropped[0].0.contains(reason),
            "{dropped:?}"
        );
    }
    let broken = [asked(1, "x", "nonsense"), asked(2, "x", B)];
    let found = build(&task(), &broken, &[over(1, 2, 9, "ann")]);
    assert_eq!(dropped(&found), [("the better one breaks the format", 1)]);
}

#[test]
fn the_same_texts_are_kept_once() {
    let exchanges = [asked(1, "x", A), asked(2, "x", A), asked(3, "y", A)];
    let said: Vec<Feedback> = (1..=3).map(|n| corrected(n, 9, "ann", B)).collect();
    let found = build(&task(), &exchanges, &said);
    let of: Vec<&str> = pairs(&found)
        .iter()
        .map(|p| p.request_ids[0].as_str())
        .collect();
    assert_eq!(of.len(), 2);
    assert!(
        of.contains(&"request-2") && of.contains(&"request-3"),
        "{of:?}"
    );
    assert_eq!(found.counts.dropped.values().sum::<u64>(), 1);
}

proptest! {
    #[test]
    fn the_order_of_what_comes_in_does_not_matter(
        said in prop::collection::vec((1u64..8, 1u64..8, 10i64..14, 0usize..3), 0..20).prop_shuffle()
    ) {
        let exchanges: Vec<Exchange> = (1..8)
            .map(|n| asked(n, ["x", "y"][n as usize % 2], [A, B][n as usize / 4]))
            .collect();
        let said: Vec<Feedback> = said.into_iter().filter(|(a, b, ..)| a != b).map(|(a, b, at, rater)| {
            let rater = ["ann", "bob", "cem"][rater];
            Feedback { feedback_id: format!("{a} {b} {at} {rater}"), ..over(a, b, at, rater) }
        }).collect();
        let found = build(&task(), &exchanges, &said);
        let back: (Vec<_>, Vec<_>) = (exchanges.into_iter().rev().collect(), said.into_iter().rev().collect());
        prop_assert_eq!(found, build(&task(), &back.0, &back.1));
    }
}
