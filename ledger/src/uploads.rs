//! Files that somebody uploaded to be trained on, and those that a job leaves for whoever asked for it.
//!
//! `uploads/<id>/` has the bytes as they came and, created last, what is known of them: without that there is no file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids;
use crate::ledger::Ledger;
use crate::place::Place;

const CONTENT: &str = "content";
const ABOUT: &str = "about.json";
const FOLDER: &str = "uploads";
/// An upload that takes longer is none any more.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// Begins every id.
const PREFIX: &str = "file-";

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// `file-` and 32 hex digits.
    pub id: String,
    /// As its owner called it.
    pub filename: String,
    /// `fine-tune`, or `fine-tune-results`.
    pub purpose: String,
    /// Its length.
    pub bytes: u64,
    /// When it came.
    pub created: DateTime<Utc>,
    /// The id of the key with which it came.
    pub by: Option<String>,
}

impl Upload {
    /// A file that comes now.
    pub fn new(filename: &str, purpose: &str, bytes: u64, by: Option<String>) -> Self {
        Self {
            id: ids::random(PREFIX),
            filename: filename.to_owned(),
            purpose: purpose.to_owned(),
            bytes,
            created: Utc::now(),
            by,
        }
    }
}

impl Ledger {
    /// Keeps the file at `path`, which is moved or removed.
    pub async fn put_upload(&self, upload: &Upload, path: PathBuf) -> Result<(), Error> {
        let upload = upload.clone();
        self.blocking(move |store| put(store, &upload, &path)).await
    }

    /// All files, oldest first.
    pub async fn uploads(&self) -> Result<Vec<Upload>, Error> {
        self.blocking(all).await
    }

    /// What is known of one; none where there is no such file.
    pub async fn upload(&self, id: &str) -> Result<Option<Upload>, Error> {
        let id = id.to_owned();
        self.blocking(move |store| about(store, &id)).await
    }

    /// Its bytes.
    pub async fn upload_content(&self, id: &str) -> Result<Option<Vec<u8>>, Error> {
        let id = id.to_owned();
        self.blocking(move |store| match about(store, &id)? {
            None => Ok(None),
            Some(_) => place(store, &id).join(CONTENT).read(),
        })
        .await
    }

    /// Deletes a file; false where there is none.
    pub async fn remove_upload(&self, id: &str) -> Result<bool, Error> {
        let id = id.to_owned();
        self.blocking(move |store| remove(store, &id)).await
    }
}

impl Ledger {
    /// Deletes what uploads that were broken off have left in this machine's folder, a day ago and earlier.
    pub(crate) async fn clear_uploads(&self) -> Result<(), Error> {
        let folder = self.files().join(FOLDER);
        self.blocking(move |_| clear(&folder, STALE).map_err(Error::io(&folder)))
            .await
    }
}

/// Parts, and folders of which nothing is known, that nobody has touched for so long.
fn clear(folder: &Path, stale: Duration) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let (path, about) = (entry.path(), entry.metadata()?);
        if about.modified()?.elapsed().unwrap_or_default() < stale {
            continue;
        }
        if !about.is_dir() {
            std::fs::remove_file(path)?;
        } else if !path.join(ABOUT).exists() {
            std::fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

fn place(store: &Place, id: &str) -> Place {
    store.join(FOLDER).join(id)
}

fn put(store: &Place, upload: &Upload, path: &Path) -> Result<(), Error> {
    let folder = place(store, &upload.id);
    let content = folder.join(CONTENT);
    match store.as_bucket() {
        None => {
            let to = content.shown();
            std::fs::create_dir_all(folder.shown()).map_err(Error::io(&to))?;
            std::fs::File::open(path)
                .and_then(|file| file.sync_all())
                .and_then(|()| std::fs::rename(path, &to))
                .map_err(Error::io(&to))?;
        }
        Some(bucket) => {
            let bytes = std::fs::read(path).map_err(Error::io(path))?;
            bucket.put(&content.name(), bytes)?;
            std::fs::remove_file(path).map_err(Error::io(path))?;
        }
    }
    folder.join(ABOUT).create_json_once(upload)?;
    Ok(())
}

fn about(store: &Place, id: &str) -> Result<Option<Upload>, Error> {
    if !ids::is_random(PREFIX, id) {
        return Ok(None);
    }
    place(store, id).join(ABOUT).read_json()
}

fn all(store: &Place) -> Result<Vec<Upload>, Error> {
    let mut uploads = Vec::new();
    for id in store.join(FOLDER).names()? {
        uploads.extend(about(store, &id)?);
    }
    uploads.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
    Ok(uploads)
}

fn remove(store: &Place, id: &str) -> Result<bool, Error> {
    if about(store, id)?.is_none() {
        return Ok(false);
    }
    let folder = place(store, id);
    // What was said in it first: as long as it is known of, its owner can ask again.
    folder.join(CONTENT).remove()?;
    folder.join(ABOUT).remove()?;
    if store.as_bucket().is_none() {
        // Somebody may be looking into it.
        drop(std::fs::remove_dir(folder.shown()));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_file_is_there_until_it_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let store = Place::folder(folder.path().join("store"));
        assert_eq!(all(&store).unwrap(), []);
        let path = folder.path().join("part");
        std::fs::write(&path, "{}\n").unwrap();
        let upload = Upload::new("../a.jsonl", "fine-tune", 3, None);
        put(&store, &upload, &path).unwrap();
        assert!(!path.exists());
        assert_eq!(all(&store).unwrap(), std::slice::from_ref(&upload));
        let content = place(&store, &upload.id).join(CONTENT);
        assert_eq!(content.read().unwrap().unwrap(), b"{}\n");
        assert!(remove(&store, &upload.id).unwrap());
        assert!(!remove(&store, &upload.id).unwrap());
        assert_eq!(content.read().unwrap(), None);
        assert_eq!(all(&store).unwrap(), []);
    }

    #[test]
    fn what_was_broken_off_goes_and_what_is_known_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = Place::folder(folder.path().to_owned());
        let path = folder.path().join("given");
        std::fs::write(&path, "{}\n").unwrap();
        let upload = Upload::new("a.jsonl", "fine-tune", 3, None);
        put(&store, &upload, &path).unwrap();
        let uploads = folder.path().join(FOLDER);
        let unknown = uploads.join("file-unknown");
        std::fs::create_dir(&unknown).unwrap();
        for left in [unknown.join(CONTENT), uploads.join(".part")] {
            std::fs::write(left, "texts").unwrap();
        }
        let names = || std::fs::read_dir(&uploads).unwrap().count();
        clear(&uploads, STALE).unwrap();
        assert_eq!(names(), 3, "they may still be coming");
        clear(&uploads, Duration::ZERO).unwrap();
        assert_eq!(names(), 1);
        assert_eq!(all(&store).unwrap(), [upload]);
        clear(&folder.path().join("none"), Duration::ZERO).unwrap();
    }

    #[test]
    fn no_id_leads_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let store = Place::folder(folder.path().to_owned());
        std::fs::write(folder.path().join(ABOUT), "{}").unwrap();
        for id in [
            "",
            ".",
            "..",
            "../uploads",
            "file-",
            "file-../../x",
            "file-xyz",
        ] {
            assert_eq!(about(&store, id).unwrap(), None, "{id}");
            assert!(!remove(&store, id).unwrap(), "{id}");
        }
    }
}
