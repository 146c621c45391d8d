//! What makes a task's adapters: each way with what it needs.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use retune_task::{Config, OtherTrainer, Trainer, TrainerServer};

fn trainer(keys: &str) -> Result<Trainer, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("support.txt"), "Do it.").unwrap();
    let path = folder.path().join("retune.toml");
    let task = "[[task]]\nname = \"support\"\nprompt = \"support.txt\"";
    std::fs::write(&path, format!("{task}\n[task.retrain]\n{keys}\n")).unwrap();
    let config = Config::load(Some(&path), []).map_err(|problems| problems.to_string())?;
    Ok(config.tasks[0].retrain.trainer.clone())
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
