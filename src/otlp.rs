//! Traces to an OpenTelemetry collector: OTLP in protobuf over HTTP, configured by OpenTelemetry's own variables. In builds with the
//! feature `otlp` alone, and on where a variable says where to.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use retune_serve::{TRACES, TraceContext, Traces};
use tokio::runtime::Handle;
use tracing::level_filters::LevelFilter;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::log::{ENDPOINTS, is_set};

/// How long the collector may take for a batch.
const SENT_WITHIN: Duration = Duration::from_secs(10);
/// How long the last ones may hold up the process's end.
const FINISHED_WITHIN: Duration = Duration::from_secs(1);

static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// Makes spans into traces; none where no variable says where they go.
pub(crate) fn start<S>(runtime: &Handle) -> Result<Option<impl Layer<S>>>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let Some(endpoint) = ENDPOINTS.into_iter().find(|name| is_set(name)) else {
        return Ok(None);
    };
    if std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let client = Http {
        client: reqwest::Client::builder().timeout(SENT_WITHIN).build()?,
        runtime: runtime.clone(),
    };
    let exporter = SpanExporter::builder().with_http().with_http_client(client);
    let exporter = exporter
        .build()
        .with_context(|| format!("traces cannot be sent to where {endpoint} says"))?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource())
        .build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("retune"))
        .with_context_activation(false)
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false);
    // Spans alone: what events say is the log's.
    let ours = filter_fn(|metadata| metadata.is_span() && metadata.target() == TRACES)
        .with_max_level_hint(LevelFilter::DEBUG);
    let _ = PROVIDER.set(provider);
    Ok(Some(layer.with_filter(ours)))
}

/// What this process calls itself: `retune`, unless a variable has another name.
fn resource() -> Resource {
    let named = is_set("OTEL_SERVICE_NAME")
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|all| all.contains("service.name="));
    let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder().with_attribute(version);
    match named {
        true => resource.build(),
        false => resource.with_service_name("retune").build(),
    }
}

pub(crate) fn traces() -> Option<Arc<dyn Traces>> {
    PROVIDER.get()?;
    Some(Arc::new(Propagation(TraceContextPropagator::new())))
}

/// Waits for the last spans; one that the collector does not take in time is lost.
pub(crate) fn finish() {
    if let Some(provider) = PROVIDER.get()
        && let Err(error) = provider.shutdown_with_timeout(FINISHED_WITHIN)
    {
        tracing::warn!(%error, "the last traces could not be sent");
    }
}

/// By W3C's headers.
struct Propagation(TraceContextPropagator);

impl Traces for Propagation {
    fn adopt(&self, span: &Span, caller: &TraceContext) {
        let headers = [
            ("traceparent", &caller.parent),
            ("tracestate", &caller.state),
        ];
        let headers: HashMap<String, String> = headers
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value.as_deref()?.to_owned())))
            .collect();
        let context = self.0.extract_with_context(&Context::new(), &headers);
        if context.span().span_context().is_valid() {
            // Fails only on a span that nobody traces.
            let _ = span.set_parent(context);
        }
    }

    fn context(&self, span: &Span) -> TraceContext {
        let mut headers = HashMap::new();
        self.0.inject_context(&span.context(), &mut headers);
        let header = |name: &str| {
            let value = headers
                .get(name)
                .filter(|value: &&String| !value.is_empty())?;
            Some(Arc::from(value.as_str()))
        };
        TraceContext {
            parent: header("traceparent"),
            state: header("tracestate"),
        }
    }
}

/// The HTTP client that the rest of the program uses; the exporter's own thread is on no runtime.
#[derive(Debug)]
struct Http {
    client: reqwest::Client,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request)?;
        let client = self.client.clone();
        let sent = self.runtime.spawn(async move {
            let response = client.execute(request).await?;
            let (status, headers) = (response.status(), response.headers().clone());
            Ok::<_, reqwest::Error>((status, headers, response.bytes().await?))
        });
        let (status, headers, body) = sent.await??;
        let mut answer = Response::new(body);
        *answer.status_mut() = status;
        *answer.headers_mut() = headers;
        Ok(answer)
    }
}
