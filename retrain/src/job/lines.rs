//! From an uploaded file to tokens: each line a conversation, with loss on what its assistant says.
//!
//! Every answer is learned as serving reaches it: from the prompt that the engine would get up to there, token by token, to the end of
//! the turn. Where the next answer's prompt begins with all of that, as with most chat templates, both are one example; where a
//! template writes earlier turns otherwise than it did (some leave out their thinking), each is one of its own.

use retune_task::{PromptKind, Task};
use retune_trainer::Example;
use retune_wire::TrainingLine;

use crate::{Encoder, Error};

/// A file's examples.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    pub(crate) examples: Vec<Example>,
    /// Numbers, from 1, of the lines that are longer than the model's context, and are left out.
    pub(crate) too_long: Vec<usize>,
}

/// Reads all of a file.
///
/// # Errors
/// The first line that cannot be read, or that the chat template refuses.
pub(crate) fn read(encoder: &Encoder, task: &Task, bytes: &[u8]) -> Result<Lines, Error> {
    let mut lines = Lines::default();
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let number = index + 1;
        let wrong = |what: String| Error::Line { number, what };
        let read = TrainingLine::read(line).map_err(|refusal| wrong(refusal.to_string()))?;
        let examples = examples(encoder, task, &read).map_err(|error| wrong(error.to_string()))?;
        if examples.iter().any(|e| e.tokens.len() > encoder.context()) {
            lines.too_long.push(number);
        } else {
            lines.examples.extend(examples);
        }
    }
    Ok(lines)
}

fn examples(encoder: &Encoder, task: &Task, line: &TrainingLine) -> Result<Vec<Example>, Error> {
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
        let lines = read(&encoder, &Task::of_job("x"), text.as_bytes()).unwrap();
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
        let error = read(
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
        let lines = read(
            &encoder(),
            &Task::of_job("x"),
            format!("{good}\n{long}").as_bytes(),
        )
        .unwrap();
        assert_eq!((lines.examples.len(), lines.too_long), (1, vec![2]));
    }
}
