//! A task's dataset: built of the ledger's rows for whoever wants one, written as files, laid beside another.
//!
//! What a person sees here is what a run would learn from at this moment, by the same filters, in the form that every other trainer
//! reads: OpenAI's chat JSONL, with the prompt that adapters are served with.

use std::collections::HashSet;
use std::io::{BufWriter, Write};
use std::path::Path;

use chrono::{DateTime, Utc};
use retune_ledger::{Examples, Exchange, ExchangeQuery, Feedback, Ledger, Purpose, Table};
use retune_task::{ChatMessage, ModelName, PromptKind, Task, hex};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::coverage::{self, Coverage};
use crate::dataset::{self, Counts, Dataset, KnownBy, Row};
use crate::{Error, Taken, preferences, trust};

/// A dataset, and which versions of the tables it was read from.
pub struct Read {
    pub dataset: Dataset,
    pub coverage: Coverage,
    pub exchanges_version: u64,
    pub feedback_version: u64,
}

/// The dataset that a run of the task would learn from now.
pub async fn read(ledger: &Ledger, task: &Task) -> Result<Read, Error> {
    let tables = ledger.snapshot().await?;
    let exchanges = tables.exchanges(&of_dataset(task)).await?;
    let feedback = tables.feedback(&Default::default()).await?;
    let feedback = trust::trusted(ledger, feedback).await?;
    let dataset = build(task, &exchanges, &feedback);
    Ok(Read {
        coverage: coverage::coverage(task, &exchanges, &dataset),
        dataset,
        exchanges_version: tables.version(Table::Exchanges),
        feedback_version: tables.version(Table::Feedback),
    })
}

/// What a run learns from, out of rows; preferences only where the policy trains on them.
pub(crate) fn build(task: &Task, exchanges: &[Exchange], feedback: &[Feedback]) -> Dataset {
    let mut dataset = dataset::build(task, exchanges, feedback);
    if let Some(times) = task.retrain.balance {
        coverage::balance(task, exchanges, &mut dataset, times);
    }
    if task.retrain.dpo.epochs > 0 {
        dataset.preferences = preferences::build(task, exchanges, feedback);
        let preferences = &mut dataset.preferences;
        preferences.leave_out_personal(&dataset::personal(task));
        preferences.leave_out_near(&dataset.held_out);
    }
    dataset
}

/// What users asked of a task.
pub(crate) fn of(task: &Task) -> ExchangeQuery {
    ExchangeQuery {
        task: Some(task.name.clone()),
        purpose: Some(Purpose::User),
        ..ExchangeQuery::default()
    }
}

/// What a task's dataset is made of: that, and what a model wrote for it and a person accepted.
pub(crate) fn of_dataset(task: &Task) -> ExchangeQuery {
    ExchangeQuery {
        or_synthetic: true,
        ..of(task)
    }
}

/// What an adapter is asked and answers, as a whole conversation.
pub fn conversation(task: &Task, row: &Row) -> Value {
    let mut messages = task.messages(PromptKind::Adapter, &row.messages);
    messages.push(ChatMessage::new("assistant", row.answer.as_str()));
    json!({ "messages": messages })
}

/// `dataset.json`: where each row of the files came from, and what became of all others.
#[derive(Debug, Serialize)]
pub struct Written {
    pub task: String,
    pub created: DateTime<Utc>,
    pub exchanges_version: u64,
    pub feedback_version: u64,
    pub counts: Counts,
    pub coverage: Coverage,
    pub files: Vec<WrittenFile>,
    pub taken: Vec<Taken>,
}

#[derive(Debug, Serialize)]
pub struct WrittenFile {
    pub name: String,
    pub sha256: String,
    /// A line each, in the file's order.
    pub rows: Vec<Provenance>,
}

#[derive(Debug, Serialize)]
pub struct Provenance {
    pub request_id: String,
    pub ts: DateTime<Utc>,
    pub known_by: KnownBy,
}

impl Provenance {
    /// A row's.
    pub fn of(row: &Row) -> Self {
        Self {
            request_id: row.request_id.clone(),
            ts: row.ts,
            known_by: row.known_by,
        }
    }
}

/// Writes `train.jsonl`, `development.jsonl`, `held_out.jsonl`, and `dataset.json` last.
///
/// # Errors
/// The file that cannot be written, or is there already.
pub fn write(read: Read, task: &Task, folder: &Path) -> Result<Written, Error> {
    std::fs::create_dir_all(folder).map_err(Error::file(folder))?;
    let dataset = read.dataset;
    let parts = [
        ("train.jsonl", &dataset.train),
        ("development.jsonl", &dataset.development),
        ("held_out.jsonl", &dataset.held_out),
    ];
    let mut files = Vec::new();
    for (name, rows) in parts {
        let path = folder.join(name);
        files.push(lines(task, name, rows, &path).map_err(Error::file(&path))?);
    }
    let written = Written {
        task: task.name.clone(),
        created: Utc::now(),
        exchanges_version: read.exchanges_version,
        feedback_version: read.feedback_version,
        counts: dataset.counts,
        coverage: read.coverage,
        files,
        taken: dataset.taken,
    };
    let path = folder.join("dataset.json");
    let text = serde_json::to_string_pretty(&written).map_err(Error::Report)?;
    let create = || {
        let mut file = std::fs::File::create_new(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    create().map_err(Error::file(&path))?;
    Ok(written)
}

fn lines(task: &Task, name: &str, rows: &[Row], path: &Path) -> std::io::Result<WrittenFile> {
    let mut out = BufWriter::new(std::fs::File::create_new(path)?);
    let mut digest = Sha256::new();
    for row in rows {
        let line = format!("{}\n", conversation(task, row));
        digest.update(&line);
        out.write_all(line.as_bytes())?;
    }
    out.into_inner()?.sync_all()?;
    Ok(WrittenFile {
        name: name.to_owned(),
        sha256: hex(&digest.finalize()),
        rows: rows.iter().map(Provenance::of).collect(),
    })
}

/// The exchanges of one split that only one of two datasets has.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub split: &'static str,
    pub before: usize,
    pub after: usize,
    pub added: Vec<String>,
    pub removed: Vec<String>,
}

/// Lays two datasets beside each other: what an adapter was made of (`triage@2`), or what one would be made of `now`.
///
/// # Errors
/// A name that is neither; an adapter of which nobody knows what it was made of.
pub async fn difference(
    ledger: &Ledger,
    task: &Task,
    before: &str,
    after: &str,
) -> Result<Vec<Difference>, Error> {
    let (before, after) = (
        examples(ledger, task, before).await?,
        examples(ledger, task, after).await?,
    );
    Ok(vec![
        differ("train", &before.train, &after.train),
        differ("development", &before.development, &after.development),
        differ("held_out", &before.held_out, &after.held_out),
    ])
}

async fn examples(ledger: &Ledger, task: &Task, name: &str) -> Result<Examples, Error> {
    if name == "now" {
        return Ok(read(ledger, task).await?.dataset.examples());
    }
    let unknown = |what: &str| Error::NoDataset {
        name: name.to_owned(),
        what: what.to_owned(),
    };
    match ModelName::parse(name) {
        Some(ModelName::Adapter { task: of, number }) if of == task.name => {
            let found = ledger.examples(&of, number).await?;
            found.ok_or_else(|| unknown("nobody knows what it was made of: it was imported, or made by an earlier version"))
        }
        _ => Err(unknown(&format!(
            "expected an adapter of {}, such as {}@1, or now",
            task.name, task.name
        ))),
    }
}

fn differ(split: &'static str, before: &[String], after: &[String]) -> Difference {
    let only = |these: &[String], those: &[String]| {
        let those: HashSet<&String> = those.iter().collect();
        let only = these.iter().filter(|id| !those.contains(id));
        only.cloned().collect()
    };
    Difference {
        split,
        before: before.len(),
        after: after.len(),
        added: only(after, before),
        removed: only(before, after),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::testing::{asked, config, corrected};

    #[tokio::test]
    async fn what_a_run_would_learn_from_as_files() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), "");
        let (ledger, task) = (Ledger::open(&config.store).await.unwrap(), &config.tasks[0]);
        for n in 0..60 {
            let prompt = format!("what is thing {}", n * 37);
            ledger
                .append_exchange(asked(n, &prompt, "?"))
                .await
                .unwrap();
            let right = format!(r#"{{"is":"{n}"}}"#);
            ledger
                .append_feedback(corrected(n, 100, "ann", &right))
                .await
                .unwrap();
        }
        ledger.flush().await.unwrap();
        let out = folder.path().join("out");
        let found = read(&ledger, task).await.unwrap();
        let count = found.dataset.len();
        assert_eq!(count, 60);
        let written = write(found, task, &out).unwrap();
        let lines: usize = written.files.iter().map(|file| file.rows.len()).sum();
        assert_eq!(lines, count);
        for file in &written.files {
            let text = std::fs::read_to_string(out.join(&file.name)).unwrap();
            assert_eq!(text.lines().count(), file.rows.len());
            assert_eq!(hex(&Sha256::digest(&text)), file.sha256);
            for (line, row) in text.lines().zip(&file.rows) {
                let line: Value = serde_json::from_str(line).unwrap();
                let n = row.request_id.strip_prefix("request-").unwrap();
                assert_eq!(line["messages"][0]["content"], "Ask.");
                assert_eq!(line["messages"][2]["content"], format!(r#"{{"is":"{n}"}}"#));
                assert!(retune_wire::TrainingLine::read(line.to_string().as_bytes()).is_ok());
            }
        }
        // What is there is not written over.
        let again = read(&ledger, task).await.unwrap();
        let error = write(again, task, &out).unwrap_err().to_string();
        assert!(error.contains("train.jsonl"), "{error}");
        let error = difference(&ledger, task, "ask@7", "now").await.unwrap_err();
        assert!(error.to_string().contains("ask@7"), "{error}");
        let error = difference(&ledger, task, "x", "now").await.unwrap_err();
        assert!(error.to_string().contains("ask@1"), "{error}");
        let same = difference(&ledger, task, "now", "now").await.unwrap();
        assert!(
            same.iter()
                .all(|one| one.added.is_empty() && one.removed.is_empty())
        );
        ledger.close().await.unwrap();
    }

    #[test]
    fn only_what_one_of_two_has() {
        let ids = |ids: &[&str]| -> Vec<String> { ids.iter().map(|id| (*id).to_owned()).collect() };
        let found = differ("train", &ids(&["a", "b"]), &ids(&["b", "c", "d"]));
        assert_eq!((found.before, found.after), (2, 3));
        assert_eq!(
            (found.added, found.removed),
            (ids(&["c", "d"]), ids(&["a"]))
        );
    }
}
