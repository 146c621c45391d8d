//! `retune keys`: who may call the server.

use std::process::ExitCode;

use anyhow::{Result, bail};
use retune_ledger::{Key, Ledger, Role};
use serde_json::{Value, json};

use crate::cli::Common;
use crate::{client, output, setup};

/// The longest name of a key, in characters.
const NAME: usize = 100;

#[derive(clap::Subcommand)]
#[command(
    long_about = "Make, list and revoke API keys.\n\nWithout any key the server listens on loopback only and grants everybody every \
                  role. Once there is one, every request needs one: `Authorization: Bearer rt-…`. A running server sees what is \
                  made and revoked here within two seconds.\n\n\
                  Roles: app asks and gives feedback; rater too, and its corrections train; admin may do everything. Commands that \
                  ask a server (adapter, retrain) send the key in RETUNE_API_KEY: an admin's.",
    after_help = "Examples:\n  retune keys create --name shop --role app --requests-per-minute 600\n  \
                  retune keys create --name ops --role admin --json | jq -r .key\n  retune keys list\n  retune keys revoke abcd1234"
)]
pub(crate) enum Command {
    /// Make a key, and print it: the only time that it is shown.
    Create {
        /// Whose it is: for people.
        #[arg(long, value_parser = name)]
        name: String,
        /// What it is good for.
        #[arg(long)]
        role: RoleArg,
        /// Requests that it may make in a minute [default: any number].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        requests_per_minute: Option<u32>,
        /// Tokens, of prompts and answers, that it may use in a minute [default: any number].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        tokens_per_minute: Option<u32>,
    },
    /// Every key, revoked ones too: all but what opens the door.
    List,
    /// Take a key back for good.
    Revoke {
        /// Its id, as `retune keys list` shows it.
        id: String,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum RoleArg {
    /// Asks, and gives feedback.
    App,
    /// The same, and its corrections train.
    Rater,
    /// Everything.
    Admin,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::App => Role::App,
            RoleArg::Rater => Role::Rater,
            RoleArg::Admin => Role::Admin,
        }
    }
}

fn name(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.chars().count() > NAME || text.chars().any(char::is_control) {
        return Err(format!(
            "expected 1 to {NAME} characters, without line breaks"
        ));
    }
    Ok(text.to_owned())
}

pub(crate) async fn run(common: &Common, command: &Command) -> Result<ExitCode> {
    let config = setup::config(common)?;
    setup::says_which_store(&config);
    let ledger = Ledger::open_briefly(&config.store).await?;
    match command {
        Command::Create {
            name,
            role,
            requests_per_minute,
            tokens_per_minute,
        } => {
            let limits = (*requests_per_minute, *tokens_per_minute);
            create(common, &ledger, name, (*role).into(), limits).await?;
        }
        Command::List => return list(common, &ledger).await,
        Command::Revoke { id } => revoke(common, &ledger, id).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(
    common: &Common,
    ledger: &Ledger,
    name: &str,
    role: Role,
    (requests_per_minute, tokens_per_minute): (Option<u32>, Option<u32>),
) -> Result<()> {
    let first = ledger.keys().await?.is_empty();
    let (mut key, text) = Key::new(name, role)?;
    key.requests_per_minute = requests_per_minute;
    key.tokens_per_minute = tokens_per_minute;
    if !ledger.put_key(&key).await? {
        bail!("the id {} is taken; try again", key.id);
    }
    if common.json {
        let mut value = value(&key);
        value["key"] = text.reveal().into();
        return output::json(&value);
    }
    output::line(text.reveal())?;
    output::line(
        "Keep it now: it cannot be shown again, the store has only a hash of its secret.",
    )?;
    output::line(format_args!(
        "To take it back: retune keys revoke {}",
        key.id
    ))?;
    if first {
        output::line(format_args!(
            "It is the first key: from now on every request needs one, and `retune adapter` and `retune retrain` an admin's in {}.",
            client::API_KEY
        ))?;
    }
    Ok(())
}

/// All keys that can be read; where some cannot, they are named after them, and the exit code is 1.
async fn list(common: &Common, ledger: &Ledger) -> Result<ExitCode> {
    let list = ledger.keys().await?;
    if common.json {
        list.keys
            .iter()
            .try_for_each(|key| output::json(&value(key)))?;
    } else {
        let limit = |n: Option<u32>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let rows: Vec<Vec<String>> = list
            .keys
            .iter()
            .map(|key| {
                vec![
                    key.id.clone(),
                    key.name.clone(),
                    key.role.to_string(),
                    limit(key.requests_per_minute),
                    limit(key.tokens_per_minute),
                    time(key.created),
                    key.revoked.map_or_else(|| "-".to_owned(), time),
                ]
            })
            .collect();
        let head = [
            "id",
            "name",
            "role",
            "requests/min",
            "tokens/min",
            "created",
            "revoked",
        ];
        output::table(&head, &rows)?;
    }
    list.damaged.iter().for_each(output::problem);
    Ok(match list.damaged.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

async fn revoke(common: &Common, ledger: &Ledger, id: &str) -> Result<()> {
    let now = ledger.revoke_key(id).await?;
    if common.json {
        return output::json(&json!({ "id": id, "revoked_now": now }));
    }
    output::line(match now {
        true => format!("{id} is revoked: running servers refuse it within two seconds."),
        false => format!("{id} was revoked already."),
    })
}

fn time(time: chrono::DateTime<chrono::Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// Never the hash: it is of no use to whoever reads a list.
fn value(key: &Key) -> Value {
    json!({
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "created": key.created,
        "revoked": key.revoked,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_name_is_one_line() {
        assert_eq!(name(" shop ").unwrap(), "shop");
        for wrong in ["", "  ", "a\nb", &"x".repeat(101)] {
            assert!(name(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn neither_secret_nor_hash_is_listed() {
        let (key, text) = Key::new("shop", Role::App).unwrap();
        let shown = value(&key).to_string();
        assert!(shown.contains(&key.id) && !shown.contains(&key.hash));
        assert!(!shown.contains(&text.reveal()[12..]));
    }
}
