//! The job "extract fields into JSON": a description of an object in many wordings, a message, the object on one line.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, to_string};

use super::corpus::Sample;
use super::message::{Material, Message, Wanted};
use super::wording::prompt;
use super::words::{digits, invented};

/// One key of an object: how the prompt speaks of it and what the right value is.
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) says: String,
    /// The kind of value, in the words that come behind a name: `text or null`, `true or false`.
    pub(crate) kind: Kind,
    pub(crate) value: Value,
}

pub(crate) enum Kind {
    Text,
    Number,
    Flag,
    /// The values to choose from, whether null is one of them.
    Choice(Vec<String>, bool),
}

const ENOUGH: usize = 5;
const CHOICE_KEYS: [&str; 14] = [
    "topic",
    "category",
    "team",
    "department",
    "kind",
    "type",
    "class",
    "label",
    "area",
    "about",
    "group",
    "queue",
    "desk",
    "theme",
];
const CHOICE_SAYS: [&str; 12] = [
    "what the message is about",
    "the team that should answer",
    "the department in charge",
    "the category",
    "who should take care of it",
    "the topic of the message",
    "where the message belongs",
    "the kind of message",
    "the desk that it goes to",
    "the group of people who can help",
    "which of them fits",
    "the subject",
];

/// One prompt, its message and the right object.
pub(crate) fn sample(material: &Material, rng: &mut ChaCha8Rng) -> Result<Sample> {
    let topic = rng
        .random_bool(0.65)
        .then(|| rng.random_range(0..material.topics.len()));
    let wanted = Wanted {
        facts: if topic.is_some() { 0..=4 } else { 1..=5 },
        topic,
        topic_sentences: *[1, 1, 1, 2].choose(rng).unwrap_or(&1),
        flags: *[0, 0, 1, 1, 2].choose(rng).unwrap_or(&0),
    };
    let message = material.message(&wanted, rng)?;
    let count = *[1, 2, 3, 3, 4, 4, 4, 5, 5, 5].choose(rng).unwrap_or(&3);
    let keys = keys(material, &message, count.min(ENOUGH), rng)?;
    let answer = keys
        .iter()
        .map(|key| {
            Ok(format!(
                "{}: {}",
                to_string(&key.name)?,
                to_string(&key.value)?
            ))
        })
        .collect::<Result<Vec<_>>>()?
        .join(", ");
    Ok(Sample {
        system: prompt(&keys, rng),
        user: message.text,
        answer: format!("{{{answer}}}"),
    })
}

fn keys(
    material: &Material,
    message: &Message,
    count: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Key>> {
    let mut keys = Vec::new();
    let mut names = BTreeSet::new();
    let mut slots = BTreeSet::new();
    if message.topic.is_some() && rng.random_bool(0.7) {
        keys.extend(topic_key(material, message, rng));
    }
    let mut tries = 0;
    while keys.len() < count && tries < 100 {
        tries += 1;
        let key = if rng.random_bool(0.3) {
            let spoken: Vec<usize> = message.flags.keys().copied().collect();
            let index = match spoken.choose(rng) {
                Some(&index) if rng.random_bool(0.6) => index,
                _ => rng.random_range(0..material.flags.len()),
            };
            if !slots.insert(format!("flag {index}")) {
                continue;
            }
            flag_key(material, message, index, rng)
        } else {
            let said: Vec<&&str> = message.facts.keys().collect();
            let slot = match said.choose(rng) {
                Some(slot) if rng.random_bool(0.7) => **slot,
                _ => material.fields.choose(rng).map_or("", |field| field.slot),
            };
            if !slots.insert(slot.to_owned()) {
                continue;
            }
            fact_key(material, message, slot, rng)
        };
        keys.extend(key);
    }
    keys.shuffle(rng);
    keys.retain_mut(|key| {
        if rng.random_bool(0.06) {
            key.name = invented(rng, false);
        }
        names.insert(key.name.clone())
    });
    // The set of keys that the built-in demo task has is nobody's business here.
    let demo = ["team", "urgent", "product", "order"];
    if demo.iter().all(|name| names.contains(*name)) {
        keys.pop();
    }
    Ok(keys)
}

pub(crate) fn pick(list: &[&str], rng: &mut ChaCha8Rng) -> String {
    list.choose(rng)
        .map_or_else(String::new, |word| (*word).to_owned())
}

/// The key for the topic: a choice between labels of several topics, one of them right.
fn topic_key(material: &Material, message: &Message, rng: &mut ChaCha8Rng) -> Option<Key> {
    let right = message.topic?;
    let (values, meanings) = labels(material, right, rng.random_range(2..=6), rng);
    let value = values.get(&right)?.clone();
    let mut order: Vec<String> = values.into_values().collect();
    order.shuffle(rng);
    let mut says = pick(&CHOICE_SAYS, rng);
    // Sometimes the labels mean nothing by themselves, and the prompt says what they stand for.
    if !meanings.is_empty() {
        let word = pick(&["is", "is for", "means", "for"], rng);
        let list: Vec<String> = order
            .iter()
            .map(|label| format!("{label} {word} {}", text_of(&meanings, label)))
            .collect();
        says = format!("{says} ({})", list.join(", "));
    }
    let kind = Kind::Choice(order, false);
    Some(Key {
        name: pick(&CHOICE_KEYS, rng),
        says,
        kind,
        value: value.into(),
    })
}

fn text_of<'a>(meanings: &'a BTreeMap<String, String>, label: &str) -> &'a str {
    meanings.get(label).map_or("", String::as_str)
}

/// A label for `right` and for others up to `count` topics, by topic; and what they mean where they are invented.
pub(crate) fn labels(
    material: &Material,
    right: usize,
    count: usize,
    rng: &mut ChaCha8Rng,
) -> (BTreeMap<usize, String>, BTreeMap<String, String>) {
    let mut topics: Vec<usize> = (0..material.topics.len())
        .filter(|topic| *topic != right)
        .collect();
    // Half of the lists are of a shop's departments, which come first in the data.
    let near = rng.random_bool(0.5);
    if near {
        topics.retain(|topic| *topic < 6);
    }
    topics.shuffle(rng);
    topics.truncate(count.saturating_sub(1));
    topics.push(right);
    // Labels that mean nothing are explained; others sometimes.
    let coded = rng.random_bool(0.08);
    let explained = coded || rng.random_bool(0.35);
    let mut values = BTreeMap::new();
    let mut meanings = BTreeMap::new();
    for topic in topics {
        let Some(words) = material.topics.get(topic).map(|topic| &topic.labels) else {
            continue;
        };
        let mut words: Vec<&str> = words.choose_multiple(rng, 3).copied().collect();
        let label = if coded {
            invented(rng, false)
        } else {
            words.pop().unwrap_or_default().to_owned()
        };
        if values.values().any(|other| *other == label) {
            continue;
        }
        if explained {
            meanings.insert(
                label.clone(),
                words
                    .get(..rng.random_range(1..=2))
                    .unwrap_or_default()
                    .join(" and "),
            );
        }
        values.insert(topic, label);
    }
    (values, meanings)
}

fn flag_key(
    material: &Material,
    message: &Message,
    index: usize,
    rng: &mut ChaCha8Rng,
) -> Option<Key> {
    let flag = material.flags.get(index)?;
    let value = message.flags.get(&index).copied().unwrap_or(false);
    Some(Key {
        name: pick(&flag.keys, rng),
        says: pick(&flag.says, rng),
        kind: Kind::Flag,
        value: value.into(),
    })
}

fn fact_key(
    material: &Material,
    message: &Message,
    slot: &str,
    rng: &mut ChaCha8Rng,
) -> Option<Key> {
    let field = material.fields.iter().find(|field| field.slot == slot)?;
    let value = message.facts.get(slot);
    let mut says = if message.iso && !field.iso.is_empty() && rng.random_bool(0.6) {
        pick(&field.iso, rng)
    } else {
        pick(&field.says, rng)
    };
    let name = pick(&field.keys, rng);
    if !field.quoted {
        let value = value
            .and_then(|text| text.parse::<u64>().ok())
            .map_or(Value::Null, Value::from);
        return Some(Key {
            name,
            says,
            kind: Kind::Number,
            value,
        });
    }
    // Where a value is a word of a short list, the prompt can name what to choose from.
    let list = material.words.list(slot);
    if list.len() <= 20 && !list.is_empty() && rng.random_bool(0.5) {
        let count = rng.random_range(2..6);
        let mut values: Vec<String> = list
            .choose_multiple(rng, count)
            .map(|word| (*word).to_owned())
            .collect();
        if let Some(value) = value.filter(|value| !values.contains(value)) {
            values.push(value.clone());
        }
        values.shuffle(rng);
        let value = value.map_or(Value::Null, |text| text.as_str().into());
        return Some(Key {
            name,
            says,
            kind: Kind::Choice(values, true),
            value,
        });
    }
    // A number's form is told where it has one.
    if slot == "code" && rng.random_bool(0.3) {
        let plain = value.is_none_or(|value| value.chars().all(|c| c.is_ascii_digit()));
        let count = value.map_or_else(|| rng.random_range(4..9), |value| value.len());
        if plain {
            says = match rng.random_range(0..3) {
                0 => format!("{says}, {count} digits"),
                1 => format!("{says} ({count} digits)"),
                _ => format!("{says}, for example {}", digits(count, rng)),
            };
        }
    }
    let value = value.map_or(Value::Null, |text| text.as_str().into());
    Some(Key {
        name,
        says,
        kind: Kind::Text,
        value,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn answers_are_objects_whose_keys_the_prompt_names() {
        let material = Material::new().unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut copied = 0;
        for _ in 0..500 {
            let sample = sample(&material, &mut rng).unwrap();
            let object: serde_json::Map<String, Value> =
                serde_json::from_str(&sample.answer).unwrap();
            assert!((1..=ENOUGH).contains(&object.len()));
            for (key, value) in &object {
                assert!(sample.system.contains(key), "{key}: {}", sample.system);
                if let Some(text) = value.as_str() {
                    assert!(
                        sample.user.contains(text) || sample.system.contains(text),
                        "{}",
                        sample.answer
                    );
                    copied += usize::from(sample.user.contains(text));
                }
            }
        }
        assert!(copied > 300);
    }
}
