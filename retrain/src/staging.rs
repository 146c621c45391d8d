//! What a run has on this machine while it is made: how far its training is, and the adapter before it is the ledger's.

use std::path::{Path, PathBuf};

use retune_ledger::Stage;
use retune_task::Task;

use crate::server::Server;
use crate::stages::name;
use crate::{Error, Options};

/// What a dead process left of this run or, in the staging folder, of any run of the task: the lease says that none is alive. How far this run's
/// training was stays: it goes on from there if its examples are still the same.
pub(crate) async fn clear_leftovers(
    o: &Options,
    task: &Task,
    server: &Server,
    run_id: &str,
) -> Result<(), Error> {
    let staging = folder(o, &task.name);
    let kept = [
        checkpoint(o, &task.name, run_id),
        preferences_checkpoint(o, &task.name, run_id),
        handed_over(o, &task.name, run_id),
    ];
    remove_others(&staging, &kept).map_err(Error::file(&staging))?;
    let stages = o.ledger.stages(&task.name).await?;
    for adapter in o.ledger.adapters(&task.name).await? {
        if adapter.manifest.run_id.as_deref() == Some(run_id)
            && stages.stage(adapter.number) != Stage::Rejected
        {
            tracing::warn!(
                run_id,
                adapter = adapter.number,
                "rejecting the candidate of this run's earlier, unfinished attempt"
            );
            let reason = format!("an earlier attempt of {run_id} made it, and did not finish");
            o.ledger.end_pairs(&task.name, adapter.number).await?;
            server
                .reject(&name(&task.name, adapter.number), &reason)
                .await?;
        }
    }
    Ok(())
}

/// Removes all that is in a folder but this.
fn remove_others(folder: &Path, but: &[PathBuf]) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if but.contains(&path) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(path)?;
        } else {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

pub(crate) fn folder(o: &Options, task: &str) -> PathBuf {
    o.ledger.files().join("staging").join(task)
}

/// How far a run's training is.
pub(crate) fn checkpoint(o: &Options, task: &str, run_id: &str) -> PathBuf {
    folder(o, task).join(format!("{run_id}.checkpoint.safetensors"))
}

/// How far its training on preferences is.
pub(crate) fn preferences_checkpoint(o: &Options, task: &str, run_id: &str) -> PathBuf {
    folder(o, task).join(format!("{run_id}.preferences.safetensors"))
}

/// What another trainer was given, and gave back.
pub(crate) fn handed_over(o: &Options, task: &str, run_id: &str) -> PathBuf {
    folder(o, task).join(format!("{run_id}.training"))
}

/// Removes what a training leaves once its adapter is the ledger's.
pub(crate) fn clear(o: &Options, task: &str, run_id: &str) -> Result<(), Error> {
    for file in [
        checkpoint(o, task, run_id),
        preferences_checkpoint(o, task, run_id),
    ] {
        unless_gone(std::fs::remove_file(&file)).map_err(Error::file(&file))?;
    }
    remove_folder(&handed_over(o, task, run_id))
}

/// Removes a folder with all that is in it, if it is there.
pub(crate) fn remove_folder(folder: &Path) -> Result<(), Error> {
    unless_gone(std::fs::remove_dir_all(folder)).map_err(Error::file(folder))
}

fn unless_gone(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
