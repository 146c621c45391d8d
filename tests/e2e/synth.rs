//! Examples that a stronger model writes: from a stand-in for its API, by way of a person, into a dataset.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{folder, retune, rows, text};

const KEY: &str = "sk-of-the-test";

/// A chat completions API: new messages at each request for some, `{"is": "so"}` or words to all else.
struct Api {
    url: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    asked: Mutex<Vec<Value>>,
    next: AtomicU64,
    /// Nothing is answered any more.
    hangs: AtomicBool,
}

impl Api {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let serving = Arc::clone(&serving);
                std::thread::spawn(move || serving.answer(stream.unwrap()));
            }
        });
        Self { url, shared }
    }

    fn asked(&self) -> Vec<Value> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Shared {
    fn answer(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut length, mut has_key) = (0, false);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let line = line.trim().to_owned();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").unwrap_or((&line, ""));
            match name.to_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap(),
                "authorization" => has_key = value == format!("Bearer {KEY}"),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        self.asked.lock().unwrap().push(body.clone());
        while self.hangs.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let n = self.next.fetch_add(1, Ordering::SeqCst);
        let last = body["messages"].as_array().unwrap().last().unwrap()["content"]
            .as_str()
            .unwrap()
            .to_owned();
        let said = match last.starts_with("The assistant's instructions") {
            true => {
                let list: Vec<String> = (0..5).map(|k| message(n * 5 + k)).collect();
                json!({ "messages": list }).to_string()
            }
            // Every third breaks the format.
            false if n.is_multiple_of(3) => "I think so.".to_owned(),
            false => "{\"is\": \"so\"}".to_owned(),
        };
        let (status, answer) = match has_key {
            true => (
                200,
                json!({"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]}),
            ),
            false => (401, json!({"error": {"message": "whose key is that?"}})),
        };
        let answer = answer.to_string();
        // Whoever asked may have left.
        let _ = write!(
            stream,
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
            answer.len()
        );
    }
}

/// Words that no other number has.
fn message(n: u64) -> String {
    let word = |k: u64| -> String {
        let digits = format!("{:x}", (n + 1) * 7_919 * k);
        let letter = |c: char| (b'a' + c.to_digit(16).unwrap() as u8) as char;
        digits.chars().map(letter).collect()
    };
    let words = [word(31), word(1_009), word(60_013), word(777_777)];
    format!("{}?", words.join(" "))
}

/// Runs a command with the key in its environment and these words on stdin: its exit code, stdout and stderr.
fn with(folder: &Path, arguments: &[&str], stdin: &str) -> (Option<i32>, String, String) {
    let mut child = retune(folder)
        .args(arguments)
        .env("STRONG_KEY", KEY)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads nothing may have ended.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn last(stdout: &str) -> Value {
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
}

fn written(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_stronger_model_s_rows_pass_a_person_and_stay_known_as_synthetic() {
    let folder = folder();
    let here = folder.path();
    fs::write(here.join("prompt.txt"), "Say what it is, as JSON.\n").unwrap();
    let schema =
        json!({"type": "object", "properties": {"is": {"type": "string"}}, "required": ["is"]});
    fs::write(here.join("is.schema.json"), schema.to_string()).unwrap();
    let toml = "[[task]]\nname = \"about\"\nprompt = \"prompt.txt\"\nadapter_prompt = \"About?\"\nformat = { json_schema = \"is.schema.json\" }\n";
    fs::write(here.join("retune.toml"), toml).unwrap();
    let seeds: Vec<String> = (0..30)
        .map(|n| {
            let answer = json!({"is": format!("thing {n}")}).to_string();
            json!({"messages": [{"role": "user", "content": message(1_000_000 + n)}, {"role": "assistant", "content": answer}]}).to_string()
        })
        .collect();
    fs::write(here.join("experts.jsonl"), seeds.join("\n")).unwrap();
    let (code, _, said) = with(
        here,
        &["dataset", "import", "--task", "about", "experts.jsonl"],
        "",
    );
    assert_eq!(code, Some(0), "{said}");

    let api = Api::new();
    let synth = |count: &str, more: &[&str]| {
        let arguments = [
            "dataset",
            "synth",
            "--json",
            "--task",
            "about",
            "--url",
            &api.url,
            "--model",
            "strong",
            "--count",
            count,
            "--out",
            "new.jsonl",
            "--seed",
            "7",
        ];
        with(here, &[&arguments, more].concat(), "")
    };
    let (code, _, said) = synth("6", &["--api-key-env", "NO_SUCH_KEY"]);
    assert!(
        code == Some(1) && said.contains("NO_SUCH_KEY") && api.asked().is_empty(),
        "{said}"
    );
    let (code, _, said) = synth("6", &[]);
    assert!(
        code == Some(1) && said.contains("whose key is that?"),
        "{said}"
    );
    let key = ["--api-key-env", "STRONG_KEY"];
    let (code, out, said) = synth("6", &key);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("texts of users go to"), "{said}");
    assert!(!said.contains(KEY) && !out.contains(KEY));
    let done = last(&out);
    assert_eq!(
        (&done["rows"], &done["kept"]),
        (&json!(6), &json!(6)),
        "{done}"
    );
    assert!(
        done["refused"]["the answer breaks the task's format (not_json)"]["count"].is_number(),
        "{done}"
    );
    let file = here.join("new.jsonl");
    let found = written(&file);
    assert_eq!(found.len(), 6);
    assert_eq!(found[0]["synthetic"]["model"], "strong");
    assert_eq!(
        (&found[0]["review"], &found[0]["messages"][1]["content"]),
        (&Value::Null, &json!("{\"is\": \"so\"}"))
    );
    // What was shown are experts' examples, none of them held out; then the answer is asked for under the whole prompt.
    let held_out = with(
        here,
        &[
            "dataset", "export", "--task", "about", "--split", "held-out",
        ],
        "",
    )
    .1;
    let asked = json!(api.asked()).to_string();
    assert!(asked.contains("Say what it is, as JSON."));
    assert!(!held_out.is_empty());
    for line in held_out.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let question = line["messages"][1]["content"].as_str().unwrap();
        assert!(!asked.contains(question), "{question}");
    }
    // The same again adds nothing, and asks nothing; a higher count adds.
    let before = api.asked().len();
    assert_eq!(last(&synth("6", &key).1)["kept"], 0);
    assert_eq!(api.asked().len(), before);
    assert_eq!(last(&synth("8", &key).1)["kept"], 2);

    // Unreviewed, nothing is learned from it.
    let import = |more: &[&str]| {
        let arguments = ["dataset", "import", "--task", "about", "new.jsonl"];
        with(here, &[&arguments, more].concat(), "")
    };
    let (code, out, said) = import(&["--json"]);
    let nothing = json!({"lines": 8, "kept": 0, "known": 0, "bad": 0, "waiting": 8, "rejected": 0});
    assert_eq!((code, last(&out)), (Some(1), nothing));
    assert!(
        said.contains("retune dataset review new.jsonl --rater NAME"),
        "{said}"
    );
    let checked = last(&with(here, &["dataset", "check", "new.jsonl", "--json"], "").1);
    let reviewed = json!({"accepted": 0, "rejected": 0, "waiting": 8});
    assert_eq!(
        checked,
        json!({"conversations": 8, "preferences": 0, "bad": 0, "synthetic": reviewed})
    );

    // A word a line: what breaks the format is not taken, what was rejected comes back, and the rest is left for later.
    let review = ["dataset", "review", "new.jsonl", "--rater", "ann"];
    let words = "what\na\nr\nu\na\ne\nnonsense\ne\n{\"is\": \"other\"}\ns\nr\nq\n";
    let (code, out, said) = with(here, &review, words);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("expected one of a accept"), "{said}");
    assert!(
        said.contains("cannot be accepted: it breaks the task's format (not_json)"),
        "{said}"
    );
    assert!(out.contains("3 accepted, 1 rejected, 4 left"), "{out}");
    let found = written(&file);
    assert_eq!(
        (&found[1]["review"]["by"], &found[1]["review"]["said"]),
        (&json!("ann"), &json!("accepted"))
    );
    assert_eq!(
        (
            &found[2]["review"]["edited"],
            &found[2]["messages"][1]["content"]
        ),
        (&json!(true), &json!("{\"is\": \"other\"}"))
    );
    assert!(found[3]["review"].is_null() && found[4]["review"]["said"] == "rejected");

    let (code, out, said) = import(&["--json"]);
    let some = json!({"lines": 8, "kept": 3, "known": 0, "bad": 0, "waiting": 4, "rejected": 1});
    assert_eq!((code, last(&out)), (Some(0), some), "{said}");
    assert_eq!(last(&import(&["--json"]).1)["known"], 3, "never twice");
    let check = last(&with(here, &["dataset", "check", "--task", "about", "--json"], "").1);
    assert_eq!(
        (
            &check["counts"]["kept_synthetic"],
            &check["counts"]["kept_corrections"]
        ),
        (&json!(3), &json!(30)),
        "{check}"
    );
    let kept = rows(
        here,
        "select purpose, parameters from exchanges where purpose = 'synthetic'",
    );
    assert_eq!(kept.len(), 3);
    let parameters: Value = serde_json::from_str(kept[0]["parameters"].as_str().unwrap()).unwrap();
    assert_eq!(parameters["synthetic"]["review"]["by"], "ann");
    let export = [
        "dataset",
        "export",
        "--task",
        "about",
        "--split",
        "train",
        "--provenance",
    ];
    let exported = with(here, &export, "").1;
    assert_eq!(
        exported.matches("\"known_by\":\"synthetic\"").count(),
        3,
        "{exported}"
    );
    // Examples of a model are no model's seeds.
    let (code, _, said) = synth("9", &[&key[..], &["--from", "new.jsonl"]].concat());
    assert!(
        code == Some(1) && said.contains("a model wrote it"),
        "{said}"
    );

    // Raters may see at the console what nobody has reviewed; until then nothing learns from it.
    let (code, out, said) = import(&["--for-review", "--json"]);
    assert_eq!(code, Some(0), "{said}");
    let offered = last(&out);
    assert_eq!(
        (
            &offered["kept"],
            &offered["known"],
            &offered["waiting"],
            &offered["offered"]
        ),
        (&json!(4), &json!(3), &json!(0), &json!(4)),
        "{offered}"
    );
    let check = last(&with(here, &["dataset", "check", "--task", "about", "--json"], "").1);
    assert_eq!(check["counts"]["kept_synthetic"], 3, "{check}");

    // Told to stop, it leaves what is there.
    api.shared.hangs.store(true, Ordering::SeqCst);
    let before = api.asked().len();
    let mut child = retune(here)
        .args([
            "dataset", "synth", "--task", "about", "--url", &api.url, "--model", "strong",
        ])
        .args([
            "--count",
            "20",
            "--out",
            "new.jsonl",
            "--api-key-env",
            "STRONG_KEY",
        ])
        .env("STRONG_KEY", KEY)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let give_up = Instant::now() + Duration::from_secs(60);
    while api.asked().len() == before {
        assert!(Instant::now() < give_up, "it asks nothing");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Meanwhile the file is its own.
    let (code, _, said) = with(here, &review, "a\n");
    assert!(
        code == Some(1) && said.contains("another process"),
        "{said}"
    );
    let interrupt = format!("kill -INT {}", child.id());
    let told = std::process::Command::new("sh")
        .args(["-c", &interrupt])
        .status();
    assert!(told.unwrap().success());
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(said.contains("new.jsonl has 8 of 20 rows"), "{said}");
    assert_eq!(written(&file).len(), 8);
    api.shared.hangs.store(false, Ordering::SeqCst);
}
