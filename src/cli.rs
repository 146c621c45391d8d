//! What can be typed, and how a command's end becomes an exit code: 0 done, 1 failed, 2 misused, 3 an alarm stands, 130 told twice to
//! stop.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::commands::{
    adapter, advise, check, dataset, demo, keys, ledger, monitor, retrain, serve, up,
};
use crate::{log, output};

/// An open inference server that keeps its fine-tuned models tuned.
///
/// It serves a base model and its LoRA adapters over the OpenAI API, keeps every exchange, notices when the traffic
/// drifts, retrains from what users rated, and promotes what proves better.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  retune demo            see the whole loop happen, in a few minutes\n  \
                  retune check           look over ./retune.toml\n  retune up              serve, watch and retrain"
)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Args)]
pub(crate) struct Common {
    /// The configuration [default: ./retune.toml where there is one, else the built-in one].
    ///
    /// Each value can also be set by environment, as RETUNE_<SECTION>__<KEY>; RETUNE_LOG=debug says more on stderr, and
    /// RETUNE_LOG_FORMAT=json says it as JSON; RETUNE_API_KEY is the key with which commands ask a server.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print for scripts: JSON, one value a line.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

// A documentation comment here would take the place of all that a command says of itself.
#[derive(Subcommand)]
enum Command {
    #[command(about = "Serve, monitor and retrain, all in one")]
    Up(up::Args),
    #[command(about = "Serve the OpenAI API, and nothing else")]
    Serve(serve::Args),
    #[command(about = "Look for drifts in what the ledger holds")]
    Monitor(monitor::Args),
    #[command(
        about = "Make an adapter from what users rated, examine it, promote it where it is better"
    )]
    Retrain(retrain::Args),
    #[command(
        subcommand,
        about = "Look at adapters, bring them, and decide where they stand"
    )]
    Adapter(adapter::Command),
    #[command(
        subcommand,
        about = "Look at what a task's next adapter would be made of, add to it, take it along"
    )]
    Dataset(dataset::Command),
    #[command(subcommand, about = "Make, list and revoke API keys")]
    Keys(keys::Command),
    #[command(about = "Say whether fine-tuning is what a task needs at all, from its own logs")]
    Advise(advise::Args),
    #[command(subcommand, about = "Ask the ledger")]
    Ledger(ledger::Command),
    #[command(
        about = "See the whole loop on simulated traffic: a drift, the alarm, a retraining, the better adapter"
    )]
    Demo(demo::Args),
    #[command(about = "Look over the configuration, and name everything that is wrong with it")]
    Check(check::Args),
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            output::problem(format_args!("cannot start threads: {error}"));
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = log::start(runtime.handle()) {
        output::problem(output::with_causes(&error));
        return ExitCode::FAILURE;
    }
    let result = runtime.block_on(run(cli));
    log::finish();
    // What still blocks (a read of stdin) must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        // Whoever read the output has had enough of it.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::problem(output::with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let common = &cli.common;
    match cli.command {
        Command::Up(args) => Box::pin(up::run(common, &args)).await,
        Command::Serve(args) => Box::pin(serve::run(common, &args)).await,
        Command::Monitor(args) => Box::pin(monitor::run(common, &args)).await,
        Command::Retrain(args) => Box::pin(retrain::run(common, &args)).await,
        Command::Adapter(command) => Box::pin(adapter::run(common, &command)).await,
        Command::Dataset(command) => Box::pin(dataset::run(common, &command)).await,
        Command::Keys(command) => Box::pin(keys::run(common, &command)).await,
        Command::Advise(args) => Box::pin(advise::run(common, &args)).await,
        Command::Ledger(command) => Box::pin(ledger::run(common, &command)).await,
        Command::Demo(args) => Box::pin(demo::run(common, &args)).await,
        Command::Check(args) => check::run(common, &args),
    }
}
