//! From whom the trouble comes: parts of the traffic that have a larger, or smaller, share of it than of the usual.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Case, Conversation, FEWEST, NOTABLE, Slice, shares};

/// So many are told.
const TOLD: usize = 10;
/// Of a value that an app sends, so much is told.
const LONGEST: usize = 64;

/// The slices, those first that differ most.
pub(super) fn moved(usual: &[Conversation], trouble: &[Conversation]) -> Vec<Slice> {
    let mut counts: BTreeMap<(String, String), (u32, u32)> = BTreeMap::new();
    for (group, is_trouble) in [(usual, false), (trouble, true)] {
        for slice in group.iter().flat_map(|one| of(&one.first, &one.text)) {
            let count = counts.entry(slice).or_default();
            match is_trouble {
                true => count.1 += 1,
                false => count.0 += 1,
            }
        }
    }
    let sizes = (usual.len() as u32, trouble.len() as u32);
    let told = counts.into_iter().filter_map(|((by, value), count)| {
        let shares = shares(count, sizes);
        let is_told = count.0 + count.1 >= FEWEST && shares.z.abs() >= NOTABLE;
        is_told.then_some(Slice { by, value, shares })
    });
    let mut told: Vec<Slice> = told.collect();
    told.sort_by(|a, b| b.shares.z.abs().total_cmp(&a.shares.z.abs()));
    told.truncate(TOLD);
    told
}

/// What a conversation belongs to.
fn of(case: &Case, text: &str) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    let mut add = |by: &str, value: &str| found.insert((by.to_owned(), value.to_owned()));
    add("api_key", case.api_key_id.as_deref().unwrap_or("none"));
    add("language", language(text));
    add("length", length(text.chars().count()));
    if let Some(Value::Object(metadata)) = &case.metadata {
        for (name, value) in metadata {
            let value = match value {
                Value::String(text) => text.clone(),
                Value::Bool(_) | Value::Number(_) => value.to_string(),
                _ => continue,
            };
            let value: String = value.chars().take(LONGEST).collect();
            add(&format!("metadata.{name}"), &value);
        }
    }
    found
}

/// ISO 639-3, or `unsure`: a guess, by which letters follow each other.
fn language(text: &str) -> &'static str {
    let found = whatlang::detect(text).filter(whatlang::Info::is_reliable);
    found.map_or("unsure", |found| found.lang().code())
}

fn length(characters: usize) -> &'static str {
    match characters {
        0..50 => "below 50 characters",
        50..200 => "50 to 199 characters",
        200..1_000 => "200 to 999 characters",
        _ => "1000 characters and more",
    }
}

#[cfg(test)]
mod tests {
    use super::super::explain;
    use super::super::tests::case;
    use super::*;

    #[test]
    fn the_app_and_the_language_of_the_trouble_are_named() {
        let english = "I would like to know where the parcel is that I ordered last week";
        let german = "Ich möchte gerne wissen, wo das Paket geblieben ist, das ich letzte Woche bestellt habe";
        let of = |n: usize, prompt: &str, app: &str| {
            let mut one: Case = case(n, prompt);
            one.metadata = Some(serde_json::json!({"app": app, "nested": {"a": 1}}));
            one
        };
        let usual: Vec<Case> = (0..200).map(|n| of(n, english, "web")).collect();
        let trouble: Vec<Case> = (500..600)
            .map(|n| of(n, if n % 2 == 0 { german } else { english }, "kiosk"))
            .collect();
        let why = explain(&usual, &trouble);
        let told: Vec<String> = why
            .slices
            .iter()
            .map(|s| format!("{}={}", s.by, s.value))
            .collect();
        for expected in ["metadata.app=kiosk", "metadata.app=web", "language=deu"] {
            assert!(told.iter().any(|told| told == expected), "{told:?}");
        }
        assert!(
            !told
                .iter()
                .any(|told| told.contains("nested") || told.contains("api_key")),
            "{told:?}"
        );
    }
}
