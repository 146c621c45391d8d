//! What commands have in common: the configuration, the base's folder, where its server is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use retune_monitor::features::vectors::TokenVectors;
use retune_task::{Config, ConfigSource, EngineKind, Task};

use crate::cli::Common;
use crate::{hub, output};

/// The configuration's task of that name; the error names those that there are.
pub(crate) fn task<'a>(config: &'a Config, name: &str) -> Result<&'a Task> {
    let known = || -> Vec<&str> { config.tasks.iter().map(|task| task.name.as_str()).collect() };
    let task = config.tasks.iter().find(|task| task.name == name);
    task.map(AsRef::as_ref).ok_or_else(|| {
        anyhow!(
            "there is no task {name:?}; the configuration has {}",
            known().join(", ")
        )
    })
}

/// The base that the binary carries.
const POCKET: &str = "models/pocket";

/// Reads the configuration; the error names everything that is wrong with it.
pub(crate) fn config(common: &Common) -> Result<Arc<Config>> {
    // A variable that is not UTF-8 can only be somebody else's.
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(Arc::new(Config::load(common.config.as_deref(), env)?))
}

/// Said where nobody has named a configuration, and it would take a second look to see that another store was asked than the one that was meant.
pub(crate) fn says_which_store(config: &Config) {
    if let ConfigSource::BuiltIn = config.source {
        output::problem(format_args!(
            "there is no retune.toml in this folder: this is about the built-in configuration, and the store {}",
            config.store.url
        ));
    }
}

/// Where a base is.
enum Base {
    /// A folder, or a GGUF file in one.
    Here(PathBuf),
    /// On the hub, and not whole on this machine.
    OnHub(Box<hub::Model>),
}

/// Looks for a base: beside the configuration, else in the binary, from which it is unpacked, else by its id in the hub's cache.
fn look_for_base(config: &Config, named: &str) -> Result<Base> {
    let path = config.source.folder().join(named);
    if path.is_dir() || (path.is_file() && path.extension().is_some_and(|e| e == "gguf")) {
        return Ok(Base::Here(path));
    }
    if named == POCKET {
        let folder = retune_pocket::default_folder();
        let unpacked = retune_pocket::unpack(&folder)
            .with_context(|| format!("cannot unpack the pocket model into {}", folder.display()));
        return unpacked.map(Base::Here);
    }
    if let Some(model) = hub::Model::named(named) {
        return Ok(match model.cached() {
            Some(folder) => Base::Here(folder),
            None => Base::OnHub(Box::new(model)),
        });
    }
    if held_elsewhere(config) {
        return Ok(Base::Here(path));
    }
    Err(no_base(config, named))
}

fn no_base(config: &Config, named: &str) -> anyhow::Error {
    anyhow!(
        "no model at {} (engine.base = \"{named}\"); expected a folder with config.json, tokenizer.json and model.safetensors, a GGUF \
         file, or the Hugging Face id of a model; without engine.base it is the pocket model that Retune carries",
        config.source.folder().join(named).display(),
    )
}

/// What a start would take for the base, for people to read; a hub is asked whether it has it.
pub(crate) fn base_told(config: &Config) -> Result<String> {
    match look_for_base(config, &config.engine.base)? {
        Base::Here(path) => Ok(path.display().to_string()),
        Base::OnHub(model) if held_elsewhere(config) => Ok(model.to_string()),
        Base::OnHub(model) => {
            model
                .look_up()
                .with_context(|| no_base(config, &config.engine.base))?;
            Ok(format!(
                "{model}, to be downloaded from {}",
                model.endpoint()
            ))
        }
    }
}

/// The base's folder, if its files are on this machine: where little depends on it nothing is downloaded.
pub(crate) fn base_here(config: &Config) -> Option<PathBuf> {
    match look_for_base(config, &config.engine.base) {
        Ok(Base::Here(path)) if path.is_dir() => Some(path),
        _ => None,
    }
}

/// A base that is tried and not configured, named as `engine.base` names one; nothing is downloaded for it.
pub(crate) fn other_base(config: &Config, named: &str) -> Result<PathBuf> {
    match look_for_base(config, named)? {
        Base::Here(path) => Ok(path),
        Base::OnHub(model) => bail!(
            "{model} is not whole on this machine and would have to be downloaded from {}, which is not done to try it; download it \
             with `hf download`, or leave it out",
            model.endpoint()
        ),
    }
}

/// The vectors of words that the monitor compares prompts by: of a model that the configuration names, which then has to have some; else
/// the base's, if its files are on this machine.
pub(crate) fn vectors_here(config: &Config) -> Result<Option<TokenVectors>> {
    let Some(named) = &config.monitor.embeddings else {
        let Ok(Base::Here(base)) = look_for_base(config, &config.engine.base) else {
            return Ok(None);
        };
        let vectors = match base.is_dir() {
            true => TokenVectors::open(&base)?,
            false => None,
        };
        if vectors.is_none() {
            tracing::info!(base = %base.display(), "no vectors of words were found in its files; prompts are compared by their words alone");
        }
        return Ok(vectors);
    };
    let folder = config.source.folder().join(named);
    let vectors = TokenVectors::open(&folder)?;
    vectors.map(Some).ok_or_else(|| {
        anyhow!(
            "no vectors of words in {} (monitor.embeddings = \"{named}\"); expected a folder with tokenizer.json and a table of embeddings in \
             safetensors files, such as a model's of model2vec, or without monitor.embeddings the base's",
            folder.display()
        )
    })
}

/// The base's files, downloaded if they are on the hub alone.
pub(crate) async fn base(config: &Config) -> Result<PathBuf> {
    let model = match look_for_base(config, &config.engine.base)? {
        Base::Here(path) => return Ok(path),
        Base::OnHub(model) => model,
    };
    let downloaded = tokio::task::spawn_blocking(move || model.download()).await?;
    downloaded.with_context(|| no_base(config, &config.engine.base))
}

/// What a server needs of the base: where other servers hold it, a name alone, until something is trained on it.
pub(crate) async fn base_to_serve(config: &Config) -> Result<PathBuf> {
    match look_for_base(config, &config.engine.base)? {
        Base::OnHub(_) if held_elsewhere(config) => {
            Ok(config.source.folder().join(&config.engine.base))
        }
        _ => base(config).await,
    }
}

fn held_elsewhere(config: &Config) -> bool {
    matches!(config.engine.kind, EngineKind::Upstream(_))
}

/// Where a process on this machine finds the configuration's server, which listens there.
pub(crate) fn url(config: &Config, listen: SocketAddr) -> String {
    let scheme = if config.server.tls.is_some() {
        "https"
    } else {
        "http"
    };
    format!("{scheme}://{}", reached(listen))
}

/// Where metrics and probes are found if they are not on `listen`: never encrypted.
pub(crate) fn ops_url(listen: SocketAddr) -> String {
    format!("http://{}", reached(listen))
}

fn reached(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_address_for_all_is_reached_on_this_machine() {
        let at = |listen: &str| ops_url(listen.parse().unwrap());
        assert_eq!(at("0.0.0.0:80"), "http://127.0.0.1:80");
        assert_eq!(at("[::]:80"), "http://[::1]:80");
        assert_eq!(at("127.0.0.1:8080"), "http://127.0.0.1:8080");
    }
}
