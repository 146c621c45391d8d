//! The demo's own of its server: a store in its folder, the configuration for several generations, and what is asked of it beside HTTP.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::child::Server;

/// Starts it in `folder`, where its store and its log will be.
pub(super) fn start(folder: &Path) -> Result<Server> {
    let mut command = retune(folder)?;
    command.arg("up");
    Server::start(command, &folder.join("log"))
}

/// The ids of the `user` exchanges in the ledger in `folder`, in the ledger's order.
pub(super) async fn logged(folder: &Path) -> Result<Vec<String>> {
    let query = "select request_id from exchanges where purpose = 'user' order by ts, replica, seq";
    let output = retune(folder)?
        .args(["ledger", "sql", "--json", query])
        .stdin(Stdio::null())
        .output()
        .await
        .context("cannot ask the ledger")?;
    ensure!(
        output.status.success(),
        "the ledger could not be asked: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    let lines = String::from_utf8(output.stdout).context("the ledger's answer is not UTF-8")?;
    let id = |line: &str| {
        let value: Value = serde_json::from_str(line)?;
        value["request_id"]
            .as_str()
            .map(str::to_owned)
            .context("a row without request_id")
    };
    lines.lines().map(id).collect()
}

/// Writes what /metrics says now beside the store, for whoever keeps it.
pub(super) async fn keep_metrics(server: &mut Server, folder: &Path) -> Result<()> {
    let url = server.metrics_url().await?;
    let metrics = reqwest::get(url).await?.error_for_status()?.text().await?;
    std::fs::write(folder.join("metrics.txt"), metrics).context("cannot write the metrics")
}

/// Puts the configuration for several generations into the folder.
pub(super) fn configure(folder: &Path) -> Result<()> {
    let files = [
        ("retune.toml", include_str!("generations.toml")),
        (
            "triage.txt",
            include_str!("../../../task/builtin/triage.txt"),
        ),
        (
            "triage.schema.json",
            include_str!("../../../task/builtin/triage.schema.json"),
        ),
    ];
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// A run of the task, as a person makes one from the command line; its report.
pub(super) async fn retrain(folder: &Path, url: &str, task: &str) -> Result<Value> {
    let output = retune(folder)?
        .args(["retrain", "--task", task, "--server", url, "--json"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("cannot start a run")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "the run failed: {}",
        said.trim_end()
    );
    let report = String::from_utf8_lossy(&output.stdout);
    let last = report.lines().last().context("the run has no report")?;
    serde_json::from_str(last).with_context(|| format!("the run's last line is {last:?}"))
}

/// This same program, on the configuration in its working folder, and where there is none on the built-in one.
fn retune(folder: &Path) -> Result<Command> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.current_dir(folder);
    command.env("RETUNE_SERVER__LISTEN", "127.0.0.1:0");
    // Its apps never rest, and wait for the training.
    command.env("RETUNE_TRAINING__NICENESS", "3");
    command.env(
        "RETUNE_STORE__URL",
        format!("file:{}", folder.join("store").display()),
    );
    Ok(command)
}
