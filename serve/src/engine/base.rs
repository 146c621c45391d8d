//! A base model's files: everything the engine will need is looked at here, so that what is missing or broken is said by name.
//!
//! mistralrs panics on a truncated weight file and asks the hub for a missing one; it is handed only files that are there and
//! whole, and a config.json in the one dialect that it reads.

use std::path::{Path, PathBuf};

use retune_task::{base_folder, ggufs};
use serde_json::{Map, Value};

use super::gguf;
use super::safetensors::Tensors;
use crate::error::Error;

/// What is in the folder of a base model.
#[derive(Debug)]
pub(crate) struct BaseFolder {
    /// `config.json` as the engine wants it; empty for a GGUF file, which has its own.
    pub(crate) config: Map<String, Value>,
    pub(crate) tokenizer: PathBuf,
    pub(crate) kind: WeightsKind,
    /// One file, or the shards in order.
    pub(crate) weights: Vec<PathBuf>,
    pub(crate) generation_config: Option<PathBuf>,
    /// Those of the base; none of a GGUF file, which takes no adapter.
    pub(crate) tensors: Tensors,
}

/// What the weights are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightsKind {
    Safetensors,
    Gguf,
}

impl BaseFolder {
    /// Opens a folder, or a GGUF file in one.
    pub(crate) fn open(base: &Path) -> Result<Self, Error> {
        let folder = base_folder(base);
        if !folder.is_dir() {
            return Err(Error::ModelFile {
                path: folder.to_path_buf(),
                what: "is not a folder; set engine.base to a folder with config.json, tokenizer.json and model.safetensors, or to a \
                       GGUF file"
                    .to_owned(),
            });
        }
        let ggufs = ggufs(base);
        if !ggufs.is_empty() {
            return Self::open_gguf(base, folder, &ggufs);
        }
        let config = translated(
            &json(&folder.join("config.json"))?,
            &folder.join("config.json"),
        )?;
        let tokenizer = folder.join("tokenizer.json");
        json(&tokenizer)?;
        let weights = weight_files(folder)?;
        let tensors = Tensors::read(&weights)?;
        Ok(Self {
            config,
            tokenizer,
            kind: WeightsKind::Safetensors,
            weights,
            generation_config: generation_config(folder)?,
            tensors,
        })
    }

    fn open_gguf(base: &Path, folder: &Path, files: &[PathBuf]) -> Result<Self, Error> {
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            if !path.is_file() {
                return Err(Error::ModelFile {
                    path,
                    what: "is missing; a GGUF file is served with tokenizer.json and tokenizer_config.json of its model beside it"
                        .to_owned(),
                });
            }
            json(&path)?;
        }
        Ok(Self {
            config: Map::new(),
            tokenizer: folder.join("tokenizer.json"),
            kind: WeightsKind::Gguf,
            weights: vec![gguf::check(base, files)?],
            generation_config: generation_config(folder)?,
            tensors: Tensors::default(),
        })
    }

    /// Bytes of one more copy of the weights in memory, which each loaded adapter is: four for each parameter.
    pub(crate) fn copy_bytes(&self) -> u64 {
        let parameters: usize = self
            .tensors
            .shapes
            .values()
            .map(|shape| shape.iter().product::<usize>())
            .sum();
        parameters as u64 * 4
    }

    /// Whether the weights are quantised in the files: no adapter can be merged into such.
    pub(crate) fn quantised(&self) -> bool {
        self.config
            .get("quantization_config")
            .is_some_and(|v| !v.is_null())
    }
}

fn generation_config(folder: &Path) -> Result<Option<PathBuf>, Error> {
    let path = folder.join("generation_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    json(&path)?;
    Ok(Some(path))
}

/// Reads a JSON object.
pub(crate) fn json(path: &Path) -> Result<Map<String, Value>, Error> {
    let broken = |what: String| Error::ModelFile {
        path: path.to_path_buf(),
        what,
    };
    let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => broken("is missing".to_owned()),
        _ => broken(format!("cannot be read: {e}")),
    })?;
    serde_json::from_str(&text).map_err(|e| broken(format!("is not a JSON object: {e}")))
}

fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        return if single.is_file() {
            Ok(vec![single])
        } else {
            Err(Error::ModelFile {
                path: single,
                what: "is missing, and so are model.safetensors.index.json and a GGUF file (no other weights are read)".to_owned(),
            })
        };
    }
    let map = json(&index)?;
    let Some(map) = map.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::ModelFile {
            path: index,
            what: "has no weight_map".to_owned(),
        });
    };
    let mut files: Vec<PathBuf> = map
        .values()
        .filter_map(Value::as_str)
        .map(|f| folder.join(f))
        .collect();
    files.sort();
    files.dedup();
    for file in &files {
        if !file.is_file() {
            return Err(Error::ModelFile {
                path: file.clone(),
                what: "is missing, model.safetensors.index.json names it".to_owned(),
            });
        }
    }
    Ok(files)
}

/// A config.json of transformers 4 or 5, in the words of transformers 4: `rope_parameters` becomes `rope_theta` and
/// `rope_scaling`, and what has a default in transformers but none in the engine is written out. Settings that the engine would
/// ignore are refused.
fn translated(config: &Map<String, Value>, path: &Path) -> Result<Map<String, Value>, Error> {
    let refused = |what: String| {
        Err(Error::ModelFile {
            path: path.to_path_buf(),
            what,
        })
    };
    let mut config = config.clone();
    let architecture = config
        .get("architectures")
        .and_then(|a| a.get(0))
        .and_then(Value::as_str)
        .map(str::to_owned);
    let Some(architecture) = architecture else {
        return refused(
            "names no architecture (`architectures`); a causal language model's config.json does"
                .to_owned(),
        );
    };
    if let Some(Value::Object(mut rope)) = config.remove("rope_parameters") {
        if let Some(theta) = rope.remove("rope_theta") {
            config.insert("rope_theta".to_owned(), theta);
        }
        if rope
            .get("rope_type")
            .and_then(Value::as_str)
            .is_some_and(|kind| kind != "default")
        {
            config.insert("rope_scaling".to_owned(), Value::Object(rope));
        }
    }
    if architecture != "LlamaForCausalLM" {
        return Ok(config);
    }
    config
        .entry("rope_theta")
        .or_insert_with(|| Value::from(10_000.0));
    if config.get("num_key_value_heads").is_none_or(Value::is_null)
        && let Some(heads) = config.get("num_attention_heads").cloned()
    {
        config.insert("num_key_value_heads".to_owned(), heads);
    }
    for ignored in ["attention_bias", "mlp_bias"] {
        if config.get(ignored) == Some(&Value::Bool(true)) {
            return refused(format!(
                "sets {ignored}, which the engine would ignore for {architecture}"
            ));
        }
    }
    let size = |key: &str| config.get(key).and_then(Value::as_u64);
    if let (Some(hidden), Some(heads), Some(head)) = (
        size("hidden_size"),
        size("num_attention_heads"),
        size("head_dim"),
    ) && head * heads != hidden
    {
        return refused(format!(
            "sets head_dim {head}, but the engine takes hidden_size / num_attention_heads = {hidden} / {heads}"
        ));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;
    use serde_json::json;

    fn translate(config: &Value) -> Result<Value, String> {
        translated(config.as_object().unwrap(), Path::new("config.json"))
            .map(Value::Object)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn the_dialect_of_transformers_5() {
        let five = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16,
            "num_key_value_heads": 2, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}});
        let four = translate(&five).unwrap();
        assert_eq!(four["rope_theta"], json!(500000.0));
        assert!(four.get("rope_scaling").is_none() && four.get("rope_parameters").is_none());
        let scaled = json!({"architectures": ["LlamaForCausalLM"], "num_attention_heads": 4,
            "rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0}});
        let four = translate(&scaled).unwrap();
        assert_eq!(
            four["rope_scaling"],
            json!({"rope_type": "llama3", "factor": 8.0})
        );
        assert_eq!(four["num_key_value_heads"], json!(4));
    }

    #[test]
    fn settings_the_engine_would_ignore() {
        let with = |key: &str, value: Value| {
            let mut config = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4});
            config[key] = value;
            translate(&config)
        };
        assert!(
            with("attention_bias", json!(true))
                .unwrap_err()
                .contains("attention_bias")
        );
        assert!(
            with("head_dim", json!(32))
                .unwrap_err()
                .contains("head_dim 32")
        );
        assert!(with("head_dim", json!(16)).is_ok());
        assert!(translate(&json!({})).unwrap_err().contains("architectures"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let open = || BaseFolder::open(folder.path()).unwrap_err().to_string();
        assert!(open().contains("config.json is missing"), "{}", open());
        std::fs::write(
            folder.path().join("config.json"),
            r#"{"architectures": ["LlamaForCausalLM"]}"#,
        )
        .unwrap();
        assert!(open().contains("tokenizer.json is missing"), "{}", open());
        std::fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
        assert!(
            open().contains("tokenizer.json is not a JSON object"),
            "{}",
            open()
        );
        std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        assert!(
            open().contains("model.safetensors is missing"),
            "{}",
            open()
        );
        std::fs::write(
            folder.path().join("model.safetensors.index.json"),
            r#"{"weight_map": {"a": "model-1.safetensors"}}"#,
        )
        .unwrap();
        assert!(
            open().contains("model-1.safetensors is missing"),
            "{}",
            open()
        );
        assert!(
            BaseFolder::open(Path::new("/nowhere/at/all"))
                .unwrap_err()
                .to_string()
                .contains("/nowhere/at/all is not a folder")
        );
    }
}
