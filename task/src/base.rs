//! A base model's files: where they lie, of which kind its weights are, and what the API calls it.

use std::path::{Path, PathBuf};

/// The base's id: the last part of its path, without the ending of a GGUF file and without the revision of a Hugging Face id; of a
/// folder in the cache of Hugging Face's hub, `models--org--name/snapshots/<commit>`, the model's name.
pub fn base_id(base: &Path) -> String {
    let part = |path: Option<&Path>| {
        let name = path.and_then(Path::file_name).unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    let above = base.parent();
    let cached = part(above.and_then(Path::parent));
    if part(above) == "snapshots"
        && let Some(id) = cached.strip_prefix("models--")
    {
        return id.rsplit("--").next().unwrap_or(id).to_owned();
    }
    let name = part(Some(base));
    let name = name.strip_suffix(".gguf").unwrap_or(&name);
    match name.split('@').next() {
        None | Some("") => "base".to_owned(),
        Some(name) => name.to_owned(),
    }
}

/// The folder of the base's tokenizer: the base itself, or the one that its GGUF file is in.
pub fn base_folder(base: &Path) -> &Path {
    match base.parent() {
        Some(folder) if is_gguf(base) => folder,
        _ => base,
    }
}

/// The GGUF files that the base's weights are in: the base itself, or those in a folder without safetensors weights.
pub fn ggufs(base: &Path) -> Vec<PathBuf> {
    if is_gguf(base) {
        return vec![base.to_owned()];
    }
    let safetensors = ["model.safetensors", "model.safetensors.index.json"];
    if safetensors.iter().any(|name| base.join(name).is_file()) {
        return Vec::new();
    }
    let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| is_gguf(path))
        .collect();
    files.sort();
    files
}

fn is_gguf(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "gguf")
        && path.is_file()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_base_is_called_by_its_last_part() {
        for (base, id) in [
            ("models/pocket", "pocket"),
            ("/models/llama-3.2-1b/", "llama-3.2-1b"),
            ("models/tiny-q8_0.gguf", "tiny-q8_0"),
            ("org/name", "name"),
            ("org/name@main", "name"),
            (
                "/hub/models--org--some-name/snapshots/0123456789abcdef",
                "some-name",
            ),
            ("/hub/models--gpt2/snapshots/0123456789abcdef", "gpt2"),
            ("snapshots/mine", "mine"),
            (".", "base"),
        ] {
            assert_eq!(base_id(Path::new(base)), id, "{base}");
        }
    }

    #[test]
    fn safetensors_come_before_gguf() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
            path
        };
        assert!(ggufs(folder.path()).is_empty());
        let (b, a) = (file("b.gguf"), file("a.gguf"));
        assert_eq!(ggufs(folder.path()), [a.clone(), b]);
        assert_eq!(ggufs(&a), std::slice::from_ref(&a));
        assert_eq!(base_folder(&a), folder.path());
        assert_eq!(base_folder(folder.path()), folder.path());
        file("model.safetensors");
        assert!(ggufs(folder.path()).is_empty());
    }
}
