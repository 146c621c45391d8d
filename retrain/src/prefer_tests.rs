//! A run whose candidate learns preferences after its examples.

#![allow(clippy::unwrap_used, reason = "tests")]

use crate::house::{EXCHANGES, House, start};
use crate::run::Event;

const LORA: &str = "[task.retrain.lora]\nepochs = 2\n[task.retrain.dpo]\n";

fn preferring(events: &[Event]) -> usize {
    let steps = events.iter();
    steps
        .filter(|event| matches!(event, Event::Preferring(step) if step.step > 0))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn corrections_are_preferred_to_what_they_correct() {
    let more = format!("{LORA}epochs = 1\nlearning_rate = 1.0\nmin_preferences = 20");
    let house = House::new(EXCHANGES, &more).await;
    let (report, events) = house.run(&start()).await;
    let report = report.unwrap();
    let of = report.preferences.as_ref().unwrap();
    assert_eq!(of.counts.kept_corrections, EXCHANGES);
    assert_eq!(
        of.pairs_train + of.pairs_development + of.pairs_held_out,
        EXCHANGES
    );
    assert_eq!(Some(preferring(&events) as u64), of.training_steps);
    assert!(of.kept && of.loss_last < of.loss_first, "{of:?}");
    let adapter = house.options.ledger.adapter("ask", 1).await.unwrap();
    assert_eq!(adapter.manifest.lora["dpo"]["epochs"], 1);
    let page = report.markdown();
    assert!(page.contains("### Preferences"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_of_them_teach_nothing_and_the_report_says_so() {
    let more = format!("{LORA}epochs = 1\nmin_preferences = 5000");
    let house = House::new(EXCHANGES, &more).await;
    let (report, events) = house.run(&start()).await;
    let report = report.unwrap();
    assert_eq!(preferring(&events), 0);
    let of = report.preferences.as_ref().unwrap();
    assert!(!of.kept && of.skipped.as_ref().unwrap().contains("5000"));
    let adapter = house.options.ledger.adapter("ask", 1).await.unwrap();
    assert!(adapter.manifest.lora.get("dpo").is_none());
    assert!(report.markdown().contains("Nothing was learned of them"));
}
