//! What apps ask, as real as it is at hand: CLINC150's queries in English, or the demo's generator.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use rand::Rng;
use rand::seq::IndexedRandom;
use retune_demo::Texts;
use serde::Deserialize;

/// The topic that is new after a change.
const NEW: &str = "banking";
/// The known topic of which there is more after a change of the mix.
const MORE: &str = "travel";
/// Generated messages.
const GENERATED: usize = 20_000;

/// Pools of texts to draw from.
pub(crate) struct Corpus {
    pub(crate) name: &'static str,
    usual: Vec<String>,
    new: Vec<String>,
    diffuse: Vec<String>,
    more: Vec<String>,
}

/// A change of the traffic.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Change {
    /// None.
    Null,
    /// A share of one topic that nobody asked about before.
    Topic(f64),
    /// A share of queries that belong to no topic.
    Diffuse(f64),
    /// A share of more queries of one known topic.
    Mix(f64),
}

#[derive(Deserialize)]
struct Clinc {
    train: Vec<(String, String)>,
    val: Vec<(String, String)>,
    test: Vec<(String, String)>,
    oos_train: Vec<(String, String)>,
    oos_val: Vec<(String, String)>,
    oos_test: Vec<(String, String)>,
}

impl Corpus {
    pub(crate) fn new(clinc: Option<&Path>) -> Result<Self> {
        match clinc {
            Some(folder) => Self::clinc(folder),
            None => Ok(Self::generated()),
        }
    }

    /// `data_full.json` and `domains.json` of Larson et al. 2019, "An evaluation dataset for intent classification and out-of-scope prediction".
    fn clinc(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).with_context(|| path.display().to_string())
        };
        let data: Clinc = serde_json::from_slice(&read("data_full.json")?)?;
        let domains: BTreeMap<String, Vec<String>> =
            serde_json::from_slice(&read("domains.json")?)?;
        let is_of = |intent: &str, domain: &str| {
            domains
                .get(domain)
                .is_some_and(|all| all.iter().any(|i| i == intent))
        };
        let known: Vec<(String, String)> = [data.train, data.val, data.test].concat();
        let diffuse = [data.oos_train, data.oos_val, data.oos_test].concat();
        let texts = |of: &dyn Fn(&str) -> bool| -> Vec<String> {
            let chosen = known.iter().filter(|(_, intent)| of(intent));
            chosen.map(|(text, _)| text.clone()).collect()
        };
        Ok(Self {
            name: "CLINC150",
            usual: texts(&|intent| !is_of(intent, NEW)),
            new: texts(&|intent| is_of(intent, NEW)),
            more: texts(&|intent| is_of(intent, MORE)),
            diffuse: diffuse.into_iter().map(|(text, _)| text).collect(),
        })
    }

    /// The demo's customers; none of them asks diffusely.
    fn generated() -> Self {
        let mut texts = Texts::new(1);
        let usual: Vec<String> = (0..GENERATED).map(|_| texts.normal().text).collect();
        let known = Texts::kinds();
        let mut of = |kind: &str| -> Vec<String> {
            (0..GENERATED / 10)
                .filter_map(|_| Some(texts.of_kind(kind)?.text))
                .collect()
        };
        let (more, new) = (of(known[0]), of(known[known.len() - 1]));
        Self {
            name: "the demo's generator",
            usual,
            diffuse: Vec::new(),
            new,
            more,
        }
    }

    /// The changes that it can show.
    pub(crate) fn changes(&self) -> Vec<Change> {
        let mut changes = vec![Change::Topic(0.05), Change::Topic(0.1), Change::Topic(0.2)];
        if !self.diffuse.is_empty() {
            changes.extend([0.05, 0.1, 0.2].map(Change::Diffuse));
        }
        changes.push(Change::Mix(0.2));
        changes
    }

    /// The next text of a traffic.
    pub(crate) fn draw(&self, change: Change, rng: &mut impl Rng) -> &str {
        let (share, other) = match change {
            Change::Null => (0.0, &self.usual),
            Change::Topic(share) => (share, &self.new),
            Change::Diffuse(share) => (share, &self.diffuse),
            Change::Mix(share) => (share, &self.more),
        };
        let pool = if rng.random_bool(share) {
            other
        } else {
            &self.usual
        };
        pool.choose(rng).map_or("", String::as_str)
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Null => f.write_str("no change"),
            Self::Topic(share) => write!(f, "{:.0} % of a new topic", share * 100.0),
            Self::Diffuse(share) => write!(f, "{:.0} % of no topic", share * 100.0),
            Self::Mix(share) => write!(f, "{:.0} % more of a known topic", share * 100.0),
        }
    }
}
