//! What commands have in common: the configuration, the base's folder, where its server is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use retune_task::{Config, EngineKind};

use crate::cli::Common;

/// The base that the binary carries.
const POCKET: &str = "models/pocket";

/// Reads the configuration; the error names everything that is wrong with it.
pub(crate) fn config(common: &Common) -> Result<Arc<Config>> {
    // A variable that is not UTF-8 can only be somebody else's.
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(Arc::new(Config::load(common.config.as_deref(), env)?))
}

/// The base's folder: beside the configuration, else unpacked from the binary. Where other servers hold the base, it need not be there
/// before something is trained on it.
pub(crate) fn base(config: &Config) -> Result<PathBuf> {
    let folder = config.source.folder().join(&config.engine.base);
    if folder.is_dir() {
        return Ok(folder);
    }
    if config.engine.base == POCKET {
        let folder = retune_pocket::default_folder();
        return retune_pocket::unpack(&folder)
            .with_context(|| format!("cannot unpack the pocket model into {}", folder.display()));
    }
    if matches!(config.engine.kind, EngineKind::Upstream(_)) {
        return Ok(folder);
    }
    bail!(
        "no model at {} (engine.base = \"{}\"): name a folder with config.json, tokenizer.json and model.safetensors, \
         or leave engine.base out to use the pocket model that Retune carries",
        folder.display(),
        config.engine.base
    )
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
