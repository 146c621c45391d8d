//! Adapters: immutable folders `adapters/<task>/<n>/` of PEFT's two files and a manifest, known by their digest.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::files;
use crate::manifest::Manifest;

/// PEFT's two files.
pub const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
const MANIFEST: &str = "manifest.json";

/// A published adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterRef {
    /// Its task.
    pub task: String,
    /// Its number, from 1.
    pub number: u32,
    /// Where its files are.
    pub folder: PathBuf,
    /// How it came about.
    pub manifest: Manifest,
}

fn root(store: &Path, task: &str) -> PathBuf {
    store.join("adapters").join(task)
}

fn numbers(store: &Path, task: &str) -> Result<Vec<u32>, Error> {
    let mut numbers: Vec<u32> = files::names(&root(store, task))?
        .iter()
        .filter_map(|n| n.parse().ok())
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// What an adapter is known by: SHA-256 over names and contents of PEFT's two files in `folder`. Reads them whole: not for an async
/// thread.
pub fn adapter_digest(folder: &Path) -> Result<String, Error> {
    let mut hash = Sha256::new();
    for name in ADAPTER_FILES {
        let path = folder.join(name);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        hash.update(name.as_bytes());
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    Ok(retune_task::hex(&hash.finalize()))
}

/// Moves a staging folder (on the store's own file system) to the next free number. Killed before the rename, nothing
/// was published; after it, everything.
pub(crate) fn publish(
    store: &Path,
    task: &str,
    staging: &Path,
    mut manifest: Manifest,
) -> Result<AdapterRef, Error> {
    manifest.digest = adapter_digest(staging)?;
    for name in ADAPTER_FILES {
        let path = staging.join(name);
        std::fs::File::open(&path)
            .and_then(|f| f.sync_all())
            .map_err(Error::io(&path))?;
    }
    let root = root(store, task);
    std::fs::create_dir_all(&root).map_err(Error::io(&root))?;
    loop {
        let number = numbers(store, task)?.last().map_or(1, |n| n + 1);
        manifest.number = number;
        let path = staging.join(MANIFEST);
        if path.exists() {
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        files::create_json_once(&path, &manifest)?;
        let folder = root.join(number.to_string());
        match std::fs::rename(staging, &folder) {
            Ok(()) => {
                return Ok(AdapterRef {
                    task: task.to_owned(),
                    number,
                    folder,
                    manifest,
                });
            }
            // A folder that is not empty: another process took the number.
            Err(_) if folder.exists() => {}
            Err(e) => return Err(Error::io(&folder)(e)),
        }
    }
}

pub(crate) fn get(store: &Path, task: &str, number: u32) -> Result<AdapterRef, Error> {
    let folder = root(store, task).join(number.to_string());
    let path = folder.join(MANIFEST);
    let manifest: Option<Manifest> = files::read_json(&path)?;
    let manifest = manifest.ok_or_else(|| Error::NoAdapter {
        task: task.to_owned(),
        number,
    })?;
    Ok(AdapterRef {
        task: task.to_owned(),
        number,
        folder,
        manifest,
    })
}

pub(crate) fn all(store: &Path, task: &str) -> Result<Vec<AdapterRef>, Error> {
    numbers(store, task)?
        .into_iter()
        .map(|number| get(store, task, number))
        .collect()
}

/// Whether the files are still those that were published.
pub(crate) fn verify(adapter: &AdapterRef) -> Result<(), Error> {
    let found = adapter_digest(&adapter.folder)?;
    if found == adapter.manifest.digest {
        return Ok(());
    }
    Err(Error::Damaged {
        path: adapter.folder.join(ADAPTER_FILES[1]),
        what: format!(
            "the files' digest is {found}, published was {}: they were truncated or changed; restore them from a copy",
            adapter.manifest.digest
        ),
    })
}
