//! One upstream: its address, its key, its breaker, and what is asked of it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};

use super::Adapter;
use super::breaker::Breaker;
use super::failure::{self, Failure};
use super::incoming::{Incoming, told};
use super::reply::Reply;
use super::request::Asking;
use crate::engine::Event;
use crate::error::Error;

/// How long an adapter's load may take: its files may come from another machine.
const LOAD_WITHIN: Duration = Duration::from_secs(120);
/// How long anything else may take that is no answer.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// How long counting a prompt may hold up the end of an answer.
const COUNT_WITHIN: Duration = Duration::from_secs(1);
/// Of an error's body, so much is read.
const MAX_ERROR: usize = 64 << 10;
/// Of a list of models, so much.
const MAX_LIST: usize = 4 << 20;

/// The limits to waiting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Until an answer begins.
    pub(super) first_byte: Duration,
    /// Between two pieces of it.
    pub(super) idle: Duration,
}

pub(super) struct Server {
    pub(super) url: String,
    pub(super) weight: u32,
    /// `Bearer …`, marked as a secret: it is shown nowhere.
    key: Option<HeaderValue>,
    client: Client,
    pub(super) patience: Patience,
    breaker: Mutex<Breaker>,
    /// When it last said something right.
    seen: Mutex<Option<Instant>>,
    /// The base's name here, as configured.
    model: Option<String>,
    /// The base's name here, as the list of models says.
    found: Mutex<Option<String>>,
    /// Adapters that were loaded here, and that it has not forgotten as far as we know.
    loaded: Mutex<HashSet<String>>,
    /// One load at a time.
    loading: tokio::sync::Mutex<()>,
    /// Whether it has no route that counts tokens.
    counts_not: AtomicBool,
}

/// An answer that has begun here.
pub(super) struct Begun {
    pub(super) incoming: Incoming,
    pub(super) reply: Reply,
    /// What came up to now.
    pub(super) events: Vec<Event>,
    /// The model's name that was asked.
    pub(super) model: String,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// `key`: what the variable holds.
    pub(super) fn new(
        server: &retune_task::UpstreamServer,
        model: Option<&str>,
        key: Option<&str>,
        client: Client,
        patience: Patience,
    ) -> Result<Self, Error> {
        if let Err(e) = reqwest::Url::parse(&server.url) {
            return Err(Error::Engine(format!(
                "engine.url is {:?}: {e}; expected an address such as \"http://127.0.0.1:8000\"",
                server.url
            )));
        }
        let header = |key: &str| {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.trim()))
                .map_err(|_| Error::Engine(format!("the key for {} holds characters that no header can have; expected the key alone", server.url)))?;
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        };
        Ok(Self {
            url: server.url.clone(),
            weight: server.weight,
            key: key.map(header).transpose()?,
            client,
            patience,
            breaker: Mutex::default(),
            seen: Mutex::default(),
            model: model.map(str::to_owned),
            found: Mutex::default(),
            loaded: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            counts_not: AtomicBool::new(false),
        })
    }

    pub(super) fn lets_through(&self) -> bool {
        locked(&self.breaker).lets_through(Instant::now())
    }

    pub(super) fn is_open(&self) -> bool {
        locked(&self.breaker).is_open(Instant::now())
    }

    pub(super) fn succeeded(&self) {
        locked(&self.breaker).succeeded();
        self.say_seen();
    }

    pub(super) fn failed(&self, why: &Failure) {
        let opened = locked(&self.breaker).failed(Instant::now());
        tracing::warn!(upstream = self.url, "an upstream {}", why.told());
        if opened {
            tracing::error!(
                upstream = self.url,
                "an upstream failed several times in a row and is left alone for a while"
            );
        }
    }

    /// Whether it said something right within `lately`.
    pub(super) fn was_seen(&self, lately: Duration) -> bool {
        locked(&self.seen).is_some_and(|at| at.elapsed() < lately)
    }

    fn say_seen(&self) {
        *locked(&self.seen) = Some(Instant::now());
    }

    fn has(&self, adapter: &str) -> bool {
        locked(&self.loaded).contains(adapter)
    }

    /// It does not know this model any more: a restart, most likely.
    pub(super) fn forget(&self, model: &str) {
        locked(&self.loaded).remove(model);
        *locked(&self.found) = None;
    }

    fn signed(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.key {
            Some(key) => request.header(AUTHORIZATION, key.clone()),
            None => request,
        }
    }

    fn post(&self, route: &str, body: &Value) -> RequestBuilder {
        self.signed(self.client.post(format!("{}{route}", self.url)).json(body))
    }

    /// A call that is no answer, and its body, of which `most` bytes count.
    async fn call(
        &self,
        request: RequestBuilder,
        within: Duration,
        most: usize,
    ) -> Result<(u16, HeaderMap, Vec<u8>), Failure> {
        let called = async {
            let response = request.send().await.map_err(unsent)?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            Ok((status, headers, body(response, most).await))
        };
        tokio::time::timeout(within, called)
            .await
            .map_err(|_| too_slow(within))?
    }

    /// The names of its models, with whether each is an adapter.
    pub(super) async fn models(&self, within: Duration) -> Result<Vec<(String, bool)>, Failure> {
        let request = self.signed(self.client.get(format!("{}/v1/models", self.url)));
        let (status, headers, body) = self.call(request, within, MAX_LIST).await?;
        if status != 200 {
            return Err(refused(status, &headers, &body, None));
        }
        let list: Value = serde_json::from_slice(&body).map_err(|_| {
            Failure::Down("lists its models in something other than JSON".to_owned())
        })?;
        let list = list.get("data").and_then(Value::as_array);
        let one = |model: &Value| {
            let id = model.get("id")?.as_str()?.to_owned();
            Some((id, model.get("parent").is_some_and(Value::is_string)))
        };
        self.say_seen();
        Ok(list.into_iter().flatten().filter_map(one).collect())
    }

    /// The base's name here.
    pub(super) async fn base(&self) -> Result<String, Failure> {
        if let Some(model) = &self.model {
            return Ok(model.clone());
        }
        if let Some(model) = locked(&self.found).clone() {
            return Ok(model);
        }
        let models = self.models(CALL_WITHIN).await?;
        // vLLM gives adapters a parent, and lists the base first.
        let first = models
            .iter()
            .find(|(_, adapter)| !adapter)
            .or(models.first());
        let Some((model, _)) = first else {
            return Err(Failure::Down("lists no model".to_owned()));
        };
        tracing::info!(upstream = self.url, model, "the upstream's base");
        *locked(&self.found) = Some(model.clone());
        Ok(model.clone())
    }

    /// Asks for an answer, and waits until it begins: up to there another upstream can take over.
    pub(super) async fn ask(&self, asking: &Asking, model: String) -> Result<Begun, Failure> {
        let within = self.patience.first_byte;
        tokio::time::timeout(within, self.begin(asking, model))
            .await
            .map_err(|_| too_slow(within))?
    }

    async fn begin(&self, asking: &Asking, model: String) -> Result<Begun, Failure> {
        let mut request = self.post(asking.route, &asking.of(&model));
        for (name, value) in asking.trail.headers() {
            request = request.header(name, value);
        }
        let response = request.send().await.map_err(unsent)?;
        let status = response.status().as_u16();
        if status != 200 {
            let headers = response.headers().clone();
            let body = body(response, MAX_ERROR).await;
            return Err(refused(status, &headers, &body, asking.constraint));
        }
        let mut begun = Begun {
            incoming: Incoming::new(response),
            reply: Reply::new(asking.constraint),
            events: Vec::new(),
            model,
        };
        while let Some(data) = begun.incoming.next(self.patience.first_byte).await? {
            let taken = begun.reply.take(&data)?;
            begun.events.extend(taken.event);
            if taken.begun {
                return Ok(begun);
            }
            if begun.reply.is_finished() {
                break;
            }
        }
        Err(Failure::Down("ended a stream without an answer".to_owned()))
    }

    /// Loads an adapter if it is not there. `probe` is one greedy token, which must come.
    pub(super) async fn ensure(&self, adapter: &Adapter, probe: &Asking) -> Result<(), Failure> {
        if self.has(&adapter.name) {
            return Ok(());
        }
        let _one = self.loading.lock().await;
        if self.has(&adapter.name) {
            return Ok(());
        }
        self.load(adapter).await?;
        // A load is answered with 200 even if there is nothing at the path (vLLM 18372): only a token shows that it is there.
        let listed = self.models(CALL_WITHIN).await?;
        if !listed.iter().any(|(id, _)| *id == adapter.name) {
            return Err(adapter.refused(format!(
                "{} answered 200 to its load and does not list it",
                self.url
            )));
        }
        match self.ask(probe, adapter.name.clone()).await {
            Ok(_) => {}
            Err(failure @ (Failure::Failed(_) | Failure::Lost | Failure::Refused(_))) => {
                // It is of no use there; what becomes of that changes nothing.
                let _ = self.drop_adapter(&adapter.name).await;
                return Err(adapter.refused(format!(
                    "{} lists it, but no token of it comes ({}); are its files at {} there? engine.adapters_path says where the store's adapters are",
                    self.url,
                    failure.told(),
                    adapter.path
                )));
            }
            Err(failure) => return Err(failure),
        }
        locked(&self.loaded).insert(adapter.name.clone());
        Ok(())
    }

    async fn load(&self, adapter: &Adapter) -> Result<(), Failure> {
        let order = json!({ "lora_name": adapter.name, "lora_path": adapter.path });
        let request = self.post("/v1/load_lora_adapter", &order);
        let (status, headers, body) = self.call(request, LOAD_WITHIN, MAX_ERROR).await?;
        let said = failure::told_in_body(&body)
            .message
            .unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
        match status {
            200 => Ok(()),
            // The name tells the content: whoever loaded it, it is the same.
            400 | 409 if said.contains("already") && said.contains("loaded") => Ok(()),
            404 | 405 | 501 if failure::is_no_route(&said, &adapter.path) => {
                Err(adapter.refused(format!(
                    "{} has no route /v1/load_lora_adapter; start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
                    self.url
                )))
            }
            400 | 404 | 409 | 422 => Err(adapter.refused(format!(
                "{} refuses to load {}: {said}",
                self.url, adapter.path
            ))),
            _ => Err(refused(status, &headers, &body, None)),
        }
    }

    /// Takes an adapter out, if it is there.
    pub(super) async fn unload(&self, adapter: &str) -> Result<(), Failure> {
        let was_there = locked(&self.loaded).remove(adapter);
        if was_there {
            self.drop_adapter(adapter).await
        } else {
            Ok(())
        }
    }

    async fn drop_adapter(&self, adapter: &str) -> Result<(), Failure> {
        let request = self.post("/v1/unload_lora_adapter", &json!({ "lora_name": adapter }));
        match self.call(request, CALL_WITHIN, MAX_ERROR).await? {
            // It is not there any more, which is what was wanted.
            (200 | 404, ..) => Ok(()),
            (status, headers, body) => Err(refused(status, &headers, &body, None)),
        }
    }

    /// A prompt's tokens, from a server that can count them.
    pub(super) async fn count(&self, asking: &Asking, model: &str) -> Option<usize> {
        if self.counts_not.load(Ordering::Relaxed) {
            return None;
        }
        let request = self.post("/tokenize", &asking.count(model));
        let (status, _, body) = self.call(request, COUNT_WITHIN, MAX_LIST).await.ok()?;
        let count = serde_json::from_slice::<Value>(&body)
            .ok()
            .filter(|_| status == 200)
            .and_then(|body| body.get("count")?.as_u64());
        if count.is_none() {
            self.counts_not.store(true, Ordering::Relaxed);
        }
        usize::try_from(count?).ok()
    }
}

/// A body's beginning; what cannot be read is left out.
async fn body(mut response: Response, most: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        body.extend_from_slice(&piece);
        if body.len() >= most {
            break;
        }
    }
    body
}

fn refused(
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    constraint: Option<&'static str>,
) -> Failure {
    let retry_after = headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok());
    let retry_after = retry_after.filter(|v| v.len() <= 64).map(str::to_owned);
    failure::of_status(status, retry_after, failure::told_in_body(body), constraint)
}

fn unsent(e: reqwest::Error) -> Failure {
    let connects = e.is_connect() || e.is_timeout();
    let what = format!("cannot be asked: {}", told(e));
    if connects {
        Failure::Down(what)
    } else {
        Failure::Cut(what)
    }
}

fn too_slow(within: Duration) -> Failure {
    Failure::Down(format!("did not answer within {} s", within.as_secs_f64()))
}
