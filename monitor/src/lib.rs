//! Notices when the answers of an adapter get worse than they were: streams of test results per adapter, alarms with their
//! evidence, metrics.
//!
//! The monitor reads the ledger and writes to it: references and triggers, files that are created once, and rows of `windows`. It
//! knows neither the server nor the trainer. Where which part lives:
//!
//! - [`streams`]: the tests, pure, and [`features`], texts as points: open to `benches/`, which measure them without a ledger.
//! - [`book`]: rows to the states of all adapters' streams, pure. Folding the same rows always gives the same states, so a
//!   restart, or another replica, arrives where this one is.
//! - [`inputs`]: the adapters whose prompts are compared with a sample, by [`prompts`] and [`features`].
//! - [`qualities`]: the adapters whose answers people rate, by [`feedback`].
//! - [`reader`]: the few columns of exchanges that the tests need.
//! - [`why`]: what sets the requests that are the trouble apart.
//! - [`monitor`]: the passes: read, fold, decide, write, measure.
//! - [`alarms`]: what goes with an alarm: why, and what somebody said to it.
//! - [`schedules`]: when runs were due.
//! - [`report`]: all of it as a page for people.
//! - [`metrics`]: what it shows to Prometheus.

mod alarms;
mod book;
mod error;
pub mod features;
mod feedback;
mod inputs;
mod metrics;
mod monitor;
mod prompts;
mod qualities;
mod reader;
mod report;
mod schedules;
mod seen;
pub mod streams;
pub mod why;

pub use error::Error;
pub use monitor::Monitor;
pub use report::{Alarm, Report, Request};
pub use streams::{State, Stream, StreamReport};

#[cfg(test)]
mod tests;
