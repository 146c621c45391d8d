//! Bases by their Hugging Face id: found in the hub's cache on this machine, else downloaded into it.
//!
//! What the cache holds whole is used as it is and nobody is asked: a restart never changes the model, and needs no network. The cache
//! is Hugging Face's own, in its own layout, so that what other programs downloaded is found, and the other way round. A download is
//! of one commit; the revision's name points to it once all of its files are there.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::api::{Progress, RepoInfo};
use hf_hub::{Cache, Repo, RepoType};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

const HUB: &str = "https://huggingface.co";
const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";
/// What every base has beside its weights.
const TOKENIZER: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];
const CONFIG: &str = "config.json";
/// What many have.
const OPTIONAL: [&str; 2] = ["generation_config.json", "chat_template.jinja"];
/// What the base is when nothing says which revision.
const MAIN: &str = "main";

/// A model on the hub, `org/name` or `org/name@revision`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Model {
    id: String,
    /// A branch, a tag or a commit.
    revision: String,
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.revision == MAIN {
            f.write_str(&self.id)
        } else {
            write!(f, "{}@{}", self.id, self.revision)
        }
    }
}

impl Model {
    /// None where the text is no id.
    pub(crate) fn named(text: &str) -> Option<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (organisation, name) = id.split_once('/')?;
        let letters = |part: &str, more: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && !part.contains("..")
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        let is_id =
            letters(organisation, "-_.") && letters(name, "-_.") && letters(revision, "-_./");
        is_id.then(|| Self {
            id: id.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// The hub that is asked.
    pub(crate) fn endpoint(&self) -> String {
        let set = set("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned());
        set.trim_end_matches('/').to_owned()
    }

    /// Its folder in the cache, if all that is needed of it is there.
    pub(crate) fn cached(&self) -> Option<PathBuf> {
        let (commit, folder) = self.snapshot()?;
        let known =
            |name: &&str| folder.join(name).exists() || self.known_missing(&commit, name).exists();
        // Whether the hub has more of it cannot be found out without a network.
        let all_known = OPTIONAL.iter().all(known) || offline();
        (all_known && is_whole(&folder)).then_some(folder)
    }

    /// Downloads what the cache does not hold.
    pub(crate) fn download(&self) -> Result<PathBuf> {
        self.online()?;
        let api = self.api()?;
        let RepoInfo { sha, siblings } = match self.info(&api) {
            Ok(info) => info,
            Err(e) => return self.as_it_is(e),
        };
        let there: Vec<String> = siblings.into_iter().map(|file| file.rfilename).collect();
        tracing::info!(model = %self, commit = sha, from = self.endpoint(), "downloading the base");
        let folder = self.folder().join("snapshots").join(&sha);
        self.fetch(&api, &sha, &folder, &there)?;
        cache()
            .repo(self.repo(&self.revision))
            .create_ref(&sha)
            .with_context(|| format!("cannot write to {}", self.folder().display()))?;
        Ok(folder)
    }

    /// Asks the hub whether it has the model; downloads nothing.
    pub(crate) fn look_up(&self) -> Result<()> {
        self.online()?;
        self.info(&self.api()?).map(drop)
    }

    fn api(&self) -> Result<Api> {
        ApiBuilder::from_cache(cache())
            .with_endpoint(self.endpoint())
            .with_token(token())
            .build()
            .with_context(|| format!("cannot ask {}", self.endpoint()))
    }

    fn info(&self, api: &Api) -> Result<RepoInfo> {
        let info = api.repo(self.repo(&self.revision)).info();
        info.map_err(|e| self.explained(e))
    }

    fn online(&self) -> Result<()> {
        ensure!(
            !offline(),
            "{self} is not whole in the cache {}, and HF_HUB_OFFLINE forbids to download it: download it where there is a network \
             (`hf download {}`), or name a folder in engine.base",
            cache().path().display(),
            self.id
        );
        Ok(())
    }

    /// The hub cannot be reached: what is in the cache may still do.
    fn as_it_is(&self, error: Error) -> Result<PathBuf> {
        if let Some((_, folder)) = self.snapshot()
            && is_whole(&folder)
        {
            tracing::warn!(
                error = format!("{error:#}"),
                "the base is taken from the cache as it is"
            );
            return Ok(folder);
        }
        Err(error)
    }

    /// Downloads what is needed of the files that are `there`, and marks what is not, as Hugging Face's own library does.
    fn fetch(&self, api: &Api, commit: &str, folder: &Path, there: &[String]) -> Result<()> {
        let has = |name: &str| there.iter().any(|file| file == name);
        let ggufs: Vec<&str> = there
            .iter()
            .map(String::as_str)
            .filter(|name| name.ends_with(".gguf") && !name.contains('/'))
            .collect();
        let mut names = TOKENIZER.to_vec();
        let weights = match ggufs.as_slice() {
            _ if has(INDEX) => INDEX,
            _ if has(WEIGHTS) => WEIGHTS,
            [one] => one,
            [] => bail!(
                "{self} has neither {WEIGHTS} nor {INDEX} nor a GGUF file, and no other weights are read"
            ),
            several => bail!(
                "{self} has several GGUF files: {}; download one of them into a folder, with {} beside it, and name it in engine.base",
                several.join(", "),
                TOKENIZER.join(" and ")
            ),
        };
        if !weights.ends_with(".gguf") {
            names.insert(0, CONFIG);
        }
        if let Some(missing) = names.iter().find(|name| !has(name)) {
            bail!(
                "{self} has no {missing}, which a base needs; name another model, or a folder to which you add it, in engine.base"
            );
        }
        for name in OPTIONAL {
            if has(name) {
                names.push(name);
            } else {
                let mark = self.known_missing(commit, name);
                let marked = mark.parent().map_or(Ok(()), fs::create_dir_all);
                marked
                    .and_then(|()| File::create(&mark).map(drop))
                    .with_context(|| format!("cannot write {}", mark.display()))?;
            }
        }
        // The weights last: what is wrong with the rest shows before.
        names.push(weights);
        for name in names {
            self.fetch_file(api, commit, folder, name)?;
        }
        if weights == INDEX {
            for shard in shards(folder)? {
                ensure!(
                    has(&shard),
                    "{self} has no {shard}, which its {INDEX} names"
                );
                self.fetch_file(api, commit, folder, &shard)?;
            }
        }
        Ok(())
    }

    fn fetch_file(&self, api: &Api, commit: &str, folder: &Path, name: &str) -> Result<()> {
        if folder.join(name).exists() {
            return Ok(());
        }
        let bar = Bar(ProgressBar::no_length());
        let path = api
            .repo(self.repo(commit))
            .download_with_progress(name, bar)
            .map_err(|e| self.explained(e))
            .with_context(|| format!("{name} of {self} did not come whole"))?;
        undamaged(&path).with_context(|| format!("{name} of {self} was thrown away; start again"))
    }

    /// What the hub, or the way to it, said, and what can be done.
    fn explained(&self, error: ApiError) -> Error {
        let said = error.to_string();
        let status = match error {
            ApiError::RequestError(e) => (*e).into_response().map(|response| response.status()),
            _ => None,
        };
        let remedy = match status {
            Some(401 | 403) => {
                "there is no such model, or it is for those alone who have been granted it: set HF_TOKEN to a token of theirs"
            }
            Some(404) => "there is no such model, revision or file: look at its name",
            _ => {
                "name a folder in engine.base, or another hub in HF_ENDPOINT; what was downloaded stays in the cache, and the next start goes on \
                 from there"
            }
        };
        anyhow!(
            "{self} cannot be had from {}: {said}; {remedy}",
            self.endpoint()
        )
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, revision.to_owned())
    }

    /// All that the cache has of it.
    fn folder(&self) -> PathBuf {
        cache().path().join(self.repo(&self.revision).folder_name())
    }

    /// The commit that the revision's name points to, and the folder of its files.
    fn snapshot(&self) -> Option<(String, PathBuf)> {
        let named = self.folder().join("refs").join(&self.revision);
        let commit = match fs::read_to_string(named) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => self.revision.clone(),
        };
        let folder = self.folder().join("snapshots").join(&commit);
        folder.is_dir().then_some((commit, folder))
    }

    /// The mark that says that this commit has no such file.
    fn known_missing(&self, commit: &str, name: &str) -> PathBuf {
        self.folder().join(".no_exist").join(commit).join(name)
    }
}

/// Whether a base can be read from the folder.
fn is_whole(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    let weights = match retune_task::ggufs(folder).len() {
        0 if has(INDEX) => shards(folder).is_ok_and(|shards| shards.iter().all(|shard| has(shard))),
        0 => has(WEIGHTS),
        files => return files == 1 && TOKENIZER.iter().all(|name| has(name)),
    };
    weights && has(CONFIG) && TOKENIZER.iter().all(|name| has(name))
}

/// Bytes of a base's weights; none where they are not at `base`, a folder or a GGUF file.
pub(crate) fn weight_bytes(base: &Path) -> Option<u64> {
    let ggufs = retune_task::ggufs(base);
    let files = match ggufs.is_empty() {
        false => ggufs,
        true if base.join(INDEX).is_file() => {
            let shards = shards(base).ok()?;
            shards.iter().map(|shard| base.join(shard)).collect()
        }
        true => vec![base.join(WEIGHTS)],
    };
    let sizes = files
        .iter()
        .map(|file| Some(fs::metadata(file).ok()?.len()));
    sizes.sum()
}

/// The weight files that the index names.
fn shards(folder: &Path) -> Result<Vec<String>> {
    let path = folder.join(INDEX);
    let read = || -> Result<Vec<String>> {
        let index: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        let map = index["weight_map"]
            .as_object()
            .context("it has no weight_map")?;
        let mut files: Vec<String> = map
            .values()
            .filter_map(|f| f.as_str().map(str::to_owned))
            .collect();
        files.sort();
        files.dedup();
        ensure!(
            files.iter().all(|f| !f.contains('/')),
            "it names files in other folders"
        );
        Ok(files)
    };
    read().with_context(|| path.display().to_string())
}

/// Large files are named by their SHA-256 in the cache. One whose content is another is removed.
fn undamaged(path: &Path) -> Result<()> {
    let Ok(blob) = fs::canonicalize(path) else {
        return Ok(());
    };
    let name = blob
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    if name.len() != 64 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut hash = Sha256::new();
    io::copy(&mut File::open(&blob)?, &mut hash)?;
    let digest: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if digest == name {
        return Ok(());
    }
    fs::remove_file(&blob)?;
    // It points to what is gone.
    fs::remove_file(path).ok();
    bail!("its SHA-256 is {digest}, and the hub said {name}")
}

/// `$HF_HUB_CACHE`, `$HF_HOME/hub`, or `~/.cache/huggingface/hub`.
fn cache() -> Cache {
    set("HF_HUB_CACHE").map_or_else(Cache::from_env, |path| Cache::new(path.into()))
}

fn token() -> Option<String> {
    set("HF_TOKEN").or_else(|| Cache::from_env().token())
}

fn offline() -> bool {
    set("HF_HUB_OFFLINE")
        .is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
}

fn set(variable: &str) -> Option<String> {
    let value = std::env::var(variable).ok()?;
    let value = value.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

/// How far a file has come; seen on a terminal alone.
struct Bar(ProgressBar);

impl Progress for Bar {
    fn init(&mut self, size: usize, filename: &str) {
        let style =
            ProgressStyle::with_template("{msg} {bar:30} {bytes} of {total_bytes}, {eta} left");
        if let Ok(style) = style {
            self.0.set_style(style);
        }
        self.0.set_position(0);
        self.0.set_length(size as u64);
        self.0.set_message(filename.to_owned());
    }

    fn update(&mut self, size: usize) {
        self.0.inc(size as u64);
    }

    fn finish(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn ids_and_what_looks_like_them() {
        let model = Model::named("meta-llama/Llama-3.2-1B-Instruct").unwrap();
        assert_eq!(
            (model.id.as_str(), model.revision.as_str()),
            ("meta-llama/Llama-3.2-1B-Instruct", MAIN)
        );
        let model = Model::named("org/name@refs/pr/1").unwrap();
        assert_eq!(
            (model.id.as_str(), model.revision.as_str()),
            ("org/name", "refs/pr/1")
        );
        assert_eq!(model.to_string(), "org/name@refs/pr/1");
        for text in [
            "pocket",
            "./models/mine",
            "/models/mine",
            "../mine/model",
            "a/b/c",
            "org/",
            "org/na me",
            "org/name@",
            "org/name@../x",
            "org/name.gguf/",
        ] {
            assert_eq!(Model::named(text), None, "{text}");
        }
    }

    #[test]
    fn weights_are_counted_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(weight_bytes(folder.path()), None);
        write("q.gguf", "12345");
        assert_eq!(weight_bytes(folder.path()), Some(5));
        write(WEIGHTS, "123");
        // Some publish the same weights once more for another program.
        write("consolidated.safetensors", "1234567");
        assert_eq!(weight_bytes(folder.path()), Some(3));
        write(INDEX, r#"{"weight_map": {"a": "1", "b": "2", "c": "1"}}"#);
        assert_eq!(weight_bytes(folder.path()), None);
        write("1", "12");
        write("2", "1234");
        assert_eq!(weight_bytes(folder.path()), Some(6));
    }

    #[test]
    fn a_file_with_another_content_than_its_name_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let right = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let path = folder.path().join(right);
        fs::write(&path, "hello").unwrap();
        undamaged(&path).unwrap();
        fs::write(&path, "hellohello").unwrap();
        assert!(undamaged(&path).unwrap_err().to_string().contains(right));
        assert!(!path.exists());
    }
}
