//! The corpus' smaller jobs: fill in a template, answer a question, talk a little.

use std::collections::BTreeMap;

use anyhow::Result;
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::corpus::Sample;
use super::message::{Material, Wanted, lines, slots};
use super::words::{MONTHS, capitalised};

const TEMPLATES: &str = include_str!("../../data/templates.txt");
const TALK: &str = include_str!("../../data/talk.txt");

pub(crate) fn pick<'a>(list: &[&'a str], rng: &mut ChaCha8Rng) -> &'a str {
    list.choose(rng).copied().unwrap_or_default()
}

/// An instruction and a text, as system and user message or, now and then, both in the user's.
pub(crate) fn placed(
    instruction: String,
    text: String,
    answer: String,
    rng: &mut ChaCha8Rng,
) -> Sample {
    match rng.random_range(0..10) {
        0 => Sample {
            system: String::new(),
            user: format!("{instruction}\n\n{text}"),
            answer,
        },
        1 => Sample {
            system: String::new(),
            user: format!("{instruction} Text: {text}"),
            answer,
        },
        _ => Sample {
            system: instruction,
            user: text,
            answer,
        },
    }
}

/// A template with names in brackets, and what to put there.
pub(crate) fn template(material: &Material, rng: &mut ChaCha8Rng) -> Result<Sample> {
    const INTRO: [&str; 8] = [
        "Fill in the template.",
        "Fill in this template with what the user gives.",
        "Complete the text.",
        "Put the values into the template.",
        "Replace the names in brackets.",
        "Write the text with these values.",
        "Fill the gaps of the template.",
        "Use the values and write the finished text.",
    ];
    let all: Vec<&'static str> = lines(TEMPLATES).collect();
    let template = pick(&all, rng);
    let (open, close) = *[("{", "}"), ("{", "}"), ("[", "]"), ("<", ">")]
        .choose(rng)
        .unwrap_or(&("{", "}"));
    let mut pattern = template.to_owned();
    let mut answer = template.to_owned();
    let mut values = Vec::new();
    let iso = rng.random_bool(0.3);
    for slot in slots(
        all.iter()
            .find(|line| **line == template)
            .copied()
            .unwrap_or_default(),
    ) {
        let name = match material.fields.iter().find(|field| field.slot == slot) {
            Some(field) => pick(&field.keys, rng),
            None => slot,
        };
        let value = material.words.value(slot, iso, rng)?;
        pattern = pattern.replace(&format!("{{{slot}}}"), &format!("{open}{name}{close}"));
        answer = answer.replace(&format!("{{{slot}}}"), &value);
        values.push((name, value));
    }
    // Two slots of one name would be a riddle.
    let names: BTreeMap<&str, &String> =
        values.iter().map(|(name, value)| (*name, value)).collect();
    if names.len() < values.len() {
        return self::template(material, rng);
    }
    values.shuffle(rng);
    let (between, each) = *[("\n", ": "), ("; ", ": "), (", ", " = "), ("\n", " = ")]
        .choose(rng)
        .unwrap_or(&("\n", ": "));
    let given = values
        .iter()
        .map(|(name, value)| format!("{name}{each}{value}"))
        .collect::<Vec<_>>()
        .join(between);
    let head = pick(&["", "Template: ", "The template: "], rng);
    Ok(placed(
        format!("{}\n{head}{pattern}", pick(&INTRO, rng)),
        given,
        answer,
        rng,
    ))
}

/// A short question about a text, or about months, days and small numbers.
pub(crate) fn question(material: &Material, rng: &mut ChaCha8Rng) -> Result<Sample> {
    const INTRO: [&str; 8] = [
        "Answer the question about the text shortly.",
        "Read the text and answer the question.",
        "Answer in a few words.",
        "Answer from the text.",
        "You answer questions about a text.",
        "Give a short answer.",
        "Answer with words of the text.",
        "",
    ];
    if rng.random_bool(0.3) {
        return Ok(knowledge(material, rng));
    }
    let topic = rng
        .random_bool(0.3)
        .then(|| rng.random_range(0..material.topics.len()));
    let wanted = Wanted {
        facts: 1..=4,
        topic,
        topic_sentences: 1,
        flags: usize::from(rng.random_bool(0.3)),
    };
    let message = material.message(&wanted, rng)?;
    let said: Vec<&&str> = message.facts.keys().collect();
    let slot = match said.choose(rng) {
        Some(slot) if rng.random_bool(0.85) => **slot,
        _ => material.fields.choose(rng).map_or("", |field| field.slot),
    };
    let field = material.fields.iter().find(|field| field.slot == slot);
    let question = pick(field.map_or(&[], |field| field.asks.as_slice()), rng);
    let answer = message
        .facts
        .get(slot)
        .cloned()
        .unwrap_or_else(|| "The text does not say.".to_owned());
    let text = &message.text;
    let user = match rng.random_range(0..5) {
        0 => format!("{text}\n\n{question}"),
        1 => format!("{question}\n\n{text}"),
        2 => format!("{question} Text: {text}"),
        3 => format!("Question: {question}\nText: {text}"),
        _ => format!("Text: {text}\nQuestion: {question}"),
    };
    Ok(Sample {
        system: pick(&INTRO, rng).to_owned(),
        user,
        answer,
    })
}

fn knowledge(material: &Material, rng: &mut ChaCha8Rng) -> Sample {
    let months = material.words.list(MONTHS);
    let days = material.words.list("weekday");
    let at = |list: &[&str], index: usize| {
        list.get(index % list.len().max(1))
            .map_or_else(String::new, |w| (*w).to_owned())
    };
    let (m, d) = (rng.random_range(0..12usize), rng.random_range(0..7usize));
    let (month, day) = (at(months, m), at(days, d));
    let (a, b) = (rng.random_range(0..10), rng.random_range(0..10));
    let (question, answer) = match rng.random_range(0..10) {
        0 | 1 => (
            format!("Which month comes after {month}?"),
            at(months, m + 1),
        ),
        2 => (
            format!("Which month comes before {month}?"),
            at(months, m + 11),
        ),
        3 | 4 => (
            format!("Which number has the month {month}?"),
            format!("{:02}", m + 1),
        ),
        5 => (format!("Which month has the number {:02}?", m + 1), month),
        6 => (format!("Which day comes after {day}?"), at(days, d + 1)),
        7 => (format!("Which day comes before {day}?"), at(days, d + 6)),
        8 => (format!("What is {a} plus {b}?"), (a + b).to_string()),
        _ => (format!("Write {} with two digits.", a), format!("{a:02}")),
    };
    let system = pick(
        &[
            "",
            "Answer in a few words.",
            "Give a short answer.",
            "You answer questions.",
        ],
        rng,
    );
    Sample {
        system: system.to_owned(),
        user: question,
        answer,
    }
}

/// Small talk, and what the model can do.
pub(crate) fn talk(rng: &mut ChaCha8Rng) -> Sample {
    const SYSTEM: [&str; 8] = [
        "",
        "",
        "",
        "",
        "You are a helpful assistant.",
        "You are a small assistant.",
        "Be friendly.",
        "Answer the user.",
    ];
    let all: Vec<&str> = lines(TALK).collect();
    let (says, answers) = pick(&all, rng).split_once(" => ").unwrap_or_default();
    let said = pick(&says.split(" | ").collect::<Vec<_>>(), rng);
    let answer = pick(&answers.split(" | ").collect::<Vec<_>>(), rng).to_owned();
    let mut user = if rng.random_bool(0.6) {
        capitalised(said)
    } else {
        said.to_owned()
    };
    if rng.random_bool(0.3) {
        user = if user.ends_with('?') {
            user.trim_end_matches('?').to_owned()
        } else {
            format!("{user}!")
        };
    }
    Sample {
        system: pick(&SYSTEM, rng).to_owned(),
        user,
        answer,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn templates_have_no_gap_left_and_every_question_has_an_answer() {
        let material = Material::new().unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for _ in 0..300 {
            let sample = template(&material, &mut rng).unwrap();
            assert!(!sample.answer.contains('{'), "{}", sample.answer);
            assert!(!question(&material, &mut rng).unwrap().answer.is_empty());
            assert!(!talk(&mut rng).answer.is_empty());
        }
    }
}
