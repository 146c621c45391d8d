//! What a run has to know of the base's folder: its digest, which ties an adapter to the weights it was trained on.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::Error;

/// Lower-hex SHA-256 over names and contents of all files that make the model: its configuration, tokenizer, template and weights.
pub(crate) fn digest(folder: &Path) -> Result<String, Error> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(Error::file(folder))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(Error::file(folder))?;
    files.retain(|path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        path.is_file() && matches!(extension, Some("json" | "safetensors" | "jinja"))
    });
    files.sort();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let mut file = std::fs::File::open(&path).map_err(Error::file(&path))?;
        let length = file.metadata().map_err(Error::file(&path))?.len();
        hash.update(format!("{name}\n{length}\n"));
        loop {
            let read = file.read(&mut buffer).map_err(Error::file(&path))?;
            if read == 0 {
                break;
            }
            hash.update(buffer.get(..read).unwrap_or_default());
        }
    }
    Ok(retune_task::hex(&hash.finalize()))
}
