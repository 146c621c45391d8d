//! The judge `known-answer`: of two answers, which is closer to the one known to be right?
//!
//! Its scores are symmetric, so position cannot matter to it.

use retune_task::Choice;
use serde_json::Value;

/// Two answers to one prompt, as the judge sees them.
#[derive(Debug, Clone, Copy)]
pub struct BlindPair<'a> {
    pub known: &'a str,
    pub left: &'a str,
    pub right: &'a str,
}

/// One vote: the higher score wins, equal scores tie.
pub fn judge(pair: &BlindPair<'_>) -> Choice {
    let (left, right) = (
        closeness(pair.known, pair.left),
        closeness(pair.known, pair.right),
    );
    match left.total_cmp(&right) {
        std::cmp::Ordering::Greater => Choice::Left,
        std::cmp::Ordering::Less => Choice::Right,
        std::cmp::Ordering::Equal => Choice::Tie,
    }
}

/// How near an answer is to the known one, 0 to 1; 1 only where they are equal (JSON: equal as values, whatever the key order and
/// white space; text: equal but for white space).
///
/// JSON: the share of fields, of both answers together, that are there in both with the same value; an answer that is no JSON is 0.
/// Text: 1 - Levenshtein distance over words / the longer one's words.
pub fn closeness(known: &str, answer: &str) -> f64 {
    match serde_json::from_str::<Value>(known) {
        Ok(known @ (Value::Object(_) | Value::Array(_))) => serde_json::from_str::<Value>(answer)
            .map_or(0.0, |answer| equal_fields(&known, &answer)),
        _ => word_similarity(known, answer),
    }
}

/// Whether an answer says what the known one says: where `closeness` is 1, told without measuring.
pub fn is_right(known: &str, answer: &str) -> bool {
    match serde_json::from_str::<Value>(known) {
        Ok(known @ (Value::Object(_) | Value::Array(_))) => {
            serde_json::from_str::<Value>(answer).is_ok_and(|answer| answer == known)
        }
        _ => known.split_whitespace().eq(answer.split_whitespace()),
    }
}

fn equal_fields(known: &Value, answer: &Value) -> f64 {
    if known == answer {
        return 1.0;
    }
    let (mut a, mut b) = (Vec::new(), Vec::new());
    fields(known, String::new(), &mut a);
    fields(answer, String::new(), &mut b);
    let equal = a.iter().filter(|field| b.contains(field)).count();
    let all = a.len() + b.len()
        - a.iter()
            .filter(|(path, _)| b.iter().any(|(other, _)| other == path))
            .count();
    // Unequal values with equal leaves do not exist, but a share of 1 must mean equality whatever comes in.
    if all == 0 {
        0.0
    } else {
        (equal as f64 / all as f64).min(1.0 - f64::EPSILON)
    }
}

/// The leaves with their paths (JSON pointers); an empty object or array is a leaf.
fn fields<'a>(value: &'a Value, path: String, into: &mut Vec<(String, &'a Value)>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                fields(
                    value,
                    format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")),
                    into,
                );
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, value) in items.iter().enumerate() {
                fields(value, format!("{path}/{index}"), into);
            }
        }
        leaf => into.push((path, leaf)),
    }
}

fn word_similarity(known: &str, answer: &str) -> f64 {
    let (a, b): (Vec<&str>, Vec<&str>) = (
        known.split_whitespace().collect(),
        answer.split_whitespace().collect(),
    );
    let longer = a.len().max(b.len());
    if longer == 0 {
        1.0
    } else {
        1.0 - levenshtein(&a, &b) as f64 / longer as f64
    }
}

/// Wagner and Fischer's algorithm with one row kept.
fn levenshtein(a: &[&str], b: &[&str]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, word) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (other, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let above = *cell;
            let new = if word == other {
                diagonal
            } else {
                1 + diagonal.min(above).min(left)
            };
            diagonal = above;
            left = new;
            *cell = new;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::unblind;
    use proptest::prelude::*;
    use retune_task::Side;

    #[test]
    fn equal_json_is_one_whatever_the_order_and_space() {
        assert_eq!(
            closeness(
                r#"{"a":1,"b":[true,null]}"#,
                "{ \"b\": [true, null],\n\"a\": 1 }"
            ),
            1.0
        );
    }

    #[test]
    fn json_counts_the_share_of_equal_fields() {
        let known = r#"{"kind":"bill","name":"Ann","urgent":false}"#;
        assert_eq!(
            closeness(known, r#"{"kind":"bill","name":"Ann","urgent":true}"#),
            2.0 / 3.0
        );
        // A field too many and a field too few both cost.
        assert_eq!(
            closeness(
                known,
                r#"{"kind":"bill","name":"Ann","urgent":false,"more":1}"#
            ),
            3.0 / 4.0
        );
        assert_eq!(closeness(known, r#"{"kind":"bill"}"#), 1.0 / 3.0);
        assert_eq!(closeness(known, r#"{"kind":"bill","#), 0.0);
        assert_eq!(closeness(known, "bill"), 0.0);
    }

    #[test]
    fn nested_fields_count_by_their_path() {
        assert_eq!(
            closeness(r#"{"a":{"b":1,"c":2}}"#, r#"{"a":{"b":1,"c":3}}"#),
            0.5
        );
        assert_eq!(closeness(r#"{"a":[]}"#, r#"{"a":{}}"#), 0.0);
        assert!(closeness(r#"{"a/b":1}"#, r#"{"a":{"b":1}}"#) < 1.0);
    }

    #[test]
    fn text_counts_words() {
        assert_eq!(closeness("book a table", "book  a\ntable"), 1.0);
        assert_eq!(closeness("book a table", "book the table"), 1.0 - 1.0 / 3.0);
        assert_eq!(closeness("a b c d", "b c d"), 0.75);
        assert_eq!(closeness("", ""), 1.0);
        assert_eq!(closeness("word", ""), 0.0);
    }

    fn answers() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-c ]{0,12}",
            (0..3_u8, 0..3_u8).prop_map(|(a, b)| format!(r#"{{"a":{a},"b":{b}}}"#)),
            (0..3_u8).prop_map(|a| format!(r#"{{"a":{a}}}"#)),
        ]
    }

    proptest! {
        #[test]
        fn exchanged_seats_exchange_the_choice(known in answers(), one in answers(), two in answers()) {
            let there = judge(&BlindPair { known: &known, left: &one, right: &two });
            let back = judge(&BlindPair { known: &known, left: &two, right: &one });
            prop_assert_eq!(unblind(there, Side::Left), unblind(back, Side::Right));
            prop_assert_eq!(unblind(there, Side::Right), unblind(back, Side::Left));
        }

        #[test]
        fn an_answer_equal_to_the_known_one_never_loses(known in answers(), other in answers()) {
            prop_assert_eq!(closeness(&known, &known), 1.0);
            prop_assert_ne!(judge(&BlindPair { known: &known, left: &known, right: &other }), Choice::Right);
            prop_assert!((0.0..=1.0).contains(&closeness(&known, &other)));
        }

        #[test]
        fn what_is_right_is_as_close_as_can_be(known in answers(), answer in answers()) {
            prop_assert!(is_right(&known, &known));
            prop_assert_eq!(is_right(&known, &answer), closeness(&known, &answer) == 1.0);
        }

        #[test]
        fn closeness_is_symmetric_in_text(a in "[a-c ]{0,12}", b in "[a-c ]{0,12}") {
            prop_assert_eq!(closeness(&a, &b), closeness(&b, &a));
        }
    }
}
