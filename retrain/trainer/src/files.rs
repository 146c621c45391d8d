//! Files: reading safetensors, one or sharded, and writing whole files or none.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorView};
use serde_json::Value;

use crate::error::{Error, Result};

/// A folder's tensors, from one or several safetensors files. They are read one at a time: a model is in memory once.
pub(crate) struct Store {
    /// Which file has which tensor.
    place: HashMap<String, PathBuf>,
    source: PathBuf,
    open: Option<Open>,
}

/// A safetensors file: what is where in it.
struct Open {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// Of the numbers, in the file.
    start: u64,
}

/// As the safetensors crate has it: beyond that it is no header.
const LONGEST_HEADER: u64 = 100_000_000;

impl Open {
    fn new(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io(path))?;
        let size = file.metadata().map_err(Error::io(path))?.len();
        let truncated = || {
            let what = "truncated, or not safetensors";
            Error::file(
                path,
                format!("{what}: {size} bytes are not what its header promises"),
            )
        };
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| truncated())?;
        let length = u64::from_le_bytes(length);
        if length > LONGEST_HEADER.min(size) {
            return Err(truncated());
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(|_| truncated())?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| Error::file(path, format!("not a safetensors file: {error}")))?;
        let start = 8 + length;
        if start + metadata.data_len() as u64 != size {
            return Err(truncated());
        }
        Ok(Open {
            path: path.to_path_buf(),
            file,
            metadata,
            start,
        })
    }

    fn take(&mut self, name: &str) -> Result<Tensor> {
        let path = &self.path;
        let info = self
            .metadata
            .info(name)
            .ok_or_else(|| Error::file(path, format!("tensor `{name}` is missing")))?;
        if !matches!(info.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            let found = info.dtype;
            return Err(Error::file(
                path,
                format!("tensor `{name}` is {found:?}; expected F32, BF16 or F16"),
            ));
        }
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        self.file
            .seek(SeekFrom::Start(self.start + from as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(Error::io(path))?;
        let view = TensorView::new(info.dtype, info.shape.clone(), &bytes)
            .map_err(|error| Error::file(path, format!("tensor `{name}`: {error}")))?;
        Ok(view.load(&Device::Cpu)?)
    }
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
        let open = Open::new(path)?;
        let names = open.metadata.offset_keys().into_iter();
        Ok(Store {
            place: names.map(|name| (name, path.to_path_buf())).collect(),
            source: path.to_path_buf(),
            open: Some(open),
        })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.place.keys().map(String::as_str)
    }

    /// What the open file says of itself under a key.
    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        let metadata = self.open.as_ref()?.metadata.metadata().as_ref()?;
        metadata.get(key).map(String::as_str)
    }

    /// The tensor in f32, which must have this shape.
    pub(crate) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(self.take_stored(name, shape)?.to_dtype(DType::F32)?)
    }

    /// The tensor in f32.
    pub(crate) fn take_any(&mut self, name: &str) -> Result<Tensor> {
        Ok(self.find(name)?.to_dtype(DType::F32)?)
    }

    /// The tensor as it is stored, in f32, bf16 or f16, which must have this shape.
    pub(crate) fn take_stored(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.find(name)?;
        if tensor.dims() != shape {
            let (path, found) = (self.place.get(name).unwrap_or(&self.source), tensor.dims());
            return Err(Error::file(
                path,
                format!("tensor `{name}` has shape {found:?}; expected {shape:?}"),
            ));
        }
        Ok(tensor)
    }

    fn find(&mut self, name: &str) -> Result<Tensor> {
        let path = self
            .place
            .get(name)
            .ok_or_else(|| Error::file(&self.source, format!("tensor `{name}` is missing")))?;
        match &mut self.open {
            Some(open) if open.path == *path => open.take(name),
            other => other.insert(Open::new(path)?).take(name),
        }
    }
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
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io(folder))
}

pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_whole(path, |file| {
        writeln!(file, "{value:#}").map_err(Error::io(path))
    })
}

/// With the metadata `format: pt`, without which older transformers refuse the file, beside what is given.
pub(crate) fn write_safetensors(
    path: &Path,
    tensors: BTreeMap<String, Tensor>,
    mut metadata: HashMap<String, String>,
) -> Result<()> {
    metadata.insert("format".to_string(), "pt".to_string());
    write_whole(path, |file| {
        let bytes = safetensors::serialize(tensors, Some(metadata))
            .map_err(|error| Error::file(path, format!("cannot be written: {error}")))?;
        file.write_all(&bytes).map_err(Error::io(path))
    })
}
