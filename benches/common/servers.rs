//! Servers as processes of their own, on free ports, in temporary folders, gone when dropped.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    folder: TempDir,
}

impl Server {
    /// Starts a program whose first line of stdout says where it listens, as `{"listening": "http://…"}`, and that ends with its stdin.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("retune-bench-").tempdir()?;
        let mut child = command
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{:?} does not start", command.get_program()))?;
        let output = child.stdout.take().context("a child without stdout")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let said: Value = serde_json::from_str(&line).unwrap_or_default();
        let Some(url) = said["listening"].as_str() else {
            // It says why on stderr, which is ours.
            let _ = child.kill();
            child.wait()?;
            bail!("{:?} does not listen", command.get_program());
        };
        Ok(Self {
            address: url.trim_start_matches("http://").parse()?,
            child,
            folder,
        })
    }

    /// `retune serve`, with `env` as its configuration.
    pub(crate) fn retune(program: &Path, env: &[(&str, String)]) -> Result<Self> {
        Self::start(
            Command::new(program)
                .args(["serve", "--json", "--stop-with-stdin"])
                .env("RETUNE_SERVER__LISTEN", "127.0.0.1:0")
                .env("RETUNE_STORE__URL", "file:./store")
                .env("RETUNE_LOG", "warn")
                .envs(env.iter().map(|(name, value)| (name, value))),
        )
    }

    #[allow(dead_code, reason = "one of the two benchmarks asks")]
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends Retune as an operator would, and counts the exchanges that its log holds.
    pub(crate) fn logged(mut self, program: &Path) -> Result<u64> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "retune serve ended with {status}");
        let answer = Command::new(program)
            .args([
                "ledger",
                "sql",
                "--json",
                "select count(*) as rows from exchanges",
            ])
            .current_dir(self.folder.path())
            .env("RETUNE_STORE__URL", "file:./store")
            .output()?;
        let said = String::from_utf8_lossy(&answer.stdout);
        let row: Value = serde_json::from_str(&said)
            .with_context(|| format!("retune ledger sql answered {said:?}"))?;
        row["rows"]
            .as_u64()
            .context("retune ledger sql gave no count")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already, where `logged` was called.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
