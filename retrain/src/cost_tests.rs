//! What a run has cost, and what its candidate saves: by hand, and by what must hold of all counts.

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::testing::{asked, corrected, time};

fn prices() -> Prices {
    Prices {
        currency: "EUR".to_owned(),
        training_hour: 2.0,
        prompt_million: 1.0,
        completion_million: 4.0,
        storage_gib_month: 0.1,
        edit: 0.0,
    }
}

fn side(prompt: f64) -> Side {
    Side {
        tokens: Tokens {
            prompt,
            completion: 50.0,
        },
        ..Side::default()
    }
}

fn counted() -> Counted {
    Counted {
        training_seconds: 1_800.0,
        examined: 200,
        candidate: side(100.0),
        baseline: side(900.0),
        beside: Tokens::default(),
        corrections: Corrections::default(),
        adapter_bytes: 1 << 29,
        exchanges_per_day: Some(1_000.0),
    }
}

fn near(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-9, "{a} {b}");
}

#[test]
fn the_shorter_prompt_pays_for_the_run() {
    let cost = cost(&prices(), &counted(), time(0));
    near(cost.training, 1.0);
    near(cost.candidate_per_thousand, 0.3);
    near(cost.baseline_per_thousand, 1.1);
    near(cost.examination, 0.28);
    near(cost.total, 1.28);
    near(cost.storage_per_month, 0.05);
    // What was asked of a third: 10,000 tokens read, 500 written.
    let beside = Tokens {
        prompt: 10_000.0,
        completion: 500.0,
    };
    let more = Counted {
        beside,
        ..counted()
    };
    near(super::cost(&prices(), &more, time(0)).examination, 0.292);
    // 1.28 over 0.0008 an exchange.
    assert_eq!(cost.break_even_exchanges, Some(1_600));
    assert_eq!(cost.break_even, Some(time(138_240)));
}

#[test]
fn what_saves_nothing_never_pays() {
    let dearer = Counted {
        candidate: counted().baseline,
        ..counted()
    };
    let none = cost(&prices(), &dearer, time(0));
    assert_eq!((none.break_even_exchanges, none.break_even), (None, None));
    let free = cost(&Prices::default(), &counted(), time(0));
    assert_eq!((free.total, free.break_even_exchanges), (0.0, None));
    let unknown = Counted {
        exchanges_per_day: None,
        ..counted()
    };
    assert_eq!(cost(&prices(), &unknown, time(0)).break_even, None);
}

/// A fifth of the baseline's answers break the format, two fifths are wrong, and people corrected a tenth; the candidate is wrong in
/// a fifth.
fn better() -> Counted {
    let plain = counted();
    Counted {
        candidate: Side {
            wrong: 0.2,
            ..plain.candidate
        },
        baseline: Side {
            invalid: 0.2,
            wrong: 0.4,
            ..plain.baseline
        },
        corrections: Corrections {
            exchanges: 500,
            corrected: 50,
        },
        ..plain
    }
}

#[test]
fn better_answers_are_asked_for_again_and_corrected_less_often() {
    let prices = Prices {
        edit: 0.5,
        ..prices()
    };
    let better = cost(&prices, &better(), time(0));
    let (candidate, baseline) = (
        better.candidate_kinds.unwrap(),
        better.baseline_kinds.unwrap(),
    );
    near(candidate.retries, 0.0);
    near(baseline.retries, 0.2 * 1.1);
    near(baseline.asked_again, 200.0);
    // Half as often wrong, half as often corrected: 50 and 100 of a thousand.
    near(candidate.corrected.unwrap(), 50.0);
    near(baseline.corrected.unwrap(), 100.0);
    near(candidate.edits, 25.0);
    near(baseline.edits, 50.0);
    near(better.candidate_per_thousand, 25.3);
    near(better.baseline_per_thousand, 51.32);
    // What was spent has no estimate in it; 1.28 over 0.02602 an exchange.
    near(better.total, 1.28);
    assert_eq!(better.break_even_exchanges, Some(50));
    let said = better.to_string();
    assert!(said.contains("25.3000 EUR"), "{said}");
    assert!(said.contains("estimate"), "{said}");
    let rows = better.by_kind().concat();
    for cell in ["0.2200 (200 times)", "25.0000 (50 times)", "51.3200"] {
        assert!(rows.iter().any(|row| row == cell), "{cell} in {rows:?}");
    }
}

#[test]
fn how_much_people_will_correct_is_not_told_where_it_cannot_be() {
    let prices = Prices {
        edit: 0.5,
        ..prices()
    };
    let never_wrong = Counted {
        baseline: Side {
            wrong: 0.0,
            ..better().baseline
        },
        ..better()
    };
    let new_champion = Counted {
        corrections: Corrections::default(),
        ..better()
    };
    for counted in [never_wrong, new_champion] {
        let cost = cost(&prices, &counted, time(0));
        for kinds in [cost.candidate_kinds, cost.baseline_kinds] {
            let kinds = kinds.unwrap();
            assert_eq!((kinds.corrected, kinds.edits), (None, 0.0));
        }
        near(cost.candidate_per_thousand, 0.3);
        let rows = cost.by_kind();
        assert!(rows.iter().any(|row| row[1] == "cannot be told"));
    }
}

#[test]
fn a_cost_of_before_there_were_kinds_is_read_and_says_what_it_said() {
    let mut old = serde_json::to_value(cost(&prices(), &counted(), time(0))).unwrap();
    let fields = old.as_object_mut().unwrap();
    fields.remove("candidate_kinds");
    fields.remove("baseline_kinds");
    let old: Cost = serde_json::from_value(old).unwrap();
    assert_eq!((old.candidate_kinds, old.by_kind().len()), (None, 0));
    let said = old.to_string();
    assert!(
        said.contains("0.3000 EUR") && !said.contains("estimate"),
        "{said}"
    );
}

#[test]
fn what_people_corrected_are_answers_of_that_adapter_to_users_that_they_changed() {
    let by = |n: u64, adapter: &str| Exchange {
        adapter: Some(adapter.to_owned()),
        ..asked(n, &format!("thing {n}"), r#"{"is":"a"}"#)
    };
    let exchanges = [
        by(1, "ask@1"),
        by(2, "ask@1"),
        by(3, "ask@1"),
        by(4, "ask@2"),
        Exchange {
            purpose: Purpose::Shadow,
            ..by(5, "ask@1")
        },
        Exchange {
            code: 500,
            ..by(6, "ask@1")
        },
    ];
    let wrong = r#"{"is":"b"}"#;
    let mut feedback: Vec<Feedback> = [1, 4, 5, 6, 7]
        .iter()
        .map(|n| corrected(*n, 10, "ann", wrong))
        .collect();
    // The same said twice, once by somebody who agrees with the answer; and an answer that is only written otherwise.
    feedback.push(corrected(1, 20, "bob", wrong));
    feedback.push(corrected(1, 30, "eve", r#"{"is":"a"}"#));
    feedback.push(corrected(2, 10, "ann", r#"{ "is": "a" }"#));
    let found = Corrections::of("ask@1", &exchanges, &feedback);
    let expected = Corrections {
        exchanges: 3,
        corrected: 1,
    };
    assert_eq!(found, expected);
    assert_eq!(
        Corrections::of("ask@9", &exchanges, &feedback).share(),
        None
    );
}

prop_compose! {
    fn sides()(prompt in 0.0..1e5, completion in 0.0..1e4, invalid in 0.0..=1.0, wrong in 0.0..=1.0) -> Side {
        Side { tokens: Tokens { prompt, completion }, invalid, wrong }
    }
}

proptest! {
    #[test]
    fn a_whole_is_its_kinds_and_nobody_corrects_more_than_all(
        candidate in sides(), baseline in sides(), exchanges in 0_u64..1_000, share in 0.0..=1.0, edit in 0.0..10.0,
    ) {
        let corrections = Corrections { exchanges, corrected: (exchanges as f64 * share) as u64 };
        let counted = Counted { candidate, baseline, corrections, ..counted() };
        let prices = Prices { edit, ..prices() };
        let found = cost(&prices, &counted, time(0));
        for (kinds, whole) in [
            (found.candidate_kinds, found.candidate_per_thousand),
            (found.baseline_kinds, found.baseline_per_thousand),
        ] {
            let kinds = kinds.unwrap();
            let sum = kinds.prompt + kinds.completion + kinds.retries + kinds.edits;
            prop_assert!((sum - whole).abs() <= 1e-9 * whole);
            prop_assert!(kinds.retries <= kinds.prompt + kinds.completion);
            prop_assert!(kinds.corrected.is_none_or(|n| (0.0..=1e3 + 1e-9).contains(&n)));
        }
        prop_assert_eq!(found.break_even_exchanges.is_some(), found.candidate_per_thousand < found.baseline_per_thousand);
        // Better answers never make it dearer.
        let better = Counted { candidate: Side { invalid: 0.0, wrong: 0.0, ..candidate }, ..counted };
        let better = cost(&prices, &better, time(0));
        prop_assert!(better.candidate_per_thousand <= found.candidate_per_thousand);
        prop_assert_eq!(better.total, found.total);
    }
}
