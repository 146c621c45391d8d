//! Brings segments to disk on a thread of its own, so that an acknowledgement waits for a write and never for a disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use super::Shared;
use crate::error::Error;

/// A segment to bring to disk.
pub(crate) struct Dirty {
    pub(crate) file: Arc<File>,
    pub(crate) path: PathBuf,
    /// Its name is not on disk either.
    pub(crate) is_new: bool,
}

impl Dirty {
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        if self.is_new {
            folder(self.path.parent().unwrap_or(Path::new(".")))?;
        }
        Ok(())
    }
}

/// Brings the names in a folder to disk. One that is gone has nothing left to lose: its rows are in their table.
pub(crate) fn folder(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Ok(folder) => folder.sync_all(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Ends when its sender is gone.
pub(crate) fn start(shared: Arc<Shared>) -> Result<mpsc::Sender<Dirty>, Error> {
    let (sender, receiver) = mpsc::channel::<Dirty>();
    let wal = shared.wal.clone();
    let run = move || {
        while let Ok(first) = receiver.recv() {
            let mut all = BTreeMap::new();
            for dirty in std::iter::once(first).chain(receiver.try_iter()) {
                let is_new = all
                    .get(&dirty.path)
                    .is_some_and(|earlier: &Dirty| earlier.is_new);
                let is_new = dirty.is_new || is_new;
                all.insert(dirty.path.clone(), Dirty { is_new, ..dirty });
            }
            for (path, dirty) in all {
                if let Err(error) = dirty.sync() {
                    tracing::error!(path = %path.display(), %error, "the log could not be brought to disk; its rows go to their table at once");
                    shared.sync_failed.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    let spawned = std::thread::Builder::new()
        .name("ledger-sync".to_owned())
        .spawn(run);
    spawned.map_err(Error::io(&wal))?;
    Ok(sender)
}
