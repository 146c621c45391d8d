//! Rows that ask nearly the same: said twice, or answered in ways that cannot both be right.
//!
//! Rows are taken best known first: corrections, then ratings from the highest, of those alike the newest. Each joins the first group
//! whose question is near its own; of each group one row stays. Where its answers disagree, the one that is known better wins (a
//! correction beats a rating), or else the one that at least twice as many rows give; where neither is so, nobody knows what is right, and none stays.
//!
//! Questions that differ in a number ask different things, however like they are; so do those whose answers differ by words that each
//! repeats from its own question alone, as an extracted name does.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use retune_task::ChatMessage;

use super::near::{self, Index, Shingles, plain};
use crate::dataset::{KnownBy, Row};

/// Questions are near, and answers alike, from this similarity on.
pub(crate) const NEAR: f64 = 0.8;
/// Questions must be nearer than that for their answers to contradict each other.
const SAME: f64 = 0.9;

/// Why a row is taken out, with the row (its place) that it is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Twin {
    /// Says what the other says.
    Duplicate(usize),
    /// Says otherwise, and the other is known better.
    Overruled(usize),
    /// Says otherwise, and nobody knows who is right.
    Contradiction(usize),
}

/// For each row whether it stays (`None`), or why it does not.
pub(super) fn twins(rows: &[Row]) -> Vec<Option<Twin>> {
    // Most rows are like no other, and of a million the texts that are looked through would take a gigabyte.
    let bands = rows.iter().map(|row| Question::of(&row.messages).bands());
    let met = near::met(&bands.collect::<Vec<_>>());
    let mut order: Vec<usize> = (0..rows.len()).filter(|place| met[*place]).collect();
    let known = |place: &usize| {
        let row = &rows[*place];
        (rank(row), row.ts, row.request_id.as_str())
    };
    order.sort_by(|a, b| known(b).cmp(&known(a)));
    let (mut index, mut groups) = (Index::default(), Vec::<Group>::new());
    for place in order {
        let text = Text::of(&rows[place]);
        let near = index.near(&text.asked, text.numbers, NEAR);
        let joined = near.into_iter().any(|group| {
            let group: &mut Group = &mut groups[group];
            group.take(place, &text, rows)
        });
        if !joined {
            index.add(text.asked, text.numbers);
            groups.push(Group(vec![vec![place]]));
        }
    }
    let mut taken = vec![None; rows.len()];
    for group in groups {
        group.settle(rows, &mut taken);
    }
    taken
}

/// How well an answer is known.
fn rank(row: &Row) -> u8 {
    match row.known_by {
        KnownBy::Correction => u8::MAX,
        KnownBy::Rating(rating) => rating,
        KnownBy::Synthetic => 0,
    }
}

/// Whose word goes before whose, however many say otherwise: a person's correction, what people rated well, a stronger model's.
fn standing(row: &Row) -> u8 {
    match row.known_by {
        KnownBy::Correction => 2,
        KnownBy::Rating(_) => 1,
        KnownBy::Synthetic => 0,
    }
}

/// What somebody asks.
struct Question {
    plain: String,
    asked: Shingles,
    /// A digest of its words with a digit, in order.
    numbers: u64,
}

impl Question {
    fn of(messages: &[ChatMessage]) -> Self {
        let asked: Vec<&str> = messages
            .iter()
            .filter(|message| message.role != "system")
            .map(|message| message.content.as_str())
            .collect();
        let plain = plain(&asked.join("\n"));
        let numbers = plain.split(' ').filter(|w| w.contains(char::is_numeric));
        let mut digest = DefaultHasher::new();
        numbers.for_each(|number| number.hash(&mut digest));
        Self {
            numbers: digest.finish(),
            asked: Shingles::of(&plain),
            plain,
        }
    }

    fn bands(&self) -> near::Bands {
        self.asked.bands(self.numbers)
    }
}

struct Text {
    asked: Shingles,
    numbers: u64,
    words: HashSet<String>,
    answer: Shingles,
    answer_words: HashSet<String>,
}

impl Text {
    fn of(row: &Row) -> Self {
        let (question, answer) = (Question::of(&row.messages), plain(&row.answer));
        let words = |text: &str| text.split(' ').map(str::to_owned).collect();
        Self {
            numbers: question.numbers,
            words: words(&question.plain),
            asked: question.asked,
            answer: Shingles::of(&answer),
            answer_words: words(&answer),
        }
    }
}

enum Relation {
    Same,
    Contradicts,
    Other,
}

fn relation(a: &Text, b: &Text) -> Relation {
    if a.numbers != b.numbers {
        return Relation::Other;
    }
    if a.answer == b.answer || a.answer.jaccard(&b.answer) >= NEAR && !copies(a, b) {
        return Relation::Same;
    }
    if copies(a, b) || a.asked.jaccard(&b.asked) < SAME {
        return Relation::Other;
    }
    Relation::Contradicts
}

/// Whether two answers differ by words that each repeats from its own question, and that the other question has not.
fn copies(a: &Text, b: &Text) -> bool {
    let own = |a: &Text, b: &Text| {
        let mut differs = a.answer_words.difference(&b.answer_words).peekable();
        differs.peek().is_some()
            && differs.all(|word| a.words.contains(word) && !b.words.contains(word))
    };
    own(a, b) && own(b, a)
}

/// Rows that ask the same, by what they answer; each part and the group best known first.
struct Group(Vec<Vec<usize>>);

impl Group {
    /// Takes a row in, if its question is the same.
    fn take(&mut self, place: usize, text: &Text, rows: &[Row]) -> bool {
        let mut contradicts = false;
        for part in &mut self.0 {
            match relation(&Text::of(&rows[part[0]]), text) {
                Relation::Same => {
                    part.push(place);
                    return true;
                }
                Relation::Contradicts => contradicts = true,
                Relation::Other => return false,
            }
        }
        if contradicts {
            self.0.push(vec![place]);
        }
        contradicts
    }

    fn settle(mut self, rows: &[Row], taken: &mut [Option<Twin>]) {
        // A correction outweighs any number of ratings; among equals the number counts.
        let weight = |part: &Vec<usize>| {
            let best = standing(&rows[part[0]]);
            let as_well = part.iter().filter(|place| standing(&rows[**place]) == best);
            (best, as_well.count())
        };
        self.0.sort_by_key(|part| std::cmp::Reverse(weight(part)));
        let (Some(first), second) = (self.0.first(), self.0.get(1)) else {
            return;
        };
        let wins = second.is_none_or(|second| {
            let (a, b) = (weight(first), weight(second));
            a.0 > b.0 || a.1 >= 2 * b.1
        });
        let best = first[0];
        for (number, part) in self.0.iter().enumerate() {
            for place in part {
                taken[*place] = match (wins, number) {
                    (true, 0) if *place == best => None,
                    (true, 0) => Some(Twin::Duplicate(best)),
                    (true, _) => Some(Twin::Overruled(best)),
                    (false, 0) => Some(Twin::Contradiction(second.map_or(best, |s| s[0]))),
                    (false, _) => Some(Twin::Contradiction(best)),
                };
            }
        }
    }
}

/// For each prompt, a row (its place) of `held_out` that asks nearly the same; what was near it would be examined on what it has learned.
pub(crate) fn leaks(prompts: &[&[ChatMessage]], held_out: &[Row]) -> Vec<Option<usize>> {
    let mut index = Index::default();
    for row in held_out {
        let question = Question::of(&row.messages);
        index.add(question.asked, question.numbers);
    }
    let leak = |prompt: &&[ChatMessage]| {
        let question = Question::of(prompt);
        let near = index.near(&question.asked, question.numbers, NEAR);
        near.first().copied()
    };
    prompts.iter().map(leak).collect()
}

#[cfg(test)]
#[path = "twins_tests.rs"]
mod tests;
