//! Raters who know the right answer, and are people all the same: some skip, some slip.
//!
//! What a rater says of message number `n` follows from the seed, `n` and the answer alone, so that a run repeats.

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// Share of answers that somebody rates at all.
const RATED: f64 = 0.95;
/// Share of the wrong answers whose rater also writes the right one.
const CORRECTED: f64 = 0.75;
/// Share of ratings given by accident: any of 1 to 5.
const WRONG_RATING: f64 = 0.03;
/// Share of corrections that belong to another message.
const WRONG_CORRECTION: f64 = 0.02;

/// What a rater says of one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opinion {
    /// 1 to 5.
    pub(crate) rating: u8,
    pub(crate) correction: Option<String>,
}

/// Whether an answer says exactly what the right one says; white space and the order of keys don't matter.
pub(crate) fn exact(answer: &str, right: &str) -> bool {
    let read = |text: &str| serde_json::from_str::<Value>(text).ok();
    match (read(answer), read(right)) {
        (Some(answer), Some(right)) => answer == right,
        _ => answer.trim() == right.trim(),
    }
}

/// The opinion on message number `index`, or None where nobody rated it. `other` is the right answer of another
/// message, which is what a rater who mixes things up writes.
pub(crate) fn opinion(
    seed: u64,
    index: u64,
    answer: &str,
    right: &str,
    other: &str,
) -> Option<Opinion> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(index);
    // Every draw is made whether it is needed or not: the next one must not depend on the answer.
    let rated = rng.random_bool(RATED);
    let kind = rng.random_bool(0.5);
    let slip = rng
        .random_bool(WRONG_RATING)
        .then(|| rng.random_range(1..=5));
    let corrects = rng.random_bool(CORRECTED);
    let mixes_up = rng.random_bool(WRONG_CORRECTION);
    let deserved = match agreement(answer, right) {
        Agreement::Full => 5,
        Agreement::Most => 3 + u8::from(kind),
        Agreement::Some => 3,
        Agreement::None => 1 + u8::from(kind),
    };
    let correction =
        (deserved < 5 && corrects).then(|| if mixes_up { other } else { right }.to_owned());
    rated.then(|| Opinion {
        rating: slip.unwrap_or(deserved),
        correction,
    })
}

/// What a rater sends whose table has slipped by a row: the right answer to another message.
pub(crate) fn slipped(other: &str) -> Opinion {
    Opinion {
        rating: 1,
        correction: Some(other.to_owned()),
    }
}

#[derive(Debug, PartialEq)]
enum Agreement {
    Full,
    /// One field differs.
    Most,
    /// At least one field is right.
    Some,
    /// Nothing right, or nothing that could be read.
    None,
}

fn agreement(answer: &str, right: &str) -> Agreement {
    if exact(answer, right) {
        return Agreement::Full;
    }
    let fields = |text: &str| serde_json::from_str::<serde_json::Map<String, Value>>(text).ok();
    let (Some(answer), Some(right)) = (fields(answer), fields(right)) else {
        return Agreement::None;
    };
    let same = right
        .iter()
        .filter(|(key, value)| answer.get(*key) == Some(value))
        .count();
    let extra = answer
        .keys()
        .filter(|key| !right.contains_key(*key))
        .count();
    match (same, right.len() - same + extra) {
        (0, _) => Agreement::None,
        (_, 1) => Agreement::Most,
        _ => Agreement::Some,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: &str = r#"{"kind":"refund","order":"17","urgent":true}"#;
    const OTHER: &str = r#"{"kind":"delivery","order":null,"urgent":false}"#;

    #[test]
    fn agreement_counts_fields() {
        assert_eq!(
            agreement(
                r#"{ "order": "17", "urgent": true, "kind": "refund" }"#,
                RIGHT
            ),
            Agreement::Full
        );
        assert_eq!(
            agreement(r#"{"kind":"refund","order":"17","urgent":false}"#, RIGHT),
            Agreement::Most
        );
        assert_eq!(
            agreement(
                r#"{"kind":"refund","order":"17","urgent":true,"x":1}"#,
                RIGHT
            ),
            Agreement::Most
        );
        assert_eq!(
            agreement(r#"{"kind":"refund","order":"18","urgent":false}"#, RIGHT),
            Agreement::Some
        );
        assert_eq!(agreement(OTHER, RIGHT), Agreement::None);
        assert_eq!(
            agreement(r#"{"kind":"refund","order":"#, RIGHT),
            Agreement::None
        );
    }

    #[test]
    fn most_raters_are_right_and_a_few_are_not() {
        let n = 4000;
        let of_right: Vec<_> = (0..n)
            .filter_map(|i| opinion(7, i, RIGHT, RIGHT, OTHER))
            .collect();
        let share = |count: usize, of: usize| count as f64 / of as f64;
        assert!((share(of_right.len(), n as usize) - RATED).abs() < 0.02);
        assert!(of_right.iter().all(|o| o.correction.is_none()));
        let slips = of_right.iter().filter(|o| o.rating != 5).count();
        // A slip lands on 5 once in five.
        assert!((share(slips, of_right.len()) - WRONG_RATING * 0.8).abs() < 0.01);

        let of_wrong: Vec<_> = (0..n)
            .filter_map(|i| opinion(7, i, "no idea", RIGHT, OTHER))
            .collect();
        let corrections: Vec<_> = of_wrong
            .iter()
            .filter_map(|o| o.correction.as_deref())
            .collect();
        assert!((share(corrections.len(), of_wrong.len()) - CORRECTED).abs() < 0.03);
        let wrong = corrections.iter().filter(|c| **c == OTHER).count();
        assert!((share(wrong, corrections.len()) - WRONG_CORRECTION).abs() < 0.01);
        assert!(corrections.iter().all(|c| *c == OTHER || *c == RIGHT));
    }

    #[test]
    fn an_opinion_depends_on_seed_and_number_alone() {
        let all = |seed| {
            (0..200)
                .map(|i| opinion(seed, i, "{}", RIGHT, OTHER))
                .collect::<Vec<_>>()
        };
        assert_eq!(all(7), all(7));
        assert_ne!(all(7), all(8));
        let backwards: Vec<_> = (0..200)
            .rev()
            .map(|i| opinion(7, i, "{}", RIGHT, OTHER))
            .collect();
        assert!(backwards.into_iter().rev().eq(all(7)));
    }
}
