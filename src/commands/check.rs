//! `retune check`: is the configuration right?

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use retune_task::{Config, Problem, Problems};
use serde_json::json;

use crate::cli::Common;
use crate::{output, setup};

#[derive(clap::Args)]
#[command(
    long_about = "Look over the configuration, and name everything that is wrong with it: file, line, key, and what was expected.",
    after_help = "Examples:\n  retune check\n  retune check --config staging.toml\n  RETUNE_SERVER__LISTEN=127.0.0.1:9000 retune check"
)]
pub(crate) struct Args {}

pub(crate) fn run(common: &Common, _: &Args) -> Result<ExitCode> {
    let (config, base) = match right(common) {
        Err(error) if common.json => match error.downcast_ref::<Problems>() {
            Some(problems) => return wrong(problems),
            None => return Err(error),
        },
        right => right?,
    };
    let tasks: Vec<&str> = config.tasks.iter().map(|task| task.name.as_str()).collect();
    if common.json {
        let value = json!({
            "ok": true,
            "source": config.source.to_string(),
            "listen": config.server.listen.to_string(),
            "base": base,
            "store": config.store.url,
            "tasks": tasks,
        });
        output::json(&value)?;
    } else {
        output::line(format_args!("{}: nothing wrong", config.source))?;
        output::line(format_args!(
            "  listens on {}, base {}, store {}",
            config.server.listen, base, config.store.url
        ))?;
        output::line(format_args!("  tasks: {}", tasks.join(", ")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The configuration and what is told of its base, or what is wrong.
fn right(common: &Common) -> Result<(Arc<Config>, String)> {
    let config = setup::config(common)?;
    let base = setup::base_told(&config)?;
    setup::vectors_here(&config)?;
    if let Some(tls) = &config.server.tls {
        retune_serve::check_tls(tls)?;
    }
    let formats = retune_serve::check_formats(&config)?;
    if formats.is_empty() {
        return Ok((config, base));
    }
    let problem = |error: retune_serve::Error| Problem {
        place: config.source.to_string(),
        key: "task.enforce".to_owned(),
        what: error.to_string(),
    };
    Err(Problems(formats.into_iter().map(problem).collect()).into())
}

/// For programs: what else is said on stderr.
fn wrong(problems: &Problems) -> Result<ExitCode> {
    let each = problems
        .0
        .iter()
        .map(|problem| json!({"place": problem.place, "key": problem.key, "what": problem.what}));
    output::json(&json!({"ok": false, "problems": each.collect::<Vec<_>>()}))?;
    Ok(ExitCode::FAILURE)
}
