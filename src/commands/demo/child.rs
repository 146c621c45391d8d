//! The server that the demo plays against: `retune up`, a child with a store of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio_util::sync::CancellationToken;

/// How long the model may take to load, and the last rows into the tables.
const LISTENS_WITHIN: Duration = Duration::from_secs(300);
const STOPS_WITHIN: Duration = Duration::from_secs(60);
/// The same where it has to be at once.
const STOPS_AT_ONCE_WITHIN: Duration = Duration::from_secs(2);
/// Lines of the log that are shown when something failed.
const LAST_WORDS: usize = 20;

pub(super) struct Server {
    folder: PathBuf,
    child: Child,
    /// It stops when this ends; held apart, since waiting for a child closes the stdin that it still has.
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    url: Option<String>,
    /// Where its metrics are, where that is another address.
    ops: Option<String>,
}

impl Server {
    /// Starts it in `folder`, where its store and its log will be.
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let log = File::create(folder.join("log")).context("cannot write a log")?;
        let mut command = retune(folder)?;
        command.args(["up", "--json", "--stop-with-stdin"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true);
        // Ctrl-C on a terminal goes to the whole group; this child stops when it is told.
        command.process_group(0);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        let stdin = child.stdin.take();
        Ok(Self {
            folder: folder.to_owned(),
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
            url: None,
            ops: None,
        })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its address, once a model answers.
    pub(super) async fn listening(&mut self) -> Result<String> {
        if let Some(url) = &self.url {
            return Ok(url.clone());
        }
        let line = tokio::time::timeout(LISTENS_WITHIN, self.lines.next_line()).await;
        let line = line.with_context(|| {
            format!("no model answered within {} s", LISTENS_WITHIN.as_secs())
        })??;
        let line = line.context("the server ended before it listened")?;
        let value: Value = serde_json::from_str(&line)
            .with_context(|| format!("the server's first line is {line:?}"))?;
        let url = value["listening"]
            .as_str()
            .with_context(|| format!("the server's first line is {line:?}"))?;
        self.url = Some(url.to_owned());
        self.ops = value["ops"].as_str().map(str::to_owned);
        Ok(url.to_owned())
    }

    /// Where Prometheus would scrape it.
    pub(super) async fn metrics_url(&mut self) -> Result<String> {
        let url = self.listening().await?;
        Ok(format!("{}/metrics", self.ops.as_ref().unwrap_or(&url)))
    }

    /// Waits for an end that nobody asked for, and tells how it was.
    pub(super) async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Ends its stdin and waits: it finishes what runs and appends every row. `at_once`: not for long.
    pub(super) async fn stop(&mut self, at_once: &CancellationToken) -> Result<()> {
        drop(self.stdin.take());
        let patience = async {
            tokio::select! {
                () = tokio::time::sleep(STOPS_WITHIN) => {}
                () = at_once.cancelled() => tokio::time::sleep(STOPS_AT_ONCE_WITHIN).await,
            }
        };
        let status = tokio::select! {
            status = self.child.wait() => status,
            () = patience => {
                self.child.kill().await?;
                bail!("the server did not stop in time and was killed");
            }
        };
        let status = status?;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }

    /// The ids of the `user` exchanges in its ledger, in the ledger's order.
    pub(super) async fn logged(&self) -> Result<Vec<String>> {
        let query =
            "select request_id from exchanges where purpose = 'user' order by ts, replica, seq";
        let output = retune(&self.folder)?
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
    pub(super) async fn keep_metrics(&mut self) -> Result<()> {
        let url = self.metrics_url().await?;
        let metrics = reqwest::get(url).await?.error_for_status()?.text().await?;
        std::fs::write(self.folder.join("metrics.txt"), metrics).context("cannot write the metrics")
    }

    /// The end of its log.
    pub(super) fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }
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
