//! Messages that state facts: sentences with slots filled in, sentences of a topic, and sentences that say yes or no.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::words::Words;

const SENTENCES: &str = include_str!("../../data/sentences.txt");
const FIELDS: &str = include_str!("../../data/fields.txt");
const TOPICS: &str = include_str!("../../data/topics.txt");
const CARRIERS: &str = include_str!("../../data/carriers.txt");

/// A fact that can be asked for: how its key is called, how it is described.
pub(crate) struct Field {
    pub(crate) slot: &'static str,
    pub(crate) quoted: bool,
    pub(crate) keys: Vec<&'static str>,
    pub(crate) says: Vec<&'static str>,
    /// Descriptions that hold only where the fact has a fixed form (a date as YYYY-MM-DD).
    pub(crate) iso: Vec<&'static str>,
    pub(crate) asks: Vec<&'static str>,
}

/// Something that is so or is not so.
pub(crate) struct Flag {
    pub(crate) keys: Vec<&'static str>,
    pub(crate) says: Vec<&'static str>,
    pub(crate) yes: Vec<&'static str>,
    pub(crate) no: Vec<&'static str>,
}

/// What a sentence can be about.
pub(crate) struct Topic {
    pub(crate) labels: Vec<&'static str>,
    /// Things that one speaks of under this topic; carriers.txt has the sentences for them.
    pub(crate) words: Vec<&'static str>,
    sentences: Vec<Sentence>,
}

/// A sentence and the slots in it.
struct Sentence {
    text: &'static str,
    slots: Vec<&'static str>,
}

impl Sentence {
    fn new(text: &'static str) -> Self {
        let slots = slots(text);
        Self { text, slots }
    }
}

/// The slot of a carrier that takes a topic's word.
const WORD: &str = "word";

/// A text and everything that is known of it.
#[derive(Default)]
pub(crate) struct Message {
    pub(crate) text: String,
    pub(crate) facts: BTreeMap<&'static str, String>,
    /// Index of the topic, where sentences of one are in it.
    pub(crate) topic: Option<usize>,
    /// Index of a flag that the text speaks of, and what it says.
    pub(crate) flags: BTreeMap<usize, bool>,
    /// Dates are in the form YYYY-MM-DD.
    pub(crate) iso: bool,
}

/// All material that messages are made from.
pub(crate) struct Material {
    pub(crate) words: Words,
    pub(crate) fields: Vec<Field>,
    pub(crate) flags: Vec<Flag>,
    pub(crate) topics: Vec<Topic>,
    sentences: Vec<Sentence>,
    carriers: Vec<Sentence>,
}

/// How much of what a message has.
pub(crate) struct Wanted {
    pub(crate) facts: std::ops::RangeInclusive<usize>,
    pub(crate) topic: Option<usize>,
    pub(crate) topic_sentences: usize,
    pub(crate) flags: usize,
}

impl Material {
    pub(crate) fn new() -> Result<Self> {
        let mut fields = Vec::new();
        let mut flags = Vec::new();
        for block in FIELDS.split("\n[").skip(1) {
            let (head, body) = block
                .split_once("]\n")
                .context("a heading of fields.txt has no end")?;
            let (kind, slot) = head
                .split_once(' ')
                .context("a heading of fields.txt has no kind")?;
            let part = |name: &str, by: &str| -> Vec<&'static str> {
                body.lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                    .map(|line| {
                        line.trim()
                            .split(by)
                            .filter(|item| !item.is_empty())
                            .collect()
                    })
                    .unwrap_or_default()
            };
            let (keys, says) = (part("keys", ", "), part("says", "; "));
            if kind == "flag" {
                flags.push(Flag {
                    keys,
                    says,
                    yes: part("yes", "; "),
                    no: part("no", "; "),
                });
            } else {
                let (iso, asks) = (part("iso", "; "), part("asks", "; "));
                fields.push(Field {
                    slot,
                    quoted: kind == "text",
                    keys,
                    says,
                    iso,
                    asks,
                });
            }
        }
        let topics = TOPICS.split("\n[").skip(1).map(|block| {
            let (labels, body) = block
                .split_once("]\n")
                .context("a heading of topics.txt has no end")?;
            let said = |line: &&str| !line.starts_with("words: ");
            let words = body.lines().find_map(|line| line.strip_prefix("words: "));
            Ok(Topic {
                labels: labels.split(", ").collect(),
                words: words.map_or_else(Vec::new, |words| words.split(", ").collect()),
                sentences: body.lines().filter(said).map(Sentence::new).collect(),
            })
        });
        Ok(Material {
            words: Words::new(),
            fields,
            flags,
            topics: topics.collect::<Result<_>>()?,
            sentences: lines(SENTENCES).map(Sentence::new).collect(),
            carriers: lines(CARRIERS).map(Sentence::new).collect(),
        })
    }

    /// The sentence with its slots filled, and the facts noted; None where one of them is stated already.
    fn filled(
        &self,
        sentence: &Sentence,
        message: &mut Message,
        rng: &mut ChaCha8Rng,
    ) -> Result<Option<String>> {
        if sentence
            .slots
            .iter()
            .any(|slot| message.facts.contains_key(slot))
        {
            return Ok(None);
        }
        let mut text = sentence.text.to_owned();
        for &slot in sentence.slots.iter().filter(|slot| **slot != WORD) {
            let value = self.words.value(slot, message.iso, rng)?;
            text = text.replace(&format!("{{{slot}}}"), &value);
            message.facts.insert(slot, value);
        }
        Ok(Some(text))
    }

    /// A sentence of the topic: one of its own, or a carrier with one of its words.
    fn topic_sentence(
        &self,
        topic: &Topic,
        message: &mut Message,
        rng: &mut ChaCha8Rng,
    ) -> Result<Option<String>> {
        let word = topic.words.choose(rng).filter(|_| rng.random_bool(0.5));
        let from = if word.is_some() {
            &self.carriers
        } else {
            &topic.sentences
        };
        let Some(sentence) = from.choose(rng) else {
            return Ok(None);
        };
        let filled = self.filled(sentence, message, rng)?;
        Ok(match word {
            Some(word) => filled.map(|text| text.replace(&format!("{{{WORD}}}"), word)),
            None => filled,
        })
    }

    pub(crate) fn message(&self, wanted: &Wanted, rng: &mut ChaCha8Rng) -> Result<Message> {
        let mut message = Message {
            iso: rng.random_bool(0.35),
            topic: wanted.topic,
            ..Message::default()
        };
        let mut parts: Vec<String> = Vec::new();
        let count = rng.random_range(wanted.facts.clone());
        while parts.len() < count {
            let Some(sentence) = self.sentences.choose(rng) else {
                break;
            };
            parts.extend(self.filled(sentence, &mut message, rng)?);
        }
        if let Some(topic) = wanted.topic.and_then(|index| self.topics.get(index)) {
            let enough = parts.len() + wanted.topic_sentences;
            while parts.len() < enough {
                let part = self.topic_sentence(topic, &mut message, rng)?;
                parts.extend(part.filter(|part| !parts.contains(part)));
            }
        }
        for _ in 0..wanted.flags {
            let index = rng.random_range(0..self.flags.len());
            let yes = rng.random_bool(0.7);
            let said = self
                .flags
                .get(index)
                .and_then(|flag| if yes { &flag.yes } else { &flag.no }.choose(rng));
            if let (Some(said), false) = (said, message.flags.contains_key(&index)) {
                message.flags.insert(index, yes);
                parts.push((*said).to_owned());
            }
        }
        parts.shuffle(rng);
        if rng.random_bool(0.3) {
            let greeting = [
                "Hello,",
                "Hi,",
                "Dear team,",
                "Hello!",
                "Good morning,",
                "Hi there,",
                "Hello everybody.",
            ];
            parts.insert(
                0,
                greeting.choose(rng).copied().unwrap_or_default().to_owned(),
            );
        }
        if rng.random_bool(0.2) {
            let farewell = [
                "Best regards",
                "Bye",
                "Kind regards.",
                "Yours",
                "Greetings",
                "Best wishes.",
                "Cheers",
            ];
            parts.push(farewell.choose(rng).copied().unwrap_or_default().to_owned());
        }
        let between = if rng.random_bool(0.08) { "\n" } else { " " };
        message.text = parts.join(between);
        if rng.random_bool(0.06) {
            message.text = message.text.to_lowercase();
            message
                .facts
                .values_mut()
                .for_each(|value| *value = value.to_lowercase());
        }
        Ok(message)
    }
}

/// The lines of a data file without its comments.
pub(crate) fn lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
}

/// The names in braces.
pub(crate) fn slots(text: &'static str) -> Vec<&'static str> {
    text.split('{')
        .skip(1)
        .filter_map(|rest| rest.split_once('}'))
        .map(|(slot, _)| slot)
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn every_fact_stands_in_its_message() {
        let material = Material::new().unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for _ in 0..500 {
            let wanted = Wanted {
                facts: 1..=4,
                topic: Some(3),
                topic_sentences: 1,
                flags: 1,
            };
            let message = material.message(&wanted, &mut rng).unwrap();
            assert!(
                message
                    .facts
                    .values()
                    .all(|value| message.text.contains(value)),
                "{}",
                message.text
            );
            assert!(!message.text.contains('{'), "{}", message.text);
        }
    }

    #[test]
    fn every_slot_has_a_field_and_every_field_its_words() {
        let material = Material::new().unwrap();
        let of_topics = material.topics.iter().flat_map(|topic| &topic.sentences);
        let all = material.sentences.iter().chain(of_topics);
        for slot in all.chain(&material.carriers).flat_map(|s| &s.slots) {
            assert!(
                *slot == WORD || material.fields.iter().any(|field| field.slot == *slot),
                "{slot}"
            );
        }
        assert!(material.carriers.iter().all(|s| s.slots.contains(&WORD)));
        assert!(
            material
                .fields
                .iter()
                .all(|f| !f.keys.is_empty() && !f.says.is_empty() && !f.asks.is_empty())
        );
        assert!(
            material
                .flags
                .iter()
                .all(|f| !f.keys.is_empty() && !f.says.is_empty() && !f.yes.is_empty())
        );
        assert!(
            material
                .topics
                .iter()
                .all(|t| t.labels.len() >= 3 && t.sentences.len() >= 5)
        );
        assert!(material.flags.len() >= 10 && material.topics.len() >= 25);
    }
}
