//! Adapters: immutable folders `adapters/<task>/<n>/` of PEFT's two files and a manifest, known by their digest.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use retune_task::ModelName;
use sha2::{Digest, Sha256};

use crate::bucket::Bucket;
use crate::error::Error;
use crate::files;
use crate::forget::LearnedFrom;
use crate::ledger::Ledger;
use crate::manifest::{Examples, Manifest, Source};
use crate::place::Place;

/// PEFT's two files.
pub const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
const MANIFEST: &str = "manifest.json";
/// Ids of the exchanges that it was made from.
const EXAMPLES: &str = "examples.json";
/// Begins the names of what says that some of them were forgotten.
const FORGOTTEN: &str = "forgotten-";
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

impl Ledger {
    /// Publishes a staging folder with PEFT's two files as the task's next adapter. `examples`: what it was made from, where that is
    /// known; where any of it was forgotten meanwhile, the adapter is refused.
    pub async fn put_adapter(
        &self,
        task: &str,
        staging: &Path,
        manifest: Manifest,
        examples: Option<Examples>,
    ) -> Result<AdapterRef, Error> {
        let (task, staging, local) = (task.to_owned(), staging.to_owned(), self.local());
        let tombstones = self.tombstones().clone();
        self.blocking(move |store| {
            if let Some(examples) = &examples {
                let gone = tombstones.gone()?;
                let forgotten = examples.ids().filter(|id| gone.has_exchange(id)).count();
                if forgotten > 0 {
                    return Err(Error::Forgotten { task, forgotten });
                }
            }
            publish(store, &local, &task, &staging, manifest, examples.as_ref())
        })
        .await
    }

    /// What was forgotten of an adapter's examples since.
    pub async fn forgotten_of(&self, adapter: &AdapterRef) -> Result<Vec<LearnedFrom>, Error> {
        let adapter = adapter.clone();
        self.blocking(move |store| forgotten(store, &adapter)).await
    }

    /// A task's adapters, in order.
    pub async fn adapters(&self, task: &str) -> Result<Vec<AdapterRef>, Error> {
        let (task, local) = (task.to_owned(), self.local());
        self.blocking(move |store| all(store, &local, &task)).await
    }

    /// The tasks that there are adapters of, configured or not.
    pub async fn tasks_with_adapters(&self) -> Result<Vec<String>, Error> {
        self.blocking(|store| store.join("adapters").names()).await
    }

    /// One adapter.
    pub async fn adapter(&self, task: &str, number: u32) -> Result<AdapterRef, Error> {
        let (task, local) = (task.to_owned(), self.local());
        self.blocking(move |store| get(store, &local, &task, number))
            .await
    }

    /// The exchanges that an adapter was made from; none where nobody kept a list of them.
    pub async fn examples(&self, task: &str, number: u32) -> Result<Option<Examples>, Error> {
        let task = task.to_owned();
        let place = move |store: &Place| root(store, &task).join(number.to_string());
        self.blocking(move |store| place(store).join(EXAMPLES).read_json())
            .await
    }

    /// Brings an adapter's files to its folder, where they are not yet, and checks that they are those that were published.
    pub async fn verify_adapter(&self, adapter: &AdapterRef) -> Result<(), Error> {
        let adapter = adapter.clone();
        self.blocking(move |store| {
            fetch(store, &adapter)?;
            verify(&adapter)
        })
        .await
    }
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
    examples: Option<&Examples>,
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
            None => rename(staging, &place.shown(), &manifest, examples)?,
            Some(bucket) => upload(bucket, staging, &place, &manifest, examples)?,
        };
        if published {
            return get(store, local, task, manifest.number);
        }
    }
}

/// Into a folder, with the staging folder on its own file system: false if another process took the number.
fn rename(
    staging: &Path,
    folder: &Path,
    manifest: &Manifest,
    examples: Option<&Examples>,
) -> Result<bool, Error> {
    if let Some(root) = folder.parent() {
        std::fs::create_dir_all(root).map_err(Error::io(root))?;
    }
    let path = staging.join(EXAMPLES);
    if let Some(examples) = examples {
        files::replace(&path, &files::json(&path, examples)?)?;
    }
    let path = staging.join(MANIFEST);
    files::replace(&path, &files::json(&path, manifest)?)?;
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
    examples: Option<&Examples>,
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
    if let Some(examples) = examples {
        place.join(EXAMPLES).create_json_once(examples)?;
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

fn place(store: &Place, adapter: &AdapterRef) -> Place {
    root(store, &adapter.task).join(adapter.number.to_string())
}

/// Adapters of any task that were made from some exchanges, and the names of those of which nobody knows.
pub(crate) fn learned_from(
    store: &Place,
    local: &Path,
    exchanges: &HashSet<String>,
    at: DateTime<Utc>,
) -> Result<(Vec<LearnedFrom>, Vec<String>), Error> {
    let (mut learned, mut unknown) = (Vec::new(), Vec::new());
    for task in store.join("adapters").names()? {
        for adapter in all(store, local, &task)? {
            let name = ModelName::Adapter {
                task: task.clone(),
                number: adapter.number,
            };
            let found: Option<Examples> = place(store, &adapter).join(EXAMPLES).read_json()?;
            let Some(examples) = found else {
                // What somebody brought was made elsewhere.
                if adapter.manifest.source == Source::Run {
                    unknown.push(name.to_string());
                }
                continue;
            };
            let among =
                |ids: &[String]| ids.iter().filter(|id| exchanges.contains(*id)).count() as u64;
            let of = LearnedFrom {
                adapter: name.to_string(),
                at,
                train: among(&examples.train),
                development: among(&examples.development),
                held_out: among(&examples.held_out),
            };
            if of.train + of.development + of.held_out > 0 {
                learned.push(of);
            }
        }
    }
    Ok((learned, unknown))
}

/// Lays a tombstone beside an adapter's manifest.
pub(crate) fn note_forgotten(
    store: &Place,
    learned: &LearnedFrom,
    tombstone: &str,
) -> Result<(), Error> {
    if let Some(ModelName::Adapter { task, number }) = ModelName::parse(&learned.adapter) {
        let folder = root(store, &task).join(number.to_string());
        let note = folder.join(format!("{FORGOTTEN}{tombstone}.json"));
        note.create_json_once(learned)?;
    }
    Ok(())
}

/// An adapter's tombstones.
pub(crate) fn forgotten(store: &Place, adapter: &AdapterRef) -> Result<Vec<LearnedFrom>, Error> {
    let folder = place(store, adapter);
    let mut notes = Vec::new();
    for name in folder.names()?.iter().filter(|n| n.starts_with(FORGOTTEN)) {
        notes.extend(folder.join(name).read_json::<LearnedFrom>()?);
    }
    Ok(notes)
}

/// Brings a bucket's adapter to this machine, where it is not yet.
pub(crate) fn fetch(store: &Place, adapter: &AdapterRef) -> Result<(), Error> {
    if store.as_bucket().is_none() || adapter.folder.is_dir() {
        return Ok(());
    }
    let place = place(store, adapter);
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
