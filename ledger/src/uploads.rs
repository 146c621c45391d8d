//! Files that somebody uploaded to be trained on, and those that a job leaves for whoever asked for it.
//!
//! `uploads/<id>/` has the bytes as they came and, created last, what is known of them: without that there is no file.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids;
use crate::ledger::Ledger;
use crate::place::Place;

const CONTENT: &str = "content";
const ABOUT: &str = "about.json";
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

fn place(store: &Place, id: &str) -> Place {
    store.join("uploads").join(id)
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
    for id in store.join("uploads").names()? {
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
    folder.join(ABOUT).remove()?;
    folder.join(CONTENT).remove()?;
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
