//! Who was forgotten: what is left of a person, and keeps what they asked from coming back.
//!
//! A tombstone is a folder `forgotten/<name>/` of files that are created once, as all decisions are:
//! - `wish.json`: the user, by a key that tells the name to nobody, and until when what they asked is to go;
//! - `exchanges-<n>.json`: ids of exchanges and feedback that were found, before any of them goes: who goes on after a kill needs them;
//! - `done.json`: that it is done, and what was done. From then on it does not change: what still comes of that person gets a new one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, RecordBatch};
use arrow::error::ArrowError;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::Forgotten;
use super::gone::{Gone, user_key};
use crate::error::Error;
use crate::place::Place;
use crate::schema::{Table, text};

const FOLDER: &str = "forgotten";
const WISH: &str = "wish.json";
const FOUND: &str = "exchanges-";
const DONE: &str = "done.json";

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Wish {
    user: String,
    at: DateTime<Utc>,
}

/// Ids of a user's exchanges, and of what was said of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) exchanges: BTreeSet<String>,
    pub(crate) feedback: BTreeSet<String>,
}

impl Found {
    /// Takes over what another has; whether any of it is new.
    fn take(&mut self, other: &Self) -> bool {
        let before = (self.exchanges.len(), self.feedback.len());
        self.exchanges.extend(other.exchanges.iter().cloned());
        self.feedback.extend(other.feedback.iter().cloned());
        before != (self.exchanges.len(), self.feedback.len())
    }
}

/// Rows of a tombstone's.
#[derive(Default)]
struct Going {
    /// Their own ids.
    ids: BTreeSet<String>,
    /// Those of the exchanges for which they go.
    of: BTreeSet<String>,
}

/// One person who was, or is to be, forgotten.
#[derive(Debug, Clone)]
pub(crate) struct Tombstone {
    pub(crate) name: String,
    /// By [`user_key`].
    pub(crate) user: String,
    pub(crate) at: DateTime<Utc>,
    pub(crate) found: Found,
    /// Files that `found` is from.
    files: usize,
    pub(crate) is_done: bool,
}

/// All of them, each read once.
#[derive(Debug)]
pub(crate) struct Tombstones {
    folder: Place,
    secret: [u8; 32],
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    tombstones: BTreeMap<String, Arc<Tombstone>>,
    gone: Arc<Gone>,
}

/// A tombstone's name.
fn name(at: DateTime<Utc>, user: &str) -> String {
    let time = at.to_rfc3339_opts(SecondsFormat::Micros, true);
    let time: String = time.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{time}-{}", user.get(..12).unwrap_or_default())
}

fn wrong(table: Table, error: &ArrowError) -> Error {
    Error::Row {
        table: table.name(),
        what: error.to_string(),
    }
}

/// The name of a tombstone's list.
fn list(number: usize) -> String {
    format!("{FOUND}{number:06}.json")
}

impl Tombstones {
    pub(crate) fn of(store: &Place, secret: [u8; 32]) -> Self {
        Self {
            folder: store.join(FOLDER),
            secret,
            known: Mutex::default(),
        }
    }

    /// Begins to forget a user; the tombstone's name.
    pub(crate) fn begin(&self, user: &str, at: DateTime<Utc>) -> Result<String, Error> {
        let user = user_key(&self.secret, user);
        let name = name(at, &user);
        let wish = self.folder.join(&name).join(WISH);
        wish.create_json_once(&Wish { user, at })?;
        Ok(name)
    }

    /// One, as it is now.
    pub(crate) fn one(&self, name: &str) -> Result<Tombstone, Error> {
        self.read(name)?.ok_or_else(|| Error::Damaged {
            path: self.folder.join(name).shown(),
            what: "was there, and is gone".to_owned(),
        })
    }

    /// Leaves out of a log's rows what was forgotten before it came to its table.
    pub(crate) fn leave_out(&self, table: Table, batches: &mut [RecordBatch]) -> Result<(), Error> {
        let gone = self.gone()?;
        if gone.is_nothing() {
            return Ok(());
        }
        for batch in batches {
            if let Some(left) = gone.clean(table, batch).map_err(|e| wrong(table, &e))? {
                self.note(table, batch)?;
                *batch = left;
            }
        }
        Ok(())
    }

    /// Looks whether a log's rows that are in their table now were to go: whoever began to forget meanwhile did not find them.
    pub(crate) fn look_again(&self, table: Table, batches: &[RecordBatch]) -> Result<(), Error> {
        let gone = self.gone()?;
        if gone.is_nothing() {
            return Ok(());
        }
        for batch in batches {
            let going = gone.going(table, batch).map_err(|e| wrong(table, &e))?;
            if going.contains(&true) {
                self.note_come(table, batch)?;
            }
        }
        Ok(())
    }

    /// Notes rows that come from a log and go no further, since what others said of them goes too, wherever it is.
    fn note(&self, table: Table, batch: &RecordBatch) -> Result<(), Error> {
        for (tombstone, going) in self.going(table, batch)? {
            let mut found = Found::default();
            match table {
                Table::Exchanges => found.exchanges = going.ids,
                // Only to be counted.
                _ => found.feedback = going.ids,
            }
            if !tombstone.is_done {
                self.add(&tombstone.name, &found)?;
                // Whoever was at it may have ended it meanwhile, and not seen this.
                if !self.one(&tombstone.name)?.is_done {
                    continue;
                }
            }
            if !found.exchanges.is_subset(&tombstone.found.exchanges) {
                self.begin_again(&tombstone, &found)?;
            }
        }
        Ok(())
    }

    /// Notes rows that came to their table though they were to go: a person's wish was not there yet when they were looked through.
    fn note_come(&self, table: Table, batch: &RecordBatch) -> Result<(), Error> {
        for (tombstone, going) in self.going(table, batch)? {
            let found = Found {
                exchanges: going.of,
                feedback: BTreeSet::new(),
            };
            if !tombstone.is_done {
                self.add(&tombstone.name, &found)?;
            }
            if self.one(&tombstone.name)?.is_done {
                self.begin_again(&tombstone, &found)?;
            }
        }
        Ok(())
    }

    /// Of each tombstone that has some of these rows, which.
    fn going(
        &self,
        table: Table,
        batch: &RecordBatch,
    ) -> Result<Vec<(Arc<Tombstone>, Going)>, Error> {
        let id = match table {
            Table::Feedback => "feedback_id",
            _ => "request_id",
        };
        let (ids, exchanges) = (text(batch, id), text(batch, "request_id"));
        let ids = ids.map_err(|e| wrong(table, &e))?;
        let exchanges = exchanges.map_err(|e| wrong(table, &e))?;
        // Of feedback that prefers one to theirs it is theirs.
        let others = text(batch, "preferred_over").ok();
        let mut all = Vec::new();
        for tombstone in self.all()? {
            let gone = self.sum(std::iter::once(&tombstone));
            let rows = gone.going(table, batch).map_err(|e| wrong(table, &e))?;
            let mut going = Going::default();
            for row in (0..batch.num_rows()).filter(|row| rows[*row]) {
                going.ids.insert(ids.value(row).to_owned());
                let other = others.as_ref().filter(|others| others.is_valid(row));
                let other = other.map(|others| others.value(row));
                let of = [Some(exchanges.value(row)), other];
                let theirs = |id: &&str| table == Table::Exchanges || gone.has_exchange(id);
                let of = of.into_iter().flatten().filter(theirs);
                going.of.extend(of.map(str::to_owned));
            }
            if !going.ids.is_empty() {
                all.push((tombstone, going));
            }
        }
        Ok(all)
    }

    /// More of somebody who was forgotten.
    fn begin_again(&self, tombstone: &Tombstone, found: &Found) -> Result<(), Error> {
        let user = tombstone.user.clone();
        let folder = self.folder.join(name(Utc::now(), &user));
        folder.join(list(1)).create_json_once(found)?;
        // Last: until it is there, there is no tombstone.
        let at = tombstone.at;
        folder.join(WISH).create_json_once(&Wish { user, at })?;
        Ok(())
    }

    /// Notes what was found, unless it is known; the tombstone with all that is known then.
    pub(crate) fn add(&self, name: &str, found: &Found) -> Result<Tombstone, Error> {
        loop {
            let mut tombstone = self.one(name)?;
            let is_new = tombstone.found.take(found);
            let place = self.folder.join(name).join(list(tombstone.files + 1));
            // Where another process was quicker, its list is looked at first.
            if !is_new || place.create_json_once(found)? {
                return Ok(tombstone);
            }
        }
    }

    /// Says that what `tombstone` has is gone. What was noted in it since, and not looked for, gets one of its own.
    pub(crate) fn end(&self, tombstone: &Tombstone, done: &Forgotten) -> Result<(), Error> {
        let place = self.folder.join(&tombstone.name).join(DONE);
        place.create_json_once(done)?;
        // After it: whoever notes more looks for it after that.
        let found = self.one(&tombstone.name)?.found;
        match found.exchanges.is_subset(&tombstone.found.exchanges) {
            true => Ok(()),
            false => self.begin_again(tombstone, &found),
        }
    }

    /// What was done; none before it is.
    pub(crate) fn done(&self, name: &str) -> Result<Option<Forgotten>, Error> {
        self.folder.join(name).join(DONE).read_json()
    }

    /// What there is now.
    pub(crate) fn all(&self) -> Result<Vec<Arc<Tombstone>>, Error> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.look(&mut known)?;
        Ok(known.tombstones.values().cloned().collect())
    }

    /// All that they say is to go.
    pub(crate) fn gone(&self) -> Result<Arc<Gone>, Error> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.look(&mut known)?;
        Ok(known.gone.clone())
    }

    /// Reads what is new, or was not done.
    fn look(&self, known: &mut Known) -> Result<(), Error> {
        let mut changed = false;
        for name in self.folder.names()? {
            if known.tombstones.get(&name).is_some_and(|t| t.is_done) {
                continue;
            }
            // One without its wish is being made at this moment.
            if let Some(tombstone) = self.read(&name)? {
                known.tombstones.insert(name, Arc::new(tombstone));
                changed = true;
            }
        }
        if changed {
            known.gone = Arc::new(self.sum(known.tombstones.values()));
        }
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Option<Tombstone>, Error> {
        let folder = self.folder.join(name);
        let Some(Wish { user, at }) = folder.join(WISH).read_json()? else {
            return Ok(None);
        };
        let names = folder.names()?;
        let mut tombstone = Tombstone {
            name: name.to_owned(),
            user,
            at,
            found: Found::default(),
            files: 0,
            is_done: names.iter().any(|name| name == DONE),
        };
        for name in names.iter().filter(|name| name.starts_with(FOUND)) {
            let found: Option<Found> = folder.join(name).read_json()?;
            tombstone.found.take(&found.unwrap_or_default());
            tombstone.files += 1;
        }
        Ok(Some(tombstone))
    }

    fn sum<'a>(&self, tombstones: impl Iterator<Item = &'a Arc<Tombstone>>) -> Gone {
        let mut gone = Gone {
            secret: self.secret,
            ..Gone::default()
        };
        for tombstone in tombstones {
            let exchanges = tombstone.found.exchanges.iter().cloned();
            gone.exchanges.extend(exchanges);
            let until = gone.users.entry(tombstone.user.clone()).or_default();
            *until = tombstone.at.max(*until);
        }
        gone
    }
}

#[cfg(test)]
#[path = "tombstones_tests.rs"]
mod tests;
