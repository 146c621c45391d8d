//! Answers as OpenAI's clients expect them, whole and in chunks.

use serde_json::{Value, json};

use crate::engine::Finish;

/// Token counts.
fn usage(prompt_tokens: usize, completion_tokens: usize) -> Value {
    json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    })
}

/// A whole answer; `created` in seconds since 1970.
pub(crate) fn completion(
    id: &str,
    created: i64,
    model: &str,
    answer: &str,
    finish: Finish,
    (prompt_tokens, completion_tokens): (usize, usize),
) -> Value {
    json!({
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": answer, "refusal": null, "annotations": [] },
            "logprobs": null,
            "finish_reason": finish.as_str(),
        }],
        "usage": usage(prompt_tokens, completion_tokens),
        "system_fingerprint": null,
    })
}

/// Makes the events of one stream: each is a complete server-sent event.
pub(crate) struct Chunks {
    pub(crate) id: String,
    pub(crate) created: i64,
    pub(crate) model: String,
    pub(crate) include_usage: bool,
}

impl Chunks {
    /// The role, once, before any content.
    pub(crate) fn role(&self) -> String {
        self.choice(
            json!({ "role": "assistant", "content": "", "refusal": null }),
            None,
        )
    }

    pub(crate) fn text(&self, text: &str) -> String {
        self.choice(json!({ "content": text }), None)
    }

    /// The last choice, without content.
    pub(crate) fn finish(&self, finish: Finish) -> String {
        self.choice(json!({}), Some(finish))
    }

    /// The counts, if they were asked for.
    pub(crate) fn usage(&self, prompt_tokens: usize, completion_tokens: usize) -> Option<String> {
        let mut chunk = self.chunk(json!([]));
        chunk["usage"] = usage(prompt_tokens, completion_tokens);
        self.include_usage.then(|| event(&chunk))
    }

    fn choice(&self, delta: Value, finish: Option<Finish>) -> String {
        let finish = finish.map(Finish::as_str);
        event(&self.chunk(
            json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]),
        ))
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": null,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

/// A JSON value as one server-sent event.
pub(crate) fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// What `GET /v1/models` says of a model; `more` are Retune's own members.
pub(crate) fn model_object(id: &str, created: i64, more: &Value) -> Value {
    let mut model =
        json!({ "id": id, "object": "model", "created": created, "owned_by": "retune" });
    if let (Some(model), Some(more)) = (model.as_object_mut(), more.as_object()) {
        model.extend(more.clone());
    }
    model
}
