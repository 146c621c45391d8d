//! From a file, or the built-in one, and the environment, to a checked configuration.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use toml::de::DeTable;

use super::reader::{Log, Node, Place, Section, Table, Value, WHOLE_FILE};
use super::{
    Config, ConfigSource, Monitor, OnLogFailure, Problem, Problems, Server, Store, Tls, Training,
    cost, engine, tasks,
};

const BUILT_IN: &str = include_str!("../../builtin/retune.toml");
const PREFIX: &str = "RETUNE_";
const PORT: u16 = 8080;
/// Where a store may be, other than in a folder.
const STORES: [&str; 4] = ["s3", "gs", "az", "abfss"];

impl Config {
    /// Reads `path`; without one `retune.toml` in the current folder, and where there is none the built-in
    /// configuration. `env` are (name, value) pairs: `RETUNE_<SECTION>__<KEY>` go over the file's values, a task's by its
    /// name (`RETUNE_TASK__TRIAGE__RETRAIN__MIN_EXAMPLES`); other `RETUNE_…` variables are not configuration.
    pub fn load(
        path: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Config, Problems> {
        let default = Path::new("retune.toml");
        // Whatever has that name is meant: a broken link or a folder is an error, and not passed over.
        let path = path.or_else(|| default.symlink_metadata().is_ok().then_some(default));
        let one = |place: String, what: String| {
            Problems(vec![Problem {
                place,
                key: WHOLE_FILE.into(),
                what,
            }])
        };
        let (source, text) = match path {
            None => (ConfigSource::BuiltIn, BUILT_IN.to_owned()),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| {
                    let what = format!("{e}; expected a readable file in TOML");
                    one(path.display().to_string(), what)
                })?;
                (ConfigSource::File(path.to_owned()), text)
            }
        };
        let (document, errors) = DeTable::parse_recoverable(&text);
        let file = match &source {
            ConfigSource::BuiltIn => "built-in".to_owned(),
            ConfigSource::File(path) => path.display().to_string(),
        };
        let log = Log::new(file);
        let mut broken = Vec::new();
        for error in &errors {
            let line = error.span().map_or(1, |s| {
                text[..s.start.min(text.len())].matches('\n').count() + 1
            });
            broken.push(line);
            log.add(
                &Place::File(line),
                WHOLE_FILE,
                format!("not TOML: {}", error.message()),
            );
        }
        let mut table = Node::from_toml(&text, document.get_ref());
        // In one order, since a machine gives them in none: FORMAT comes before FORMAT__REGEX.
        let mut env: Vec<(String, String)> = env.into_iter().collect();
        env.sort();
        for (name, value) in env {
            overlay(&log, &mut table, &name, &value);
        }
        let config = read(&log, table, source);
        let problems = log.finish(&broken);
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(Problems(problems))
        }
    }
}

/// Puts one variable's value over the file's.
fn overlay(log: &Log, table: &mut Table, name: &str, value: &str) {
    let Some(keys) = name.strip_prefix(PREFIX).filter(|rest| rest.contains("__")) else {
        return;
    };
    let keys: Vec<String> = keys.split("__").map(str::to_lowercase).collect();
    let node = Node::from_variable(name, value);
    let place = node.place.clone();
    let mut at = table;
    let mut rest = keys.as_slice();
    if keys[0] == "task" {
        if keys.len() < 3 || keys[2] == "name" {
            let what = "a task is made and named in the file; expected RETUNE_TASK__<NAME>__<KEY>, its - written _";
            return log.add(&place, &keys.join("."), what);
        }
        let Some(Node {
            value: Value::List(list),
            ..
        }) = at.get_mut("task")
        else {
            return log.add(&place, &keys.join("."), "there is no task");
        };
        let named = |n: &Node| matches!(&n.value, Value::Table(t) if matches!(t.get("name"), Some(Node { value: Value::Text(s), .. }) if s.replace('-', "_") == keys[1].replace('-', "_")));
        match list.iter_mut().find(|n| named(n)) {
            Some(Node {
                value: Value::Table(task),
                ..
            }) => at = task,
            _ => {
                return log.add(
                    &place,
                    &keys.join("."),
                    format!("there is no task {:?}", keys[1]),
                );
            }
        }
        rest = &keys[2..];
    }
    let Some((last, between)) = rest.split_last() else {
        return;
    };
    for key in between {
        let entry = at
            .entry(key.clone())
            .or_insert_with(|| Node::empty_table(&place));
        match &mut entry.value {
            Value::Table(inner) => at = inner,
            _ => return log.add(&place, &keys.join("."), format!("{key} is not a table")),
        }
    }
    at.insert(last.clone(), node);
}

fn read(log: &Log, table: Table, source: ConfigSource) -> Config {
    let mut root = Section::new(log, Place::File(1), "", table);
    let server = server(root.section("server"), source.folder());
    let engine = engine::read(root.section("engine"));
    let config = Config {
        server,
        store: store(
            root.section("store"),
            root.section("query"),
            source.folder(),
        ),
        monitor: monitor(root.section("monitor")),
        training: training(root.section("training")),
        cost: cost::read(root.section("cost")),
        tasks: tasks::read(&mut root, &source, &engine),
        engine,
        source,
    };
    root.finish();
    config
}

fn server(mut s: Section<'_>, folder: &Path) -> Server {
    let listen = address(&mut s, "listen")
        .map_or(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)), |(at, _)| at);
    let ops_listen = address(&mut s, "ops_listen").and_then(|(ops, place)| {
        let is_taken = ops == listen && ops.port() != 0;
        if is_taken {
            let what = format!(
                "is \"{ops}\", as server.listen is; expected another port, or nothing: then both are on `listen`"
            );
            s.log.add(&place, &s.path("ops_listen"), what);
        }
        (!is_taken).then_some(ops)
    });
    let server = Server {
        listen,
        ops_listen,
        tls: tls(&mut s, folder),
        max_body_bytes: s.size("max_body_bytes", 1024, 1 << 30, 16 << 20),
        max_messages: s.size("max_messages", 1, 1_000_000, 2048),
        client_timeout: Duration::from_secs_f64(
            s.positive("client_timeout_seconds", 3600.0).unwrap_or(10.0),
        ),
        grace: Duration::from_secs_f64(s.positive("grace_seconds", 3600.0).unwrap_or(30.0)),
    };
    s.finish();
    server
}

/// Whether others may reach it is for who listens there to say: they know the keys.
fn address(s: &mut Section<'_>, key: &'static str) -> Option<(SocketAddr, Place)> {
    const EXPECTED: &str = "an address such as \"127.0.0.1:8080\"";
    let (text, place) = s.text(key, EXPECTED)?;
    let read = text.parse().ok();
    if read.is_none() {
        let what = format!("is {text:?}; expected {EXPECTED}");
        s.log.add(&place, &s.path(key), what);
    }
    read.map(|at| (at, place))
}

/// Both files or neither. They are read where they are used: not every command that reads this configuration may see a private key.
fn tls(s: &mut Section<'_>, folder: &Path) -> Option<Tls> {
    let expected = "a file in PEM form";
    let given = ["tls_cert", "tls_key"].map(|key| (key, s.text(key, expected)));
    match &given {
        [(_, Some((cert, _))), (_, Some((key, _)))] => {
            return Some(Tls {
                cert: folder.join(cert),
                key: folder.join(key),
            });
        }
        [(_, Some((_, place))), (missing, None)] | [(missing, None), (_, Some((_, place)))] => {
            let what = format!(
                "is missing or wrong; expected {expected}: tls_cert and tls_key go together"
            );
            s.log.add(place, &s.path(missing), what);
        }
        _ => {}
    }
    None
}

fn store(mut s: Section<'_>, mut query: Section<'_>, folder: &Path) -> Store {
    let (url, place) = s
        .text("url", "file: and a folder, such as \"file:./retune-data\"")
        .unwrap_or_else(|| ("file:./retune-data".to_owned(), s.place.clone()));
    let path = s.path("url");
    let absolute = |local: &str| {
        let path = folder.join(local);
        std::path::absolute(&path).unwrap_or(path)
    };
    let url = match bucket(&url) {
        Some(Ok(())) => url,
        Some(Err(what)) => {
            s.log.add(&place, &path, format!("is {url:?}: {what}"));
            url
        }
        None => {
            let local = url
                .strip_prefix("file://")
                .or_else(|| url.strip_prefix("file:"));
            let local = local.unwrap_or(&url);
            if local.is_empty() {
                s.log.add(
                    &place,
                    &path,
                    format!("is {url:?}, which names no folder; expected one, such as \"file:./retune-data\""),
                );
            }
            format!("file:{}", absolute(local).display())
        }
    };
    let local = s.text(
        "local",
        "a folder on this machine, such as \"./retune-local\"",
    );
    let local = local.map_or_else(|| "retune-local".to_owned(), |(local, _)| local);
    let store = Store {
        url,
        local: absolute(&local).display().to_string(),
        append_rows: s.size("append_rows", 1, 1_000_000, 10_000),
        append_bytes: s.size("append_bytes", 1024, 1 << 30, 32 << 20),
        append_seconds: s.positive("append_seconds", 3600.0).unwrap_or(10.0),
        fsync_seconds: s.share("fsync_seconds", 60.0).unwrap_or(1.0),
        log_bytes: s.count("log_bytes", 1 << 20, 1 << 50, 1 << 30),
        on_log_failure: s.word(
            "on_log_failure",
            &[
                ("drop", OnLogFailure::Drop),
                ("reject", OnLogFailure::Reject),
            ],
            OnLogFailure::Drop,
        ),
        compact_seconds: s.share("compact_seconds", 86_400.0).unwrap_or(60.0),
        keep_days: match s.count("keep_days", 0, 36_500, 0) {
            0 => None,
            days => Some(days),
        },
        query_ballista: query
            .text(
                "ballista",
                "a scheduler's URL, such as \"df://scheduler:50050\"",
            )
            .map(|(url, _)| url),
        query_memory_bytes: query.size("memory_bytes", 256 << 20, 1 << 40, 1 << 30),
    };
    s.finish();
    query.finish();
    store
}

/// None where it is a folder; else whether it names a bucket that this program can use.
fn bucket(url: &str) -> Option<Result<(), String>> {
    // A path has its first colon behind a slash, or none.
    let (scheme, rest) = url.split_once(':')?;
    let is_scheme = scheme.len() > 1 && scheme.bytes().all(|b| b.is_ascii_alphanumeric());
    if !is_scheme || scheme == "file" {
        return None;
    }
    let known = STORES.contains(&scheme);
    let named = rest
        .strip_prefix("//")
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
    Some(if known && named {
        Ok(())
    } else {
        Err(format!(
            "expected file: and a folder, or a bucket: {}://bucket/prefix",
            STORES.join("://bucket/prefix, ")
        ))
    })
}

fn training(mut s: Section<'_>) -> Training {
    let training = Training {
        memory_bytes: match s.count("memory_mib", 0, 1 << 30, 0) {
            0 => None,
            mib => Some(mib << 20),
        },
        niceness: u8::try_from(s.count("niceness", 0, 19, 15)).unwrap_or(15),
    };
    s.finish();
    training
}

fn monitor(mut s: Section<'_>) -> Monitor {
    let monitor = Monitor {
        listen: address(&mut s, "listen").map(|(at, _)| at),
        false_alarms_per_quarter: s.positive("false_alarms_per_quarter", 100.0).unwrap_or(0.1),
        exchanges_per_quarter: s.count("exchanges_per_quarter", 1000, 1 << 50, 1_000_000),
        reference_exchanges: s.size("reference_exchanges", 50, 1_000_000, 300),
        format_tolerance: s.share("format_tolerance", 0.5).unwrap_or(0.01),
        poll_seconds: s.positive("poll_seconds", 3600.0).unwrap_or(1.0),
        embeddings: s
            .text("embeddings", "the folder of a model")
            .map(|(folder, _)| folder),
    };
    s.finish();
    monitor
}
