//! From a run's verdict over live traffic to a champion, or not: the real ledger, and a server that is a stand-in.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use retune_ledger::{Feedback, Stage};
use tokio_util::sync::CancellationToken;

use super::watch;
use crate::run::tests::{EXCHANGES, House, start};
use crate::testing::{asked, rated};
use crate::verdict::Verdict;

const ALWAYS: &str =
    "promote = \"auto\"\nlora = { epochs = 2 }\n[task.retrain.canary]\nalways = true\nshare = 0.5";

/// A run whose candidate, `ask@1`, has become the canary; then so many answers of both, of which the canary's are liked with that
/// rating. Watches until `ask@1` stands there.
async fn lived(rating: u8, until: Stage) -> House {
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
    let now = Utc::now() + TimeDelta::milliseconds(1);
    for n in 1_000..1_600 {
        let is_canary = n % 2 == 0;
        let mut exchange = asked(n, &format!("live {n}"), r#"{"is":"x"}"#);
        exchange.ts = now + TimeDelta::microseconds(n as i64);
        exchange.format_valid = Some(true);
        exchange.adapter = Some(if is_canary { "ask@1" } else { "ask@base" }.to_owned());
        let rating = if is_canary { rating } else { 5 };
        let feedback = Feedback {
            ts: now,
            ..rated(n, 0, "ann", rating)
        };
        ledger.append_exchange(exchange).await.unwrap();
        ledger.append_feedback(feedback).await.unwrap();
    }
    let stop = CancellationToken::new();
    let watching = watch(&house.options, stop.clone());
    let waiting = async {
        for _ in 0..600 {
            if ledger.stages("ask").await.unwrap().stage(1) == until {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        stop.cancel();
    };
    tokio::join!(watching, waiting);
    let stages = ledger.stages("ask").await.unwrap();
    assert_eq!(stages.stage(1), until, "{stages:?}");
    assert_eq!(stages.by.as_deref(), Some("canary's test"));
    house
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_not_worse_is_promoted_and_its_run_says_so() {
    let house = Box::pin(lived(5, Stage::Champion)).await;
    let runs = house.options.ledger.runs().await.unwrap();
    assert_eq!(runs[0].promoted, Some(true), "{runs:?}");
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
