//! The other ends: the stand-in for an OpenAI server, and the bare proxy. Each is a process of its own, this program started again.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use actix_web::dev::Server;
use actix_web::http::header::{CONTENT_TYPE, HeaderValue};
use actix_web::web::{self, Bytes};
use actix_web::{App, HttpResponse, HttpServer};
use anyhow::{Context, Result};
use futures::stream;
use serde_json::{Value, json};

/// The model's name.
pub(crate) const MODEL: &str = "stand-in";
/// The answer, a piece a chunk.
const PIECES: [&str; 16] = [
    "The",
    " parcel",
    " left",
    " our",
    " store",
    " on",
    " Monday",
    " and",
    " will",
    " be",
    " with",
    " you",
    " by",
    " Thursday",
    " noon",
    ".",
];
/// Threads of each server, as Retune has them.
const WORKERS: usize = 2;

/// What this program is when it is started again.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Role {
    StandIn,
    Proxy,
}

/// Serves until stdin ends.
pub(crate) fn serve(role: Role, upstream: Option<SocketAddr>) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    actix_web::rt::System::new().block_on(async {
        let server = match role {
            Role::StandIn => stand_in(listener)?,
            Role::Proxy => proxy(listener, upstream.context("a proxy needs --upstream")?)?,
        };
        let handle = server.handle();
        std::thread::spawn(move || {
            let mut bytes = [0; 64];
            while matches!(std::io::stdin().read(&mut bytes), Ok(1..)) {}
            futures::executor::block_on(handle.stop(false));
        });
        let url = format!("http://{address}");
        writeln!(std::io::stdout().lock(), "{}", json!({ "listening": url }))?;
        Ok(server.await?)
    })
}

/// Everything that it says, made beforehand.
#[derive(Clone)]
struct Said {
    whole: Bytes,
    pieces: Vec<Bytes>,
    usage: Bytes,
    models: Bytes,
}

impl Said {
    fn new() -> Self {
        let usage = json!({ "prompt_tokens": 120, "completion_tokens": PIECES.len(), "total_tokens": 120 + PIECES.len() });
        let chunk = |choices: Value, usage: Value| {
            let chunk = json!({
                "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_790_000_000, "model": MODEL,
                "system_fingerprint": null, "choices": choices, "usage": usage,
            });
            Bytes::from(format!("data: {chunk}\n\n"))
        };
        let delta = |delta: Value, finish: Option<&str>| {
            let choice =
                json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]);
            chunk(choice, Value::Null)
        };
        let mut pieces = vec![delta(json!({ "role": "assistant", "content": "" }), None)];
        pieces.extend(PIECES.map(|piece| delta(json!({ "content": piece }), None)));
        pieces.push(delta(json!({}), Some("stop")));
        let message = json!({ "role": "assistant", "content": PIECES.concat(), "refusal": null });
        let whole = json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1_790_000_000, "model": MODEL, "system_fingerprint": null,
            "choices": [{ "index": 0, "message": message, "logprobs": null, "finish_reason": "stop" }],
            "usage": usage,
        });
        let models = json!({ "object": "list", "data": [{ "id": MODEL, "object": "model", "created": 1_790_000_000, "owned_by": "bench" }] });
        Self {
            whole: whole.to_string().into(),
            pieces,
            usage: chunk(json!([]), usage),
            models: models.to_string().into(),
        }
    }
}

fn stand_in(listener: TcpListener) -> Result<Server> {
    let said = web::Data::new(Said::new());
    let service = move || {
        App::new()
            .app_data(said.clone())
            .app_data(web::PayloadConfig::new(1 << 20))
            .route("/v1/chat/completions", web::post().to(answer))
            .route("/v1/models", web::get().to(models))
    };
    Ok(HttpServer::new(service)
        .workers(WORKERS)
        .disable_signals()
        .tcp_nodelay(true)
        .listen(listener)?
        .run())
}

async fn answer(said: web::Data<Said>, body: Bytes) -> HttpResponse {
    let says = |member: &str| {
        let spaced = member.replace(':', ": ");
        [member, &spaced]
            .iter()
            .any(|text| body.windows(text.len()).any(|part| part == text.as_bytes()))
    };
    if !says("\"stream\":true") {
        return HttpResponse::Ok()
            .content_type("application/json")
            .body(said.whole.clone());
    }
    let mut pieces = said.pieces.clone();
    if says("\"include_usage\":true") {
        pieces.push(said.usage.clone());
    }
    pieces.push(Bytes::from_static(b"data: [DONE]\n\n"));
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .streaming(stream::iter(pieces.into_iter().map(Ok::<_, Infallible>)))
}

async fn models(said: web::Data<Said>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/json")
        .body(said.models.clone())
}

/// What the bare proxy's threads have, each for itself: so no request changes threads.
struct Way {
    client: reqwest::Client,
    url: String,
}

fn proxy(listener: TcpListener, upstream: SocketAddr) -> Result<Server> {
    let url = format!("http://{upstream}/v1/chat/completions");
    let service = move || {
        let way = Way {
            client: reqwest::Client::new(),
            url: url.clone(),
        };
        App::new()
            .app_data(web::Data::new(way))
            .app_data(web::PayloadConfig::new(1 << 20))
            .route("/v1/chat/completions", web::post().to(forward))
    };
    Ok(HttpServer::new(service)
        .workers(WORKERS)
        .disable_signals()
        .tcp_nodelay(true)
        .listen(listener)?
        .run())
}

async fn forward(way: web::Data<Way>, body: Bytes) -> HttpResponse {
    let request = way.client.post(&way.url).body(body);
    match request
        .header("content-type", "application/json")
        .send()
        .await
    {
        Ok(response) => {
            let kind = response.headers().get("content-type");
            let kind = kind.map_or(&b"application/json"[..], |kind| kind.as_bytes());
            let kind = HeaderValue::from_bytes(kind);
            let mut reply = HttpResponse::Ok();
            if let Ok(kind) = kind {
                reply.insert_header((CONTENT_TYPE, kind));
            }
            reply.streaming(response.bytes_stream())
        }
        Err(e) => HttpResponse::BadGateway().body(e.to_string()),
    }
}
