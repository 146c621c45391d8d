//! Configurations as people write them, right and wrong.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use retune_task::{Config, Promote};

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect()
}

fn load(text: &str, pairs: &[(&str, &str)]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("retune.toml");
    std::fs::write(&path, text).unwrap();
    std::fs::write(folder.path().join("p.txt"), "Do it.\n").unwrap();
    let place = format!("{}/", folder.path().display());
    Config::load(Some(&path), env(pairs)).map_err(|e| e.to_string().replace(&place, ""))
}

const TASK: &str = "[[task]]\nname = \"support\"\nprompt = \"p.txt\"\n";

#[test]
fn the_built_in_configuration_is_right() {
    // An explicit path that is none keeps a retune.toml in the current folder out of this test.
    let config = Config::load(
        None,
        env(&[
            ("RETUNE_STORE__URL", "file:/tmp/x"),
            ("RETUNE_LOG", "debug"),
        ]),
    )
    .unwrap();
    assert_eq!(config.tasks[0].name, "triage");
    assert_eq!(config.tasks[0].retrain.promote, Promote::Auto);
    assert_eq!(config.tasks[0].retrain.min_new_examples, 150);
    assert_eq!(config.store.url, "file:/tmp/x");
    assert!(config.tasks[0].format.is_some());
}

#[test]
fn three_mistakes_are_named_at_once_with_their_lines() {
    let error = load(
        "[server]\nlisten = \"0.0.0.0:80\"\n[engine]\nmax_loadet = 2\n[[task]]\nname = \"support\"\nprompt = \"none.txt\"\n",
        &[],
    )
    .unwrap_err();
    assert!(error.starts_with("3 problems"), "{error}");
    assert!(
        error.contains("retune.toml:2: server.listen: is \"0.0.0.0:80\": without configured keys"),
        "{error}"
    );
    assert!(
        error.contains(
            "retune.toml:4: engine.max_loadet: there is no such key; did you mean max_loaded?"
        ),
        "{error}"
    );
    assert!(
        error.contains("retune.toml:7: task.support.prompt: none.txt: No such file"),
        "{error}"
    );
}

#[test]
fn what_this_version_cannot_do_is_refused_rather_than_ignored() {
    let error = load(
        &format!("[engine]\nkind = \"upstream\"\n[store]\nurl = \"s3://b/p\"\n{TASK}enforce = \"retry\"\n[task.retrain]\ntrainer = \"openai\"\n"),
        &[],
    )
    .unwrap_err();
    assert!(error.starts_with("4 problems"), "{error}");
    for part in [
        "retune.toml:2: engine.kind",
        "retune.toml:4: store.url",
        "retune.toml:8: task.support.enforce",
        "retune.toml:10: task.support.retrain.trainer",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn the_environment_goes_over_the_file_and_is_named_where_it_is_wrong() {
    let config = load(
        TASK,
        &[
            ("RETUNE_TASK__SUPPORT__RETRAIN__MIN_EXAMPLES", "300"),
            ("RETUNE_ENGINE__MAX_LOADED", "2"),
            ("RETUNE_TASK__SUPPORT__ADAPTER_PROMPT", "Go."),
        ],
    )
    .unwrap();
    assert_eq!(config.tasks[0].retrain.min_examples, 300);
    assert_eq!(config.engine.max_loaded, 2);
    assert_eq!(config.tasks[0].adapter_prompt, "Go.");
    assert_eq!(config.tasks[0].prompt, "Do it.");

    let error = load(
        TASK,
        &[
            ("RETUNE_ENGINE__MAX_LOADED", "many"),
            ("RETUNE_SERVER__PORT", "1"),
            ("RETUNE_TASK__SALES__ENFORCE", "off"),
        ],
    )
    .unwrap_err();
    assert!(error.starts_with("3 problems"), "{error}");
    assert!(
        error.contains(
            "RETUNE_ENGINE__MAX_LOADED: engine.max_loaded: is \"many\"; expected a whole number"
        ),
        "{error}"
    );
    assert!(
        error.contains("RETUNE_SERVER__PORT: server.port: there is no such key"),
        "{error}"
    );
    assert!(
        error.contains(
            "RETUNE_TASK__SALES__ENFORCE: task.sales.enforce: there is no task \"sales\""
        ),
        "{error}"
    );
}

#[test]
fn formats_schedules_and_names_are_checked() {
    let error = load(
        "[[task]]\nname = \"Su pport\"\nprompt = \"p.txt\"\nformat = { regex = \"(\" }\n[task.retrain]\nschedule = \"0 25 * * *\"\non = [\"fromat\"]\n",
        &[],
    )
    .unwrap_err();
    assert!(error.starts_with("4 problems"), "{error}");
    for line in [2, 4, 6, 7] {
        assert!(
            error.contains(&format!("retune.toml:{line}:")),
            "{line} in {error}"
        );
    }
    let error = load("[server\n", &[]).unwrap_err();
    assert!(
        error.contains("retune.toml:1: the file: not TOML"),
        "{error}"
    );
    assert!(
        Config::load(Some(Path::new("/none/retune.toml")), env(&[]))
            .unwrap_err()
            .to_string()
            .contains("/none/retune.toml")
    );
}
