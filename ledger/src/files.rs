//! Files that are created once, whole, and never overwritten: what decisions are made of.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// Creates `path` with `bytes` unless it exists; whether it was created. The bytes are on disk under another name
/// first and get this one by a hard link, so that nobody ever sees half a file and two writers cannot both win.
pub(crate) fn create_once(path: &Path, bytes: &[u8]) -> Result<bool, Error> {
    create_once_by(File::options(), path, bytes)
}

/// The same for what only the owner may read: the file is so from its first moment.
pub(crate) fn create_once_for_owner(path: &Path, bytes: &[u8]) -> Result<bool, Error> {
    let mut options = File::options();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    create_once_by(options, path, bytes)
}

/// Takes from a file what others than its owner may do with it, as far as it is ours to take: another user who may read it
/// cannot.
pub(crate) fn only_for_owner(path: &Path) -> Result<(), Error> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path)
            .map_err(Error::io(path))?
            .permissions()
            .mode();
        let owner = std::fs::Permissions::from_mode(mode & 0o700);
        if mode & 0o077 != 0
            && let Err(error) = std::fs::set_permissions(path, owner)
        {
            tracing::warn!(path = %path.display(), %error, "others may read this file, and it could not be changed; chmod 600 it");
        }
    }
    Ok(())
}

fn create_once_by(options: OpenOptions, path: &Path, bytes: &[u8]) -> Result<bool, Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    match by_part(options, path, bytes, |part| std::fs::hard_link(part, path)) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Error::io(path)(e)),
    }
}

/// Brings bytes to disk under a hidden name beside `path`, and has them named.
fn by_part(
    mut options: OpenOptions,
    path: &Path,
    bytes: &[u8],
    name: impl FnOnce(&Path) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let part = path.with_file_name(format!(".part-{}", uuid::Uuid::new_v4()));
    let mut write = || {
        let mut file = options.write(true).create_new(true).open(&part)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    let named = write().and_then(|()| name(&part));
    // A left-over part is an unlinked name, nothing reads it.
    drop(std::fs::remove_file(&part));
    named
}

/// What a file of JSON holds.
pub(crate) fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, Error> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::Damaged {
        path: path.to_owned(),
        what: e.to_string(),
    })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads a file that may not be there.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path)(e)),
    }
}

/// Puts `bytes` in a file's place, so that it is at every moment the old or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let renamed = by_part(File::options(), path, bytes, |part| {
        std::fs::rename(part, path)
    });
    renamed.map_err(Error::io(path))
}

/// Deletes a file that may be gone.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(path)(e)),
        _ => Ok(()),
    }
}

/// What JSON says that [`json`] made.
pub(crate) fn from_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|e| Error::Damaged {
        path: path.to_owned(),
        what: format!("not what Retune wrote: {e}"),
    })
}

/// Names in a folder, sorted; none where there is no folder. Hidden ones are parts, and left out.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(folder)(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry
            .map_err(Error::io(folder))?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
