//! A regression suite: prompts for what a candidate must not lose, each with a check of the answer. A line of JSON each.
//!
//! Pure: from a file's text to prompts, or to what is wrong in which line, all of it at once.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::chat::ChatMessage;
use crate::format::Format;

/// Most prompts of a suite: each is answered twice in every examination.
const MOST: usize = 1000;
/// Most characters of a name or of a slice's.
const LONGEST: usize = 100;
/// What a line may have.
const KEYS: [&str; 5] = ["messages", "prompt", "check", "name", "slice"];
/// Who may speak in a prompt.
const ROLES: [&str; 4] = ["system", "developer", "user", "assistant"];
const CHECKS: &str = "one of {\"equals\": \"text\"}, {\"contains\": [\"text\"]}, {\"regex\": \"pattern\"}, {\"json_schema\": {…}}, \
                      {\"format\": true}, {\"length\": [least, most]}";

/// Prompts, in the file's order.
#[derive(Debug, Default)]
pub struct Suite {
    /// At least one, in a suite that was read from a file.
    pub prompts: Vec<SuitePrompt>,
}

/// A prompt with its check.
#[derive(Debug)]
pub struct SuitePrompt {
    /// Its own, or `line 3`; no two are the same.
    pub name: String,
    /// What it belongs to, for results by that.
    pub slice: Option<String>,
    /// As an app would send them.
    pub messages: Vec<ChatMessage>,
    /// The check, as it was written.
    pub check: String,
    expected: Expected,
}

#[derive(Debug)]
enum Expected {
    Equals(String),
    Contains(Vec<String>),
    Form(Box<Format>),
    TaskFormat,
}

/// What is wrong in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongLine {
    /// From 1.
    pub line: usize,
    /// What it is, and what was expected.
    pub what: String,
}

impl Suite {
    /// Reads a file's text. Blank lines are none.
    pub fn parse(text: &str) -> Result<Suite, Vec<WrongLine>> {
        let (mut prompts, mut wrong) = (Vec::new(), Vec::new());
        let mut names: HashMap<String, usize> = HashMap::new();
        for (line, text) in (1..).zip(text.lines()) {
            if text.trim().is_empty() {
                continue;
            }
            let read = prompt(text, line).and_then(|prompt| {
                match names.insert(prompt.name.clone(), line) {
                    Some(first) => Err(format!(
                        "name: is {:?}, as in line {first}; expected another one",
                        prompt.name
                    )),
                    None => Ok(prompt),
                }
            });
            match read {
                Ok(prompt) => prompts.push(prompt),
                Err(what) => wrong.push(WrongLine { line, what }),
            }
        }
        let count = prompts.len() + wrong.len();
        if count == 0 || count > MOST {
            let what = format!("{count} prompts; expected 1 to {MOST}, one a line");
            wrong.push(WrongLine { line: 1, what });
        }
        match wrong.is_empty() {
            true => Ok(Suite { prompts }),
            false => Err(wrong),
        }
    }

    /// The same prompts, of which each answer has to hold the task's format and nothing else.
    #[must_use]
    pub fn in_format(mut self) -> Suite {
        for prompt in &mut self.prompts {
            prompt.expected = Expected::TaskFormat;
            prompt.check = "{\"format\":true}".to_owned();
        }
        self
    }
}

impl SuitePrompt {
    /// Whether an answer passes. White space around it counts in a task's format alone.
    pub fn holds(&self, format: Option<&Format>, answer: &str) -> bool {
        let text = answer.trim();
        match &self.expected {
            Expected::Equals(known) => text == known.trim(),
            Expected::Contains(parts) => parts.iter().all(|part| text.contains(part)),
            Expected::Form(form) => form.check(text).is_valid(),
            Expected::TaskFormat => match format {
                Some(format) => format.check(answer).is_valid(),
                None => !text.is_empty(),
            },
        }
    }
}

fn prompt(text: &str, line: usize) -> Result<SuitePrompt, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| {
        format!("is no JSON: {e}; expected an object such as {{\"prompt\": \"2 + 2?\", \"check\": {{\"contains\": [\"4\"]}}}}")
    })?;
    let Value::Object(mut members) = value else {
        return Err(format!("is {}; expected an object", shown(&value)));
    };
    if let Some(key) = members.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(format!(
            "{key:?}: there is no such key; expected {}",
            KEYS.join(", ")
        ));
    }
    let messages = match (members.remove("messages"), members.remove("prompt")) {
        (Some(messages), None) => conversation(messages)?,
        (None, Some(Value::String(prompt))) => vec![ChatMessage::new("user", prompt)],
        (None, Some(other)) => return Err(not("prompt", &other, "a text")),
        (Some(_), Some(_)) => {
            return Err("has both messages and prompt; expected one of them".to_owned());
        }
        (None, None) => return Err("has neither messages nor prompt; expected one".to_owned()),
    };
    let check = members
        .remove("check")
        .ok_or_else(|| format!("has no check; expected {CHECKS}"))?;
    let name = self::name(&mut members, "name")?;
    Ok(SuitePrompt {
        name: name.unwrap_or_else(|| format!("line {line}")),
        slice: self::name(&mut members, "slice")?,
        messages,
        check: check.to_string(),
        expected: expected(check)?,
    })
}

fn name(members: &mut Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match members.remove(key) {
        None => Ok(None),
        Some(Value::String(name)) if !name.trim().is_empty() && name.chars().count() <= LONGEST => {
            Ok(Some(name))
        }
        Some(other) => Err(not(
            key,
            &other,
            &format!("a text of 1 to {LONGEST} characters"),
        )),
    }
}

/// What the server takes: anything else would end an examination after a training.
fn conversation(messages: Value) -> Result<Vec<ChatMessage>, String> {
    let list = match messages {
        Value::Array(list) if !list.is_empty() => list,
        other => return Err(not("messages", &other, "a list of messages")),
    };
    let read: Result<Vec<ChatMessage>, String> = list.iter().enumerate().map(message).collect();
    let read = read?;
    match read.last() {
        Some(last) if last.role == "user" => Ok(read),
        _ => Err("messages: the last is not the user's; expected one to answer".to_owned()),
    }
}

fn message((n, message): (usize, &Value)) -> Result<ChatMessage, String> {
    let member = |key: &str| message.get(key).and_then(Value::as_str);
    let is_plain = message.as_object().is_some_and(|of| of.len() == 2);
    match (member("role"), member("content")) {
        (Some(role), Some(content)) if is_plain && ROLES.contains(&role) => {
            Ok(ChatMessage::new(role, content))
        }
        _ => Err(not(
            &format!("messages[{n}]"),
            message,
            &format!(
                "{{\"role\": …, \"content\": \"text\"}} and no more, the role one of {}",
                ROLES.join(", ")
            ),
        )),
    }
}

fn expected(check: Value) -> Result<Expected, String> {
    let one = match &check {
        Value::Object(of) if of.len() == 1 => of.iter().next(),
        _ => None,
    };
    let Some((kind, value)) = one else {
        return Err(not("check", &check, CHECKS));
    };
    let is_text = |value: &&Value| value.as_str().is_some_and(|text| !text.trim().is_empty());
    let form = |made: Result<Format, String>| {
        made.map(|form| Expected::Form(Box::new(form)))
            .map_err(|what| format!("check.{kind}: {what}"))
    };
    match (kind.as_str(), value) {
        ("equals", Value::String(known)) if is_text(&value) => Ok(Expected::Equals(known.clone())),
        ("equals", _) => Err(not("check.equals", value, "a text that is not blank")),
        ("contains", Value::Array(list))
            if !list.is_empty() && list.iter().all(|v| is_text(&v)) =>
        {
            let parts = list.iter().filter_map(Value::as_str).map(str::to_owned);
            Ok(Expected::Contains(parts.collect()))
        }
        ("contains", _) => Err(not("check.contains", value, "a list of texts, not blank")),
        ("regex", Value::String(pattern)) => form(Format::regex(pattern)),
        ("regex", _) => Err(not("check.regex", value, "a regular expression")),
        ("json_schema", Value::Object(_)) => form(Format::json_schema(&value.to_string())),
        ("json_schema", _) => Err(not("check.json_schema", value, "a JSON schema")),
        ("format", Value::Bool(true)) => Ok(Expected::TaskFormat),
        ("format", _) => Err(not("check.format", value, "true")),
        ("length", _) => match length(value) {
            Some((least, most)) => form(Format::length(least, most)),
            None => Err(not(
                "check.length",
                value,
                "two whole numbers, [least, most]",
            )),
        },
        _ => Err(not("check", &check, CHECKS)),
    }
}

fn length(value: &Value) -> Option<(usize, usize)> {
    let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
    match value.as_array()?.as_slice() {
        [least, most] => Some((number(least)?, number(most)?)),
        _ => None,
    }
}

fn not(key: &str, value: &Value, expected: &str) -> String {
    format!("{key}: is {}; expected {expected}", shown(value))
}

/// As much of a value as a message takes.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
#[path = "suite_tests.rs"]
mod tests;
