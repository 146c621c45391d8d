//! The right to work on something alone.
//!
//! In a folder it is a locked file: the operating system gives it back when its process dies. In a bucket there are no locks; there it
//! is the newest of numbered objects, each created if absent, which says until when it is whose. Its holder makes the next one before
//! that time is over, and whoever wants it later than that may do so too. So holders' clocks have to agree within [`SLACK`].

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::bucket::Bucket;
use crate::error::Error;
use crate::place::Place;
use crate::threads;

/// How long it is somebody's who does not say again that it is.
const TERM: TimeDelta = TimeDelta::seconds(60);
/// When it is said again.
const RENEWAL: Duration = Duration::from_secs(20);
/// And when that failed: the sooner it is known whether somebody else has it by now, the better.
const AGAIN: Duration = Duration::from_secs(2);
/// What two clocks may differ by.
const SLACK: TimeDelta = TimeDelta::seconds(30);
const FOLDER: &str = "leases";

/// Given back when dropped, or when its process dies.
#[derive(Debug)]
pub struct Lease {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Locked {
        _file: File,
    },
    Renewed {
        _end: Sender<()>,
        given_back: oneshot::Receiver<()>,
        lost: oneshot::Receiver<()>,
    },
}

impl Lease {
    /// Does what it was taken for, and gives it back. Where it is lost meanwhile, to a suspended machine or a store that is away, the
    /// work ends where it is, as if the process had been killed: somebody else may be at it.
    ///
    /// # Errors
    /// The work's own, and that the lease was lost.
    pub async fn during<T, E: From<Error>>(
        mut self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let done = match &mut self.kind {
            Kind::Locked { .. } => work.await,
            Kind::Renewed { lost, .. } => tokio::select! {
                done = work => done,
                Ok(()) = lost => return Err(Error::LeaseLost.into()),
            },
        };
        self.give_back().await;
        done
    }

    /// Gives it back, and waits until others can take it; one that is dropped in a bucket may take a moment, or be kept from it by the
    /// process's end.
    pub async fn give_back(self) {
        if let Kind::Renewed {
            _end, given_back, ..
        } = self.kind
        {
            drop(_end);
            // Closed when the thread is done.
            drop(given_back.await);
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Term {
    holder: String,
    until: DateTime<Utc>,
}

/// Takes it; none while somebody else has it.
pub(crate) fn take(store: &Place, name: &str, holder: &str) -> Result<Option<Lease>, Error> {
    let kind = match store.as_bucket() {
        None => lock(&store.shown().join(FOLDER), name)?,
        Some(bucket) => Terms::new(bucket, name, holder).take()?,
    };
    Ok(kind.map(|kind| Lease { kind }))
}

fn lock(folder: &Path, name: &str) -> Result<Option<Kind>, Error> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let path = folder.join(format!("{name}.lock"));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Kind::Locked { _file: file })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(Error::io(&path)(e)),
    }
}

/// The numbered objects of one lease.
struct Terms {
    bucket: Arc<Bucket>,
    folder: Place,
    path: String,
    holder: String,
}

impl Terms {
    fn new(bucket: &Arc<Bucket>, name: &str, holder: &str) -> Self {
        let path = format!("{FOLDER}/{name}");
        Self {
            bucket: bucket.clone(),
            folder: Place::bucket(bucket.clone()).join(&path),
            path,
            // One process may ask twice.
            holder: format!("{holder}-{}", uuid::Uuid::new_v4().simple()),
        }
    }

    fn numbers(&self) -> Result<Vec<u64>, Error> {
        let names = self.folder.names()?;
        let number = |name: &String| name.strip_suffix(".json")?.parse().ok();
        let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn create(&self, number: u64, until: DateTime<Utc>) -> Result<bool, Error> {
        let holder = self.holder.clone();
        let place = self.folder.join(format!("{number}.json"));
        if !place.create_json_once(&Term { holder, until })? {
            return Ok(false);
        }
        // Whoever slept since its last look may have created one that others had, and deleted: the newest one counts.
        let is_newest = self.numbers()?.last().is_none_or(|last| *last <= number);
        if !is_newest {
            self.bucket
                .delete(&[format!("{}/{number}.json", self.path)])?;
        }
        Ok(is_newest)
    }

    fn take(self) -> Result<Option<Kind>, Error> {
        let numbers = self.numbers()?;
        let last = numbers.last().copied().unwrap_or_default();
        let term: Option<Term> = self.folder.join(format!("{last}.json")).read_json()?;
        if term.is_some_and(|term| term.until + SLACK > Utc::now()) {
            return Ok(None);
        }
        if !self.create(last + 1, Utc::now() + TERM)? {
            return Ok(None);
        }
        let old = numbers.iter().map(|n| format!("{}/{n}.json", self.path));
        self.bucket.delete(&old.collect::<Vec<_>>())?;
        let (end, ended) = channel();
        let (done, given_back) = oneshot::channel::<()>();
        let (is_lost, lost) = oneshot::channel();
        let (name, shown) = (self.path.clone(), self.folder.shown());
        let renew = move || {
            let _done = done;
            let (mut number, mut pause) = (last + 1, RENEWAL);
            loop {
                let over = ended.recv_timeout(pause) != Err(RecvTimeoutError::Timeout);
                // The next one is free for anybody once it is given back.
                let until = if over {
                    Utc::now() - SLACK
                } else {
                    Utc::now() + TERM
                };
                match self.create(number + 1, until) {
                    Ok(true) => {
                        let old = format!("{}/{number}.json", self.path);
                        drop(self.bucket.delete(&[old]));
                        number += 1;
                        pause = RENEWAL;
                    }
                    Ok(false) => {
                        tracing::error!(
                            lease = name,
                            "somebody else took a lease that was ours: a clock is wrong, or the store was away too long"
                        );
                        // Nobody may be waiting.
                        is_lost.send(()).ok();
                        return;
                    }
                    // It may go better the next time; when it is over, nobody waits for it longer than its term.
                    Err(error) => {
                        tracing::warn!(lease = name, %error, "a lease could not be renewed");
                        pause = AGAIN;
                    }
                }
                if over {
                    return;
                }
            }
        };
        threads::spawn("ledger-lease", renew).map_err(Error::io(&shown))?;
        Ok(Some(Kind::Renewed {
            _end: end,
            given_back,
            lost,
        }))
    }
}
