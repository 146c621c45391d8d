//! Reads typed values out of TOML tables, and collects every problem with its place instead of stopping at the first.

use std::cell::RefCell;
use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Problem;

/// The key of a problem with no key of its own.
pub(super) const WHOLE_FILE: &str = "the file";

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    File(usize),
    Variable(String),
}

/// A value, freed from the text it was read from.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    /// What no key takes (a date, a number too large), as it was written.
    Other(String),
    List(Vec<Node>),
    Table(Table),
}

pub(super) type Table = BTreeMap<String, Node>;

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
    /// A variable's own text: where a key takes text, `42` is not a number.
    pub(super) raw: Option<String>,
}

impl Node {
    pub(super) fn from_toml(text: &str, table: &DeTable<'_>) -> Table {
        table
            .iter()
            .map(|(key, value)| {
                (
                    key.get_ref().to_string(),
                    Node::from_value(text, value, key.span().start),
                )
            })
            .collect()
    }

    fn from_value(text: &str, value: &Spanned<DeValue<'_>>, at: usize) -> Node {
        let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let written = || Value::Other(text.get(value.span()).unwrap_or_default().to_owned());
        let integer = |i: &toml::de::DeInteger<'_>| {
            i64::from_str_radix(&i.as_str().replace('_', ""), i.radix())
                .map_or_else(|_| written(), Value::Integer)
        };
        let converted = match value.get_ref() {
            DeValue::String(s) => Value::Text(s.to_string()),
            DeValue::Integer(i) => integer(i),
            DeValue::Float(f) => f
                .as_str()
                .replace('_', "")
                .parse()
                .map_or_else(|_| written(), Value::Float),
            DeValue::Boolean(b) => Value::Bool(*b),
            DeValue::Datetime(_) => written(),
            DeValue::Array(list) => Value::List(
                list.iter()
                    .map(|v| Node::from_value(text, v, v.span().start))
                    .collect(),
            ),
            DeValue::Table(table) => Value::Table(Node::from_toml(text, table)),
        };
        Node {
            place: Place::File(line(at)),
            value: converted,
            raw: None,
        }
    }

    /// What a variable's text means: TOML where it parses (numbers, lists, tables), else the text as it stands.
    pub(super) fn from_variable(name: &str, text: &str) -> Node {
        let place = Place::Variable(name.to_owned());
        let mut node = match DeValue::parse(text) {
            Ok(value) => Node::from_value(text, &value, 0),
            Err(_) => Node {
                place: place.clone(),
                value: Value::Text(text.to_owned()),
                raw: None,
            },
        };
        node.relocate(&place);
        node.raw = Some(text.to_owned());
        node
    }

    fn relocate(&mut self, place: &Place) {
        self.place = place.clone();
        match &mut self.value {
            Value::List(list) => list.iter_mut().for_each(|n| n.relocate(place)),
            Value::Table(table) => table.values_mut().for_each(|n| n.relocate(place)),
            _ => {}
        }
    }

    /// A table that a variable needs on its way to a key.
    pub(super) fn empty_table(place: &Place) -> Node {
        Node {
            place: place.clone(),
            value: Value::Table(Table::new()),
            raw: None,
        }
    }

    pub(super) fn shown(&self) -> String {
        match &self.value {
            Value::Text(s) => format!("{s:?}"),
            Value::Integer(i) => i.to_string(),
            Value::Float(f) => f.to_string(),
            Value::Bool(b) => b.to_string(),
            Value::Other(written) => written.clone(),
            Value::List(list) => {
                let items: Vec<String> = list.iter().map(Node::shown).collect();
                format!("[{}]", items.join(", "))
            }
            Value::Table(table) => {
                let keys: Vec<&str> = table.keys().map(String::as_str).collect();
                format!("a table with {{{}}}", keys.join(", "))
            }
        }
    }
}

/// Collects problems.
pub(super) struct Log {
    file: String,
    problems: RefCell<Vec<(Place, Problem)>>,
}

impl Log {
    pub(super) fn new(file: String) -> Self {
        Log {
            file,
            problems: RefCell::default(),
        }
    }

    pub(super) fn add(&self, place: &Place, key: &str, what: impl Into<String>) {
        let shown = match place {
            Place::File(line) => format!("{}:{line}", self.file),
            Place::Variable(name) => name.clone(),
        };
        let problem = Problem {
            place: shown,
            key: key.to_owned(),
            what: what.into(),
        };
        self.problems.borrow_mut().push((place.clone(), problem));
    }

    /// All problems in the file's order, the environment's after them. A line that is not TOML has that one problem:
    /// what the parser made of it says nothing about what its author meant.
    pub(super) fn finish(self, broken_lines: &[usize]) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by(|(a, _), (b, _)| a.cmp(b));
        let kept = |(place, problem): (Place, Problem)| {
            let broken = matches!(place, Place::File(line) if broken_lines.contains(&line));
            (!broken || problem.key == WHOLE_FILE).then_some(problem)
        };
        problems.into_iter().filter_map(kept).collect()
    }
}

/// One table: keys are taken out of it, what is left over is unknown.
pub(super) struct Section<'a> {
    pub(super) log: &'a Log,
    pub(super) place: Place,
    name: String,
    table: Table,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub(super) fn new(log: &'a Log, place: Place, name: impl Into<String>, table: Table) -> Self {
        Section {
            log,
            place,
            name: name.into(),
            table,
            known: Vec::new(),
        }
    }

    /// A table inside this one; empty where it is not given.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'a> {
        let name = self.path(key);
        match self.take(key) {
            Some(Node {
                place,
                value: Value::Table(table),
                ..
            }) => Section::new(self.log, place, name, table),
            Some(node) => {
                self.log.add(
                    &node.place,
                    &name,
                    format!("is {}; expected a table", node.shown()),
                );
                Section::new(self.log, node.place, name, Table::new())
            }
            None => Section::new(self.log, self.place.clone(), name, Table::new()),
        }
    }

    pub(super) fn path(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        self.table.remove(key)
    }

    /// Where a key stands that is not taken yet.
    pub(super) fn place_of(&self, key: &str) -> Option<Place> {
        self.table.get(key).map(|node| node.place.clone())
    }

    /// A value that `convert` accepts; None, and a problem, where it is something else.
    pub(super) fn value<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let node = self.take(key)?;
        let value = convert(&node.value);
        if value.is_none() {
            self.log.add(
                &node.place,
                &self.path(key),
                format!("is {}; expected {expected}", node.shown()),
            );
        }
        value
    }

    pub(super) fn text(&mut self, key: &'static str, expected: &str) -> Option<(String, Place)> {
        let mut node = self.take(key)?;
        if let (false, Some(raw)) = (matches!(node.value, Value::Text(_)), &node.raw) {
            node.value = Value::Text(raw.clone());
        }
        match node.value {
            Value::Text(text) if !text.trim().is_empty() => Some((text, node.place)),
            _ => {
                self.log.add(
                    &node.place,
                    &self.path(key),
                    format!("is {}; expected {expected}", node.shown()),
                );
                None
            }
        }
    }

    /// A whole number within bounds.
    pub(super) fn count(&mut self, key: &'static str, least: u64, most: u64, default: u64) -> u64 {
        let expected = format!("a whole number from {least} to {most}");
        self.value(key, &expected, |v| match v {
            Value::Integer(i) => u64::try_from(*i)
                .ok()
                .filter(|n| (least..=most).contains(n)),
            _ => None,
        })
        .unwrap_or(default)
    }

    pub(super) fn size(
        &mut self,
        key: &'static str,
        least: u64,
        most: u64,
        default: usize,
    ) -> usize {
        usize::try_from(self.count(key, least, most, default as u64)).unwrap_or(default)
    }

    /// A number above zero and at most `most`.
    pub(super) fn positive(&mut self, key: &'static str, most: f64) -> Option<f64> {
        let expected = format!("a number above 0 and at most {most}");
        self.value(key, &expected, |v| {
            number(v).filter(|x| *x > 0.0 && *x <= most)
        })
    }

    /// A number between 0 and 1, neither of them: a part that leaves a rest.
    pub(super) fn part(&mut self, key: &'static str) -> Option<f64> {
        self.value(key, "a number above 0 and below 1", |v| {
            number(v).filter(|x| *x > 0.0 && *x < 1.0)
        })
    }

    /// A number from `least` to `most`.
    pub(super) fn between(&mut self, key: &'static str, least: f64, most: f64) -> Option<f64> {
        let expected = format!("a number from {least} to {most}");
        self.value(key, &expected, |v| {
            number(v).filter(|x| (least..=most).contains(x))
        })
    }

    /// A number from zero to `most`.
    pub(super) fn share(&mut self, key: &'static str, most: f64) -> Option<f64> {
        let expected = format!("a number from 0 to {most}");
        self.value(key, &expected, |v| {
            number(v).filter(|x| (0.0..=most).contains(x))
        })
    }

    /// One of some words.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&str, T)],
        default: T,
    ) -> T {
        let expected: Vec<String> = words.iter().map(|(w, _)| format!("{w:?}")).collect();
        self.value(key, &expected.join(" or "), |v| match v {
            Value::Text(s) => words.iter().find(|(w, _)| w == s).map(|(_, t)| *t),
            _ => None,
        })
        .unwrap_or(default)
    }

    /// Whether a key stands there that is not taken yet.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Keys that are out of place without another one.
    pub(super) fn belong(&mut self, keys: &[&'static str], belongs_to: &str) {
        for key in keys {
            if let Some(node) = self.take(key) {
                let what = format!("belongs to {belongs_to}; set that, or leave this out");
                self.log.add(&node.place, &self.path(key), what);
            }
        }
    }

    /// Reports every key that nobody took.
    pub(super) fn finish(self) {
        for (key, node) in &self.table {
            let hint = match nearest(&self.known, key) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("expected one of {}", self.known.join(", ")),
            };
            self.log.add(
                &node.place,
                &self.path(key),
                format!("there is no such key; {hint}"),
            );
        }
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Integer(i) => Some(*i as f64),
        Value::Float(f) => Some(*f),
        _ => None,
    }
}

/// The word that was probably meant: at most two letters away, and not another word altogether.
pub(super) fn nearest<'w>(words: &[&'w str], written: &str) -> Option<&'w str> {
    let near = |word: &str| distance(word, written);
    let word = words.iter().min_by_key(|word| near(word))?;
    (near(word) <= 2 && near(word) < written.chars().count()).then_some(word)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
