//! Starts the built binary on a free port in a temporary folder, and leaves nothing behind.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

const PROGRAM: &str = env!("CARGO_BIN_EXE_retune");

/// The checkout.
pub(crate) const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// `retune` with its working folder, store and port out of everybody's way.
pub(crate) fn retune(folder: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .current_dir(folder)
        .env("RETUNE_SERVER__LISTEN", "127.0.0.1:0")
        .env("RETUNE_STORE__URL", "file:./store")
        // Other tests never rest.
        .env("RETUNE_TRAINING__NICENESS", "3")
        // No test asks the real hub, nor looks into this machine's cache of it.
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", folder.join("hf"))
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_TOKEN")
        .env_remove("RETUNE_API_KEY")
        .env_remove("RETUNE_LOG")
        .env_remove("RETUNE_LOG_FORMAT");
    command.stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub(crate) fn run(folder: &Path, arguments: &[&str]) -> Output {
    retune(folder).args(arguments).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The rows of a query, by `retune ledger sql --json`.
pub(crate) fn rows(folder: &Path, query: &str) -> Vec<Value> {
    let output = run(folder, &["ledger", "sql", "--json", query]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A running `retune up`, killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    /// Where metrics and probes are, if not on `url`.
    pub(crate) ops: Option<String>,
    log: Arc<Mutex<String>>,
    pub(crate) http: reqwest::Client,
}

impl Server {
    /// Starts in `folder`, whose store may already hold something.
    pub(crate) async fn start(folder: &Path) -> Self {
        Self::start_with(folder, &[]).await
    }

    /// The same with more in its environment.
    pub(crate) async fn start_with(folder: &Path, env: &[(&str, &str)]) -> Self {
        Self::launch(folder, env, true).await
    }

    /// The same, and whoever read its stderr has left.
    pub(crate) async fn start_unheard(folder: &Path) -> Self {
        Self::launch(folder, &[], false).await
    }

    async fn launch(folder: &Path, env: &[(&str, &str)], heard: bool) -> Self {
        let mut command = tokio::process::Command::from(retune(folder));
        command.envs(env.iter().copied());
        command.args(["up", "--json", "--stop-with-stdin"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        if heard {
            // Read to the end, so that a full pipe never holds the server up.
            let mut stderr = BufReader::new(stderr).lines();
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                while let Ok(Some(line)) = stderr.next_line().await {
                    eprintln!("{line}");
                    let mut log = log.lock().unwrap();
                    log.push_str(&line);
                    log.push('\n');
                }
            });
        }
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(Duration::from_secs(120), lines.next_line()).await;
        let line = line
            .expect("a line within two minutes")
            .unwrap()
            .expect("a line before the end");
        let first: Value = serde_json::from_str(&line).unwrap();
        let url = first["listening"].as_str().unwrap().to_owned();
        let ops = first["ops"].as_str().map(str::to_owned);
        Self {
            child,
            url,
            ops,
            log,
            http: reqwest::Client::new(),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("a running server")
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid();
        let status = Command::new("sh")
            .args(["-c", &format!("kill -{name} {pid}")])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// What it wrote to stderr up to now, once `part` is in it.
    pub(crate) async fn log_with(&self, part: &str) -> String {
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            let log = self.log.lock().unwrap().clone();
            if log.contains(part) {
                return log;
            }
            assert!(Instant::now() < give_up, "no {part:?} in the log:\n{log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until it ends by itself: to ask for its exit code closes its stdin, which is a wish that it stop.
    #[cfg(feature = "failpoints")]
    pub(crate) async fn ended(&mut self, within: Duration) -> bool {
        let give_up = std::time::Instant::now() + within;
        while self.child.try_wait().unwrap().is_none() {
            if std::time::Instant::now() >= give_up {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// Its exit code, within half a minute; None where a signal ended it.
    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        let status = tokio::time::timeout(Duration::from_secs(30), self.child.wait()).await;
        status.expect("an end within half a minute").unwrap().code()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        self.http
            .post(format!("{}{path}", self.url))
            .json(body)
            .send()
            .await
            .unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        self.http
            .get(format!("{}{path}", self.url))
            .send()
            .await
            .unwrap()
    }

    /// One question to the task, answered.
    pub(crate) async fn ask(&self, content: &str) -> Value {
        let response = self.post("/v1/chat/completions", &question(content)).await;
        assert_eq!(response.status(), 200);
        response.json().await.unwrap()
    }
}

pub(crate) fn question(content: &str) -> Value {
    json!({"model": "triage", "messages": [{"role": "user", "content": content}], "temperature": 0})
}

/// A question whose answer does not end before it has `choices` times as many tokens as fit: the model may not say that it is done.
pub(crate) fn endless(choices: usize) -> Value {
    let mut question = question("Tell me all about parcels.");
    question["stream"] = json!(true);
    question["max_tokens"] = json!(1000);
    question["n"] = json!(choices);
    question["logit_bias"] = json!({"0": -100, "2": -100});
    question
}

pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("retune-test-")
        .tempdir()
        .unwrap()
}
