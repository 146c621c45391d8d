//! The pocket model inside the program: a small Llama that Retune serves where no other base is configured.
//!
//! Engines and trainers read folders, so the files are written to a cache folder whose name holds their digest: another
//! version of the program never meets another version's model, and a damaged copy is noticed and replaced. The model is
//! made by `cargo run --release -p retune-pocket -- make`; README.md beside it is its card.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

macro_rules! files {
    ($($name:literal),* $(,)?) => { &[$(($name, include_bytes!(concat!("../", $name)))),*] };
}

/// The model's files: name and content.
const FILES: &[(&str, &[u8])] = files!(
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
);

/// The folder's last part, which is the base's id in the API.
const NAME: &str = "pocket";
/// How often another process may get in between before that is an error.
const ATTEMPTS: usize = 5;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(
        "could not write the embedded model to {path}: {source}; is there room, and may it be written?"
    )]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "the embedded model in {path} does not stay as it was written: something else changes the folder"
    )]
    Changing { path: PathBuf },
}

/// SHA-256 over the files' names and contents, lower hex.
pub fn digest() -> String {
    digest_of(
        FILES
            .iter()
            .map(|(name, content)| (*name, content.to_vec())),
    )
}

fn digest_of<'a>(files: impl Iterator<Item = (&'a str, Vec<u8>)>) -> String {
    let mut hash = Sha256::new();
    for (name, content) in files {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(content);
    }
    retune_task::hex(&hash.finalize())
}

/// Where the model is unpacked by default: `$XDG_CACHE_HOME/retune` or `~/.cache/retune`, else in the temporary folder.
pub fn default_folder() -> PathBuf {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    let home = || variable("HOME").map(|home| home.join(".cache"));
    cache
        .or_else(home)
        .unwrap_or_else(std::env::temp_dir)
        .join("retune")
}

/// Writes the model into `<folder>/pocket-<digest>/pocket` unless it is there, whole and unchanged; gives that path.
///
/// Safe against other processes that do the same and against being killed: the folder appears at once or not at all.
pub fn unpack(folder: &Path) -> Result<PathBuf, Error> {
    let digest = digest();
    let versioned = folder.join(format!("{NAME}-{}", digest.get(..12).unwrap_or(&digest)));
    let model = versioned.join(NAME);
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Write { path, source }
    };
    for _ in 0..ATTEMPTS {
        if is_whole(&model, &digest) {
            return Ok(model);
        }
        let staging = beside(&versioned);
        let written =
            write(&staging.join(NAME)).and_then(|()| match std::fs::rename(&staging, &versioned) {
                // Something stands there: damaged, or another process was quicker. Out of the way with what is damaged.
                Err(_) if versioned.exists() && !is_whole(&model, &digest) => {
                    let damaged = beside(&versioned);
                    let moved = std::fs::rename(&versioned, &damaged);
                    remove(&damaged);
                    moved
                }
                Err(error) if !versioned.exists() => Err(error),
                _ => Ok(()),
            });
        remove(&staging);
        match written {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(&versioned)(error));
            }
            _ => {}
        }
    }
    if is_whole(&model, &digest) {
        Ok(model)
    } else {
        Err(Error::Changing { path: model })
    }
}

fn is_whole(model: &Path, digest: &str) -> bool {
    let read = |name: &str| std::fs::read(model.join(name)).ok();
    let files: Option<Vec<_>> = FILES
        .iter()
        .map(|(name, _)| Some((*name, read(name)?)))
        .collect();
    files.is_some_and(|files| digest_of(files.into_iter()) == digest)
}

fn write(model: &Path) -> io::Result<()> {
    std::fs::create_dir_all(model)?;
    FILES
        .iter()
        .try_for_each(|(name, content)| std::fs::write(model.join(name), content))
}

/// A name beside the folder that no other thread or process uses.
fn beside(folder: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    folder.with_file_name(format!(".{name}-{}-{number}", std::process::id()))
}

/// What could not be removed is a hidden folder in a cache: no reason to fail.
fn remove(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn it_is_written_once_and_mended_when_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let model = unpack(&folder.path().join("new")).unwrap();
        assert_eq!(model.file_name().unwrap(), NAME);
        let weights = model.join("model.safetensors");
        let written = std::fs::metadata(&weights).unwrap().modified().unwrap();
        assert_eq!(unpack(&folder.path().join("new")).unwrap(), model);
        assert_eq!(
            std::fs::metadata(&weights).unwrap().modified().unwrap(),
            written,
            "not written again"
        );
        let whole = std::fs::read(&weights).unwrap();
        std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
        std::fs::remove_file(model.join("config.json")).unwrap();
        assert_eq!(unpack(&folder.path().join("new")).unwrap(), model);
        assert_eq!(std::fs::read(&weights).unwrap(), whole);
        assert_eq!(
            std::fs::read_dir(folder.path().join("new"))
                .unwrap()
                .count(),
            1,
            "nothing else stays"
        );
    }

    #[test]
    fn many_may_unpack_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| unpack(folder.path()).unwrap()))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(paths.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let message = unpack(&file.join("below")).unwrap_err().to_string();
        assert!(
            message.contains("below") && message.contains("could not write"),
            "{message}"
        );
    }

    #[test]
    fn it_is_small_enough_to_be_in_a_program() {
        assert!(
            FILES
                .iter()
                .map(|(_, content)| content.len())
                .sum::<usize>()
                < 12_000_000
        );
    }
}
