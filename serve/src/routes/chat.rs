//! `POST /v1/chat/completions`, whole or streamed.

use std::convert::Infallible;
use std::time::Instant;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use chrono::Utc;
use futures::{Stream, StreamExt, stream};
use retune_ledger::Purpose;
use tokio::sync::mpsc::UnboundedReceiver;

use super::body;
use crate::error::Error;
use crate::exchange::{self, Answered, Asked, Piece};
use crate::openai::{self, ChatRequest, Chunks};
use crate::routing::Route;
use crate::state::App;

/// An exchange that has begun.
struct Begun {
    id: String,
    created: i64,
    route: Route,
    request: ChatRequest,
    pieces: UnboundedReceiver<Piece>,
}

pub(crate) async fn completions(
    app: web::Data<App>,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let mut begun = begin(&app, &http, payload).await?;
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
    if begun.request.stream {
        Ok(streamed(begun))
    } else {
        whole(begun).await
    }
}

/// Reads and admits a request. Errors up to here are counted; later ones belong to the exchange, which counts itself.
async fn begin(
    app: &web::Data<App>,
    http: &HttpRequest,
    payload: web::Payload,
) -> Result<Begun, Error> {
    let arrived = Instant::now();
    let mut route = None;
    let begun = admit(app, http, payload, arrived, &mut route).await;
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
    payload: web::Payload,
    arrived: Instant,
    found: &mut Option<Route>,
) -> Result<Begun, Error> {
    if app.stopping.is_cancelled() {
        return Err(Error::Stopping);
    }
    let request =
        ChatRequest::read(body::params(payload, app.config.server.max_body_bytes).await?)?;
    let (purpose, run_id) = purpose(http)?;
    let route = app.resolve(&request.model, request.sticky_key()).await?;
    *found = Some(route.clone());
    let ticket = app.admission.enter()?;
    let id = app.ledger.new_request_id();
    let asked = Asked {
        request_id: id.clone(),
        request: request.clone(),
        route: route.clone(),
        purpose,
        run_id,
        arrived,
    };
    let pieces = exchange::begin(&app.clone().into_inner(), asked, ticket);
    Ok(Begun {
        id,
        created: Utc::now().timestamp(),
        route,
        request,
        pieces,
    })
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
            Piece::Started | Piece::Text(_) => {}
            Piece::Failed(e) => return Err(e),
            Piece::Done(a) => {
                let tokens = (a.prompt_tokens, a.completion_tokens);
                let answer = openai::completion(
                    &begun.id,
                    begun.created,
                    &begun.route.name,
                    &a.text,
                    a.finish,
                    tokens,
                );
                return Ok(headed(&begun.route, a.format).json(answer));
            }
        }
    }
    Err(Error::Engine("an exchange ended without an end".to_owned()))
}

fn streamed(begun: Begun) -> HttpResponse {
    let format = match begun.route.task.as_ref().and_then(|t| t.format.as_ref()) {
        Some(_) => "pending",
        None => "none",
    };
    headed(&begun.route, format)
        .insert_header((header::CONTENT_TYPE, "text/event-stream"))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        // Proxies like nginx hold a stream back otherwise.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(events(begun))
}

fn events(begun: Begun) -> impl Stream<Item = Result<web::Bytes, Infallible>> {
    let chunks = Chunks {
        id: begun.id,
        created: begun.created,
        model: begun.route.name,
        include_usage: begun.request.include_usage,
    };
    let first = chunks.role();
    let rest = stream::unfold((chunks, begun.pieces), async |(chunks, mut pieces)| {
        let text = match pieces.recv().await? {
            Piece::Started => String::new(),
            Piece::Text(text) => chunks.text(&text),
            Piece::Done(answered) => last(&chunks, &answered),
            // Without [DONE]: what failed must not look complete.
            Piece::Failed(e) => {
                tracing::error!(request_id = chunks.id, error = %e, "a stream failed");
                openai::event(&e.body())
            }
        };
        Some((text, (chunks, pieces)))
    });
    stream::once(async { first })
        .chain(rest)
        .map(|text| Ok(web::Bytes::from(text)))
}

fn last(chunks: &Chunks, answered: &Answered) -> String {
    let mut text = chunks.finish(answered.finish);
    text.extend(chunks.usage(answered.prompt_tokens, answered.completion_tokens));
    text.push_str(&format!(
        ": retune-format {}\n\ndata: [DONE]\n\n",
        answered.format
    ));
    text
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
