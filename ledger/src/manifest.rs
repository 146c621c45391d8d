//! A manifest: how an adapter came about, and what it must answer where it is applied.
//!
//! It is the same whether a run trained the adapter or somebody brought it, so it is begun in one place.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use retune_task::{ChatMessage, ChatTemplate, Task, base_id, sha256};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::Error;

/// Who made an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A run of this installation; files of earlier versions say nothing, and are all of these.
    #[default]
    Run,
    /// Somebody brought it.
    Import,
    /// A fine-tuning job, whose suffix is its task: it has neither prompt nor format.
    Job,
}

/// A question and the greedy answer that the adapter gave where it was made: whoever serves it must get the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// The whole conversation, the task's prompt included; never what a user wrote.
    pub messages: Vec<ChatMessage>,
    /// The answer's limit.
    pub max_tokens: usize,
    /// The answer.
    pub answer: String,
    /// Whether the base without the adapter answered something else.
    pub differs: bool,
}

/// Ids of the exchanges that an adapter was made from, by what they were for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examples {
    /// It was trained on these.
    pub train: Vec<String>,
    /// Its checkpoint was chosen by these.
    pub development: Vec<String>,
    /// It was examined with these.
    pub held_out: Vec<String>,
}

impl Examples {
    /// All of them.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        let all = self
            .train
            .iter()
            .chain(&self.development)
            .chain(&self.held_out);
        all.map(String::as_str)
    }
}

/// How an adapter came about.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are said by their names")]
pub struct Manifest {
    pub format_version: u32,
    pub task: String,
    /// Given when it is published.
    pub number: u32,
    #[serde(default)]
    pub source: Source,
    pub base: String,
    pub base_digest: String,
    pub created: DateTime<Utc>,
    pub run_id: Option<String>,
    /// What it was examined against.
    pub parent: Option<String>,
    pub adapter_prompt_sha256: String,
    pub chat_template_sha256: String,
    pub examples_train: u64,
    pub examples_development: u64,
    pub examples_held_out: u64,
    pub lora: Value,
    pub loss_first: Option<f64>,
    pub loss_last: Option<f64>,
    /// SHA-256 over names and contents of PEFT's two files; given when it is published.
    pub digest: String,
    /// What it must answer where it is applied; none of an imported adapter, and of files of earlier versions.
    #[serde(default)]
    pub probes: Vec<Probe>,
}

impl Manifest {
    /// Of an adapter of `task` for the base in the folder `base`, with what only its maker knows left open. Reads all of the base's
    /// files: not for an async thread.
    pub fn begin(task: &Task, source: Source, base: &Path) -> Result<Self, Error> {
        let template = ChatTemplate::from_folder(base)?;
        Ok(Self {
            format_version: 1,
            task: task.name.clone(),
            source,
            base: base_id(base),
            base_digest: base_digest(base)?,
            created: Utc::now(),
            adapter_prompt_sha256: sha256(&task.adapter_prompt),
            chat_template_sha256: sha256(template.source()),
            ..Self::default()
        })
    }
}

/// Lower-hex SHA-256 over names and contents of all files that make the model, which ties an adapter to the weights it was trained
/// on: its configuration, tokenizer, template and weights.
fn base_digest(folder: &Path) -> Result<String, Error> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(Error::io(folder))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(Error::io(folder))?;
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
        let mut file = std::fs::File::open(&path).map_err(Error::io(&path))?;
        let length = file.metadata().map_err(Error::io(&path))?.len();
        hash.update(format!("{name}\n{length}\n"));
        loop {
            let read = file.read(&mut buffer).map_err(Error::io(&path))?;
            if read == 0 {
                break;
            }
            hash.update(buffer.get(..read).unwrap_or_default());
        }
    }
    Ok(retune_task::hex(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn manifests_of_earlier_versions_are_read() {
        let old = r#"{"format_version": 1, "task": "a", "number": 1, "base": "b", "base_digest": "", "created": "2026-01-01T00:00:00Z",
            "run_id": "r", "parent": null, "adapter_prompt_sha256": "", "chat_template_sha256": "", "examples_train": 1,
            "examples_development": 1, "examples_held_out": 1, "lora": {}, "loss_first": null, "loss_last": null, "digest": "d"}"#;
        let manifest: Manifest = serde_json::from_str(old).unwrap();
        assert_eq!((manifest.source, manifest.probes), (Source::Run, vec![]));
    }
}
