//! The header of a safetensors file: names and shapes of its tensors, and whether the file is whole.
//!
//! The engine maps weight files into memory and panics on a truncated one, so each is looked at before.
//! Only the header is read. Layout: 8 bytes (little-endian) with the header's length, the header as JSON, the data
//! (<https://github.com/huggingface/safetensors#format>).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::Error;

/// The largest header that the reference implementation accepts, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// Shapes by tensor name, of one or more files.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tensors {
    pub(crate) shapes: BTreeMap<String, Vec<usize>>,
}

#[derive(Deserialize)]
struct Entry {
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl Tensors {
    /// Reads the headers of `files` into one map.
    pub(crate) fn read(files: &[PathBuf]) -> Result<Self, Error> {
        let mut tensors = Self::default();
        for file in files {
            tensors.add(file)?;
        }
        Ok(tensors)
    }

    fn add(&mut self, path: &Path) -> Result<(), Error> {
        let broken = |what: String| Error::ModelFile {
            path: path.to_path_buf(),
            what,
        };
        let unreadable = |e: std::io::Error| broken(format!("cannot be read: {e}"));
        let mut file = File::open(path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        let mut length = [0u8; 8];
        if size < 8 {
            return Err(broken(format!(
                "has only {size} bytes, no safetensors file is that short; copy it again"
            )));
        }
        file.read_exact(&mut length).map_err(unreadable)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER {
            return Err(broken(
                "is not a safetensors file (its first 8 bytes are no header length)".to_owned(),
            ));
        }
        if 8 + length > size {
            return Err(broken(format!(
                "is truncated: its header alone needs {} bytes, the file has {size}; copy it again",
                8 + length
            )));
        }
        let mut header = vec![0u8; usize::try_from(length).unwrap_or(usize::MAX)];
        file.read_exact(&mut header).map_err(unreadable)?;
        let entries: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&header)
            .map_err(|e| broken(format!("has a header that is not JSON: {e}")))?;
        for (name, value) in entries {
            if name == "__metadata__" {
                continue;
            }
            let entry: Entry = serde_json::from_value(value).map_err(|e| {
                broken(format!(
                    "describes tensor {name} in a way not understood: {e}"
                ))
            })?;
            let end = 8 + length + entry.data_offsets.1;
            if end > size {
                return Err(broken(format!(
                    "is truncated: tensor {name} ends at byte {end}, the file has {size}; copy it again"
                )));
            }
            self.shapes.insert(name, entry.shape);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "tests"
    )]

    use super::*;

    fn written(bytes: &[u8]) -> Result<Tensors, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        Tensors::read(&[path]).map_err(|e| e.to_string())
    }

    fn whole() -> Vec<u8> {
        let data: Vec<u8> = [1f32, 2., 3., 4., 5., 6.]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2, 3], &data)
            .unwrap();
        safetensors::serialize([("a.weight", view)], None).unwrap()
    }

    #[test]
    fn names_and_shapes() {
        assert_eq!(written(&whole()).unwrap().shapes["a.weight"], [2, 3]);
    }

    #[test]
    fn every_truncation_is_noticed() {
        let bytes = whole();
        for length in 0..bytes.len() {
            let error = written(&bytes[..length]).expect_err("a truncated file was accepted");
            assert!(
                error.contains("model.safetensors") && error.contains("copy it again"),
                "{length}: {error}"
            );
        }
    }

    #[test]
    fn another_kind_of_file() {
        assert!(
            written(b"version https://git-lfs.github.com/spec/v1\n")
                .unwrap_err()
                .contains("not a safetensors file")
        );
    }
}
