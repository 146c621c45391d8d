//! Tests of `dataset`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;
use retune_ledger::{Exchange, Feedback, Purpose};
use retune_task::{Split, Task};

use super::{Dataset, KnownBy, build};
use crate::testing::{asked, corrected, rated, task, time};

fn only(dataset: &Dataset) -> (String, KnownBy) {
    let rows: Vec<_> = dataset.rows().collect();
    assert_eq!(rows.len(), 1, "{:?}", dataset.counts);
    (rows[0].answer.clone(), rows[0].known_by)
}

const ANSWER: &str = r#"{"is":"a"}"#;

#[test]
fn the_newest_correction_is_the_known_answer_whatever_the_ratings() {
    let exchanges = [asked(1, "x", "nonsense")];
    let feedback = [
        corrected(1, 30, "ann", r#"{"is":"newer"}"#),
        corrected(1, 20, "bob", r#"{"is":"older"}"#),
        rated(1, 40, "cem", 1),
        rated(1, 41, "ann", 5),
    ];
    assert_eq!(
        only(&build(&task(), &exchanges, &feedback)),
        (r#"{"is":"newer"}"#.to_owned(), KnownBy::Correction)
    );
    // What can teach nothing takes nothing away; but it says that the answer was wrong.
    let broken = [
        corrected(1, 50, "dan", "no object"),
        corrected(1, 10, "eve", "none"),
    ];
    assert_eq!(
        only(&build(
            &task(),
            &exchanges,
            &[&feedback[..], &broken].concat()
        )),
        (r#"{"is":"newer"}"#.to_owned(), KnownBy::Correction)
    );
    let counts = build(&task(), &exchanges, &broken).counts;
    assert_eq!((counts.kept(), counts.exchanges), (0, 1), "{counts:?}");
}

#[test]
fn all_that_a_user_asks_is_on_one_side_where_the_policy_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let by_user = crate::testing::config(folder.path(), "held_out_by = \"user\"");
    let by_user = &by_user.tasks[0];
    let exchanges: Vec<Exchange> = (0..400)
        .map(|n| Exchange {
            // Every fifth is nobody's.
            user: (n % 5 != 0).then(|| format!("user-{}", n % 40)),
            ..asked(n, &format!("prompt {n}"), ANSWER)
        })
        .collect();
    let feedback: Vec<Feedback> = (0..400).map(|n| rated(n, 500, "ann", 5)).collect();
    let sides = |task: &Task| {
        let mut sides: HashMap<Option<String>, Vec<Split>> = HashMap::new();
        for row in build(task, &exchanges, &feedback).rows() {
            let side = sides.entry(row.user.clone()).or_default();
            if !side.contains(&row.split) {
                side.push(row.split);
            }
        }
        sides
    };
    let sides_by_user = sides(by_user);
    for (user, sides) in &sides_by_user {
        assert_eq!(sides.len() == 1, user.is_some(), "{user:?}: {sides:?}");
    }
    let held_out = sides_by_user
        .values()
        .filter(|sides| sides[..] == [Split::HeldOut]);
    assert!((1..12).contains(&held_out.count()), "{sides_by_user:?}");
    assert!(sides(&task()).values().any(|sides| sides.len() > 1));
}

#[test]
fn several_raters_are_their_lower_median_and_each_counts_once() {
    for (ratings, kept) in [
        (vec![("ann", 5)], Some(5)),
        (vec![("ann", 4)], Some(4)),
        (vec![("ann", 3)], None),
        (vec![("ann", 5), ("bob", 1)], None),
        (vec![("ann", 5), ("bob", 4)], Some(4)),
        (vec![("ann", 5), ("bob", 1), ("cem", 5)], Some(5)),
        (vec![("ann", 1), ("bob", 1), ("cem", 5)], None),
        // Changed her mind.
        (vec![("ann", 1), ("ann", 5)], Some(5)),
        (vec![("ann", 5), ("ann", 5), ("ann", 2)], None),
    ] {
        let feedback: Vec<Feedback> = ratings
            .iter()
            .zip(10..)
            .map(|(&(rater, rating), at)| rated(1, at, rater, rating))
            .collect();
        let dataset = build(&task(), &[asked(1, "x", ANSWER)], &feedback);
        match kept {
            Some(rating) => assert_eq!(
                only(&dataset),
                (ANSWER.to_owned(), KnownBy::Rating(rating)),
                "{ratings:?}"
            ),
            None => assert_eq!(
                (dataset.len(), dataset.counts.rated_low),
                (0, 1),
                "{ratings:?}"
            ),
        }
    }
}

#[test]
fn every_reason_to_leave_one_out_is_counted() {
    let with = |n, change: fn(&mut Exchange)| {
        let mut exchange = asked(n, &format!("prompt {n}"), ANSWER);
        change(&mut exchange);
        exchange
    };
    let exchanges = [
        with(1, |e| e.purpose = Purpose::Examination),
        with(2, |e| e.task = Some("other".to_owned())),
        with(3, |e| e.code = 500),
        with(4, |e| e.messages = None),
        with(5, |e| e.answer = None),
        with(6, |e| e.answer = Some("no json".to_owned())),
        with(7, |e| e.answer = Some(r#"{"is":1}"#.to_owned())),
        with(8, |_| {}),
        with(9, |_| {}),
    ];
    let feedback: Vec<Feedback> = (1..=8).map(|n| rated(n, 100, "ann", 5)).collect();
    let counts = build(&task(), &exchanges, &feedback).counts;
    assert_eq!(
        (
            counts.exchanges,
            counts.not_user,
            counts.failed,
            counts.no_text,
            counts.no_answer
        ),
        (9, 2, 1, 1, 1)
    );
    assert_eq!(
        counts.format_invalid,
        [("not_json".to_owned(), 1), ("type".to_owned(), 1)].into()
    );
    assert_eq!(
        (counts.unrated, counts.kept_ratings, counts.dropped()),
        (1, 1, 8)
    );
}

#[test]
fn the_newest_of_a_conversation_stays() {
    let exchanges = [
        asked(1, "x", r#"{"is":"first"}"#),
        asked(2, "  x ", r#"{"is":"second"}"#),
        asked(3, "x", "unrated"),
    ];
    let feedback = [rated(1, 100, "ann", 5), rated(2, 101, "ann", 4)];
    let dataset = build(&task(), &exchanges, &feedback);
    assert_eq!(only(&dataset).0, r#"{"is":"second"}"#);
    assert_eq!(
        (dataset.counts.older_in_conversation, dataset.counts.unrated),
        (1, 1)
    );
}

#[test]
fn the_same_text_under_two_conversations_stays_once() {
    let mut second = asked(2, "x", ANSWER);
    second.conversation = "imported".to_owned();
    let dataset = build(
        &task(),
        &[asked(1, "x", ANSWER), second],
        &[rated(1, 100, "ann", 5), rated(2, 100, "ann", 5)],
    );
    assert_eq!(
        dataset
            .rows()
            .map(|row| row.request_id.as_str())
            .collect::<Vec<_>>(),
        ["request-2"]
    );
    assert_eq!(dataset.counts.same_text, 1);
}

#[test]
fn gold_is_a_correction_or_a_five() {
    let exchanges = [
        asked(1, "x", ANSWER),
        asked(2, "y", ANSWER),
        asked(3, "z", ANSWER),
    ];
    let feedback = [
        rated(1, 100, "ann", 5),
        rated(2, 100, "ann", 4),
        corrected(3, 100, "ann", ANSWER),
    ];
    let dataset = build(&task(), &exchanges, &feedback);
    let gold: HashMap<&str, bool> = dataset
        .rows()
        .map(|row| (row.request_id.as_str(), row.is_gold()))
        .collect();
    assert_eq!(
        gold,
        HashMap::from([
            ("request-1", true),
            ("request-2", false),
            ("request-3", true)
        ])
    );
}

#[test]
fn new_rows_are_those_asked_after_the_alarm() {
    let exchanges: Vec<Exchange> = (1..=10)
        .map(|n| asked(n, &format!("prompt {n}"), ANSWER))
        .collect();
    let feedback: Vec<Feedback> = (1..=9).map(|n| rated(n, 100, "ann", 5)).collect();
    let dataset = build(&task(), &exchanges, &feedback);
    assert_eq!(
        (
            dataset.usable_since(time(0)),
            dataset.usable_since(time(4)),
            dataset.usable_since(time(9))
        ),
        (9, 5, 0)
    );
}

fn logs() -> impl Strategy<Value = (Vec<Exchange>, Vec<Feedback>)> {
    let exchange = (0..12_u8, 0..4_u8, 0..8_u8).prop_map(|(prompt, answer, odd)| {
        let answer = if answer == 0 {
            "no json".to_owned()
        } else {
            format!(r#"{{"is":"{answer}"}}"#)
        };
        let mut exchange = asked(0, &format!("prompt {prompt}"), &answer);
        match odd {
            0 => exchange.purpose = Purpose::Examination,
            1 => exchange.code = 500,
            2 => exchange.answer = None,
            _ => {}
        }
        exchange
    });
    let said =
        (0..40_u64, 0..100_i64, 0..3_u8, 0..8_u8).prop_map(|(n, at, rater, what)| match what {
            0 => corrected(n, at, &format!("rater {rater}"), r#"{"is":"corrected"}"#),
            1 => corrected(n, at, &format!("rater {rater}"), "no json"),
            rating => rated(n, at, &format!("rater {rater}"), rating.min(5)),
        });
    (
        prop::collection::vec(exchange, 0..40),
        prop::collection::vec(said, 0..80),
    )
        .prop_map(|(mut exchanges, mut feedback)| {
            for (exchange, n) in exchanges.iter_mut().zip(0..) {
                exchange.request_id = format!("request-{n}");
                exchange.seq = n;
                // Several in one instant: the sequence has to decide.
                exchange.ts = time(n as i64 / 3);
            }
            for (said, n) in feedback.iter_mut().zip(0..) {
                said.feedback_id = format!("feedback-{n}");
            }
            (exchanges, feedback)
        })
}

fn built(exchanges: &[Exchange], feedback: &[Feedback]) -> (Arc<Task>, Dataset) {
    let task = task();
    let dataset = build(&task, exchanges, feedback);
    (task, dataset)
}

proptest! {
    #[test]
    fn the_order_of_rows_does_not_matter((exchanges, feedback) in logs(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
        let (_, straight) = built(&exchanges, &feedback);
        let (mut exchanges, mut feedback) = (exchanges, feedback);
        exchanges.reverse();
        feedback.reverse();
        if !exchanges.is_empty() { let at = a.index(exchanges.len()); exchanges.rotate_left(at); }
        if !feedback.is_empty() { let at = b.index(feedback.len()); feedback.rotate_left(at); }
        prop_assert_eq!(straight, built(&exchanges, &feedback).1);
    }

    #[test]
    fn a_conversation_stands_once_and_on_its_side((exchanges, feedback) in logs()) {
        let (task, dataset) = built(&exchanges, &feedback);
        let mut sides = HashMap::new();
        for (side, rows) in [(Split::Train, &dataset.train), (Split::Development, &dataset.development), (Split::HeldOut, &dataset.held_out)] {
            for row in rows {
                prop_assert_eq!(sides.insert(row.conversation.clone(), side), None, "one row a conversation");
                prop_assert_eq!(retune_task::held_out(&row.conversation), side);
                let format = task.format.as_ref().unwrap();
                prop_assert!(matches!(format.check(&row.answer), retune_task::Check::Valid), "only valid answers train");
            }
            prop_assert!(rows.windows(2).all(|pair| pair[0].ts <= pair[1].ts), "oldest first");
        }
    }

    #[test]
    fn nothing_is_left_out_silently((exchanges, feedback) in logs()) {
        let (_, dataset) = built(&exchanges, &feedback);
        prop_assert_eq!(dataset.counts.kept(), dataset.len() as u64);
        prop_assert_eq!(dataset.counts.kept() + dataset.counts.dropped(), exchanges.len() as u64);
    }

    /// More of the log never moves a conversation to the other side.
    #[test]
    fn the_split_is_the_same_in_every_run((exchanges, feedback) in logs(), part in any::<prop::sample::Index>()) {
        let sides = |dataset: &Dataset| -> HashMap<String, Split> { dataset.rows().map(|row| (row.conversation.clone(), row.split)).collect() };
        let earlier = sides(&built(&exchanges[..part.index(exchanges.len() + 1)], &feedback).1);
        let later = sides(&built(&exchanges, &feedback).1);
        for (conversation, side) in earlier {
            prop_assert!(later.get(&conversation).is_none_or(|now| *now == side));
        }
    }
}
