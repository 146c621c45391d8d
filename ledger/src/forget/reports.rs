//! Reports of runs show some exchanges: their files on this machine, without those that are to go.
//!
//! The pages for people are made from the file for programs, and are deleted where that changed: whoever has the report's words makes them
//! anew.

use std::path::{Path, PathBuf};

use super::gone::Gone;
use crate::error::Error;
use crate::files;

/// Takes out what is to go; the files for programs that were changed.
pub(crate) fn clean(folder: &Path, gone: &Gone) -> Result<Vec<PathBuf>, Error> {
    let mut changed = Vec::new();
    for name in files::names(folder)? {
        let path = folder.join(&name);
        // What a killed process left half-written is no report.
        if name.ends_with(".partial") {
            files::remove(&path)?;
            continue;
        }
        if !name.ends_with(".json") {
            continue;
        }
        let read = files::read(&path)?.unwrap_or_default();
        let Some(cleaned) = gone.clean_report(&String::from_utf8_lossy(&read)) else {
            continue;
        };
        // The pages first: killed in between, the file still says that there is something to do.
        for page in ["md", "html"] {
            files::remove(&path.with_extension(page))?;
        }
        files::replace(&path, cleaned.as_bytes())?;
        changed.push(path);
    }
    Ok(changed)
}
