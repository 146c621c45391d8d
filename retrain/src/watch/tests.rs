//! Tests of `watch`, with the real ledger and a launcher that counts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use retune_ledger::{Ledger, Run, Stages, Trigger, Word};
use retune_task::{AlarmKind, Config};
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{Launched, watch};
use crate::book::{DONE, FAILED, WAITING, new_row};
use crate::dataset;
use crate::next::{Due, due};
use crate::run::run_id;
use crate::testing::{Reply, StandIn, asked, config, corrected, task, time};
use crate::{Launch, Limits, Options, Start, StartedBy};

#[test]
fn due_once_enough_is_new_and_enough_is_there() {
    // min_new_examples 5, min_examples 10
    let task = task();
    let dataset = |rows: u64| {
        let exchanges: Vec<_> = (0..rows)
            .map(|n| asked(n, &format!("prompt {n}"), ""))
            .collect();
        let feedback: Vec<_> = (0..rows)
            .map(|n| corrected(n, 100, "ann", r#"{"is":"x"}"#))
            .collect();
        dataset::build(&task, &exchanges, &feedback)
    };
    let at = |rows, alarm| due(&task.retrain, &dataset(rows), time(alarm));
    assert_eq!(at(12, 7), Due::Waiting { have: 4, wanted: 5 });
    assert_eq!(at(13, 7), Due::Ready);
    assert_eq!(
        at(9, -1),
        Due::Waiting {
            have: 9,
            wanted: 10
        }
    );
    assert_eq!(at(10, -1), Due::Ready);
    assert_eq!(at(0, -1), Due::Waiting { have: 0, wanted: 5 });
}

fn trigger(adapter: &str, kind: AlarmKind) -> Trigger {
    Trigger {
        alarm: "alarm-1".to_owned(),
        ..crate::testing::trigger(time(7), kind, adapter)
    }
}

fn start() -> Start {
    Start {
        task: "ask".to_owned(),
        started_by: StartedBy::Trigger("alarm-1".to_owned()),
    }
}

/// Long enough for a pass that does something it should not.
const A_MOMENT: Duration = Duration::from_millis(700);
/// Long enough on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Watches a ledger of `rows` usable rows and one trigger until there were so many launches and the run is in that state, and a moment longer; every launch leaves
/// `state` in the runs table. Gives the number of launches and the run's last row.
async fn watched(
    rows: u64,
    trigger: Trigger,
    state: Option<&'static str>,
    until: Option<(u32, &'static str)>,
) -> (u32, Option<Run>) {
    watched_with("", rows, Some(trigger), &start(), state, until).await
}

/// The same with more in the policy.
async fn watched_with(
    policy: &str,
    rows: u64,
    trigger: Option<Trigger>,
    start: &Start,
    state: Option<&'static str>,
    until: Option<(u32, &'static str)>,
) -> (u32, Option<Run>) {
    let world = World::new(policy, rows).await;
    if let Some(trigger) = trigger {
        world.ledger.put_trigger(&trigger).await.unwrap();
    }
    watched_in(&world, "", start, state, until).await
}

/// A ledger of usable rows, and a task with one more policy.
struct World {
    ledger: Ledger,
    config: Arc<Config>,
    _folder: TempDir,
}

impl World {
    async fn new(policy: &str, rows: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), policy);
        let ledger = Ledger::open(&config.store).await.unwrap();
        usable(&ledger, rows).await;
        Self {
            ledger,
            config: Arc::new(config),
            _folder: folder,
        }
    }
}

async fn usable(ledger: &Ledger, rows: u64) {
    for n in 0..rows {
        ledger
            .append_exchange(asked(n, &format!("prompt {n}"), ""))
            .await
            .unwrap();
        ledger
            .append_feedback(corrected(n, 100, "ann", r#"{"is":"x"}"#))
            .await
            .unwrap();
    }
    ledger.flush().await.unwrap();
}

/// Watches that world until there were so many launches and the run is in that state, and a moment longer.
async fn watched_in(
    world: &World,
    server: &str,
    start: &Start,
    state: Option<&'static str>,
    until: Option<(u32, &'static str)>,
) -> (u32, Option<Run>) {
    let ledger = &world.ledger;
    let mut options = Options::new(
        Arc::clone(&world.config),
        PathBuf::new(),
        ledger.clone(),
        server.to_owned(),
        reqwest::Client::new(),
    );
    options.limits = Limits {
        poll: Duration::from_millis(5),
        relaunch: Duration::from_millis(1),
        ..Limits::default()
    };
    let launches = Arc::new(AtomicU32::new(0));
    let (counted, kept) = (Arc::clone(&launches), ledger.clone());
    let launch = move |launch: &Launch| -> Launched {
        let Launch::Run(start) = launch else {
            panic!("{launch:?}")
        };
        counted.fetch_add(1, Ordering::SeqCst);
        let (ledger, id) = (kept.clone(), run_id(start));
        Box::pin(async move {
            if let Some(state) = state {
                let mut run = new_row("ask", "test".to_owned(), id);
                run.state = state.to_owned();
                ledger.append_run(&run).await.unwrap();
            }
            Ok(ExitStatus::from_raw(if state == Some(DONE) {
                0
            } else {
                9
            }))
        })
    };
    let stop = CancellationToken::new();
    let watching = watch(&options, launch, stop.clone());
    let id = run_id(start);
    let row = async || {
        let runs = ledger.runs().await.unwrap();
        runs.into_iter().find(|run| run.run_id == id)
    };
    let stopping = async {
        if let Some(until) = until {
            let give_up = tokio::time::Instant::now() + PATIENCE;
            let there = |run: Option<Run>| {
                run.is_some_and(|run| {
                    (launches.load(Ordering::SeqCst), run.state.as_str()) == until
                })
            };
            while !there(row().await) && tokio::time::Instant::now() < give_up {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        tokio::time::sleep(A_MOMENT).await;
        stop.cancel();
    };
    tokio::join!(watching, stopping);
    (launches.load(Ordering::SeqCst), row().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_visibly_for_new_examples() {
    let (launches, row) = watched(
        12,
        trigger("ask@base", AlarmKind::Format),
        Some(DONE),
        Some((0, WAITING)),
    )
    .await;
    let row = row.unwrap();
    assert_eq!(
        (launches, row.state.as_str(), row.progress),
        (0, WAITING, Some((4, 5)))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_a_run_once() {
    let (launches, row) = watched(
        20,
        trigger("ask@base", AlarmKind::Format),
        Some(DONE),
        Some((1, DONE)),
    )
    .await;
    assert_eq!((launches, row.unwrap().state.as_str()), (1, DONE));
}

#[tokio::test(flavor = "multi_thread")]
async fn tries_a_run_that_dies_three_times_and_says_how_it_died() {
    let alarm = trigger("ask@base", AlarmKind::Format);
    let (launches, row) = watched(20, alarm, Some("training"), Some((3, FAILED))).await;
    let row = row.unwrap();
    assert_eq!((launches, row.state.as_str()), (3, FAILED));
    assert!(row.error.unwrap().contains("signal"));
    // One that could not even begin is told as well.
    assert_eq!(
        watched(
            20,
            trigger("ask@base", AlarmKind::Format),
            None,
            Some((3, FAILED))
        )
        .await
        .1
        .unwrap()
        .state,
        FAILED
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_alarms_that_start_nothing() {
    assert_eq!(
        watched(20, trigger("ask@base", AlarmKind::Input), Some(DONE), None).await,
        (0, None)
    );
    let (launches, row) = watched(
        20,
        trigger("ask@7", AlarmKind::Format),
        Some(DONE),
        Some((0, DONE)),
    )
    .await;
    let row = row.unwrap();
    assert_eq!(
        (launches, row.state.as_str(), row.promoted),
        (0, DONE, Some(false))
    );
    assert!(row.error.unwrap().contains("ask@7"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_starts_one_run_for_its_last_time_if_there_was_traffic() {
    // The rows are of 2023; the time is the same whatever year it is.
    let policy = "schedule = \"0 3 1 1 *\"";
    let schedule = retune_task::Schedule::parse("0 3 1 1 *").unwrap();
    let scheduled = Start {
        task: "ask".to_owned(),
        started_by: StartedBy::Schedule(schedule.last(chrono::Utc::now()).unwrap()),
    };
    let watched = |rows, until| watched_with(policy, rows, None, &scheduled, Some(DONE), until);
    let (launches, row) = watched(1, Some((1, DONE))).await;
    assert_eq!((launches, row.unwrap().state.as_str()), (1, DONE));
    assert_eq!(watched(0, None).await, (0, None));
}

/// An alarm about a champion that was promoted just now.
async fn promoted_and_alarmed() -> World {
    let world = World::new("", 20).await;
    let after = Stages {
        champion: Some(7),
        ..Stages::default()
    };
    world.ledger.set_stages("ask", 0, after).await.unwrap();
    let alarm = Trigger {
        ts: Utc::now(),
        ..trigger("ask@7", AlarmKind::Format)
    };
    world.ledger.put_trigger(&alarm).await.unwrap();
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_soon_after_a_promotion_brings_the_former_champion_back_and_starts_no_run() {
    let world = promoted_and_alarmed().await;
    let server = StandIn::start(|_| async { Reply::ok(json!({})) }).await;
    let (launches, row) =
        watched_in(&world, &server.url, &start(), Some(DONE), Some((0, DONE))).await;
    assert_eq!(server.paths(), ["/admin/adapters/ask@7/rollback"]);
    assert_eq!((launches, row.unwrap().promoted), (0, Some(false)));
}

/// The server says that nothing came before it, or that this key may not: then the alarm is one like any other.
#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_going_back_the_alarm_asks_for_a_run() {
    for status in [409, 403] {
        let world = promoted_and_alarmed().await;
        let server = StandIn::start(move |_| async move { Reply::error(status, "no") }).await;
        let waits = Some((0, WAITING));
        let (_, row) = watched_in(&world, &server.url, &start(), Some(DONE), waits).await;
        // It waits for examples, and asks the server no second time.
        assert_eq!(
            (row.unwrap().progress, server.paths().len()),
            (Some((0, 5)), 1),
            "{status}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silenced_alarm_starts_nothing_until_then_and_an_acknowledged_one_does() {
    for (silenced, launched) in [(true, 0), (false, 1)] {
        let world = World::new("", 20).await;
        let alarm = trigger("ask@base", AlarmKind::Format);
        world.ledger.put_trigger(&alarm).await.unwrap();
        let until = silenced.then(|| Utc::now() + TimeDelta::hours(1));
        let word = Word::new(Utc::now(), None, "a campaign", until).unwrap();
        world.ledger.say(&alarm, &word).await.unwrap();
        let until = (!silenced).then_some((1, DONE));
        let (launches, _) = watched_in(&world, "", &start(), Some(DONE), until).await;
        assert_eq!(launches, launched, "silenced: {silenced}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_run_that_an_alarm_started_another_one_waits_and_says_so() {
    for (policy, launched, state) in [("", 0, WAITING), ("cool_down_hours = 0", 1, DONE)] {
        let world = World::new(policy, 20).await;
        let mut other = new_row("ask", "trigger:other".to_owned(), "run-other".to_owned());
        other.state = DONE.to_owned();
        other.verdict = Some("reject".to_owned());
        world.ledger.append_run(&other).await.unwrap();
        let alarm = trigger("ask@base", AlarmKind::Format);
        world.ledger.put_trigger(&alarm).await.unwrap();
        let until = Some((launched, state));
        let (launches, row) = watched_in(&world, "", &start(), Some(DONE), until).await;
        let row = row.unwrap();
        assert_eq!((launches, row.state.as_str()), (launched, state));
        let says = row.error.unwrap_or_default();
        assert_eq!(says.contains("cool_down_hours"), launched == 0, "{says}");
    }
}

/// A job whose process dies is started three times and then failed; one that is paused, or over, is left alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_started_until_it_ends_and_no_more_than_three_times() {
    use retune_ledger::{JobEntry, JobStatus};
    let folder = TempDir::new().unwrap();
    let config = Arc::new(config(folder.path(), ""));
    let ledger = Ledger::open(&config.store).await.unwrap();
    let server = StandIn::start(|_| async { Reply::ok(json!({})) }).await;
    let mut options = Options::new(
        config,
        PathBuf::new(),
        ledger.clone(),
        server.url.clone(),
        reqwest::Client::new(),
    );
    options.limits = Limits {
        poll: Duration::from_millis(1),
        relaunch: Duration::from_millis(1),
        ..Limits::default()
    };
    let (dies, paused) = (crate::job::tests::asked("a"), crate::job::tests::asked("b"));
    for job in [&dies, &paused] {
        ledger.put_job(job).await.unwrap();
    }
    let pause = JobEntry {
        status: Some(JobStatus::Paused),
        ..JobEntry::default()
    };
    assert!(ledger.add_to_job(&paused.id, 0, &pause).await.unwrap());
    let launches = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&launches);
    let id = dies.id.clone();
    let launch = move |launch: &Launch| -> Launched {
        assert_eq!(*launch, Launch::Job(id.clone()));
        counted.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(ExitStatus::from_raw(9)) })
    };
    let stop = CancellationToken::new();
    let stopper = stop.clone();
    let looking = ledger.clone();
    let ended = async move {
        loop {
            let state = looking.job(&dies.id).await.unwrap().unwrap();
            if state.status.is_end() {
                tokio::time::sleep(A_MOMENT).await;
                stopper.cancel();
                return state;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (state, ()) = tokio::join!(ended, watch(&options, launch, stop));
    assert_eq!(launches.load(Ordering::SeqCst), 3);
    let error = state.error.unwrap();
    assert_eq!(
        (state.status, error.code.as_str()),
        (JobStatus::Failed, "training_process_died")
    );
    assert!(error.message.contains("signal: 9"), "{}", error.message);
    let left = ledger.job(&paused.id).await.unwrap().unwrap();
    assert_eq!((left.seq, left.status), (1, JobStatus::Paused));
}
