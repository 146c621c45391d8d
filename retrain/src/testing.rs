//! What the tests share: rows, a tiny base, and a stand-in for the server that answers as it is told.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use chrono::{DateTime, TimeDelta, Utc};
use retune_ledger::{Exchange, Feedback, Purpose, Trigger};
use retune_task::{AlarmKind, ChatMessage, Config, Split, Task};
use retune_trainer::{DType, Model, ModelConfig};
use serde_json::{Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::dataset::{KnownBy, Row};

pub(crate) fn time(second: i64) -> DateTime<Utc> {
    DateTime::<Utc>::UNIX_EPOCH + TimeDelta::seconds(1_700_000_000 + second)
}

pub(crate) fn user(content: &str) -> ChatMessage {
    ChatMessage::new("user", content)
}

/// The template that most open models have.
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A tokenizer of single bytes with two merges, and a ChatML template: enough to show where tokens could merge across a border.
pub(crate) fn write_tokenizer(folder: &Path) -> usize {
    let mut alphabet: Vec<String> = ByteLevel::alphabet()
        .into_iter()
        .map(String::from)
        .collect();
    alphabet.sort();
    alphabet.extend(["Ċ{".to_owned(), "ok".to_owned()]);
    let special = ["<|im_start|>", "<|im_end|>"];
    let added: Vec<Value> = special
        .iter()
        .zip(alphabet.len()..)
        .map(|(token, id)| {
            json!({"id": id, "content": token, "special": true, "normalized": false, "lstrip": false, "rstrip": false, "single_word": false})
        })
        .collect();
    let vocab: HashMap<&str, usize> = alphabet.iter().map(String::as_str).zip(0..).collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": [["Ċ", "{"], ["o", "k"]],
        },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let size = vocab.len();
    let config = json!({"chat_template": CHATML, "eos_token": "<|im_end|>"});
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    size + special.len()
}

/// A tiny random Llama with that tokenizer.
pub(crate) fn write_base(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let vocab = write_tokenizer(folder);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true, "eos_token_id": vocab - 1,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let model = Model::random(&ModelConfig::load(folder).unwrap(), 7).unwrap();
    model.save(folder, DType::F32).unwrap();
}

/// An encoder with that tokenizer, for a context of 4,096 tokens.
pub(crate) fn encoder() -> crate::Encoder {
    let folder = tempfile::tempdir().unwrap();
    write_tokenizer(folder.path());
    crate::Encoder::from_folder(folder.path(), 4096).unwrap()
}

/// One request, as the stand-in got it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Value,
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Value,
}

impl Reply {
    pub(crate) fn ok(body: Value) -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            body,
        }
    }

    pub(crate) fn error(status: u16, message: &str) -> Self {
        let error = json!({"message": message, "type": "invalid_request_error", "param": null, "code": null});
        Self {
            status,
            headers: Vec::new(),
            body: json!({"error": error}),
        }
    }

    pub(crate) fn answer(adapter: &str, digest: Option<&str>, content: &str) -> Self {
        let body = json!({
            "id": "chatcmpl-1", "object": "chat.completion", "model": adapter,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        });
        let mut headers = vec![("retune-adapter", adapter.to_owned())];
        headers.extend(digest.map(|digest| ("retune-digest", digest.to_owned())));
        Self {
            status: 200,
            headers,
            body,
        }
    }
}

type Handler = Arc<dyn Fn(Request) -> Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync>;

/// A stand-in for the running server: HTTP/1.1 on a free port, one request a connection, every request remembered.
pub(crate) struct StandIn {
    pub(crate) url: String,
    pub(crate) requests: Arc<Mutex<Vec<Request>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl StandIn {
    pub(crate) async fn start<F>(handler: impl Fn(Request) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&handler), Arc::clone(&seen)));
            }
        });
        Self {
            url,
            requests,
            serving,
        }
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.requests
            .lock()
            .unwrap()
            .iter()
            .map(|request| request.path.clone())
            .collect()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(mut stream: TcpStream, handler: Handler, seen: Arc<Mutex<Vec<Request>>>) {
    let mut bytes = Vec::new();
    let request = loop {
        if stream.read_buf(&mut bytes).await.unwrap_or_default() == 0 {
            return;
        }
        if let Some(request) = parse(&bytes) {
            break request;
        }
    };
    seen.lock().unwrap().push(request.clone());
    let reply = handler(request).await;
    let body = reply.body.to_string();
    let mut head = format!(
        "HTTP/1.1 {} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n",
        reply.status,
        body.len()
    );
    for (name, value) in reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let _ = stream
        .write_all(format!("{head}\r\n{body}").as_bytes())
        .await;
}

fn parse(bytes: &[u8]) -> Option<Request> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    (body.len() >= length).then(|| Request {
        path,
        headers,
        body: serde_json::from_str(body).unwrap_or_default(),
    })
}

/// The task `ask` with a JSON format and small numbers; `more` is added to its retrain table.
pub(crate) fn config(folder: &Path, more: &str) -> Config {
    std::fs::write(folder.join("prompt.txt"), "Answer with a JSON object.").unwrap();
    let schema = json!({"type": "object", "properties": {"is": {"type": "string"}}, "required": ["is"], "additionalProperties": false});
    std::fs::write(folder.join("ask.schema.json"), schema.to_string()).unwrap();
    let pairs = if more.contains("min_pairs") {
        ""
    } else {
        "min_pairs = 16\n"
    };
    let toml = format!(
        "[engine]\nbase = \"base\"\n[store]\nurl = \"file:./store\"\n[[task]]\nname = \"ask\"\nprompt = \"prompt.txt\"\nadapter_prompt = \"Ask.\"\n\
         format = {{ json_schema = \"ask.schema.json\" }}\n[task.retrain]\nmin_examples = 10\nmin_new_examples = 5\n{pairs}{more}\n"
    );
    let path = folder.join("retune.toml");
    std::fs::write(&path, toml).unwrap();
    Config::load(Some(&path), []).unwrap_or_else(|problems| panic!("{problems}"))
}

/// An alarm about an adapter of the task `ask`.
pub(crate) fn trigger(ts: DateTime<Utc>, kind: AlarmKind, adapter: &str) -> Trigger {
    Trigger {
        alarm: format!("alarm-{kind}"),
        task: "ask".to_owned(),
        adapter: adapter.to_owned(),
        kind,
        ts,
        request_id: "request-1".to_owned(),
        exchanges: 300,
        log_e: 12.0,
        threshold_log: 11.0,
        evidence: Value::Null,
    }
}

pub(crate) fn task() -> Arc<Task> {
    let folder = tempfile::tempdir().unwrap();
    config(folder.path(), "").tasks.remove(0)
}

/// The `n`th row, held out, asked at second `n`.
pub(crate) fn row(n: usize, known_by: KnownBy) -> Row {
    Row {
        request_id: format!("request-{n}"),
        ts: time(n as i64),
        conversation: format!("conversation-{n}"),
        user: None,
        metadata: Default::default(),
        split: Split::HeldOut,
        messages: vec![user(&format!("prompt {n}"))],
        answer: format!(r#"{{"is":"{n}"}}"#),
        known_by,
    }
}

/// The `n`th exchange, asked at second `n`.
pub(crate) fn asked(n: u64, prompt: &str, answer: &str) -> Exchange {
    let messages = vec![user(prompt)];
    Exchange {
        request_id: format!("request-{n}"),
        replica: "0000aaaa".to_owned(),
        seq: n,
        ts: time(n as i64),
        purpose: Purpose::User,
        task: Some("ask".to_owned()),
        model_requested: "ask".to_owned(),
        adapter: Some("ask@base".to_owned()),
        adapter_digest: None,
        stage: Some("champion".to_owned()),
        base: "base".to_owned(),
        api_key_id: None,
        user: None,
        metadata: None,
        conversation: retune_task::conversation(&messages),
        messages: Some(messages),
        answer: Some(answer.to_owned()),
        tool_calls: None,
        finish_reason: Some("stop".to_owned()),
        prompt_tokens: 7,
        completion_tokens: 3,
        time_to_first_token_ms: Some(1.0),
        duration_ms: 2.0,
        parameters: json!({}),
        code: 200,
        format_valid: None,
        format_reason: None,
        run_id: None,
    }
}

pub(crate) fn rated(n: u64, at: i64, rater: &str, rating: u8) -> Feedback {
    Feedback {
        feedback_id: format!("feedback-{n}-{at}-{rater}"),
        request_id: format!("request-{n}"),
        ts: time(at),
        source: None,
        rater: Some(rater.to_owned()),
        rating: Some(rating),
        correction: None,
        rubric: None,
        comment: None,
        preferred_over: None,
    }
}

pub(crate) fn corrected(n: u64, at: i64, rater: &str, correction: &str) -> Feedback {
    Feedback {
        rating: None,
        correction: Some(correction.to_owned()),
        ..rated(n, at, rater, 1)
    }
}
