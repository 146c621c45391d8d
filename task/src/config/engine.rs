//! `[engine]`: what generates, inside this process or on servers elsewhere.

use std::time::Duration;

use super::Engine;
use super::reader::{Node, Section, Value};

/// The base where none is named.
const POCKET: &str = "models/pocket";
/// Keys that only `kind = "upstream"` has.
const UPSTREAM_KEYS: [&str; 9] = [
    "url",
    "api_key_env",
    "upstream",
    "model",
    "adapters_path",
    "connect_timeout_seconds",
    "first_byte_timeout_seconds",
    "idle_timeout_seconds",
    "max_connections",
];
const ADDRESS: &str = "a server's address, such as \"http://127.0.0.1:8000\"";

/// What generates.
#[derive(Debug, Clone, PartialEq)]
pub enum EngineKind {
    /// The engine inside this process.
    Embedded,
    /// OpenAI-compatible servers.
    Upstream(Upstream),
}

/// The keys of `kind = "upstream"`.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// At least one, each with another address.
    pub servers: Vec<UpstreamServer>,
    /// The base's name there; the first of a server's models where it is not set.
    pub model: Option<String>,
    /// Where the servers see the store's folder of adapters; the same path where it is not set.
    pub adapters_path: Option<String>,
    /// Seconds until a connection must stand.
    pub connect_timeout_seconds: f64,
    /// Seconds until an answer must begin.
    pub first_byte_timeout_seconds: f64,
    /// Seconds that may pass within an answer without a byte of it.
    pub idle_timeout_seconds: f64,
    /// Idle connections that are kept to each server.
    pub max_connections: usize,
}

/// One OpenAI-compatible server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamServer {
    /// Its address, without a slash and without `/v1` at the end.
    pub url: String,
    /// The environment's variable that holds its key.
    pub api_key_env: Option<String>,
    /// Its share of the requests, relative to the others' weights.
    pub weight: u32,
}

pub(super) fn read(mut s: Section<'_>) -> Engine {
    let kinds = [("embedded", false), ("upstream", true)];
    let kind = if s.word("kind", &kinds, false) {
        s.belong(&["adapters_memory_mib"], "kind = \"embedded\"");
        EngineKind::Upstream(upstream(&mut s))
    } else {
        s.belong(&UPSTREAM_KEYS, "kind = \"upstream\"");
        EngineKind::Embedded
    };
    // Servers take many requests at once, and hold them back themselves. The embedded engine computes one at a time, so that each one
    // that waits puts off the next one's first token: with 4 behind 8 it comes within twice the time that it takes with none.
    let (named, max_running, max_queue) = match &kind {
        EngineKind::Embedded => (None, 8, 4),
        EngineKind::Upstream(upstream) => (upstream.model.clone(), 256, 64),
    };
    let base = s.text("base", "a model's folder");
    let base = base.map_or_else(
        || named.unwrap_or_else(|| POCKET.to_owned()),
        |(text, _)| text,
    );
    let engine = Engine {
        kind,
        base,
        max_loaded: s.size("max_loaded", 1, 1000, 4),
        adapters_memory_mib: s.value(
            "adapters_memory_mib",
            "a whole number from 1 to 16777216",
            |v| match v {
                Value::Integer(i) => u64::try_from(*i)
                    .ok()
                    .filter(|mib| (1..=1 << 24).contains(mib)),
                _ => None,
            },
        ),
        max_running: s.size("max_running", 1, 4096, max_running),
        max_queue: s.size("max_queue", 0, 100_000, max_queue),
        deadline: Duration::from_secs_f64(
            s.positive("deadline_seconds", 86_400.0).unwrap_or(300.0),
        ),
    };
    s.finish();
    engine
}

fn upstream(s: &mut Section<'_>) -> Upstream {
    let servers = match s.take("upstream") {
        Some(node) => listed(s, node),
        None => {
            if !s.has("url") {
                let what = format!("is missing; expected {ADDRESS}, or [[engine.upstream]]");
                s.log.add(&s.place, &s.path("url"), what);
            }
            let (url, api_key_env) = (url(s), variable(s));
            let one = |url| UpstreamServer {
                url,
                api_key_env,
                weight: 1,
            };
            url.map(one).into_iter().collect()
        }
    };
    Upstream {
        servers,
        model: s
            .text("model", "the base's name upstream")
            .map(|(text, _)| text),
        adapters_path: adapters_path(s),
        connect_timeout_seconds: s.positive("connect_timeout_seconds", 3600.0).unwrap_or(5.0),
        first_byte_timeout_seconds: s
            .positive("first_byte_timeout_seconds", 86_400.0)
            .unwrap_or(60.0),
        idle_timeout_seconds: s.positive("idle_timeout_seconds", 86_400.0).unwrap_or(60.0),
        max_connections: s.size("max_connections", 1, 100_000, 64),
    }
}

/// `[[engine.upstream]]`
fn listed(s: &mut Section<'_>, node: Node) -> Vec<UpstreamServer> {
    for key in ["url", "api_key_env"] {
        if let Some(node) = s.take(key) {
            let what =
                "stands beside [[engine.upstream]]; expected it inside of each [[engine.upstream]]";
            s.log.add(&node.place, &s.path(key), what);
        }
    }
    let key = s.path("upstream");
    let list = match node.value {
        Value::List(list) if !list.is_empty() => list,
        _ => {
            let what = "expected tables, each begun by [[engine.upstream]], at least one";
            s.log.add(&node.place, &key, what);
            return Vec::new();
        }
    };
    let mut servers: Vec<UpstreamServer> = Vec::new();
    for (i, node) in list.into_iter().enumerate() {
        let Value::Table(table) = node.value else {
            let what = "expected a table, begun by [[engine.upstream]]";
            s.log.add(&node.place, &key, what);
            continue;
        };
        let mut one = Section::new(s.log, node.place.clone(), format!("{key}[{i}]"), table);
        if !one.has("url") {
            let what = format!("is missing; expected {ADDRESS}");
            s.log.add(&node.place, &one.path("url"), what);
        }
        let (url, api_key_env) = (url(&mut one), variable(&mut one));
        let weight = u32::try_from(one.count("weight", 1, 1000, 1)).unwrap_or(1);
        let url_key = one.path("url");
        one.finish();
        let Some(url) = url else { continue };
        if servers.iter().any(|other| other.url == url) {
            let what = format!("is {url:?}, as an earlier one's is; expected another address");
            s.log.add(&node.place, &url_key, what);
        }
        servers.push(UpstreamServer {
            url,
            api_key_env,
            weight,
        });
    }
    servers
}

pub(super) fn url(s: &mut Section<'_>) -> Option<String> {
    let (text, place) = s.text("url", ADDRESS)?;
    match address(&text) {
        Ok(url) => Some(url),
        Err(what) => {
            s.log.add(&place, &s.path("url"), what);
            None
        }
    }
}

/// An address without what clients put behind it; the error never shows a password.
fn address(text: &str) -> Result<String, String> {
    if text.contains('@') {
        return Err("has a user or a password in it; expected the address alone, and the key in the variable that api_key_env names".to_owned());
    }
    let rest = ["http://", "https://"]
        .into_iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    let host = rest.and_then(|rest| rest.split('/').next());
    let plain = |c: char| c.is_ascii_graphic() && !"?#\\\"<>".contains(c);
    if !host.is_some_and(is_host) || !text.chars().all(plain) {
        return Err(format!("is {text:?}; expected {ADDRESS}"));
    }
    let text = text.trim_end_matches('/');
    let text = text.strip_suffix("/v1").unwrap_or(text);
    Ok(text.trim_end_matches('/').to_owned())
}

/// A name or an address, with or without a port.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    !host.is_empty() && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// The name of a variable. A key that was written there instead must not end up on a screen.
pub(super) fn variable(s: &mut Section<'_>) -> Option<String> {
    const EXPECTED: &str = "the name of an environment variable, in upper-case letters, digits and _, such as \"UPSTREAM_KEY\"";
    let (name, place) = s.text("api_key_env", EXPECTED)?;
    let upper = |b: u8| b.is_ascii_uppercase() || b == b'_';
    let right = name
        .bytes()
        .enumerate()
        .all(|(i, b)| upper(b) || (i > 0 && b.is_ascii_digit()));
    if !right {
        let what =
            format!("is no such name, and not shown, since it may be a key; expected {EXPECTED}");
        s.log.add(&place, &s.path("api_key_env"), what);
    }
    right.then_some(name)
}

fn adapters_path(s: &mut Section<'_>) -> Option<String> {
    const EXPECTED: &str =
        "the whole path under which the servers see the store's folder of adapters";
    let (path, place) = s.text("adapters_path", EXPECTED)?;
    if !path.starts_with('/') {
        let what = format!("is {path:?}; expected {EXPECTED}, such as \"/mnt/retune/adapters\"");
        s.log.add(&place, &s.path("adapters_path"), what);
    }
    Some(path.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::address;

    #[test]
    fn an_address_is_kept_without_what_clients_append() {
        for (text, url) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("http://vllm:8000/v1/", "http://vllm:8000"),
            (
                "https://models.example/team/v1",
                "https://models.example/team",
            ),
            ("http://[::1]:8000/", "http://[::1]:8000"),
            ("http://[::1]", "http://[::1]"),
        ] {
            assert_eq!(address(text).unwrap(), url);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_and_passwords_are_not_shown() {
        for text in [
            "127.0.0.1:8000",
            "ftp://host",
            "http://",
            "http://:80",
            "http://host:0",
            "http://host:99999",
            "http://host/?key=1",
            "http://ho st",
        ] {
            assert!(address(text).unwrap_err().contains(text), "{text}");
        }
        let refused = address("http://me:secret@host").unwrap_err();
        assert!(!refused.contains("secret"), "{refused}");
    }
}
