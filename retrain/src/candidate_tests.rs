//! Whole runs by other ways of training than the default.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use crate::Error;
use crate::house::{AUTO, EXCHANGES, House, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_learning_rate_that_did_best_on_a_fraction_is_trained_with() {
    let more = format!("{AUTO}\nsweep = [0.01, 1.0]\nsweep_share = 0.5");
    let house = House::new(EXCHANGES, &more).await;
    let report = house.run(&start()).await.0.unwrap();
    let [low, high, half] = report.trials.as_slice() else {
        panic!("{:?}", report.trials)
    };
    assert!(
        high.development_loss < low.development_loss,
        "{:?}",
        report.trials
    );
    assert_eq!(
        (low.examples, half.examples),
        (report.examples_train.div_ceil(2), high.examples.div_ceil(2))
    );
    assert_eq!(half.learning_rate, high.learning_rate);
    let adapter = house.options.ledger.adapter("ask", 1).await.unwrap();
    assert_eq!(adapter.manifest.lora["learning_rate"], high.learning_rate);
    let page = report.markdown();
    assert!(page.contains("Twice as many examples: -"), "{page}");
}

/// A program that has the adapter ready: what another run trained.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_program_made_is_examined_and_promoted_as_any_other() {
    let other = House::new(EXCHANGES, AUTO).await;
    other.run(&start()).await.0.unwrap();
    let ready = other.options.ledger.adapter("ask", 1).await.unwrap();
    let script = format!(
        r#"cp -r '{}' \"$0/adapter\"; wc -l < \"$0/train.jsonl\" >&2; echo '{{\"step\": 1, \"steps\": 1, \"development_loss\": 0.5}}'"#,
        ready.folder.display()
    );
    let more = format!("trainer = \"command\"\ncommand = [\"sh\", \"-c\", \"{script}\"]\n{AUTO}");
    let house = House::new(EXCHANGES, &more).await;
    let report = house.run(&start()).await.0.unwrap();
    assert!(report.promoted, "{:?}", report.reasons);
    assert_eq!(report.digest.as_ref(), Some(&ready.manifest.digest));
    assert_eq!((report.training_steps, report.loss_first), (Some(1), None));
    let adapter = house.options.ledger.adapter("ask", 1).await.unwrap();
    assert_eq!(adapter.manifest.probes, []);
    // Nothing of the examples stays.
    let staging = house.options.ledger.files().join("staging").join("ask");
    let left = std::fs::read_dir(staging).map_or(0, |entries| entries.count());
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_program_leaves_is_looked_at_before_it_is_a_candidate() {
    let command = r#"trainer = "command"
command = ["sh", "-c", "mkdir -p \"$0/adapter\"; echo '{}' > \"$0/adapter/adapter_config.json\""]
"#;
    let house = House::new(EXCHANGES, &format!("{command}{AUTO}")).await;
    let error = house.run(&start()).await.0.unwrap_err();
    assert!(matches!(error, Error::Trainer(_)), "{error}");
    assert!(error.to_string().contains("adapter_config.json"), "{error}");
    assert_eq!(house.options.ledger.adapters("ask").await.unwrap(), []);
}
