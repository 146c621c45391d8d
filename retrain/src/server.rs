//! The running server as a run needs it: ask a model by its name, load, promote and reject adapters. The one place with HTTP.
//!
//! Answers that say "later" (429, 503) and refused connections are tried again with doubled pauses, the server's `retry-after`
//! first; everything else is an error with the server's own words.

use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use retune_task::ChatMessage;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::text::cut;
use crate::{Error, Limits};

/// Tries of one request, the first included.
const TRIES: u32 = 12;

#[derive(Clone)]
pub(crate) struct Server {
    client: reqwest::Client,
    url: String,
    limits: Limits,
    /// In whose name adapters are moved.
    who: Option<String>,
    /// The decision after which they are moved.
    after: Option<u64>,
    /// What its questions are for.
    purpose: &'static str,
}

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// As an app would send them.
    pub(crate) messages: Vec<ChatMessage>,
    /// Who asked first: the answer goes with them when they are forgotten.
    pub(crate) user: Option<String>,
    /// Where the server refuses it for what it is, that is an empty answer: nobody has asked it before.
    pub(crate) may_be_refused: bool,
}

/// What a model said to one prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) content: String,
    /// Its exchange; none where the server refused the question.
    pub(crate) id: Option<String>,
    /// The resolved name, `triage@3`.
    pub(crate) adapter: String,
    pub(crate) digest: Option<String>,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    /// It ended at its limit of tokens.
    pub(crate) was_cut_off: bool,
    /// From the question to the last token, with what it waited for a place.
    pub(crate) seconds: f64,
}

#[derive(Deserialize)]
struct Completion {
    id: Option<String>,
    choices: Vec<CompletionChoice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct CompletionChoice {
    message: Message,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
}

#[derive(Deserialize, Default)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl Server {
    pub(crate) fn new(client: reqwest::Client, url: &str, limits: &Limits) -> Self {
        Self {
            client,
            url: url.trim_end_matches('/').to_owned(),
            limits: limits.clone(),
            who: None,
            after: None,
            purpose: "examination",
        }
    }

    /// The same, whose moves are refused (409) where another decision has followed that one.
    pub(crate) fn after(self, seq: u64) -> Self {
        Self {
            after: Some(seq),
            ..self
        }
    }

    /// The same, whose moves are a run's or a test's.
    pub(crate) fn by(self, who: &str) -> Self {
        Self {
            who: Some(who.to_owned()),
            ..self
        }
    }

    /// The same, that is asked as users ask it: answers are held to their format, as the task is enforced.
    pub(crate) fn like_a_user(self) -> Self {
        Self {
            purpose: "user",
            ..self
        }
    }

    /// One greedy answer of `model`, marked as asked for `run_id`; as an examination, unless it is asked as a user.
    pub(crate) async fn ask(
        &self,
        model: &str,
        question: &Question,
        run_id: &str,
    ) -> Result<Answer, Error> {
        let mut body = json!({"model": model, "messages": question.messages, "temperature": 0});
        if let Some(user) = &question.user {
            body["user"] = json!(user);
        }
        let (request, asked) = (format!("a question to `{model}`"), Instant::now());
        let sent = self
            .send(&request, Method::POST, "/v1/chat/completions", |builder| {
                builder
                    .header("retune-purpose", self.purpose)
                    .header("retune-run", run_id)
                    .json(&body)
            })
            .await;
        let response = match sent {
            // A prompt that does not fit the model gets no answer, and an empty answer is judged as that.
            Err(refusal)
                if refusal.is_of_the_length()
                    || question.may_be_refused && refusal.is_of_the_request() =>
            {
                return Ok(Answer {
                    content: String::new(),
                    id: None,
                    adapter: model.to_owned(),
                    digest: None,
                    prompt_tokens: 0,
                    completion_tokens: 0,
                    was_cut_off: false,
                    seconds: asked.elapsed().as_secs_f64(),
                });
            }
            sent => sent.map_err(|refusal| refusal.error)?,
        };
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let (adapter, digest) = (
            header("retune-adapter"),
            header("retune-digest").filter(|digest| !digest.is_empty()),
        );
        let completion: Completion = json_body(&request, response).await?;
        let usage = completion.usage.unwrap_or_default();
        let choice = completion.choices.into_iter().next();
        let choice = choice.ok_or_else(|| Error::Unexpected {
            request: request.clone(),
            what: "no choices".to_owned(),
        })?;
        let adapter = adapter.ok_or_else(|| Error::Unexpected {
            request: request.clone(),
            what: "no header retune-adapter".to_owned(),
        })?;
        Ok(Answer {
            content: choice.message.content.unwrap_or_default(),
            id: completion.id,
            adapter,
            digest,
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            was_cut_off: choice.finish_reason.as_deref() == Some("length"),
            seconds: asked.elapsed().as_secs_f64(),
        })
    }

    /// Whether it is there, and takes the key: known before anything is trained that it could not be asked for.
    pub(crate) async fn is_there(&self) -> Result<(), Error> {
        let path = "/admin/adapters";
        let sent = self.send("GET /admin/adapters", Method::GET, path, |builder| builder);
        sent.await.map(drop).map_err(|refusal| refusal.error)
    }

    /// Has the server load `task@n` beside what it serves.
    pub(crate) async fn load(&self, name: &str) -> Result<(), Error> {
        self.admin(name, "load", json!({})).await
    }

    /// Makes `name` the champion if `expected_champion` still is; a 409 else.
    pub(crate) async fn promote(
        &self,
        name: &str,
        expected_champion: &str,
        reason: &str,
    ) -> Result<(), Error> {
        let body = json!({"expected_champion": expected_champion, "reason": short(reason)});
        self.admin(name, "promote", body).await
    }

    /// Gives `name` a share of the traffic beside `expected_champion`; a 409 where that is it no longer.
    pub(crate) async fn canary(
        &self,
        name: &str,
        share: f64,
        expected_champion: &str,
        reason: &str,
    ) -> Result<(), Error> {
        let body = json!({"share": share, "expected_champion": expected_champion, "reason": short(reason)});
        self.admin(name, "canary", body).await
    }

    /// Takes the share back.
    pub(crate) async fn no_canary(&self, name: &str, reason: &str) -> Result<(), Error> {
        let body = json!({"share": 0.0, "reason": short(reason)});
        self.admin(name, "canary", body).await
    }

    pub(crate) async fn reject(&self, name: &str, reason: &str) -> Result<(), Error> {
        self.admin(name, "reject", json!({"reason": short(reason)}))
            .await
    }

    /// Puts the champion before `name` in its place; a 409 where `name` is not the champion, or none came before it.
    pub(crate) async fn roll_back(&self, name: &str, reason: &str) -> Result<(), Error> {
        self.admin(name, "rollback", json!({"reason": short(reason)}))
            .await
    }

    async fn admin(&self, name: &str, action: &str, mut body: Value) -> Result<(), Error> {
        let path = format!("/admin/adapters/{name}/{action}");
        let request = format!("POST {path}");
        let who = self.who.as_deref();
        if let Some(seq) = self.after {
            body["expected_seq"] = json!(seq);
        }
        self.send(&request, Method::POST, &path, |builder| {
            let builder = builder.json(&body);
            match who {
                Some(who) => builder.header("retune-run", who),
                None => builder,
            }
        })
        .await
        .map_err(|refusal| refusal.error)?;
        Ok(())
    }

    async fn send(
        &self,
        request: &str,
        method: Method,
        path: &str,
        fill: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, Refusal> {
        let mut pause = self.limits.retry;
        let mut tries = 0;
        loop {
            tries += 1;
            let sent = fill(
                self.client
                    .request(method.clone(), format!("{}{path}", self.url))
                    .timeout(self.limits.answer),
            )
            .send()
            .await;
            let wait = match sent {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => {
                    let later = matches!(
                        response.status(),
                        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
                    );
                    let named = retry_after(&response);
                    let refusal = Refusal::read(request, response).await;
                    if !later || tries >= TRIES {
                        return Err(refusal);
                    }
                    named.unwrap_or(pause)
                }
                Err(source) if source.is_connect() && tries < TRIES => pause,
                Err(source) => {
                    return Err(Refusal {
                        error: Error::Unreachable {
                            url: self.url.clone(),
                            source,
                        },
                        code: None,
                    });
                }
            };
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(self.limits.retry * 30);
        }
    }
}

/// As much of a reason as a history takes.
fn short(reason: &str) -> String {
    cut(reason, retune_ledger::Word::LONGEST - 1)
}

/// An answer that is no success, with OpenAI's error code if it has one.
struct Refusal {
    error: Error,
    code: Option<String>,
}

impl Refusal {
    fn is_of_the_length(&self) -> bool {
        self.code.as_deref() == Some("context_length_exceeded")
    }

    /// The request is not as it should be, or too large.
    fn is_of_the_request(&self) -> bool {
        let status = match self.error {
            Error::Refused { status, .. } => status,
            _ => 0,
        };
        matches!(status, 400 | 413 | 422)
    }

    async fn read(request: &str, response: Response) -> Self {
        let status = response.status().as_u16();
        let body = response.text().await.unwrap_or_default();
        let parsed: Value = serde_json::from_str(&body).unwrap_or_default();
        let field = |name: &str| {
            parsed
                .pointer(&format!("/error/{name}"))
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let mut message = field("message").unwrap_or_else(|| body.chars().take(300).collect());
        if status == StatusCode::UNAUTHORIZED.as_u16() {
            message.push_str(" (a command sends the key that is in RETUNE_API_KEY)");
        }
        Self {
            error: Error::Refused {
                request: request.to_owned(),
                status,
                message,
            },
            code: field("code"),
        }
    }
}

/// The server's own word on when to come back, in whole seconds; more than a minute is not waited.
pub(crate) fn retry_after(response: &Response) -> Option<Duration> {
    let seconds: u64 = response
        .headers()
        .get("retry-after")?
        .to_str()
        .ok()?
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds.min(60)))
}

async fn json_body<T: serde::de::DeserializeOwned>(
    request: &str,
    response: Response,
) -> Result<T, Error> {
    response.json().await.map_err(|error| Error::Unexpected {
        request: request.to_owned(),
        what: error.to_string(),
    })
}
