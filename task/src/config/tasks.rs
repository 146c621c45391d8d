//! The tasks of a configuration, with the files that they name.

use std::path::Path;
use std::sync::Arc;

use super::policy::retrain;
use super::reader::{Log, Node, Place, Section, Table, Value, nearest};
use super::{ConfigSource, Enforce, Engine, Privacy, Prompts, Task};
use crate::base::base_id;
use crate::chat::ClientSystem;
use crate::format::Format;
use crate::names::is_task_name;
use crate::redact::{Redaction, Sensitive};

/// The built-in configuration's files.
const BUILT_IN: [(&str, &str); 2] = [
    ("triage.txt", include_str!("../../builtin/triage.txt")),
    (
        "triage.schema.json",
        include_str!("../../builtin/triage.schema.json"),
    ),
];

/// Tokens of an answer, where nobody says how many.
const MAX_TOKENS: usize = 256;

pub(super) fn read(
    root: &mut Section<'_>,
    source: &ConfigSource,
    engine: &Engine,
) -> Vec<Arc<Task>> {
    let mut tasks: Vec<Arc<Task>> = Vec::new();
    let list = match root.take("task") {
        Some(Node {
            value: Value::List(list),
            ..
        }) => list,
        Some(node) => {
            root.log.add(
                &node.place,
                "task",
                "expected tables, each begun by [[task]]",
            );
            return tasks;
        }
        None => {
            root.log.add(
                &Place::File(1),
                "task",
                "there is none; expected at least one [[task]]",
            );
            return tasks;
        }
    };
    for (i, node) in list.into_iter().enumerate() {
        let Value::Table(table) = node.value else {
            root.log
                .add(&node.place, "task", "expected a table, begun by [[task]]");
            continue;
        };
        let label = match table.get("name") {
            Some(Node {
                value: Value::Text(name),
                ..
            }) => format!("task.{name}"),
            _ => format!("task[{i}]"),
        };
        let place = node.place;
        let name_place = table
            .get("name")
            .map_or_else(|| place.clone(), |node| node.place.clone());
        let key = format!("{label}.name");
        let task = task(Section::new(root.log, place, label, table), source);
        let name = task.name.as_str();
        // Both are models of the API.
        if base_id(Path::new(&engine.base)) == name {
            let what = format!("is {name:?}, as the base's own id is; expected another name");
            root.log.add(&name_place, &key, what);
        }
        if !name.is_empty() && tasks.iter().any(|other| other.name == name) {
            let what = format!("is {name:?}, as an earlier task's is; expected another name");
            root.log.add(&name_place, &key, what);
        }
        tasks.push(Arc::new(task));
    }
    tasks
}

/// See [`Task::of_job`].
pub(super) fn of_job(name: &str) -> Task {
    let log = Log::new(String::new());
    let nothing = |key| Section::new(&log, Place::File(1), key, Table::default());
    Task {
        name: name.to_owned(),
        prompt: String::new(),
        adapter_prompt: String::new(),
        client_system: ClientSystem::Keep,
        format: None,
        enforce: Enforce::Off,
        probe_share: 0.0,
        max_tokens: MAX_TOKENS,
        retrain: retrain(nothing("retrain"), &ConfigSource::BuiltIn),
        privacy: privacy(nothing("privacy")),
    }
}

fn task(mut s: Section<'_>, source: &ConfigSource) -> Task {
    let missing = |s: &Section<'_>, key: &str, expected: &str| {
        s.log.add(
            &s.place,
            &s.path(key),
            format!("is missing; expected {expected}"),
        );
    };
    let name = match s.text("name", "a name of lower-case letters, digits and -") {
        Some((name, place)) => {
            if !is_task_name(&name) || name == "base" {
                let key = s.path("name");
                s.log.add(
                    &place,
                    &key,
                    format!("is {name:?}; expected lower-case letters and digits, single - between them, 64 at most, and not \"base\""),
                );
            }
            name
        }
        None => {
            missing(&s, "name", "the task's name");
            String::new()
        }
    };
    let prompt = match s.text("prompt", "the file with the full prompt") {
        Some((file, place)) => open(&s, "prompt", &file, &place, source).unwrap_or_default(),
        None => {
            missing(
                &s,
                "prompt",
                "the file with the full prompt, such as \"prompts/support.txt\"",
            );
            String::new()
        }
    };
    let adapter_prompt = s
        .text("adapter_prompt", "a short prompt")
        .map_or_else(|| format!("{name}."), |(text, _)| text);
    let words = [
        ("replace", ClientSystem::Replace),
        ("keep", ClientSystem::Keep),
    ];
    let client_system = s.word("client_system", &words, ClientSystem::Replace);
    let format = s.take("format").and_then(|node| format(&s, node, source));
    let enforce = enforce(&mut s, format.as_ref());
    let probe_share = s.share("probe_share", 1.0).unwrap_or(0.05);
    let max_tokens = s.size("max_tokens", 1, 100_000, MAX_TOKENS);
    let retrain = retrain(s.section("retrain"), source);
    let privacy = privacy(s.section("privacy"));
    s.finish();
    // Editors end a file with a newline; a prompt ends with its last word.
    let prompt = prompt.trim_end().to_owned();
    Task {
        name,
        prompt,
        adapter_prompt,
        client_system,
        format,
        enforce,
        probe_share,
        max_tokens,
        retrain,
        privacy,
    }
}

fn enforce(s: &mut Section<'_>, format: Option<&Format>) -> Enforce {
    let words = [
        ("off", Enforce::Off),
        ("constrain", Enforce::Constrain),
        ("retry", Enforce::Retry),
    ];
    let place = s.place_of("enforce");
    let enforce = s.word("enforce", &words, Enforce::Off);
    let what = match (enforce, format) {
        (Enforce::Constrain | Enforce::Retry, None) => {
            "needs a format to hold answers to; expected \"off\", or a format"
        }
        (Enforce::Constrain, Some(format)) if format.grammar().is_none() => {
            "is \"constrain\", which works with json_schema and regex; expected \"retry\" or \"off\" for this format"
        }
        _ => return enforce,
    };
    if let Some(place) = place {
        s.log.add(&place, &s.path("enforce"), what);
    }
    enforce
}

pub(super) fn open(
    s: &Section<'_>,
    key: &str,
    file: &str,
    place: &Place,
    source: &ConfigSource,
) -> Option<String> {
    let embedded = BUILT_IN.iter().find(|(name, _)| *name == file);
    if let (ConfigSource::BuiltIn, Some((_, text))) = (source, embedded) {
        return Some((*text).to_owned());
    }
    let path = source.folder().join(Path::new(file));
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().is_empty() => {
            let what = format!("{} is empty; expected a text in it", path.display());
            s.log.add(place, &s.path(key), what);
            None
        }
        // Some editors put a byte order mark in front, which no model and no parser wants.
        Ok(text) => Some(text.trim_start_matches('\u{feff}').to_owned()),
        Err(e) => {
            let what = format!(
                "{}: {e}; expected a text file there (relative to the configuration's folder)",
                path.display()
            );
            s.log.add(place, &s.path(key), what);
            None
        }
    }
}

fn format(s: &Section<'_>, node: Node, source: &ConfigSource) -> Option<Format> {
    const EXPECTED: &str = "one of { json_schema = \"file\" }, { regex = \"…\" }, { template = \"…\" }, { length = [least, most] }";
    let key = s.path("format");
    let place = node.place.clone();
    let table = match node.value {
        Value::Table(table) if table.len() == 1 => table,
        value => {
            let shown = Node { value, ..node }.shown();
            let what = format!("is {shown}; expected {EXPECTED}");
            s.log.add(&place, &key, what);
            return None;
        }
    };
    let mut inner = Section::new(s.log, place.clone(), key.clone(), table);
    let made = if let Some((file, place)) = inner.text("json_schema", "a file") {
        open(&inner, "json_schema", &file, &place, source).map(|text| {
            let named = |what| format!("{}: {what}", source.folder().join(&file).display());
            (Format::json_schema(&text).map_err(named), place)
        })
    } else if let Some((pattern, place)) = inner.text("regex", "a regular expression") {
        Some((Format::regex(&pattern), place))
    } else if let Some((text, place)) = inner.text("template", "a text with {placeholders}") {
        Some((Format::template(&text), place))
    } else {
        let range = inner.value("length", "two whole numbers, [least, most]", |v| match v {
            Value::List(list) => match list.as_slice() {
                [
                    Node {
                        value: Value::Integer(a),
                        ..
                    },
                    Node {
                        value: Value::Integer(b),
                        ..
                    },
                ] => Some((usize::try_from(*a).ok()?, usize::try_from(*b).ok()?)),
                _ => None,
            },
            _ => None,
        });
        range.map(|(least, most)| (Format::length(least, most), place.clone()))
    };
    inner.finish();
    match made? {
        (Ok(format), _) => Some(format),
        (Err(what), place) => {
            s.log.add(&place, &key, what);
            None
        }
    }
}

fn privacy(mut s: Section<'_>) -> Privacy {
    let kinds = words(
        &mut s,
        "redact",
        "kind of personal data",
        &Sensitive::ALL.map(|k| (k.name(), k)),
    );
    let own = s.value("patterns", "a list of regular expressions", |v| match v {
        Value::List(list) => Some(list.clone()),
        _ => None,
    });
    let mut patterns = Vec::new();
    for node in own.unwrap_or_default() {
        let made = match &node.value {
            Value::Text(pattern) => {
                Redaction::new(&[], std::slice::from_ref(pattern)).map(|_| pattern.clone())
            }
            _ => Err("it is not a text".to_owned()),
        };
        match made {
            Ok(pattern) => patterns.push(pattern),
            Err(what) => {
                let key = s.path("patterns");
                let what = format!("{} is no regular expression: {what}", node.shown());
                s.log.add(&node.place, &key, what);
            }
        }
    }
    let ways = [
        ("keep", Prompts::Keep),
        ("hash", Prompts::Hash),
        ("drop", Prompts::Drop),
    ];
    let privacy = Privacy {
        // Each was made by itself before.
        redaction: Redaction::new(&kinds.unwrap_or_default(), &patterns).unwrap_or_default(),
        prompts: s.word("prompts", &ways, Prompts::Keep),
        text_share: s.share("text_share", 1.0).unwrap_or(1.0),
    };
    s.finish();
    privacy
}

/// A list of some words; every one that is none of them is a problem of its own.
pub(super) fn words<T: Copy>(
    s: &mut Section<'_>,
    key: &'static str,
    what: &str,
    known: &[(&'static str, T)],
) -> Option<Vec<T>> {
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let expected = names.join(", ");
    let list = s.value(key, &format!("a list of {expected}"), |v| match v {
        Value::List(list) => Some(list.clone()),
        _ => None,
    })?;
    let path = s.path(key);
    let word = |node: &Node| {
        let word = match &node.value {
            Value::Text(word) => word.as_str(),
            _ => "",
        };
        let found = known.iter().find(|(name, _)| *name == word);
        if found.is_none() {
            let hint = match nearest(&names, word) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("expected one of {expected}"),
            };
            let problem = format!("{} is no {what}; {hint}", node.shown());
            s.log.add(&node.place, &path, problem);
        }
        found.map(|(_, value)| *value)
    };
    Some(list.iter().filter_map(word).collect())
}
