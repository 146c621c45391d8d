//! Adapters that somebody brings: a PEFT folder becomes a task's next candidate, or is the one that it was before.
//!
//! It is checked as the engine would check it before anything is written. An adapter is its content: the same files are the same
//! adapter, whatever folder they come from.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use retune_ledger::{ADAPTER_FILES, AdapterRef, Lease, Ledger, Manifest, Source, adapter_digest};
use retune_task::Config;
use serde_json::{Map, Value, json};

use crate::engine::{BaseFolder, check_adapter as check};
use crate::error::Error;

/// How long an import waits for another one of the same task.
const PATIENCE: Duration = Duration::from_secs(30);
const ASK: Duration = Duration::from_millis(50);

/// What an import gave.
#[derive(Debug)]
pub struct Imported {
    /// The adapter.
    pub adapter: AdapterRef,
    /// False: it was there already.
    pub new: bool,
}

/// Makes the PEFT folder `folder` the next candidate of the task.
///
/// # Errors
/// Everything that is wrong with the folder, at once; a task that is not configured; a store that cannot be written.
pub async fn import(
    ledger: &Ledger,
    config: &Arc<Config>,
    task: &str,
    base: &Path,
    folder: &Path,
) -> Result<Imported, Error> {
    if !config.tasks.iter().any(|t| t.name == task) {
        let known: Vec<&str> = config.tasks.iter().map(|t| t.name.as_str()).collect();
        return Err(Error::NotFound(format!(
            "There is no task '{task}'; the configuration has {}.",
            known.join(", ")
        )));
    }
    checked(base, folder)?;
    let lease = lease(ledger, task).await?;
    // One process at a time does this for a task.
    let alone = async {
        let digest = {
            let folder = folder.to_owned();
            blocking(move || Ok(adapter_digest(&folder)?)).await?
        };
        let known = ledger.adapters(task).await?;
        if let Some(adapter) = known.into_iter().find(|a| a.manifest.digest == digest) {
            return Ok(Imported {
                adapter,
                new: false,
            });
        }
        let staging = ledger.files().join("import").join(task);
        let manifest = {
            let (config, task) = (Arc::clone(config), task.to_owned());
            let (base, folder, staging) = (base.to_owned(), folder.to_owned(), staging.clone());
            blocking(move || staged(&config, &task, &base, &folder, &staging)).await?
        };
        let adapter = ledger.put_adapter(task, &staging, manifest, None).await?;
        tracing::info!(
            task,
            adapter = adapter.number,
            digest = adapter.manifest.digest,
            "adapter imported"
        );
        Ok(Imported { adapter, new: true })
    };
    lease.during(alone).await
}

/// Whether an adapter's files are those that were published, and fit the base in the folder `base`.
///
/// # Errors
/// What would keep the engine from serving it.
pub async fn check_adapter(
    ledger: &Ledger,
    base: &Path,
    adapter: &AdapterRef,
) -> Result<(), Error> {
    ledger.verify_adapter(adapter).await?;
    check(&adapter.folder, &BaseFolder::open(base)?)?;
    Ok(())
}

/// What is wrong with a folder is the mistake of whoever named it.
fn checked(base: &Path, folder: &Path) -> Result<(), Error> {
    let base = BaseFolder::open(base)?;
    let wrong = |what: String| {
        Err(Error::param(
            "folder",
            "adapter_refused",
            format!("{what}. Nothing was imported."),
        ))
    };
    if !folder.is_dir() {
        return wrong(format!(
            "{} is not a folder; expected one with {}",
            folder.display(),
            ADAPTER_FILES.join(" and ")
        ));
    }
    match check(folder, &base) {
        Ok(_) => Ok(()),
        Err(e) => wrong(e.to_string()),
    }
}

/// The right to import for this task; it also says that what lies in the staging folder is a dead import's.
async fn lease(ledger: &Ledger, task: &str) -> Result<Lease, Error> {
    let name = format!("import-{task}");
    let begun = tokio::time::Instant::now();
    loop {
        if let Some(lease) = ledger.lease(&name).await? {
            return Ok(lease);
        }
        if begun.elapsed() >= PATIENCE {
            return Err(Error::Conflict(format!(
                "Another import for {task} is under way. Try again when it is done."
            )));
        }
        tokio::time::sleep(ASK).await;
    }
}

/// Copies PEFT's two files, and writes down how the adapter came about.
fn staged(
    config: &Config,
    task: &str,
    base: &Path,
    folder: &Path,
    staging: &Path,
) -> Result<Manifest, Error> {
    let failed = |path: PathBuf| {
        move |e: std::io::Error| Error::ModelFile {
            path,
            what: format!("cannot be copied into the store: {e}"),
        }
    };
    match std::fs::remove_dir_all(staging) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed(staging.to_owned())(e));
        }
        _ => {}
    }
    std::fs::create_dir_all(staging).map_err(failed(staging.to_owned()))?;
    for file in ADAPTER_FILES {
        let from = folder.join(file);
        std::fs::copy(&from, staging.join(file)).map_err(failed(from))?;
    }
    let settings = crate::engine::json(&staging.join(ADAPTER_FILES[0]))?;
    let Some(task) = config.tasks.iter().find(|t| t.name == task) else {
        return Err(Error::NotFound(format!("There is no task '{task}'.")));
    };
    Ok(Manifest {
        lora: lora(&settings),
        ..Manifest::begin(task, Source::Import, base)?
    })
}

/// A manifest's words for PEFT's settings.
fn lora(settings: &Map<String, Value>) -> Value {
    json!({
        "r": settings.get("r"),
        "alpha": settings.get("lora_alpha"),
        "dropout": settings.get("lora_dropout"),
        "target_modules": settings.get("target_modules"),
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::Engine(format!("an import was cut off: {e}"))))
}
