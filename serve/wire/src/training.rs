//! A line of a training file, as OpenAI's fine-tuning takes it: a conversation with what of it is learned, or two answers to one prompt.
//!
//! It is read by the code that reads a request: what could not be asked for cannot be trained on.

use std::sync::Arc;

use retune_task::ChatMessage;
use serde_json::{Map, Value};

use crate::messages::messages;
use crate::params::{Params, wrong_type};
use crate::refusal::Refusal;
use crate::tools::Tools;

/// A line of a training file.
#[derive(Debug, Clone, PartialEq)]
pub enum TrainingLine {
    /// For the method `supervised`.
    Conversation(ConversationLine),
    /// For the method `dpo`.
    Preference(Box<PreferenceLine>),
}

/// A conversation whose assistant's messages are learned.
#[derive(Debug, Clone, PartialEq)]
pub struct ConversationLine {
    pub messages: Vec<ChatMessage>,
    /// For each message whether it is learned: an assistant's that has no `weight` of 0.
    pub learned: Vec<bool>,
    /// Functions that the model may call, as a chat template wants them.
    pub tools: Option<Arc<Value>>,
}

/// A prompt with two answers.
#[derive(Debug, Clone, PartialEq)]
pub struct PreferenceLine {
    pub messages: Vec<ChatMessage>,
    pub tools: Option<Arc<Value>>,
    pub preferred: ChatMessage,
    pub other: ChatMessage,
}

impl TrainingLine {
    /// Reads one line of JSON.
    ///
    /// # Errors
    /// The member that is missing, wrong or not known; that nothing would be learned.
    pub fn read(line: &[u8]) -> Result<Self, Refusal> {
        let value: Value = serde_json::from_slice(line).map_err(|error| Refusal {
            message: format!("It is no valid JSON: {error}."),
            param: None,
            code: Some("invalid_jsonl"),
        })?;
        let Value::Object(members) = value else {
            return Err(wrong_type("the line", "an object", &value));
        };
        if members.contains_key("input") {
            PreferenceLine::read(members).map(|line| Self::Preference(Box::new(line)))
        } else {
            ConversationLine::read(members).map(Self::Conversation)
        }
    }
}

impl ConversationLine {
    fn read(mut members: Map<String, Value>) -> Result<Self, Refusal> {
        let list = members.get_mut("messages").and_then(Value::as_array_mut);
        let weights: Vec<Option<Value>> = list
            .into_iter()
            .flatten()
            .map(|message| message.as_object_mut()?.remove("weight"))
            .collect();
        let mut p = Params::of(members);
        let messages = messages(&mut p, "messages")?;
        let tools = Tools::read(&mut p)?;
        p.finish()?;
        let learned: Result<Vec<bool>, Refusal> = messages
            .iter()
            .zip(weights)
            .enumerate()
            .map(|(index, (message, weight))| is_learned(index, message, weight.as_ref()))
            .collect();
        let learned = learned?;
        if !learned.contains(&true) {
            let message = "Nothing would be learned: expected at least one message of the role 'assistant' without a weight of 0.";
            return Err(Refusal::param("messages", "invalid_value", message));
        }
        Ok(Self {
            messages,
            learned,
            tools: tools.map(|tools| tools.list),
        })
    }
}

impl PreferenceLine {
    fn read(members: Map<String, Value>) -> Result<Self, Refusal> {
        let mut p = Params::of(members);
        let input = p.object("input")?;
        let mut input = Params::inner(p.required("input", input)?, "input");
        let messages = messages(&mut input, "messages")?;
        let tools = Tools::read(&mut input)?;
        input.finish()?;
        let preferred = answer(&mut p, "preferred_output")?;
        let other = answer(&mut p, "non_preferred_output")?;
        p.finish()?;
        if preferred == other {
            let message = "Nothing would be learned: 'preferred_output' and 'non_preferred_output' are the same.";
            return Err(Refusal::param("preferred_output", "invalid_value", message));
        }
        Ok(Self {
            messages,
            tools: tools.map(|tools| tools.list),
            preferred,
            other,
        })
    }
}

/// The one message of an output.
fn answer(p: &mut Params, key: &str) -> Result<ChatMessage, Refusal> {
    let mut list = messages(p, key)?;
    match (list.pop(), list.is_empty()) {
        (Some(message), true) if message.role == "assistant" => Ok(message),
        _ => {
            let message = format!("Invalid '{key}': expected one message of the role 'assistant'.");
            Err(Refusal::param(key, "invalid_value", message))
        }
    }
}

fn is_learned(
    index: usize,
    message: &ChatMessage,
    weight: Option<&Value>,
) -> Result<bool, Refusal> {
    let refused = |expected: &str| {
        let name = format!("messages[{index}].weight");
        let message = format!("Invalid '{name}': expected {expected}.");
        Err(Refusal::param(&name, "invalid_value", message))
    };
    let is_assistant = message.role == "assistant";
    match weight.filter(|weight| !weight.is_null()) {
        None => Ok(is_assistant),
        Some(_) if !is_assistant => refused("no weight on a message that is not the assistant's"),
        Some(weight) => match weight.as_f64() {
            Some(0.0) => Ok(false),
            Some(1.0) => Ok(true),
            _ => refused("0 or 1"),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use super::*;

    #[test]
    fn what_the_assistant_says_is_learned_unless_it_has_no_weight() {
        let line = r#"{"messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": "Hello.", "weight": 0},
            {"role": "user", "content": "Order?"},
            {"role": "assistant", "content": "Yes.", "weight": 1},
            {"role": "assistant", "content": "Sent."}]}"#;
        let TrainingLine::Conversation(read) = TrainingLine::read(line.as_bytes()).unwrap() else {
            panic!("it has no `input`");
        };
        assert_eq!(read.learned, [false, false, false, false, true, true]);
        assert_eq!(read.messages[1].content, "Hi");
        assert_eq!(read.tools, None);
    }

    #[test]
    fn a_preference_is_a_prompt_with_two_answers() {
        let line = r#"{"input": {"messages": [{"role": "user", "content": "Hi"}], "tools": [], "parallel_tool_calls": true},
            "preferred_output": [{"role": "assistant", "content": "Hello."}],
            "non_preferred_output": [{"role": "assistant", "content": "What?"}]}"#;
        let TrainingLine::Preference(read) = TrainingLine::read(line.as_bytes()).unwrap() else {
            panic!("it has an `input`");
        };
        assert_eq!(read.messages[0].content, "Hi");
        assert_eq!(
            (read.preferred.content.as_str(), read.other.content.as_str()),
            ("Hello.", "What?")
        );
        for (from, to, param) in [
            ("\"Hi\"", "7", "input.messages[0].content"),
            (
                "\"non_preferred_output\"",
                "\"other\"",
                "non_preferred_output",
            ),
            ("What?", "Hello.", "preferred_output"),
            (
                "[{\"role\": \"assistant\", \"content\": \"What?\"}]",
                "[{\"role\": \"user\", \"content\": \"What?\"}]",
                "non_preferred_output",
            ),
            ("\"tools\"", "\"tolls\"", "input.tolls"),
            ("\"tools\": []", "\"tools\": 1", "input.tools"),
        ] {
            let line = line.replace(from, to);
            let refusal = TrainingLine::read(line.as_bytes()).unwrap_err();
            assert_eq!(refusal.param.as_deref(), Some(param), "{refusal}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let user = r#"{"role": "user", "content": "Hi"}"#;
        let answer = r#"{"role": "assistant", "content": "Hello."}"#;
        for (line, param, says) in [
            ("{", None, "no valid JSON"),
            ("[1]", Some("the line"), "an object"),
            ("{}", Some("messages"), "Missing"),
            (r#"{"messages": []}"#, Some("messages"), "empty array"),
            (
                &format!(r#"{{"messages": [{user}]}}"#),
                Some("messages"),
                "Nothing would be learned",
            ),
            (
                &format!(
                    r#"{{"messages": [{user}, {{"role": "assistant", "content": "x", "weight": 2}}]}}"#
                ),
                Some("messages[1].weight"),
                "0 or 1",
            ),
            (
                &format!(
                    r#"{{"messages": [{{"role": "user", "content": "x", "weight": 1}}, {answer}]}}"#
                ),
                Some("messages[0].weight"),
                "not the assistant's",
            ),
            (
                r#"{"messages": [{"role": "robot", "content": "x"}]}"#,
                Some("messages[0].role"),
                "Supported values",
            ),
            (
                &format!(r#"{{"messages": [{user}, {answer}], "prompt": "x"}}"#),
                Some("prompt"),
                "Unrecognized",
            ),
            (
                r#"{"prompt": "x", "completion": "y"}"#,
                Some("messages"),
                "Missing",
            ),
        ] {
            let refusal = TrainingLine::read(line.as_bytes()).unwrap_err();
            assert_eq!(refusal.param.as_deref(), param, "{line}");
            assert!(refusal.message.contains(says), "{line}: {refusal}");
        }
    }
}
