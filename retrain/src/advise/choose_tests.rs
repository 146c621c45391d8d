//! Which of what was measured is the baseline.

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::advise::measure::Share;

const ROWS: u64 = 100;

/// A candidate that answers the first `right` rows rightly.
fn measured(base: &str, bytes: u64, prompt: &str, right: u64, tokens: f64) -> Measured {
    let share = Share::of(right, ROWS);
    Measured {
        candidate: Candidate {
            base: base.to_owned(),
            weight_bytes: (bytes > 0).then_some(bytes),
            prompt: prompt.to_owned(),
        },
        rows: ROWS,
        format_valid: None,
        right: share,
        closeness: share.share,
        prompt_tokens: tokens,
        completion_tokens: 10.0,
        seconds: 1.0,
        will_do: share.at_least >= 0.9,
        right_by_row: (0..ROWS).map(|row| row < right).collect(),
    }
}

fn chosen(all: &[Measured]) -> (&str, &str) {
    let one = choose(all).unwrap();
    (&one.candidate.base, &one.candidate.prompt)
}

#[test]
fn the_smallest_base_that_will_do() {
    let all = [
        measured("large", 900, "long", 100, 50.0),
        measured("middle", 500, "long", 97, 90.0),
        measured("small", 100, "long", 60, 90.0),
    ];
    assert_eq!(chosen(&all), ("middle", "long"));
    // Without their sizes the first named is the smallest.
    let unsized_ = [
        measured("first", 0, "long", 97, 90.0),
        measured("second", 5, "long", 100, 20.0),
    ];
    assert_eq!(chosen(&unsized_), ("first", "long"));
    assert!(choose(&[]).is_none());
}

#[test]
fn the_cheapest_of_prompts_that_cannot_be_told_apart() {
    let all = [
        measured("small", 100, "few-shot", 99, 400.0),
        measured("small", 100, "long", 98, 120.0),
        measured("small", 100, "short", 60, 10.0),
    ];
    assert_eq!(chosen(&all), ("small", "long"));
    // Five more right answers and none fewer are no chance (1 in 32).
    let mut all = [
        measured("small", 100, "few-shot", 99, 400.0),
        measured("small", 100, "long", 94, 120.0),
    ];
    all.iter_mut().for_each(|one| one.will_do = true);
    assert_eq!(chosen(&all), ("small", "few-shot"));
    all[1] = measured("small", 100, "long", 95, 120.0);
    all[1].will_do = true;
    assert_eq!(chosen(&all), ("small", "long"));
}

#[test]
fn where_none_will_do_the_best_is_to_be_beaten() {
    let all = [
        measured("small", 100, "short", 20, 10.0),
        measured("small", 100, "long", 50, 90.0),
        measured("large", 900, "short", 52, 10.0),
    ];
    assert_eq!(chosen(&all), ("small", "long"));
    let told = in_words(choose(&all).unwrap(), &all, 0.9);
    assert!(told.starts_with("none will do"), "{told}");
    assert!(told.contains("50 of 100"), "{told}");
    let close = [measured("small", 100, "long", 93, 90.0)];
    let told = in_words(&close[0], &close, 0.9);
    assert!(told.contains("more rows would tell"), "{told}");
}

#[test]
fn the_figure_that_decides_is_named() {
    let mut one = measured("small", 100, "long", 98, 90.0);
    let told = because(&one, 0.9);
    assert!(told.figure >= told.wanted && told.what.contains("small"));
    one.format_valid = Some(Share::of(80, ROWS));
    let told = because(&one, 0.9);
    assert_eq!(told.wanted, BROKEN);
    assert!(told.figure > BROKEN && told.what.contains("break the format"));
}

fn candidates() -> impl Strategy<Value = Vec<Measured>> {
    let one = (0..3_usize, 0..4_usize, 0..=100_u64, 10..500_u32);
    prop::collection::vec(one, 1..9).prop_map(|all| {
        let bases = [("small", 100), ("middle", 500), ("large", 900)];
        let prompts = ["current", "short", "long", "few"];
        let mut seen = std::collections::BTreeMap::new();
        for (base, prompt, right, tokens) in all {
            let (name, bytes) = bases[base];
            let one = measured(name, bytes, prompts[prompt], right, f64::from(tokens));
            seen.insert((base, prompt), one);
        }
        seen.into_values().collect()
    })
}

proptest! {
    #[test]
    fn no_smaller_base_would_do_and_no_prompt_of_it_is_shown_better(all in candidates()) {
        let one = choose(&all).unwrap();
        let any = all.iter().any(|one| one.will_do);
        prop_assert_eq!(one.will_do, any);
        for other in &all {
            let smaller = other.candidate.weight_bytes < one.candidate.weight_bytes;
            prop_assert!(!(smaller && other.will_do));
            let rival = !any || (other.will_do && other.candidate.base == one.candidate.base);
            if rival {
                prop_assert!(!shown_worse(one, other));
                let alike = other.candidate.base == one.candidate.base && other.right.count >= one.right.count;
                prop_assert!(!alike || other.tokens() >= one.tokens());
            }
        }
    }

    #[test]
    fn the_order_does_not_matter(all in candidates(), turn in 0..9_usize) {
        let mut turned = all.clone();
        let by = turn % all.len();
        turned.rotate_left(by);
        prop_assert_eq!(choose(&all), choose(&turned));
        turned.reverse();
        prop_assert_eq!(choose(&all), choose(&turned));
    }

    #[test]
    fn what_is_said_is_of_the_one_that_was_chosen(all in candidates()) {
        let one = choose(&all).unwrap();
        let told = in_words(one, &all, 0.9);
        let Candidate { base, prompt, .. } = &one.candidate;
        let named = format!("prompt {prompt} on {base}");
        prop_assert!(told.contains(&named));
        prop_assert_eq!(told.starts_with("none"), !one.will_do);
        prop_assert_eq!(because(one, 0.9).figure >= 0.9, one.will_do);
    }
}
