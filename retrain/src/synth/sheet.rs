//! The file of synthetic rows: a line each, added to as they come and replaced as a whole when one was reviewed.
//!
//! One process at a time has it, by a lock: what is written anew while another adds to it would lose rows. A line that a killed process
//! did not end is cut away, so that the next one begins a line.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::Row;
use crate::Error;

/// A file of synthetic rows, which this process has alone.
#[derive(Debug)]
pub struct Sheet {
    path: PathBuf,
    /// Held locked.
    file: File,
    pub rows: Vec<Row>,
}

impl Sheet {
    /// Opens a file to add to, which need not be there.
    ///
    /// # Errors
    /// The line that is no synthetic row; another process that has the file.
    pub fn create_or_open(path: &Path) -> Result<Self, Error> {
        Self::at(path, true)
    }

    /// Opens a file that is there.
    ///
    /// # Errors
    /// The same.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::at(path, false)
    }

    fn at(path: &Path, create: bool) -> Result<Self, Error> {
        let mut options = File::options();
        let options = options.read(true).append(true).create(create);
        let mut file = options.open(path).map_err(Error::file(path))?;
        lock(&file, path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Error::file(path))?;
        let mut text = decoded(bytes).map_err(Error::file(path))?;
        let whole = match text.ends_with('\n') || text.is_empty() {
            true => text.len(),
            false => text.rfind('\n').map_or(0, |end| end + 1),
        };
        let (mut rows, count) = (Vec::new(), text.lines().count());
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let what = match Row::read(line) {
                Some(Ok(row)) => {
                    rows.push(row);
                    continue;
                }
                None if index + 1 == count && whole < text.len() && is_torn(line) => {
                    file.set_len(whole as u64).map_err(Error::file(path))?;
                    text.truncate(whole);
                    break;
                }
                None => "is no synthetic row; expected a file that `retune dataset synth` wrote"
                    .to_owned(),
                Some(Err(what)) => what,
            };
            return Err(Error::NoDataset {
                name: format!("{}:{}", path.display(), index + 1),
                what,
            });
        }
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n").map_err(Error::file(path))?;
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            rows,
        })
    }

    /// Adds a row, on disk before this returns.
    ///
    /// # Errors
    /// Of the file.
    pub fn add(&mut self, row: Row) -> Result<(), Error> {
        let line = line(&row)?;
        let written = self.file.write_all(line.as_bytes());
        written
            .and_then(|()| self.file.sync_data())
            .map_err(Error::file(&self.path))?;
        self.rows.push(row);
        Ok(())
    }

    /// Puts the rows as they are now in the file's place: all of them, or, if it fails, none.
    ///
    /// # Errors
    /// Of the file.
    pub fn replace(&mut self) -> Result<(), Error> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let beside = self.path.with_file_name(name);
        let text: String = self.rows.iter().map(line).collect::<Result<_, _>>()?;
        let put = || {
            let mut options = File::options();
            let mut file = options
                .read(true)
                .append(true)
                .create_new(true)
                .open(&beside)?;
            // Before it is there for others.
            file.try_lock().map_err(std::io::Error::from)?;
            file.set_permissions(self.file.metadata()?.permissions())?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&beside, &self.path)?;
            Ok(file)
        };
        match put() {
            Ok(file) => {
                self.file = file;
                Ok(())
            }
            Err(error) => {
                // What was there still is.
                std::fs::remove_file(&beside).ok();
                Err(Error::file(&self.path)(error))
            }
        }
    }
}

fn line(row: &Row) -> Result<String, Error> {
    let text = serde_json::to_string(row).map_err(Error::Report)?;
    Ok(format!("{text}\n"))
}

/// The text; a last line may be torn within a character.
fn decoded(mut bytes: Vec<u8>) -> std::io::Result<String> {
    if let Err(error) = std::str::from_utf8(&bytes)
        && error.error_len().is_none()
    {
        bytes.truncate(error.valid_up_to());
    }
    String::from_utf8(bytes).map_err(std::io::Error::other)
}

/// Whether a line breaks off.
fn is_torn(line: &str) -> bool {
    let read = serde_json::from_str::<serde_json::Value>(line);
    read.is_err_and(|error| error.is_eof())
}

fn lock(file: &File, path: &Path) -> Result<(), Error> {
    let busy = || Error::NoDataset {
        name: path.display().to_string(),
        what: "another process writes to it at this moment; try again when it is done".to_owned(),
    };
    match file.try_lock() {
        Ok(()) if is_still(file, path) => Ok(()),
        // It was written anew between the two.
        Ok(()) | Err(TryLockError::WouldBlock) => Err(busy()),
        Err(TryLockError::Error(error)) => Err(Error::file(path)(error)),
    }
}

#[cfg(unix)]
fn is_still(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let (ours, there) = (file.metadata(), std::fs::metadata(path));
    ours.ok()
        .zip(there.ok())
        .is_some_and(|(a, b)| (a.dev(), a.ino()) == (b.dev(), b.ino()))
}

#[cfg(not(unix))]
fn is_still(_: &File, _: &Path) -> bool {
    true
}
