//! Bases by their Hugging Face id, from a small stand-in for the hub.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::{Server, folder, retune, run, text};
use crate::model;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const WEIGHTS: &str = "model.safetensors";
const TOKEN: &str = "hf_test";

/// Serves a folder as the model `org/tiny`, as far as downloads go: one commit, redirects, ranges and the headers of the real one.
struct Hub {
    address: String,
    shared: Arc<Shared>,
}

struct Shared {
    files: PathBuf,
    /// Weights end in the middle.
    cut: AtomicBool,
    /// Weights are not what their digest says.
    damaged: AtomicBool,
    closed: AtomicBool,
    /// Path and range of each request.
    seen: Mutex<Vec<(String, String)>>,
}

impl Hub {
    fn new(files: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            files: files.to_owned(),
            cut: AtomicBool::default(),
            damaged: AtomicBool::default(),
            closed: AtomicBool::default(),
            seen: Mutex::default(),
        });
        let (serving, own) = (Arc::clone(&shared), address.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.closed.load(Ordering::SeqCst) {
                    return;
                }
                serving.answer(stream.unwrap(), &own);
            }
        });
        Self { address, shared }
    }

    fn seen(&self) -> Vec<(String, String)> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// From now on nobody answers there.
    fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        TcpStream::connect(self.address.strip_prefix("http://").unwrap()).unwrap();
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if !self.shared.closed.load(Ordering::SeqCst) {
            self.close();
        }
    }
}

impl Shared {
    fn answer(&self, mut stream: TcpStream, own: &str) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let path = first.split(' ').nth(1).unwrap().to_owned();
        let headers: Vec<String> = lines
            .map(Result::unwrap)
            .take_while(|line| !line.is_empty())
            .collect();
        let header = |name: &str| {
            headers.iter().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then(|| value.to_owned())
            })
        };
        let range = header("range").unwrap_or_default();
        self.seen
            .lock()
            .unwrap()
            .push((path.clone(), range.clone()));
        let authorised =
            header("authorization").is_some_and(|value| value == format!("Bearer {TOKEN}"));
        let resolve = format!("/org/tiny/resolve/{COMMIT}/");
        let moved = format!("/api/resolve-cache/models/org/tiny/{COMMIT}/");
        if let Some(digest) = path.strip_prefix("/elsewhere/") {
            return self.file(&mut stream, WEIGHTS, &range, digest);
        }
        if !authorised || !path.contains("/org/tiny/") {
            return reply(&mut stream, "401 Unauthorized", &[], b"");
        }
        if path == "/api/models/org/tiny/revision/main" {
            let names = fs::read_dir(&self.files).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let siblings: Vec<Value> = names.map(|name| json!({ "rfilename": name })).collect();
            let info = json!({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).to_string();
            return reply(&mut stream, "200 OK", &[], info.as_bytes());
        }
        match path
            .strip_prefix(&resolve)
            .or_else(|| path.strip_prefix(&moved))
        {
            // Large files lie elsewhere, under their digest.
            Some(WEIGHTS) => {
                let digest = digest(&fs::read(self.files.join(WEIGHTS)).unwrap());
                let headers = [
                    format!("Location: {own}/elsewhere/{digest}"),
                    format!("X-Linked-Etag: \"{digest}\""),
                    format!("X-Repo-Commit: {COMMIT}"),
                ];
                reply(&mut stream, "302 Found", &headers, b"");
            }
            Some("tokenizer.json") if path.starts_with(&resolve) => {
                let headers = [format!("Location: {moved}tokenizer.json")];
                reply(&mut stream, "307 Temporary Redirect", &headers, b"");
            }
            Some(name) if self.files.join(name).is_file() => {
                let etag = digest(name.as_bytes());
                self.file(&mut stream, name, &range, &etag[..40]);
            }
            _ => reply(&mut stream, "404 Not Found", &[], b""),
        }
    }

    /// The part that `range`, `bytes=5-` or `bytes=5-9`, asks for.
    fn file(&self, stream: &mut TcpStream, name: &str, range: &str, etag: &str) {
        let mut content = fs::read(self.files.join(name)).unwrap();
        let whole = content.len();
        let (from, to) = range
            .strip_prefix("bytes=")
            .unwrap()
            .split_once('-')
            .unwrap();
        let from: usize = from.parse().unwrap();
        let to = to.parse().map_or(whole, |to: usize| to + 1);
        if name == WEIGHTS && self.damaged.load(Ordering::SeqCst) {
            content[whole - 1] ^= 1;
        }
        let headers = [
            format!("Content-Range: bytes {from}-{}/{whole}", to - 1),
            format!("ETag: \"{etag}\""),
            format!("X-Repo-Commit: {COMMIT}"),
        ];
        let part = &content[from..to];
        if name == WEIGHTS && part.len() > 1 && self.cut.load(Ordering::SeqCst) {
            head(stream, "206 Partial Content", &headers, part.len());
            stream.write_all(&part[..part.len() / 2]).unwrap();
        } else {
            reply(stream, "206 Partial Content", &headers, part);
        }
    }
}

fn head(stream: &mut TcpStream, status: &str, headers: &[String], length: usize) {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
}

fn reply(stream: &mut TcpStream, status: &str, headers: &[String], body: &[u8]) {
    head(stream, status, headers, body.len());
    // Whoever saw enough may have left.
    stream.write_all(body).ok();
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// `retune serve`, which has to fail, and what it says.
fn refusal(folder: &Path, env: &[(&str, &str)]) -> String {
    let output = retune(folder)
        .envs(env.iter().copied())
        .arg("serve")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    text(&output.stderr)
}

/// A greedy answer of the base.
async fn answer(server: &Server) -> String {
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 8});
    let response = server.post("/v1/chat/completions", &body).await;
    assert_eq!(response.status(), 200);
    let answer: Value = response.json().await.unwrap();
    answer["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_of_the_hub_is_downloaded_once_and_whole() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    model::write_base(&path("files"));
    fs::write(path("files").join("README.md"), "of no use here").unwrap();
    model::write_adapter(&path("lora"), 5);
    fs::write(path("prompt.txt"), "Answer with a number.\n").unwrap();
    let toml =
        "[engine]\nbase = \"org/tiny\"\n\n[[task]]\nname = \"count\"\nprompt = \"prompt.txt\"\n";
    fs::write(path("retune.toml"), toml).unwrap();
    let hub = Hub::new(&path("files"));
    let env = [
        ("HF_ENDPOINT", hub.address.as_str()),
        ("HF_TOKEN", TOKEN),
        ("HF_HUB_OFFLINE", "0"),
    ];
    let checked = retune(folder.path())
        .envs(env)
        .arg("check")
        .output()
        .unwrap();
    let said = text(&checked.stdout);
    assert!(
        said.contains("org/tiny, to be downloaded from http://127.0.0.1"),
        "{said}"
    );
    assert_eq!(hub.seen().len(), 1, "it asked whether there is one");

    // Cut off in the middle: nothing is taken for whole.
    let model = path("hf").join("hub/models--org--tiny");
    let snapshot = model.join("snapshots").join(COMMIT);
    hub.shared.cut.store(true, Ordering::SeqCst);
    let said = refusal(folder.path(), &env);
    for part in ["org/tiny", WEIGHTS, "engine.base", "HF_ENDPOINT"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    assert!(!said.contains(TOKEN));
    assert!(snapshot.join("config.json").is_file() && !snapshot.join(WEIGHTS).exists());
    assert!(!model.join("refs/main").exists());

    // The rest of it is damaged: that shows, and it is thrown away.
    hub.shared.cut.store(false, Ordering::SeqCst);
    hub.shared.damaged.store(true, Ordering::SeqCst);
    let said = refusal(folder.path(), &env);
    assert!(said.contains("SHA-256") && said.contains(WEIGHTS), "{said}");
    assert!(!snapshot.join(WEIGHTS).exists());
    let size = fs::metadata(path("files").join(WEIGHTS)).unwrap().len();
    let rest = format!("bytes={}-", size / 2);
    assert!(
        hub.seen().iter().any(|(_, range)| *range == rest),
        "it went on: {:?}",
        hub.seen()
    );

    hub.shared.damaged.store(false, Ordering::SeqCst);
    let server = Server::start_with(folder.path(), &env).await;
    let models: Value = server.get("/v1/models").await.json().await.unwrap();
    assert_eq!(models["data"][0]["id"], "tiny");
    let first = answer(&server).await;
    drop(server);
    assert_eq!(fs::read_to_string(model.join("refs/main")).unwrap(), COMMIT);
    assert!(!snapshot.join("README.md").exists());

    // From here on there is no hub, and nobody misses it.
    let asked = hub.seen().len();
    hub.close();
    for offline in ["0", "1"] {
        let env = [env[0], ("HF_HUB_OFFLINE", offline)];
        let server = Server::start_with(folder.path(), &env).await;
        assert_eq!(answer(&server).await, first);
    }
    assert_eq!(hub.seen().len(), asked);
    let imported = run(
        folder.path(),
        &["adapter", "--json", "import", "--task", "count", "lora"],
    );
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    let manifest =
        fs::read_to_string(path("store").join("adapters/count/1/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["base"], "tiny");
}

#[test]
fn what_cannot_be_downloaded_says_what_was_tried_and_what_to_do() {
    let folder = folder();
    model::write_base(&folder.path().join("files"));
    let hub = Hub::new(&folder.path().join("files"));
    let online = ("HF_HUB_OFFLINE", "0");
    let with = |base: &str, token: &str| {
        let env = [
            ("RETUNE_ENGINE__BASE", base),
            ("HF_ENDPOINT", &hub.address),
            ("HF_TOKEN", token),
            online,
        ];
        refusal(folder.path(), &env)
    };
    let said = with("org/tiny", "hf_other");
    assert!(
        said.contains("org/tiny") && said.contains("HF_TOKEN") && !said.contains("hf_other"),
        "{said}"
    );
    let said = with("org/tiny@other", TOKEN);
    assert!(
        said.contains("org/tiny@other") && said.contains("revision"),
        "{said}"
    );
    fs::remove_file(folder.path().join("files/tokenizer.json")).unwrap();
    let said = with("org/tiny", TOKEN);
    assert!(said.contains("org/tiny has no tokenizer.json"), "{said}");
    assert!(
        !folder.path().join("hf/hub/models--org--tiny/refs").exists(),
        "it began all the same"
    );

    let checked = retune(folder.path())
        .envs([
            ("RETUNE_ENGINE__BASE", "models/typo"),
            ("HF_ENDPOINT", &hub.address),
            online,
        ])
        .arg("check")
        .output()
        .unwrap();
    assert_eq!(checked.status.code(), Some(1));
    let said = text(&checked.stderr);
    assert!(
        said.contains("no model at") && said.contains("models/typo"),
        "{said}"
    );

    hub.close();
    let said = with("org/tiny", TOKEN);
    for part in [
        "org/tiny",
        &hub.address,
        "HF_ENDPOINT",
        "engine.base",
        "config.json",
    ] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    let said = refusal(folder.path(), &[("RETUNE_ENGINE__BASE", "org/tiny")]);
    assert!(
        said.contains("HF_HUB_OFFLINE") && said.contains("org/tiny"),
        "{said}"
    );
}
