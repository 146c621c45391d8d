//! The job "put a text into a class". Beside texts with labels there are two of its steps alone, since a small model hardly
//! finds them when they only come together: what a text is about, and which label a word belongs to.

use anyhow::Result;
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::corpus::Sample;
use super::extract::labels;
use super::jobs::{pick, placed};
use super::message::{Material, Message, Wanted};
use super::wording::list;

/// A text and labels, mostly; now and then a single word instead of the text, or no labels at all.
pub(crate) fn sample(material: &Material, rng: &mut ChaCha8Rng) -> Result<Sample> {
    match rng.random_range(0..10) {
        0 | 1 => named(material, rng),
        2 => Ok(matched(material, rng)),
        _ => chosen(material, rng),
    }
}

/// Which of the listed labels fits.
fn chosen(material: &Material, rng: &mut ChaCha8Rng) -> Result<Sample> {
    const INTRO: [&str; 14] = [
        "Classify the message.",
        "Which label fits the text?",
        "Choose the right class for the message.",
        "What is the text about?",
        "Put the message into one of these classes.",
        "Sort the message.",
        "Say which category the message belongs to.",
        "Which team should answer?",
        "Label the text.",
        "Read the text and name its topic.",
        "You sort the mail of a company.",
        "Tell me the topic.",
        "Decide where the message goes.",
        "Pick one label.",
    ];
    const END: [&str; 8] = [
        "Answer with the label only.",
        "One word.",
        "Nothing else.",
        "Answer with one of them.",
        "Write only the label.",
        "Do not explain.",
        "Give just the class.",
        "",
    ];
    let topic = rng.random_range(0..material.topics.len());
    let message = about(material, topic, rng)?;
    let (values, meanings) = labels(material, topic, rng.random_range(2..=7), rng);
    let answer = values.get(&topic).cloned().unwrap_or_default();
    let mut order: Vec<String> = values.into_values().collect();
    order.shuffle(rng);
    let head = pick(
        &[
            "Labels: ",
            "The labels are ",
            "Classes: ",
            "Choose from ",
            "It is ",
            "Possible: ",
        ],
        rng,
    );
    let listing = rng.random_range(2..5);
    let mut choice = format!("{head}{}", list(&order, listing, rng));
    if !meanings.is_empty() {
        let told = order.iter().map(|label| {
            format!(
                "{label} means {}",
                meanings.get(label).map_or("", String::as_str)
            )
        });
        choice = told.collect::<Vec<_>>().join(", ");
    }
    let instruction = format!("{} {choice}. {}", pick(&INTRO, rng), pick(&END, rng))
        .trim_end()
        .to_owned();
    Ok(placed(instruction, message.text, answer, rng))
}

/// What the text is about, in the first of the topic's names.
fn named(material: &Material, rng: &mut ChaCha8Rng) -> Result<Sample> {
    const INTRO: [&str; 6] = [
        "Say in one word what the text is about.",
        "Name the topic in one word.",
        "What is this about? One word.",
        "Give the text a label of your own.",
        "Find one word for the topic of the message.",
        "Name the subject of the message with one word.",
    ];
    let topic = rng.random_range(0..material.topics.len());
    let message = about(material, topic, rng)?;
    let names = material.topics.get(topic).map(|topic| &topic.labels);
    let answer = names.and_then(|names| names.first()).copied();
    let answer = answer.unwrap_or_default().to_owned();
    Ok(placed(
        pick(&INTRO, rng).to_owned(),
        message.text,
        answer,
        rng,
    ))
}

/// Which label a word or another label belongs to.
fn matched(material: &Material, rng: &mut ChaCha8Rng) -> Sample {
    let topic = rng.random_range(0..material.topics.len());
    let (values, _) = labels(material, topic, rng.random_range(2..=6), rng);
    let answer = values.get(&topic).cloned().unwrap_or_default();
    let mut order: Vec<String> = values.into_values().collect();
    order.shuffle(rng);
    let words = material.topics.get(topic).into_iter();
    let words: Vec<&str> = words
        .flat_map(|topic| topic.words.iter().chain(&topic.labels))
        .copied()
        .filter(|word| *word != answer)
        .collect();
    let word = pick(&words, rng);
    let listing = rng.random_range(2..5);
    let choice = list(&order, listing, rng);
    let instruction = match rng.random_range(0..4) {
        0 => format!("Which label fits the word? {choice}."),
        1 => format!("What does it belong to: {choice}?"),
        2 => format!("Choose from {choice}."),
        _ => format!("Where does this word go? Labels: {choice}."),
    };
    placed(instruction, word.to_owned(), answer, rng)
}

/// A text about the topic, with a few other facts in it.
fn about(material: &Material, topic: usize, rng: &mut ChaCha8Rng) -> Result<Message> {
    let wanted = Wanted {
        facts: 0..=2,
        topic: Some(topic),
        topic_sentences: rng.random_range(1..=3),
        flags: usize::from(rng.random_bool(0.2)),
    };
    material.message(&wanted, rng)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn answers_are_one_of_the_labels_or_the_topics_name() {
        let material = Material::new().unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for _ in 0..300 {
            let sample = chosen(&material, &mut rng).unwrap();
            assert!(format!("{}{}", sample.system, sample.user).contains(&sample.answer));
            let sample = matched(&material, &mut rng);
            assert!(format!("{}{}", sample.system, sample.user).contains(&sample.answer));
            let sample = named(&material, &mut rng).unwrap();
            let first = |answer: &str| material.topics.iter().any(|t| t.labels[0] == answer);
            assert!(first(&sample.answer), "{}", sample.answer);
        }
    }
}
