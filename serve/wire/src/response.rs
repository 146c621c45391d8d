//! Answers as OpenAI's clients expect them, whole and in chunks.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::calls::{Call, Delta, Message};

/// One of an answer's choices, complete.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    pub message: Message,
    /// OpenAI's word.
    pub finish: &'static str,
    /// Empty where none were asked for.
    pub logprobs: Vec<TokenLogprob>,
}

/// A token of an answer with its log-probability, of the model's own distribution: before temperature, penalties and constraints.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    pub bytes: Vec<u8>,
    /// Natural logarithm.
    pub logprob: f32,
    /// The likeliest tokens in this place, best first.
    pub top: Vec<(Vec<u8>, f32)>,
}

/// Token counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt: usize,
    pub completion: usize,
}

impl Usage {
    /// As OpenAI's API has them.
    pub fn object(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }
}

/// Wraps one answer's parts, which share these.
pub struct Envelope {
    pub id: String,
    /// Seconds since 1970.
    pub created: i64,
    pub model: String,
    /// A chat's answer, or a raw prompt's.
    pub chat: bool,
    pub include_usage: bool,
    /// Whether probabilities were asked for.
    pub logprobs: bool,
}

impl Envelope {
    /// The whole answer.
    pub fn whole(&self, choices: &[Choice], usage: Usage) -> Value {
        let choices = choices.iter().enumerate();
        let choices: Vec<Value> = if self.chat {
            choices.map(|(i, c)| self.chat_choice(i, c)).collect()
        } else {
            choices.map(|(i, c)| self.text_choice(i, c)).collect()
        };
        let object = if self.chat {
            "chat.completion"
        } else {
            "text_completion"
        };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": usage.object(),
            "system_fingerprint": null,
        })
    }

    fn chat_choice(&self, index: usize, choice: &Choice) -> Value {
        json!({
            "index": index,
            "message": message(&choice.message),
            "logprobs": self.chat_logprobs(&choice.logprobs),
            "finish_reason": choice.finish,
        })
    }

    fn text_choice(&self, index: usize, choice: &Choice) -> Value {
        let mut offset = 0;
        json!({
            "index": index,
            "text": choice.message.content.as_deref().unwrap_or_default(),
            "logprobs": self.text_logprobs(&choice.logprobs, &mut offset),
            "finish_reason": choice.finish,
        })
    }

    /// The role of a choice, once, before any content; raw prompts have none.
    pub fn role(&self, index: usize) -> String {
        if !self.chat {
            return String::new();
        }
        let delta = json!({ "role": "assistant", "content": "", "refusal": null });
        self.choice(index, Said::Delta(delta), Value::Null, None)
    }

    /// A part of a choice.
    pub fn part(
        &self,
        index: usize,
        delta: &Delta,
        logprobs: &[TokenLogprob],
        offset: &mut usize,
    ) -> String {
        if !self.chat {
            let Delta::Content(text) = delta else {
                return String::new();
            };
            let logprobs = self.text_logprobs(logprobs, offset);
            return self.choice(index, Said::Text(text), logprobs, None);
        }
        let delta = match delta {
            Delta::Content(text) => Said::Content(Content { content: text }),
            Delta::Call {
                index: call,
                id,
                name,
            } => Said::Delta(
                json!({ "tool_calls": [{ "index": call, "id": id, "type": "function",
                "function": { "name": name, "arguments": "" } }] }),
            ),
            Delta::Arguments { index: call, text } => Said::Delta(
                json!({ "tool_calls": [{ "index": call, "function": { "arguments": text } }] }),
            ),
        };
        self.choice(index, delta, self.chat_logprobs(logprobs), None)
    }

    /// A choice's last chunk, without content.
    pub fn finish(&self, index: usize, finish: &str) -> String {
        let nothing = match self.chat {
            true => Said::Delta(json!({})),
            false => Said::Text(""),
        };
        self.choice(index, nothing, Value::Null, Some(finish))
    }

    /// The counts, if they were asked for.
    pub fn usage(&self, usage: Usage) -> Option<String> {
        let counts = || self.chunk(&[], usage.object());
        self.include_usage.then(counts)
    }

    fn choice(
        &self,
        index: usize,
        said: Said<'_>,
        logprobs: Value,
        finish: Option<&str>,
    ) -> String {
        let part = Part {
            index,
            said,
            logprobs,
            finish_reason: finish,
        };
        self.chunk(&[part], Value::Null)
    }

    fn chunk(&self, choices: &[Part<'_>], usage: Value) -> String {
        event(&Chunk {
            id: &self.id,
            object: match self.chat {
                true => "chat.completion.chunk",
                false => "text_completion",
            },
            created: self.created,
            model: &self.model,
            system_fingerprint: None,
            choices,
            usage: self.include_usage.then_some(usage),
        })
    }

    fn chat_logprobs(&self, tokens: &[TokenLogprob]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let told = |bytes: &[u8], logprob: f32| json!({ "token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes });
        let content = tokens.iter().map(|t| {
            let mut one = told(&t.bytes, t.logprob);
            one["top_logprobs"] = t.top.iter().map(|(bytes, lp)| told(bytes, *lp)).collect();
            one
        });
        json!({ "content": content.collect::<Vec<_>>(), "refusal": null })
    }

    /// The older form, in parallel lists. `offset`: characters of the text before these tokens; moves on.
    fn text_logprobs(&self, tokens: &[TokenLogprob], offset: &mut usize) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let top = |t: &TokenLogprob| -> Map<String, Value> {
            t.top
                .iter()
                .map(|(bytes, lp)| (text(bytes), json!(lp)))
                .collect()
        };
        let offsets: Vec<usize> = tokens
            .iter()
            .map(|t| {
                let at = *offset;
                *offset += text(&t.bytes).chars().count();
                at
            })
            .collect();
        json!({
            "tokens": tokens.iter().map(|t| text(&t.bytes)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|t| t.logprob).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }
}

/// A chunk. One goes out with each token, so it is written without a tree of values in between.
#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'a str,
    created: i64,
    model: &'a str,
    system_fingerprint: Option<&'a str>,
    choices: &'a [Part<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
}

#[derive(Serialize)]
struct Part<'a> {
    index: usize,
    #[serde(flatten)]
    said: Said<'a>,
    logprobs: Value,
    finish_reason: Option<&'a str>,
}

/// A chat's delta, or a raw prompt's text.
#[derive(Serialize)]
enum Said<'a> {
    #[serde(rename = "delta")]
    Content(Content<'a>),
    #[serde(rename = "delta")]
    Delta(Value),
    #[serde(rename = "text")]
    Text(&'a str),
}

#[derive(Serialize)]
struct Content<'a> {
    content: &'a str,
}

/// A message as it stands in an answer.
pub fn message(message: &Message) -> Value {
    let mut object = json!({ "role": "assistant", "content": message.content, "refusal": null, "annotations": [] });
    if message.calls.is_empty() {
        // An answer of no text is text all the same.
        object["content"] = json!(message.content.as_deref().unwrap_or_default());
    } else {
        object["tool_calls"] = tool_calls(&message.calls);
    }
    object
}

/// Calls as OpenAI's API has them.
pub fn tool_calls(calls: &[Call]) -> Value {
    let one = |call: &Call| json!({ "id": call.id, "type": "function", "function": { "name": call.name, "arguments": call.arguments } });
    calls.iter().map(one).collect()
}

/// A JSON value as one server-sent event.
pub fn event(value: &impl Serialize) -> String {
    // It fails for keys that are no texts, and there are none.
    let json = serde_json::to_string(value).unwrap_or_default();
    format!("data: {json}\n\n")
}

/// What `GET /v1/models` says of a model; `more` are Retune's own members.
pub fn model_object(id: &str, created: i64, more: &Value) -> Value {
    let mut model =
        json!({ "id": id, "object": "model", "created": created, "owned_by": "retune" });
    if let (Some(model), Some(more)) = (model.as_object_mut(), more.as_object()) {
        model.extend(more.clone());
    }
    model
}
