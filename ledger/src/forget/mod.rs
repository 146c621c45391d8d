//! Forgetting: a person on demand, and everybody by age.
//!
//! Everything else here only adds; this takes away, and has to from everywhere: the newest version of each table and the files of older
//! ones, the logs, the reports. In this order, so that it can be killed at any step and gone on with by whoever comes next:
//!
//! 1. A tombstone is created. From now on no log of any process brings rows of that person into a table ([`gone`]).
//! 2. The logs of this machine's processes are published, what they still had with it left out.
//! 3. The person's exchanges, and what was said of them, are listed in the tombstone.
//! 4. They go: from the tables, from older versions' files, from reports. Then 2 and 3 again, until nothing of theirs is left in a table: a log's
//!    row that was read before the list was there is looked for only where it came to.
//! 5. Adapters that were trained on them get a note beside their manifest. What they learned stays: they are listed, to be retrained.
//! 6. The tombstone says that it is done.
//!
//! From step 3 on it needs the right to upkeep, since a merge at the same time would bring rows back. Upkeep looks for
//! tombstones that are not done, and goes on with them.

mod age;
mod files;
pub(crate) mod gone;
mod reports;
pub(crate) mod tombstones;

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::adapters;
use crate::error::Error;
use crate::faults;
use crate::ledger::Ledger;
use crate::queries::{quoted, time};
use crate::schema::Table;
use crate::upkeep;
use crate::wal::LOGGED;
use files::Cleaned;
use gone::{Gone, user_key};
use tombstones::{Found, Tombstone, Tombstones};

/// Between two looks whether another process is done with what it does alone.
const LOOK: Duration = Duration::from_millis(200);

/// How often what is to go is taken out before it is given up: rows of a person come from logs, and only while they are being listed.
const ROUNDS: usize = 10;

/// What became of a person's traces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// Exchanges that were in the tables, with what runs and probes asked again.
    pub exchanges: u64,
    /// What was said of them.
    pub feedback: u64,
    /// Tables' files that were written anew.
    pub files_rewritten: u64,
    /// Files of older versions that were deleted.
    pub files_deleted: u64,
    /// Reports of runs that showed some of them, in this machine's folder.
    pub reports: Vec<PathBuf>,
    /// Adapters that learned from them.
    pub adapters: Vec<LearnedFrom>,
    /// Adapters of which nobody knows: trained by a version that kept no list of examples.
    pub adapters_unknown: Vec<String>,
    /// Damaged files, which may have some of their rows.
    pub unread: Vec<PathBuf>,
}

/// How many of an adapter's examples were forgotten; its tombstone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearnedFrom {
    /// Its name, `support@3`.
    pub adapter: String,
    /// When they were.
    pub at: DateTime<Utc>,
    /// Of those that it was trained on.
    pub train: u64,
    /// Of those that its checkpoint was chosen by.
    pub development: u64,
    /// Of those that it was examined with.
    pub held_out: u64,
}

/// What forgetting is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgetting {
    /// Another process merges files.
    Waiting,
    /// Logs are being published.
    Publishing,
    /// A table's files are looked at: done, of how many.
    Files(Table, usize, usize),
}

type Progress<'a> = &'a mut (dyn FnMut(Forgetting) + Send);

impl Ledger {
    /// Forgets a user: whatever was asked in that name until now, what was said of it, and what runs and probes asked again.
    pub async fn forget(&self, user: &str, progress: Progress<'_>) -> Result<Forgotten, Error> {
        for table in LOGGED {
            if !self.handle(table).is_by_day() {
                let table = table.name();
                return Err(Error::CannotForget { table });
            }
        }
        let name = {
            let user = user.to_owned();
            self.by_tombstones(move |all| all.begin(&user, Utc::now()))
                .await?
        };
        step("forget-begun")?;
        loop {
            if let Some(lease) = self.lease(upkeep::LEASE).await? {
                lease
                    .during(self.forget_begun(Some(user), progress))
                    .await?;
            } else {
                progress(Forgetting::Waiting);
                tokio::time::sleep(LOOK).await;
            }
            let name = name.clone();
            if let Some(done) = self.by_tombstones(move |all| all.done(&name)).await? {
                return Ok(done);
            }
        }
    }

    /// What there is of a user, and would go.
    pub async fn would_forget(&self, user: &str) -> Result<Forgotten, Error> {
        let known = BTreeSet::new();
        let (found, _) = self.find(&[user.to_owned()], Utc::now(), known).await?;
        let ids: HashSet<String> = found.exchanges.iter().cloned().collect();
        let (adapters, adapters_unknown) = self.learned_from(ids, Utc::now()).await?;
        Ok(Forgotten {
            exchanges: found.exchanges.len() as u64,
            feedback: found.feedback.len() as u64,
            adapters,
            adapters_unknown,
            ..Forgotten::default()
        })
    }

    /// Those of some exchanges that were forgotten.
    pub async fn forgotten<'a>(
        &self,
        exchanges: impl Iterator<Item = &'a str>,
    ) -> Result<HashSet<String>, Error> {
        let gone = self.by_tombstones(Tombstones::gone).await?;
        let gone = exchanges.filter(|id| gone.has_exchange(id));
        Ok(gone.map(str::to_owned).collect())
    }

    /// Goes on with whatever was begun; for who holds the right to upkeep. `user`: a name that may be among those to be forgotten.
    pub(crate) async fn forget_begun(
        &self,
        user: Option<&str>,
        progress: Progress<'_>,
    ) -> Result<(), Error> {
        let all = self.by_tombstones(Tombstones::all).await?;
        for tombstone in all.iter().filter(|t| !t.is_done) {
            self.forget_one(&tombstone.name, user, progress).await?;
        }
        Ok(())
    }

    async fn by_tombstones<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Tombstones) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let tombstones = self.tombstones().clone();
        self.blocking(move |_| work(&tombstones)).await
    }

    async fn forget_one(
        &self,
        name: &str,
        user: Option<&str>,
        progress: Progress<'_>,
    ) -> Result<(), Error> {
        let mut cleaned = Cleaned::default();
        let mut rounds = 0;
        let (tombstone, gone) = loop {
            let (tombstone, gone, left) = self.list(name, user, progress).await?;
            // Once more than it takes: what a log had read before the list was there comes to its table without being asked.
            if left == 0 && (rounds > 0 || tombstone.found.exchanges.is_empty()) {
                break (tombstone, gone);
            }
            if rounds == ROUNDS {
                return Err(Error::StillComing { rows: left });
            }
            rounds += 1;
            cleaned.extend(self.clean(&gone, progress).await?);
            step("forget-cleaned")?;
        };
        let reports = self.clean_reports(gone.clone()).await?;
        step("forget-reported")?;
        let ids = gone.exchanges.clone();
        let (adapters, adapters_unknown) = self.learned_from(ids, tombstone.at).await?;
        let done = Forgotten {
            exchanges: tombstone.found.exchanges.len() as u64,
            feedback: tombstone.found.feedback.len() as u64,
            files_rewritten: cleaned.rewritten,
            files_deleted: cleaned.deleted,
            reports,
            adapters,
            adapters_unknown,
            unread: cleaned.unread,
        };
        let tombstones = self.tombstones().clone();
        self.blocking(move |store| {
            for learned in &done.adapters {
                adapters::note_forgotten(store, learned, &tombstone.name)?;
            }
            faults::at("forget-noted").map_err(Error::io(&store.shown()))?;
            tombstones.end(&tombstone, &done)
        })
        .await
    }

    /// Brings the logs' rows into the tables, and lists in a tombstone what is to go: the tombstone, all that is to go, and how many rows of it
    /// are in the tables.
    async fn list(
        &self,
        name: &str,
        user: Option<&str>,
        progress: Progress<'_>,
    ) -> Result<(Tombstone, Arc<Gone>, usize), Error> {
        progress(Forgetting::Publishing);
        self.publish().await?;
        if self.is_bucket() {
            // Another machine may be committing what it read before the tombstone was there.
            tokio::time::sleep(self.settled()).await;
        }
        step("forget-published")?;
        let tombstone = {
            let name = name.to_owned();
            self.by_tombstones(move |all| all.one(&name)).await?
        };
        let names = match user.filter(|user| user_key(self.secret(), user) == tombstone.user) {
            Some(user) => vec![user.to_owned()],
            None => self.users(&tombstone.user).await?,
        };
        // With what an earlier try found, and perhaps took away already, and what logs had.
        let known = tombstone.found.exchanges.clone();
        let (found, here) = self.find(&names, tombstone.at, known).await?;
        let left = here + found.feedback.len();
        let query = "select request_id, conversation from exchanges where purpose = 'user'";
        let conversations = match found.exchanges.is_empty() {
            true => BTreeSet::new(),
            false => self.of_exchanges(query, &found.exchanges).await?,
        };
        let tombstone = {
            let name = name.to_owned();
            self.by_tombstones(move |all| all.add(&name, &found))
                .await?
        };
        step("forget-listed")?;
        let gone = Arc::new(Gone {
            secret: *self.secret(),
            users: [(tombstone.user.clone(), tombstone.at)].into(),
            exchanges: tombstone.found.exchanges.iter().cloned().collect(),
            conversations: conversations.into_iter().collect(),
            before: None,
        });
        Ok((tombstone, gone, left))
    }

    /// Takes what is to go from the tables' files; feedback first, so that none is there whose exchange is not.
    async fn clean(&self, gone: &Arc<Gone>, progress: Progress<'_>) -> Result<Cleaned, Error> {
        let mut all = Cleaned::default();
        if gone.exchanges.is_empty() && gone.before.is_none() {
            return Ok(all);
        }
        for table in [Table::Feedback, Table::Runs, Table::Exchanges] {
            let mut told = |done, of| progress(Forgetting::Files(table, done, of));
            all.extend(files::clean(self.handle(table), gone, &mut told).await?);
        }
        Ok(all)
    }

    /// This machine's reports; those that were changed.
    async fn clean_reports(&self, gone: Arc<Gone>) -> Result<Vec<PathBuf>, Error> {
        let folder = self.files().join("reports");
        self.blocking(move |_| reports::clean(&folder, &gone)).await
    }

    /// Cleans this machine's reports of what was forgotten elsewhere, if anything was since `known` tombstones were; how many there are.
    pub(crate) async fn clean_own_reports(&self, known: usize) -> Result<usize, Error> {
        let all = self.by_tombstones(Tombstones::all).await?;
        let done = all.iter().filter(|tombstone| tombstone.is_done).count();
        if done != known {
            let gone = self.by_tombstones(Tombstones::gone).await?;
            self.clean_reports(gone).await?;
        }
        Ok(done)
    }

    /// Names of users that have this key.
    async fn users(&self, key: &str) -> Result<Vec<String>, Error> {
        let query = "select distinct \"user\" from exchanges where \"user\" is not null";
        let mut names = Vec::new();
        self.each_text(query, |user, _| {
            if user_key(self.secret(), user) == key {
                names.push(user.to_owned());
            }
        })
        .await?;
        Ok(names)
    }

    /// What users asked until then, with some exchanges that are known, and what was said of all that; and how many of the exchanges are in
    /// their table.
    async fn find(
        &self,
        users: &[String],
        until: DateTime<Utc>,
        exchanges: BTreeSet<String>,
    ) -> Result<(Found, usize), Error> {
        let mut found = Found {
            exchanges,
            feedback: BTreeSet::new(),
        };
        let mut here = 0;
        for user in users {
            let (user, until) = (quoted(user), time(until));
            let query = format!(
                "select request_id from exchanges where \"user\" = {user} and ts <= {until}"
            );
            let exchanges = &mut found.exchanges;
            self.each_text(&query, |id, _| {
                here += 1;
                exchanges.insert(id.to_owned());
            })
            .await?;
        }
        if !found.exchanges.is_empty() {
            let query = "select request_id, feedback_id from feedback";
            found.feedback = self.of_exchanges(query, &found.exchanges).await?;
        }
        Ok((found, here))
    }

    /// Of a question's rows whose first column is one of some exchanges, the second.
    async fn of_exchanges(
        &self,
        query: &str,
        exchanges: &BTreeSet<String>,
    ) -> Result<BTreeSet<String>, Error> {
        let mut found = BTreeSet::new();
        self.each_text(query, |id, second| {
            if exchanges.contains(id) {
                found.extend(second.map(str::to_owned));
            }
        })
        .await?;
        Ok(found)
    }

    /// Adapters that were made from some exchanges, and those of which that is not known.
    async fn learned_from(
        &self,
        exchanges: HashSet<String>,
        at: DateTime<Utc>,
    ) -> Result<(Vec<LearnedFrom>, Vec<String>), Error> {
        let local = self.local();
        self.blocking(move |store| adapters::learned_from(store, &local, &exchanges, at))
            .await
    }
}

fn step(step: &'static str) -> Result<(), Error> {
    faults::at(step).map_err(Error::io(&PathBuf::from("forgotten")))
}
