//! Files that are missing, broken or wrong: the error names the file, the place and the remedy, and the exit code is 1.

use std::fs;
use std::path::Path;

use crate::harness::{folder, retune, run, text};

/// Runs `retune up`, which must refuse to start, and gives back what it says.
fn refusal(folder: &Path) -> String {
    let output = run(folder, &["up"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    assert_eq!(text(&output.stdout), "", "it never listened");
    text(&output.stderr)
}

/// A retune.toml with one task, and `more` in front of it.
fn configure(folder: &Path, more: &str) {
    fs::write(folder.join("prompt.txt"), "Answer with one word.\n").unwrap();
    let toml = format!("{more}\n[[task]]\nname = \"word\"\nprompt = \"prompt.txt\"\n");
    fs::write(folder.join("retune.toml"), toml).unwrap();
}

#[test]
fn a_missing_model_folder() {
    let folder = folder();
    configure(folder.path(), "[engine]\nbase = \"models/none\"");
    let said = refusal(folder.path());
    for part in ["models/none", "engine.base", "config.json"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}

#[test]
fn three_mistakes_in_a_configuration_are_all_named_with_their_lines() {
    let folder = folder();
    let mistakes = "[server]\nlisten = \"nowhere\"\n\n[monitor]\nreference_exchange = 300\n\n[store]\nappend_rows = \"many\"\n";
    configure(folder.path(), mistakes);
    let output = retune(folder.path())
        .env_remove("RETUNE_SERVER__LISTEN")
        .arg("check")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    for (line, key) in [(2, "listen"), (5, "reference_exchange"), (8, "append_rows")] {
        let place = format!("retune.toml:{line}");
        let named = said
            .lines()
            .any(|said| said.contains(&place) && said.contains(key));
        assert!(named, "{place} with {key} is not in: {said}");
    }
}

#[test]
fn a_mistake_in_the_environment_is_named_by_its_variable() {
    let folder = folder();
    let output = retune(folder.path())
        .env("RETUNE_ENGINE__MAX_LOADED", "several")
        .arg("check")
        .output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("RETUNE_ENGINE__MAX_LOADED"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_truncated_safetensors_file() {
    let folder = folder();
    let base = retune_pocket::unpack(folder.path()).unwrap();
    let weights = base.join("model.safetensors");
    let size = fs::metadata(&weights).unwrap().len();
    fs::OpenOptions::new()
        .write(true)
        .open(&weights)
        .unwrap()
        .set_len(size / 2)
        .unwrap();
    let base = format!("[engine]\nbase = {:?}", base.display().to_string());
    configure(folder.path(), &base);
    let said = refusal(folder.path());
    assert!(said.contains("model.safetensors"), "{said}");
}

#[test]
fn an_address_that_is_taken() {
    let folder = folder();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = retune(folder.path())
        .env("RETUNE_SERVER__LISTEN", &address)
        .arg("up")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains(&address),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn check_is_content_with_the_built_in_configuration() {
    let folder = folder();
    let output = run(folder.path(), &["check", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let value: serde_json::Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!(
        (&value["ok"], &value["tasks"]),
        (&serde_json::json!(true), &serde_json::json!(["triage"]))
    );
}

#[test]
fn programs_read_what_is_wrong_with_a_configuration() {
    let folder = folder();
    std::fs::write(
        folder.path().join("retune.toml"),
        "[server]\nmax_messages = \"many\"\n",
    )
    .unwrap();
    let output = run(folder.path(), &["check", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let told: serde_json::Value = serde_json::from_str(text(&output.stdout).trim()).unwrap();
    assert_eq!(told["ok"], false);
    let problems = told["problems"].as_array().unwrap();
    let of_messages = problems.iter().find(|p| p["key"] == "server.max_messages");
    let place = of_messages.unwrap()["place"].as_str().unwrap();
    assert!(place.ends_with("retune.toml:2"), "{told}");
}

#[test]
fn formats_that_no_answer_can_be_held_to_are_all_named_before_a_start() {
    let folder = folder();
    let task = |name: &str, format: &str| {
        format!(
            "[[task]]\nname = \"{name}\"\nprompt = \"prompt.txt\"\nformat = {{ {format} }}\nenforce = \"constrain\"\n"
        )
    };
    let schema = r#"{"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}}"#;
    fs::write(folder.path().join("prompt.txt"), "Answer.").unwrap();
    fs::write(folder.path().join("s.json"), schema).unwrap();
    let tasks = [
        task("words", "regex = '^[a-z]+$'"),
        task("bounds", "regex = '^\\d{3}\\b$'"),
        task("cases", "json_schema = \"s.json\""),
    ];
    fs::write(folder.path().join("retune.toml"), tasks.concat()).unwrap();
    let output = run(folder.path(), &["check"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("task bounds") && said.contains("task cases"),
        "{said}"
    );
    assert!(!said.contains("task words"), "{said}");
}
