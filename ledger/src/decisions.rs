//! What was decided: which adapter stands where, which alarm was raised, and what a stream is measured against.

use chrono::{DateTime, Utc};
use retune_task::AlarmKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::place::Place;
use crate::reference::{Ratings, Reference};
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

/// The numbers of a task's decisions, in order.
fn decisions(store: &Place, task: &str) -> Result<Vec<u64>, Error> {
    let number = |name: &String| {
        name.strip_suffix(".json")
            .and_then(|n| n.parse::<u64>().ok())
    };
    let names = store.join("stages").join(task).names()?;
    let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn decision(store: &Place, task: &str, seq: u64) -> Result<Stages, Error> {
    let place = store.join("stages").join(task).join(format!("{seq}.json"));
    let found = place.read_json::<Stages>()?;
    Ok(Stages {
        seq,
        ..found.unwrap_or_default()
    })
}

pub(crate) fn stages(store: &Place, task: &str) -> Result<Stages, Error> {
    match decisions(store, task)?.last() {
        Some(seq) => decision(store, task, *seq),
        None => Ok(Stages::default()),
    }
}

pub(crate) fn history(store: &Place, task: &str) -> Result<Vec<Stages>, Error> {
    let numbers = decisions(store, task)?;
    numbers
        .into_iter()
        .map(|seq| decision(store, task, seq))
        .collect()
}

pub(crate) fn set_stages(
    store: &Place,
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
    let place = store
        .join("stages")
        .join(task)
        .join(format!("{}.json", next.seq));
    if place.create_json_once(&next)? {
        Ok(())
    } else {
        Err(conflict())
    }
}

pub(crate) fn put_trigger(store: &Place, trigger: &Trigger) -> Result<bool, Error> {
    let place = store
        .join("triggers")
        .join(&trigger.task)
        .join(format!("{}.json", trigger.alarm));
    place.create_json_once(trigger)
}

/// Triggers of a task, or of all, oldest first.
pub(crate) fn triggers(store: &Place, task: Option<&str>) -> Result<Vec<Trigger>, Error> {
    let root = store.join("triggers");
    let tasks = match task {
        Some(task) => vec![task.to_owned()],
        None => root.names()?,
    };
    let mut triggers: Vec<Trigger> = Vec::new();
    for task in tasks {
        let folder = root.join(task);
        for name in folder.names()? {
            triggers.extend(folder.join(name).read_json()?);
        }
    }
    triggers.sort_by(|a, b| (a.ts, &a.alarm).cmp(&(b.ts, &b.alarm)));
    Ok(triggers)
}

fn reference_place(store: &Place, task: &str, adapter: &str, of: &str) -> Place {
    store
        .join("references")
        .join(task)
        .join(format!("{adapter}{of}.json"))
}

/// An adapter's reference of ratings, beside that of its answers.
const RATINGS: &str = ".ratings";

pub(crate) fn put_ratings(store: &Place, ratings: &Ratings) -> Result<bool, Error> {
    reference_place(store, &ratings.task, &ratings.adapter, RATINGS).create_json_once(ratings)
}

pub(crate) fn ratings(store: &Place, task: &str, adapter: &str) -> Result<Option<Ratings>, Error> {
    reference_place(store, task, adapter, RATINGS).read_json()
}

pub(crate) fn put_reference(store: &Place, reference: &Reference) -> Result<bool, Error> {
    reference_place(store, &reference.task, &reference.adapter, "").create_json_once(reference)
}

pub(crate) fn reference(
    store: &Place,
    task: &str,
    adapter: &str,
    digest: Option<&str>,
) -> Result<Option<Reference>, Error> {
    let found: Option<Reference> = reference_place(store, task, adapter, "").read_json()?;
    Ok(found.filter(|r| digest.is_none() || r.digest.as_deref() == digest))
}
