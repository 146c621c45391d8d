//! Whole runs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::time::Duration;

use retune_ledger::Stage;

use super::{Event, run};
use crate::book::{DONE, FAILED, new_row};
use crate::house::{AUTO, EXCHANGES, House, start};
use crate::verdict::Verdict;
use crate::{Error, Start, StartedBy, run_id};

fn states(events: &[Event]) -> Vec<&'static str> {
    events
        .iter()
        .filter_map(|event| {
            if let Event::State { state, .. } = event {
                Some(*state)
            } else {
                None
            }
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_corrections_to_a_champion_and_never_twice() {
    let house = House::new(EXCHANGES, AUTO).await;
    let (report, events) = house.run(&start()).await;
    let report = report.unwrap();
    assert_eq!(
        (report.verdict, report.promoted),
        (Verdict::Promote, true),
        "{:?}",
        report.reasons
    );
    assert_eq!(
        states(&events),
        ["dataset", "training", "examining", "done"]
    );
    assert_eq!(
        report.examples_train + report.examples_development + report.examples_held_out,
        EXCHANGES
    );
    assert_eq!(report.examples_examined, Some(report.examples_held_out));
    assert_eq!(
        (report.wins, report.votes, report.ties),
        (report.examples_examined, report.examples_examined, Some(0))
    );
    assert!(
        report.loss_last.unwrap() < report.loss_first.unwrap(),
        "{report:?}"
    );
    assert!(report.p_value.unwrap() < 0.05);
    // People corrected all that the baseline said; the candidate is right each time, and the baseline never.
    let corrections = report.corrections;
    assert_eq!(
        (corrections.exchanges, corrections.corrected),
        (EXCHANGES, EXCHANGES)
    );
    let cost = report.cost.as_ref().unwrap();
    let corrected = [cost.candidate_kinds, cost.baseline_kinds].map(|of| of.unwrap().corrected);
    assert_eq!(corrected, [Some(0.0), Some(1000.0)]);

    let ledger = &house.options.ledger;
    let adapter = ledger.adapter("ask", 1).await.unwrap();
    assert!(
        adapter.folder.join("adapter_model.safetensors").is_file()
            && adapter.folder.join("adapter_config.json").is_file()
    );
    assert_eq!(ledger.stages("ask").await.unwrap().champion, Some(1));
    let reference = ledger
        .reference("ask", "ask@1", Some(adapter.manifest.digest.as_str()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (
            Some(reference.counts.exchanges),
            reference.counts.format_invalid
        ),
        (report.examples_examined, 0)
    );
    let row = house.row(&start()).await;
    assert_eq!(
        (row.state.as_str(), row.promoted, row.wins, row.adapter),
        (DONE, Some(true), report.wins, Some("ask@1".to_owned()))
    );
    for extension in ["json", "md", "html"] {
        let written = ledger
            .files()
            .join("reports")
            .join(format!("{}.{extension}", report.run_id));
        assert!(std::fs::read_to_string(written).unwrap().contains("ask@1"));
    }
    let suite = report.regression.as_ref().unwrap();
    assert_eq!(
        house.asked("/v1/chat") as u64,
        2 * (suite.suite.prompts + report.examples_examined.unwrap())
    );
    assert!(!suite.own && suite.suite.lost == 0 && suite.suite.baseline == 40);
    assert!(report.slices.iter().any(|slice| slice.by == "prompt"));
    let mut hostile = report.clone();
    hostile.won[0].candidate = "<script>alert(1)</script>".to_owned();
    let page = hostile.html().unwrap();
    assert!(page.contains("<svg") && page.contains("alert(1)"));
    assert!(!page.contains("<script"), "{page}");
    assert!(
        !ledger
            .files()
            .join("staging")
            .join("ask")
            .join(&report.run_id)
            .exists()
    );

    let before = house.server.paths().len();
    let (again, events) = house.run(&start()).await;
    assert_eq!(
        (again.unwrap(), states(&events), house.server.paths().len()),
        (report, vec![], before)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_family_that_cannot_be_trained_is_refused_by_name_before_anything_is_read() {
    let house = House::new(0, AUTO).await;
    let path = house.options.base.join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config.replace("\"llama\"", "\"mamba2\"")).unwrap();
    let (refused, events) = house.run(&start()).await;
    let message = refused.unwrap_err().to_string();
    assert!(
        message.contains("mamba2") && message.contains("config.json"),
        "{message}"
    );
    assert!(events.is_empty());
    assert!(house.options.ledger.runs().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_that_was_cut_off_goes_on_and_ends_as_if_it_had_not_been() {
    let (whole, _) = House::new(EXCHANGES, AUTO).await.run(&start()).await;
    let whole = whole.unwrap();
    let house = House::new(EXCHANGES, AUTO).await;
    let reached = tokio::sync::Notify::new();
    let mut watch = |event: &Event| {
        if matches!(event, Event::Training(step) if step.step == 5) {
            reached.notify_one();
        }
    };
    let start = start();
    tokio::select! {
        _ = run(&house.options, &start, &mut watch) => panic!("it was not cut off"),
        () = reached.notified() => {}
    }
    // Of another run, which is dead as well.
    let staging = house.options.ledger.files().join("staging").join("ask");
    let other = staging.join("run-other.checkpoint.safetensors");
    std::fs::write(&other, "").unwrap();
    let own = staging.join(format!("{}.checkpoint.safetensors", whole.run_id));
    while !own.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (resumed, events) = house.run(&start).await;
    let resumed = resumed.unwrap();
    let steps = events.iter().filter_map(|event| match event {
        Event::Training(step) => Some((step.step, step.is_past)),
        _ => None,
    });
    let steps: Vec<(usize, bool)> = steps.collect();
    assert_eq!(steps[4], (4, true), "{steps:?}");
    assert_eq!(
        (resumed.digest, resumed.curve, resumed.loss_last),
        (whole.digest, whole.curve, whole.loss_last)
    );
    assert!(!own.exists() && !other.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_run_begins_again_cleanly() {
    let house = House::new(EXCHANGES, AUTO).await;
    let ledger = &house.options.ledger;
    // It had trained and published, and died while it examined; another one died while it trained.
    let (first, _) = house
        .run(&Start {
            task: "ask".to_owned(),
            started_by: StartedBy::Trigger("other".to_owned()),
        })
        .await;
    assert!(first.unwrap().promoted);
    let staging = ledger.files().join("staging").join("ask");
    let orphan = staging.join("half");
    std::fs::create_dir_all(&orphan).unwrap();
    let champion = ledger.adapter("ask", 1).await.unwrap();
    for entry in std::fs::read_dir(&champion.folder).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() != "manifest.json" {
            std::fs::copy(&path, orphan.join(path.file_name().unwrap())).unwrap();
        }
    }
    let mut manifest = champion.manifest.clone();
    manifest.run_id = Some(run_id(&start()));
    manifest.number = 2;
    ledger
        .put_adapter("ask", &orphan, manifest, None)
        .await
        .unwrap();
    std::fs::create_dir_all(staging.join("run-dead")).unwrap();
    let mut row = new_row("ask", start().started_by.to_string(), run_id(&start()));
    row.state = "examining".to_owned();
    ledger.append_run(&row).await.unwrap();

    let (report, events) = house.run(&start()).await;
    let report = report.unwrap();
    assert_eq!(
        states(&events),
        ["dataset", "training", "examining", "done"]
    );
    assert_eq!(report.adapter.as_deref(), Some("ask@3"));
    assert_eq!(
        ledger.stages("ask").await.unwrap().stage_of[&2],
        Stage::Rejected
    );
    assert!(!staging.join("run-dead").exists());
    // Its baseline is the champion now, which knows all the answers too: ties decide nothing.
    assert_eq!(
        (report.baseline.as_str(), report.ties, report.verdict),
        ("ask@1", report.examples_examined, Verdict::Wait)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_verdict_stood_is_only_carried_out() {
    let house = House::new(EXCHANGES, AUTO).await;
    let (report, _) = house.run(&start()).await;
    let report = report.unwrap();
    let ledger = &house.options.ledger;
    // As if it had died just before the promotion...
    let mut row = house.row(&start()).await;
    row.state = "examining".to_owned();
    row.promoted = Some(false);
    row.ts = chrono::Utc::now();
    ledger.append_run(&row).await.unwrap();
    let mut stages = ledger.stages("ask").await.unwrap();
    stages.champion = None;
    ledger.set_stages("ask", stages.seq, stages).await.unwrap();
    let asked = house.asked("/v1/chat");
    let (again, events) = house.run(&start()).await;
    assert!(again.unwrap().promoted);
    assert_eq!(
        (
            states(&events),
            house.asked("/promote"),
            house.asked("/v1/chat")
        ),
        (vec!["done"], 2, asked)
    );
    // ... and as if just after.
    row.ts = chrono::Utc::now();
    ledger.append_run(&row).await.unwrap();
    let (again, _) = house.run(&start()).await;
    let again = again.unwrap();
    assert!(again.promoted && again.examined == report.examined);
    assert_eq!(
        (
            house.asked("/promote"),
            house.row(&start()).await.state.as_str()
        ),
        (2, DONE)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_has_to_say_yes_where_the_policy_says_so() {
    let house = House::new(
        EXCHANGES,
        "promote = \"approve\"\n[task.retrain.lora]\nepochs = 1",
    )
    .await;
    let report = house.run(&start()).await.0.unwrap();
    assert_eq!(
        (report.verdict, report.promoted, house.asked("/promote")),
        (Verdict::Promote, false, 0)
    );
    assert_eq!(house.row(&start()).await.promoted, Some(false));
    assert!(
        report.reasons.last().unwrap().contains("person"),
        "{:?}",
        report.reasons
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_examples_train_nothing_and_too_few_pairs_wait() {
    let house = House::new(5, AUTO).await;
    let report = house.run(&start()).await.0.unwrap();
    assert_eq!(
        (
            report.verdict,
            report.adapter.clone(),
            report.examples_examined
        ),
        (Verdict::Wait, None, None)
    );
    assert!(
        report.reasons[0].contains("min_examples"),
        "{:?}",
        report.reasons
    );
    assert_eq!(house.server.paths().len(), 0);

    let house = House::new(150, &format!("min_pairs = 149\n{AUTO}")).await;
    let (report, events) = house.run(&start()).await;
    let report = report.unwrap();
    assert_eq!((report.verdict, report.promoted), (Verdict::Wait, false));
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Pairs { have, wanted: 149 } if *have < 149))
    );
    assert!(
        report.reasons.iter().any(|reason| reason.contains("149")),
        "{:?}",
        report.reasons
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_told_and_can_be_tried_again() {
    let mut house = House::new(EXCHANGES, AUTO).await;
    let server = std::mem::replace(&mut house.options.server, "http://127.0.0.1:9".to_owned());
    let error = house.run(&start()).await.0.unwrap_err().to_string();
    let row = house.row(&start()).await;
    assert_eq!(
        (row.state.as_str(), row.error.as_deref()),
        (FAILED, Some(error.as_str()))
    );
    house.options.server = server;
    assert!(house.run(&start()).await.0.unwrap().promoted);
    assert_eq!(house.row(&start()).await.error, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_run_of_a_task_at_a_time() {
    let house = House::new(20, AUTO).await;
    let lease = house.options.ledger.lease("retrain-ask").await;
    let _held = lease.unwrap().unwrap();
    assert!(matches!(
        house.run(&start()).await.0,
        Err(Error::Busy { .. })
    ));
    let unknown = Start {
        task: "nobody".to_owned(),
        started_by: StartedBy::Person,
    };
    let error = house.run(&unknown).await.0.unwrap_err().to_string();
    assert!(error.contains("nobody") && error.contains("ask"), "{error}");
    assert!(house.folder.path().exists());
}
