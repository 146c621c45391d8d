//! A chat completion's request. What can be done is done, what cannot is a 400 that names the parameter; nothing is ignored.

use retune_task::ChatMessage;
use serde_json::{Map, Value, json};

use super::params::{Params, unsupported, wrong_type};
use crate::engine::Sampling;
use crate::error::Error;

/// OpenAI's limit for `stop`.
const MAX_STOPS: usize = 4;
/// OpenAI's limits for `metadata`.
const MAX_METADATA: (usize, usize, usize) = (16, 64, 512);

/// A checked request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChatRequest {
    pub(crate) model: String,
    /// As the app sent them, text parts joined.
    pub(crate) messages: Vec<ChatMessage>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) sampling: Sampling,
    /// `None`: the task's own limit.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stop: Vec<String>,
    pub(crate) user: Option<String>,
    pub(crate) safety_identifier: Option<String>,
    pub(crate) metadata: Option<Value>,
    /// False: no text is kept.
    pub(crate) store: bool,
}

impl ChatRequest {
    pub(crate) fn read(mut params: Params) -> Result<Self, Error> {
        let p = &mut params;
        let model = p.string("model")?;
        let model = p.required("model", model)?;
        let messages = messages(p)?;
        let stream = p.boolean("stream")?.unwrap_or(false);
        let include_usage = stream_options(p, stream)?;
        let sampling = Sampling {
            temperature: p.decimal("temperature", 0.0, 2.0)?.unwrap_or(1.0),
            top_p: p.decimal("top_p", 0.0, 1.0)?.unwrap_or(1.0),
            presence_penalty: p.decimal("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0) as f32,
            frequency_penalty: p.decimal("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0) as f32,
            seed: p.integer("seed", i64::MIN, i64::MAX)?,
            logit_bias: Vec::new(),
        };
        let max_tokens = max_tokens(p)?;
        let stop = stop(p)?;
        let user = p.string("user")?;
        let safety_identifier = p.string("safety_identifier")?;
        let metadata = metadata(p)?;
        let store = p.boolean("store")?.unwrap_or(true);
        refuse_the_rest(params)?;
        Ok(Self {
            model,
            messages,
            stream,
            include_usage,
            sampling,
            max_tokens,
            stop,
            user,
            safety_identifier,
            metadata,
            store,
        })
    }

    /// What a share of the traffic sticks to: the identifier of the person, else the first message.
    pub(crate) fn sticky_key(&self) -> &str {
        let person = self.safety_identifier.as_deref().or(self.user.as_deref());
        person
            .or(self.messages.first().map(|m| m.content.as_str()))
            .unwrap_or_default()
    }

    /// What was asked for, as the ledger keeps it.
    pub(crate) fn parameters(&self, max_tokens: usize) -> Value {
        let mut parameters = json!({
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "max_tokens": max_tokens,
            "stream": self.stream,
        });
        let mut also = |key: &str, value: Value, default: Value| {
            if value != default
                && let Some(object) = parameters.as_object_mut()
            {
                object.insert(key.to_owned(), value);
            }
        };
        also(
            "presence_penalty",
            json!(self.sampling.presence_penalty),
            json!(0.0f32),
        );
        also(
            "frequency_penalty",
            json!(self.sampling.frequency_penalty),
            json!(0.0f32),
        );
        also("seed", json!(self.sampling.seed), Value::Null);
        also("stop", json!(self.stop.len()), json!(0));
        parameters
    }
}

fn stream_options(p: &mut Params, stream: bool) -> Result<bool, Error> {
    let Some(options) = p.object("stream_options")? else {
        return Ok(false);
    };
    if !stream {
        return Err(Error::Invalid {
            message: "The 'stream_options' parameter is only allowed when 'stream' is enabled."
                .to_owned(),
            param: Some("stream_options".to_owned()),
            code: None,
        });
    }
    let mut options = Params::inner(options, "stream_options");
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    // Padding against traffic analysis; none is sent, which is what `false` says.
    options.unsupported("include_obfuscation", |v| v == &json!(false))?;
    options.finish()?;
    Ok(include_usage)
}

fn max_tokens(p: &mut Params) -> Result<Option<usize>, Error> {
    let old = p.integer("max_tokens", 1, i64::from(u32::MAX))?;
    let new = p.integer("max_completion_tokens", 1, i64::from(u32::MAX))?;
    if old.is_some() && new.is_some() {
        let message =
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.";
        return Err(Error::param(
            "max_tokens",
            "invalid_parameter_combination",
            message,
        ));
    }
    Ok(new.or(old).and_then(|n| usize::try_from(n).ok()))
}

fn stop(p: &mut Params) -> Result<Vec<String>, Error> {
    let stops = match p.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) => vec![Value::String(one)],
        Some(Value::Array(several)) => several,
        Some(other) => {
            return Err(wrong_type(
                "stop",
                "a string or an array of strings",
                &other,
            ));
        }
    };
    if stops.len() > MAX_STOPS {
        let message = format!(
            "Invalid 'stop': array too long. Expected an array with maximum length {MAX_STOPS}, but got an array with length {} instead.",
            stops.len()
        );
        return Err(Error::param("stop", "array_above_max_length", message));
    }
    let one = |(i, stop): (usize, Value)| match stop {
        Value::String(s) if !s.is_empty() => Ok(s),
        Value::String(_) => Err(Error::param(
            "stop",
            "empty_string",
            format!("Invalid 'stop[{i}]': an empty string ends nothing."),
        )),
        other => Err(wrong_type(&format!("stop[{i}]"), "a string", &other)),
    };
    stops.into_iter().enumerate().map(one).collect()
}

fn metadata(p: &mut Params) -> Result<Option<Value>, Error> {
    let Some(metadata) = p.object("metadata")? else {
        return Ok(None);
    };
    let (pairs, key_length, value_length) = MAX_METADATA;
    let wrong = |message: String| Err(Error::param("metadata", "invalid_metadata", message));
    if metadata.len() > pairs {
        return wrong(format!(
            "Invalid 'metadata': at most {pairs} pairs are kept, but got {}.",
            metadata.len()
        ));
    }
    for (key, value) in &metadata {
        let Value::String(text) = value else {
            return Err(wrong_type(&format!("metadata.{key}"), "a string", value));
        };
        if key.chars().count() > key_length || text.chars().count() > value_length {
            return wrong(format!(
                "Invalid 'metadata': keys have at most {key_length} characters, values {value_length}."
            ));
        }
    }
    Ok(Some(Value::Object(metadata)))
}

fn messages(p: &mut Params) -> Result<Vec<ChatMessage>, Error> {
    let messages = p.array("messages")?;
    let messages = p.required("messages", messages)?;
    if messages.is_empty() {
        let message = "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.";
        return Err(Error::param("messages", "empty_array", message));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(i, m)| message(m, &format!("messages[{i}]")))
        .collect()
}

fn message(message: Value, path: &str) -> Result<ChatMessage, Error> {
    let Value::Object(members) = message else {
        return Err(wrong_type(path, "an object", &message));
    };
    let mut p = Params::inner(members, path);
    let role = p.string("role")?;
    let role = p.required("role", role)?;
    match role.as_str() {
        "system" | "developer" | "user" | "assistant" => {}
        "tool" | "function" => return Err(unsupported(&p.name("role"))),
        other => {
            let name = p.name("role");
            let message = format!(
                "Invalid value: '{other}'. Supported values are: 'system', 'developer', 'user', and 'assistant'."
            );
            return Err(Error::param(&name, "invalid_value", message));
        }
    }
    let content = content(&mut p)?;
    // An answer that comes back as history carries these, empty.
    for key in [
        "refusal",
        "annotations",
        "audio",
        "tool_calls",
        "function_call",
        "name",
        "reasoning_content",
    ] {
        p.unsupported(key, |v| v.as_array().is_some_and(Vec::is_empty))?;
    }
    p.finish()?;
    Ok(ChatMessage::new(role, content))
}

fn content(p: &mut Params) -> Result<String, Error> {
    let content = p.take("content");
    match p.required("content", content)? {
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            let path = p.name("content");
            let texts: Result<Vec<String>, Error> = parts
                .into_iter()
                .enumerate()
                .map(|(i, part)| text_part(part, &format!("{path}[{i}]")))
                .collect();
            Ok(texts?.concat())
        }
        other => Err(wrong_type(
            &p.name("content"),
            "a string or an array of parts",
            &other,
        )),
    }
}

fn text_part(part: Value, path: &str) -> Result<String, Error> {
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

/// Parameters that OpenAI has and this server cannot honour pass only with a value that asks for nothing.
fn refuse_the_rest(mut p: Params) -> Result<(), Error> {
    let empty = |v: &Value| {
        v.as_array().is_some_and(Vec::is_empty) || v.as_object().is_some_and(Map::is_empty)
    };
    let is = |wanted: Value| move |v: &Value| *v == wanted;
    p.unsupported("n", is(json!(1)))?;
    p.unsupported("logprobs", is(json!(false)))?;
    p.unsupported("top_logprobs", is(json!(0)))?;
    p.unsupported("logit_bias", empty)?;
    p.unsupported("response_format", is(json!({ "type": "text" })))?;
    p.unsupported("tools", empty)?;
    p.unsupported("functions", empty)?;
    p.unsupported("tool_choice", |v| v == "none" || v == "auto")?;
    p.unsupported("function_call", |v| v == "none" || v == "auto")?;
    p.unsupported("parallel_tool_calls", Value::is_boolean)?;
    p.unsupported("modalities", is(json!(["text"])))?;
    p.unsupported("service_tier", |v| v == "auto" || v == "default")?;
    for key in [
        "audio",
        "prediction",
        "reasoning_effort",
        "web_search_options",
        "verbosity",
        "prompt_cache_key",
        "prompt_cache_retention",
    ] {
        p.unsupported(key, |_| false)?;
    }
    p.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use super::*;

    fn read(body: &Value) -> Result<ChatRequest, Error> {
        ChatRequest::read(Params::parse(body.to_string().as_bytes())?)
    }

    fn with(key: &str, value: Value) -> Result<ChatRequest, Error> {
        let mut body =
            json!({"model": "triage", "messages": [{"role": "user", "content": "hello"}]});
        body[key] = value;
        read(&body)
    }

    #[test]
    fn content_as_parts_and_an_answer_sent_back() {
        let request = with(
            "messages",
            json!([
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c", "refusal": null, "annotations": [], "tool_calls": null},
            ]),
        );
        let messages = request.unwrap().messages;
        assert_eq!(messages[0].content, "ab");
        assert_eq!(messages[1].role, "assistant");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (key, value, param, code) in [
            ("messages", json!([]), "messages", "empty_array"),
            ("messages", json!("hello"), "messages", "invalid_type"),
            ("messages", json!([3]), "messages[0]", "invalid_type"),
            (
                "messages",
                json!([{"role": "user"}]),
                "messages[0].content",
                "missing_required_parameter",
            ),
            (
                "messages",
                json!([{"role": "king", "content": ""}]),
                "messages[0].role",
                "invalid_value",
            ),
            (
                "messages",
                json!([{"role": "tool", "content": ""}]),
                "messages[0].role",
                "unsupported_parameter",
            ),
            (
                "messages",
                json!([{"role": "user", "content": "", "name": "me"}]),
                "messages[0].name",
                "unsupported_parameter",
            ),
            (
                "messages",
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
                "messages[0].content[0].type",
                "unsupported_parameter",
            ),
            (
                "temperature",
                json!(2.5),
                "temperature",
                "decimal_above_max_value",
            ),
            ("temperature", json!("hot"), "temperature", "invalid_type"),
            ("top_p", json!(-0.1), "top_p", "decimal_below_min_value"),
            (
                "max_tokens",
                json!(0),
                "max_tokens",
                "integer_below_min_value",
            ),
            ("max_tokens", json!(1.5), "max_tokens", "invalid_type"),
            (
                "stop",
                json!(["a", "b", "c", "d", "e"]),
                "stop",
                "array_above_max_length",
            ),
            ("stop", json!([""]), "stop", "empty_string"),
            ("metadata", json!({"a": 1}), "metadata.a", "invalid_type"),
            ("stream", json!("yes"), "stream", "invalid_type"),
            ("n", json!(2), "n", "unsupported_parameter"),
            ("logprobs", json!(true), "logprobs", "unsupported_parameter"),
            (
                "response_format",
                json!({"type": "json_object"}),
                "response_format",
                "unsupported_parameter",
            ),
            ("tools", json!([{}]), "tools", "unsupported_parameter"),
            ("colour", json!("red"), "colour", "unknown_parameter"),
        ] {
            match with(key, value.clone()) {
                Err(Error::Invalid {
                    param: found,
                    code: found_code,
                    ..
                }) => {
                    assert_eq!(
                        (found.as_deref(), found_code),
                        (Some(param), Some(code)),
                        "{key} = {value}"
                    );
                }
                other => panic!("{key} = {value}: {other:?}"),
            }
        }
        let both = json!({"model": "m", "messages": [{"role": "user", "content": ""}], "max_tokens": 1, "max_completion_tokens": 1});
        assert!(read(&both).is_err());
        assert!(with("stream_options", json!({"include_usage": true})).is_err());
    }

    #[test]
    fn values_that_ask_for_nothing_pass() {
        for (key, value) in [
            ("n", json!(1)),
            ("logprobs", json!(false)),
            ("logit_bias", json!({})),
            ("tools", json!([])),
            ("response_format", json!({"type": "text"})),
            ("temperature", Value::Null),
            ("seed", json!(-7)),
            ("colour", Value::Null),
        ] {
            let outcome = with(key, value.clone());
            assert_eq!(outcome.is_ok(), key != "colour", "{key} = {value}");
        }
    }

    #[test]
    fn the_person_first_then_the_first_message() {
        assert_eq!(with("stop", json!("x")).unwrap().sticky_key(), "hello");
        assert_eq!(with("user", json!("u1")).unwrap().sticky_key(), "u1");
    }
}
