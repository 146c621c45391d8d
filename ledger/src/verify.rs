//! Whether everything that was kept can be read: the tables' files, the logs, the adapters, the decisions.
//!
//! Parquet's data pages carry no checksums that every writer sets, so a file is read to its end: what does not decode, or gives
//! another number of rows than the table's log says, is damaged. Adapters have digests, the log's records checksums.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::adapters;
use crate::error::Error;
use crate::files;
use crate::ledger::Ledger;
use crate::parquet_file;
use crate::place::Place;
use crate::schema::Table;
use crate::upkeep::Part;
use crate::wal::{LOGGED, segments};

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub path: PathBuf,
    /// What, and what to do about it.
    pub what: String,
}

/// What was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Files read.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Rows in them, those of the tables and those still in a log.
    pub rows: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl Verified {
    fn add(&mut self, path: &Path, bytes: u64, found: Result<u64, String>) {
        self.files += 1;
        self.bytes += bytes;
        match found {
            Ok(rows) => self.rows += rows,
            Err(what) => self.findings.push(Finding {
                path: path.to_owned(),
                what,
            }),
        }
    }
}

impl Ledger {
    /// Reads every file to its end. `progress` is told how many of a table's files are done, of how many.
    pub async fn verify(
        &self,
        mut progress: impl FnMut(Table, usize, usize),
    ) -> Result<Verified, Error> {
        let mut verified = Verified::default();
        for table in Table::ALL {
            let handle = self.handle(table);
            let parts = handle.parts().await?;
            let all = parts.len();
            progress(table, 0, all);
            for (done, part) in parts.into_iter().enumerate() {
                let (path, found) = handle.check(&part).await?;
                verified.add(&path, part.bytes, found);
                progress(table, done + 1, all);
            }
        }
        let local = self.local();
        let rest = self.blocking(move |store| {
            let mut rest = Verified::default();
            logs(&local.join("wal"), &mut rest)?;
            adapters(store, &local, &mut rest)?;
            for folder in ["stages", "triggers", "references", "keys", "forgotten"] {
                decisions(&store.join(folder), &mut rest)?;
            }
            Ok(rest)
        });
        let rest = rest.await?;
        verified.files += rest.files;
        verified.bytes += rest.bytes;
        verified.rows += rest.rows;
        verified.findings.extend(rest.findings);
        Ok(verified)
    }
}

/// Whether a table's file is whole: the rows in it, or what is wrong. Fails where that cannot be found out.
pub(crate) fn check(place: &Place, part: &Part) -> Result<Result<u64, String>, Error> {
    let mut rows = 0;
    let read = parquet_file::read(place, None, |batch| {
        rows += batch.num_rows() as u64;
        Ok(true)
    })?;
    let restore = "restore it from a copy; until then its rows are left out of every answer";
    let Some((length, decoded)) = read else {
        return Ok(Err(format!("is gone: {restore}")));
    };
    let expected = part.bytes;
    if length != expected {
        return Ok(Err(format!(
            "has {length} bytes, and the table's log says {expected}: {restore}"
        )));
    }
    Ok(match (decoded, part.rows) {
        (Err(error), _) => Err(format!("cannot be decoded ({error}): {restore}")),
        (Ok(()), Some(expected)) if rows != expected => Err(format!(
            "has {rows} rows, and the table's log says {expected}: {restore}"
        )),
        (Ok(()), _) => Ok(rows),
    })
}

fn logs(wal: &Path, verified: &mut Verified) -> Result<(), Error> {
    for replica in segments::replicas(wal)? {
        for table in LOGGED {
            for found in segments::of(&wal.join(&replica), table)? {
                let Some((mut file, length)) = segments::open(&found.path)? else {
                    continue;
                };
                let bytes = segments::read(&mut file, &found.path, length)?;
                let scanned = match segments::scan(&found.path, found.first, &bytes) {
                    // A torn end is a row that is being written, or that nobody was promised.
                    Ok(scan) if scan.damaged.is_empty() => Ok(scan.records.len() as u64),
                    Ok(scan) => {
                        let rows: u64 = scan.damaged.iter().map(|damage| damage.rows).sum();
                        let at = scan.damaged.first().map_or(0, |damage| damage.offset);
                        Err(format!(
                            "is damaged at byte {at}: {rows} rows are lost; the others go into their table"
                        ))
                    }
                    Err(error) => Err(error.to_string()),
                };
                verified.add(&found.path, length, scanned);
            }
        }
    }
    Ok(())
}

fn adapters(store: &Place, local: &Path, verified: &mut Verified) -> Result<(), Error> {
    for task in store.join("adapters").names()? {
        for adapter in adapters::all(store, local, &task)? {
            let whole = adapters::fetch(store, &adapter);
            let whole = whole.and_then(|()| adapters::verify(&adapter));
            let folder = &adapter.folder;
            let bytes = |name: &str| std::fs::metadata(folder.join(name)).map_or(0, |m| m.len());
            let size = adapters::ADAPTER_FILES.map(bytes).iter().sum();
            verified.add(folder, size, whole.map(|()| 0).map_err(|e| e.to_string()));
        }
    }
    Ok(())
}

/// Every file of JSON in a folder and in those within it.
fn decisions(folder: &Place, verified: &mut Verified) -> Result<(), Error> {
    for name in folder.names()? {
        let place = folder.join(&name);
        if !name.ends_with(".json") {
            decisions(&place, verified)?;
            continue;
        }
        let read = place.read()?.unwrap_or_default();
        let parsed = files::from_json::<Value>(&place.shown(), &read);
        let parsed = parsed.map(|_| 0).map_err(|e| e.to_string());
        verified.add(&place.shown(), read.len() as u64, parsed);
    }
    Ok(())
}
