//! A server of somebody's own: this same program as a child, which never outlives whoever started it.

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

pub(crate) struct Server {
    log: PathBuf,
    child: Child,
    /// It stops when this ends; held apart, since waiting for a child closes the stdin that it still has.
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    url: Option<String>,
    /// Where its metrics are, where that is another address.
    ops: Option<String>,
}

impl Server {
    /// Starts `command`, a `retune up` or `retune serve`; its log goes to the file `log`.
    pub(crate) fn start(mut command: Command, log: &Path) -> Result<Self> {
        let stderr =
            File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        command.args(["--json", "--stop-with-stdin"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true);
        // Ctrl-C on a terminal goes to the whole group; this child stops when it is told.
        command.process_group(0);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        let stdin = child.stdin.take();
        Ok(Self {
            log: log.to_owned(),
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
            url: None,
            ops: None,
        })
    }

    /// Its address, once a model answers.
    pub(crate) async fn listening(&mut self) -> Result<String> {
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
    pub(crate) async fn metrics_url(&mut self) -> Result<String> {
        let url = self.listening().await?;
        Ok(format!("{}/metrics", self.ops.as_ref().unwrap_or(&url)))
    }

    /// Waits for an end that nobody asked for, and tells how it was.
    pub(crate) async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Ends its stdin and waits: it finishes what runs and appends every row. `at_once`: not for long.
    pub(crate) async fn stop(&mut self, at_once: &CancellationToken) -> Result<()> {
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

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }
}
