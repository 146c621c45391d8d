//! One exchange, from admission to the ledger: the only place where answers are made.
//!
//! It runs in a task of its own, so that its record is kept whatever becomes of the connection; the HTTP side listens. When the client
//! leaves, its listener goes with it, the engine's slot is freed, and the exchange is logged with code 499. The record is in the
//! ledger before the last piece goes out, so that feedback can follow at once.
//!
//! What a task enforces is done here too. The format stream must see what the model does by itself, so a row says whether its answer
//! holds the format only where nothing helped it to: a constrained answer and a second try say nothing, and a probe says it instead.

mod beside;
mod record;

use std::sync::Arc;
use std::time::Instant;

use retune_ledger::Purpose;
use retune_task::{ChatMessage, Check, Enforce, OnLogFailure};
use retune_wire::calls::{Delta, Reader};
use retune_wire::{Ask, Chat, Choice, Request, TokenLogprob, ToolChoice, Usage};
use tokio::sync::mpsc;
use tracing::field::Empty;
use tracing::{Instrument, Span, debug_span};

use crate::admission::Ticket;
use crate::engine::{Constraint, Event, Finish, Generating, Generation, Prompt};
use crate::error::Error;
use crate::routing::Route;
use crate::state::App;
use crate::trace::{self, Trail};

/// The code of a request whose client left (nginx's, there is no standard one).
pub(crate) const CLIENT_LEFT: u16 = 499;

/// The answer's limit where no task sets one, in tokens.
const BASE_MAX_TOKENS: usize = 256;

/// The least temperature of a second try: the likeliest answer again would be the same.
const RETRY_TEMPERATURE: f64 = 0.7;

/// What is asked, and of whom.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) request_id: String,
    pub(crate) request: Request,
    pub(crate) route: Route,
    pub(crate) purpose: Purpose,
    /// Whether the answer is held to what its task enforces, as apps' are.
    pub(crate) enforced: bool,
    pub(crate) run_id: Option<String>,
    pub(crate) api_key_id: Option<String>,
    pub(crate) arrived: Instant,
    pub(crate) trail: Trail,
}

/// What the HTTP side hears.
#[derive(Debug)]
pub(crate) enum Piece {
    /// The engine has taken the request: from here on the status is 200.
    Started,
    Part {
        choice: usize,
        delta: Delta,
        logprobs: Vec<TokenLogprob>,
    },
    Done(Answered),
    Failed(Error),
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) choices: Vec<Choice>,
    pub(crate) usage: Usage,
    /// `valid`, `invalid`, or `none` without a format.
    pub(crate) format: &'static str,
}

/// Begins the exchange; the pieces end with [`Piece::Done`] or [`Piece::Failed`].
pub(crate) fn begin(
    app: &Arc<App>,
    asked: Asked,
    ticket: Ticket,
) -> mpsc::UnboundedReceiver<Piece> {
    let (pieces, receiver) = mpsc::unbounded_channel();
    let (span, log) = (trace::exchange(&asked), asked.trail.log.clone());
    let run = Running::new(app, asked, pieces).run(ticket);
    let run = run.instrument(span).instrument(log);
    app.exchanges.spawn_on(run, &app.runtime);
    receiver
}

/// Why there is no complete answer.
enum Ended {
    Left,
    Failed(Error),
}

fn code(ended: &Result<(), Ended>) -> u16 {
    match ended {
        Ok(()) => 200,
        Err(Ended::Left) => CLIENT_LEFT,
        Err(Ended::Failed(e)) => e.seen().status.as_u16(),
    }
}

impl From<Error> for Ended {
    fn from(e: Error) -> Self {
        Self::Failed(e)
    }
}

struct Running {
    app: Arc<App>,
    asked: Asked,
    enforce: Enforce,
    pieces: mpsc::UnboundedSender<Piece>,
    started: bool,
    /// The answers so far, the last one perhaps incomplete.
    choices: Vec<Choice>,
    usage: Usage,
    first_text: Option<Instant>,
    /// Some answer was asked for a second time.
    retried: bool,
}

impl Running {
    fn new(app: &Arc<App>, asked: Asked, pieces: mpsc::UnboundedSender<Piece>) -> Self {
        // An examination asks what the model says by itself, and a request's own form goes before the task's.
        let enforce = match &asked.route.task {
            Some(task) if asked.enforced && !asked.request.has_own_form() => task.enforce,
            _ => Enforce::Off,
        };
        Self {
            app: Arc::clone(app),
            asked,
            enforce,
            pieces,
            started: false,
            choices: Vec::new(),
            usage: Usage::default(),
            first_text: None,
            retried: false,
        }
    }

    async fn run(mut self, ticket: Ticket) {
        let (app, pieces) = (Arc::clone(&self.app), self.pieces.clone());
        let mut ended = tokio::select! {
            ended = self.answer(ticket) => ended,
            () = pieces.closed() => Err(Ended::Left),
            () = tokio::time::sleep(app.config.engine.deadline) => Err(Ended::Failed(Error::Deadline)),
            () = app.abandoned.cancelled() => Err(Ended::Failed(Error::Stopping)),
        };
        let check = match &ended {
            Ok(()) => debug_span!(target: trace::TARGET, "format check").in_scope(|| self.check()),
            Err(_) => None,
        };
        let by_itself = self.enforce != Enforce::Constrain && !self.retried;
        let own = check.as_ref().filter(|_| by_itself);
        let tokens = (self.usage.prompt + self.usage.completion) as u64;
        let key = self.asked.api_key_id.as_deref();
        app.rates.spend_tokens(key, tokens, Instant::now());
        // What the client did wrong is no exchange; what it never waited for, or got no answer to, is one.
        if !(400..CLIENT_LEFT).contains(&code(&ended))
            && let Err(e) = self.log(code(&ended), own).await
            && ended.is_ok()
            && app.config.store.on_log_failure == OnLogFailure::Reject
        {
            ended = Err(Ended::Failed(Error::Ledger(e)));
        }
        let code = code(&ended);
        self.measure(code, own);
        self.trace(code, check.as_ref());
        if code == 200 && self.asked.purpose == Purpose::User && !app.stopping.is_cancelled() {
            self.ask_beside();
        }
        let last = match ended {
            Ok(()) => Piece::Done(Answered {
                choices: std::mem::take(&mut self.choices),
                usage: self.usage,
                format: shown(check.as_ref()),
            }),
            Err(Ended::Failed(e)) => Piece::Failed(e),
            Err(Ended::Left) => return,
        };
        self.say(last);
    }

    /// Whether every choice holds the task's format; none where the form is the request's own.
    fn check(&self) -> Option<Check> {
        if self.asked.request.has_own_form() {
            return None;
        }
        let format = self.asked.route.task.as_ref()?.format.as_ref()?;
        let mut checks = self
            .choices
            .iter()
            .map(|c| format.check(c.message.content.as_deref().unwrap_or_default()));
        checks
            .find(|check| !check.is_valid())
            .or(Some(Check::Valid))
    }

    async fn answer(&mut self, ticket: Ticket) -> Result<(), Ended> {
        let waiting = debug_span!(target: trace::TARGET, "admission");
        let _admitted = ticket.admitted().instrument(waiting).await?;
        let prompts = self.prompts()?;
        for (at, prompt) in prompts.into_iter().enumerate() {
            for n in 0..self.asked.request.n {
                let index = at * self.asked.request.n + n;
                self.choice(index, prompt.clone(), n == 0).await?;
            }
        }
        Ok(())
    }

    /// What the model reads: one conversation, or each raw prompt.
    fn prompts(&self) -> Result<Vec<Prompt>, Error> {
        let Asked { request, route, .. } = &self.asked;
        match &request.ask {
            Ask::Completion(prompts) => Ok(prompts.iter().cloned().map(Prompt::Text).collect()),
            Ask::Chat(chat) => {
                let knows = self.app.engine.knows_tools();
                let tools = chat.tools.as_ref();
                if tools.is_some_and(|t| t.choice == ToolChoice::Auto) && !knows {
                    return Err(Error::param(
                        "tool_choice",
                        "unsupported_value",
                        "This model's chat template tells it nothing of tools, so that it could not choose one. Set 'tool_choice' \
                         to 'required', or to a function: then the answer is decoded under its parameters' schema.",
                    ));
                }
                Ok(vec![Prompt::Messages {
                    messages: messages(chat, route),
                    tools: tools.filter(|_| knows).map(|t| Arc::clone(&t.list)),
                }])
            }
        }
    }

    /// Makes one of the answers; `counts`: its prompt counts, as the first of its prompt's choices.
    async fn choice(&mut self, index: usize, prompt: Prompt, counts: bool) -> Result<(), Ended> {
        let mut generation = self.generation(index, prompt);
        let answer = self.generated(generation.clone(), counts).await?;
        if self.enforce != Enforce::Retry {
            return Ok(());
        }
        if !self.holds(&answer) {
            self.log_first_try().await;
            self.retried = true;
            // Nothing of it went out.
            self.choices.pop();
            let sampling = &mut generation.sampling;
            sampling.temperature = sampling.temperature.max(RETRY_TEMPERATURE);
            sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(i64::MAX / 2));
            self.generated(generation, false).await?;
        }
        self.say_whole(index);
        Ok(())
    }

    /// Says a choice that was held back until it was checked.
    fn say_whole(&self, index: usize) {
        if let Some(choice) = self.choices.get(index) {
            let text = choice.message.content.clone().unwrap_or_default();
            self.say(Piece::Part {
                choice: index,
                delta: Delta::Content(text),
                logprobs: choice.logprobs.clone(),
            });
        }
    }

    fn holds(&self, answer: &str) -> bool {
        let task = self.asked.route.task.as_ref();
        let format = task.and_then(|t| t.format.as_ref());
        format.is_none_or(|f| f.check(answer).is_valid())
    }

    fn generation(&self, index: usize, prompt: Prompt) -> Generation {
        let Asked { request, route, .. } = &self.asked;
        let mut sampling = request.sampling.clone();
        // Each choice has a seed of its own, or all would be the same.
        sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(index as i64));
        Generation {
            adapter: None,
            prompt,
            sampling,
            max_tokens: max_tokens(request, route),
            stop: request.stop.clone(),
            logprobs: request.logprobs,
            constraint: self.constraint(),
            trail: self.asked.trail.clone(),
        }
    }

    /// What the answer is decoded under: the request's own wish, else the task's.
    fn constraint(&self) -> Option<Constraint> {
        let own = |grammar, param| Constraint {
            grammar: Arc::new(grammar),
            param,
        };
        if let Ask::Chat(chat) = &self.asked.request.ask {
            if let Some(grammar) = chat.tools.as_ref().and_then(|t| t.grammar()) {
                return Some(own(grammar, "tools"));
            }
            if let Some(grammar) = chat.response_format.as_ref().and_then(|f| f.grammar()) {
                return Some(own(grammar, "response_format"));
            }
        }
        if self.enforce != Enforce::Constrain {
            return None;
        }
        let format = self.asked.route.task.as_ref()?.format.as_ref()?;
        Some(Constraint {
            grammar: Arc::clone(format.grammar()?),
            param: "model",
        })
    }

    /// Generates the next choice and returns its text.
    async fn generated(&mut self, generation: Generation, counts: bool) -> Result<String, Ended> {
        let span = debug_span!(
            target: trace::TARGET,
            "generate",
            retune.choice = trace::number(self.choices.len()),
            retune.time_to_first_token_seconds = Empty,
        );
        let generating = self.generating(generation, counts);
        generating.instrument(span).await
    }

    async fn generating(
        &mut self,
        mut generation: Generation,
        counts: bool,
    ) -> Result<String, Ended> {
        let begun = Instant::now();
        let mut first = true;
        if let Some(traces) = &self.app.traces {
            generation.trail = self
                .asked
                .trail
                .clone()
                .at(traces.context(&Span::current()));
        }
        let mut generating = self.generate(generation).await?;
        if counts {
            self.usage.prompt += generating.prompt_tokens;
        }
        let tools = match &self.asked.request.ask {
            Ask::Chat(chat) => chat.tools.as_ref(),
            Ask::Completion(_) => None,
        };
        let mut reader = Reader::new(tools);
        self.choices.push(Choice::default());
        let before = self.usage.completion;
        let mut untold = Vec::new();
        while let Some(event) = generating.events.recv().await {
            // An engine that breaks down over the prompt is a 503, of a stream as well.
            if !matches!(event, Event::Failed(_)) && !std::mem::replace(&mut self.started, true) {
                self.say(Piece::Started);
            }
            match event {
                Event::Text {
                    text,
                    tokens,
                    logprobs,
                } => {
                    self.first_text.get_or_insert_with(Instant::now);
                    if std::mem::take(&mut first) {
                        let seconds = begun.elapsed().as_secs_f64();
                        Span::current().record("retune.time_to_first_token_seconds", seconds);
                    }
                    self.usage.completion = before + tokens;
                    untold.extend(logprobs);
                    self.tell(reader.push(&text), &mut untold);
                }
                Event::Done {
                    finish,
                    tokens,
                    prompt_tokens,
                } => {
                    self.usage.completion = before + tokens;
                    if counts && let Some(counted) = prompt_tokens {
                        self.usage.prompt = self.usage.prompt - generating.prompt_tokens + counted;
                    }
                    self.tell(reader.finish(), &mut untold);
                    if !untold.is_empty() {
                        self.tell(vec![Delta::Content(String::new())], &mut untold);
                    }
                    let called = reader.chose_a_call() && finish == Finish::Stop;
                    let finish = if called {
                        "tool_calls"
                    } else {
                        finish.as_str()
                    };
                    let last = self.choices.last_mut();
                    let text = last.map(|choice| {
                        choice.finish = finish;
                        choice.message.content.clone().unwrap_or_default()
                    });
                    return Ok(text.unwrap_or_default());
                }
                Event::Failed(e) => return Err(e.into()),
            }
        }
        Err(Error::Engine("an answer ended without an end".to_owned()).into())
    }

    /// Adds to the last choice, and says it unless the whole answer is to be checked first.
    fn tell(&mut self, deltas: Vec<Delta>, untold: &mut Vec<TokenLogprob>) {
        let index = self.choices.len().saturating_sub(1);
        for delta in deltas {
            let logprobs = std::mem::take(untold);
            if let Some(choice) = self.choices.last_mut() {
                choice.message.add(&delta);
                choice.logprobs.extend(logprobs.iter().cloned());
            }
            if self.enforce != Enforce::Retry {
                self.say(Piece::Part {
                    choice: index,
                    delta,
                    logprobs,
                });
            }
        }
    }

    /// Asks the engine. An adapter that left memory between being found and being asked is loaded again.
    async fn generate(&self, mut generation: Generation) -> Result<Generating, Error> {
        let route = &self.asked.route;
        for _ in 0..2 {
            generation.adapter = self.app.engine_name(route).await?;
            match self.app.engine.generate(generation.clone()).await {
                Err(Error::NotLoaded(_)) => {}
                other => return other,
            }
        }
        generation.adapter = self.app.engine_name(route).await?;
        self.app.engine.generate(generation).await
    }

    /// A listener that is gone is noticed in [`Self::run`].
    fn say(&self, piece: Piece) {
        let _ = self.pieces.send(piece);
    }
}

/// The conversation as the model gets it: the task's prompt in front.
fn messages(chat: &Chat, route: &Route) -> Vec<ChatMessage> {
    match &route.task {
        Some(task) => task.messages(route.prompt, &chat.messages),
        // A developer's message is what newer clients call a system's.
        None => chat
            .messages
            .iter()
            .map(|m| match m.role.as_str() {
                "developer" => ChatMessage {
                    role: "system".to_owned(),
                    ..m.clone()
                },
                _ => m.clone(),
            })
            .collect(),
    }
}

fn max_tokens(request: &Request, route: &Route) -> usize {
    request.max_tokens.unwrap_or_else(|| {
        route
            .task
            .as_ref()
            .map_or(BASE_MAX_TOKENS, |t| t.max_tokens)
    })
}

fn shown(check: Option<&Check>) -> &'static str {
    match check {
        None => "none",
        Some(Check::Valid) => "valid",
        Some(Check::Invalid { .. }) => "invalid",
    }
}
