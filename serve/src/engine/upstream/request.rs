//! What an upstream is asked: a [`Generation`] in the words of OpenAI's API. Pure.
//!
//! Always as a stream with usage, whatever the client asked for: so that a client that leaves ends the answer, and that one that is
//! stuck is noticed.

use std::path::Path;

use retune_task::{ChatMessage, Grammar};
use retune_wire::Sampling;
use serde_json::{Map, Value, json};

use crate::engine::{Constraint, Generation, Prompt};
use crate::trace::Trail;

/// Servers want `top_p` above 0; this leaves the likeliest token alone.
const LEAST_TOP_P: f64 = 1e-6;

/// A route and what is posted to it, but for the model's name.
#[derive(Debug, Clone)]
pub(super) struct Asking {
    pub(super) route: &'static str,
    body: Map<String, Value>,
    /// The client's parameter that the constraint came from.
    pub(super) constraint: Option<&'static str>,
    /// Whose sake it is for.
    pub(super) trail: Trail,
}

impl Asking {
    pub(super) fn new(generation: &Generation) -> Self {
        let mut body = Map::new();
        let mut put = |key: &str, value: Value| {
            body.insert(key.to_owned(), value);
        };
        let route = match &generation.prompt {
            Prompt::Messages { messages, tools } => {
                put("messages", messages.iter().map(message).collect());
                if let Some(tools) = tools {
                    put("tools", Value::clone(tools));
                    // The constraint makes the call; the server shows the tools to the model, and reads nothing into the answer.
                    if generation
                        .constraint
                        .as_ref()
                        .is_some_and(|c| c.param == "tools")
                    {
                        put("tool_choice", json!("none"));
                    }
                }
                if let Some(top) = generation.logprobs {
                    put("logprobs", json!(true));
                    put("top_logprobs", json!(top));
                }
                "/v1/chat/completions"
            }
            Prompt::Text(text) => {
                put("prompt", json!(text));
                if let Some(top) = generation.logprobs {
                    put("logprobs", json!(top));
                }
                "/v1/completions"
            }
        };
        put("stream", json!(true));
        put("stream_options", json!({ "include_usage": true }));
        put("max_tokens", json!(generation.max_tokens));
        if !generation.stop.is_empty() {
            put("stop", json!(generation.stop));
        }
        sampling(&generation.sampling, &mut put);
        if let Some(constraint) = &generation.constraint {
            hold(constraint, &mut put);
        }
        Self {
            route,
            body,
            constraint: generation.constraint.as_ref().map(|c| c.param),
            trail: generation.trail.clone(),
        }
    }

    /// The whole body.
    pub(super) fn of(&self, model: &str) -> Value {
        let mut body = self.body.clone();
        body.insert("model".to_owned(), json!(model));
        Value::Object(body)
    }

    /// The client's parameter that holds what the model reads.
    pub(super) fn prompt(&self) -> &'static str {
        if self.body.contains_key("messages") {
            "messages"
        } else {
            "prompt"
        }
    }

    /// What vLLM's /tokenize needs to count the prompt.
    pub(super) fn count(&self, model: &str) -> Value {
        let prompt = ["messages", "prompt", "tools"]
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), self.body.get(key)?.clone())));
        let mut body: Map<String, Value> = prompt.collect();
        body.insert("model".to_owned(), json!(model));
        Value::Object(body)
    }
}

fn sampling(sampling: &Sampling, put: &mut impl FnMut(&str, Value)) {
    put("temperature", json!(sampling.temperature));
    put("top_p", json!(sampling.top_p.max(LEAST_TOP_P)));
    if sampling.presence_penalty != 0.0 {
        put("presence_penalty", json!(sampling.presence_penalty));
    }
    if sampling.frequency_penalty != 0.0 {
        put("frequency_penalty", json!(sampling.frequency_penalty));
    }
    if let Some(seed) = sampling.seed {
        put("seed", json!(seed));
    }
    if !sampling.logit_bias.is_empty() {
        let bias = sampling
            .logit_bias
            .iter()
            .map(|(token, bias)| (token.to_string(), json!(bias)));
        put("logit_bias", Value::Object(bias.collect()));
    }
}

/// OpenAI has no regex: vLLM's two names for it, the older and the newer, of which servers ignore the one that they don't know.
fn hold(constraint: &Constraint, put: &mut impl FnMut(&str, Value)) {
    match &*constraint.grammar {
        Grammar::JsonSchema(schema) => {
            let schema = json!({ "name": "answer", "schema": schema, "strict": true });
            let format = json!({ "type": "json_schema", "json_schema": schema });
            put("response_format", format);
        }
        Grammar::JsonObject => put("response_format", json!({ "type": "json_object" })),
        Grammar::Regex(pattern) => {
            put("structured_outputs", json!({ "regex": pattern }));
            put("guided_regex", json!(pattern));
        }
    }
}

/// A message as OpenAI's API has it: the arguments of calls are a text there.
fn message(message: &ChatMessage) -> Value {
    let mut members = Map::new();
    members.insert("role".to_owned(), json!(message.role));
    members.insert("content".to_owned(), json!(message.content));
    if let Some(calls) = &message.tool_calls {
        let mut calls = calls.clone();
        for call in calls.as_array_mut().into_iter().flatten() {
            if let Some(arguments) = call.pointer_mut("/function/arguments")
                && !arguments.is_string()
            {
                *arguments = Value::String(arguments.to_string());
            }
        }
        members.insert("tool_calls".to_owned(), calls);
    }
    if let Some(id) = &message.tool_call_id {
        members.insert("tool_call_id".to_owned(), json!(id));
    }
    if let Some(name) = &message.name {
        members.insert("name".to_owned(), json!(name));
    }
    Value::Object(members)
}

/// Where an upstream finds an adapter whose files are in `folder`, which ends in its task and its number.
pub(super) fn path_upstream(folder: &Path, adapters_path: Option<&str>) -> String {
    let Some(root) = adapters_path else {
        return folder.display().to_string();
    };
    let parts: Vec<_> = folder.iter().rev().take(2).collect();
    let mut path = root.to_owned();
    for part in parts.into_iter().rev() {
        path.push('/');
        path.push_str(&part.to_string_lossy());
    }
    path
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn generation(prompt: Prompt) -> Generation {
        Generation {
            adapter: None,
            prompt,
            sampling: Sampling::GREEDY,
            max_tokens: 7,
            stop: Vec::new(),
            logprobs: None,
            constraint: None,
            trail: Trail::default(),
        }
    }

    #[test]
    fn a_conversation_with_everything() {
        let calls = json!([{"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]);
        let messages = vec![
            ChatMessage::new("user", "hello"),
            ChatMessage {
                tool_calls: Some(calls),
                ..ChatMessage::new("assistant", "")
            },
            ChatMessage {
                tool_call_id: Some("c".to_owned()),
                ..ChatMessage::new("tool", "1")
            },
        ];
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        let asking = Asking::new(&Generation {
            sampling: Sampling {
                temperature: 0.5,
                top_p: 0.0,
                presence_penalty: 1.0,
                frequency_penalty: 0.0,
                seed: Some(-3),
                logit_bias: vec![(5, -100.0)],
            },
            stop: vec!["x".to_owned()],
            logprobs: Some(2),
            constraint: Some(Constraint {
                grammar: Arc::new(Grammar::JsonSchema(json!({"type": "object"}))),
                param: "response_format",
            }),
            ..generation(Prompt::Messages {
                messages,
                tools: Some(Arc::new(tools.clone())),
            })
        });
        assert_eq!(
            (asking.route, asking.constraint),
            ("/v1/chat/completions", Some("response_format"))
        );
        let expected = json!({
            "messages": [
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
                {"role": "tool", "content": "1", "tool_call_id": "c"},
            ],
            "tools": tools,
            "logprobs": true,
            "top_logprobs": 2,
            "stream": true,
            "stream_options": {"include_usage": true},
            "max_tokens": 7,
            "stop": ["x"],
            "temperature": 0.5,
            "top_p": LEAST_TOP_P,
            "presence_penalty": 1.0,
            "seed": -3,
            "logit_bias": {"5": -100.0},
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": true}},
            "model": "m",
        });
        assert_eq!(asking.of("m"), expected);
    }

    #[test]
    fn a_text_and_a_regex() {
        let asking = Asking::new(&Generation {
            logprobs: Some(0),
            constraint: Some(Constraint {
                grammar: Arc::new(Grammar::Regex("a+".to_owned())),
                param: "model",
            }),
            ..generation(Prompt::Text("once".to_owned()))
        });
        let body = asking.of("m");
        assert_eq!(asking.route, "/v1/completions");
        assert_eq!(
            (&body["prompt"], &body["logprobs"]),
            (&json!("once"), &json!(0))
        );
        assert_eq!(
            (&body["guided_regex"], &body["structured_outputs"]["regex"]),
            (&json!("a+"), &json!("a+"))
        );
        assert_eq!(asking.count("m"), json!({"prompt": "once", "model": "m"}));
    }

    #[test]
    fn a_call_that_a_constraint_makes_is_left_to_it() {
        let messages = Prompt::Messages {
            messages: vec![ChatMessage::new("user", "hello")],
            tools: Some(Arc::new(json!([]))),
        };
        let asking = |param| {
            Asking::new(&Generation {
                constraint: Some(Constraint {
                    grammar: Arc::new(Grammar::JsonObject),
                    param,
                }),
                ..generation(messages.clone())
            })
            .of("m")
        };
        assert_eq!(asking("tools")["tool_choice"], "none");
        assert_eq!(asking("response_format").get("tool_choice"), None);
    }

    #[test]
    fn an_adapters_folder_is_where_upstream_sees_it() {
        let folder = Path::new("/srv/retune/adapters/support/3");
        assert_eq!(
            path_upstream(folder, None),
            "/srv/retune/adapters/support/3"
        );
        assert_eq!(path_upstream(folder, Some("/mnt/a")), "/mnt/a/support/3");
    }
}
