//! Near duplicates, contradictions and leaks, planted among rows that are none of them.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests, which tell their figures"
)]

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use retune_task::{ChatMessage, Split};

use super::super::tests;
use super::{Twin, leaks, twins};
use crate::dataset::{KnownBy, Row};

fn row(n: usize, asked: &str, answer: &str, known_by: KnownBy) -> Row {
    Row {
        known_by,
        ..tests::row(n, asked, answer, Split::Train)
    }
}

fn found(rows: &[(&str, &str, KnownBy)]) -> Vec<Option<Twin>> {
    let rows = rows.iter().enumerate();
    let rows: Vec<Row> = rows
        .map(|(n, (asked, answer, known_by))| row(n, asked, answer, *known_by))
        .collect();
    twins(&rows)
}

const ASKED: &str = "The parcel with the blue lamp has not arrived, what shall I do now?";
const FIVE: KnownBy = KnownBy::Rating(5);

#[test]
fn of_those_alike_the_best_known_stays_and_then_the_newest() {
    let again = "the parcel with the blue lamp has not arrived: what shall I do now";
    let (four, correction) = (KnownBy::Rating(4), KnownBy::Correction);
    for (a, b, stays) in [(FIVE, FIVE, 1), (FIVE, four, 0), (four, correction, 1)] {
        let found = found(&[(ASKED, "shipping", a), (again, "Shipping.", b)]);
        assert_eq!(
            (found[stays], found[1 - stays]),
            (None, Some(Twin::Duplicate(stays)))
        );
    }
}

#[test]
fn of_those_that_contradict_each_other_the_better_known_or_the_many_win() {
    let (four, correction) = (KnownBy::Rating(4), KnownBy::Correction);
    let all = |by: &[(&'static str, KnownBy)]| {
        let rows: Vec<_> = by
            .iter()
            .map(|(answer, by)| (ASKED, *answer, *by))
            .collect();
        found(&rows)
    };
    let (a, b) = ("shipping", "billing");
    assert_eq!(
        all(&[(a, correction), (b, FIVE), (b, FIVE), (b, FIVE)])[..2],
        [None, Some(Twin::Overruled(0))]
    );
    assert_eq!(
        all(&[(a, FIVE), (b, four)]),
        [Some(Twin::Contradiction(1)), Some(Twin::Contradiction(0))]
    );
    let many = all(&[(a, FIVE), (a, FIVE), (b, FIVE)]);
    assert_eq!(many[2], Some(Twin::Overruled(1)));
    assert_eq!(many[1], None);
    assert!(
        all(&[(a, correction), (b, correction)])
            .iter()
            .all(Option::is_some)
    );
}

#[test]
fn what_a_model_wrote_never_goes_before_what_people_said() {
    let synthetic = KnownBy::Synthetic;
    for known in [KnownBy::Rating(4), KnownBy::Correction] {
        let others = vec![(ASKED, "billing", synthetic); 5];
        let all = [&[(ASKED, "shipping", known)], others.as_slice()].concat();
        let found = found(&all);
        assert_eq!(found[0], None);
        assert!(
            found[1..]
                .iter()
                .all(|twin| *twin == Some(Twin::Overruled(0)))
        );
    }
    // Nor does it help the one or the other of two.
    let all = [
        (ASKED, "shipping", FIVE),
        (ASKED, "billing", FIVE),
        (ASKED, "billing", synthetic),
        (ASKED, "billing", synthetic),
    ];
    assert!(found(&all).iter().all(Option::is_some));
}

#[test]
fn what_differs_by_a_number_or_by_a_copied_word_is_something_else() {
    for (other, a, b) in [
        (ASKED.replace("the blue lamp", "order 4711"), "4711", "4711"),
        (
            ASKED.replace("blue", "green"),
            "a blue lamp",
            "a green lamp",
        ),
    ] {
        let first = if other.contains("4711") {
            ASKED.replace("the blue lamp", "order 4712")
        } else {
            ASKED.to_owned()
        };
        let a = if a == "4711" { "4712" } else { a };
        assert_eq!(found(&[(&first, a, FIVE), (&other, b, FIVE)]), [None, None]);
    }
}

const WORDS: &str = "account address answer arrive battery bill blanket bottle bracket branch bridge broken button cable camera \
    cancel carpet change charge cheque circle clock colour contract copper corner cotton courier damage delay deliver deposit desk \
    double drawer driver engine error failed fabric filter finger forest freight garden gift glass handle heater hinge invoice jacket \
    kettle ladder lamp leather letter limit locker login magnet market meter mirror missing mobile monitor needle number office \
    onion order outlet oven packet paint parcel password payment pencil pillow plastic player pocket postage printer pump quality \
    radio receipt refund remote repair return ribbon saddle sample saucer scanner screen sensor shelf shower signal silver socket \
    speaker spring stamp station sticker switch table ticket timer torch towel travel trolley tunnel update valve vendor voucher \
    wallet warranty washer window winter wooden zipper";
const TEAMS: [&str; 5] = ["billing", "shipping", "returns", "technical", "account"];

/// The same with what people do to a text: case, marks, a typing error, a polite word.
fn retold(text: &str, rng: &mut ChaCha8Rng) -> String {
    match rng.random_range(0..5) {
        0 => text.to_uppercase(),
        1 => format!("{}!!", text.replace(' ', "  ")),
        2 => format!("please {text}"),
        3 => {
            let mut letters: Vec<char> = text.chars().collect();
            let at = rng.random_range(20..letters.len() - 8);
            letters.swap(at, at - 1);
            letters.into_iter().collect()
        }
        _ => format!("{text} thanks"),
    }
}

fn question(rng: &mut ChaCha8Rng) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let some: Vec<&str> = (0..rng.random_range(14..24))
        .map(|_| *words.choose(rng).unwrap())
        .collect();
    format!("{} {}", some.join(" "), rng.random_range(1000..100_000))
}

/// Of what was found and what was planted: precision and recall.
fn share(found: &[bool], planted: &[bool]) -> (f64, f64) {
    let both = found
        .iter()
        .zip(planted)
        .filter(|(a, b)| **a && **b)
        .count() as f64;
    let count = |all: &[bool]| all.iter().filter(|x| **x).count() as f64;
    (both / count(found), both / count(planted))
}

#[test]
fn planted_cases_are_found_and_nothing_else() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let (mut rows, mut duplicate, mut contradicts) = (Vec::new(), Vec::new(), Vec::new());
    let mut add = |asked: &str, answer: &str, is: (bool, bool)| {
        rows.push(row(rows.len(), asked, answer, FIVE));
        duplicate.push(is.0);
        contradicts.push(is.1);
    };
    for n in 0..3_000 {
        let (asked, team) = (question(&mut rng), *TEAMS.choose(&mut rng).unwrap());
        match n % 10 {
            // The newer stays.
            0 | 1 => {
                add(&asked, team, (true, false));
                add(&retold(&asked, &mut rng), team, (false, false));
            }
            2 => {
                let at = TEAMS.iter().position(|other| *other == team).unwrap();
                let other = TEAMS[(at + 1) % TEAMS.len()];
                add(&asked, team, (false, true));
                add(&asked.to_uppercase(), other, (false, true));
            }
            // Another number, another name: not the same.
            3 => {
                let (rest, number) = asked.rsplit_once(' ').unwrap();
                add(&asked, team, (false, false));
                add(&format!("{rest} {number}7"), team, (false, false));
            }
            4 => {
                let name = ["ada", "grace", "alan"];
                for name in name {
                    let answer = format!("from {name}");
                    add(&format!("{asked} i am {name}"), &answer, (false, false));
                }
            }
            _ => add(&asked, team, (false, false)),
        }
    }
    let found = twins(&rows);
    let is = |of: fn(&Twin) -> bool| -> Vec<bool> {
        found
            .iter()
            .map(|twin| twin.as_ref().is_some_and(of))
            .collect()
    };
    for (what, found, planted) in [
        (
            "duplicates",
            is(|twin| matches!(twin, Twin::Duplicate(_))),
            &duplicate,
        ),
        (
            "contradictions",
            is(|twin| matches!(twin, Twin::Contradiction(_))),
            &contradicts,
        ),
    ] {
        let (precision, recall) = share(&found, planted);
        println!("{what}: precision {precision:.4}, recall {recall:.4}");
        assert!(
            precision >= 0.95 && recall >= 0.95,
            "{what}: {precision} and {recall}"
        );
    }
}

#[test]
fn planted_leaks_are_found_and_nothing_else() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let held_out: Vec<Row> = (0..1_000)
        .map(|n| row(n, &question(&mut rng), "shipping", FIVE))
        .collect();
    let planted: Vec<bool> = (0..5_000).map(|n| n % 5 == 0).collect();
    let rows: Vec<Row> = planted
        .iter()
        .enumerate()
        .map(|(n, is_leak)| {
            let asked = match is_leak {
                true => {
                    let of = &held_out.choose(&mut rng).unwrap().messages[0].content;
                    retold(of, &mut rng)
                }
                false => question(&mut rng),
            };
            row(n, &asked, "billing", FIVE)
        })
        .collect();
    let prompts: Vec<&[ChatMessage]> = rows.iter().map(|row| &row.messages[..]).collect();
    let found: Vec<bool> = leaks(&prompts, &held_out)
        .iter()
        .map(Option::is_some)
        .collect();
    let (precision, recall) = share(&found, &planted);
    println!("leaks: precision {precision:.4}, recall {recall:.4}");
    assert!(
        precision >= 0.95 && recall >= 0.95,
        "{precision} and {recall}"
    );
}
