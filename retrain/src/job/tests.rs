//! Tests of jobs with the real trainer on a tiny random base and the real ledger.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use retune_ledger::{Job, JobMethod, JobState, Ledger, Upload};

use super::*;
use crate::Limits;
use crate::testing::{config, write_base};

/// A job for the task `task`, with four epochs of three steps.
pub(crate) fn asked(task: &str) -> Job {
    Job {
        id: Job::new_id(),
        created: Utc::now(),
        by: None,
        model: "base".to_owned(),
        from: None,
        method: JobMethod::Supervised,
        task: task.to_owned(),
        suffix: None,
        training_file: String::new(),
        validation_file: None,
        seed: 7,
        n_epochs: Some(4),
        batch_size: Some(8),
        learning_rate_multiplier: None,
        beta: None,
        metadata: None,
    }
}

struct House {
    folder: tempfile::TempDir,
    options: Options,
}

impl House {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_base(&folder.path().join("base"));
        let config = Arc::new(config(folder.path(), ""));
        let ledger = Ledger::open(&config.store).await.unwrap();
        let base = folder.path().join("base");
        let nowhere = "http://127.0.0.1:1".to_owned();
        let mut options = Options::new(config, base, ledger, nowhere, reqwest::Client::new());
        options.limits = Limits {
            checkpoint: Duration::ZERO,
            ..Limits::default()
        };
        Self { folder, options }
    }

    fn ledger(&self) -> &Ledger {
        &self.options.ledger
    }

    async fn upload(&self, lines: &str) -> String {
        let path = self.folder.path().join("upload");
        std::fs::write(&path, lines).unwrap();
        let upload = Upload::new("a.jsonl", "fine-tune", lines.len() as u64, None);
        self.ledger().put_upload(&upload, path).await.unwrap();
        upload.id
    }

    /// A job on 24 lines, validated on four.
    async fn job(&self, task: &str) -> Job {
        let job = Job {
            training_file: self.upload(&lines(24)).await,
            validation_file: Some(self.upload(&lines(4)).await),
            ..asked(task)
        };
        self.ledger().put_job(&job).await.unwrap();
        job
    }

    async fn run(&self, job: &Job) -> JobStatus {
        run_job(&self.options, &job.id, &mut |_| {}).await.unwrap()
    }

    async fn state(&self, job: &Job) -> JobState {
        self.ledger().job(&job.id).await.unwrap().unwrap()
    }

    async fn digests(&self, task: &str) -> Vec<String> {
        let adapters = self.ledger().adapters(task).await.unwrap();
        adapters.into_iter().map(|a| a.manifest.digest).collect()
    }
}

fn lines(count: usize) -> String {
    let line = |n: usize| {
        format!(
            r#"{{"messages": [{{"role": "user", "content": "say {n}"}}, {{"role": "assistant", "content": "ok {n}"}}]}}"#
        )
    };
    (0..count).map(line).collect::<Vec<_>>().join("\n")
}

fn steps(state: &JobState) -> Vec<u64> {
    let metrics = state.events.iter().filter_map(|e| e.metrics.as_ref());
    metrics.map(|m| m["step"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_becomes_an_adapter_an_epoch() {
    let house = House::new().await;
    let job = house.job("support").await;
    assert_eq!(house.run(&job).await, JobStatus::Succeeded);
    let state = house.state(&job).await;
    assert_eq!(steps(&state), (1..=12).collect::<Vec<_>>());
    let epochs: Vec<_> = state
        .checkpoints
        .iter()
        .map(|c| (c.epoch, c.step, c.number))
        .collect();
    assert_eq!(epochs, [(1, 3, 1), (2, 6, 2), (3, 9, 3), (4, 12, 4)]);
    assert!(
        state
            .checkpoints
            .iter()
            .all(|c| c.metrics["full_valid_loss"].is_f64())
    );
    assert!(state.trained_tokens.unwrap() > 1_000);
    let adapters = house.ledger().adapters("support").await.unwrap();
    for adapter in &adapters {
        let manifest = &adapter.manifest;
        assert_eq!(manifest.source, Source::Job);
        assert_eq!(manifest.run_id.as_ref(), Some(&job.id));
        assert_eq!(
            (manifest.examples_train, manifest.examples_held_out),
            (24, 4)
        );
    }
    let [file, config, weights] = state.result_files.as_slice() else {
        panic!("{:?}", state.result_files)
    };
    let last = &adapters[3].folder;
    for (id, name) in [config, weights]
        .into_iter()
        .zip(retune_ledger::ADAPTER_FILES)
    {
        let kept = house.ledger().upload_content(id).await.unwrap().unwrap();
        assert_eq!(kept, std::fs::read(last.join(name)).unwrap());
        let about = house.ledger().upload(id).await.unwrap().unwrap();
        assert_eq!(
            (about.filename.as_str(), about.purpose.as_str()),
            (name, "fine-tune-results")
        );
    }
    let csv = house.ledger().upload_content(file).await.unwrap().unwrap();
    let csv = String::from_utf8(csv).unwrap();
    assert_eq!(csv.lines().count(), 13, "{csv}");
    assert!(csv.starts_with("step,train_loss,full_valid_loss,"), "{csv}");
    assert!(!house.ledger().files().join("jobs").join(&job.id).exists());
    // Once more changes nothing.
    assert_eq!(house.run(&job).await, JobStatus::Succeeded);
    assert_eq!(house.state(&job).await, state);
}

/// In a runtime of its own, whose end waits for the training's thread as a process's does.
fn in_a_process<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let done = runtime.block_on(work);
    drop(runtime);
    done
}

#[test]
fn cut_off_anywhere_and_gone_on_is_the_same_to_the_bit() {
    let (house, whole, job) = in_a_process(async {
        let house = House::new().await;
        let (whole, job) = (house.job("whole").await, house.job("cut").await);
        (house, whole, job)
    });
    assert_eq!(in_a_process(house.run(&whole)), JobStatus::Succeeded);
    // Dropped once it has told so many steps, as when its process is told to end; each time one more.
    let cut_after = async |cut: usize| {
        let (send, mut now) = tokio::sync::mpsc::unbounded_channel();
        let mut seen = 0;
        let mut observer = |_: &Progress| {
            seen += 1;
            if seen == cut {
                assert!(send.send(()).is_ok());
            }
        };
        tokio::select! {
            biased;
            _ = now.recv() => None,
            ended = run_job(&house.options, &job.id, &mut observer) => Some(ended.unwrap()),
        }
    };
    let mut cuts = 1..40;
    let ended = cuts.find_map(|cut| in_a_process(cut_after(cut)));
    assert_eq!(ended, Some(JobStatus::Succeeded));
    assert!(cuts.start > 3, "it was cut off at several places");
    let state = in_a_process(house.state(&job));
    let epochs: Vec<_> = state
        .checkpoints
        .iter()
        .map(|c| (c.epoch, c.number))
        .collect();
    assert_eq!(epochs, [(1, 1), (2, 2), (3, 3), (4, 4)]);
    assert_eq!(steps(&state), (1..=12).collect::<Vec<_>>());
    let digests = |task| in_a_process(house.digests(task));
    assert_eq!(digests("cut"), digests("whole"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_may_halt_it_and_let_it_go_on() {
    let house = House::new().await;
    let mut job = house.job("halted").await;
    job.id = Job::new_id();
    job.n_epochs = Some(40);
    house.ledger().put_job(&job).await.unwrap();
    let says = |status| JobEntry {
        status: Some(status),
        ..JobEntry::default()
    };
    // Told slowly, so that it is not over before somebody can say a word.
    let seen = std::sync::atomic::AtomicUsize::new(0);
    let mut slowly = |_: &Progress| {
        seen.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(50));
    };
    let halt = async |status| loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let state = house.state(&job).await;
        if seen.load(Ordering::Relaxed) > 10
            && house
                .ledger()
                .add_to_job(&job.id, state.seq, &says(status))
                .await
                .unwrap()
        {
            return;
        }
    };
    let training = run_job(&house.options, &job.id, &mut slowly);
    let (ended, ()) = tokio::join!(training, halt(JobStatus::Paused));
    assert_eq!(ended.unwrap(), JobStatus::Paused);
    let paused = house.state(&job).await;
    assert!(steps(&paused).last().is_none_or(|last| *last < 120));
    // It is left alone until it may go on.
    assert_eq!(house.run(&job).await, JobStatus::Paused);
    assert_eq!(house.state(&job).await.seq, paused.seq);
    let queued = says(JobStatus::Queued);
    assert!(
        house
            .ledger()
            .add_to_job(&job.id, paused.seq, &queued)
            .await
            .unwrap()
    );
    assert_eq!(house.run(&job).await, JobStatus::Succeeded);
    let told = steps(&house.state(&job).await);
    assert_eq!(told, (1..=120).collect::<Vec<_>>());
    assert_eq!(house.digests("halted").await.len(), 40);
}

fn preferences(count: usize) -> String {
    let line = |n: usize| {
        format!(
            r#"{{"input": {{"messages": [{{"role": "user", "content": "say {n}"}}]}}, "preferred_output": [{{"role": "assistant", "content": "ok"}}], "non_preferred_output": [{{"role": "assistant", "content": "no {n}"}}]}}"#
        )
    };
    (0..count).map(line).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preferences_are_learned_by_an_adapter_that_is_gone_on_from() {
    let house = House::new().await;
    let first = house.job("first").await;
    assert_eq!(house.run(&first).await, JobStatus::Succeeded);
    let job = Job {
        from: Some("first@4".to_owned()),
        method: JobMethod::Dpo,
        training_file: house.upload(&preferences(24)).await,
        validation_file: Some(house.upload(&preferences(4)).await),
        learning_rate_multiplier: Some(1.0),
        beta: Some(0.5),
        ..asked("second")
    };
    house.ledger().put_job(&job).await.unwrap();
    assert_eq!(house.run(&job).await, JobStatus::Succeeded);
    let state = house.state(&job).await;
    assert_eq!(steps(&state), (1..=12).collect::<Vec<_>>());
    assert_eq!(state.settings.unwrap().beta, Some(0.5));
    let loss = |n: usize| state.checkpoints[n].metrics["full_valid_loss"].as_f64();
    assert!(loss(3) < loss(0));
    let adapter = house.ledger().adapter("second", 4).await.unwrap();
    let manifest = &adapter.manifest;
    assert_eq!(manifest.parent.as_deref(), Some("first@4"));
    assert_eq!(
        (manifest.examples_train, manifest.examples_held_out),
        (24, 4)
    );
    // Conversations are gone on with alike.
    let more = Job {
        from: Some("second@4".to_owned()),
        training_file: first.training_file.clone(),
        n_epochs: Some(1),
        ..asked("third")
    };
    house.ledger().put_job(&more).await.unwrap();
    assert_eq!(house.run(&more).await, JobStatus::Succeeded);
    let loss = |state: &JobState| {
        let first = state.events.iter().find_map(|e| e.metrics.as_ref());
        first.unwrap()["train_loss"].as_f64().unwrap()
    };
    let (fresh, more) = (house.state(&first).await, house.state(&more).await);
    assert!(loss(&more) < loss(&fresh), "what was learned is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_cannot_be_done_says_why() {
    let house = House::new().await;
    let good = house.upload(&lines(3)).await;
    let bad = house.upload(&format!("{}\n{{}}", lines(3))).await;
    let long = lines(1).replace("say", &"long ".repeat(200));
    let long = house.upload(&long).await;
    let gone = "file-00000000000000000000000000000000".to_owned();
    let with = |train: &String, validation: Option<&String>, rate: f64| Job {
        training_file: train.clone(),
        validation_file: validation.cloned(),
        learning_rate_multiplier: Some(rate),
        ..asked("x")
    };
    let pairs = house.upload(&preferences(3)).await;
    let dpo = |train: &String| Job {
        method: JobMethod::Dpo,
        ..with(train, None, 1.0)
    };
    let from = Job {
        from: Some("x@7".to_owned()),
        ..with(&good, None, 1.0)
    };
    for (job, code, param, says) in [
        (from, "model_not_trainable", "model", "`x@7`"),
        (
            dpo(&good),
            "invalid_training_file",
            "training_file",
            "line 1",
        ),
        (
            with(&pairs, None, 1.0),
            "invalid_training_file",
            "training_file",
            "method 'dpo'",
        ),
        (
            with(&gone, None, 1.0),
            "invalid_training_file",
            "training_file",
            "not there",
        ),
        (
            with(&good, Some(&gone), 1.0),
            "invalid_validation_file",
            "validation_file",
            "not there",
        ),
        (
            with(&bad, None, 1.0),
            "invalid_training_file",
            "training_file",
            "line 4",
        ),
        (
            with(&long, None, 1.0),
            "invalid_training_file",
            "training_file",
            "512 tokens",
        ),
        (
            with(&good, None, 1e30),
            "training_diverged",
            "hyperparameters",
            "lower learning rate",
        ),
    ] {
        house.ledger().put_job(&job).await.unwrap();
        assert_eq!(house.run(&job).await, JobStatus::Failed, "{code}");
        let state = house.state(&job).await;
        let error = state.error.unwrap();
        assert_eq!(
            (error.code.as_str(), error.param.as_deref()),
            (code, Some(param))
        );
        assert!(error.message.contains(says), "{}", error.message);
        assert!(
            state
                .events
                .last()
                .unwrap()
                .message
                .contains(&error.message)
        );
        assert!(!house.ledger().files().join("jobs").join(&job.id).exists());
    }
    let error = run_job(&house.options, "ftjob-x", &mut |_| {}).await;
    assert!(matches!(error, Err(Error::UnknownJob(_))));
}
