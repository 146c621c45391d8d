//! What an upstream answers: from the data of its events to Retune's own. Pure.
//!
//! Servers deviate, and so it takes what they send: the role in every delta, reasons that OpenAI does not have, no usage, an answer in
//! one piece although a stream was asked for, the end of the turn among the answer's tokens.

use std::collections::BTreeMap;

use retune_wire::TokenLogprob;
use serde_json::{Value, json};

use super::failure::{self, Failure};
use crate::engine::{Event, Finish};

/// An answer on its way.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// The client's parameter that the constraint came from.
    constraint: Option<&'static str>,
    /// Whether the answer has a text so far.
    text: bool,
    /// Tokens so far, as far as one can tell: servers send one a piece, most of the time.
    count: usize,
    calls: BTreeMap<u64, Call>,
    reason: Option<String>,
    usage: Option<Usage>,
    /// `[DONE]` came.
    closed: bool,
}

/// A call of a tool, put together from its pieces.
#[derive(Debug, Default)]
struct Call {
    name: String,
    arguments: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
}

/// What one event gave.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Whether it shows that the model answers: from here on no other upstream can take over.
    pub(super) begun: bool,
    pub(super) event: Option<Event>,
}

/// A complete answer.
#[derive(Debug)]
pub(super) struct End {
    /// Calls of tools as the text that models of the Hermes kind write for them, if there are any.
    pub(super) calls: Option<Event>,
    pub(super) finish: Finish,
    pub(super) tokens: usize,
    /// `None`: the server did not say.
    pub(super) prompt_tokens: Option<usize>,
}

impl Reply {
    pub(super) fn new(constraint: Option<&'static str>) -> Self {
        Self {
            constraint,
            ..Self::default()
        }
    }

    /// Whether all there is has come.
    pub(super) fn is_closed(&self) -> bool {
        self.closed || (self.reason.is_some() && self.usage.is_some())
    }

    /// Whether the answer's text has ended; usage may still come.
    pub(super) fn is_finished(&self) -> bool {
        self.closed || self.reason.is_some()
    }

    /// Takes an event's data in.
    pub(super) fn take(&mut self, data: &str) -> Result<Taken, Failure> {
        let data = data.trim();
        if data == "[DONE]" {
            self.closed = true;
            return Ok(Taken::default());
        }
        let value: Value = serde_json::from_str(data)
            .map_err(|_| Failure::Down("sent an event that is not JSON".to_owned()))?;
        if let Some(told) = failure::told(&value) {
            return Err(failure::in_stream(told, self.constraint));
        }
        if let Some(usage) = value.get("usage").and_then(usage) {
            self.usage = Some(usage);
        }
        let Some(choice) = value.pointer("/choices/0") else {
            return Ok(Taken::default());
        };
        Ok(self.choice(choice))
    }

    fn choice(&mut self, choice: &Value) -> Taken {
        let delta = choice.get("delta").or_else(|| choice.get("message"));
        let member = |key: &str| delta.and_then(|delta| delta.get(key));
        let text = member("content").or_else(|| choice.get("text"));
        let text = text.and_then(Value::as_str).unwrap_or_default();
        let mut logprobs = choice.get("logprobs").map(logprobs).unwrap_or_default();
        let thinks = ["reasoning_content", "reasoning"].iter().any(|key| {
            member(key)
                .and_then(Value::as_str)
                .is_some_and(|t| !t.is_empty())
        });
        let calls = member("tool_calls").and_then(Value::as_array);
        for (i, call) in calls.into_iter().flatten().enumerate() {
            self.call(i as u64, call);
        }
        let reason = choice.get("finish_reason").and_then(Value::as_str);
        if let Some(reason) = reason {
            self.reason = Some(reason.to_owned());
            if !is_length(reason) {
                drop_the_end(&mut logprobs, text.len());
            }
        }
        let says = !text.is_empty() || !logprobs.is_empty();
        let calls = calls.is_some_and(|calls| !calls.is_empty());
        if says || thinks || calls {
            self.count += logprobs.len().max(1);
        }
        self.text |= !text.is_empty();
        Taken {
            begun: says || thinks || calls || reason.is_some(),
            event: says.then(|| Event::Text {
                text: text.to_owned(),
                tokens: self.count,
                logprobs,
            }),
        }
    }

    fn call(&mut self, position: u64, call: &Value) {
        let index = call.get("index").and_then(Value::as_u64);
        let known = self.calls.entry(index.unwrap_or(position)).or_default();
        let part = |key: &str| {
            call.pointer(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        known.name.push_str(part("/function/name"));
        match call.pointer("/function/arguments") {
            // Not a text, as some have it: the whole at once.
            Some(arguments @ Value::Object(_)) => known.arguments = arguments.to_string(),
            _ => known.arguments.push_str(part("/function/arguments")),
        }
    }

    /// The stream has ended: was that the whole answer?
    pub(super) fn end(self) -> Result<End, Failure> {
        let answered = self.text || !self.calls.is_empty();
        let finish = match self.reason.as_deref() {
            Some(reason) if is_length(reason) => Finish::Length,
            Some(
                "stop" | "eos" | "eos_token" | "stop_sequence" | "end_turn" | "tool_calls"
                | "function_call",
            ) => Finish::Stop,
            Some("abort" | "aborted" | "cancel" | "canceled" | "cancelled" | "error") => {
                return Err(Failure::Down("gave up an answer".to_owned()));
            }
            Some(_) if answered => Finish::Stop,
            Some(_) => {
                return Err(Failure::Down(
                    "ended an answer without a text or a reason that is known".to_owned(),
                ));
            }
            None if self.closed && answered => Finish::Stop,
            None => {
                return Err(Failure::Down(
                    "ended a stream before the answer's end".to_owned(),
                ));
            }
        };
        let usage = self.usage;
        let calls = (!self.calls.is_empty()).then(|| Event::Text {
            text: self.written_calls(),
            tokens: self.count,
            logprobs: Vec::new(),
        });
        // A 0 beside a text is no count.
        let told = |tokens: usize| (tokens > 0).then_some(tokens);
        Ok(End {
            calls,
            finish,
            tokens: usage
                .and_then(|u| told(u.completion_tokens))
                .unwrap_or(self.count),
            prompt_tokens: usage.and_then(|u| told(u.prompt_tokens)),
        })
    }

    fn written_calls(&self) -> String {
        let calls = self.calls.values().map(|call| {
            let arguments = match call.arguments.trim() {
                "" => json!({}),
                // What is no JSON stays the text that it is, for whoever called.
                written => serde_json::from_str(written).unwrap_or_else(|_| json!(call.arguments)),
            };
            let call = json!({ "name": call.name, "arguments": arguments });
            // A mark inside a text must not end the call; in JSON a slash may be written so.
            let call = call.to_string().replace("</", "<\\/");
            format!("<tool_call>{call}</tool_call>")
        });
        calls.collect::<Vec<_>>().join("\n")
    }
}

/// Whether the limit of tokens ended the answer.
fn is_length(reason: &str) -> bool {
    ["length", "max_tokens", "model_length"].contains(&reason)
}

/// Takes the tokens out that ended the answer and said nothing of its last piece, of so many bytes: vLLM tells the end of the turn's
/// probability too, and clients expect the tokens to be the text.
fn drop_the_end(tokens: &mut Vec<TokenLogprob>, said: usize) {
    while let Some((_, before)) = tokens.split_last()
        && before.iter().map(|t| t.bytes.len()).sum::<usize>() >= said
    {
        tokens.pop();
    }
}

fn usage(value: &Value) -> Option<Usage> {
    let count = |key: &str| {
        let count = value.get(key)?.as_u64()?;
        usize::try_from(count).ok()
    };
    Some(Usage {
        prompt_tokens: count("prompt_tokens")?,
        completion_tokens: count("completion_tokens").unwrap_or(0),
    })
}

/// Probabilities of a chat's tokens, or of a completion's.
fn logprobs(value: &Value) -> Vec<TokenLogprob> {
    if let Some(tokens) = value.get("content").and_then(Value::as_array) {
        return tokens.iter().filter_map(of_chat).collect();
    }
    let list = |key: &str| value.get(key).and_then(Value::as_array);
    let (Some(tokens), Some(logprobs)) = (list("tokens"), list("token_logprobs")) else {
        return Vec::new();
    };
    let one = |(i, (token, logprob)): (usize, (&Value, &Value))| {
        let top = list("top_logprobs").and_then(|top| top.get(i)?.as_object());
        let top = top.into_iter().flatten();
        let top = top.filter_map(|(token, lp)| Some((token.clone().into_bytes(), number(lp)?)));
        Some(TokenLogprob {
            bytes: token.as_str()?.as_bytes().to_vec(),
            logprob: number(logprob)?,
            top: best_first(top.collect()),
        })
    };
    tokens
        .iter()
        .zip(logprobs)
        .enumerate()
        .filter_map(one)
        .collect()
}

fn of_chat(token: &Value) -> Option<TokenLogprob> {
    let (bytes, logprob) = bytes_and_logprob(token)?;
    let top = token.get("top_logprobs").and_then(Value::as_array);
    let top = top.into_iter().flatten().filter_map(bytes_and_logprob);
    Some(TokenLogprob {
        bytes,
        logprob,
        top: best_first(top.collect()),
    })
}

fn bytes_and_logprob(token: &Value) -> Option<(Vec<u8>, f32)> {
    let bytes = token.get("bytes").and_then(Value::as_array).map(|bytes| {
        let byte = |b: &Value| b.as_u64().and_then(|b| u8::try_from(b).ok());
        bytes.iter().filter_map(byte).collect()
    });
    let bytes = match bytes {
        Some(bytes) => bytes,
        None => token.get("token")?.as_str()?.as_bytes().to_vec(),
    };
    Some((bytes, number(token.get("logprob")?)?))
}

fn number(value: &Value) -> Option<f32> {
    value.as_f64().map(|x| x as f32)
}

fn best_first(mut top: Vec<(Vec<u8>, f32)>) -> Vec<(Vec<u8>, f32)> {
    top.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    top
}

#[cfg(test)]
mod tests;
