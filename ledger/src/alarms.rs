//! Alarms, and what somebody said to them.
//!
//! An alarm is a file that is created once, and what is said to it are numbered files beside it: the last word counts. So nobody
//! changes what was measured, and it stays known who wanted quiet, and why.

use chrono::{DateTime, Utc};
use retune_task::AlarmKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::ledger::Ledger;
use crate::place::Place;

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

/// What somebody said to an alarm. Either way it calls nobody for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// When it was said.
    pub at: DateTime<Utc>,
    /// The id of the key with which it was said; none where there are no keys.
    pub by: Option<String>,
    /// Why.
    pub reason: String,
    /// The alarm is silenced until then: nothing is done about it. None: it is acknowledged, and what it asked for goes on.
    pub silenced_until: Option<DateTime<Utc>>,
}

/// A sentence of at most [`Word::LONGEST`] characters.
pub(crate) fn checked_reason(reason: &str) -> Result<String, Error> {
    let reason = reason.trim();
    let characters = reason.chars().count();
    if reason.is_empty() || characters > Word::LONGEST {
        return Err(Error::Reason { characters });
    }
    Ok(reason.to_owned())
}

impl Word {
    /// Characters of a reason.
    pub const LONGEST: usize = 1_000;

    /// Checks the reason: a sentence of at most [`LONGEST`](Self::LONGEST) characters.
    pub fn new(
        at: DateTime<Utc>,
        by: Option<String>,
        reason: &str,
        silenced_until: Option<DateTime<Utc>>,
    ) -> Result<Self, Error> {
        Ok(Self {
            at,
            by,
            reason: checked_reason(reason)?,
            silenced_until,
        })
    }

    /// Whether the alarm calls nobody at a time, if this was said last.
    pub fn quiets(&self, now: DateTime<Utc>) -> bool {
        self.silenced_until.is_none_or(|until| now < until)
    }

    /// Whether nothing is done about the alarm at a time, if this was said last.
    pub fn holds_back(&self, now: DateTime<Utc>) -> bool {
        self.silenced_until.is_some_and(|until| now < until)
    }
}

impl Ledger {
    /// Creates a trigger; false if it was there.
    pub async fn put_trigger(&self, trigger: &Trigger) -> Result<bool, Error> {
        let trigger = trigger.clone();
        self.blocking(move |store| put(store, &trigger)).await
    }

    /// A task's triggers, or all, oldest first.
    pub async fn triggers(&self, task: Option<&str>) -> Result<Vec<Trigger>, Error> {
        let task = task.map(str::to_owned);
        self.blocking(move |store| triggers(store, task.as_deref()))
            .await
    }

    /// Says something to an alarm; the last word counts.
    pub async fn say(&self, trigger: &Trigger, word: &Word) -> Result<(), Error> {
        let (task, alarm, word) = (trigger.task.clone(), trigger.alarm.clone(), word.clone());
        self.blocking(move |store| say(store, &task, &alarm, &word))
            .await
    }

    /// The last word to an alarm, if anybody said one.
    pub async fn last_word(&self, trigger: &Trigger) -> Result<Option<Word>, Error> {
        let (task, alarm) = (trigger.task.clone(), trigger.alarm.clone());
        self.blocking(move |store| last_word(store, &task, &alarm))
            .await
    }
}

fn place(store: &Place, task: &str, alarm: &str) -> Place {
    let triggers = store.join("triggers").join(task);
    triggers.join(format!("{alarm}.json"))
}

fn put(store: &Place, trigger: &Trigger) -> Result<bool, Error> {
    place(store, &trigger.task, &trigger.alarm).create_json_once(trigger)
}

/// Triggers of a task, or of all, oldest first.
fn triggers(store: &Place, task: Option<&str>) -> Result<Vec<Trigger>, Error> {
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

fn words(store: &Place, task: &str, alarm: &str) -> Place {
    store.join("alarms").join(task).join(alarm)
}

/// Adds a word; another's that comes at the same time stays, too.
fn say(store: &Place, task: &str, alarm: &str, word: &Word) -> Result<(), Error> {
    let folder = words(store, task, alarm);
    let mut number = last_number(&folder)?.map_or(1, |last| last + 1);
    while !folder
        .join(format!("{number}.json"))
        .create_json_once(word)?
    {
        number += 1;
    }
    Ok(())
}

fn last_number(folder: &Place) -> Result<Option<u64>, Error> {
    let names = folder.names()?;
    let numbers = names.iter();
    let numbers = numbers.filter_map(|name| name.strip_suffix(".json")?.parse().ok());
    Ok(numbers.max())
}

fn last_word(store: &Place, task: &str, alarm: &str) -> Result<Option<Word>, Error> {
    let folder = words(store, task, alarm);
    match last_number(&folder)? {
        Some(number) => folder.join(format!("{number}.json")).read_json(),
        None => Ok(None),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn the_last_word_counts() {
        let folder = tempfile::tempdir().unwrap();
        let store = Place::folder(folder.path().to_owned());
        let now = Utc::now();
        let word = |reason: &str, minutes: Option<i64>| {
            let until = minutes.map(|minutes| now + TimeDelta::minutes(minutes));
            Word::new(now, None, reason, until).unwrap()
        };
        assert_eq!(last_word(&store, "t", "a").unwrap(), None);
        let silenced = word("a campaign", Some(5));
        say(&store, "t", "a", &silenced).unwrap();
        assert_eq!(
            last_word(&store, "t", "a").unwrap().as_ref(),
            Some(&silenced)
        );
        assert_eq!(last_word(&store, "t", "b").unwrap(), None);
        assert!(silenced.quiets(now) && silenced.holds_back(now));
        let later = now + TimeDelta::minutes(6);
        assert!(!silenced.quiets(later) && !silenced.holds_back(later));
        for n in 0..11 {
            say(&store, "t", "a", &word(&n.to_string(), None)).unwrap();
        }
        let last = last_word(&store, "t", "a").unwrap().unwrap();
        assert_eq!(last.reason, "10");
        assert!(last.quiets(later) && !last.holds_back(now));
    }

    #[test]
    fn a_word_needs_a_reason() {
        let word = |reason: &str| Word::new(Utc::now(), None, reason, None);
        assert_eq!(word(" a campaign\n").unwrap().reason, "a campaign");
        assert!(word(&"é".repeat(Word::LONGEST)).is_ok());
        for reason in ["", " \n", &"é".repeat(Word::LONGEST + 1)] {
            assert!(word(reason).is_err(), "{reason:?}");
        }
    }
}
