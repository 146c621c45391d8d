//! What holds for the source as a whole: who may know whom, how long a file may be, what is documented.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::{ROOT, folder, retune, text};

const LONGEST: usize = 500;

/// Every file of the source with this ending; what a build or Git made is none.
pub(crate) fn files(ending: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" && name != "retune-data" {
                    walk(&path, ending, found);
                }
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new(ROOT), ending, &mut found);
    assert!(!found.is_empty());
    found
}

/// The crates of this workspace that a crate's Cargo.toml names as dependencies.
fn dependencies(folder: &str) -> Vec<String> {
    let manifest = fs::read_to_string(Path::new(ROOT).join(folder).join("Cargo.toml")).unwrap();
    let names = manifest
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next());
    names
        .filter(|name| name.starts_with("retune-"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn crates_know_only_whom_they_may() {
    let may_know = [
        ("task", &[][..]),
        ("stats", &[][..]),
        ("ledger", &["retune-task", "retune-record"][..]),
        ("ledger/record", &[][..]),
        (
            "serve",
            &[
                "retune-task",
                "retune-stats",
                "retune-ledger",
                "retune-wire",
                "retune-console",
            ][..],
        ),
        ("serve/console", &["retune-task", "retune-ledger"][..]),
        ("serve/wire", &["retune-task"][..]),
        ("tests/fuzz", &["retune-wire", "retune-record"][..]),
        (
            "monitor",
            &["retune-task", "retune-stats", "retune-ledger"][..],
        ),
        (
            "retrain",
            &[
                "retune-task",
                "retune-stats",
                "retune-ledger",
                "retune-trainer",
                // Lines of training files are read as requests are.
                "retune-wire",
            ][..],
        ),
        ("retrain/trainer", &[][..]),
        (
            "models/pocket",
            &["retune-task", "retune-trainer", "retune-demo"][..],
        ),
        ("demo", &[][..]),
    ];
    for (folder, known) in may_know {
        for dependency in dependencies(folder) {
            assert!(
                known.contains(&dependency.as_str()),
                "{folder} must not know {dependency}"
            );
        }
    }
}

#[test]
fn what_is_fuzzed_builds_without_engine_tables_and_http() {
    let lock = fs::read_to_string(Path::new(ROOT).join("tests/fuzz/Cargo.lock")).unwrap();
    let has = |name: &str| lock.contains(&format!("name = \"{name}\"\n"));
    assert!(has("retune-wire") && has("retune-record"));
    for heavy in [
        "actix-web",
        "datafusion",
        "deltalake",
        "mistralrs-core",
        "reqwest",
        "tokio",
    ] {
        assert!(!has(heavy), "tests/fuzz must not need {heavy}");
    }
}

#[test]
fn no_source_file_is_too_long_and_each_says_what_it_is_for() {
    for path in files(".rs") {
        let source = fs::read_to_string(&path).unwrap();
        let lines = source.lines().count();
        assert!(lines <= LONGEST, "{} has {lines} lines", path.display());
        assert!(
            source.starts_with("//!"),
            "{} does not say what it is for",
            path.display()
        );
    }
}

/// Every key that the program knows, from its own complaint about one that it doesn't.
fn configuration_keys() -> Vec<String> {
    const UNKNOWN: &str = "ZZZZZZZZZZZZZZZZ";
    let sections = [
        "SERVER",
        "ENGINE",
        "STORE",
        "MONITOR",
        "TRAINING",
        "TASK__TRIAGE",
        "TASK__TRIAGE__RETRAIN",
        "TASK__TRIAGE__RETRAIN__LORA",
    ];
    let folder = folder();
    let mut command = retune(folder.path());
    command.arg("check");
    command.envs(sections.map(|section| (format!("RETUNE_{section}__{UNKNOWN}"), "1")));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    let lists: Vec<&str> = said
        .lines()
        .filter_map(|line| Some(line.split_once("expected one of ")?.1))
        .collect();
    assert_eq!(lists.len(), sections.len(), "{said}");
    lists
        .into_iter()
        .flat_map(|list| list.split(", "))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_configuration_key_is_documented() {
    let keys = configuration_keys();
    assert!(keys.len() > 30, "{keys:?}");
    let pages: String = files(".md")
        .iter()
        .map(|page| fs::read_to_string(page).unwrap())
        .collect();
    let words: std::collections::BTreeSet<&str> = pages
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .collect();
    let missing: Vec<_> = keys
        .iter()
        .filter(|key| !words.contains(key.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "no page says what these keys mean: {missing:?}"
    );
}
