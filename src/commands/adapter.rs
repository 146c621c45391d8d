//! `retune adapter`: which adapters there are, and where they stand.
//!
//! All but loading is done in the ledger, beside a running server or a stopped one: a server notices within a second. What is to take
//! traffic is checked here as the engine will check it, and proves itself to the server before it gets any.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use retune_ledger::{Action, AdapterRef, Ledger, Stages, standings};
use retune_task::{Config, ModelName};
use serde_json::{Value, json};

use crate::cli::Common;
use crate::{client, output, setup};

#[derive(clap::Subcommand)]
#[command(
    long_about = "Look at adapters, bring them, and decide where they stand. A running server notices what was decided within a second; \
                  its log says so where it cannot serve it.",
    after_help = "Examples:\n  retune adapter list\n  retune adapter import --task triage ./my-lora\n  \
                  retune adapter canary triage@2 --share 0.1\n  retune adapter promote triage@2\n  \
                  retune adapter rollback triage@2        to the champion before it\n  \
                  retune adapter load triage@2 --server http://127.0.0.1:9000"
)]
pub(crate) enum Command {
    /// Every adapter and where it stands.
    List {
        /// Of this task alone.
        #[arg(long)]
        task: Option<String>,
    },
    /// One adapter: where it stands and stood, and how it came about.
    Show {
        /// As in triage@2.
        name: String,
    },
    /// Make a PEFT folder the task's next candidate; the same files are the same adapter.
    Import {
        /// The task that it answers for.
        #[arg(long)]
        task: String,
        /// With adapter_config.json and adapter_model.safetensors.
        folder: PathBuf,
    },
    /// Bring an adapter into a running server's memory, where it has to prove itself.
    Load {
        /// As in triage@2.
        name: String,
        #[command(flatten)]
        server: Server,
    },
    /// Take an adapter out of a running server's memory.
    Unload {
        /// As in triage@2.
        name: String,
        #[command(flatten)]
        server: Server,
    },
    /// Let an adapter answer for its task from now on.
    Promote {
        /// As in triage@2, or triage@base.
        name: String,
        #[command(flatten)]
        expected: Expected,
    },
    /// Give an adapter a share of its task's traffic.
    Canary {
        /// As in triage@2.
        name: String,
        /// From 0 to 1; 0 ends it.
        #[arg(long)]
        share: f64,
        #[command(flatten)]
        why: Why,
    },
    /// Ask an adapter a share of its task's traffic as well; its answers are kept, and sent to nobody.
    Shadow {
        /// As in triage@2.
        name: String,
        /// From 0 to 1; 0 ends it.
        #[arg(long)]
        share: f64,
        #[command(flatten)]
        why: Why,
    },
    /// Go back from the champion to the one before it.
    Rollback {
        /// The champion, as in triage@2, or triage@base.
        name: String,
        #[command(flatten)]
        expected: Expected,
    },
    /// Mark an adapter as one that shall never take traffic.
    Reject {
        /// As in triage@2.
        name: String,
        #[command(flatten)]
        why: Why,
    },
}

#[derive(clap::Args)]
pub(crate) struct Expected {
    /// Refuse unless this one answers now [default: whichever does].
    #[arg(long, value_name = "NAME")]
    expected_champion: Option<String>,
    #[command(flatten)]
    why: Why,
}

#[derive(clap::Args)]
pub(crate) struct Why {
    /// Why, for whoever looks at the adapter's history.
    #[arg(long)]
    reason: Option<String>,
}

#[derive(clap::Args)]
pub(crate) struct Server {
    /// The running server [default: the configuration's address].
    #[arg(long = "server", value_name = "URL")]
    url: Option<String>,
}

pub(crate) async fn run(common: &Common, command: &Command) -> Result<ExitCode> {
    let config = setup::config(common)?;
    match command {
        Command::Load { name, server } => load(common, &config, server, name, "load").await?,
        Command::Unload { name, server } => load(common, &config, server, name, "unload").await?,
        stored => {
            let ledger = Ledger::open_briefly(&config.store).await?;
            let desk = Desk {
                common,
                config,
                ledger,
            };
            desk.run(stored).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is done in the ledger.
struct Desk<'a> {
    common: &'a Common,
    config: Arc<Config>,
    ledger: Ledger,
}

impl Desk<'_> {
    async fn run(&self, command: &Command) -> Result<()> {
        match command {
            Command::List { task } => self.list(task.as_deref()).await,
            Command::Show { name } => self.show(name).await,
            Command::Import { task, folder } => self.import(task, folder).await,
            Command::Promote { name, expected } => {
                let is = expected.expected_champion.as_deref();
                self.decide(name, Action::Promote, is, &expected.why).await
            }
            Command::Rollback { name, expected } => {
                let is = expected.expected_champion.as_deref();
                self.decide(name, Action::RollBack, is, &expected.why).await
            }
            Command::Canary { name, share, why } => {
                self.decide(name, Action::Canary(*share), None, why).await
            }
            Command::Shadow { name, share, why } => {
                self.decide(name, Action::Shadow(*share), None, why).await
            }
            Command::Reject { name, why } => self.decide(name, Action::Reject, None, why).await,
            Command::Load { .. } | Command::Unload { .. } => bail!("a server's memory is its own"),
        }
    }

    async fn list(&self, task: Option<&str>) -> Result<()> {
        let mut tasks: Vec<String> = match task {
            Some(task) => vec![task.to_owned()],
            None => self.config.tasks.iter().map(|t| t.name.clone()).collect(),
        };
        match task {
            Some(task) => self.has_task(task).await?,
            // With those that fine-tuning jobs made, and those that the configuration has no more.
            None => {
                let mut others = self.ledger.tasks_with_adapters().await?;
                others.retain(|name| !tasks.contains(name));
                tasks.extend(others);
            }
        }
        let mut items = Vec::new();
        for name in &tasks {
            let stages = self.ledger.stages(name).await?;
            let adapters = self.ledger.adapters(name).await?;
            items.extend(adapters.iter().map(|adapter| stages.item(adapter)));
        }
        print(self.common, &items)
    }

    async fn show(&self, name: &str) -> Result<()> {
        let (task, adapter) = self.find(name).await?;
        let stages = self.ledger.stages(&task).await?;
        let Some(adapter) = adapter else {
            return print(self.common, &[stages.baseline_item(&task)]);
        };
        let history = standings(&self.ledger.stages_history(&task).await?, adapter.number);
        let mut item = stages.item(&adapter);
        if self.common.json {
            item["history"] = json!(history);
            item["manifest"] = json!(adapter.manifest);
            item["forgotten"] = json!(self.ledger.forgotten_of(&adapter).await?);
            return output::json(&item);
        }
        print(self.common, &[item])?;
        let share = |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |s| s.to_string());
        let text = |text: &Option<String>| text.as_deref().unwrap_or("-").to_owned();
        let rows: Vec<Vec<String>> = history
            .iter()
            .map(|h| {
                vec![
                    h.at.map_or_else(|| "-".to_owned(), |at| at.to_rfc3339()),
                    h.stage.to_string(),
                    share(h.canary_share),
                    share(h.shadow_share),
                    text(&h.by),
                    text(&h.reason),
                ]
            })
            .collect();
        output::line("")?;
        output::table(
            &["since", "stage", "canary", "shadow", "by", "reason"],
            &rows,
        )?;
        output::line("")?;
        output::line(serde_json::to_string_pretty(&adapter.manifest)?)
    }

    async fn import(&self, task: &str, folder: &std::path::Path) -> Result<()> {
        let base = setup::base(&self.config).await?;
        let folder = std::path::absolute(folder)?;
        let imported =
            retune_serve::import(&self.ledger, &self.config, task, &base, &folder).await?;
        let stages = self.ledger.stages(task).await?;
        print(self.common, &[stages.item(&imported.adapter)])
    }

    async fn decide(
        &self,
        name: &str,
        action: Action,
        expected_champion: Option<&str>,
        why: &Why,
    ) -> Result<()> {
        let (task, adapter) = self.find(name).await?;
        let stages = self.ledger.stages(&task).await?;
        if let Some(expected) = expected_champion {
            stages.expect_champion(&task, expected)?;
        }
        let history = self.ledger.stages_history(&task).await?;
        let number = adapter.as_ref().map(|a| a.number);
        let after = stages.after(&task, number, action, &history)?;
        if after != stages {
            let by = std::env::var("USER").map_or_else(
                |_| "command line".to_owned(),
                |user| format!("command line, {user}"),
            );
            let after = after.decided(Some(by), why.reason.as_deref())?;
            self.fit(&task, &after, &stages).await?;
            let decided = self.ledger.set_stages(&task, stages.seq, after).await;
            decided.with_context(|| format!("{name} was not decided on"))?;
        }
        let stages = self.ledger.stages(&task).await?;
        print(
            self.common,
            &[match &adapter {
                Some(adapter) => stages.item(adapter),
                None => stages.baseline_item(&task),
            }],
        )
    }

    /// Whether the engine will take those that will be asked from now on.
    async fn fit(&self, task: &str, after: &Stages, before: &Stages) -> Result<()> {
        let new = after.newly_asked(before);
        if new.is_empty() {
            return Ok(());
        }
        let base = setup::base(&self.config).await?;
        for number in new {
            let adapter = self.ledger.adapter(task, number).await?;
            retune_serve::check_adapter(&self.ledger, &base, &adapter).await?;
        }
        Ok(())
    }

    /// A task is one of the configuration's, or one that has adapters: a fine-tuning job's is in no configuration.
    async fn has_task(&self, name: &str) -> Result<()> {
        let known = self.ledger.tasks_with_adapters().await?;
        match known.iter().any(|known| known == name) {
            true => Ok(()),
            false => setup::task(&self.config, name).map(drop),
        }
    }

    /// The task of `name`, and its adapter; none for the baseline.
    async fn find(&self, name: &str) -> Result<(String, Option<AdapterRef>)> {
        let (task, number) = match ModelName::parse(name) {
            Some(ModelName::Adapter { task, number }) => (task, Some(number)),
            Some(ModelName::Baseline(task)) => (task, None),
            _ => bail!("{name:?} is no adapter's name; expected TASK@NUMBER or TASK@base"),
        };
        self.has_task(&task).await?;
        let adapter = match number {
            Some(number) => {
                let found = self.ledger.adapter(&task, number).await;
                let hint =
                    |e| anyhow!("{e}; `retune adapter list --task {task}` says which there are");
                Some(found.map_err(hint)?)
            }
            None => None,
        };
        Ok((task, adapter))
    }
}

/// Has a running server load or unload an adapter.
async fn load(
    common: &Common,
    config: &Config,
    server: &Server,
    name: &str,
    action: &str,
) -> Result<()> {
    let url = client::server(server.url.as_deref(), config)?;
    let request = client::new(config, &url, None)?
        .post(format!("{url}/admin/adapters/{name}/{action}"))
        .json(&json!({}));
    let response = request.send().await.with_context(|| {
        format!("no server at {url}; start one with `retune up`, or name it with --server")
    })?;
    let status = response.status();
    let item: Value = response
        .json()
        .await
        .with_context(|| format!("{url} answered {status} without JSON"))?;
    if !status.is_success() {
        let message = item["error"]["message"].as_str().unwrap_or(status.as_str());
        if status == reqwest::StatusCode::UNAUTHORIZED {
            bail!(
                "{message} This command sends the key that is in {}.",
                client::API_KEY
            );
        }
        bail!("{message}");
    }
    print(common, &[item])
}

fn print(common: &Common, items: &[Value]) -> Result<()> {
    if common.json {
        return items.iter().try_for_each(output::json);
    }
    let text = |item: &Value, key: &str| match &item[key] {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    };
    let digest = |item: &Value| text(item, "digest").chars().take(12).collect();
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|item| {
            vec![
                text(item, "name"),
                text(item, "stage"),
                text(item, "canary_share"),
                text(item, "shadow_share"),
                text(item, "source"),
                digest(item),
                text(item, "created"),
            ]
        })
        .collect();
    output::table(
        &[
            "name", "stage", "canary", "shadow", "source", "digest", "created",
        ],
        &rows,
    )
}
