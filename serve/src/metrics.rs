//! What the server measures. Only exchanges of purpose `user` count in traffic metrics; no label ever holds a user, a request or a text.

use std::collections::HashMap;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    CounterVec, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};
use retune_ledger::Ledger;

/// Seconds, as OpenTelemetry's conventions for generative AI give them
/// (<https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/>).
const DURATION: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
const PER_TOKEN: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];

/// Declares the metrics: each one's documentation is its help text, and it is registered where it is made.
macro_rules! metrics {
    ($(#[doc = $help:literal] $field:ident: $kind:ident = $name:literal [$($label:literal),*] $($buckets:ident)?,)*) => {
        /// The server's metrics.
        pub(crate) struct Metrics {
            $(#[doc = $help] pub(crate) $field: $kind,)*
        }

        impl Metrics {
            /// Makes the metrics and registers them.
            pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
                Ok(Self {
                    $($field: kept(registry, $kind::make(
                        concat!("retune_", $name), $help.trim(), &[$($label),*], metrics!(@buckets $($buckets)?),
                    )?)?,)*
                })
            }

            /// A row each, for the reference.
            #[cfg(test)]
            fn reference(&self) -> String {
                let all = [$((stringify!($kind), self.$field.desc()),)*];
                all.iter().map(|(kind, of)| tests::row(kind, of)).collect()
            }
        }
    };
    (@buckets) => { &[] };
    (@buckets $buckets:ident) => { $buckets };
}

metrics! {
    /// Requests for completions, by the HTTP status that they ended with (499: the client left).
    requests: IntCounterVec = "requests_total" ["task", "adapter", "stage", "code"],
    /// Seconds from a request's arrival to its last token.
    duration: HistogramVec = "request_duration_seconds" ["task", "adapter"] DURATION,
    /// Seconds from a request's arrival to its first text.
    first_token: HistogramVec = "time_to_first_token_seconds" ["task", "adapter"] FIRST_TOKEN,
    /// Seconds for each token after the first.
    per_token: HistogramVec = "time_per_output_token_seconds" ["task", "adapter"] PER_TOKEN,
    /// Tokens read (prompt) and written (completion).
    tokens: IntCounterVec = "tokens_total" ["task", "adapter", "kind"],
    /// What answers have cost, by the prices in [cost], for tokens read (prompt) and written (completion).
    cost: CounterVec = "cost_total" ["task", "adapter", "kind"],
    /// Answers checked against their task's format, by result and, for invalid ones, by reason.
    format_checks: IntCounterVec = "format_checks_total" ["task", "adapter", "result", "reason"],
    /// Feedback received, by rating (1 to 5, or none).
    feedback: IntCounterVec = "feedback_total" ["rating"],
    /// Votes on blind pairs of answers.
    pair_votes: IntCounterVec = "pair_votes_total" ["task"],
    /// Adapters in the engine's memory.
    adapters_loaded: IntGauge = "adapters_loaded" [],
    /// 1 for the stage that an adapter is at, 0 for the others.
    adapter_stage: IntGaugeVec = "adapter_stage" ["task", "adapter", "stage"],
    /// Requests that have a place.
    running: IntGauge = "requests_running" [],
    /// Requests that wait for a place.
    waiting: IntGauge = "requests_waiting" [],
}

/// Engines inside this process that broke down.
pub(crate) fn engine_restarts(registry: &Registry) -> Result<IntCounter, prometheus::Error> {
    let counter = IntCounter::new(
        "retune_engine_restarts_total",
        "Engines inside this process that panicked and were started again, each with its model.",
    )?;
    kept(registry, counter)
}

/// The ledger's figures, read anew for each scrape.
pub(crate) struct LedgerMetrics {
    ledger: Ledger,
    rows: Desc,
    dropped: Desc,
    lag: Desc,
    log_bytes: Desc,
    torn: Desc,
    damaged: Desc,
}

impl LedgerMetrics {
    /// Registers them.
    pub(crate) fn register(registry: &Registry, ledger: Ledger) -> Result<(), prometheus::Error> {
        registry.register(Box::new(Self::of(ledger)?))
    }

    fn of(ledger: Ledger) -> Result<Self, prometheus::Error> {
        let desc = |name: &str, help: &str, labels: &[&str]| {
            Desc::new(
                name.to_owned(),
                help.to_owned(),
                labels.iter().map(|l| (*l).to_owned()).collect(),
                HashMap::new(),
            )
        };
        Ok(Self {
            ledger,
            rows: desc(
                "retune_ledger_rows_total",
                "Rows put into the ledger's tables by this process.",
                &["table"],
            )?,
            dropped: desc(
                "retune_ledger_rows_dropped_total",
                "Rows that could not be kept, by reason.",
                &["reason"],
            )?,
            lag: desc(
                "retune_ledger_lag_seconds",
                "Age of the oldest row that is not in its table yet.",
                &[],
            )?,
            log_bytes: desc(
                "retune_ledger_log_bytes",
                "Bytes of the write-ahead log that are not in a table yet.",
                &[],
            )?,
            torn: desc(
                "retune_ledger_log_torn_total",
                "Segments of the write-ahead log whose end was torn by a kill or a power cut, and cut off.",
                &[],
            )?,
            damaged: desc(
                "retune_ledger_damaged_files",
                "Files of a table that cannot be read, and are left out of every answer.",
                &["table"],
            )?,
        })
    }

    fn read(&self) -> Result<Vec<MetricFamily>, prometheus::Error> {
        let opts = |desc: &Desc| Opts::new(desc.fq_name.as_str(), desc.help.as_str());
        let rows = IntCounterVec::new(opts(&self.rows), &["table"])?;
        let dropped = IntCounterVec::new(opts(&self.dropped), &["reason"])?;
        let lag = Gauge::with_opts(opts(&self.lag))?;
        let log_bytes = Gauge::with_opts(opts(&self.log_bytes))?;
        let torn = IntCounter::with_opts(opts(&self.torn))?;
        let damaged = IntGaugeVec::new(opts(&self.damaged), &["table"])?;
        for table in self.ledger.stats() {
            rows.with_label_values(&[table.table.name()])
                .inc_by(table.appended);
            for (reason, rows) in table.dropped {
                dropped.with_label_values(&[reason]).inc_by(rows);
            }
            torn.inc_by(table.torn);
            let files = i64::try_from(table.damaged_files).unwrap_or(i64::MAX);
            damaged.with_label_values(&[table.table.name()]).set(files);
            lag.set(lag.get().max(table.lag_seconds));
        }
        log_bytes.set(self.ledger.log_bytes() as f64);
        Ok([
            rows.collect(),
            dropped.collect(),
            lag.collect(),
            log_bytes.collect(),
            torn.collect(),
            damaged.collect(),
        ]
        .concat())
    }
}

impl Collector for LedgerMetrics {
    fn desc(&self) -> Vec<&Desc> {
        vec![
            &self.rows,
            &self.dropped,
            &self.lag,
            &self.log_bytes,
            &self.torn,
            &self.damaged,
        ]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // The descriptions were accepted when they were registered.
        self.read().unwrap_or_default()
    }
}

fn kept<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// One way to make every kind.
trait Make: Sized {
    fn make(
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<Self, prometheus::Error>;
}

impl Make for IntCounterVec {
    fn make(name: &str, help: &str, labels: &[&str], _: &[f64]) -> Result<Self, prometheus::Error> {
        Self::new(Opts::new(name, help), labels)
    }
}

impl Make for CounterVec {
    fn make(name: &str, help: &str, labels: &[&str], _: &[f64]) -> Result<Self, prometheus::Error> {
        Self::new(Opts::new(name, help), labels)
    }
}

impl Make for IntGaugeVec {
    fn make(name: &str, help: &str, labels: &[&str], _: &[f64]) -> Result<Self, prometheus::Error> {
        Self::new(Opts::new(name, help), labels)
    }
}

impl Make for HistogramVec {
    fn make(
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<Self, prometheus::Error> {
        Self::new(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
            labels,
        )
    }
}

impl Make for IntGauge {
    fn make(name: &str, help: &str, _: &[&str], _: &[f64]) -> Result<Self, prometheus::Error> {
        Self::new(name, help)
    }
}

#[cfg(test)]
#[path = "../../tests/support/reference.rs"]
mod reference;

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "tests"
    )]

    use super::*;

    /// A metric's row in the reference.
    pub(super) fn row(kind: &str, of: &[&prometheus::core::Desc]) -> String {
        let rows = of
            .iter()
            .map(|desc| reference::metric(kind, &desc.fq_name, &desc.variable_labels, &desc.help));
        rows.collect()
    }

    #[tokio::test]
    async fn the_reference_is_what_the_code_says() {
        let (registry, folder) = (Registry::new(), tempfile::tempdir().unwrap());
        let url = format!("file:{}", folder.path().display());
        let variables = [("RETUNE_STORE__URL".to_owned(), url)];
        let config = retune_task::Config::load(None, variables).unwrap();
        let ledger = Ledger::open(&config.store).await.unwrap();
        let restarts = engine_restarts(&registry).unwrap();
        let of_ledger = LedgerMetrics::of(ledger).unwrap();
        let ledgers: Vec<String> = of_ledger
            .collect()
            .iter()
            .zip(of_ledger.desc())
            .map(|(family, desc)| row(&format!("{:?}", family.get_field_type()), &[desc]))
            .collect();
        let made = [
            Metrics::new(&registry).unwrap().reference(),
            row("IntCounter", &restarts.desc()),
            ledgers.concat(),
        ];
        reference::holds("metrics.md", "server", &made.concat());
    }
}
