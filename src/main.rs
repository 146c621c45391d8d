//! The command line. Each subcommand is a file under `commands/`; what they do lives in the crates beside this one.

mod child;
mod cli;
mod client;
mod commands;
mod hub;
mod log;
mod memory;
#[cfg(feature = "otlp")]
mod otlp;
mod output;
mod setup;
mod stop;

use std::process::ExitCode;

/// Loading and unloading models under glibc's allocator leaves twice the memory behind that this one does.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _points = fail::FailScenario::setup();
    cli::main()
}
