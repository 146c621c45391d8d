//! The tables' files, seen as what forgetting needs of them: has a file rows that are to go, and what is left of it without them.
//!
//! A file is looked at by the few columns that tell, and read whole only where it has to be written anew. Files that no version has any
//! more are looked at too: an older version of the table must not show what was forgotten.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use chrono::NaiveDate;
use tokio::sync::mpsc;

use super::gone::Gone;
use crate::error::Error;
use crate::faults;
use crate::layout::DAY;
use crate::ledger::blocking;
use crate::parquet_file;
use crate::place::Place;
use crate::schema::Table;
use crate::table::Handle;
use crate::wal::LOGGED;

/// What no version has, and is younger, may be somebody's who is about to commit it.
const UNFINISHED: std::time::Duration = std::time::Duration::from_secs(3600);

/// What became of a table's files.
#[derive(Debug, Default)]
pub(crate) struct Cleaned {
    pub(crate) rewritten: u64,
    pub(crate) deleted: u64,
    /// Those that cannot be read, and may have rows that were to go.
    pub(crate) unread: Vec<PathBuf>,
}

impl Cleaned {
    pub(crate) fn extend(&mut self, other: Self) {
        self.rewritten += other.rewritten;
        self.deleted += other.deleted;
        self.unread.extend(other.unread);
    }
}

/// Takes rows out of every file of a table that has any. For who holds the right to upkeep: a merge at the same time would bring them
/// back. `progress` is told of files that were looked at, of how many.
pub(crate) async fn clean(
    handle: &Handle,
    gone: &Arc<Gone>,
    progress: &mut (dyn FnMut(usize, usize) + Send),
) -> Result<Cleaned, Error> {
    let since = gone.since();
    let may_touch = |path: &String| day_of(path).is_none_or(|day| gone.may_touch(day, since));
    let mut cleaned = Cleaned::default();
    let all = handle.files().await?;
    let all = all.iter().filter(|path| may_touch(path)).count();
    let mut looked_at = 0;
    let mut look = || {
        looked_at += 1;
        progress(looked_at, all.max(looked_at));
    };
    // Until there is none that was not looked at: whoever merged files meanwhile has put their rows into others.
    let mut seen = HashSet::new();
    loop {
        let mut current = current(handle).await?;
        current.retain(|path| may_touch(path) && !seen.contains(path));
        if current.is_empty() {
            break;
        }
        for path in current {
            look();
            let done = take_out(handle, &path, gone).await;
            seen.insert(path);
            if let Some(came) = readable(done, &mut cleaned)?.flatten() {
                seen.extend(came);
                cleaned.rewritten += 1;
                faults::at("forget-rewritten").map_err(Error::io(&handle.place().shown()))?;
            }
        }
    }
    // Listed before the version is taken: what is committed in between is in the version, and what was begun is not in the list.
    let mut beside = handle.files().await?;
    let (current, removed) = (self::current(handle).await?, handle.removed().await?);
    beside.retain(|path| may_touch(path) && !current.contains(path));
    for path in beside {
        look();
        let place = handle.place().join(&path);
        if !removed.contains(&path) && !is_abandoned(&place, handle.table(), gone).await? {
            continue;
        }
        let has_any = has_any(handle, &path, gone).await;
        if readable(has_any, &mut cleaned)?.unwrap_or_default() {
            blocking(move || place.remove()).await?;
            cleaned.deleted += 1;
            faults::at("forget-deleted").map_err(Error::io(&handle.place().shown()))?;
        }
    }
    Ok(cleaned)
}

async fn current(handle: &Handle) -> Result<HashSet<String>, Error> {
    let parts = handle.parts().await?;
    Ok(parts.into_iter().map(|part| part.path).collect())
}

/// Takes rows out of a file of the newest version; the files that came for it, if there were any.
async fn take_out(
    handle: &Handle,
    path: &str,
    gone: &Arc<Gone>,
) -> Result<Option<Vec<String>>, Error> {
    if !has_any(handle, path, gone).await? {
        return Ok(None);
    }
    let (table, place) = (handle.table(), handle.place().join(path));
    let left = match is_of_old_day(path, table, gone) {
        true => None,
        false => Some(left_of(place, table, gone.clone())),
    };
    handle.replace(path, left).await
}

/// A damaged file is told, and does not end it.
fn readable<T>(found: Result<T, Error>, cleaned: &mut Cleaned) -> Result<Option<T>, Error> {
    match found {
        Err(Error::Damaged { path, what }) => {
            tracing::error!(path = %path.display(), what, "a file cannot be read, and perhaps has rows that were to go");
            cleaned.unread.push(path);
            Ok(None)
        }
        found => found.map(Some),
    }
}

/// The day of a file's rows, where its table is partitioned by it.
fn day_of(path: &str) -> Option<NaiveDate> {
    let folder = path.split('/').next()?;
    folder.strip_prefix(DAY)?.strip_prefix('=')?.parse().ok()
}

/// Whether a file that no version has or had is one that nobody is about to commit. Of a person's rows in the tables that this machine's
/// logs fill every commit was waited for, and those that begin now have none of them; old rows may be coming, from an import.
async fn is_abandoned(place: &Place, table: Table, gone: &Gone) -> Result<bool, Error> {
    if place.as_bucket().is_some() {
        return Ok(false);
    }
    if LOGGED.contains(&table) && gone.before.is_none() {
        return Ok(true);
    }
    let path = place.shown();
    blocking(move || {
        let modified = std::fs::metadata(&path).and_then(|m| m.modified());
        let age = modified.map(|at| at.elapsed().unwrap_or_default());
        Ok(age.is_ok_and(|age| age > UNFINISHED))
    })
    .await
}

fn is_of_old_day(path: &str, table: Table, gone: &Gone) -> bool {
    day_of(path).is_some_and(|day| gone.has_day(table, day))
}

/// Whether a file has rows that are to go.
async fn has_any(handle: &Handle, path: &str, gone: &Arc<Gone>) -> Result<bool, Error> {
    let table = handle.table();
    if is_of_old_day(path, table, gone) {
        return Ok(true);
    }
    let columns = Gone::columns(table);
    if columns.is_empty() {
        return Ok(false);
    }
    let (place, gone) = (handle.place().join(path), gone.clone());
    blocking(move || {
        let mut touched = false;
        read(&place, Some(columns), |batch| {
            touched = gone.clean(table, &batch)?.is_some();
            Ok(!touched)
        })?;
        Ok(touched)
    })
    .await
}

/// Its rows without those that are to go, as they are read.
fn left_of(
    place: Place,
    table: Table,
    gone: Arc<Gone>,
) -> mpsc::Receiver<Result<RecordBatch, Error>> {
    let (sender, receiver) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let whole = read(&place, None, |batch| {
            let left = gone.clean(table, &batch)?.unwrap_or(batch);
            Ok(sender.blocking_send(Ok(left)).is_ok())
        });
        match whole {
            Ok(true) => {}
            Ok(false) => drop(sender.blocking_send(Err(Error::Damaged {
                path: place.shown(),
                what: "is gone".to_owned(),
            }))),
            Err(error) => drop(sender.blocking_send(Err(error))),
        }
    });
    receiver
}

/// A file's batches until `take` says false; whether there is such a file.
fn read(
    place: &Place,
    columns: Option<&[&str]>,
    take: impl FnMut(RecordBatch) -> Result<bool, ArrowError>,
) -> Result<bool, Error> {
    match parquet_file::read(place, columns, take)? {
        None => Ok(false),
        Some((_, Ok(()))) => Ok(true),
        Some((_, Err(error))) => Err(Error::Damaged {
            path: place.shown(),
            what: error.to_string(),
        }),
    }
}
