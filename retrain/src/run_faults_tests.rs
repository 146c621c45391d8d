//! Runs that are killed, or whose server fails, at each of their stages: the next process ends them as if nothing had happened.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use retune_ledger::Stage;
use tokio::sync::Notify;

use super::{Event, run};
use crate::book::{DONE, FAILED};
use crate::house::{AUTO, EXCHANGES, Fault, House, start};
use crate::verdict::Verdict;
use crate::{Report, Start, StartedBy};

/// What a run leaves behind that was made in several tries: one champion, which the report names, no other candidate that could take
/// traffic, one row, and nothing staged.
async fn assert_whole(house: &House, report: &Report, whole: &Report) {
    let ledger = &house.options.ledger;
    assert_eq!(
        (report.verdict, report.promoted, report.digest.as_ref()),
        (Verdict::Promote, true, whole.digest.as_ref()),
        "{:?}",
        report.reasons
    );
    assert_eq!(
        (report.figures, &report.curve),
        (whole.figures, &whole.curve)
    );
    let stages = ledger.stages("ask").await.unwrap();
    let champion = report.adapter.as_ref().unwrap();
    assert_eq!(&stages.champion_name("ask"), champion);
    for adapter in ledger.adapters("ask").await.unwrap() {
        let is_it = stages.champion == Some(adapter.number);
        let stage = stages.stage(adapter.number);
        assert!(
            is_it || stage == Stage::Rejected,
            "{} {stage}",
            adapter.number
        );
    }
    let row = house.row(&start()).await;
    assert_eq!((row.state.as_str(), row.promoted), (DONE, Some(true)));
    assert_eq!(ledger.runs().await.unwrap().len(), 1);
    let page = ledger
        .files()
        .join("reports")
        .join(format!("{}.html", report.run_id));
    assert!(page.is_file());
    let staging = ledger.files().join("staging").join("ask");
    assert_eq!(std::fs::read_dir(staging).map_or(0, Iterator::count), 0);
}

async fn whole() -> Report {
    let house = House::new(EXCHANGES, AUTO).await;
    Box::pin(house.run(&start())).await.0.unwrap()
}

/// The `count`th event for which `is_it` holds is the last that the first process sees.
async fn killed_at(whole: &Report, count: usize, is_it: impl Fn(&Event) -> bool + Sync) {
    let house = House::new(EXCHANGES, AUTO).await;
    let (reached, start) = (Notify::new(), start());
    let mut seen = 0;
    let mut watch = |event: &Event| {
        seen += usize::from(is_it(event));
        if seen == count {
            reached.notify_one();
        }
    };
    tokio::select! {
        biased;
        () = reached.notified() => {}
        ended = run(&house.options, &start, &mut watch) => panic!("it was not killed: {ended:?}"),
    }
    let report = Box::pin(house.run(&start)).await.0.unwrap();
    assert_whole(&house, &report, whole).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_killed_at_any_stage_ends_as_if_it_had_not_been() {
    let whole = Box::pin(whole()).await;
    let state = |wanted: &'static str| move |event: &Event| matches!(event, Event::State { state, .. } if *state == wanted);
    killed_at(&whole, 1, state("dataset")).await;
    killed_at(&whole, 1, |event| matches!(event, Event::Dataset { .. })).await;
    killed_at(&whole, 1, state("training")).await;
    killed_at(&whole, 7, |event| matches!(event, Event::Training(_))).await;
    killed_at(&whole, 1, state("examining")).await;
    killed_at(&whole, 1, |event| matches!(event, Event::Pairs { .. })).await;
    killed_at(&whole, 20, |event| matches!(event, Event::Examining { .. })).await;
    killed_at(&whole, 1, |event| matches!(event, Event::Verdict { .. })).await;
    killed_at(&whole, 1, |event| matches!(event, Event::Promoted { .. })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_server_fails_at_any_request_ends_well_at_the_next_try() {
    let whole = Box::pin(whole()).await;
    for (path, done) in [
        ("/load", false),
        ("/load", true),
        ("/v1/chat/completions", false),
        ("/promote", false),
        ("/promote", true),
    ] {
        let house = House::new(EXCHANGES, AUTO).await;
        house.fail_once(Fault { path, done });
        let failed = Box::pin(house.run(&start())).await.0;
        assert!(failed.is_err(), "{path} {done}");
        assert_eq!(house.row(&start()).await.state, FAILED);
        let report = Box::pin(house.run(&start())).await.0.unwrap();
        assert_whole(&house, &report, &whole).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_a_person_s_that_was_stopped_goes_on_when_a_person_asks_again() {
    let house = House::new(EXCHANGES, AUTO).await;
    let by_person = Start {
        started_by: StartedBy::Person,
        ..start()
    };
    let (reached, mut id) = (Notify::new(), String::new());
    let mut watch = |event: &Event| match event {
        Event::State { run_id, .. } => id.clone_from(run_id),
        Event::Training(_) => reached.notify_one(),
        _ => {}
    };
    tokio::select! {
        biased;
        () = reached.notified() => {}
        ended = run(&house.options, &by_person, &mut watch) => panic!("it was not stopped: {ended:?}"),
    }
    let report = Box::pin(house.run(&by_person)).await.0.unwrap();
    assert_eq!((report.run_id, report.promoted), (id, true));
    // The next one is another.
    let next = Box::pin(house.run(&by_person)).await.0.unwrap();
    assert_eq!(house.options.ledger.runs().await.unwrap().len(), 2);
    assert_eq!(next.baseline, "ask@1");
}
