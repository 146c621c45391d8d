//! One exchange, from admission to the ledger: the only place where answers are made.
//!
//! It runs in a task of its own, so that its record is kept whatever becomes of the connection; the HTTP side listens. When the client
//! leaves, its listener goes with it, the engine's slot is freed, and the exchange is logged with code 499. The record is in the
//! ledger before the last piece goes out, so that feedback can follow at once.

use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use retune_ledger::{Exchange, Purpose};
use retune_task::{ChatMessage, Check, conversation};
use tokio::sync::mpsc;

use crate::admission::Ticket;
use crate::engine::{Event, Finish, Generating, Generation, Prompt};
use crate::error::Error;
use crate::openai::ChatRequest;
use crate::routing::Route;
use crate::state::App;

/// The code of a request whose client left (nginx's, there is no standard one).
pub(crate) const CLIENT_LEFT: u16 = 499;

/// The answer's limit where no task sets one, in tokens.
const BASE_MAX_TOKENS: usize = 256;

/// What is asked, and of whom.
pub(crate) struct Asked {
    pub(crate) request_id: String,
    pub(crate) request: ChatRequest,
    pub(crate) route: Route,
    pub(crate) purpose: Purpose,
    pub(crate) run_id: Option<String>,
    pub(crate) arrived: Instant,
}

/// What the HTTP side hears.
#[derive(Debug)]
pub(crate) enum Piece {
    /// The engine has taken the request: from here on the status is 200.
    Started,
    Text(String),
    Done(Answered),
    Failed(Error),
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) text: String,
    pub(crate) finish: Finish,
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
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
    let running = Running {
        app: Arc::clone(app),
        asked,
        pieces,
        text: String::new(),
        prompt_tokens: 0,
        tokens: 0,
        first_text: None,
    };
    app.exchanges.spawn_on(running.run(ticket), &app.runtime);
    receiver
}

/// Why there is no complete answer.
enum Ended {
    Left,
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(e: Error) -> Self {
        Self::Failed(e)
    }
}

struct Running {
    app: Arc<App>,
    asked: Asked,
    pieces: mpsc::UnboundedSender<Piece>,
    /// The answer so far.
    text: String,
    prompt_tokens: usize,
    tokens: usize,
    first_text: Option<Instant>,
}

impl Running {
    async fn run(mut self, ticket: Ticket) {
        let (app, pieces) = (Arc::clone(&self.app), self.pieces.clone());
        let ended = tokio::select! {
            ended = self.answer(ticket) => ended,
            () = pieces.closed() => Err(Ended::Left),
            () = app.abandoned.cancelled() => Err(Ended::Failed(Error::Stopping)),
        };
        let code = match &ended {
            Ok(_) => 200,
            Err(Ended::Left) => CLIENT_LEFT,
            Err(Ended::Failed(e)) => e.seen().status.as_u16(),
        };
        let check = match (&ended, &self.asked.route.task) {
            (Ok(_), Some(task)) => task.format.as_ref().map(|f| f.check(&self.text)),
            _ => None,
        };
        self.measure(code, check.as_ref());
        // What the client did wrong is no exchange; what it never waited for, or got no answer to, is one.
        if !(400..CLIENT_LEFT).contains(&code) {
            self.log(code, ended.as_ref().ok().copied(), check.as_ref());
        }
        let last = match ended {
            Ok(finish) => Piece::Done(Answered {
                text: std::mem::take(&mut self.text),
                finish,
                prompt_tokens: self.prompt_tokens,
                completion_tokens: self.tokens,
                format: shown(check.as_ref()),
            }),
            Err(Ended::Failed(e)) => Piece::Failed(e),
            Err(Ended::Left) => return,
        };
        self.say(last);
    }

    async fn answer(&mut self, ticket: Ticket) -> Result<Finish, Ended> {
        let _admitted = ticket.admitted().await?;
        let mut generating = self.generate().await?;
        self.prompt_tokens = generating.prompt_tokens;
        self.say(Piece::Started);
        while let Some(event) = generating.events.recv().await {
            match event {
                Event::Text { text, tokens, .. } => {
                    self.first_text.get_or_insert_with(Instant::now);
                    self.tokens = tokens;
                    self.text.push_str(&text);
                    self.say(Piece::Text(text));
                }
                Event::Done {
                    finish,
                    tokens,
                    prompt_tokens,
                } => {
                    self.tokens = tokens;
                    self.prompt_tokens = prompt_tokens.unwrap_or(self.prompt_tokens);
                    return Ok(finish);
                }
                Event::Failed(e) => return Err(e.into()),
            }
        }
        Err(Error::Engine("an answer ended without an end".to_owned()).into())
    }

    /// Asks the engine. An adapter that left memory between being found and being asked is loaded again.
    async fn generate(&self) -> Result<Generating, Error> {
        let Asked { request, route, .. } = &self.asked;
        let mut generation = Generation {
            adapter: None,
            prompt: Prompt::Messages {
                messages: messages(request, route),
                tools: None,
            },
            sampling: request.sampling.clone(),
            max_tokens: max_tokens(request, route),
            stop: request.stop.clone(),
            logprobs: None,
            constraint: None,
        };
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

    fn measure(&self, code: u16, check: Option<&Check>) {
        let Asked {
            route,
            purpose,
            arrived,
            ..
        } = &self.asked;
        if *purpose != Purpose::User {
            return;
        }
        let metrics = &self.app.metrics;
        let (task, adapter) = (route.task_name(), route.name.as_str());
        metrics
            .requests
            .with_label_values(&[task, adapter, &route.stage, &code.to_string()])
            .inc();
        let count = |kind, tokens: usize| {
            metrics
                .tokens
                .with_label_values(&[task, adapter, kind])
                .inc_by(tokens as u64)
        };
        count("prompt", self.prompt_tokens);
        count("completion", self.tokens);
        if code != 200 {
            return;
        }
        metrics
            .duration
            .with_label_values(&[task, adapter])
            .observe(arrived.elapsed().as_secs_f64());
        if let Some(first) = self.first_text {
            metrics
                .first_token
                .with_label_values(&[task, adapter])
                .observe((first - *arrived).as_secs_f64());
            if self.tokens > 1 {
                let each = first.elapsed().as_secs_f64() / (self.tokens - 1) as f64;
                metrics
                    .per_token
                    .with_label_values(&[task, adapter])
                    .observe(each);
            }
        }
        match check {
            None => {}
            Some(Check::Valid) => metrics
                .format_checks
                .with_label_values(&[task, adapter, "valid", ""])
                .inc(),
            Some(Check::Invalid { reason, .. }) => metrics
                .format_checks
                .with_label_values(&[task, adapter, "invalid", *reason])
                .inc(),
        }
    }

    fn log(&self, code: u16, finish: Option<Finish>, check: Option<&Check>) {
        let Asked {
            request_id,
            request,
            route,
            purpose,
            run_id,
            arrived,
        } = &self.asked;
        let milliseconds = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1000.0;
        let kept = request.store;
        let row = Exchange {
            request_id: request_id.clone(),
            replica: self.app.ledger.replica().to_owned(),
            seq: 0,
            ts: Utc::now(),
            purpose: *purpose,
            task: route.task.as_ref().map(|t| t.name.clone()),
            model_requested: request.model.clone(),
            adapter: Some(route.name.clone()),
            adapter_digest: route.digest().map(str::to_owned),
            stage: Some(route.stage.clone()),
            base: self.app.table.load().base.clone(),
            api_key_id: None,
            user: request
                .safety_identifier
                .clone()
                .or_else(|| request.user.clone()),
            metadata: request.metadata.clone(),
            conversation: conversation(&request.messages),
            messages: kept.then(|| request.messages.clone()),
            answer: kept.then(|| self.text.clone()),
            tool_calls: None,
            finish_reason: finish.map(|f| f.as_str().to_owned()),
            prompt_tokens: self.prompt_tokens as u64,
            completion_tokens: self.tokens as u64,
            time_to_first_token_ms: self.first_text.map(|first| milliseconds(*arrived, first)),
            duration_ms: milliseconds(*arrived, Instant::now()),
            parameters: request.parameters(max_tokens(request, route)),
            code,
            format_valid: check.map(|c| matches!(c, Check::Valid)),
            format_reason: match check {
                Some(Check::Invalid { reason, .. }) => Some((*reason).to_owned()),
                _ => None,
            },
            run_id: run_id.clone(),
        };
        tracing::debug!(
            request_id,
            adapter = route.name,
            code,
            tokens = self.tokens,
            "exchange"
        );
        if let Err(e) = self.app.ledger.append_exchange(row) {
            tracing::error!(request_id, error = %e, "an exchange could not be kept");
        }
    }
}

/// The conversation as the model gets it: the task's prompt in front.
fn messages(request: &ChatRequest, route: &Route) -> Vec<ChatMessage> {
    match &route.task {
        Some(task) => task.messages(route.prompt, &request.messages),
        // A developer's message is what newer clients call a system's.
        None => request
            .messages
            .iter()
            .map(|m| match m.role.as_str() {
                "developer" => ChatMessage::new("system", m.content.as_str()),
                _ => m.clone(),
            })
            .collect(),
    }
}

fn max_tokens(request: &ChatRequest, route: &Route) -> usize {
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
