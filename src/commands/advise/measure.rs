//! Bases and prompts are measured on a server each: this same program on this same configuration, but for the base, the prompt and the store,
//! so that format, limits and upstreams are what would be served. The store is a temporary one and holds no text, and is gone with
//! the server.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use retune_ledger::Ledger;
use retune_retrain::advise::{
    Candidate, Measured, Measurement, NamedPrompt, Unmeasured, Yardstick, draw, prompts,
};
use retune_retrain::shelf;
use retune_task::{Config, EngineKind, Task};
use tempfile::TempDir;
use tokio::process::Command;

use super::Args;
use crate::child::Server;
use crate::cli::Common;
use crate::stop::Stop;
use crate::{client, hub, output, setup};

struct Base {
    name: String,
    /// It is another one than the configuration's.
    is_other: bool,
    weight_bytes: Option<u64>,
}

/// None where `stop` came first.
pub(super) async fn measure(
    common: &Common,
    (config, task): (&Config, &Task),
    ledger: &Ledger,
    args: &Args,
    stop: &Stop,
) -> Result<Option<Measurement>> {
    let bases = bases(config, &args.bases)?;
    let prompts = prompts(task, args.prompts.as_deref())?;
    let dataset = shelf::read(ledger, task).await?.dataset;
    let drawn = draw(task, &dataset, &prompts, args.rows as usize)?;
    drop(dataset);
    let yardstick = Yardstick {
        task,
        engine: &config.engine.kind,
        rows: &drawn.rows,
        good_enough: args.good_enough,
        close_enough: args.close_enough,
    };
    let most = yardstick.most_that_can_be_shown();
    if most < args.good_enough {
        output::problem(format_args!(
            "{} rows are too few: all answered rightly would show a share of {most:.3} (95 % lower limit), and --good-enough wants {}; none \
             can be found to do",
            drawn.rows.len(),
            args.good_enough
        ));
    }
    let (mut candidates, mut unmeasured) = (Vec::new(), Vec::new());
    let bar = bar(bases.len() * prompts.len() * drawn.rows.len())?;
    let mut before = 0;
    for base in &bases {
        for prompt in &prompts {
            bar.set_message(format!("{}, prompt {}", base.name, prompt.name));
            let candidate = Candidate {
                base: base.name.clone(),
                weight_bytes: base.weight_bytes,
                prompt: prompt.name.clone(),
            };
            let one = One {
                common,
                config,
                base,
                prompt,
            };
            let mut observer = |done: usize| bar.set_position((before + done) as u64);
            match one
                .measure(&yardstick, candidate.clone(), stop, &mut observer)
                .await?
            {
                Some(Ok(measured)) => candidates.push(measured),
                Some(Err(why)) => {
                    let (base, prompt) = (&base.name, &prompt.name);
                    bar.suspend(|| {
                        output::problem(format_args!(
                            "{base} with the prompt {prompt} could not be measured: {why}"
                        ));
                    });
                    unmeasured.push(Unmeasured { candidate, why });
                }
                None => {
                    bar.finish_and_clear();
                    return Ok(None);
                }
            }
            before += drawn.rows.len();
        }
    }
    bar.finish_and_clear();
    let measured = Measurement::new(&yardstick, &drawn, &prompts, candidates, unmeasured);
    measured
        .context("nothing could be measured; see above")
        .map(Some)
}

/// Those that are named, each looked for on this machine unless other servers have it; else the configuration's.
fn bases(config: &Config, named: &[String]) -> Result<Vec<Base>> {
    let own = match &config.engine.kind {
        EngineKind::Upstream(upstream) => upstream.model.as_ref(),
        EngineKind::Embedded => None,
    };
    let own = own.unwrap_or(&config.engine.base);
    let names = match named.is_empty() {
        true => std::slice::from_ref(own),
        false => named,
    };
    let mut bases: Vec<Base> = Vec::new();
    for name in names {
        ensure!(
            !name.trim().is_empty(),
            "--bases: a name is empty; expected such as models/small,models/large"
        );
        if bases.iter().any(|other| other.name == *name) {
            bail!("--bases: {name} is named twice; name it once");
        }
        let weight_bytes = match config.engine.kind {
            EngineKind::Upstream(_) => None,
            EngineKind::Embedded => {
                let folder = setup::other_base(config, name);
                hub::weight_bytes(&folder.with_context(|| format!("cannot measure {name}"))?)
            }
        };
        bases.push(Base {
            name: name.clone(),
            is_other: !named.is_empty(),
            weight_bytes,
        });
    }
    Ok(bases)
}

fn bar(all: usize) -> Result<ProgressBar> {
    let bar = ProgressBar::new(all as u64);
    bar.set_style(ProgressStyle::with_template(
        "{msg} {bar:30} {pos} of {len} answers, {elapsed}, {eta} left",
    )?);
    Ok(bar)
}

/// One base with one prompt.
struct One<'a> {
    common: &'a Common,
    config: &'a Config,
    base: &'a Base,
    prompt: &'a NamedPrompt,
}

impl One<'_> {
    /// What it reached, or why that cannot be known; none where `stop` came first.
    async fn measure(
        &self,
        yardstick: &Yardstick<'_>,
        candidate: Candidate,
        stop: &Stop,
        observer: &mut (dyn FnMut(usize) + Send),
    ) -> Result<Option<Result<Measured, String>>> {
        let folder = tempfile::Builder::new()
            .prefix("retune-advise-")
            .tempdir()
            .context("cannot make a temporary folder")?;
        let mut server = self.start(yardstick.task, &folder)?;
        let asked = async {
            let url = server.listening().await?;
            let http = client::new(self.config, &url, None)?;
            let measured = yardstick.measure(http, &url, candidate, observer).await?;
            anyhow::Ok(measured)
        };
        let measured = tokio::select! {
            measured = asked => Some(measured),
            () = stop.asked.cancelled() => None,
        };
        if let Err(error) = server.stop(&stop.at_once).await {
            tracing::debug!(error = format!("{error:#}"), "a server that was measured");
        }
        let told = |error: anyhow::Error| format!("{error:#}\n{}", server.last_words());
        Ok(measured.map(|measured| measured.map_err(told)))
    }

    fn start(&self, task: &Task, folder: &TempDir) -> Result<Server> {
        let folder = folder.path().canonicalize()?;
        let prompt = folder.join("prompt.txt");
        std::fs::write(&prompt, &self.prompt.text)
            .with_context(|| format!("cannot write {}", prompt.display()))?;
        Server::start(self.command(task, &prompt, &folder)?, &folder.join("log"))
    }

    fn command(&self, task: &Task, prompt: &Path, folder: &Path) -> Result<Command> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        command.arg("serve");
        if let Some(config) = &self.common.config {
            command.arg("--config").arg(config);
        }
        let name = task.name.replace('-', "_").to_uppercase();
        let of_task = |key: &str| format!("RETUNE_TASK__{name}__{key}");
        command
            .env("RETUNE_SERVER__LISTEN", "127.0.0.1:0")
            .env("RETUNE_SERVER__OPS_LISTEN", "127.0.0.1:0")
            .env(
                "RETUNE_STORE__URL",
                format!("file:{}", folder.join("store").display()),
            )
            .env(of_task("PROMPT"), prompt)
            // Nobody waits for a second answer to the same, and nobody reads any again.
            .env(of_task("PROBE_SHARE"), "0")
            .env(of_task("PRIVACY__TEXT_SHARE"), "0")
            .env("OTEL_SDK_DISABLED", "true")
            .env("HF_HUB_OFFLINE", "1")
            .env_remove(client::API_KEY);
        if self.base.is_other {
            let key = match self.config.engine.kind {
                EngineKind::Embedded => "RETUNE_ENGINE__BASE",
                EngineKind::Upstream(_) => "RETUNE_ENGINE__MODEL",
            };
            command.env(key, &self.base.name);
        }
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn config(text: &str) -> (TempDir, Config) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("retune.toml");
        std::fs::write(folder.path().join("prompt.txt"), "Say.").unwrap();
        std::fs::write(
            &path,
            format!("{text}\n[[task]]\nname = \"first-line\"\nprompt = \"prompt.txt\"\n"),
        )
        .unwrap();
        let config = Config::load(Some(&path), []).unwrap();
        (folder, config)
    }

    fn names(config: &Config, named: &[&str]) -> Result<Vec<String>> {
        let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
        let bases = bases(config, &named)?;
        Ok(bases.into_iter().map(|base| base.name).collect())
    }

    #[test]
    fn bases_are_looked_for_before_anything_is_asked() {
        let (folder, config) = config("");
        for (named, expected) in [
            (&["models/none"][..], "would have to be downloaded"),
            (&["org/none-of-this-name"], "would have to be downloaded"),
            (&[" "], "empty"),
        ] {
            let error = format!("{:#}", names(&config, named).unwrap_err());
            assert!(
                error.contains(expected) && error.contains(named[0]),
                "{error}"
            );
        }
        std::fs::create_dir(folder.path().join("small")).unwrap();
        let error = names(&config, &["small", "small"]).unwrap_err();
        assert!(
            error.to_string().contains("small is named twice"),
            "{error}"
        );
        std::fs::write(folder.path().join("small/model.safetensors"), "abc").unwrap();
        let found = bases(&config, &["small".to_owned()]).unwrap();
        assert_eq!((found[0].weight_bytes, found[0].is_other), (Some(3), true));
    }

    #[test]
    fn other_servers_know_their_models_themselves() {
        let engine =
            "[engine]\nkind = \"upstream\"\nurl = \"http://127.0.0.1:9\"\nbase = \"models/none\"";
        let (_folder, unnamed) = config(engine);
        assert_eq!(names(&unnamed, &[]).unwrap(), ["models/none"]);
        let (_folder, named) = config(&format!("{engine}\nmodel = \"there/small\""));
        assert_eq!(names(&named, &[]).unwrap(), ["there/small"]);
        let found = bases(&named, &["there/large".to_owned()]).unwrap();
        assert_eq!(
            (&*found[0].name, found[0].weight_bytes),
            ("there/large", None)
        );
    }

    /// With what a child is started, the configuration is the same but for what is measured.
    #[test]
    fn a_child_differs_in_base_prompt_and_store_alone() {
        let (folder, config) = config("[server]\nops_listen = \"127.0.0.1:9100\"");
        let common = Common {
            config: Some(folder.path().join("retune.toml")),
            json: false,
        };
        let prompt = NamedPrompt {
            name: "short".to_owned(),
            text: "Briefly.".to_owned(),
        };
        let base = Base {
            name: "models/other".to_owned(),
            is_other: true,
            weight_bytes: None,
        };
        let one = One {
            common: &common,
            config: &config,
            base: &base,
            prompt: &prompt,
        };
        let file = folder.path().join("short.txt");
        std::fs::write(&file, &prompt.text).unwrap();
        let command = one.command(&config.tasks[0], &file, folder.path()).unwrap();
        let command = command.as_std();
        let text = |value: &std::ffi::OsStr| value.to_str().unwrap().to_owned();
        let env = command
            .get_envs()
            .filter_map(|(name, value)| Some((text(name), text(value?))));
        let read = Config::load(common.config.as_deref(), env).unwrap();
        let task = &read.tasks[0];
        assert_eq!((task.prompt.as_str(), task.probe_share), ("Briefly.", 0.0));
        assert_eq!(task.privacy.text_share, 0.0);
        assert_eq!(read.engine.base, "models/other");
        assert_ne!(read.store.url, config.store.url);
        assert!(read.server.listen.ip().is_loopback() && read.server.listen.port() == 0);
        assert_eq!(read.server.ops_listen.map(|at| at.port()), Some(0));
        let removed = command
            .get_envs()
            .find(|(name, _)| *name == client::API_KEY);
        assert_eq!(removed, Some((client::API_KEY.as_ref(), None)));
    }
}
