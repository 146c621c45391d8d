//! Whether another prompt or another base would do: measured on the pocket model, as a person meets it.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use retune_demo::Texts;
use serde_json::{Value, json};

use crate::harness::{ROOT, folder, retune, rows, text};

/// A hundred and sixty of the demo's messages, each with the right answer as its correction, and a folder of prompts.
fn logged(folder: &Path) {
    let mut texts = Texts::new(3);
    let lines: Vec<String> = (0..160)
        .map(|_| {
            let message = texts.normal();
            json!({
                "task": "triage", "adapter": "triage@base", "correction": message.answer,
                "messages": [{"role": "user", "content": message.text}, {"role": "assistant", "content": "?"}],
            })
            .to_string()
        })
        .collect();
    fs::write(folder.join("logs.jsonl"), lines.join("\n")).unwrap();
    let imported = advise(folder, &[], &["ledger", "import", "logs.jsonl"]);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    fs::create_dir(folder.join("prompts")).unwrap();
    fs::create_dir(folder.join("tmp")).unwrap();
    let prompt = |name: &str, text: &str| fs::write(folder.join("prompts").join(name), text);
    prompt("hello.txt", "Say hello.\n").unwrap();
    let own = fs::read_to_string(format!("{ROOT}/task/builtin/triage.txt")).unwrap();
    prompt("same.txt", &format!("{own}\n")).unwrap();
}

fn advise(folder: &Path, env: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = retune(folder);
    command.env("TMPDIR", folder.join("tmp"));
    command.envs(env.iter().copied());
    command.args(arguments).output().unwrap()
}

fn measured(folder: &Path, env: &[(&str, &str)], more: &[&str]) -> Value {
    let arguments = ["advise", "--task", "triage", "--json", "--rows", "24"];
    let output = advise(folder, env, &[&arguments, more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_str(text(&output.stdout).trim()).unwrap()
}

#[test]
fn prompts_and_bases_are_tried_before_a_training_is_advised() {
    let folder = folder();
    let folder = folder.path();
    logged(folder);
    let before = rows(folder, "select count(*) as n from exchanges");

    let advice = measured(folder, &[], &["--prompts", "prompts"]);
    let candidates = advice["candidates"].as_array().unwrap();
    assert_eq!(
        candidates.len(),
        2,
        "one has the present prompt's text: {advice}"
    );
    let [current, hello] = [&candidates[0], &candidates[1]];
    let name = |one: &Value| one["prompt"].as_str().unwrap().to_owned();
    assert_eq!(
        (name(current), name(hello)),
        ("current".into(), "hello".into())
    );
    let weights = fs::metadata(format!("{ROOT}/models/pocket/model.safetensors")).unwrap();
    for one in candidates {
        assert_eq!(
            (&one["base"], &one["rows"]),
            (&json!("models/pocket"), &json!(24))
        );
        assert_eq!(one["weight_bytes"], weights.len());
        assert!(one["seconds"].as_f64().unwrap() > 0.0);
        assert!(one["completion_tokens"].as_f64().unwrap() > 1.0);
        assert_eq!(one["will_do"], false);
    }
    let share = |one: &Value, of: &str| one[of]["share"].as_f64().unwrap();
    // By the pocket model's card, 78 % are valid and 61 % right; and a greeting is neither.
    assert!(
        (0.5..1.0).contains(&share(current, "format_valid")),
        "{current}"
    );
    assert!((0.25..0.9).contains(&share(current, "right")), "{current}");
    assert!(current["closeness"].as_f64().unwrap() > share(current, "right"));
    assert_eq!(
        (share(hello, "format_valid"), share(hello, "right")),
        (0.0, 0.0)
    );
    let tokens = |one: &Value| one["prompt_tokens"].as_f64().unwrap();
    assert!(tokens(current) > tokens(hello) + 80.0, "{advice}");
    let baseline = &advice["baseline"];
    assert_eq!(
        (name(baseline), &baseline["will_do"]),
        ("current".into(), &json!(false))
    );
    assert!(
        baseline["why"].as_str().unwrap().contains("has to beat"),
        "{baseline}"
    );
    assert_ne!(advice["verdict"], "prompt", "{advice}");

    // Held to their format, as the task then has it, and on another base's folder.
    let copy = folder.join("models/copy");
    fs::create_dir_all(&copy).unwrap();
    for file in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        fs::copy(format!("{ROOT}/models/pocket/{file}"), copy.join(file)).unwrap();
    }
    let constrain = [("RETUNE_TASK__TRIAGE__ENFORCE", "constrain")];
    let advice = measured(
        folder,
        &constrain,
        &["--bases", "models/copy", "--good-enough", "0.2"],
    );
    let one = &advice["candidates"][0];
    assert_eq!(advice["candidates"].as_array().map(Vec::len), Some(1));
    assert_eq!(share(one, "format_valid"), 1.0, "{one}");
    assert_eq!(
        (&one["base"], &one["will_do"]),
        (&json!("models/copy"), &json!(true))
    );
    assert_eq!(
        (&advice["verdict"], &advice["baseline"]["base"]),
        (&json!("prompt"), &json!("models/copy"))
    );
    assert_eq!(advice["reasons"][0]["wanted"], 0.2);

    let shown = [
        "advise",
        "--task",
        "triage",
        "--prompts",
        "prompts",
        "--rows",
        "2",
    ];
    let shown = advise(folder, &[], &shown);
    let (out, problems) = (text(&shown.stdout), text(&shown.stderr));
    assert!(
        out.contains("Measured on 2 rows") && out.contains("5.26 MiB"),
        "{out}"
    );
    assert!(problems.contains("2 rows are too few"), "{problems}");

    let after = rows(folder, "select count(*) as n from exchanges");
    assert_eq!(before, after, "nothing of it is the task's traffic");
    assert_eq!(fs::read_dir(folder.join("tmp")).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_measured_is_said_and_a_stopped_measurement_leaves_nothing() {
    let folder = folder();
    let folder = folder.path();
    logged(folder);
    for (arguments, expected) in [
        (&["--bases", "models/none"][..], "models/none"),
        (&["--bases", "org/name"], "would have to be downloaded"),
        (&["--prompts", "tmp"], "no file *.txt"),
        (
            &["--prompts", "prompts", "--good-enough", "1"],
            "--good-enough 1",
        ),
        (&["--rows", "5"], "--prompts"),
    ] {
        let output = advise(
            folder,
            &[],
            &[&["advise", "--task", "triage"], arguments].concat(),
        );
        assert!(!output.status.success(), "{arguments:?}");
        let said = text(&output.stderr);
        assert!(said.contains(expected), "{expected:?} is not in {said}");
    }
    let help = text(&advise(folder, &[], &["advise", "--help"]).stdout);
    for taught in [
        "retrieve",
        "held-out",
        "kind = \"upstream\"",
        ".baseline.text",
    ] {
        assert!(help.contains(taught), "{taught:?} is not in {help}");
    }
    // A base that no server starts on is told with the server's own words, and keeps nobody else from being measured.
    fs::create_dir_all(folder.join("models/empty")).unwrap();
    let advice = measured(folder, &[], &["--bases", "models/empty,models/pocket"]);
    let unmeasured = &advice["unmeasured"][0];
    assert_eq!(unmeasured["base"], "models/empty");
    assert!(
        unmeasured["why"].as_str().unwrap().contains("config.json"),
        "{unmeasured}"
    );
    assert_eq!(advice["baseline"]["base"], "models/pocket");

    let mut command = retune(folder);
    command.env("TMPDIR", folder.join("tmp"));
    command.args(["advise", "--task", "triage", "--prompts", "prompts"]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let give_up = Instant::now() + Duration::from_secs(60);
    let begun = || fs::read_dir(folder.join("tmp")).unwrap().count() > 0;
    while !begun() {
        assert!(Instant::now() < give_up, "no server was started");
        std::thread::sleep(Duration::from_millis(20));
    }
    let told = std::process::Command::new("kill")
        .arg(child.id().to_string())
        .status()
        .unwrap();
    assert!(told.success());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        text(&ended.stderr).contains("stopped"),
        "{}",
        text(&ended.stderr)
    );
    assert!(!begun(), "its server and store are gone");
}
