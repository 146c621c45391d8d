//! `retune adapter`: what a running server's adapters are, and where they stand.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cli::Common;
use crate::{client, output, setup};

#[derive(clap::Subcommand)]
#[command(
    long_about = "List, load, promote or reject adapters of a running server. Where it has keys, an admin's is expected in RETUNE_API_KEY.",
    after_help = "Examples:\n  retune adapter list\n  retune adapter load triage@2\n  retune adapter promote triage@2\n  \
                  retune adapter promote triage@base      one step back, to the base with its full prompt\n  \
                  retune adapter list --server http://127.0.0.1:9000 --json"
)]
pub(crate) enum Command {
    /// Every adapter, its stage, and whether it is in memory.
    List {
        #[command(flatten)]
        server: Server,
    },
    /// Bring an adapter into memory: its digest is checked, and it has to answer once.
    Load {
        /// As in triage@2.
        name: String,
        #[command(flatten)]
        server: Server,
    },
    /// Take an adapter out of memory.
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
        /// Refuse unless this one answers now [default: whichever does].
        #[arg(long, value_name = "NAME")]
        expected_champion: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Mark an adapter as one that shall never answer, and take it out of memory.
    Reject {
        /// As in triage@2.
        name: String,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(clap::Args)]
pub(crate) struct Server {
    /// The running server [default: the configuration's address].
    #[arg(long = "server", value_name = "URL")]
    url: Option<String>,
}

pub(crate) async fn run(common: &Common, command: &Command) -> Result<ExitCode> {
    match command {
        Command::List { server } => {
            let list = Admin::new(common, server)?.list().await?;
            print(common, &list)?;
        }
        Command::Load { name, server } => act(common, server, name, "load", &json!({})).await?,
        Command::Unload { name, server } => act(common, server, name, "unload", &json!({})).await?,
        Command::Reject { name, server } => act(common, server, name, "reject", &json!({})).await?,
        Command::Promote {
            name,
            expected_champion,
            server,
        } => {
            let expected = match expected_champion {
                Some(expected) => expected.clone(),
                None => champion(&Admin::new(common, server)?.list().await?, name)?,
            };
            act(
                common,
                server,
                name,
                "promote",
                &json!({"expected_champion": expected}),
            )
            .await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn act(common: &Common, server: &Server, name: &str, verb: &str, body: &Value) -> Result<()> {
    let item = Admin::new(common, server)?.post(name, verb, body).await?;
    print(common, std::slice::from_ref(&item))
}

/// Who answers for the task of `name` now: the baseline where no adapter does.
fn champion(list: &[Value], name: &str) -> Result<String> {
    let Some((task, _)) = name.split_once('@') else {
        bail!("{name:?} is no adapter's name; expected TASK@NUMBER or TASK@base");
    };
    let champion = list
        .iter()
        .find(|item| item["task"] == task && item["stage"] == "champion");
    Ok(champion
        .and_then(|item| item["name"].as_str())
        .map_or_else(|| format!("{task}@base"), str::to_owned))
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
                text(item, "loaded"),
                digest(item),
                text(item, "created"),
            ]
        })
        .collect();
    output::table(&["name", "stage", "loaded", "digest", "created"], &rows)
}

/// The admin routes of one server.
struct Admin {
    http: reqwest::Client,
    url: String,
}

impl Admin {
    fn new(common: &Common, server: &Server) -> Result<Self> {
        let config = setup::config(common)?;
        let url = client::server(server.url.as_deref(), &config)?;
        Ok(Self {
            http: client::new(&config, &url, None)?,
            url,
        })
    }

    async fn list(&self) -> Result<Vec<Value>> {
        let mut value = self
            .send(self.http.get(format!("{}/admin/adapters", self.url)))
            .await?;
        match value["data"].take() {
            Value::Array(items) => Ok(items),
            _ => bail!(
                "{}/admin/adapters answered no list; is that a Retune server?",
                self.url
            ),
        }
    }

    async fn post(&self, name: &str, verb: &str, body: &Value) -> Result<Value> {
        self.send(
            self.http
                .post(format!("{}/admin/adapters/{name}/{verb}", self.url))
                .json(body),
        )
        .await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Value> {
        let response = request.send().await.with_context(|| {
            format!(
                "no server at {}; start one with `retune up`, or name it with --server",
                self.url
            )
        })?;
        let status = response.status();
        let value: Value = response
            .json()
            .await
            .with_context(|| format!("{} answered {status} without JSON", self.url))?;
        if !status.is_success() {
            bail!(
                "{}",
                value["error"]["message"]
                    .as_str()
                    .unwrap_or(status.as_str())
            );
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_champion_is_the_baseline_until_an_adapter_is_promoted() {
        let mut list = vec![
            json!({"name": "a@1", "task": "a", "stage": "retired"}),
            json!({"name": "b@1", "task": "b", "stage": "champion"}),
        ];
        assert_eq!(champion(&list, "a@2").unwrap(), "a@base");
        list.push(json!({"name": "a@2", "task": "a", "stage": "champion"}));
        assert_eq!(champion(&list, "a@base").unwrap(), "a@2");
        assert!(champion(&list, "a").is_err());
    }
}
