//! The header of a GGUF file: whether the engine reads all that is in it, and whether the file is whole.
//!
//! mistralrs takes from a GGUF file the settings and tensors that it knows, and ignores the others, silently: the stretched rotary
//! embedding of Llama 3.1 (`rope_freqs.weight`) among them. A model read so answers wrongly. So every setting of the model and every
//! tensor has to be one that is known to be read, or has no effect; else it is refused by its name.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value};

use crate::error::Error;

/// What is read of a model of one architecture, beside what all have.
struct Architecture {
    name: &'static str,
    /// Tensors of each block.
    tensors: &'static [&'static str],
}

const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "llama",
        tensors: &[],
    },
    Architecture {
        name: "qwen2",
        tensors: &["attn_q.bias", "attn_k.bias", "attn_v.bias"],
    },
    Architecture {
        name: "qwen3",
        tensors: &["attn_q_norm.weight", "attn_k_norm.weight"],
    },
];

const TENSORS: &[&str] = &["token_embd.weight", "output_norm.weight", "output.weight"];
const BLOCK_TENSORS: &[&str] = &[
    "attn_norm.weight",
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_norm.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
];
/// Settings that are read, or follow from the tensors.
const SETTINGS: &[&str] = &[
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
];

/// Without these the engine panics, or takes a default that may not be the model's.
const REQUIRED: &[&str] = &[
    "block_count",
    "context_length",
    "embedding_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
];

/// So many things that are wrong are named.
const SHOWN: usize = 5;

/// The one file of `files`, checked.
pub(super) fn check(base: &Path, files: &[PathBuf]) -> Result<PathBuf, Error> {
    let [path] = files else {
        let names: Vec<_> = files
            .iter()
            .filter_map(|f| f.file_name()?.to_str())
            .collect();
        return Err(Error::ModelFile {
            path: base.to_path_buf(),
            what: format!(
                "has several GGUF files: {}; name one of them in engine.base",
                names.join(", ")
            ),
        });
    };
    let broken = |what: String| Error::ModelFile {
        path: path.clone(),
        what,
    };
    let unreadable = |e: std::io::Error| broken(format!("cannot be read: {e}"));
    let file = File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    let content = Content::read(&mut BufReader::new(file))
        .map_err(|e| broken(format!("is no GGUF file, or not a whole one: {e}")))?;
    let mut problems = ignored(&content);
    problems.extend(missing_data(&content, size));
    if problems.is_empty() {
        return Ok(path.clone());
    }
    if problems.len() > SHOWN {
        let more = problems.len() - SHOWN;
        problems.truncate(SHOWN);
        problems.push(format!("and {more} more"));
    }
    Err(broken(format!("cannot be served: {}", problems.join("; "))))
}

/// What the engine would not read.
fn ignored(content: &Content) -> Vec<String> {
    let text = |key: &str| match content.metadata.get(key) {
        Some(Value::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let named = text("general.architecture").unwrap_or_default();
    let Some(architecture) = ARCHITECTURES.iter().find(|a| a.name == named) else {
        let known: Vec<_> = ARCHITECTURES.iter().map(|a| a.name).collect();
        return vec![format!(
            "its architecture is {named:?}; of GGUF files {} are read",
            known.join(", ")
        )];
    };
    let parts = content.metadata.get("split.count");
    let mut problems = Vec::new();
    if parts.is_some_and(|n| n.to_u64().is_ok_and(|n| n > 1)) {
        problems.push(
            "it is one of several parts; merge them with `llama-gguf-split --merge`".to_owned(),
        );
    }
    let prefix = format!("{named}.");
    let missing = REQUIRED
        .iter()
        .map(|key| format!("{prefix}{key}"))
        .filter(|key| !content.metadata.contains_key(key))
        .map(|key| format!("it has no setting {key}"));
    problems.extend(missing);
    let mut settings: Vec<_> = content
        .metadata
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?, value)))
        .filter(|(key, value)| !SETTINGS.contains(key) && !without_effect(key, value))
        .map(|(key, _)| format!("the engine would ignore its setting {named}.{key}"))
        .collect();
    settings.sort();
    problems.extend(settings);
    let mut tensors: Vec<_> = content
        .tensor_infos
        .keys()
        .filter(|tensor| !is_read(tensor, architecture))
        .map(|tensor| format!("the engine would ignore its tensor {tensor}"))
        .collect();
    tensors.sort();
    problems.extend(tensors);
    problems
}

fn is_read(tensor: &str, architecture: &Architecture) -> bool {
    let in_block = tensor
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'))
        .filter(|(block, _)| block.bytes().all(|b| b.is_ascii_digit()));
    match in_block {
        Some((_, name)) => BLOCK_TENSORS.contains(&name) || architecture.tensors.contains(&name),
        None => TENSORS.contains(&tensor),
    }
}

/// A value that asks for nothing.
fn without_effect(key: &str, value: &Value) -> bool {
    match value {
        Value::Bool(asked) => !asked,
        Value::String(text) => key == "rope.scaling.type" && text == "none",
        number => {
            ["expert_count", "expert_used_count"].contains(&key)
                && number.to_u64().is_ok_and(|n| n == 0)
        }
    }
}

/// A tensor whose data the file ends before.
fn missing_data(content: &Content, size: u64) -> Option<String> {
    let end = |info: &candle_core::quantized::gguf_file::TensorInfo| {
        let (elements, kind) = (info.shape.elem_count(), info.ggml_dtype);
        let bytes = elements / kind.block_size() * kind.type_size();
        content.tensor_data_offset + info.offset + bytes as u64
    };
    let ends = content
        .tensor_infos
        .iter()
        .map(|(name, info)| (end(info), name));
    let (end, name) = ends.max()?;
    (end > size).then(|| {
        format!(
            "it is truncated: tensor {name} ends at byte {end}, the file has {size}; copy it again"
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
    use candle_core::{Device, Tensor};

    use super::*;

    fn checked(settings: &[(String, Value)], tensors: &[&str], cut: usize) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let zeros = Tensor::zeros((4, 32), candle_core::DType::F32, &Device::Cpu).unwrap();
        let zeros = QTensor::quantize(&zeros, GgmlDType::Q8_0).unwrap();
        let settings: Vec<_> = settings
            .iter()
            .map(|(key, value)| (key.as_str(), value))
            .collect();
        let tensors: Vec<_> = tensors.iter().map(|name| (*name, &zeros)).collect();
        let mut bytes = std::io::Cursor::new(Vec::new());
        gguf_file::write(&mut bytes, &settings, &tensors).unwrap();
        let mut bytes = bytes.into_inner();
        bytes.truncate(bytes.len() - cut);
        std::fs::write(&path, bytes).unwrap();
        check(folder.path(), &[path])
            .map(drop)
            .map_err(|e| e.to_string())
    }

    fn settings(architecture: &str) -> Vec<(String, Value)> {
        let named = Value::String(architecture.to_owned());
        let mut settings = vec![("general.architecture".to_owned(), named)];
        settings.extend(
            REQUIRED
                .iter()
                .map(|key| (format!("{architecture}.{key}"), Value::U32(1))),
        );
        settings
    }

    fn llama(more: Option<(&str, Value)>) -> Vec<(String, Value)> {
        let mut settings = settings("llama");
        settings.extend(more.map(|(key, value)| (key.to_owned(), value)));
        settings
    }

    #[test]
    fn what_the_engine_would_ignore_is_named() {
        let tensors = ["token_embd.weight", "blk.0.attn_q.weight"];
        assert_eq!(checked(&llama(None), &tensors, 0), Ok(()));
        for harmless in [
            ("llama.expert_count", Value::U32(0)),
            ("llama.rope.scaling.type", Value::String("none".to_owned())),
            ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ] {
            assert_eq!(checked(&llama(Some(harmless)), &tensors, 0), Ok(()));
        }
        for (key, value) in [
            ("llama.rope.scaling.type", Value::String("yarn".to_owned())),
            ("llama.rope.scaling.factor", Value::F32(8.0)),
            ("llama.attention.sliding_window", Value::U32(4096)),
            ("llama.expert_count", Value::U32(8)),
        ] {
            let refused = checked(&llama(Some((key, value))), &tensors, 0).unwrap_err();
            assert!(refused.contains(key), "{refused}");
        }
        for tensor in [
            "rope_freqs.weight",
            "blk.0.attn_q.bias",
            "blk.x.attn_q.weight",
        ] {
            let refused = checked(&llama(None), &["token_embd.weight", tensor], 0).unwrap_err();
            assert!(refused.contains(tensor), "{refused}");
        }
        let biased = ["token_embd.weight", "blk.0.attn_q.bias"];
        assert_eq!(checked(&settings("qwen2"), &biased, 0), Ok(()));
        let refused = checked(&llama(None)[..3], &tensors, 0).unwrap_err();
        assert!(refused.contains("llama.embedding_length"), "{refused}");
        let refused = checked(&settings("mamba"), &tensors, 0).unwrap_err();
        assert!(
            refused.contains("mamba") && refused.contains("llama"),
            "{refused}"
        );
        let part = llama(Some(("split.count", Value::U16(3))));
        assert!(checked(&part, &tensors, 0).unwrap_err().contains("merge"));
    }

    #[test]
    fn a_file_that_is_not_whole() {
        for cut in [30, 60, 200] {
            // The last 24 bytes are padding.
            let tensors = ["token_embd.weight", "output.weight"];
            assert!(checked(&llama(None), &tensors, cut).is_err(), "{cut} bytes");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
        let refused = check(folder.path(), std::slice::from_ref(&path)).unwrap_err();
        assert!(refused.to_string().contains("no GGUF file"), "{refused}");
        let both = [path.clone(), folder.path().join("other.gguf")];
        let refused = check(folder.path(), &both).unwrap_err().to_string();
        assert!(refused.contains("model.gguf, other.gguf"), "{refused}");
    }
}
