//! `POST /v1/chat/completions` and `POST /v1/completions`, whole or streamed.

use std::convert::Infallible;
use std::time::Instant;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use chrono::Utc;
use futures::{Stream, StreamExt, stream};
use retune_ledger::Purpose;
use retune_wire::{Ask, Envelope, Params, Refusal, Request};
use tokio::sync::mpsc::UnboundedReceiver;

use super::body;
use crate::error::Error;
use crate::exchange::{self, Answered, Asked, Piece};
use crate::keys::Caller;
use crate::routing::Route;
use crate::state::App;
use crate::trace::Sight;

/// An exchange that has begun.
struct Begun {
    envelope: Envelope,
    route: Route,
    stream: bool,
    /// How many choices there will be.
    choices: usize,
    /// Whether the answer is checked against its task's format.
    checked: bool,
    pieces: UnboundedReceiver<Piece>,
}

pub(crate) async fn chat(
    app: web::Data<App>,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    answered(begin(&app, &http, Asking::Body(payload, Request::chat)).await?).await
}

pub(crate) async fn completion(
    app: web::Data<App>,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    answered(begin(&app, &http, Asking::Body(payload, Request::completion)).await?).await
}

/// What a person asks to see how a model answers, whole or streamed: an examination, which nothing counts as traffic.
pub(crate) async fn tried(
    app: &web::Data<App>,
    http: &HttpRequest,
    request: Params,
) -> Result<HttpResponse, Error> {
    answered(begin(app, http, Asking::Trial(request)).await?).await
}

/// The same, as its text and what the format's check said.
pub(crate) async fn tried_text(
    app: &web::Data<App>,
    http: &HttpRequest,
    request: Params,
) -> Result<(String, &'static str), Error> {
    let mut begun = begin(app, http, Asking::Trial(request)).await?;
    while let Some(piece) = begun.pieces.recv().await {
        match piece {
            Piece::Started | Piece::Part { .. } => {}
            Piece::Failed(e) => return Err(e),
            Piece::Done(mut answered) => {
                let choice = answered.choices.pop();
                let text = choice.and_then(|choice| choice.message.content);
                return Ok((text.unwrap_or_default(), answered.format));
            }
        }
    }
    Err(Error::Engine("an exchange ended without an end".to_owned()))
}

async fn answered(mut begun: Begun) -> Result<HttpResponse, Error> {
    // What is wrong with the request shows before the first byte goes out.
    match begun.pieces.recv().await {
        Some(Piece::Started) => {}
        Some(Piece::Failed(e)) => return Err(e),
        _ => {
            return Err(Error::Engine(
                "an exchange ended before it began".to_owned(),
            ));
        }
    }
    if begun.stream {
        Ok(streamed(begun))
    } else {
        whole(begun).await
    }
}

type Read = fn(Params) -> Result<Request, Refusal>;

/// Where a request comes from.
enum Asking {
    /// An app, or a run.
    Body(web::Payload, Read),
    /// A person, at the console.
    Trial(Params),
}

/// Reads and admits a request. Errors up to here are counted; later ones belong to the exchange, which counts itself.
async fn begin(app: &web::Data<App>, http: &HttpRequest, asking: Asking) -> Result<Begun, Error> {
    let arrived = Instant::now();
    let mut route = None;
    let begun = admit(app, http, asking, arrived, &mut route).await;
    if let Err(e) = &begun {
        let (task, name, stage) = match &route {
            Some(route) => (route.task_name(), route.name.as_str(), route.stage.as_str()),
            None => ("", "", ""),
        };
        let code = e.seen().status.as_u16().to_string();
        app.metrics
            .requests
            .with_label_values(&[task, name, stage, &code])
            .inc();
    }
    begun
}

async fn admit(
    app: &web::Data<App>,
    http: &HttpRequest,
    asking: Asking,
    arrived: Instant,
    found: &mut Option<Route>,
) -> Result<Begun, Error> {
    if app.stopping.is_cancelled() {
        return Err(Error::Stopping);
    }
    let caller = Caller::of(http);
    app.rates.admit(caller.key_id.as_deref(), arrived)?;
    let is_trial = matches!(asking, Asking::Trial(_));
    let (request, (purpose, run_id)) = match asking {
        Asking::Body(payload, read) => {
            let params = body::params(payload, app.config.server.max_body_bytes).await?;
            (read(params)?, purpose(http)?)
        }
        Asking::Trial(params) => (Request::chat(params)?, (Purpose::Examination, None)),
    };
    limit_messages(&request, app.config.server.max_messages)?;
    // The body came when nothing is waited for any more.
    if app.abandoned.is_cancelled() {
        return Err(Error::Stopping);
    }
    let route = app.resolve(&request.model, &request.sticky_key()).await?;
    *found = Some(route.clone());
    app.ledger.ready().await?;
    let ticket = app.admission.enter(purpose != Purpose::User)?;
    let id = app.ledger.new_request_id(request.store);
    let sight = Sight::of(http);
    sight.exchange(&id, &request.model, &route);
    let envelope = Envelope {
        id: id.clone(),
        created: Utc::now().timestamp(),
        model: route.name.clone(),
        chat: matches!(request.ask, Ask::Chat(_)),
        include_usage: request.include_usage,
        logprobs: request.logprobs.is_some(),
    };
    let prompts = match &request.ask {
        Ask::Chat(_) => 1,
        Ask::Completion(prompts) => prompts.len(),
    };
    let format = route.task.as_ref().and_then(|t| t.format.as_ref());
    let begun = |pieces| Begun {
        envelope,
        route: route.clone(),
        stream: request.stream,
        choices: prompts * request.n,
        checked: format.is_some() && !request.has_own_form(),
        pieces,
    };
    let asked = Asked {
        request_id: id,
        request: request.clone(),
        route: route.clone(),
        purpose,
        enforced: is_trial || purpose == Purpose::User,
        run_id,
        api_key_id: caller.key_id,
        arrived,
        trail: sight.trail,
    };
    let pieces = exchange::begin(&app.clone().into_inner(), asked, ticket);
    Ok(begun(pieces))
}

fn limit_messages(request: &Request, limit: usize) -> Result<(), Error> {
    match &request.ask {
        Ask::Chat(chat) if chat.messages.len() > limit => Err(Error::param(
            "messages",
            "array_above_max_length",
            format!(
                "Invalid 'messages': array too long. Expected an array with maximum length {limit} (server.max_messages), but got an \
                 array with length {} instead.",
                chat.messages.len()
            ),
        )),
        _ => Ok(()),
    }
}

/// `retune-purpose` and `retune-run`: for the admin role, which is everybody while there are no keys.
fn purpose(http: &HttpRequest) -> Result<(Purpose, Option<String>), Error> {
    let text = |name: &str| {
        http.headers()
            .get(name)
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned)
    };
    let purpose = match text("retune-purpose").as_deref() {
        None | Some("user") => Purpose::User,
        Some("examination") => Purpose::Examination,
        Some("shadow") => Purpose::Shadow,
        Some("probe") => Purpose::Probe,
        Some(other) => {
            let message = format!(
                "Invalid header 'retune-purpose': '{other}' is none of user, examination, shadow, probe."
            );
            return Err(Error::param("retune-purpose", "invalid_value", message));
        }
    };
    Ok((purpose, text("retune-run")))
}

async fn whole(mut begun: Begun) -> Result<HttpResponse, Error> {
    while let Some(piece) = begun.pieces.recv().await {
        match piece {
            Piece::Started | Piece::Part { .. } => {}
            Piece::Failed(e) => return Err(e),
            Piece::Done(a) => {
                let answer = begun.envelope.whole(&a.choices, a.usage);
                return Ok(headed(&begun.route, a.format).json(answer));
            }
        }
    }
    Err(Error::Engine("an exchange ended without an end".to_owned()))
}

fn streamed(begun: Begun) -> HttpResponse {
    let format = if begun.checked { "pending" } else { "none" };
    headed(&begun.route, format)
        .insert_header((header::CONTENT_TYPE, "text/event-stream"))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        // Proxies like nginx hold a stream back otherwise.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(events(begun))
}

/// A stream under way.
struct Events {
    envelope: Envelope,
    pieces: UnboundedReceiver<Piece>,
    /// The characters of each choice that went out.
    told: Vec<usize>,
}

impl Events {
    async fn next(&mut self) -> Option<String> {
        Some(match self.pieces.recv().await? {
            Piece::Started => String::new(),
            Piece::Part {
                choice,
                delta,
                logprobs,
            } => match self.told.get_mut(choice) {
                Some(offset) => self.envelope.part(choice, &delta, &logprobs, offset),
                None => String::new(),
            },
            Piece::Done(answered) => self.last(&answered),
            // Without [DONE]: what failed must not look complete.
            Piece::Failed(e) => {
                tracing::error!(request_id = self.envelope.id, error = %e, "a stream failed");
                retune_wire::event(&e.body())
            }
        })
    }

    fn last(&self, answered: &Answered) -> String {
        let choices = answered.choices.iter().enumerate();
        let mut text: String = choices
            .map(|(i, choice)| self.envelope.finish(i, choice.finish))
            .collect();
        text.extend(self.envelope.usage(answered.usage));
        text.push_str(&format!(
            ": retune-format {}\n\ndata: [DONE]\n\n",
            answered.format
        ));
        text
    }
}

fn events(begun: Begun) -> impl Stream<Item = Result<web::Bytes, Infallible>> {
    let roles: String = (0..begun.choices).map(|i| begun.envelope.role(i)).collect();
    let events = Events {
        envelope: begun.envelope,
        pieces: begun.pieces,
        told: vec![0; begun.choices],
    };
    let rest = stream::unfold(events, async |mut events| {
        let text = events.next().await?;
        Some((text, events))
    });
    stream::once(async { roles })
        .chain(rest)
        .map(|text| Ok(web::Bytes::from(text)))
}

fn headed(route: &Route, format: &'static str) -> HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response
        .insert_header(("retune-adapter", route.name.as_str()))
        .insert_header(("retune-format", format));
    if let Some(digest) = route.digest() {
        response.insert_header(("retune-digest", digest));
    }
    response
}
