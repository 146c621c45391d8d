//! What an app, a rater and an operator say to Retune: three OpenAI-shaped calls and two lists, over HTTP.
//!
//! Nothing here comes from Retune's crates, so that what the demo can do any client can do.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

/// What can go wrong between a client and the server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no answer from {url}: {source}; is the server running there?")]
    Transport { url: String, source: reqwest::Error },
    #[error("{url} answered {status}: {message}")]
    Refused {
        url: String,
        status: u16,
        message: String,
        retry_after: Option<Duration>,
    },
    #[error("{url} answered something that no OpenAI client could read: {what}")]
    Unreadable { url: String, what: String },
    #[error("a simulated app ended early: {0}")]
    App(#[from] tokio::task::JoinError),
}

impl Error {
    /// How long to wait before asking again, where asking again makes sense: the server is full or not ready.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused {
                status: 429 | 503,
                retry_after,
                ..
            } => Some(retry_after.unwrap_or(Duration::from_millis(500))),
            _ => None,
        }
    }
}

/// One answer, as an app sees it, with what the `retune-…` headers say of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) id: String,
    /// The resolved name: `triage@base`, `triage@1`.
    pub(crate) adapter: String,
    /// None where the task has no format.
    pub(crate) valid: Option<bool>,
    pub(crate) text: String,
    pub(crate) prompt_tokens: u64,
}

/// An alarm, as `GET /admin/alarms` lists it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Alarm {
    pub alarm: String,
    pub adapter: String,
    pub kind: String,
    /// The exchange that crossed the threshold.
    pub request_id: String,
    #[serde(default)]
    pub exchanges: u64,
    #[serde(default)]
    pub log_e: f64,
    #[serde(default)]
    pub threshold_log: f64,
    #[serde(default)]
    pub evidence: Value,
}

impl Alarm {
    /// Whether a run follows, as the built-in task's policy has it (`task.retrain.on`); the others only tell.
    pub(crate) fn starts_a_run(&self) -> bool {
        ["format", "quality"].contains(&self.kind.as_str())
    }

    /// The phrases that moved most among the requests that are the trouble: each one's share of the usual conversations, and of those.
    pub(crate) fn phrases(&self) -> Vec<(&str, f64, f64)> {
        let phrases = self.evidence["why"]["phrases"].as_array();
        let told = phrases.into_iter().flatten().filter_map(|moved| {
            let share = |of: &str| moved[of].as_f64();
            Some((
                moved["phrase"].as_str()?,
                share("usual")?,
                share("trouble")?,
            ))
        });
        told.filter(|(_, usual, trouble)| trouble > usual).collect()
    }
}

/// A retraining, as `GET /admin/runs` lists it: its newest row.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Run {
    pub run_id: String,
    pub started_by: String,
    pub state: String,
    /// Steps or pairs done, and how many there are.
    pub progress: Option<(u64, u64)>,
    pub adapter: Option<String>,
    pub examples_train: Option<u64>,
    pub examples_development: Option<u64>,
    pub examples_held_out: Option<u64>,
    pub examples_examined: Option<u64>,
    pub loss_first: Option<f64>,
    pub loss_last: Option<f64>,
    pub votes: Option<u64>,
    pub wins: Option<u64>,
    pub ties: Option<u64>,
    pub p_value: Option<f64>,
    pub judge: Option<String>,
    pub verdict: Option<String>,
    pub promoted: Option<bool>,
    pub error: Option<String>,
}

impl Run {
    /// Whether nothing more will come of it.
    pub fn ended(&self) -> bool {
        matches!(self.state.as_str(), "done" | "failed")
    }
}

#[derive(Deserialize)]
struct List<T> {
    data: Vec<T>,
}

/// A client of one server and one task; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    server: String,
    model: String,
}

impl Client {
    /// `server`: `http://host:port`; `model`: what the apps ask for, a task's name.
    pub fn new(server: &str, model: &str) -> Self {
        let server = server.trim_end_matches('/').to_owned();
        Self {
            http: reqwest::Client::new(),
            server,
            model: model.to_owned(),
        }
    }

    /// One user message at temperature 0, answered at once or as a stream.
    pub(crate) async fn chat(&self, text: &str, app: &str, stream: bool) -> Result<Answer, Error> {
        let mut body = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "user": app,
        });
        if stream {
            body["stream"] = true.into();
            body["stream_options"] = json!({"include_usage": true});
        }
        let url = format!("{}/v1/chat/completions", self.server);
        let mut response = self.send(&url, self.http.post(&url).json(&body)).await?;
        let header = |name: &str| {
            let value = response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok());
            value.map(str::to_owned)
        };
        let adapter = header("retune-adapter").ok_or_else(|| Error::Unreadable {
            url: url.clone(),
            what: "no header retune-adapter".into(),
        })?;
        let format = header("retune-format");
        let transport = |source| Error::Transport {
            url: url.clone(),
            source,
        };
        let unreadable = |what: String| Error::Unreadable {
            url: url.clone(),
            what,
        };
        if !stream {
            let body = response.bytes().await.map_err(transport)?;
            let value: Value =
                serde_json::from_slice(&body).map_err(|e| unreadable(e.to_string()))?;
            return answer_from_json(&value, adapter, format.as_deref()).map_err(unreadable);
        }
        let mut reader = StreamReader::default();
        while let Some(bytes) = response.chunk().await.map_err(transport)? {
            reader.push(&bytes).map_err(unreadable)?;
        }
        reader.finish(adapter).map_err(unreadable)
    }

    /// What somebody thinks of an answer.
    pub(crate) async fn feedback(
        &self,
        id: &str,
        rating: u8,
        correction: Option<&str>,
    ) -> Result<(), Error> {
        let mut body = json!({"completion_id": id, "rating": rating, "source": "demo"});
        if let Some(correction) = correction {
            body["correction"] = correction.into();
        }
        let url = format!("{}/v1/feedback", self.server);
        self.send(&url, self.http.post(&url).json(&body))
            .await
            .map(drop)
    }

    /// Every alarm about the task's adapters so far.
    pub async fn alarms(&self) -> Result<Vec<Alarm>, Error> {
        let mut alarms: Vec<Alarm> = self.list("/admin/alarms").await?;
        let of_task = format!("{}@", self.model);
        alarms.retain(|alarm| alarm.adapter.starts_with(&of_task));
        Ok(alarms)
    }

    /// Every retraining so far, each at its newest state.
    pub async fn runs(&self) -> Result<Vec<Run>, Error> {
        self.list("/admin/runs").await
    }

    /// One adapter, as `GET /admin/adapters/{name}` shows it: its stage, and the decisions about it.
    pub(crate) async fn adapter(&self, name: &str) -> Result<Value, Error> {
        let url = format!("{}/admin/adapters/{name}", self.server);
        let response = self.send(&url, self.http.get(&url)).await?;
        json_of(url, response).await
    }

    /// Takes an adapter's folder, on the server's machine, as a candidate of the task; its name.
    pub(crate) async fn import(&self, folder: &Path) -> Result<String, Error> {
        let url = format!("{}/admin/adapters", self.server);
        let body = json!({"task": self.model, "folder": folder});
        let response = self.send(&url, self.http.post(&url).json(&body)).await?;
        let item: Value = json_of(url.clone(), response).await?;
        let name = item["name"].as_str().map(str::to_owned);
        name.ok_or_else(|| Error::Unreadable {
            url,
            what: "no name".into(),
        })
    }

    /// Gives an adapter a share of the traffic.
    pub(crate) async fn canary(&self, name: &str, share: f64, reason: &str) -> Result<(), Error> {
        let url = format!("{}/admin/adapters/{name}/canary", self.server);
        let body = json!({"share": share, "reason": reason});
        self.send(&url, self.http.post(&url).json(&body))
            .await
            .map(drop)
    }

    async fn list<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Error> {
        let url = format!("{}{path}", self.server);
        let response = self.send(&url, self.http.get(&url)).await?;
        let list: List<T> = json_of(url, response).await?;
        Ok(list.data)
    }

    async fn send(
        &self,
        url: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, Error> {
        let response = request.send().await.map_err(|source| Error::Transport {
            url: url.to_owned(),
            source,
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let seconds = response
            .headers()
            .get("retry-after")
            .and_then(|v| v.to_str().ok()?.parse::<f64>().ok());
        let retry_after = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
        let body = response.text().await.unwrap_or_default();
        let value: Value = serde_json::from_str(&body).unwrap_or_default();
        let message = value["error"]["message"]
            .as_str()
            .map_or(body, str::to_owned);
        Err(Error::Refused {
            url: url.to_owned(),
            status,
            message,
            retry_after,
        })
    }
}

async fn json_of<T: serde::de::DeserializeOwned>(
    url: String,
    response: reqwest::Response,
) -> Result<T, Error> {
    let body = response.bytes().await.map_err(|source| Error::Transport {
        url: url.clone(),
        source,
    })?;
    serde_json::from_slice(&body).map_err(|e| Error::Unreadable {
        url,
        what: e.to_string(),
    })
}

fn validity(word: &str) -> Option<bool> {
    match word {
        "valid" => Some(true),
        "invalid" => Some(false),
        _ => None,
    }
}

fn answer_from_json(
    value: &Value,
    adapter: String,
    format: Option<&str>,
) -> Result<Answer, String> {
    let text = |pointer: &str| {
        value
            .pointer(pointer)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    Ok(Answer {
        id: text("/id").ok_or("no id")?,
        adapter,
        valid: format.and_then(validity),
        text: text("/choices/0/message/content").ok_or("no choices[0].message.content")?,
        prompt_tokens: value["usage"]["prompt_tokens"]
            .as_u64()
            .ok_or("no usage.prompt_tokens")?,
    })
}

/// Reads server-sent events as they come, in pieces of any size.
#[derive(Default)]
struct StreamReader {
    pending: Vec<u8>,
    id: Option<String>,
    text: String,
    prompt_tokens: Option<u64>,
    valid: Option<bool>,
    done: bool,
}

impl StreamReader {
    fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.pending.extend_from_slice(bytes);
        while let Some(end) = self.pending.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let line = String::from_utf8(line).map_err(|_| "a line that is not UTF-8")?;
            self.line(line.trim_end())?;
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        if let Some(comment) = line.strip_prefix(": retune-format ") {
            self.valid = validity(comment);
        } else if let Some(data) = line.strip_prefix("data: ") {
            if data == "[DONE]" {
                self.done = true;
                return Ok(());
            }
            let chunk: Value =
                serde_json::from_str(data).map_err(|e| format!("{e} in {data:?}"))?;
            if let Some(message) = chunk.pointer("/error/message") {
                return Err(format!("the stream broke off: {message}"));
            }
            if let Some(id) = chunk["id"].as_str() {
                self.id.get_or_insert_with(|| id.to_owned());
            }
            if let Some(piece) = chunk
                .pointer("/choices/0/delta/content")
                .and_then(Value::as_str)
            {
                self.text.push_str(piece);
            }
            if let Some(tokens) = chunk
                .pointer("/usage/prompt_tokens")
                .and_then(Value::as_u64)
            {
                self.prompt_tokens = Some(tokens);
            }
        }
        Ok(())
    }

    fn finish(self, adapter: String) -> Result<Answer, String> {
        if !self.done {
            return Err("the stream ended without [DONE]".into());
        }
        Ok(Answer {
            id: self.id.ok_or("no id in any chunk")?,
            adapter,
            valid: self.valid,
            text: self.text,
            prompt_tokens: self.prompt_tokens.ok_or("no chunk with usage")?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = concat!(
        "data: {\"id\":\"chatcmpl-1\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\"}}]}\n\n",
        "data: {\"id\":\"chatcmpl-1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"{\\\"größe\\\"\"}}]}\n\n",
        "data: {\"id\":\"chatcmpl-1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\":1}\"}}]}\n\n",
        "data: {\"id\":\"chatcmpl-1\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"id\":\"chatcmpl-1\",\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":3}}\n\n",
        ": retune-format invalid\n\n",
        "data: [DONE]\n\n",
    );

    fn read(pieces: &[&[u8]]) -> Result<Answer, String> {
        let mut reader = StreamReader::default();
        for piece in pieces {
            reader.push(piece)?;
        }
        reader.finish("triage@base".into())
    }

    proptest! {
        #[test]
        fn a_stream_reads_the_same_however_it_is_cut(cuts in proptest::collection::vec(0..STREAM.len(), 0..12)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &STREAM.as_bytes()[w[0]..w[1]]).collect();
            let answer = read(&pieces).unwrap();
            prop_assert_eq!(answer, Answer {
                id: "chatcmpl-1".into(),
                adapter: "triage@base".into(),
                valid: Some(false),
                text: "{\"größe\":1}".into(),
                prompt_tokens: 12,
            });
        }
    }

    #[test]
    fn a_stream_that_breaks_off_is_an_error() {
        let half = &STREAM.as_bytes()[..200];
        assert_eq!(read(&[half]), Err("the stream ended without [DONE]".into()));
        let failed = b"data: {\"error\":{\"message\":\"engine failed\"}}\n\n";
        assert!(read(&[failed]).unwrap_err().contains("engine failed"));
    }
}
