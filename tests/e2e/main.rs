//! End-to-end tests on the built binary: what users meet, over HTTP, files and signals. One binary, a module a subject.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

mod adapters;
mod advise;
mod alarms;
mod api;
mod bad_input;
mod bases;
mod canary;
mod capabilities;
mod dataset;
mod deploy;
mod enforce;
mod families;
mod fine_tuning;
mod forget;
mod generations;

#[path = "../../serve/tests/http/gguf.rs"]
mod gguf;
mod harness;
mod help;
mod hub;
mod in_and_out;
mod keys;
mod kill;
mod ledger;
mod log;
mod r#loop;
#[path = "../../serve/tests/http/model.rs"]
mod model;
#[cfg(feature = "otlp")]
mod otlp;
mod pairs;
mod privacy;
mod shutdown;
mod swap;
mod synth;
mod tidy;
#[path = "../../ledger/tests/common/words.rs"]
mod words;
