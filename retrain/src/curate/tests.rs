//! Tests of the filters together.

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use retune_task::{Redaction, Sensitive, Split};

use super::{Reason, counts, curate};
use crate::dataset::{KnownBy, Row};
use crate::testing::{self, user};

pub(super) fn row(n: usize, asked: &str, answer: &str, split: Split) -> Row {
    Row {
        split,
        messages: vec![user(asked)],
        answer: answer.to_owned(),
        ..testing::row(n, KnownBy::Rating(5))
    }
}

/// Rows that are like no other.
fn plain(count: usize) -> Vec<Row> {
    let asked = |n: usize| format!("question number {n} about the thing {}", n * 7);
    (0..count)
        .map(|n| row(n, &asked(n), "an answer", Split::Train))
        .collect()
}

fn nothing() -> Redaction {
    Redaction::default()
}

#[test]
fn what_holds_a_secret_or_a_card_is_no_example() {
    let personal = Redaction::new(&[Sensitive::Secret, Sensitive::Card], &[]).unwrap();
    let rows = vec![
        row(1, "my card is 4111 1111 1111 1111", "billing", Split::Train),
        row(
            2,
            "what is the key",
            "sk-proj-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            Split::HeldOut,
        ),
        row(
            3,
            "order 4111 1111 1111 1112 is late",
            "shipping",
            Split::Train,
        ),
    ];
    let (kept, found) = curate(rows, &personal);
    assert_eq!(kept.len(), 1, "{found:?}");
    assert_eq!(kept[0].request_id, "request-3");
    assert!(found.iter().all(|one| one.reason == Reason::Personal));
}

#[test]
fn an_answer_as_long_as_no_other_is_taken_and_a_few_rows_have_no_usual_length() {
    for (count, taken) in [(60, 1), (30, 0)] {
        let mut rows = plain(count);
        rows.push(row(
            900,
            "a question of its own",
            &"long ".repeat(200),
            Split::Train,
        ));
        let (kept, found) = curate(rows, &nothing());
        assert_eq!((kept.len(), found.len()), (count + 1 - taken, taken));
        assert!(
            found
                .iter()
                .all(|one| one.reason == Reason::Outlier && one.request_id == "request-900")
        );
    }
}

#[test]
fn what_is_held_out_stays_and_what_is_near_it_goes() {
    let asked = "my kettle leaks from the handle, can you send another one please";
    let again = "my kettle leaks from the handle, can you send me another one please";
    // Its answer differs by more than a word: it is no duplicate.
    let rows = vec![
        row(1, asked, "returns", Split::HeldOut),
        row(2, again, "technical help and a voucher", Split::Train),
        row(
            3,
            "where is the invoice of last month",
            "billing",
            Split::Train,
        ),
    ];
    let (kept, found) = curate(rows, &nothing());
    let kept: Vec<&str> = kept.iter().map(|row| row.request_id.as_str()).collect();
    assert_eq!(kept, ["request-1", "request-3"]);
    assert_eq!(found[0].reason, Reason::NearHeldOut);
    assert_eq!(found[0].like.as_deref(), Some("request-1"));
}

proptest! {
    #[test]
    fn none_is_lost_and_the_order_of_what_comes_in_does_not_matter(
        picked in prop::collection::vec((0usize..12, 0usize..3, 0usize..3), 1..40)
    ) {
        let rows: Vec<Row> = picked.iter().enumerate().map(|(n, (asked, answer, split))| {
            let asked = format!("the {asked}th question is about lamps, towels and a kettle");
            let split = [Split::Train, Split::Development, Split::HeldOut][*split];
            row(n, &asked, ["billing", "shipping", "returns"][*answer], split)
        }).collect();
        let count = rows.len();
        let (kept, taken) = curate(rows.clone(), &nothing());
        prop_assert_eq!(kept.len() + taken.len(), count);
        prop_assert_eq!(counts(&taken).values().sum::<u64>(), taken.len() as u64);
        let (mut back, _) = curate(rows.into_iter().rev().collect(), &nothing());
        back.reverse();
        prop_assert_eq!(kept, back);
    }
}
