//! What was decided: which adapter stands where, which alarm was raised, what a stream is measured against, and who
//! works on what at this moment.

use std::fs::{File, TryLockError};
use std::path::Path;

use chrono::{DateTime, Utc};
use retune_task::AlarmKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::files;
use crate::rows::Cursor;
use crate::stages::Stages;

/// An alarm, and what it rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trigger {
    /// Its id, unique in the task.
    pub alarm: String,
    /// The task.
    pub task: String,
    /// Whose answers it is about.
    pub adapter: String,
    /// What it is about.
    pub kind: AlarmKind,
    /// Of the exchange that crossed the threshold.
    pub ts: DateTime<Utc>,
    /// That exchange.
    pub request_id: String,
    /// Tested since the reference.
    pub exchanges: u64,
    /// The statistic at the crossing.
    pub log_e: f64,
    /// What it crossed.
    pub threshold_log: f64,
    /// Counts, samples, limits.
    pub evidence: Value,
}

/// The yardstick of an adapter's streams.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// The task.
    pub task: String,
    /// The adapter's name, `triage@base` or `triage@3`.
    pub adapter: String,
    /// The adapter's digest; none for the baseline.
    pub digest: Option<String>,
    /// When it was frozen.
    pub created: DateTime<Utc>,
    /// Answers in it.
    pub exchanges: u64,
    /// Of these, invalid ones.
    pub format_invalid: u64,
    /// For the baseline: the exchange that completed it.
    pub last: Option<Cursor>,
    /// A sample of prompts, for input drift.
    pub prompts: Option<Value>,
}

/// The right to work on something. Given back when dropped, and by the operating system when its process dies.
#[derive(Debug)]
pub struct Lease {
    _file: File,
}

/// The numbers of a task's decisions, in order.
fn decisions(store: &Path, task: &str) -> Result<Vec<u64>, Error> {
    let number = |name: &String| {
        name.strip_suffix(".json")
            .and_then(|n| n.parse::<u64>().ok())
    };
    let names = files::names(&store.join("stages").join(task))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn decision(store: &Path, task: &str, seq: u64) -> Result<Stages, Error> {
    let path = store.join("stages").join(task).join(format!("{seq}.json"));
    let found = files::read_json::<Stages>(&path)?;
    Ok(Stages {
        seq,
        ..found.unwrap_or_default()
    })
}

pub(crate) fn stages(store: &Path, task: &str) -> Result<Stages, Error> {
    match decisions(store, task)?.last() {
        Some(seq) => decision(store, task, *seq),
        None => Ok(Stages::default()),
    }
}

pub(crate) fn history(store: &Path, task: &str) -> Result<Vec<Stages>, Error> {
    let numbers = decisions(store, task)?;
    numbers
        .into_iter()
        .map(|seq| decision(store, task, seq))
        .collect()
}

pub(crate) fn set_stages(
    store: &Path,
    task: &str,
    expected: u64,
    after: &Stages,
) -> Result<(), Error> {
    let conflict = || Error::Conflict {
        what: format!("the stages of {task}"),
    };
    if stages(store, task)?.seq != expected {
        return Err(conflict());
    }
    let next = Stages {
        seq: expected + 1,
        at: Some(Utc::now()),
        ..after.clone()
    };
    let path = store
        .join("stages")
        .join(task)
        .join(format!("{}.json", next.seq));
    if files::create_json_once(&path, &next)? {
        Ok(())
    } else {
        Err(conflict())
    }
}

pub(crate) fn put_trigger(store: &Path, trigger: &Trigger) -> Result<bool, Error> {
    let path = store
        .join("triggers")
        .join(&trigger.task)
        .join(format!("{}.json", trigger.alarm));
    files::create_json_once(&path, trigger)
}

/// Triggers of a task, or of all, oldest first.
pub(crate) fn triggers(store: &Path, task: Option<&str>) -> Result<Vec<Trigger>, Error> {
    let root = store.join("triggers");
    let tasks = match task {
        Some(task) => vec![task.to_owned()],
        None => files::names(&root)?,
    };
    let mut triggers: Vec<Trigger> = Vec::new();
    for task in tasks {
        let folder = root.join(task);
        for name in files::names(&folder)? {
            triggers.extend(files::read_json(&folder.join(name))?);
        }
    }
    triggers.sort_by(|a, b| (a.ts, &a.alarm).cmp(&(b.ts, &b.alarm)));
    Ok(triggers)
}

fn reference_path(store: &Path, task: &str, adapter: &str) -> std::path::PathBuf {
    store
        .join("references")
        .join(task)
        .join(format!("{adapter}.json"))
}

pub(crate) fn put_reference(store: &Path, reference: &Reference) -> Result<bool, Error> {
    files::create_json_once(
        &reference_path(store, &reference.task, &reference.adapter),
        reference,
    )
}

pub(crate) fn reference(
    store: &Path,
    task: &str,
    adapter: &str,
    digest: Option<&str>,
) -> Result<Option<Reference>, Error> {
    let found: Option<Reference> = files::read_json(&reference_path(store, task, adapter))?;
    Ok(found.filter(|r| digest.is_none() || r.digest.as_deref() == digest))
}

pub(crate) fn lease(store: &Path, name: &str) -> Result<Option<Lease>, Error> {
    let folder = store.join("leases");
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let path = folder.join(format!("{name}.lock"));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Lease { _file: file })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(Error::io(&path)(e)),
    }
}
