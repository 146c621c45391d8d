//! A chat completions API as OpenAI has it, wherever it is.
//!
//! What says "later" (429, 408, and what servers and gateways say of their own trouble), and what does not come in time, is tried again with doubled pauses, the
//! server's `retry-after` first. An answer goes where it was asked and nowhere else: a redirection is an error, and so is one that does
//! not end.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Response, StatusCode, Url};
use retune_task::ChatMessage;
use serde_json::{Value, json};

use crate::server::retry_after;
use crate::{Error, Limits};

/// Tries of one request, the first included.
const TRIES: u32 = 12;
/// Of one that did not come in time: each waits long enough.
const TIMEOUTS: u32 = 3;
/// Bytes of an answer.
const MOST: usize = 4 << 20;

/// An API, and the model that is asked there.
#[derive(Clone)]
pub struct Api {
    http: Client,
    url: String,
    model: String,
    limits: Limits,
}

/// What it said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) content: String,
    pub(crate) was_cut_off: bool,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
}

impl Api {
    /// At `url`, which ends where OpenAI's ends with `/v1`; with a key, if it wants one.
    ///
    /// # Errors
    /// An address or a key that cannot be one.
    pub fn new(url: &str, model: &str, key: Option<&str>, limits: &Limits) -> Result<Self, Error> {
        let url = url.trim_end_matches('/').to_owned();
        let wrong = |what: &str| Error::Program {
            program: url.clone(),
            what: what.to_owned(),
        };
        let expected = "is no address of an API; expected one such as https://api.openai.com/v1";
        let parsed = Url::parse(&url).map_err(|_| wrong(expected))?;
        let host = parsed.host_str().ok_or_else(|| wrong(expected))?;
        if !["http", "https"].contains(&parsed.scheme()) {
            return Err(wrong(expected));
        }
        let mut headers = HeaderMap::new();
        if let Some(key) = key {
            let value = HeaderValue::from_str(&format!("Bearer {key}"));
            let mut value = value
                .map_err(|_| wrong("cannot be sent its key, which has signs that no key has"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut http = Client::builder()
            .timeout(limits.answer)
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none());
        if host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.is_loopback())
        {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| wrong(&error.to_string()))?;
        Ok(Self {
            http,
            url,
            model: model.to_owned(),
            limits: limits.clone(),
        })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn model(&self) -> &str {
        &self.model
    }

    /// One answer; parameters that are not given are the API's to choose.
    pub(crate) async fn ask(
        &self,
        messages: &[ChatMessage],
        temperature: Option<f64>,
        seed: Option<u64>,
    ) -> Result<Said, Error> {
        let mut body = json!({"model": self.model, "messages": messages});
        if let Some(temperature) = temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(seed) = seed {
            // What clients of JavaScript can hold.
            body["seed"] = json!(seed % (1 << 31));
        }
        let response = self.send(&body).await?;
        let value: Value = serde_json::from_slice(&response)
            .map_err(|error| self.unexpected(&format!("it is no JSON: {error}")))?;
        read(&value).ok_or_else(|| self.unexpected("it has no choices[0].message"))
    }

    async fn send(&self, body: &Value) -> Result<Vec<u8>, Error> {
        let mut pause = self.limits.retry;
        let mut tries = 0;
        loop {
            tries += 1;
            let url = format!("{}/chat/completions", self.url);
            let mut most = TRIES;
            let (error, named) = match self.http.post(url).json(body).send().await {
                Ok(response) if response.status().is_success() => {
                    match self.whole(response).await {
                        Ok(bytes) => return Ok(bytes),
                        Err(error) => (error, None),
                    }
                }
                Ok(response) => {
                    let later = response.status().is_server_error()
                        || matches!(
                            response.status(),
                            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                        );
                    let named = retry_after(&response);
                    let error = self.refused(response).await;
                    if !later {
                        return Err(error);
                    }
                    (error, named)
                }
                Err(source) => {
                    let passes = source.is_connect() || source.is_timeout() || source.is_request();
                    let error = self.unreachable(&source);
                    if !passes {
                        return Err(error);
                    }
                    if source.is_timeout() {
                        most = TIMEOUTS;
                    }
                    (error, None)
                }
            };
            if tries >= most {
                return Err(error);
            }
            tokio::time::sleep(named.unwrap_or(pause)).await;
            pause = (pause * 2).min(Duration::from_secs(60));
        }
    }

    /// Its body, unless it is endless.
    async fn whole(&self, mut response: Response) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        loop {
            let chunk = response.chunk().await;
            match chunk.map_err(|source| self.unreachable(&source))? {
                None => return Ok(bytes),
                Some(chunk) if bytes.len() + chunk.len() <= MOST => bytes.extend(chunk),
                Some(_) => return Err(self.unexpected(&format!("it is longer than {MOST} bytes"))),
            }
        }
    }

    async fn refused(&self, response: Response) -> Error {
        let status = response.status().as_u16();
        let body = self.whole(response).await.unwrap_or_default();
        let parsed: Value = serde_json::from_slice(&body).unwrap_or_default();
        let message = match parsed.pointer("/error/message").and_then(Value::as_str) {
            Some(message) => message.to_owned(),
            None => String::from_utf8_lossy(&body).into_owned(),
        };
        Error::Refused {
            request: format!("a question to `{}` at {}", self.model, self.url),
            status,
            message: message.chars().take(300).collect(),
        }
    }

    fn unreachable(&self, source: &reqwest::Error) -> Error {
        let why: &dyn std::error::Error = source;
        let root = std::iter::successors(Some(why), |error| error.source()).last();
        Error::Program {
            program: self.url.clone(),
            what: format!("cannot be reached: {}", root.unwrap_or(why)),
        }
    }

    fn unexpected(&self, what: &str) -> Error {
        Error::Program {
            program: self.url.clone(),
            what: format!("answered with something else than a chat completion: {what}"),
        }
    }
}

/// What a chat completion says; a text may also come in parts.
fn read(completion: &Value) -> Option<Said> {
    let choice = completion.get("choices")?.get(0)?;
    let content = choice.get("message")?.get("content");
    let text = |part: &Value| part["text"].as_str().map(str::to_owned);
    let content = match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts.iter().filter_map(text).collect(),
        _ => String::new(),
    };
    let tokens = |of: &str| completion["usage"][of].as_u64().unwrap_or_default();
    Some(Said {
        content,
        was_cut_off: choice["finish_reason"] == "length",
        prompt_tokens: tokens("prompt_tokens"),
        completion_tokens: tokens("completion_tokens"),
    })
}
