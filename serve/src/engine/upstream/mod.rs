//! Other servers as the engine: vLLM, mistral.rs, llama.cpp, or whatever else speaks OpenAI's API.
//!
//! Each request goes to one upstream, drawn by weight among those whose breaker lets it through. If that one fails before the answer
//! begins, the next one is asked; afterwards a failure is the client's to see, since half an answer cannot be taken back.
//!
//! An adapter's name upstream is made of its content (`support@3#<digest>`), without this process's own counter: replicas in front of one
//! upstream share it, and none can meet another content under it. An upstream that was away when an adapter was loaded, or that lost it
//! in a restart, gets it with the first request that needs it.

mod breaker;
mod choice;
mod failure;
mod incoming;
mod reply;
mod request;
mod server;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use rand::Rng;
use reqwest::Client;
use retune_task::ChatMessage;
use retune_wire::Sampling;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Instrument;

use self::failure::Failure;
use self::incoming::Incoming;
use self::request::Asking;
use self::server::{Begun, Patience, Server};
use super::{Constraint, Engine, Event, Generating, Generation, Prompt};
use crate::error::Error;
use crate::trace::Trail;

/// How long usage may come after the answer's end.
const AFTER_THE_END: Duration = Duration::from_secs(2);
/// An upstream that said something right within this time is taken for there.
const LATELY: Duration = Duration::from_secs(5);
/// How often upstreams are looked at, whoever asks how often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long such a look may take.
const LOOK_WITHIN: Duration = Duration::from_secs(2);

/// Characters a token, where nobody counted.
const CHARACTERS_A_TOKEN: usize = 4;

pub(crate) struct Upstream {
    servers: Vec<Arc<Server>>,
    weights: Vec<u32>,
    adapters_path: Option<String>,
    /// Loaded adapters by engine name.
    adapters: Mutex<HashMap<String, Arc<Adapter>>>,
    /// The last look at the upstreams, and whether one was there.
    looked: tokio::sync::Mutex<Option<(Instant, bool)>>,
    /// Owns the tasks that turn what comes in into events.
    answers: TaskTracker,
    /// One greedy token.
    probe: Asking,
}

/// An adapter that upstreams have or get.
struct Adapter {
    /// Its name there.
    name: String,
    /// Its folder here.
    folder: PathBuf,
    /// Its folder as upstreams see it.
    path: String,
    /// This process's requests that it answers.
    requests: TaskTracker,
}

impl Adapter {
    fn refused(&self, problems: String) -> Failure {
        Failure::Refused(Error::Adapter {
            folder: self.folder.clone(),
            problems,
        })
    }
}

impl Upstream {
    /// Nothing is asked yet: an upstream may come later. `variable` looks a key up in the environment.
    pub(crate) fn new(
        config: &retune_task::Upstream,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Error> {
        let client = Client::builder()
            .user_agent(concat!("retune/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs_f64(config.connect_timeout_seconds))
            .pool_max_idle_per_host(config.max_connections)
            // Prompts and keys go where the configuration says, and nowhere else.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| {
                Error::Engine(format!("no HTTP client can be made: {}", incoming::told(e)))
            })?;
        let patience = Patience {
            first_byte: Duration::from_secs_f64(config.first_byte_timeout_seconds),
            idle: Duration::from_secs_f64(config.idle_timeout_seconds),
        };
        let mut servers = Vec::with_capacity(config.servers.len());
        for server in &config.servers {
            let key = match &server.api_key_env {
                None => None,
                Some(name) => Some(variable(name).filter(|k| !k.trim().is_empty()).ok_or_else(|| {
                    Error::Engine(format!(
                        "there is no key for {} in the variable {name} (api_key_env); set it, or leave api_key_env out",
                        server.url
                    ))
                })?),
            };
            servers.push(Arc::new(Server::new(
                server,
                config.model.as_deref(),
                key.as_deref(),
                client.clone(),
                patience,
            )?));
        }
        Ok(Self {
            weights: servers.iter().map(|s| s.weight).collect(),
            servers,
            adapters_path: config.adapters_path.clone(),
            adapters: Mutex::default(),
            looked: tokio::sync::Mutex::default(),
            answers: TaskTracker::new(),
            probe: probe(),
        })
    }

    fn adapters(&self) -> MutexGuard<'_, HashMap<String, Arc<Adapter>>> {
        self.adapters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks one upstream, and again where that is likely to help.
    async fn begin(
        &self,
        server: &Server,
        asking: &Asking,
        adapter: Option<&Adapter>,
    ) -> Result<Begun, Failure> {
        let (mut lost, mut cut) = (false, false);
        loop {
            let model = match adapter {
                Some(adapter) => {
                    server.ensure(adapter, &self.probe).await?;
                    adapter.name.clone()
                }
                None => server.base().await?,
            };
            match server.ask(asking, model.clone()).await {
                // It was started anew, and knows nothing of what was loaded before.
                Err(Failure::Lost) if !lost => {
                    lost = true;
                    server.forget(&model);
                    tracing::info!(upstream = server.url, model, "an upstream lost a model");
                }
                Err(Failure::Cut(_)) if !cut => cut = true,
                begun => return begun,
            }
        }
    }

    /// The first upstream that begins to answer.
    async fn first(
        &self,
        asking: &Asking,
        adapter: Option<&Adapter>,
    ) -> Result<(Arc<Server>, Begun), Error> {
        let mut last = Error::UpstreamUnavailable;
        for index in choice::order(&self.weights, |n| rand::rng().random_range(0..n)) {
            let Some(server) = self.servers.get(index).filter(|s| s.lets_through()) else {
                continue;
            };
            match self.begin(server, asking, adapter).await {
                Ok(begun) => {
                    server.succeeded();
                    return Ok((Arc::clone(server), begun));
                }
                Err(failure @ Failure::Busy(_)) => {
                    server.succeeded();
                    return Err(failure.into_error(&server.url));
                }
                Err(Failure::Refused(e @ Error::Invalid(_))) => {
                    server.succeeded();
                    return Err(failure::naming(e, asking.prompt()));
                }
                // It cannot load the adapter: what else it answers is as good as before.
                Err(Failure::Refused(e)) => {
                    tracing::warn!(upstream = server.url, error = %e, "an upstream lacks an adapter");
                    last = e;
                }
                Err(failure) => {
                    server.failed(&failure);
                    // The most telling of all: that an upstream is away says less than why another one refuses.
                    let error = failure.into_error(&server.url);
                    if !matches!(error, Error::UpstreamUnavailable) {
                        last = error;
                    }
                }
            }
        }
        Err(last)
    }
}

#[async_trait]
impl Engine for Upstream {
    /// Those that are away get it later; one that refuses it refuses it for all.
    async fn load(&self, name: &str, folder: &Path) -> Result<(), Error> {
        let adapter = Arc::new(Adapter {
            name: name_upstream(name).to_owned(),
            folder: folder.to_owned(),
            path: request::path_upstream(folder, self.adapters_path.as_deref()),
            requests: TaskTracker::new(),
        });
        let loads = self.servers.iter().map(|s| s.ensure(&adapter, &self.probe));
        let mut there = false;
        let mut refusal = None;
        let mut away = Vec::new();
        for (server, loaded) in self.servers.iter().zip(join_all(loads).await) {
            match loaded {
                Ok(()) => there = true,
                Err(Failure::Refused(e)) => refusal = Some(e),
                Err(failure) => away.push((&server.url, failure.told())),
            }
        }
        // Where nobody has it the caller says so.
        for (url, told) in away.iter().filter(|_| there) {
            tracing::warn!(
                upstream = url,
                adapter = name,
                "an adapter is not loaded everywhere yet: an upstream {told}"
            );
        }
        match refusal {
            Some(e) => {
                self.unload_everywhere(&adapter.name).await;
                Err(e)
            }
            None if !there => Err(Error::UpstreamUnavailable),
            None => {
                self.adapters().insert(name.to_owned(), adapter);
                Ok(())
            }
        }
    }

    async fn unload(&self, name: &str) -> Result<(), Error> {
        let Some(adapter) = self.adapters().remove(name) else {
            return Err(Error::NotLoaded(name.to_owned()));
        };
        adapter.requests.close();
        adapter.requests.wait().await;
        self.unload_everywhere(&adapter.name).await;
        Ok(())
    }

    async fn generate(&self, generation: Generation) -> Result<Generating, Error> {
        let adapter = match &generation.adapter {
            None => None,
            Some(name) => {
                let adapters = self.adapters();
                let adapter = adapters
                    .get(name)
                    .ok_or_else(|| Error::NotLoaded(name.clone()))?;
                Some((Arc::clone(adapter), adapter.requests.token()))
            }
        };
        let asking = Asking::new(&generation);
        let named = adapter.as_ref().map(|(adapter, _)| adapter.as_ref());
        let (server, begun) = self.first(&asking, named).await?;
        let (events, receiver) = mpsc::unbounded_channel();
        let estimate = estimate(&generation.prompt);
        let answer = Answer {
            server,
            asking,
            events,
            _request: adapter.map(|(_, token)| token),
        };
        self.answers.spawn(answer.run(begun));
        Ok(Generating {
            prompt_tokens: estimate,
            events: receiver,
        })
    }

    /// An upstream says at a request whether it can.
    async fn holds(&self, _: Constraint) -> Result<(), Error> {
        Ok(())
    }

    fn knows_tools(&self) -> bool {
        true
    }

    /// A server computes in its own precision, and many requests at once.
    fn repeats(&self) -> bool {
        false
    }

    async fn ready(&self) -> bool {
        let mut looked = self.looked.lock().await;
        if let Some((at, ready)) = *looked
            && at.elapsed() < LOOK_EVERY
        {
            return ready;
        }
        let found = self.look().await;
        // Once, when it begins: probes come often.
        if let Err(why) = &found
            && looked.is_none_or(|(_, was)| was)
        {
            tracing::warn!("no model answers: {why}");
        }
        *looked = Some((Instant::now(), found.is_ok()));
        found.is_ok()
    }
}

impl Upstream {
    /// Whether a request could go somewhere.
    async fn look(&self) -> Result<(), String> {
        let usable: Vec<_> = self.servers.iter().filter(|s| !s.is_open()).collect();
        if usable.iter().any(|s| s.was_seen(LATELY)) {
            return Ok(());
        }
        let look = async |s: &Arc<Server>| (s.url.clone(), s.models(LOOK_WITHIN).await);
        let mut looks: FuturesUnordered<_> = usable.into_iter().map(look).collect();
        let mut why = Vec::new();
        while let Some((url, models)) = looks.next().await {
            match models {
                // One without a list of models is there as well.
                Ok(_) | Err(Failure::Lost) => return Ok(()),
                Err(failure) => why.push(format!("{url} {}", failure.told())),
            }
        }
        if why.is_empty() {
            why.push("each upstream has failed lately, and is left alone for a moment".to_owned());
        }
        Err(why.join("; "))
    }

    /// An upstream that is away has lost it anyway.
    async fn unload_everywhere(&self, adapter: &str) {
        // The same content, loaded by this process once more.
        if self.adapters().values().any(|a| a.name == adapter) {
            return;
        }
        let unloads = self.servers.iter().map(|s| s.unload(adapter));
        for (server, unloaded) in self.servers.iter().zip(join_all(unloads).await) {
            if let Err(failure) = unloaded {
                tracing::warn!(
                    upstream = server.url,
                    adapter,
                    "an adapter stays loaded: an upstream {}",
                    failure.told()
                );
            }
        }
    }
}

/// One running answer: from what comes in to events.
struct Answer {
    server: Arc<Server>,
    asking: Asking,
    events: mpsc::UnboundedSender<Event>,
    /// Keeps the adapter loaded.
    _request: Option<TaskTrackerToken>,
}

impl Answer {
    async fn run(self, begun: Begun) {
        let log = self.asking.trail.log.clone();
        if let Some(mut incoming) = self.whole(begun).instrument(log).await {
            // To the last byte, so that the connection can serve the next request.
            let rest = async { while let Ok(Some(_)) = incoming.next(AFTER_THE_END).await {} };
            let _ = tokio::time::timeout(AFTER_THE_END, rest).await;
        }
    }

    /// Sends all of the answer on; what still comes behind a good end is returned.
    async fn whole(self, mut begun: Begun) -> Option<Incoming> {
        for event in begun.events.drain(..) {
            self.send(event);
        }
        let ended = tokio::select! {
            biased;
            // Nobody listens: dropping what comes in closes the connection.
            () = self.events.closed() => return None,
            ended = self.read(&mut begun) => ended,
        };
        let Begun {
            incoming,
            reply,
            model,
            ..
        } = begun;
        let end = match ended.and_then(|()| reply.end()) {
            Ok(end) => end,
            Err(failure) => {
                self.server.failed(&failure);
                self.send(Event::Failed(failure.midway(&self.server.url)));
                return None;
            }
        };
        let mut prompt_tokens = end.prompt_tokens;
        if prompt_tokens.is_none() {
            prompt_tokens = self.server.count(&self.asking, &model).await;
            tracing::debug!(
                upstream = self.server.url,
                counted = prompt_tokens.is_some(),
                "an upstream tells no usage: the answer's tokens are its pieces, the prompt's are counted by /tokenize or estimated"
            );
        }
        if let Some(calls) = end.calls {
            self.send(calls);
        }
        self.send(Event::Done {
            finish: end.finish,
            tokens: end.tokens,
            prompt_tokens,
        });
        Some(incoming)
    }

    /// Reads until all there is has come.
    async fn read(&self, begun: &mut Begun) -> Result<(), Failure> {
        while !begun.reply.is_closed() {
            let finished = begun.reply.is_finished();
            let idle = self.server.patience.idle;
            let patience = if finished {
                idle.min(AFTER_THE_END)
            } else {
                idle
            };
            let data = match begun.incoming.next(patience).await {
                Ok(Some(data)) => data,
                Ok(None) => return Ok(()),
                // The answer is whole; what is missing is said by none.
                Err(_) if finished => return Ok(()),
                Err(failure) => return Err(failure),
            };
            if let Some(event) = begun.reply.take(&data)?.event {
                self.send(event);
            }
        }
        Ok(())
    }

    /// A reader that left is noticed in [`Self::run`].
    fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

/// The engine's name without this process's counter behind the slash.
fn name_upstream(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(content, _)| content)
}

/// A prompt's tokens, roughly, until an upstream says more.
fn estimate(prompt: &Prompt) -> usize {
    let characters: usize = match prompt {
        Prompt::Messages { messages, .. } => {
            messages.iter().map(|m| m.content.chars().count()).sum()
        }
        Prompt::Text(text) => text.chars().count(),
    };
    characters.div_ceil(CHARACTERS_A_TOKEN).max(1)
}

fn probe() -> Asking {
    Asking::new(&Generation {
        adapter: None,
        prompt: Prompt::Messages {
            messages: vec![ChatMessage::new("user", "Hello")],
            tools: None,
        },
        sampling: Sampling::GREEDY,
        max_tokens: 1,
        stop: Vec::new(),
        logprobs: None,
        constraint: None,
        trail: Trail::default(),
    })
}
