//! Where what is kept lies that is no table: in a folder, or at a URL.
//!
//! Decisions are files that are created once and never changed, wherever they are: whoever creates number 8 has decided. So code that
//! decides knows places alone, and the two kinds of them differ here.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bucket::Bucket;
use crate::error::Error;
use crate::files;

/// A file, or a folder, of the store. Work with it may wait for a disk or the network: not for an async thread.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    bucket: Option<Arc<Bucket>>,
    /// Absolute, or relative to the bucket's URL.
    path: PathBuf,
}

impl Place {
    /// A folder of this machine.
    pub(crate) fn folder(path: PathBuf) -> Self {
        Self { bucket: None, path }
    }

    /// All of a bucket.
    pub(crate) fn bucket(bucket: Arc<Bucket>) -> Self {
        Self {
            bucket: Some(bucket),
            path: PathBuf::new(),
        }
    }

    /// The bucket, where it is none of this machine's folders.
    pub(crate) fn as_bucket(&self) -> Option<&Arc<Bucket>> {
        self.bucket.as_ref()
    }

    /// What lies below it.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> Self {
        Self {
            bucket: self.bucket.clone(),
            path: self.path.join(name),
        }
    }

    /// As a message names it.
    pub(crate) fn shown(&self) -> PathBuf {
        match &self.bucket {
            None => self.path.clone(),
            Some(bucket) => format!("{}{}", bucket.url(), self.name()).into(),
        }
    }

    /// Its name in the bucket.
    pub(crate) fn name(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    /// Creates it with `bytes` unless it exists; whether it was created. Nobody ever sees half of it.
    pub(crate) fn create_once(&self, bytes: &[u8]) -> Result<bool, Error> {
        match &self.bucket {
            None => files::create_once(&self.path, bytes),
            Some(bucket) => bucket.create(&self.name(), bytes),
        }
    }

    /// The same for what only the owner may read. Who may read a bucket is decided there.
    pub(crate) fn create_once_for_owner(&self, bytes: &[u8]) -> Result<bool, Error> {
        match &self.bucket {
            None => files::create_once_for_owner(&self.path, bytes),
            Some(bucket) => bucket.create(&self.name(), bytes),
        }
    }

    /// Takes from others than the owner what they may do with it.
    pub(crate) fn only_for_owner(&self) -> Result<(), Error> {
        match &self.bucket {
            None => files::only_for_owner(&self.path),
            Some(_) => Ok(()),
        }
    }

    pub(crate) fn create_json_once(&self, value: &impl Serialize) -> Result<bool, Error> {
        self.create_once(&files::json(&self.shown(), value)?)
    }

    /// Its bytes; none where it is not.
    pub(crate) fn read(&self) -> Result<Option<Vec<u8>>, Error> {
        match &self.bucket {
            None => files::read(&self.path),
            Some(bucket) => bucket.read(&self.name()),
        }
    }

    /// What its JSON says; none where it is not.
    pub(crate) fn read_json<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        match self.read()? {
            None => Ok(None),
            Some(bytes) => files::from_json(&self.shown(), &bytes).map(Some),
        }
    }

    /// Deletes it; one that is gone is no error.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        match &self.bucket {
            None => files::remove(&self.path),
            Some(bucket) => bucket.delete(&[self.name()]),
        }
    }

    /// Names right below it, sorted; none where there is nothing. Hidden ones are parts, and left out.
    pub(crate) fn names(&self) -> Result<Vec<String>, Error> {
        match &self.bucket {
            None => files::names(&self.path),
            Some(bucket) => bucket.names(&self.name()),
        }
    }
}
