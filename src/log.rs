//! What is told while it runs: the log on stderr, by RETUNE_LOG and RETUNE_LOG_FORMAT, and traces where this build can send them.

use std::env::VarError;
use std::io::IsTerminal;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use retune_serve::Traces;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{self, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

#[cfg(feature = "otlp")]
use crate::otlp;

const FILTER: &str = "RETUNE_LOG";
const FORMAT: &str = "RETUNE_LOG_FORMAT";

/// Retune's own events, and what others warn of; left out is what they say of a table that is about to be created, of a chat
/// template that Retune renders itself, and of graphics cards that a GGUF file is not served on.
const DEFAULT: &str = "warn,retune=info,buoyant_kernel::snapshot=off,mistralrs_core::pipeline::paths=error,mistralrs_core::pipeline::gguf=error";

/// Who tells of a model's throughput.
const THROUGHPUT: &str = "mistralrs_core::engine::logger";

/// OpenTelemetry's own variables for where traces go.
pub(crate) const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

#[derive(Clone, Copy)]
enum Format {
    Text,
    Json,
}

/// Starts the log, and traces where they are wanted; `runtime` sends them.
pub(crate) fn start(runtime: &tokio::runtime::Handle) -> Result<()> {
    let filter = filter(variable(FILTER)?.as_deref())?;
    let format = format(variable(FORMAT)?.as_deref())?;
    let throughput = Targets::new().with_target(THROUGHPUT, LevelFilter::INFO);
    let registry = registry().with(EndOfThread.with_filter(throughput));
    let log = lines(format).with_filter(filter);
    #[cfg(feature = "otlp")]
    if let Some(traces) = otlp::start(runtime)? {
        registry.with(traces).with(log).init();
        tell_panics();
        return Ok(());
    }
    #[cfg(not(feature = "otlp"))]
    let _ = runtime;
    registry.with(log).init();
    tell_panics();
    Ok(())
}

/// For each model that is loaded mistralrs starts a thread that tells of its throughput every five seconds, and goes on when the model
/// is gone: nothing ends it, and a hundred kilobytes stay. So it ends with the first that it tells.
struct EndOfThread;

impl<S: Subscriber> Layer<S> for EndOfThread {
    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        if event.metadata().target() == THROUGHPUT {
            // Without the hook: it is no panic that anybody should hear of.
            std::panic::resume_unwind(Box::new(
                "the model's throughput is told by Retune's own metrics",
            ));
        }
    }
}

/// A panic is told by where it was, and not by what it says: a message may quote a prompt.
fn tell_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "a thread panicked");
    }));
}

/// What traces go by, for the server; none where nobody collects them.
pub(crate) fn traces() -> Option<Arc<dyn Traces>> {
    #[cfg(feature = "otlp")]
    return otlp::traces();
    #[cfg(not(feature = "otlp"))]
    {
        if let Some(name) = ENDPOINTS.into_iter().find(|name| is_set(name)) {
            tracing::warn!(
                "{name} is set, and this build sends no traces: build it with `--features otlp`"
            );
        }
        None
    }
}

/// Sends what is left of the traces.
pub(crate) fn finish() {
    #[cfg(feature = "otlp")]
    otlp::finish();
}

/// Whether there is something in a variable.
pub(crate) fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

fn variable(name: &str) -> Result<Option<String>> {
    match std::env::var(name) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => bail!("{name} is no text"),
    }
}

fn filter(text: Option<&str>) -> Result<EnvFilter> {
    let Some(text) = text else {
        return Ok(EnvFilter::new(DEFAULT));
    };
    EnvFilter::try_new(text).with_context(|| {
        format!(
            "{FILTER} is {text:?}; expected a level (error, warn, info, debug, trace, off), or levels by target, such as \
             \"warn,retune=debug\""
        )
    })
}

fn format(text: Option<&str>) -> Result<Format> {
    match text {
        None | Some("text") => Ok(Format::Text),
        Some("json") => Ok(Format::Json),
        Some(text) => bail!("{FORMAT} is {text:?}; expected \"text\" or \"json\""),
    }
}

fn lines<S>(format: Format) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        // What cannot be written is left out: told on a stderr that nobody reads any more, it would be a panic where the event was.
        .log_internal_errors(false)
        .with_ansi(matches!(format, Format::Text) && std::io::stderr().is_terminal());
    match format {
        Format::Text => lines.boxed(),
        Format::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .boxed(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_filter_that_is_none_is_named() {
        assert!(filter(None).is_ok() && filter(Some("warn,retune=debug")).is_ok());
        let error = format!("{:#}", filter(Some("retune=loud")).unwrap_err());
        assert!(
            error.starts_with("RETUNE_LOG is \"retune=loud\"; expected a level"),
            "{error}"
        );
        let error = format(Some("yaml")).err().unwrap().to_string();
        assert_eq!(
            error,
            "RETUNE_LOG_FORMAT is \"yaml\"; expected \"text\" or \"json\""
        );
    }
}
