//! What an answer is like, whatever it says: in which way it breaks its format, how long it is, whether it is empty, refuses, or repeats
//! itself. Counted in a reference and in live traffic by the same code, so that the two can be compared.

use std::collections::HashSet;

/// The ways of breaking a format: each is watched by itself, beside all of them together.
pub const FAILURE_CLASSES: [&str; 6] = [
    "not_json", "schema", "regex", "template", "length", TRUNCATED,
];
const TRUNCATED: &str = "truncated";

/// Words in which repetition is looked for.
const SEQUENCE: usize = 3;
/// Shorter answers, in words, repeat nothing.
const SHORTEST: usize = 12;
/// Where a refusal begins, in characters from the start.
const BEGINNING: usize = 120;
/// What refusals of well-known models begin with, in lower case.
const REFUSALS: [&str; 16] = [
    "i'm sorry, but",
    "i am sorry, but",
    "i can't help",
    "i cannot help",
    "i can't assist",
    "i cannot assist",
    "i'm unable to",
    "i am unable to",
    "i'm not able to",
    "i am not able to",
    "i can't provide",
    "i cannot provide",
    "as an ai",
    "i must decline",
    "es tut mir leid, aber",
    "je suis désolé, mais",
];

/// The class of a failure, out of [`FAILURE_CLASSES`], by its reason ([`crate::Check::Invalid`]). An answer that was cut off at its limit of
/// tokens broke its format by that, whatever the check found.
pub fn failure_class(reason: &str, was_cut_off: bool) -> &'static str {
    match reason {
        _ if was_cut_off => TRUNCATED,
        "not_json" => "not_json",
        "regex" => "regex",
        "template" => "template",
        "too_short" | "too_long" => "length",
        _ => "schema",
    }
}

/// What an answer is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// Its length in characters.
    pub characters: u64,
    /// Nothing but white space.
    pub is_empty: bool,
    /// It begins as refusals do.
    pub refuses: bool,
    /// Less than half of its sequences of three words stand in it once.
    pub repeats: bool,
}

impl Traits {
    /// Of an answer.
    pub fn of(answer: &str) -> Self {
        let beginning: String = answer.trim_start().chars().take(BEGINNING).collect();
        let beginning = beginning.replace('\u{2019}', "'").to_lowercase();
        Self {
            characters: answer.chars().count() as u64,
            is_empty: answer.trim().is_empty(),
            refuses: REFUSALS.iter().any(|refusal| beginning.contains(refusal)),
            repeats: repeats(answer),
        }
    }
}

fn repeats(answer: &str) -> bool {
    let words: Vec<&str> = answer.split_whitespace().collect();
    if words.len() < SHORTEST {
        return false;
    }
    let sequences = words.windows(SEQUENCE);
    let all = sequences.len();
    let different: HashSet<&[&str]> = sequences.collect();
    different.len() * 2 < all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_class() {
        for (reason, expected) in [
            ("not_json", "not_json"),
            ("required", "schema"),
            ("pattern", "schema"),
            ("unknown", "schema"),
            ("regex", "regex"),
            ("template", "template"),
            ("too_short", "length"),
            ("too_long", "length"),
        ] {
            assert_eq!(failure_class(reason, false), expected);
            assert_eq!(failure_class(reason, true), "truncated");
            assert!(FAILURE_CLASSES.contains(&expected));
        }
    }

    #[test]
    fn traits_are_what_people_would_say() {
        let loop_of = "the order is late and ".repeat(20);
        for (answer, empty, refuses, repeats) in [
            ("", true, false, false),
            (" \n\t", true, false, false),
            ("{\"team\": \"billing\"}", false, false, false),
            ("I’m sorry, but I can’t help with that.", false, true, false),
            ("Of course. As an AI I have no opinion.", false, true, false),
            ("Your parcel is on its way.", false, false, false),
            (loop_of.as_str(), false, false, true),
            (
                "one two three four five six seven eight nine ten eleven twelve thirteen",
                false,
                false,
                false,
            ),
        ] {
            let traits = Traits::of(answer);
            assert_eq!(
                (traits.is_empty, traits.refuses, traits.repeats),
                (empty, refuses, repeats),
                "{answer}"
            );
        }
        assert_eq!(Traits::of("naïve").characters, 5);
    }
}
