//! A model's own word vectors: its tokenizer, and the table of embeddings in its safetensors files.
//!
//! The table of a large model is gigabytes, and traffic uses a small part of it. So a token's row is read from the file when it is first
//! met, and the first ones met, which are the frequent ones, stay in memory.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use tokenizers::Tokenizer;

use super::sentences::Vectors;
use crate::error::Error;

/// What the table is called: in Llama and its like, in GPT-NeoX, GPT-2, BERT, and in static models of model2vec.
const TABLES: [&str; 7] = [
    "model.embed_tokens.weight",
    "embed_tokens.weight",
    "gpt_neox.embed_in.weight",
    "transformer.wte.weight",
    "bert.embeddings.word_embeddings.weight",
    "embeddings.word_embeddings.weight",
    "embeddings",
];
/// The largest header that the format's reference implementation accepts.
const LONGEST_HEADER: u64 = 100_000_000;
/// Rows kept in memory, in bytes.
const KEPT: usize = 32 << 20;
/// Of a longer text the beginning counts, as for its words.
const LONGEST: usize = 16 << 10;

/// A tokenizer and its tokens' vectors.
pub struct TokenVectors {
    tokenizer: Tokenizer,
    file: File,
    /// Of the table in the file.
    start: u64,
    tokens: u32,
    width: usize,
    number: Number,
    rows: Mutex<HashMap<u32, Vec<f32>>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum Number {
    F32,
    F16,
    BF16,
}

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl TokenVectors {
    /// Of a folder in Hugging Face's layout. None where there is none: a GGUF file, a table that is quantised or called otherwise.
    pub fn open(folder: &Path) -> Result<Option<Self>, Error> {
        let tokenizer = folder.join("tokenizer.json");
        if !tokenizer.is_file() {
            return Ok(None);
        }
        let tokenizer = Tokenizer::from_file(&tokenizer)
            .map_err(|e| Error::model(&tokenizer, e.to_string()))?;
        for path in files(folder)? {
            let (header, tensors) = header(&path)?;
            let Some(tensor) = TABLES.iter().find_map(|name| tensors.get(*name)) else {
                continue;
            };
            let tensor: Tensor = serde_json::from_value(tensor.clone())
                .map_err(|e| Error::model(&path, e.to_string()))?;
            let number = serde_json::from_value(tensor.dtype.clone().into());
            let (Ok(number), &[tokens, width]) = (number, tensor.shape.as_slice()) else {
                return Ok(None);
            };
            let vectors = Self {
                tokenizer,
                file: File::open(&path).map_err(|e| Error::model(&path, e.to_string()))?,
                start: header + tensor.data_offsets.0,
                tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
                width: usize::try_from(width).unwrap_or(0),
                number,
                rows: Mutex::default(),
            };
            let bytes = tensor.data_offsets.1.saturating_sub(tensor.data_offsets.0);
            if tokens.checked_mul(vectors.row_bytes() as u64) != Some(bytes) || width == 0 {
                return Err(Error::model(
                    &path,
                    format!(
                        "its table of embeddings has {bytes} bytes for {tokens} rows of {width}; copy it again"
                    ),
                ));
            }
            return Ok(Some(vectors));
        }
        Ok(None)
    }

    /// A text's tokens; none where it cannot be split into any.
    pub fn tokens(&self, text: &str) -> Vec<u32> {
        let mut end = text.len().min(LONGEST);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let encoded = self.tokenizer.encode(&text[..end], false);
        encoded.map_or_else(|_| Vec::new(), |encoded| encoded.get_ids().to_vec())
    }

    fn row_bytes(&self) -> usize {
        let each = match self.number {
            Number::F32 => 4,
            Number::F16 | Number::BF16 => 2,
        };
        self.width * each
    }

    /// A row, from the file. One that cannot be read counts as none: the test has less to go by, and does not end the monitor.
    fn read(&self, token: u32) -> Vec<f32> {
        let mut bytes = vec![0; self.row_bytes()];
        let at = self.start + u64::from(token) * bytes.len() as u64;
        if token >= self.tokens || self.file.read_exact_at(&mut bytes, at).is_err() {
            return Vec::new();
        }
        match self.number {
            Number::F32 => {
                let values = bytes.chunks_exact(4);
                values
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect()
            }
            Number::F16 => {
                let values = bytes.chunks_exact(2);
                values
                    .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())
                    .collect()
            }
            Number::BF16 => {
                let values = bytes.chunks_exact(2);
                values
                    .map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32())
                    .collect()
            }
        }
    }
}

impl Vectors for TokenVectors {
    fn width(&self) -> usize {
        self.width
    }

    fn add(&self, token: u32, weight: f32, sum: &mut [f32]) {
        let mut add = |row: &[f32]| {
            for (sum, value) in sum.iter_mut().zip(row) {
                *sum += weight * value;
            }
        };
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(row) = rows.get(&token) {
            return add(row);
        }
        let row = self.read(token);
        add(&row);
        if rows.len() * self.width * 4 < KEPT {
            rows.insert(token, row);
        }
    }
}

/// The folder's safetensors files, in order of their names.
fn files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let index = folder.join("model.safetensors.index.json");
    let names: Vec<String> = match std::fs::read(&index) {
        Err(_) => vec!["model.safetensors".to_owned()],
        Ok(text) => {
            let index: Index =
                serde_json::from_slice(&text).map_err(|e| Error::model(&index, e.to_string()))?;
            let mut names: Vec<String> = index.weight_map.into_values().collect();
            names.sort();
            names.dedup();
            names
        }
    };
    let paths = names.into_iter().map(|name| folder.join(name));
    Ok(paths.filter(|path| path.is_file()).collect())
}

/// Where the data begins, and what the header says of the tensors.
fn header(path: &Path) -> Result<(u64, BTreeMap<String, serde_json::Value>), Error> {
    let wrong = |what: String| Error::model(path, what);
    let mut file = File::open(path).map_err(|e| wrong(e.to_string()))?;
    let mut length = [0; 8];
    file.read_exact(&mut length)
        .map_err(|e| wrong(e.to_string()))?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER {
        return Err(wrong(format!("{length} bytes is no length of a header")));
    }
    let mut text = Vec::new();
    let read = file.take(length).read_to_end(&mut text);
    read.map_err(|e| wrong(e.to_string()))?;
    let header = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    Ok((8 + length, header))
}
