//! What an app asks for. What can be done is done, what cannot is a 400 that names the parameter; nothing is ignored.
//!
//! Chat completions and completions of a raw prompt are one [`Request`]: they differ in what the model reads and in how the
//! answer is wrapped, and in nothing between.

use std::borrow::Cow;

use retune_task::{ChatMessage, conversation};
use serde_json::{Map, Value, json};

use crate::messages::messages;
use crate::params::{Params, unsupported, wrong_type};
use crate::refusal::Refusal;
use crate::sampling::Sampling;
use crate::tools::{ResponseFormat, Tools};

/// OpenAI's limit for `stop`.
const MAX_STOPS: usize = 4;
/// OpenAI's limits for `metadata`.
const MAX_METADATA: (usize, usize, usize) = (16, 64, 512);
/// OpenAI's limits for `n` and `top_logprobs`, and for `logprobs` of a completion.
const MAX_CHOICES: i64 = 128;
const MAX_TOP_LOGPROBS: i64 = 20;
const MAX_COMPLETION_LOGPROBS: i64 = 5;
/// OpenAI's default for a completion's length; chats have none.
const COMPLETION_MAX_TOKENS: usize = 16;

/// A checked request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub model: String,
    pub ask: Ask,
    pub stream: bool,
    pub include_usage: bool,
    pub sampling: Sampling,
    /// `None`: the task's own limit.
    pub max_tokens: Option<usize>,
    pub stop: Vec<String>,
    /// Answers to each prompt.
    pub n: usize,
    /// How many of the likeliest tokens are told beside each chosen one; `None`: no probabilities.
    pub logprobs: Option<usize>,
    pub user: Option<String>,
    pub safety_identifier: Option<String>,
    pub metadata: Option<Value>,
    /// False: no text is kept.
    pub store: bool,
}

/// What the model is to answer to.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    Chat(Chat),
    /// Raw prompts, each continued by itself.
    Completion(Vec<String>),
}

/// A conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Chat {
    /// As the app sent them, text parts joined.
    pub messages: Vec<ChatMessage>,
    pub tools: Option<Tools>,
    /// The request's own; it takes the place of the task's format.
    pub response_format: Option<ResponseFormat>,
}

impl Request {
    /// `POST /v1/chat/completions`.
    pub fn chat(mut params: Params) -> Result<Self, Refusal> {
        let p = &mut params;
        let model = p.string("model")?;
        let model = p.required("model", model)?;
        let messages = messages(p, "messages")?;
        let logprobs = logprobs(p)?;
        let max_tokens = max_tokens(p)?;
        let chat = Chat {
            messages,
            tools: Tools::read(p)?,
            response_format: ResponseFormat::read(p)?,
        };
        let request = Self::common(p, model, Ask::Chat(chat), max_tokens, logprobs)?;
        refuse_the_rest(params)?;
        Ok(request)
    }

    /// `POST /v1/completions`.
    pub fn completion(mut params: Params) -> Result<Self, Refusal> {
        let p = &mut params;
        let model = p.string("model")?;
        let model = p.required("model", model)?;
        let prompts = prompts(p)?;
        let logprobs = p.integer("logprobs", 0, MAX_COMPLETION_LOGPROBS)?;
        let logprobs = logprobs.and_then(|n| usize::try_from(n).ok());
        let max_tokens = p.integer("max_tokens", 1, i64::from(u32::MAX))?;
        let max_tokens = max_tokens.and_then(|n| usize::try_from(n).ok());
        let max_tokens = Some(max_tokens.unwrap_or(COMPLETION_MAX_TOKENS));
        let request = Self::common(p, model, Ask::Completion(prompts), max_tokens, logprobs)?;
        p.unsupported("echo", |v| v == &json!(false))?;
        p.unsupported("suffix", |v| v == &json!(""))?;
        let best_of = p.integer("best_of", 1, MAX_CHOICES)?;
        if best_of.is_some_and(|best| usize::try_from(best).ok() != Some(request.n)) {
            return Err(unsupported("best_of"));
        }
        params.finish()?;
        Ok(request)
    }

    fn common(
        p: &mut Params,
        model: String,
        ask: Ask,
        max_tokens: Option<usize>,
        logprobs: Option<usize>,
    ) -> Result<Self, Refusal> {
        let stream = p.boolean("stream")?.unwrap_or(false);
        Ok(Self {
            model,
            ask,
            stream,
            include_usage: stream_options(p, stream)?,
            sampling: Sampling::read(p)?,
            max_tokens,
            stop: stop(p)?,
            n: p.integer("n", 1, MAX_CHOICES)?
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or(1),
            logprobs,
            user: p.string("user")?,
            safety_identifier: p.string("safety_identifier")?,
            metadata: metadata(p)?,
            store: p.boolean("store")?.unwrap_or(true),
        })
    }

    /// The conversation; a raw prompt counts as what a user said.
    pub fn messages(&self) -> Vec<ChatMessage> {
        match &self.ask {
            Ask::Chat(chat) => chat.messages.clone(),
            Ask::Completion(prompts) => prompts
                .iter()
                .map(|prompt| ChatMessage::new("user", prompt.as_str()))
                .collect(),
        }
    }

    /// What a share of the traffic sticks to: the identifier of the person, else the conversation, by its first user message. A
    /// system message, which an app sends with every request, would put them all on one side.
    pub fn sticky_key(&self) -> Cow<'_, str> {
        let person = self.safety_identifier.as_deref().or(self.user.as_deref());
        match (person, &self.ask) {
            (Some(person), _) if !person.is_empty() => Cow::Borrowed(person),
            (_, Ask::Chat(chat)) => Cow::Owned(conversation(&chat.messages)),
            (_, Ask::Completion(_)) => Cow::Owned(conversation(&self.messages())),
        }
    }

    /// Whether the answer's form is the request's own matter, not the task's.
    pub fn has_own_form(&self) -> bool {
        match &self.ask {
            Ask::Chat(chat) => chat.response_format.is_some() || chat.tools.is_some(),
            Ask::Completion(_) => true,
        }
    }

    /// What was asked for, as the ledger keeps it.
    pub fn parameters(&self, max_tokens: usize) -> Map<String, Value> {
        let sampling = &self.sampling;
        let mut kept = Map::new();
        let mut keep = |key: &str, value: Value, default: Value| {
            if value != default {
                kept.insert(key.to_owned(), value);
            }
        };
        keep("temperature", json!(sampling.temperature), Value::Null);
        keep("top_p", json!(sampling.top_p), Value::Null);
        keep("max_tokens", json!(max_tokens), Value::Null);
        keep("stream", json!(self.stream), Value::Null);
        keep(
            "presence_penalty",
            json!(sampling.presence_penalty),
            json!(0.0f32),
        );
        keep(
            "frequency_penalty",
            json!(sampling.frequency_penalty),
            json!(0.0f32),
        );
        keep("seed", json!(sampling.seed), Value::Null);
        keep("logit_bias", json!(sampling.logit_bias.len()), json!(0));
        keep("stop", json!(self.stop.len()), json!(0));
        keep("n", json!(self.n), json!(1));
        keep("logprobs", json!(self.logprobs), Value::Null);
        match &self.ask {
            Ask::Completion(_) => keep("raw_prompt", json!(true), Value::Null),
            Ask::Chat(chat) => {
                let format = chat.response_format.as_ref().map(ResponseFormat::kind);
                keep("response_format", json!(format), Value::Null);
                let tools = chat.tools.as_ref().map(Tools::names);
                keep("tools", json!(tools), Value::Null);
            }
        }
        kept
    }
}

/// `logprobs` of a chat, with `top_logprobs`.
fn logprobs(p: &mut Params) -> Result<Option<usize>, Refusal> {
    let wanted = p.boolean("logprobs")?.unwrap_or(false);
    let top = p.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)?;
    if !wanted && top.is_some_and(|top| top > 0) {
        let message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.";
        return Err(Refusal::param(
            "top_logprobs",
            "invalid_parameter_combination",
            message,
        ));
    }
    let top = top.and_then(|top| usize::try_from(top).ok());
    Ok(wanted.then(|| top.unwrap_or(0)))
}

/// One prompt or several.
fn prompts(p: &mut Params) -> Result<Vec<String>, Refusal> {
    let prompt = p.take("prompt");
    let list = match p.required("prompt", prompt)? {
        Value::String(one) => return Ok(vec![one]),
        Value::Array(list) if list.is_empty() => {
            let message =
                "Invalid 'prompt': empty array. Expected a string or an array of strings.";
            return Err(Refusal::param("prompt", "empty_array", message));
        }
        Value::Array(list) => list,
        other => {
            return Err(wrong_type(
                "prompt",
                "a string or an array of strings",
                &other,
            ));
        }
    };
    let one = |(i, prompt): (usize, Value)| match prompt {
        Value::String(text) => Ok(text),
        // Tokens of another model's vocabulary would be noise here, and nobody could tell.
        Value::Number(_) | Value::Array(_) => Err(Refusal::param(
            "prompt",
            "unsupported_value",
            "Unsupported value: 'prompt' is a string or an array of strings here, not tokens.",
        )),
        other => Err(wrong_type(&format!("prompt[{i}]"), "a string", &other)),
    };
    list.into_iter().enumerate().map(one).collect()
}

fn stream_options(p: &mut Params, stream: bool) -> Result<bool, Refusal> {
    let Some(options) = p.object("stream_options")? else {
        return Ok(false);
    };
    if !stream {
        return Err(Refusal {
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

fn max_tokens(p: &mut Params) -> Result<Option<usize>, Refusal> {
    let old = p.integer("max_tokens", 1, i64::from(u32::MAX))?;
    let new = p.integer("max_completion_tokens", 1, i64::from(u32::MAX))?;
    if old.is_some() && new.is_some() {
        let message =
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.";
        return Err(Refusal::param(
            "max_tokens",
            "invalid_parameter_combination",
            message,
        ));
    }
    Ok(new.or(old).and_then(|n| usize::try_from(n).ok()))
}

fn stop(p: &mut Params) -> Result<Vec<String>, Refusal> {
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
        return Err(Refusal::param("stop", "array_above_max_length", message));
    }
    let one = |(i, stop): (usize, Value)| match stop {
        Value::String(s) if !s.is_empty() => Ok(s),
        Value::String(_) => Err(Refusal::param(
            "stop",
            "empty_string",
            format!("Invalid 'stop[{i}]': an empty string ends nothing."),
        )),
        other => Err(wrong_type(&format!("stop[{i}]"), "a string", &other)),
    };
    stops.into_iter().enumerate().map(one).collect()
}

pub(crate) fn metadata(p: &mut Params) -> Result<Option<Value>, Refusal> {
    let Some(metadata) = p.object("metadata")? else {
        return Ok(None);
    };
    let (pairs, key_length, value_length) = MAX_METADATA;
    let wrong = |message: String| Err(Refusal::param("metadata", "invalid_metadata", message));
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

/// Parameters that OpenAI has and this server cannot honour pass only with a value that asks for nothing.
fn refuse_the_rest(mut p: Params) -> Result<(), Refusal> {
    let empty = |v: &Value| {
        v.as_array().is_some_and(Vec::is_empty) || v.as_object().is_some_and(Map::is_empty)
    };
    p.unsupported("functions", empty)?;
    p.unsupported("function_call", |v| v == "none" || v == "auto")?;
    p.unsupported("modalities", |v| v == &json!(["text"]))?;
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
