//! `[task.retrain]`: what makes a task's adapters, when, and at what price.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use retune_task::{
    Config, JudgeModel, JudgedBy, OtherTrainer, RegressionSuite, RetrainPolicy, Trainer,
    TrainerServer,
};

fn config(before: &str, keys: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("support.txt"), "Do it.").unwrap();
    let path = folder.path().join("retune.toml");
    let task = "[[task]]\nname = \"support\"\nprompt = \"support.txt\"";
    std::fs::write(&path, format!("{before}\n{task}\n[task.retrain]\n{keys}\n")).unwrap();
    Config::load(Some(&path), []).map_err(|problems| problems.to_string())
}

fn policy(keys: &str) -> Result<RetrainPolicy, String> {
    Ok(config("", keys)?.tasks[0].retrain.clone())
}

fn trainer(keys: &str) -> Result<Trainer, String> {
    Ok(policy(keys)?.trainer)
}

#[test]
fn a_trainer_has_what_it_needs_and_nothing_of_another() {
    assert_eq!(trainer(""), Ok(Trainer::Native));
    assert_eq!(
        trainer("trainer = \"command\"\ncommand = [\"python3\", \"train.py\"]"),
        Ok(Trainer::Other(OtherTrainer::Command(vec![
            "python3".into(),
            "train.py".into()
        ])))
    );
    let server = "trainer_url = \"http://gpu:8080/v1/\"\ntrainer_model = \"pocket\"";
    assert_eq!(
        trainer(&format!(
            "trainer = \"openai\"\n{server}\ntrainer_api_key_env = \"KEY\""
        )),
        Ok(Trainer::Other(OtherTrainer::OpenAi(TrainerServer {
            url: "http://gpu:8080/v1".into(),
            model: "pocket".into(),
            api_key_env: Some("KEY".into()),
        })))
    );
    for (keys, part) in [
        ("trainer = \"command\"", "retrain.command: is missing"),
        (
            "trainer = \"command\"\ncommand = []",
            "retrain.command: is []",
        ),
        (
            "trainer = \"command\"\ncommand = [1]",
            "retrain.command: is",
        ),
        ("command = [\"x\"]", "belongs to trainer = \"command\""),
        (
            "trainer = \"command\"\ncommand = [\"x\"]\ndpo = { epochs = 1 }",
            "dpo: belongs to trainer = \"native\"",
        ),
        (server, "belongs to trainer = \"openai\""),
        (
            "trainer = \"trl\"",
            "expected \"native\" or \"command\" or \"openai\"",
        ),
    ] {
        let error = trainer(keys).unwrap_err();
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn a_judge_has_what_it_needs_and_nothing_of_another() {
    let judge = |keys: &str| Ok::<_, String>(policy(&format!("judge = {{ {keys} }}"))?.judge);
    assert_eq!(judge("").unwrap().by, JudgedBy::KnownAnswer);
    let people = judge("by = \"people\", days = 3, criteria = \" it is kind \"").unwrap();
    assert_eq!(people.by, JudgedBy::People);
    assert_eq!(people.longest.as_secs(), 3 * 86_400);
    assert_eq!(people.criteria.as_deref(), Some("it is kind"));
    let model = "by = \"model\", url = \"https://api.example.com/v1/\", model = \"strong\"";
    assert_eq!(
        judge(&format!("{model}, api_key_env = \"KEY\""))
            .unwrap()
            .by,
        JudgedBy::Model(JudgeModel {
            url: "https://api.example.com/v1".to_owned(),
            model: "strong".to_owned(),
            api_key_env: Some("KEY".to_owned()),
        })
    );
    for (keys, part) in [
        ("by = \"model\"", "judge.url: is missing"),
        (
            "by = \"model\", url = \"https://x/v1\"",
            "judge.model: is missing",
        ),
        (
            "by = \"model\", url = \"x\", model = \"m\"",
            "judge.url: is",
        ),
        ("url = \"https://x/v1\"", "belongs to by = \"model\""),
        ("days = 3", "belongs to by = \"model\" and by = \"people\""),
        ("by = \"people\", days = 0", "judge.days: is 0"),
        (
            "by = \"jury\"",
            "expected \"known-answer\" or \"model\" or \"people\"",
        ),
    ] {
        let error = judge(keys).unwrap_err();
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn when_a_run_may_begin_and_what_it_may_cost() {
    let policy = |keys: &str| policy(keys).unwrap();
    let plain = policy("");
    assert_eq!((plain.min_pairs, plain.max_pairs), (150, 400));
    assert_eq!((plain.hours, plain.budget), (None, None));
    assert_eq!((plain.canary.share, plain.canary.always), (0.1, false));
    assert_eq!(policy("min_pairs = 900").max_pairs, 900);
    let inside = |hours: &str| -> Vec<u32> {
        let hours = policy(&format!("hours = {hours}")).hours.unwrap();
        (0..24).filter(|hour| hours.contains(*hour)).collect()
    };
    assert_eq!(inside("[22, 2]"), [0, 1, 22, 23]);
    assert_eq!(inside("[9, 12]"), [9, 10, 11]);
    let priced = config("[cost]\nprompt_million = 0.5\nedit = 2", "")
        .unwrap()
        .cost;
    assert_eq!(
        (
            priced.prompt_million,
            priced.training_hour,
            priced.edit,
            priced.currency.as_str()
        ),
        (0.5, 0.0, 2.0, "USD")
    );
}

#[test]
fn a_suite_of_one_s_own_is_read_with_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("support.txt"), "Do it.").unwrap();
    let path = folder.path().join("retune.toml");
    let load = |keys: &str| {
        let task = "[[task]]\nname = \"support\"\nprompt = \"support.txt\"\n[task.retrain]";
        std::fs::write(&path, format!("{task}\n{keys}\n")).unwrap();
        Config::load(Some(&path), []).map_err(|problems| problems.to_string())
    };
    let suite = |keys: &str| load(keys).map(|c| c.tasks[0].retrain.regression.clone());
    assert!(matches!(suite(""), Ok(RegressionSuite::Default)));
    assert!(matches!(
        suite("regression = \"off\""),
        Ok(RegressionSuite::Off)
    ));
    assert!(matches!(
        suite("regression = \"default\""),
        Ok(RegressionSuite::Default)
    ));
    let line = "{\"prompt\": \"2 + 2?\", \"check\": {\"contains\": [\"4\"]}}";
    let write = |text: &str| std::fs::write(folder.path().join("suite.jsonl"), text).unwrap();
    write(&format!("\u{feff}{line}\n"));
    let own = suite("regression = \"suite.jsonl\"");
    assert!(matches!(own, Ok(RegressionSuite::Own(suite)) if suite.prompts.len() == 1));

    write(&format!("{line}\n{{\n{line}\n{{\"prompt\": \"x\"}}\n"));
    let error = suite("regression = \"suite.jsonl\"").unwrap_err();
    let (second, fourth) = ("suite.jsonl:2: is no JSON", "suite.jsonl:4: has no check");
    assert!(error.starts_with("2 problems"), "{error}");
    assert!(
        error.contains("retune.toml:5: task.support.retrain.regression: "),
        "{error}"
    );
    assert!(error.contains(second) && error.contains(fourth), "{error}");
    write(&"{\n".repeat(100));
    let error = suite("regression = \"suite.jsonl\"").unwrap_err();
    assert!(error.contains("80 more lines"), "{error}");
    for (keys, part) in [
        ("regression = \"none.jsonl\"", "none.jsonl: "),
        ("regression = 1", "expected \"default\", \"off\""),
        ("slices = \"team\"", "expected a list of up to 8"),
        ("slices = [\"team\", \"team\"]", "different keys"),
        ("slices = [\" \"]", "different keys"),
    ] {
        let error = load(keys).unwrap_err();
        assert!(error.contains(part), "{part} in {error}");
    }
    let slices = load("slices = [\"team\", \"language\"]").unwrap();
    assert_eq!(slices.tasks[0].retrain.slices, ["team", "language"]);
}
