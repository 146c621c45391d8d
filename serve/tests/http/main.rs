//! The server at its HTTP surface: one whole server per test, on a tiny random model.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod adapters;
mod alarms;
mod api;
mod console;
mod fine_tuning;
mod model;
mod standin;
mod support;
mod upstream;
