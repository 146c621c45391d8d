//! What the next adapter would be made of, and whether one is needed: from the command line, over a store of its own.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{folder, run, text};

/// One line of stdout.
fn line(folder: &std::path::Path, arguments: &[&str]) -> Value {
    let output = run(folder, arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap()
}

fn example(n: usize) -> Value {
    let answer = json!({"category": "order", "urgent": false, "summary": format!("Wants thing {}.", n * 37)});
    json!({"messages": [
        {"role": "user", "content": format!("Where is thing {}?", n * 37)},
        {"role": "assistant", "content": answer.to_string()},
    ]})
}

#[test]
fn experts_examples_come_in_and_out_and_are_compared() {
    let folder = folder();
    // A task of its own: any text will do.
    fs::write(folder.path().join("prompt.txt"), "Say what it is about.\n").unwrap();
    let toml = "[[task]]\nname = \"about\"\nprompt = \"prompt.txt\"\nadapter_prompt = \"About?\"\n[task.retrain]\nmin_examples = 100\n";
    fs::write(folder.path().join("retune.toml"), toml).unwrap();
    let file = folder.path().join("examples.jsonl");
    let mut lines: Vec<String> = (0..120).map(|n| example(n).to_string()).collect();
    fs::write(&file, lines.join("\n")).unwrap();
    let file = file.to_str().unwrap();
    let checked = line(folder.path(), &["dataset", "check", file, "--json"]);
    assert_eq!(
        checked,
        json!({"conversations": 120, "preferences": 0, "bad": 0})
    );

    let task = ["--task", "about", "--json"];
    let with = |words: &[&str]| -> Value {
        let all: Vec<&str> = words.iter().chain(&task).copied().collect();
        line(folder.path(), &all)
    };
    let imported = with(&["dataset", "import", file]);
    assert_eq!(
        imported,
        json!({"lines": 120, "kept": 120, "known": 0, "bad": 0})
    );
    assert_eq!(with(&["dataset", "import", file])["known"], 120);
    let check = with(&["dataset", "check"]);
    let count = |of: &Value| of.as_u64().unwrap();
    let sizes = ["train", "development", "held_out"].map(|split| count(&check[split]));
    assert_eq!(sizes.iter().sum::<u64>(), 120, "{check}");
    assert_eq!(check["counts"]["kept_corrections"], 120);

    let out = folder.path().join("out");
    let built = with(&["dataset", "build", "--out", out.to_str().unwrap()]);
    assert_eq!(
        built["files"][0]["rows"].as_array().unwrap().len() as u64,
        sizes[0]
    );
    let train = fs::read_to_string(out.join("train.jsonl")).unwrap();
    let exported = run(
        folder.path(),
        &["dataset", "export", "--task", "about", "--split", "train"],
    );
    assert_eq!(text(&exported.stdout), train);
    assert!(train.contains("About?") && train.contains("Wants thing"));
    let again = run(
        folder.path(),
        &[
            "dataset",
            "build",
            "--task",
            "about",
            "--out",
            out.to_str().unwrap(),
        ],
    );
    assert_eq!(again.status.code(), Some(1));
    assert!(
        text(&again.stderr).contains("train.jsonl"),
        "{}",
        text(&again.stderr)
    );
    let same = with(&["dataset", "diff", "now", "now"]);
    assert_eq!(
        (&same[0]["split"], &same[0]["added"]),
        (&json!("train"), &json!([]))
    );

    // Nobody has rated an answer of the base: nothing is guessed.
    let advice = with(&["advise"]);
    assert_eq!(advice["verdict"], "collect", "{advice}");
    assert!(
        advice["reasons"][0]["figure"].is_number() && advice["reasons"][0]["wanted"].is_number()
    );

    lines.push("{\"messages\": []}".to_owned());
    fs::write(file, lines.join("\n")).unwrap();
    let bad = run(folder.path(), &["dataset", "check", file]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad.stderr).contains(":121:"), "{}", text(&bad.stderr));
    let unknown = run(folder.path(), &["advise", "--task", "nothing"]);
    assert!(
        text(&unknown.stderr).contains("about"),
        "{}",
        text(&unknown.stderr)
    );
}
