//! What the server measures. Only exchanges of purpose `user` count in traffic metrics; no label ever holds a user, a request or a text.

use prometheus::core::Collector;
use prometheus::{
    CounterVec, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};
use retune_ledger::Ledger;

/// Seconds, as OpenTelemetry's conventions for generative AI give them
/// (<https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/>).
const DURATION: [f64; 14] = [
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
const FIRST_TOKEN: [f64; 16] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
const PER_TOKEN: [f64; 13] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];

/// The server's metrics; each field's documentation is the metric's help text.
pub(crate) struct Metrics {
    /// Requests for completions, by the HTTP status that they ended with (499: the client left).
    pub(crate) requests: IntCounterVec,
    /// Seconds from a request's arrival to its last token.
    pub(crate) duration: HistogramVec,
    /// Seconds from a request's arrival to its first text.
    pub(crate) first_token: HistogramVec,
    /// Seconds for each token after the first.
    pub(crate) per_token: HistogramVec,
    /// Tokens read (prompt) and written (completion).
    pub(crate) tokens: IntCounterVec,
    /// Answers checked against their task's format, by result and, for invalid ones, by reason.
    pub(crate) format_checks: IntCounterVec,
    /// Feedback received, by rating (1 to 5, or none).
    pub(crate) feedback: IntCounterVec,
    /// Adapters in the engine's memory.
    pub(crate) adapters_loaded: IntGauge,
    /// 1 for the stage that an adapter is at, 0 for the others.
    pub(crate) adapter_stage: IntGaugeVec,
    /// Requests that are decoded at this moment.
    pub(crate) running: IntGauge,
    /// Requests that wait for a place.
    pub(crate) waiting: IntGauge,
    ledger_rows: CounterVec,
    ledger_dropped: CounterVec,
    ledger_lag: GaugeVec,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let who = ["task", "adapter"];
        Ok(Self {
            requests: kept(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "retune_requests_total",
                        "Requests for completions, by the HTTP status that they ended with (499: the client left).",
                    ),
                    &["task", "adapter", "stage", "code"],
                )?,
            )?,
            duration: kept(
                registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "retune_request_duration_seconds",
                        "Seconds from a request's arrival to its last token.",
                    )
                    .buckets(DURATION.to_vec()),
                    &who,
                )?,
            )?,
            first_token: kept(
                registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "retune_time_to_first_token_seconds",
                        "Seconds from a request's arrival to its first text.",
                    )
                    .buckets(FIRST_TOKEN.to_vec()),
                    &who,
                )?,
            )?,
            per_token: kept(
                registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "retune_time_per_output_token_seconds",
                        "Seconds for each token after the first.",
                    )
                    .buckets(PER_TOKEN.to_vec()),
                    &who,
                )?,
            )?,
            tokens: kept(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "retune_tokens_total",
                        "Tokens read (prompt) and written (completion).",
                    ),
                    &["task", "adapter", "kind"],
                )?,
            )?,
            format_checks: kept(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "retune_format_checks_total",
                        "Answers checked against their task's format, by result and, for invalid ones, by reason.",
                    ),
                    &["task", "adapter", "result", "reason"],
                )?,
            )?,
            feedback: kept(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "retune_feedback_total",
                        "Feedback received, by rating (1 to 5, or none).",
                    ),
                    &["rating"],
                )?,
            )?,
            adapters_loaded: kept(
                registry,
                IntGauge::new("retune_adapters_loaded", "Adapters in the engine's memory.")?,
            )?,
            adapter_stage: kept(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "retune_adapter_stage",
                        "1 for the stage that an adapter is at, 0 for the others.",
                    ),
                    &["task", "adapter", "stage"],
                )?,
            )?,
            running: kept(
                registry,
                IntGauge::new(
                    "retune_requests_running",
                    "Requests that are decoded at this moment.",
                )?,
            )?,
            waiting: kept(
                registry,
                IntGauge::new("retune_requests_waiting", "Requests that wait for a place.")?,
            )?,
            ledger_rows: kept(
                registry,
                CounterVec::new(
                    Opts::new(
                        "retune_ledger_rows_total",
                        "Rows appended to the ledger's tables.",
                    ),
                    &["table"],
                )?,
            )?,
            ledger_dropped: kept(
                registry,
                CounterVec::new(
                    Opts::new(
                        "retune_ledger_rows_dropped_total",
                        "Rows that could not be kept, by reason.",
                    ),
                    &["reason"],
                )?,
            )?,
            ledger_lag: kept(
                registry,
                GaugeVec::new(
                    Opts::new(
                        "retune_ledger_lag_seconds",
                        "Age of the oldest row that is not in its table yet.",
                    ),
                    &[],
                )?,
            )?,
        })
    }

    /// Brings the ledger's figures up to date; called for each scrape.
    pub(crate) fn read_ledger(&self, ledger: &Ledger) {
        let stats = ledger.stats();
        let _ = (
            &stats,
            &self.ledger_rows,
            &self.ledger_dropped,
            &self.ledger_lag,
        );
    }
}

fn kept<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
