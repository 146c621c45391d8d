//! What is seen of a request from outside: the spans that it runs in, and the ids that go on to whoever is asked for its sake.
//!
//! There are two kinds of spans. `request` is for the log: every event of a request stands in it, behind the request's id. Those with
//! the target [`TARGET`] are for traces: their names and fields are OpenTelemetry's, and where nobody collects them they are never made.
//! Whatever runs for a request enters one of each, since the log does not find its own among the parents of the other kind. Neither kind
//! holds a prompt, an answer, or anything else that a client wrote but its request's id.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix_web::dev::ServiceRequest;
use actix_web::http::StatusCode;
use actix_web::http::header::HeaderMap;
use actix_web::{HttpMessage, HttpRequest};
use retune_wire::Ask;
use tracing::field::Empty;
use tracing::{Instrument, Span, debug_span, info_span};

use crate::exchange::Asked;
use crate::routing::Route;

/// The target of the spans that are for traces.
pub const TARGET: &str = "retune::trace";

/// The longest `tracestate` that goes on.
const MAX_STATE: usize = 512;

/// What collects traces, if anything does.
pub trait Traces: Send + Sync {
    /// Makes a span that was not entered yet part of the trace that its caller began.
    fn adopt(&self, span: &Span, caller: &TraceContext);
    /// What makes others' spans part of this one's trace.
    fn context(&self, span: &Span) -> TraceContext;
}

/// W3C's trace context: where in which trace a request stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// `traceparent`
    pub parent: Option<Arc<str>>,
    /// `tracestate`
    pub state: Option<Arc<str>>,
}

impl TraceContext {
    /// What a request brought; what is no trace context is dropped.
    fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name)?.to_str().ok();
        let parent = text("traceparent").filter(|parent| is_parent(parent));
        let state = text("tracestate").filter(|state| parent.is_some() && state.len() <= MAX_STATE);
        Self {
            parent: parent.map(Arc::from),
            state: state.map(Arc::from),
        }
    }
}

/// `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`; later versions may have more behind it.
fn is_parent(text: &str) -> bool {
    let hex = |part: Option<&str>, len: usize| {
        part.is_some_and(|part| {
            part.len() == len
                && part
                    .bytes()
                    .all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
        })
    };
    let some = |part: &str| part.bytes().any(|b| b != b'0');
    let mut parts = text.split('-');
    let (version, trace, span) = (parts.next(), parts.next(), parts.next());
    hex(version, 2)
        && version != Some("ff")
        && hex(trace, 32)
        && trace.is_some_and(some)
        && hex(span, 16)
        && span.is_some_and(some)
        && hex(parts.next(), 2)
        && (version != Some("00") || parts.next().is_none())
        && text.len() <= 256
}

/// What goes along with a request wherever it is worked on, and from there to the servers that are asked for its sake.
#[derive(Debug, Clone)]
pub(crate) struct Trail {
    /// The log's span.
    pub(crate) log: Span,
    id: Option<Arc<Id>>,
    context: TraceContext,
}

#[derive(Debug)]
struct Id {
    text: String,
    sent: AtomicUsize,
}

/// Of what is asked for nobody's sake.
impl Default for Trail {
    fn default() -> Self {
        Self {
            log: Span::none(),
            id: None,
            context: TraceContext::default(),
        }
    }
}

impl Trail {
    /// The same request, seen from elsewhere in its trace.
    pub(crate) fn at(self, context: TraceContext) -> Self {
        Self { context, ..self }
    }

    /// The headers of one more request. A server may refuse a second one with the id of one that it still has (vLLM does), so the id
    /// goes on as it is once, and then with a number behind it.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&'static str, String)> {
        let id = self.id.as_ref().map(|id| {
            let text = match id.sent.fetch_add(1, Ordering::Relaxed) {
                0 => id.text.clone(),
                n => format!("{}-{n}", id.text),
            };
            ("x-request-id", text)
        });
        let context = [
            ("traceparent", &self.context.parent),
            ("tracestate", &self.context.state),
        ];
        let context = context.map(|(name, value)| Some((name, value.as_deref()?.to_owned())));
        id.into_iter().chain(context.into_iter().flatten())
    }
}

/// The spans of a request to this server, and what goes on from it.
#[derive(Debug, Clone)]
pub(crate) struct Sight {
    pub(crate) trail: Trail,
    /// The traces' span.
    server: Span,
}

impl Sight {
    pub(crate) fn begin(request: &ServiceRequest, id: &str, traces: Option<&dyn Traces>) -> Self {
        let caller = TraceContext::of(request.headers());
        let log = info_span!(
            "request",
            id,
            method = request.method().as_str(),
            path = request.path(),
            key = Empty,
            exchange = Empty,
            model = Empty,
            adapter = Empty,
        );
        let server = log.in_scope(|| {
            debug_span!(
                target: TARGET,
                "server",
                otel.name = name(request),
                otel.kind = "server",
                otel.status_code = Empty,
                http.request.method = request.method().as_str(),
                http.route = route(request),
                http.response.status_code = Empty,
                retune.request.id = id,
                retune.key.id = Empty,
            )
        });
        if let Some(traces) = traces.filter(|_| !server.is_disabled()) {
            traces.adopt(&server, &caller);
        }
        let id = Id {
            text: id.to_owned(),
            sent: AtomicUsize::new(0),
        };
        Self {
            trail: Trail {
                log,
                id: Some(Arc::new(id)),
                context: caller,
            },
            server,
        }
    }

    /// Of a request that came past the guard; else nothing is seen.
    pub(crate) fn of(request: &HttpRequest) -> Self {
        request.extensions().get().cloned().unwrap_or(Self {
            trail: Trail::default(),
            server: Span::none(),
        })
    }

    /// Runs in the request's spans.
    pub(crate) async fn around<F: Future>(&self, work: F) -> F::Output {
        let log = self.trail.log.clone();
        work.instrument(self.server.clone()).instrument(log).await
    }

    /// The same at once.
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        self.trail.log.in_scope(|| self.server.in_scope(work))
    }

    /// Whose request it is.
    pub(crate) fn key(&self, id: &str) {
        self.trail.log.record("key", id);
        self.server.record("retune.key.id", id);
    }

    /// Which exchange it became, and who answers.
    pub(crate) fn exchange(&self, id: &str, model: &str, route: &Route) {
        self.trail.log.record("exchange", id);
        self.trail.log.record("model", model);
        self.trail.log.record("adapter", route.name.as_str());
    }

    pub(crate) fn status(&self, status: StatusCode) {
        let span = &self.server;
        span.record("http.response.status_code", i64::from(status.as_u16()));
        if status.is_server_error() {
            span.record("otel.status_code", "ERROR");
        }
    }
}

/// The pattern that the request's path has, if any.
fn route(request: &ServiceRequest) -> Option<String> {
    let path = request.match_info().as_str();
    request.resource_map().match_pattern(path)
}

fn name(request: &ServiceRequest) -> String {
    match route(request) {
        Some(route) => format!("{} {route}", request.method()),
        None => request.method().to_string(),
    }
}

/// An exchange's span for traces, in the current one.
pub(crate) fn exchange(asked: &Asked) -> Span {
    exchange_in(&Span::current(), asked)
}

/// Both spans of an exchange that is made beside that of `beside`. It goes on after that one's end, and so its trace is another one,
/// with a link.
pub(crate) fn beside(asked: &mut Asked, beside: &str) -> Span {
    let origin = Span::current();
    asked.trail.log = info_span!(
        parent: None,
        "beside",
        purpose = asked.purpose.as_str(),
        exchange = asked.request_id,
        adapter = asked.route.name,
        beside,
    );
    let span = exchange_in(&asked.trail.log, asked);
    span.follows_from(origin);
    span
}

fn exchange_in(parent: &Span, asked: &Asked) -> Span {
    let Asked { request, route, .. } = asked;
    debug_span!(
        target: TARGET,
        parent: parent,
        "exchange",
        otel.name = format!("{} {}", operation(&request.ask), request.model),
        otel.status_code = Empty,
        "error.type" = Empty,
        gen_ai.operation.name = operation(&request.ask),
        gen_ai.provider.name = "retune",
        gen_ai.request.model = request.model,
        gen_ai.response.model = route.name,
        gen_ai.response.id = asked.request_id,
        gen_ai.response.finish_reasons = Empty,
        gen_ai.usage.input_tokens = Empty,
        gen_ai.usage.output_tokens = Empty,
        retune.purpose = asked.purpose.as_str(),
        retune.code = Empty,
        retune.format = Empty,
    )
}

fn operation(ask: &Ask) -> &'static str {
    match ask {
        Ask::Chat(_) => "chat",
        Ask::Completion(_) => "text_completion",
    }
}

/// OpenTelemetry has no other whole numbers: what is recorded as another one arrives as a text.
pub(crate) fn number(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// How an exchange ended, for its span.
pub(crate) struct End<'a> {
    pub(crate) code: u16,
    pub(crate) finish: Option<&'a str>,
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) format: &'a str,
}

/// Tells the current span, if it is an exchange's for traces, how that ended.
pub(crate) fn ended(end: &End<'_>) {
    let span = Span::current();
    if span.metadata().is_none_or(|span| span.target() != TARGET) {
        return;
    }
    span.record("retune.code", i64::from(end.code));
    span.record("retune.format", end.format);
    span.record("gen_ai.usage.input_tokens", number(end.prompt_tokens));
    span.record("gen_ai.usage.output_tokens", number(end.completion_tokens));
    if let Some(finish) = end.finish {
        span.record("gen_ai.response.finish_reasons", finish);
    }
    if end.code != 200 {
        span.record("error.type", end.code.to_string());
    }
    if end.code >= 500 {
        span.record("otel.status_code", "ERROR");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_what_is_a_trace_context_goes_on() {
        for (parent, good) in [
            (PARENT, true),
            (
                "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what",
                true,
            ),
            (
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what",
                false,
            ),
            (
                "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                false,
            ),
            (
                "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
                false,
            ),
            (
                "00-00000000000000000000000000000000-b7ad6b7169203331-01",
                false,
            ),
            (
                "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
                false,
            ),
            (
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
                false,
            ),
            ("My parcel never came", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            let value = |text: &str| HeaderValue::from_str(text).unwrap();
            headers.insert(HeaderName::from_static("traceparent"), value(parent));
            headers.insert(HeaderName::from_static("tracestate"), value("a=1"));
            let context = TraceContext::of(&headers);
            assert_eq!(context.parent.as_deref(), good.then_some(parent));
            assert_eq!(context.state.as_deref(), good.then_some("a=1"), "{parent}");
        }
    }

    #[test]
    fn an_id_goes_on_once_as_it_is() {
        let trail = Trail {
            id: Some(Arc::new(Id {
                text: "mine".to_owned(),
                sent: AtomicUsize::new(0),
            })),
            ..Trail::default()
        };
        let elsewhere = trail.clone().at(TraceContext {
            parent: Some(PARENT.into()),
            state: None,
        });
        let sent = |trail: &Trail| trail.headers().collect::<Vec<_>>();
        assert_eq!(sent(&trail), [("x-request-id", "mine".to_owned())]);
        assert_eq!(
            sent(&elsewhere),
            [
                ("x-request-id", "mine-1".to_owned()),
                ("traceparent", PARENT.to_owned())
            ]
        );
        assert_eq!(sent(&Trail::default()), []);
    }
}
