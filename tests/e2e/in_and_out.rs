//! Logs from elsewhere come in, what was kept goes out, and the store says whether it is whole.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{folder, rows, run, text};

fn import(folder: &Path, lines: &str, more: &[&str]) -> (Option<i32>, Value, String) {
    std::fs::write(folder.join("logs.jsonl"), lines).unwrap();
    let arguments = [&["ledger", "import", "--json", "logs.jsonl"], more].concat();
    let output = run(folder, &arguments);
    let said = text(&output.stderr);
    let summary = serde_json::from_str(text(&output.stdout).trim());
    (
        output.status.code(),
        summary.unwrap_or_else(|e| panic!("{e}: {said}")),
        said,
    )
}

fn chat(question: &str, answer: &str) -> Value {
    json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
}

fn exported(folder: &Path, more: &[&str]) -> Vec<Value> {
    let output = run(folder, &[&["ledger", "export"], more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn bad_lines_are_named_with_what_was_expected_and_the_good_ones_are_kept() {
    let folder = folder();
    let good = json!({
        "task": "triage", "ts": "2026-01-05T10:00:00+01:00", "adapter": "triage@4", "safety_identifier": "ann", "rating": 5, "correction": "{}",
        "metadata": {"screen": "cart"},
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Where is"}, {"type": "text", "text": "my parcel?"}]},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "find", "arguments": "{\"n\":1}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "at the door"},
            {"role": "assistant", "content": "At the door."},
        ],
    });
    let with = |key: &str, value: Value| {
        let mut line = good.clone();
        line[key] = value;
        line.to_string()
    };
    let cases = [
        ("{\"task\": ".to_owned(), "EOF"),
        ("[]".to_owned(), "expected struct"),
        (with("ratting", json!(5)), "unknown field `ratting`"),
        (with("task", json!("support")), "there are: triage"),
        (with("task", Value::Null), "--task"),
        (with("rating", json!(6)), "expected 1 to 5"),
        (with("metadata", json!({"screen": 7})), "expected a string"),
        (with("adapter", json!("other@4")), "triage@<number>"),
        (with("ts", json!("yesterday")), "2026-03-01T12:00:00Z"),
        (with("ts", json!(1_735_689_600_000_i64)), "milliseconds"),
        (with("ts", json!("2999-01-01T00:00:00Z")), "expected a time"),
        (with("messages", json!([])), "assistant"),
        (
            with("messages", json!([{"role": "user", "content": "?"}])),
            "assistant",
        ),
        (
            with("messages", json!([{"role": "assistant", "content": "!"}])),
            "expected one with the role \"user\"",
        ),
        (
            with(
                "messages",
                json!([{"role": "robot", "content": "!"}, {"role": "assistant", "content": "!"}]),
            ),
            "robot",
        ),
        (
            with(
                "messages",
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, {"role": "assistant", "content": "!"}]),
            ),
            "no text",
        ),
    ];
    let mut lines = format!("{good}\n\n");
    for (line, _) in &cases {
        lines.push_str(line);
        lines.push('\n');
    }
    // The last one without an end.
    let other = chat("Cancel it.", "not what the task's format wants");
    lines.push_str(&other.to_string());
    let (code, summary, said) = import(folder.path(), &lines, &[]);
    let all = cases.len() as u64;
    // Without --task the last line names none.
    assert_eq!(
        (code, summary),
        (
            Some(1),
            json!({"lines": all + 3, "kept": 1, "known": 0, "bad": all + 1})
        ),
        "{said}"
    );
    for (n, (line, expected)) in cases.iter().enumerate() {
        let place = format!("logs.jsonl:{}: ", n + 3);
        let told = said
            .lines()
            .find(|l| l.contains(&place))
            .unwrap_or_else(|| panic!("{place} is not in {said}"));
        assert!(told.contains(expected), "{line}: {told}");
    }
    assert!(
        !said.contains("Cancel it."),
        "what was said does not go into messages: {said}"
    );

    // Again, with the task: what is there stays as it is.
    let (code, summary, said) = import(
        folder.path(),
        &format!("{good}\n{other}"),
        &["--task", "triage"],
    );
    assert_eq!(
        (code, summary),
        (
            Some(0),
            json!({"lines": 2, "kept": 1, "known": 1, "bad": 0})
        ),
        "{said}"
    );
    let kept = rows(
        folder.path(),
        "select e.task, e.adapter, e.\"user\", e.metadata, e.answer, e.format_valid, cast(e.ts as varchar) as at, f.rating, f.correction, f.source \
         from exchanges e left join feedback f on e.request_id = f.request_id order by e.ts",
    );
    assert_eq!(kept.len(), 2);
    let first = json!({
        "task": "triage", "adapter": "triage@4", "user": "ann", "metadata": "{\"screen\":\"cart\"}", "answer": "At the door.",
        "format_valid": false,
        "at": kept[0]["at"], "rating": 5, "correction": "{}", "source": "import",
    });
    assert_eq!(kept[0], first);
    assert!(
        kept[0]["at"]
            .as_str()
            .unwrap()
            .starts_with("2026-01-05T09:00:00"),
        "{}",
        kept[0]["at"]
    );
    assert_eq!(
        (&kept[1]["format_valid"], &kept[1]["rating"]),
        (&json!(false), &Value::Null)
    );

    // Out again: the correction stands for the answer, and arguments are texts as OpenAI has them.
    let lines = exported(folder.path(), &[]);
    let mut expected = good["messages"].clone();
    expected[1]["content"] = json!("Where is\nmy parcel?");
    expected[2].as_object_mut().unwrap().shift_remove("content");
    expected[4]["content"] = json!("{}");
    assert_eq!(lines, [json!({"messages": expected}), other]);
    assert_eq!(
        exported(folder.path(), &["--rating-at-least", "4"]).len(),
        1
    );
    let other = run(folder.path(), &["ledger", "export", "--task", "other"]);
    assert_eq!(
        (other.status.code(), text(&other.stdout)),
        (Some(1), String::new())
    );
}

#[test]
fn a_store_is_verified_and_compacted_and_damage_has_its_own_exit_code() {
    let folder = folder();
    let mut lines = String::new();
    for n in 0..3 {
        lines = format!("{}\n", chat(&format!("Question {n}?"), "{}"));
        let (code, ..) = import(folder.path(), &lines, &["--task", "triage"]);
        assert_eq!(code, Some(0));
    }
    let whole = run(folder.path(), &["ledger", "verify", "--json"]);
    assert_eq!(whole.status.code(), Some(0), "{}", text(&whole.stdout));
    let summary: Value = serde_json::from_str(text(&whole.stdout).trim()).unwrap();
    assert_eq!(
        (&summary["rows"], &summary["problems"]),
        (&json!(3), &json!(0))
    );

    let compacted = run(folder.path(), &["ledger", "compact", "--json"]);
    let first: Value =
        serde_json::from_str(text(&compacted.stdout).lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["files_before"], &first["files"]),
        (&json!(3), &json!(1)),
        "{first}"
    );

    let day = std::fs::read_dir(folder.path().join("store/exchanges")).unwrap();
    let day = day
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().contains("day="));
    let files = std::fs::read_dir(day.unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let newest = files
        .max_by_key(|path| path.metadata().unwrap().modified().unwrap())
        .unwrap();
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() - 9]).unwrap();
    let damaged = run(folder.path(), &["ledger", "verify"]);
    assert_eq!(damaged.status.code(), Some(1));
    let said = text(&damaged.stdout);
    let name = newest.file_name().unwrap().to_string_lossy().into_owned();
    assert!(said.contains(&name) && said.contains("1 damaged"), "{said}");
    // Questions go on without it, and say so.
    let asked = run(
        folder.path(),
        &[
            "ledger",
            "sql",
            "--json",
            "select count(answer) as n from exchanges",
        ],
    );
    assert_eq!(
        text(&asked.stdout).trim(),
        r#"{"n":0}"#,
        "{}",
        text(&asked.stderr)
    );
    assert!(
        text(&asked.stderr).contains(&name),
        "{}",
        text(&asked.stderr)
    );
    assert!(!lines.is_empty());
}
