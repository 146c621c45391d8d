//! Tests with programs of the shell, and with a stand-in for a server that trains.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use retune_task::{OtherTrainer, TrainerServer};
use serde_json::json;

use super::*;
use crate::testing::{Reply, Request, StandIn, write_base};

fn order(base: &Path) -> Order {
    let line = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
    Order {
        run_id: "run-0123456789ab".to_owned(),
        task: "ask".to_owned(),
        base: base.to_owned(),
        end_of_turn: "<|im_end|>".to_owned(),
        max_length: 512,
        settings: LoraSettings::default(),
        train: vec![line.clone(), line.clone()],
        development: vec![line],
    }
}

fn limits() -> Limits {
    Limits {
        poll: Duration::from_millis(5),
        ..Limits::default()
    }
}

async fn run(
    trainer: &OtherTrainer,
    order: &Order,
    folder: &Path,
) -> (Vec<Progress>, Result<PathBuf, Error>) {
    let mut training = start(trainer, order, folder, &limits()).unwrap();
    let mut steps = Vec::new();
    while let Some(step) = training.next().await {
        steps.push(step);
    }
    (steps, training.finish().await)
}

fn shell(script: &str) -> OtherTrainer {
    // The folder comes last, as $0.
    OtherTrainer::Command(["sh", "-c", script].map(str::to_owned).into())
}

#[tokio::test]
async fn a_program_gets_the_dataset_tells_its_steps_and_leaves_an_adapter() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("run");
    let program = shell(
        r#"cd "$0"; test -z "$RETUNE_API_KEY" || exit 9
           echo "words"; echo '{"step": 1, "steps": 2, "epoch": 0.5, "train_loss": 2.5}'
           echo '{"step": 2, "steps": 2, "development_loss": 1.5, "train_loss": null}'
           mkdir adapter; cat train.jsonl development.jsonl config.json > adapter/all"#,
    );
    let (steps, adapter) = run(&program, &order(Path::new("base")), &folder).await;
    let adapter = adapter.unwrap();
    let told: Vec<_> = steps
        .iter()
        .map(|s| (s.step, s.steps, s.ends_epoch))
        .collect();
    assert_eq!(told, [(1, 2, false), (2, 2, true)]);
    assert_eq!(
        (steps[0].train_loss, steps[1].development_loss),
        (2.5, Some(1.5))
    );
    let all = std::fs::read_to_string(adapter.join("all")).unwrap();
    assert_eq!(all.matches("\"messages\"").count(), 3, "{all}");
    let config: Value = serde_json::from_str(&all[all.find("\n{\n").unwrap()..]).unwrap();
    assert_eq!(
        (&config["max_length"], &config["lora"]["decay"]),
        (&json!(512), &json!("cosine"))
    );
}

#[tokio::test]
async fn what_it_left_stays_unless_the_examples_are_others() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("run");
    let program = shell(r#"cd "$0"; mkdir -p adapter; echo x >> adapter/starts"#);
    let mut order = order(Path::new("base"));
    for starts in [1, 2] {
        let adapter = run(&program, &order, &folder).await.1.unwrap();
        let found = std::fs::read_to_string(adapter.join("starts")).unwrap();
        assert_eq!(found.lines().count(), starts);
    }
    order.train.pop();
    let adapter = run(&program, &order, &folder).await.1.unwrap();
    assert_eq!(
        std::fs::read_to_string(adapter.join("starts")).unwrap(),
        "x\n"
    );
}

#[tokio::test]
async fn a_program_that_fails_is_named_with_what_it_said_last() {
    let place = tempfile::tempdir().unwrap();
    let order = order(Path::new("base"));
    for (program, says) in [
        (
            shell("echo out of paper >&2; exit 3"),
            "exit status: 3; it said last:\nout of paper",
        ),
        (shell("true"), "left no"),
        (
            OtherTrainer::Command(vec!["no-such-program".to_owned()]),
            "no-such-program cannot be started",
        ),
    ] {
        let error = run(&program, &order, &place.path().join("run"))
            .await
            .1
            .unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_program_is_told_to_end_with_the_run() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("run");
    let program = shell(
        r#"cd "$0"; trap 'echo ended > ended; exit 1' TERM; echo '{"step": 1, "steps": 2}'; while :; do sleep 0.05; done"#,
    );
    let mut training = start(&program, &order(Path::new("base")), &folder, &limits()).unwrap();
    assert_eq!(training.next().await.unwrap().step, 1);
    drop(training);
    for _ in 0..500 {
        if folder.join("ended").exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it was not told to end");
}

/// What a server that trains answers: a job that is done at the third look.
fn train(
    request: &Request,
    looks: &AtomicUsize,
    deleted: &Mutex<Vec<String>>,
    gives: &[&str],
) -> Reply {
    let path = request.path.strip_prefix("/v1/").unwrap();
    let parts: Vec<&str> = path.split(['/', '?']).collect();
    match parts.as_slice() {
        ["files"] => {
            let kind = &request.headers["content-type"];
            assert!(
                kind.starts_with("multipart/form-data; boundary=retune-"),
                "{kind}"
            );
            Reply::ok(json!({"id": "file-1"}))
        }
        ["fine_tuning", "jobs"] => {
            let body = &request.body;
            assert_eq!(
                (&body["model"], &body["suffix"]),
                (&json!("pocket"), &json!("ask-0123456789ab"))
            );
            assert_eq!(
                body["method"]["supervised"]["hyperparameters"]["n_epochs"],
                3
            );
            Reply::ok(json!({"id": "ftjob-1", "status": "queued"}))
        }
        ["fine_tuning", "jobs", "ftjob-1"] => match looks.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::error(500, "for now"),
            1 => Reply::ok(json!({"status": "running"})),
            _ => Reply::ok(json!({"status": "succeeded", "result_files": gives})),
        },
        ["fine_tuning", "jobs", "ftjob-1", "events", ..] => {
            let step = |n: u64| json!({"data": {"step": n, "total_steps": 9, "train_loss": 1.0}});
            let upto = looks.load(Ordering::SeqCst) as u64;
            Reply::ok(json!({"data": (1..=upto).rev().map(step).collect::<Vec<_>>()}))
        }
        ["files", name, "content"] => Reply::ok(json!({"content of": name})),
        ["files", "file-1"] => {
            deleted.lock().unwrap().push("file-1".to_owned());
            Reply::ok(json!({"deleted": true}))
        }
        ["files", name] => Reply::ok(json!({"filename": name})),
        other => panic!("{other:?}"),
    }
}

async fn served(
    gives: &'static [&'static str],
) -> (
    Vec<Progress>,
    Result<PathBuf, Error>,
    tempfile::TempDir,
    usize,
) {
    let place = tempfile::tempdir().unwrap();
    write_base(&place.path().join("base"));
    let (looks, deleted) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Mutex::new(Vec::new())),
    );
    let gone = Arc::clone(&deleted);
    let server = StandIn::start(move |request| {
        let (looks, deleted) = (Arc::clone(&looks), Arc::clone(&gone));
        async move { train(&request, &looks, &deleted, gives) }
    })
    .await;
    let trainer = OtherTrainer::OpenAi(TrainerServer {
        url: format!("{}/v1", server.url),
        api_key_env: None,
        model: "pocket".to_owned(),
    });
    let order = order(&place.path().join("base"));
    let (steps, adapter) = run(&trainer, &order, &place.path().join("run")).await;
    let deleted = deleted.lock().unwrap().len();
    (steps, adapter, place, deleted)
}

#[tokio::test]
async fn a_server_is_given_the_dataset_and_gives_peft_s_files() {
    let (steps, adapter, _place, deleted) = served(&[
        "step_metrics.csv",
        "adapter_model.safetensors",
        "adapter_config.json",
    ])
    .await;
    let adapter = adapter.unwrap();
    for name in retune_ledger::ADAPTER_FILES {
        let content = std::fs::read_to_string(adapter.join(name)).unwrap();
        assert!(content.contains(name), "{content}");
    }
    let told: Vec<usize> = steps.iter().map(|step| step.step).collect();
    assert_eq!(told, [1, 2, 3]);
    assert_eq!(deleted, 2);
}

#[tokio::test]
async fn a_server_that_keeps_its_adapters_is_named() {
    let (_, error, ..) = served(&["step_metrics.csv"]).await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("no adapter_config.json and no adapter_model"),
        "{error}"
    );
}
