//! Files: reading safetensors, one or sharded, and writing whole files or none.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::{SafeTensorError, SafeTensors};
use serde_json::Value;

use crate::error::{Error, Result};

/// A folder's tensors, from one or several safetensors files. A file's bytes are held while its tensors are taken.
pub(crate) struct Store {
    /// Which file has which tensor.
    place: HashMap<String, PathBuf>,
    source: PathBuf,
    open: Option<(PathBuf, Vec<u8>)>,
}

impl Store {
    /// `model.safetensors`, or the shards named in `model.safetensors.index.json`.
    pub(crate) fn open_model(folder: &Path) -> Result<Self> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if single.exists() || !index.exists() {
            return Store::open_file(&single);
        }
        let text = std::fs::read_to_string(&index).map_err(Error::io(&index))?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|error| Error::file(&index, format!("not an index of shards: {error}")))?;
        let map = json
            .get("weight_map")
            .and_then(Value::as_object)
            .ok_or_else(|| Error::file(&index, "no `weight_map` in it"))?;
        let mut place = HashMap::new();
        for (name, file) in map {
            // A shard lies in the folder itself; anything else would read files elsewhere.
            match file
                .as_str()
                .filter(|file| Path::new(file).components().count() == 1 && *file != "..")
            {
                Some(file) => place.insert(name.clone(), folder.join(file)),
                None => {
                    return Err(Error::file(
                        &index,
                        format!("the shard of `{name}` is {file}, not a file's name"),
                    ));
                }
            };
        }
        Ok(Store {
            place,
            source: index,
            open: None,
        })
    }

    pub(crate) fn open_file(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let names: Vec<String> = parse(path, &bytes)?
            .names()
            .iter()
            .map(|name| name.to_string())
            .collect();
        let place = names
            .into_iter()
            .map(|name| (name, path.to_path_buf()))
            .collect();
        Ok(Store {
            place,
            source: path.to_path_buf(),
            open: Some((path.to_path_buf(), bytes)),
        })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.place.keys().map(String::as_str)
    }

    /// The tensor in f32, which must have this shape.
    pub(crate) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.take_any(name)?;
        if tensor.dims() != shape {
            let (path, found) = (self.place.get(name).unwrap_or(&self.source), tensor.dims());
            return Err(Error::file(
                path,
                format!("tensor `{name}` has shape {found:?}; expected {shape:?}"),
            ));
        }
        Ok(tensor)
    }

    /// The tensor in f32.
    pub(crate) fn take_any(&mut self, name: &str) -> Result<Tensor> {
        let missing = |file: &Path| Error::file(file, format!("tensor `{name}` is missing"));
        let path = self.place.get(name).ok_or_else(|| missing(&self.source))?;
        if self.open.as_ref().is_none_or(|(open, _)| open != path) {
            self.open = None;
            self.open = Some((path.clone(), std::fs::read(path).map_err(Error::io(path))?));
        }
        let Some((path, bytes)) = &self.open else {
            return Err(missing(&self.source));
        };
        let all = parse(path, bytes)?;
        let view = all.tensor(name).map_err(|_| missing(path))?;
        use safetensors::Dtype;
        if !matches!(view.dtype(), Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            let found = view.dtype();
            return Err(Error::file(
                path,
                format!("tensor `{name}` is {found:?}; expected F32, BF16 or F16"),
            ));
        }
        Ok(view.load(&Device::Cpu)?.to_dtype(DType::F32)?)
    }
}

fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(bytes).map_err(|error| {
        let size = bytes.len();
        Error::file(path, match error {
            SafeTensorError::MetadataIncompleteBuffer
            | SafeTensorError::InvalidHeaderLength
            | SafeTensorError::HeaderTooSmall => {
                format!("truncated, or not safetensors: {size} bytes are not what its header promises ({error})")
            }
            error => format!("not a safetensors file: {error}"),
        })
    })
}

/// Writes a temporary file beside `path`, flushes it to the disk and renames it: readers see the old file or the new.
fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut tempfile::NamedTempFile) -> Result<()>,
) -> Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".writing-")
        .tempfile_in(folder)
        .map_err(Error::io(path))?;
    write(&mut file)?;
    // Temporary files are private to their owner; a model is to be read by the server too.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o644);
        file.as_file()
            .set_permissions(mode)
            .map_err(Error::io(path))?;
    }
    file.as_file().sync_all().map_err(Error::io(path))?;
    file.persist(path).map_err(|error| Error::Io {
        path: path.to_path_buf(),
        source: error.error,
    })?;
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io(folder))
}

pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_whole(path, |file| {
        writeln!(file, "{value:#}").map_err(Error::io(path))
    })
}

/// With the metadata `format: pt`, without which older transformers refuse the file.
pub(crate) fn write_safetensors(path: &Path, tensors: BTreeMap<String, Tensor>) -> Result<()> {
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    write_whole(path, |file| {
        let bytes = safetensors::serialize(tensors, Some(metadata))
            .map_err(|error| Error::file(path, format!("cannot be written: {error}")))?;
        file.write_all(&bytes).map_err(Error::io(path))
    })
}
