//! From a run's verdict over live traffic to a champion, or not: the real ledger, and a server that is a stand-in.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use retune_ledger::{Feedback, Run, Stage};
use tokio_util::sync::CancellationToken;

use super::watch;
use crate::house::{EXCHANGES, House, start};
use crate::testing::{asked, rated};
use crate::verdict::Verdict;

const ALWAYS: &str =
    "promote = \"auto\"\nlora = { epochs = 2 }\n[task.retrain.canary]\nalways = true\nshare = 0.5";

/// A run whose candidate, `ask@1`, has become the canary; then answers of both, of which the canary's are liked with that
/// rating. Watches until `ask@1` stands there.
async fn lived(rating: u8, until: Stage) -> House {
    let house = Box::pin(examined()).await;
    answers(&house, rating, |n| format!("user {n}")).await;
    look(&house, 30, async |house| stage(house).await == until).await;
    let stages = house.options.ledger.stages("ask").await.unwrap();
    assert_eq!(stages.stage(1), until, "{stages:?}");
    assert_eq!(stages.by.as_deref(), Some("canary's test"));
    house
}

/// The run alone.
async fn examined() -> House {
    let house = House::new(EXCHANGES, ALWAYS).await;
    let report = house.run(&start()).await.0.unwrap();
    assert_eq!(
        (report.verdict, report.promoted),
        (Verdict::Promote, false),
        "{:?}",
        report.reasons
    );
    let ledger = &house.options.ledger;
    let stages = ledger.stages("ask").await.unwrap();
    assert_eq!(stages.canary, Some((1, 0.5)));
    assert_eq!(stages.by.as_deref(), Some(report.run_id.as_str()));
    house
}

/// Three hundred answers of each, to those users.
async fn answers(house: &House, rating: u8, user: impl Fn(u64) -> String) {
    let ledger = &house.options.ledger;
    let now = Utc::now() + TimeDelta::milliseconds(1);
    for n in 1_000..1_600 {
        let is_canary = n % 2 == 0;
        let mut exchange = asked(n, &format!("live {n}"), r#"{"is":"x"}"#);
        exchange.ts = now + TimeDelta::microseconds(n as i64);
        exchange.format_valid = Some(true);
        exchange.user = Some(user(n));
        exchange.adapter = Some(if is_canary { "ask@1" } else { "ask@base" }.to_owned());
        let rating = if is_canary { rating } else { 5 };
        let feedback = Feedback {
            ts: now,
            ..rated(n, 0, "ann", rating)
        };
        ledger.append_exchange(exchange).await.unwrap();
        ledger.append_feedback(feedback).await.unwrap();
    }
}

/// Watches until it is done, or for so many seconds.
async fn look(house: &House, seconds: u64, done: impl AsyncFn(&House) -> bool) {
    let stop = CancellationToken::new();
    let watching = watch(&house.options, stop.clone());
    let waiting = async {
        for _ in 0..seconds * 20 {
            if done(house).await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        stop.cancel();
    };
    tokio::join!(watching, waiting);
}

async fn stage(house: &House) -> Stage {
    house.options.ledger.stages("ask").await.unwrap().stage(1)
}

async fn newest_run(house: &House) -> Run {
    house.options.ledger.runs().await.unwrap().remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_not_worse_is_promoted_and_its_run_says_so() {
    let house = Box::pin(lived(5, Stage::Champion)).await;
    let runs = house.options.ledger.runs().await.unwrap();
    assert_eq!(runs[0].promoted, Some(true), "{runs:?}");
    let report = runs[0].report.as_ref().unwrap();
    assert_eq!(report["promoted"], true);
    // Its row is younger than its end, by which budgets and pauses are counted.
    assert_eq!(
        runs[0].ended().to_rfc3339(),
        report["finished"]
            .as_str()
            .unwrap()
            .parse::<chrono::DateTime<Utc>>()
            .unwrap()
            .to_rfc3339()
    );
    assert!(runs[0].ended() < runs[0].ts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_learns_of_a_promotion_whose_process_died_before_telling_it() {
    let house = Box::pin(lived(5, Stage::Champion)).await;
    let ledger = &house.options.ledger;
    let mut run = newest_run(&house).await;
    run.promoted = Some(false);
    run.ts = Utc::now();
    ledger.append_run(&run).await.unwrap();
    let told = async |house: &House| newest_run(house).await.promoted == Some(true);
    look(&house, 30, told).await;
    assert!(told(&house).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_compared_with_a_former_champion_waits_for_a_person() {
    let house = Box::pin(examined()).await;
    let ledger = &house.options.ledger;
    let mut run = newest_run(&house).await;
    run.baseline = Some("ask@7".to_owned());
    run.ts = Utc::now();
    ledger.append_run(&run).await.unwrap();
    answers(&house, 5, |n| format!("user {n}")).await;
    look(&house, 2, async |_| false).await;
    assert_eq!(stage(&house).await, Stage::Canary);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_answers_to_two_users_are_two_trials() {
    let house = Box::pin(examined()).await;
    answers(&house, 2, |n| format!("user {}", n % 2)).await;
    look(&house, 2, async |_| false).await;
    assert_eq!(stage(&house).await, Stage::Canary);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_worse_is_rejected() {
    let house = Box::pin(lived(2, Stage::Rejected)).await;
    let stages = house.options.ledger.stages("ask").await.unwrap();
    let reason = stages.reason.unwrap();
    assert!(
        reason.contains("worse than ask@base on live traffic"),
        "{reason}"
    );
    let runs = house.options.ledger.runs().await.unwrap();
    assert_eq!(runs[0].promoted, Some(false));
}
