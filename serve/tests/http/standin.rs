//! A stand-in for the servers that Retune sits in front of: OpenAI's API with vLLM's habits, the bad ones included.

#![allow(
    dead_code,
    reason = "the engine's tests and the server's need different parts of it"
)]

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use futures::{Stream, stream};
use serde_json::{Value, json};

/// The base's name here.
pub(crate) const BASE: &str = "stand-in/base";
pub(crate) const DONE: &str = "data: [DONE]\n\n";

/// What becomes of one answer. The one token that tries an adapter out takes none of these.
#[derive(Clone)]
pub(crate) enum Act {
    /// A status, what it says of coming back, and a body.
    Refuse(u16, Option<&'static str>, Value),
    /// These pieces of a stream, each after so many milliseconds.
    Stream(Vec<(u64, String)>, End),
    /// JSON, though a stream was asked for.
    Whole(Value),
}

/// How a stream ends.
#[derive(Clone, Copy)]
pub(crate) enum End {
    Close,
    /// The connection breaks.
    Cut,
    /// Nothing comes any more.
    Hang,
}

/// A request that came.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) route: String,
    pub(crate) body: Value,
    pub(crate) authorization: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) traceparent: Option<String>,
}

#[derive(Default)]
pub(crate) struct Shared {
    acts: Mutex<VecDeque<Act>>,
    asked: Mutex<Vec<Asked>>,
    /// Adapters and their paths.
    loras: Mutex<BTreeMap<String, String>>,
    /// Streams that nobody read to their end.
    left: AtomicUsize,
    /// It was started without adapters.
    pub(crate) no_loras: AtomicBool,
    /// It cannot load anything now.
    pub(crate) busy: AtomicBool,
    /// It has a route that counts tokens.
    pub(crate) counts: AtomicBool,
}

pub(crate) struct StandIn {
    pub(crate) url: String,
    pub(crate) shared: Arc<Shared>,
    handle: ServerHandle,
}

/// A piece of a chat's stream, with the role that belongs in the first one only.
pub(crate) fn says(text: &str) -> String {
    let delta = json!({"role": "assistant", "content": text});
    let event = json!({"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]});
    format!("data: {event}\r\n\r\n")
}

pub(crate) fn ends(reason: &str) -> String {
    let event =
        json!({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": reason}]});
    format!("data: {event}\n\n")
}

pub(crate) fn usage(prompt: usize, completion: usize) -> String {
    let event =
        json!({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}});
    format!("data: {event}\n\n")
}

/// A stream whose pieces come at once.
pub(crate) fn at_once(pieces: &[String], end: End) -> Act {
    Act::Stream(pieces.iter().map(|p| (0, p.clone())).collect(), end)
}

/// A stream that goes on for long.
pub(crate) fn slow(pieces: usize) -> Act {
    let mut all: Vec<(u64, String)> = (0..pieces).map(|_| (25, says("la "))).collect();
    all.extend([ends("stop"), usage(3, pieces), DONE.to_owned()].map(|p| (0, p)));
    Act::Stream(all, End::Close)
}

impl StandIn {
    pub(crate) fn start() -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// One where there was another one, or will be.
    pub(crate) fn start_at(address: SocketAddr) -> Self {
        Self::start_on(TcpListener::bind(address).unwrap())
    }

    fn start_on(listener: TcpListener) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let data = web::Data::from(Arc::clone(&shared));
        let server = HttpServer::new(move || {
            App::new()
                .app_data(data.clone())
                .route("/v1/models", web::get().to(models))
                .route("/v1/chat/completions", web::post().to(answer))
                .route("/v1/completions", web::post().to(answer))
                .route("/v1/load_lora_adapter", web::post().to(load))
                .route("/v1/unload_lora_adapter", web::post().to(unload))
                .route("/tokenize", web::post().to(tokenize))
                .default_service(web::to(no_route))
        })
        .workers(1)
        .disable_signals()
        .h1_allow_half_closed(false)
        .listen(listener)
        .unwrap()
        .run();
        let handle = server.handle();
        tokio::spawn(server);
        Self {
            url,
            shared,
            handle,
        }
    }

    /// What the next answers are; without an act it says what model it is.
    pub(crate) fn next(&self, acts: impl IntoIterator<Item = Act>) {
        self.shared.acts.lock().unwrap().extend(acts);
    }

    /// The next answer is this, whatever was planned.
    pub(crate) fn only(&self, act: Act) {
        let mut acts = self.shared.acts.lock().unwrap();
        acts.clear();
        acts.push_back(act);
    }

    /// Acts that were not played.
    pub(crate) fn acts_left(&self) -> usize {
        self.shared.acts.lock().unwrap().len()
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// Requests for answers, without those that try an adapter out.
    pub(crate) fn answers(&self) -> Vec<Asked> {
        let asked = self.asked().into_iter();
        asked
            .filter(|a| a.route.ends_with("/completions") && a.body["max_tokens"] != 1)
            .collect()
    }

    pub(crate) fn loras(&self) -> BTreeMap<String, String> {
        self.shared.loras.lock().unwrap().clone()
    }

    /// It forgets its adapters, as after a restart.
    pub(crate) fn forget(&self) {
        self.shared.loras.lock().unwrap().clear();
    }

    pub(crate) fn left(&self) -> usize {
        self.shared.left.load(Ordering::SeqCst)
    }

    pub(crate) async fn stop(self) {
        self.handle.stop(false).await;
    }
}

async fn no_route() -> HttpResponse {
    HttpResponse::NotFound().json(json!({"detail": "Not Found"}))
}

async fn models(shared: web::Data<Shared>) -> HttpResponse {
    let loras = shared.loras.lock().unwrap();
    let mut list = vec![json!({"id": BASE, "object": "model", "parent": null})];
    list.extend(
        loras
            .keys()
            .map(|id| json!({"id": id, "object": "model", "parent": BASE})),
    );
    HttpResponse::Ok().json(json!({"object": "list", "data": list}))
}

/// Whatever the path: vLLM looks at it when the first request comes.
async fn load(shared: web::Data<Shared>, body: web::Json<Value>) -> HttpResponse {
    if shared.no_loras.load(Ordering::SeqCst) {
        return no_route().await;
    }
    if shared.busy.load(Ordering::SeqCst) {
        return HttpResponse::ServiceUnavailable().json(json!({"detail": "busy"}));
    }
    let name = body["lora_name"].as_str().unwrap().to_owned();
    let path = body["lora_path"].as_str().unwrap().to_owned();
    let mut loras = shared.loras.lock().unwrap();
    if loras.contains_key(&name) {
        let message = format!("The lora adapter '{name}' has already been loaded.");
        let error =
            json!({"message": message, "type": "InvalidUserInput", "param": null, "code": 400});
        return HttpResponse::BadRequest().json(json!({ "error": error }));
    }
    loras.insert(name, path);
    HttpResponse::Ok().body("Success: LoRA adapter added successfully.")
}

async fn unload(shared: web::Data<Shared>, body: web::Json<Value>) -> HttpResponse {
    let name = body["lora_name"].as_str().unwrap();
    match shared.loras.lock().unwrap().remove(name) {
        Some(_) => HttpResponse::Ok().body("Success: LoRA adapter removed successfully."),
        None => {
            HttpResponse::NotFound().json(json!({"error": {"message": "not found", "code": 404}}))
        }
    }
}

async fn tokenize(shared: web::Data<Shared>, body: web::Json<Value>) -> HttpResponse {
    if !shared.counts.load(Ordering::SeqCst) {
        return no_route().await;
    }
    assert!(body["messages"].is_array() || body["prompt"].is_string());
    HttpResponse::Ok().json(json!({"count": 42, "max_model_len": 4096, "tokens": []}))
}

async fn answer(
    shared: web::Data<Shared>,
    request: HttpRequest,
    body: web::Json<Value>,
) -> HttpResponse {
    let body = body.into_inner();
    let header = |name| Some(request.headers().get(name)?.to_str().unwrap().to_owned());
    shared.asked.lock().unwrap().push(Asked {
        route: request.path().to_owned(),
        body: body.clone(),
        authorization: header("authorization"),
        request_id: header("x-request-id"),
        traceparent: header("traceparent"),
    });
    assert_eq!(body["stream"], true);
    let model = body["model"].as_str().unwrap().to_owned();
    let path = shared.loras.lock().unwrap().get(&model).cloned();
    if model != BASE && path.is_none() {
        let message = format!("The model `{model}` does not exist.");
        let error =
            json!({"message": message, "type": "NotFoundError", "param": "model", "code": 404});
        return HttpResponse::NotFound().json(json!({ "error": error }));
    }
    if path.is_some_and(|path| !Path::new(&path).is_dir()) {
        let error = json!({"message": "no adapter there", "type": "InternalServerError", "param": null, "code": 500});
        return HttpResponse::InternalServerError().json(json!({ "error": error }));
    }
    let act = match body["max_tokens"].as_u64() {
        Some(1) => None,
        _ => shared.acts.lock().unwrap().pop_front(),
    };
    let act = act.unwrap_or_else(|| {
        let pieces = [
            says("This is "),
            says(&model),
            ends("stop"),
            usage(11, 2),
            DONE.to_owned(),
        ];
        at_once(&pieces, End::Close)
    });
    match act {
        Act::Whole(value) => HttpResponse::Ok().json(value),
        Act::Refuse(status, retry_after, value) => {
            let mut response =
                HttpResponse::build(actix_web::http::StatusCode::from_u16(status).unwrap());
            if let Some(after) = retry_after {
                response.insert_header(("retry-after", after));
            }
            response.json(value)
        }
        Act::Stream(pieces, end) => HttpResponse::Ok()
            .content_type("text/event-stream; charset=utf-8")
            .streaming(played(shared.into_inner(), pieces, end)),
    }
}

/// Counts streams that are dropped before their end.
struct Watch {
    shared: Arc<Shared>,
    finished: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.left.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn played(
    shared: Arc<Shared>,
    pieces: Vec<(u64, String)>,
    end: End,
) -> impl Stream<Item = Result<web::Bytes, std::io::Error>> {
    let watch = Watch {
        shared,
        finished: false,
    };
    let state = (pieces.into_iter(), end, watch);
    stream::unfold(state, async |(mut pieces, end, mut watch)| {
        if let Some((pause, text)) = pieces.next() {
            if pause > 0 {
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            return Some((Ok(web::Bytes::from(text)), (pieces, end, watch)));
        }
        match end {
            _ if watch.finished => None,
            End::Close => {
                watch.finished = true;
                None
            }
            End::Cut => {
                // What came before gets out first.
                tokio::time::sleep(Duration::from_millis(50)).await;
                watch.finished = true;
                let cut = std::io::Error::other("cut");
                Some((Err(cut), (pieces, end, watch)))
            }
            End::Hang => std::future::pending().await,
        }
    })
}
