//! From an answer's text to what the app sees: content, or calls of tools.
//!
//! Where something had to be called, the answer was decoded under a grammar and is a call as a whole. Where the model was free, a call
//! is what the common chat templates teach: `<tool_call>{…}</tool_call>` (Hermes, Qwen), or nothing but JSON with a `name` and
//! `arguments` or `parameters` (Llama 3, Mistral). Text goes out as it comes until one of them may have begun.

use rand::Rng;
use serde_json::{Map, Value};

use crate::tools::Tools;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// A part of what the app sees.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// Text.
    Content(String),
    /// A call begins.
    Call {
        index: usize,
        id: String,
        name: String,
    },
    /// More of its arguments' JSON text.
    Arguments { index: usize, text: String },
}

/// A whole call.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    pub id: String,
    pub name: String,
    /// JSON text.
    pub arguments: String,
}

/// Reads one answer.
pub struct Reader {
    mode: Mode,
    calls: usize,
}

enum Mode {
    /// There is nothing to call.
    Content,
    /// The whole answer is this function's arguments.
    Only { name: String, begun: bool },
    /// The answer is one object with `name` and `arguments`.
    Object(String),
    /// A call may come: what is held back, and the names that count.
    Free {
        names: Vec<String>,
        held: String,
        /// Content went out already: no answer that is nothing but JSON any more.
        told: bool,
    },
}

impl Reader {
    /// Of an answer to a request with these tools.
    pub fn new(tools: Option<&Tools>) -> Self {
        let mode = match tools {
            None => Mode::Content,
            Some(tools) => match (tools.only(), tools.grammar()) {
                (Some(name), _) => Mode::Only {
                    name: name.to_owned(),
                    begun: false,
                },
                (None, Some(_)) => Mode::Object(String::new()),
                (None, None) => Mode::Free {
                    names: tools.names().into_iter().map(str::to_owned).collect(),
                    held: String::new(),
                    told: false,
                },
            },
        };
        Self { mode, calls: 0 }
    }

    /// What the next piece of the answer adds.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        match &mut self.mode {
            Mode::Content => content(text),
            Mode::Only { name, begun } => {
                let mut deltas = Vec::new();
                if !std::mem::replace(begun, true) {
                    deltas.push(call(0, name));
                    self.calls = 1;
                }
                deltas.push(arguments(0, text));
                deltas
            }
            Mode::Object(held) => {
                held.push_str(text);
                Vec::new()
            }
            Mode::Free { held, told, .. } => {
                held.push_str(text);
                let begun = held.trim_start();
                if !*told && (begun.is_empty() || begun.starts_with(['{', '['])) {
                    return Vec::new();
                }
                let keep = held
                    .find(OPEN)
                    .unwrap_or_else(|| held.len() - beginning(held));
                let kept = held.split_off(keep);
                let out = std::mem::replace(held, kept);
                *told |= !out.trim().is_empty();
                content(&out)
            }
        }
    }

    /// What was held back. What turned out to be no call is content.
    pub fn finish(&mut self) -> Vec<Delta> {
        let held = match &mut self.mode {
            Mode::Content | Mode::Only { .. } => return Vec::new(),
            Mode::Object(held) | Mode::Free { held, .. } => std::mem::take(held),
        };
        let known = |name: &str| match &self.mode {
            Mode::Free { names, .. } => names.iter().any(|n| n == name),
            _ => true,
        };
        let Some(found) = parse(&held) else {
            return content(&held);
        };
        if !found.iter().all(|(name, _)| known(name)) {
            return content(&held);
        }
        let mut deltas = Vec::new();
        for (name, text) in found {
            deltas.extend([call(self.calls, &name), arguments(self.calls, &text)]);
            self.calls += 1;
        }
        deltas
    }

    /// Whether the answer called something of its own choice: OpenAI says `tool_calls` then, and `stop` where a function was named.
    pub fn chose_a_call(&self) -> bool {
        self.calls > 0 && !matches!(self.mode, Mode::Only { .. })
    }
}

/// The whole answer that the deltas make: its content, if any, and its calls.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    pub content: Option<String>,
    pub calls: Vec<Call>,
}

impl Message {
    /// Adds the next of them.
    pub fn add(&mut self, delta: &Delta) {
        match delta {
            Delta::Content(text) => self.content.get_or_insert_default().push_str(text),
            Delta::Call { id, name, .. } => self.calls.push(Call {
                id: id.clone(),
                name: name.clone(),
                arguments: String::new(),
            }),
            Delta::Arguments { index, text } => {
                if let Some(call) = self.calls.get_mut(*index) {
                    call.arguments.push_str(text);
                }
            }
        }
    }
}

fn content(text: &str) -> Vec<Delta> {
    if text.is_empty() {
        Vec::new()
    } else {
        vec![Delta::Content(text.to_owned())]
    }
}

fn call(index: usize, name: &str) -> Delta {
    Delta::Call {
        index,
        id: format!("call_{:024x}", rand::rng().random::<u128>() >> 32),
        name: name.to_owned(),
    }
}

fn arguments(index: usize, text: &str) -> Delta {
    Delta::Arguments {
        index,
        text: text.to_owned(),
    }
}

/// Bytes at the end of the text that may be the beginning of [`OPEN`].
fn beginning(text: &str) -> usize {
    (1..OPEN.len())
        .rev()
        .find(|&n| text.ends_with(&OPEN[..n]))
        .unwrap_or(0)
}

/// The calls in a text that holds nothing else: name and arguments as JSON text.
fn parse(text: &str) -> Option<Vec<(String, String)>> {
    let mut rest = text.trim();
    let mut calls = Vec::new();
    if !rest.starts_with(OPEN) {
        return match serde_json::from_str(rest).ok()? {
            Value::Array(list) if !list.is_empty() => list.into_iter().map(one).collect(),
            value => one(value).map(|call| vec![call]),
        };
    }
    while let Some(inside) = rest.strip_prefix(OPEN) {
        // An answer cut short lacks the end.
        let (json, after) = inside.split_once(CLOSE).unwrap_or((inside, ""));
        calls.push(one(serde_json::from_str(json.trim()).ok()?)?);
        rest = after.trim_start();
    }
    rest.is_empty().then_some(calls)
}

fn one(value: Value) -> Option<(String, String)> {
    let Value::Object(mut call) = value else {
        return None;
    };
    let Some(Value::String(name)) = call.remove("name") else {
        return None;
    };
    let arguments = call
        .remove("arguments")
        .or_else(|| call.remove("parameters"));
    let text = match arguments {
        Some(Value::String(text)) => text,
        Some(value @ Value::Object(_)) => value.to_string(),
        None if call.is_empty() => Value::Object(Map::new()).to_string(),
        _ => return None,
    };
    Some((name, text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn reader(names: &[&str]) -> Reader {
        Reader {
            mode: Mode::Free {
                names: names.iter().map(|n| (*n).to_owned()).collect(),
                held: String::new(),
                told: false,
            },
            calls: 0,
        }
    }

    fn read(reader: &mut Reader, pieces: &[&str]) -> Message {
        let mut message = Message::default();
        let mut all: Vec<Delta> = pieces.iter().flat_map(|p| reader.push(p)).collect();
        all.extend(reader.finish());
        all.iter().for_each(|delta| message.add(delta));
        message
    }

    fn called(message: &Message) -> Vec<(&str, &str)> {
        message
            .calls
            .iter()
            .map(|c| (c.name.as_str(), c.arguments.as_str()))
            .collect()
    }

    #[test]
    fn calls_in_the_forms_that_templates_teach() {
        for text in [
            "<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\": 1}}\n</tool_call>",
            "{\"name\": \"get\", \"parameters\": {\"a\": 1}}",
            " [{\"name\": \"get\", \"arguments\": \"{\\\"a\\\":1}\"}]",
        ] {
            let mut reader = reader(&["get"]);
            let message = read(&mut reader, &[text]);
            assert_eq!(called(&message), [("get", "{\"a\":1}")], "{text}");
            assert_eq!(message.content, None);
            assert!(reader.chose_a_call());
        }
        let two = "<tool_call>{\"name\": \"get\"}</tool_call>\n<tool_call>{\"name\": \"get\", \"arguments\": {}}</tool_call>";
        assert_eq!(read(&mut reader(&["get"]), &[two]).calls.len(), 2);
    }

    #[test]
    fn text_before_a_call_goes_out_at_once() {
        let mut reader = reader(&["get"]);
        assert_eq!(
            reader.push("Let me see. <tool"),
            [Delta::Content("Let me see. ".into())]
        );
        assert_eq!(reader.push("_call>{\"name\": \"get\"}"), []);
        assert_eq!(reader.push("</tool_call>"), []);
        assert_eq!(reader.finish().len(), 2);
    }

    #[test]
    fn what_is_no_call_is_content() {
        for text in [
            "{\"answer\": 3}",
            "{broken",
            "plain",
            "<tool_call>{\"name\": \"other\"}</tool_call>",
            "a <tool",
            "[]",
        ] {
            let message = read(&mut reader(&["get"]), &[text]);
            assert_eq!(message.content.as_deref(), Some(text));
            assert!(message.calls.is_empty());
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_however_the_text_is_cut(
            text in "([a-z <>{}\"]|<tool_call>|</tool_call>){0,40}",
            cuts in prop::collection::vec(0usize..200, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&text[from..cut]);
                from = cut;
            }
            pieces.push(&text[from..]);
            let message = read(&mut reader(&["get"]), &pieces);
            prop_assert_eq!(message.content.unwrap_or_default(), text);
        }
    }
}
