//! LiteLLM's proxy in front of the stand-in: no database, no key, no callbacks.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::http::{Connection, request};
use crate::peers::MODEL;

/// Until it answers: its imports take long.
const WITHIN: Duration = Duration::from_secs(180);
const ASK: Duration = Duration::from_millis(500);

pub(crate) struct LiteLlm {
    child: Child,
    pub(crate) address: SocketAddr,
    _folder: TempDir,
}

impl LiteLlm {
    pub(crate) fn start(program: &Path, workers: usize, upstream: SocketAddr) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("retune-bench-").tempdir()?;
        // JSON is YAML.
        let config = json!({ "model_list": [{ "model_name": MODEL, "litellm_params": {
            "model": format!("openai/{MODEL}"), "api_base": format!("http://{upstream}/v1"), "api_key": "sk-bench",
        } }] });
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, config.to_string())?;
        // It takes no socket and does not say what port 0 became: a port that is free now.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(program)
            .arg("--config")
            .arg(&file)
            .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--num_workers", &workers.to_string()])
            .current_dir(folder.path())
            // Prices from its own package, and not from the network.
            .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
            .env("LITELLM_LOG", "ERROR")
            // Without a key, as Retune is here: so it need not look at any.
            .env(
                "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY",
                "true",
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{} does not start", program.display()))?;
        let mut started = Self {
            child,
            address,
            _folder: folder,
        };
        started.wait_until_it_answers()?;
        Ok(started)
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let body = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "Hello" }] });
        let request = request(self.address, &body);
        let begun = Instant::now();
        loop {
            let asked = Connection::open(self.address).and_then(|mut c| c.ask(&request).map(drop));
            let Err(why) = asked else { return Ok(()) };
            ensure!(
                begun.elapsed() < WITHIN && self.child.try_wait()?.is_none(),
                "LiteLLM does not answer: {why:#}"
            );
            std::thread::sleep(ASK);
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for LiteLlm {
    fn drop(&mut self) {
        // Its workers end with it if it is asked, and outlive it if it is killed.
        let asked = Command::new("kill").arg(self.pid().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(20);
        while asked.is_ok() && Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
