//! How prompts describe an object: openings, layouts, lists, what to do where nothing is said.

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::extract::{Key, Kind, pick};

/// Who the model is, before the description begins; mostly nothing.
fn role(rng: &mut ChaCha8Rng) -> &'static str {
    const ROLES: [&str; 16] = [
        "You read letters. ",
        "You are a careful assistant. ",
        "You work in the office of a shop. ",
        "You sort messages of customers. ",
        "You help a small company. ",
        "You fill in forms. ",
        "You look for facts in a text. ",
        "You are a clerk. ",
        "You read what people write to us. ",
        "You sort the mail. ",
        "Be exact. ",
        "You work for the support desk of a web shop. ",
        "You read notes and keep records. ",
        "Messages come from many people. ",
        "You keep a list of requests. ",
        "Customers write to us, and you read it. ",
    ];
    if rng.random_bool(0.4) {
        ROLES.choose(rng).copied().unwrap_or_default()
    } else {
        ""
    }
}

/// The prompt that describes the object.
pub(crate) fn prompt(keys: &[Key], rng: &mut ChaCha8Rng) -> String {
    const INTRO: [&str; 16] = [
        "Read the message and answer with one JSON object on one line.",
        "Extract these fields as JSON.",
        "Answer with a JSON object.",
        "Turn the message into a JSON object with these keys.",
        "Find these facts in the text and write them as JSON.",
        "Fill in this form as JSON on one line.",
        "Your answer is one JSON object and nothing else.",
        "Write a JSON object on one line with these keys.",
        "Give the following as one line of JSON.",
        "From the message, fill this object.",
        "Answer in JSON, on one line, with exactly these keys.",
        "What does the message say? Answer as JSON.",
        "Convert the text to JSON.",
        "Answer with one JSON object on one line and nothing else.",
        "Return only JSON with these fields.",
        "Put what the message says into a JSON object.",
    ];
    const MISSING: [&str; 8] = [
        "Use null where the message says nothing.",
        "What is not said is null.",
        "null stands for what is missing.",
        "If something is missing, write null.",
        "Write null for everything that the message does not say.",
        "Missing facts are null.",
        "null if it is not in the text.",
        "Where nothing is said, put null.",
    ];
    const END: [&str; 16] = [
        "Nothing else.",
        "Keep the order of the keys.",
        "Do not explain anything.",
        "Write nothing before or after it.",
        "All keys must be there.",
        "Copy words as they stand.",
        "Answer with the object only.",
        "One line only.",
        "Do not add other keys.",
        "Every key stands in the answer, in this order.",
        "Do not change what you copy.",
        "No other words.",
        "Never leave a key out.",
        "Do not guess.",
        "The order of the keys matters.",
        "Texts are copied from the message.",
    ];
    let layout = rng.random_range(0..6);
    // Whether each key says what to do where nothing is said, or one sentence says it for all.
    let each = rng.random_bool(0.6);
    let kinds = rng.random_bool(0.7);
    let listing = rng.random_range(0..5);
    let lines: Vec<String> = keys
        .iter()
        .map(|key| line(key, layout, each, kinds, listing, rng))
        .collect();
    let mut parts = vec![format!("{}{}", role(rng), pick(&INTRO, rng))];
    match layout {
        0..3 => parts.push(lines.iter().map(|line| format!("\n- {line}")).collect()),
        3 => parts.push(lines.iter().map(|line| format!("\n{line}")).collect()),
        4 => parts.push(format!(" {}.", lines.join("; "))),
        _ => parts.push(format!(" {}.", lines.join(". "))),
    }
    let mut after = Vec::new();
    if !each || rng.random_bool(0.15) {
        after.push(pick(&MISSING, rng));
    }
    let count = *[0, 0, 1, 1, 2].choose(rng).unwrap_or(&0);
    after.extend(
        END.choose_multiple(rng, count)
            .map(|part| (*part).to_owned()),
    );
    after.shuffle(rng);
    let mut text = parts.concat();
    if !after.is_empty() {
        text.push(if layout < 4 { '\n' } else { ' ' });
        text.push_str(&after.join(" "));
    }
    text
}

fn line(
    key: &Key,
    layout: u32,
    each: bool,
    kinds: bool,
    listing: u32,
    rng: &mut ChaCha8Rng,
) -> String {
    let name = match layout {
        0 | 1 | 5 => format!("\"{}\"", key.name),
        _ => key.name.clone(),
    };
    let says = &key.says;
    let null = if each {
        pick(
            &[
                " or null",
                ", or null",
                ", else null",
                ", null if there is none",
            ],
            rng,
        )
    } else {
        String::new()
    };
    match &key.kind {
        Kind::Choice(values, nullable) => {
            let list = list(values, listing, rng);
            let null = if *nullable { null } else { String::new() };
            match layout {
                0 | 3 => format!("{name}: {says}: {list}{null}"),
                1 => format!("{name}: {list}: {says}{null}"),
                2 => format!("{name} ({list}): {says}{null}"),
                4 => format!("{name} is {list}: {says}{null}"),
                _ => format!("{name} is {says}, {list}{null}"),
            }
        }
        Kind::Flag => {
            let ends = ["", ", else false", ", true or false", ", otherwise false"];
            let end = if says.starts_with("true") {
                pick(&[ends[0], ends[1], ends[3]], rng)
            } else {
                pick(&[ends[2], ends[2], ends[0]], rng)
            };
            match layout {
                2 if kinds => format!("{name} (true or false): {says}"),
                1 if kinds => format!("{name}: true or false, {says}"),
                4 | 5 => format!("{name} is {says}{end}"),
                _ => format!("{name}: {says}{end}"),
            }
        }
        Kind::Text | Kind::Number => {
            let kind = if matches!(key.kind, Kind::Number) {
                "a number"
            } else {
                "text"
            };
            match layout {
                2 if kinds => format!("{name} ({kind}{null}): {says}"),
                1 if kinds => format!("{name}: {kind}, {says}{null}"),
                4 | 5 => format!("{name} is {says}{null}"),
                _ => format!("{name}: {says}{null}"),
            }
        }
    }
}

/// A list of values as prompts write it.
pub(crate) fn list(values: &[String], listing: u32, rng: &mut ChaCha8Rng) -> String {
    let quoted: Vec<String> = values.iter().map(|value| format!("\"{value}\"")).collect();
    let joined = |values: &[String], word: &str| match values.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} {word} {last}", rest.join(", ")),
        _ => values.concat(),
    };
    match listing {
        0 => format!("one of {}", values.join(", ")),
        1 => format!("one of {}", joined(&quoted, "or")),
        2 => joined(values, "or"),
        3 => values.join(if rng.random_bool(0.5) { " | " } else { "/" }),
        _ => format!("one of {}", joined(values, "or")),
    }
}
