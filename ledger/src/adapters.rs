//! Adapters: immutable folders `adapters/<task>/<n>/` of PEFT's two files and a manifest, known by their digest.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::bucket::Bucket;
use crate::error::Error;
use crate::files;
use crate::manifest::Manifest;
use crate::place::Place;

/// PEFT's two files.
pub const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
const MANIFEST: &str = "manifest.json";
/// In a bucket, what says that a number is somebody's.
const CLAIM: &str = "claim";

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

fn root(store: &Place, task: &str) -> Place {
    store.join("adapters").join(task)
}

fn numbers(store: &Place, task: &str) -> Result<Vec<u32>, Error> {
    let names = root(store, task).names()?;
    let mut numbers: Vec<u32> = names.iter().filter_map(|n| n.parse().ok()).collect();
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

/// Publishes a staging folder as the next free number. Killed before its last step, nothing was published; after it, everything.
/// `local` is where a bucket's adapters are kept on this machine.
pub(crate) fn publish(
    store: &Place,
    local: &Path,
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
    loop {
        manifest.number = numbers(store, task)?.last().map_or(1, |n| n + 1);
        let place = root(store, task).join(manifest.number.to_string());
        let published = match store.as_bucket() {
            None => rename(staging, &place.shown(), &manifest)?,
            Some(bucket) => upload(bucket, staging, &place, &manifest)?,
        };
        if published {
            return get(store, local, task, manifest.number);
        }
    }
}

/// Into a folder, with the staging folder on its own file system: false if another process took the number.
fn rename(staging: &Path, folder: &Path, manifest: &Manifest) -> Result<bool, Error> {
    if let Some(root) = folder.parent() {
        std::fs::create_dir_all(root).map_err(Error::io(root))?;
    }
    let path = staging.join(MANIFEST);
    if path.exists() {
        std::fs::remove_file(&path).map_err(Error::io(&path))?;
    }
    files::create_once(&path, &files::json(&path, manifest)?)?;
    match std::fs::rename(staging, folder) {
        Ok(()) => Ok(true),
        // A folder that is not empty: another process took the number.
        Err(_) if folder.exists() => Ok(false),
        Err(e) => Err(Error::io(folder)(e)),
    }
}

/// Into a bucket: the number is claimed first, and is an adapter once its manifest is there. What a death leaves is an unused number.
fn upload(
    bucket: &Bucket,
    staging: &Path,
    place: &Place,
    manifest: &Manifest,
) -> Result<bool, Error> {
    let claim = uuid::Uuid::new_v4().to_string();
    if !place.join(CLAIM).create_once(claim.as_bytes())? {
        return Ok(false);
    }
    for name in ADAPTER_FILES {
        let path = staging.join(name);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        bucket.put(&place.join(name).name(), bytes)?;
    }
    place.join(MANIFEST).create_json_once(manifest)?;
    // It is read back when it is needed, as by every other process.
    std::fs::remove_dir_all(staging).map_err(Error::io(staging))?;
    Ok(true)
}

pub(crate) fn get(
    store: &Place,
    local: &Path,
    task: &str,
    number: u32,
) -> Result<AdapterRef, Error> {
    let place = root(store, task).join(number.to_string());
    let manifest: Option<Manifest> = place.join(MANIFEST).read_json()?;
    let manifest = manifest.ok_or_else(|| Error::NoAdapter {
        task: task.to_owned(),
        number,
    })?;
    let folder = match store.as_bucket() {
        None => place.shown(),
        // By its digest: another store's adapter of the same name is another one.
        Some(_) => local.join("adapters").join(task).join(format!(
            "{number}-{}",
            manifest.digest.get(..16).unwrap_or_default()
        )),
    };
    Ok(AdapterRef {
        task: task.to_owned(),
        number,
        folder,
        manifest,
    })
}

pub(crate) fn all(store: &Place, local: &Path, task: &str) -> Result<Vec<AdapterRef>, Error> {
    let mut all = Vec::new();
    for number in numbers(store, task)? {
        match get(store, local, task, number) {
            // Claimed, and not uploaded yet.
            Err(Error::NoAdapter { .. }) if store.as_bucket().is_some() => {}
            adapter => all.push(adapter?),
        }
    }
    Ok(all)
}

/// Brings a bucket's adapter to this machine, where it is not yet.
pub(crate) fn fetch(store: &Place, adapter: &AdapterRef) -> Result<(), Error> {
    if store.as_bucket().is_none() || adapter.folder.is_dir() {
        return Ok(());
    }
    let place = root(store, &adapter.task).join(adapter.number.to_string());
    let part = adapter
        .folder
        .with_extension(format!("part-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir_all(&part).map_err(Error::io(&part))?;
    for name in ADAPTER_FILES {
        let from = place.join(name);
        let bytes = from.read()?.ok_or_else(|| Error::Damaged {
            path: from.shown(),
            what: "was published and is gone; restore it from a copy".to_owned(),
        })?;
        let path = part.join(name);
        std::fs::write(&path, bytes).map_err(Error::io(&path))?;
    }
    match std::fs::rename(&part, &adapter.folder) {
        Ok(()) => Ok(()),
        // Another process of this machine was quicker.
        Err(_) if adapter.folder.is_dir() => {
            std::fs::remove_dir_all(&part).map_err(Error::io(&part))
        }
        Err(e) => Err(Error::io(&adapter.folder)(e)),
    }
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
