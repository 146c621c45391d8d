//! One commit of a Delta table as a file: what it added, and bringing that to disk, which the object store's local folder does not do.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What a commit did, as far as that matters here.
pub(crate) struct Commit {
    path: PathBuf,
    added: Vec<String>,
    transactions: Vec<Txn>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Txn {
    app_id: String,
    version: u64,
}

impl Commit {
    /// None where it is gone, which is when a checkpoint has it.
    pub(crate) fn read(folder: &Path, version: u64) -> std::io::Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Line {
            add: Option<Add>,
            txn: Option<Txn>,
        }
        #[derive(Deserialize)]
        struct Add {
            path: String,
        }
        let path = folder
            .join("_delta_log")
            .join(format!("{version:020}.json"));
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let (mut added, mut transactions) = (Vec::new(), Vec::new());
        for line in text.lines() {
            if let Ok(line) = serde_json::from_str::<Line>(line) {
                added.extend(line.add.map(|add| add.path));
                transactions.extend(line.txn);
            }
        }
        Ok(Some(Self {
            path,
            added,
            transactions,
        }))
    }

    /// Whether with it the table has `writer`'s rows up to number `last`.
    pub(crate) fn has(&self, writer: &str, last: u64) -> bool {
        let mut transactions = self.transactions.iter();
        transactions.any(|txn| txn.app_id == writer && txn.version >= last)
    }

    /// Brings its files to disk, and then itself, which names them. A file that is gone was taken out by a later version.
    pub(crate) fn sync(&self, table: &Path) -> std::io::Result<()> {
        let mut folders = vec![table.to_owned()];
        for path in &self.added {
            let path = table.join(path);
            sync(&path)?;
            folders.extend(path.parent().map(Path::to_owned));
        }
        folders.sort();
        folders.dedup();
        for folder in folders {
            sync(&folder)?;
        }
        File::open(&self.path)?.sync_all()?;
        File::open(table.join("_delta_log"))?.sync_all()
    }
}

fn sync(path: &Path) -> std::io::Result<()> {
    match File::open(path) {
        Ok(file) => file.sync_all(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}
