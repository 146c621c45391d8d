//! A request's messages: text in all its forms, and the calls of tools that a conversation already holds.

use retune_task::ChatMessage;
use serde_json::{Map, Value, json};

use crate::params::{Params, unsupported, wrong_type};
use crate::refusal::Refusal;

/// How deep a call's arguments may nest and still be parsed. serde_json reads 127 levels, of which a row of the log needs some itself.
const MAX_DEPTH: usize = 64;

pub(crate) fn messages(p: &mut Params, key: &str) -> Result<Vec<ChatMessage>, Refusal> {
    let messages = p.array(key)?;
    let messages = p.required(key, messages)?;
    let name = p.name(key);
    if messages.is_empty() {
        let message = format!(
            "Invalid '{name}': empty array. Expected an array with minimum length 1, but got an empty array instead."
        );
        return Err(Refusal::param(&name, "empty_array", message));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(i, m)| message(m, &format!("{name}[{i}]")))
        .collect()
}

fn message(message: Value, path: &str) -> Result<ChatMessage, Refusal> {
    let Value::Object(members) = message else {
        return Err(wrong_type(path, "an object", &message));
    };
    let mut p = Params::inner(members, path);
    let role = p.string("role")?;
    let role = p.required("role", role)?;
    let of_tool = match role.as_str() {
        "system" | "developer" | "user" | "assistant" => false,
        "tool" => true,
        "function" => return Err(unsupported(&p.name("role"))),
        other => {
            let name = p.name("role");
            let message = format!(
                "Invalid value: '{other}'. Supported values are: 'system', 'developer', 'user', 'assistant', and 'tool'."
            );
            return Err(Refusal::param(&name, "invalid_value", message));
        }
    };
    let tool_calls = if role == "assistant" {
        tool_calls(&mut p)?
    } else {
        None
    };
    let tool_call_id = p.string("tool_call_id")?;
    let tool_call_id = if of_tool {
        Some(p.required("tool_call_id", tool_call_id)?)
    } else {
        None
    };
    let content = match tool_calls {
        // An answer that called something may have said nothing beside it.
        Some(_) => content(&mut p)?.unwrap_or_default(),
        None => {
            let content = content(&mut p)?;
            p.required("content", content)?
        }
    };
    let name = p.string("name")?;
    // An answer that comes back as history carries these, empty.
    for key in [
        "refusal",
        "annotations",
        "audio",
        "tool_calls",
        "function_call",
        "reasoning_content",
    ] {
        p.unsupported(key, |v| v.as_array().is_some_and(Vec::is_empty))?;
    }
    p.finish()?;
    Ok(ChatMessage {
        role,
        content,
        tool_calls,
        tool_call_id,
        name,
    })
}

/// What an assistant called, with `arguments` parsed, which is how chat templates want them; text that is no JSON, or JSON that could not
/// be read back from the log, stays text.
fn tool_calls(p: &mut Params) -> Result<Option<Value>, Refusal> {
    let path = p.name("tool_calls");
    let Some(calls) = p.array("tool_calls")?.filter(|calls| !calls.is_empty()) else {
        return Ok(None);
    };
    let one = |(i, call): (usize, Value)| {
        let mut call = Params::inner(
            object(call, &format!("{path}[{i}]"))?,
            &format!("{path}[{i}]"),
        );
        let (id, kind) = (call.string("id")?, call.string("type")?);
        let id = call.required("id", id)?;
        if kind.is_some_and(|kind| kind != "function") {
            return Err(unsupported(&call.name("type")));
        }
        let function = call.object("function")?;
        let function = call.required("function", function)?;
        let mut function = Params::inner(function, &call.name("function"));
        let (name, arguments) = (function.string("name")?, function.string("arguments")?);
        let name = function.required("name", name)?;
        let arguments = function.required("arguments", arguments)?;
        function.finish()?;
        call.unsupported("index", Value::is_number)?;
        call.finish()?;
        let parsed = serde_json::from_str(&arguments).ok();
        let parsed = parsed.filter(|value| depth(value) <= MAX_DEPTH);
        let arguments = parsed.unwrap_or(Value::String(arguments));
        Ok(
            json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}),
        )
    };
    let calls: Result<Vec<Value>, Refusal> = calls.into_iter().enumerate().map(one).collect();
    Ok(Some(Value::Array(calls?)))
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

pub(crate) fn object(value: Value, path: &str) -> Result<Map<String, Value>, Refusal> {
    match value {
        Value::Object(members) => Ok(members),
        other => Err(wrong_type(path, "an object", &other)),
    }
}

fn content(p: &mut Params) -> Result<Option<String>, Refusal> {
    match p.take("content") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Array(parts)) => {
            let path = p.name("content");
            let texts: Result<Vec<String>, Refusal> = parts
                .into_iter()
                .enumerate()
                .map(|(i, part)| text_part(part, &format!("{path}[{i}]")))
                .collect();
            Ok(Some(texts?.concat()))
        }
        Some(other) => Err(wrong_type(
            &p.name("content"),
            "a string or an array of parts",
            &other,
        )),
    }
}

fn text_part(part: Value, path: &str) -> Result<String, Refusal> {
    let Value::Object(members) = part else {
        return Err(wrong_type(path, "an object", &part));
    };
    let mut p = Params::inner(members, path);
    let kind = p.string("type")?;
    if p.required("type", kind)? != "text" {
        return Err(unsupported(&p.name("type")));
    }
    let text = p.string("text")?;
    let text = p.required("text", text)?;
    p.finish()?;
    Ok(text)
}
