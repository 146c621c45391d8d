//! From an uploaded file to tokens: each line a conversation, with loss on what its assistant says, or a preference between two answers.
//!
//! Every answer is learned as serving reaches it: from the prompt that the engine would get up to there, token by token, to the end of
//! the turn. Where the next answer's prompt begins with all of that, as with most chat templates, both are one example; where a
//! template writes earlier turns otherwise than it did (some leave out their thinking), each is one of its own.

use retune_task::{PromptKind, Task};
use retune_trainer::{Example, Preference};
use retune_wire::{ConversationLine, PreferenceLine, TrainingLine};

use crate::{Encoder, Error};

const NO_CONVERSATION: &str = "it is a preference, and the method 'supervised' learns from conversations ('messages'); \
    ask for the method 'dpo'";
const NO_PREFERENCE: &str = "it is a conversation, and the method 'dpo' learns from preferences ('input', 'preferred_output', \
    'non_preferred_output'); ask for the method 'supervised'";

/// What a file is made of.
#[derive(Debug)]
pub(crate) struct Lines<T> {
    pub(crate) examples: Vec<T>,
    /// Numbers, from 1, of the lines that are longer than the model's context, and are left out.
    pub(crate) too_long: Vec<usize>,
}

/// Reads all of a file of conversations.
///
/// # Errors
/// The first line that cannot be read, or that the chat template refuses.
pub(crate) fn examples(
    encoder: &Encoder,
    task: &Task,
    bytes: &[u8],
) -> Result<Lines<Example>, Error> {
    read(bytes, |line| match line {
        TrainingLine::Conversation(line) => {
            let examples = of_conversation(encoder, task, &line).map_err(|e| e.to_string())?;
            let fit = examples.iter().all(|example| encoder.fits(example));
            Ok(if fit { examples } else { Vec::new() })
        }
        TrainingLine::Preference(_) => Err(NO_CONVERSATION.to_owned()),
    })
}

/// Reads all of a file of preferences.
///
/// # Errors
/// As with conversations.
pub(crate) fn preferences(
    encoder: &Encoder,
    task: &Task,
    bytes: &[u8],
) -> Result<Lines<Preference>, Error> {
    read(bytes, |line| match line {
        TrainingLine::Preference(line) => {
            let PreferenceLine {
                messages,
                tools,
                preferred,
                other,
            } = *line;
            let before = task.messages(PromptKind::Adapter, &messages);
            let both = encoder.preference(&before, &preferred, &other, tools.as_deref());
            let both = both.map_err(|e| e.to_string())?;
            let fit = encoder.both_fit(&both);
            Ok(fit.then_some(both).into_iter().collect())
        }
        TrainingLine::Conversation(_) => Err(NO_PREFERENCE.to_owned()),
    })
}

/// `each` gives a line's examples, none where it is too long, or says what is wrong with it.
fn read<T>(
    bytes: &[u8],
    each: impl Fn(TrainingLine) -> Result<Vec<T>, String>,
) -> Result<Lines<T>, Error> {
    let (mut examples, mut too_long) = (Vec::new(), Vec::new());
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let number = index + 1;
        let wrong = |what: String| Error::Line { number, what };
        let line = TrainingLine::read(line).map_err(|refusal| wrong(refusal.to_string()))?;
        let found = each(line).map_err(wrong)?;
        if found.is_empty() {
            too_long.push(number);
        }
        examples.extend(found);
    }
    Ok(Lines { examples, too_long })
}

fn of_conversation(
    encoder: &Encoder,
    task: &Task,
    line: &ConversationLine,
) -> Result<Vec<Example>, Error> {
    let mut examples: Vec<Example> = Vec::new();
    let tools = line.tools.as_deref();
    let learned = line
        .learned
        .iter()
        .enumerate()
        .filter(|(_, learned)| **learned);
    for (index, _) in learned {
        let (before, rest) = line.messages.split_at(index);
        let Some(said) = rest.first() else { continue };
        let before = task.messages(PromptKind::Adapter, before);
        let (prompt, answer) = encoder.turn(&before, said, tools)?;
        let follows = examples
            .last()
            .is_some_and(|last| prompt.starts_with(&last.tokens));
        if !follows {
            examples.push(Example {
                tokens: Vec::new(),
                weights: Vec::new(),
            });
        }
        if let Some(example) = examples.last_mut() {
            let new = prompt.len() - example.tokens.len();
            example.tokens = [prompt, answer].concat();
            example.weights.extend(std::iter::repeat_n(0.0, new));
            example.weights.resize(example.tokens.len(), 1.0);
        }
    }
    Ok(examples)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::testing::encoder;

    fn learned(text: &str) -> Vec<(String, Vec<String>)> {
        let encoder = encoder();
        let lines = examples(&encoder, &Task::of_job("x"), text.as_bytes()).unwrap();
        let shown = |example: &Example| {
            let mut parts: Vec<String> = Vec::new();
            let mut part: Vec<u32> = Vec::new();
            for (token, weight) in example.tokens.iter().zip(&example.weights) {
                if *weight > 0.0 {
                    part.push(*token);
                } else if !part.is_empty() {
                    parts.push(encoder.shown(&part));
                    part.clear();
                }
            }
            parts.push(encoder.shown(&part));
            (encoder.shown(&example.tokens), parts)
        };
        lines.examples.iter().map(shown).collect()
    }

    #[test]
    fn each_answer_is_learned_with_its_end_and_nothing_else() {
        let line = r#"{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Order?"},
            {"role": "assistant", "content": "No.", "weight": 0}, {"role": "user", "content": "When?"},
            {"role": "assistant", "content": "Soon."}]}"#
            .replace('\n', " ");
        let found = learned(&line);
        assert_eq!(found.len(), 1, "{found:?}");
        let (all, parts) = &found[0];
        assert_eq!(parts, &["Hello.<|im_end|>", "Soon.<|im_end|>"]);
        assert!(
            all.starts_with("<|im_start|>system\nBe brief.<|im_end|>"),
            "{all}"
        );
        assert!(
            all.ends_with("<|im_start|>assistant\nSoon.<|im_end|>"),
            "{all}"
        );
        assert!(all.contains("No.<|im_end|>"), "{all}");
    }

    #[test]
    fn a_line_that_cannot_be_learned_is_named() {
        let good = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
        let error = examples(
            &encoder(),
            &Task::of_job("x"),
            format!("{good}\n\n{{}}").as_bytes(),
        );
        let error = error.unwrap_err().to_string();
        assert!(error.contains("line 3"), "{error}");
        let long = format!(
            r#"{{"messages": [{{"role": "user", "content": "{}"}}, {{"role": "assistant", "content": "b"}}]}}"#,
            "word ".repeat(5_000)
        );
        let lines = examples(
            &encoder(),
            &Task::of_job("x"),
            format!("{good}\n{long}").as_bytes(),
        )
        .unwrap();
        assert_eq!((lines.examples.len(), lines.too_long), (1, vec![2]));
    }

    #[test]
    fn a_preference_is_its_prompt_with_either_answer() {
        let encoder = encoder();
        let line = r#"{"input": {"messages": [{"role": "user", "content": "Hi"}]},
            "preferred_output": [{"role": "assistant", "content": "Hello."}],
            "non_preferred_output": [{"role": "assistant", "content": "What?"}]}"#
            .replace('\n', " ");
        let (task, long) = (
            Task::of_job("x"),
            line.replace("Hi", &"word ".repeat(5_000)),
        );
        let found = preferences(&encoder, &task, format!("{line}\n{long}").as_bytes()).unwrap();
        assert_eq!((found.examples.len(), found.too_long), (1, vec![2]));
        let Preference { preferred, other } = &found.examples[0];
        for (example, answer) in [(preferred, "Hello."), (other, "What?")] {
            let all = encoder.shown(&example.tokens);
            let end = format!("<|im_start|>assistant\n{answer}<|im_end|>");
            assert!(all.contains("Hi<|im_end|>") && all.ends_with(&end), "{all}");
            let learned = example.weights.iter().filter(|w| **w > 0.0).count();
            let from = example.tokens.len() - learned;
            assert_eq!(
                encoder.shown(&example.tokens[from..]),
                format!("{answer}<|im_end|>")
            );
        }
        let conversation = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
        let error = preferences(&encoder, &task, conversation.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("line 1") && error.to_string().contains("'supervised'"));
        let error = examples(&encoder, &task, line.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("ask for the method 'dpo'"));
    }
}
