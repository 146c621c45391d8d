//! Tests of `people`: a run that people judge waits, is taken up again, and ends by the votes that decided.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use proptest::prelude::*;
use retune_ledger::{Action, Stage};
use retune_task::Side;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::book::{DONE, EXAMINING, FAILED};
use crate::house::{AUTO, EXCHANGES, Fault, House, start};
use crate::run::run;
use crate::{Launch, Start, StartedBy, watch};

fn by_people() -> String {
    format!("{AUTO}\n[task.retrain.judge]\nby = \"people\"\ncriteria = \"it is right\"\n")
}

/// What is said of a pair by who knows where the candidate sits.
fn said(pair: &Pair, candidate_is_better: bool, second: i64) -> PairVote {
    let choice = match (pair.candidate, candidate_is_better) {
        (Side::Left, true) | (Side::Right, false) => Choice::Left,
        _ => Choice::Right,
    };
    let marks = |mark: f64| Marks::from([("accuracy".to_owned(), mark)]);
    let (left, right) = match choice {
        Choice::Left => (marks(5.0), marks(2.0)),
        _ => (marks(2.0), marks(5.0)),
    };
    PairVote {
        at: Utc::now() + TimeDelta::seconds(second),
        by: Some("key-1".to_owned()),
        choice,
        left,
        right,
    }
}

async fn vote(house: &House, number: u32, count: usize, better: bool) {
    let ledger = &house.options.ledger;
    let pairs = ledger.pairs("ask", number).await.unwrap().unwrap();
    let voted = ledger.voted("ask", number).await.unwrap();
    let open = pairs.asked().filter(|pair| !voted.contains(&pair.id));
    for pair in open.take(count) {
        let said = said(pair, better, 0);
        // Whoever watches may have ended it meanwhile.
        assert_ne!(
            ledger.vote(&pairs, &pair.id, &said).await.unwrap(),
            retune_ledger::Voted::Late
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_waits_for_people_and_goes_on_by_their_votes() {
    let house = House::new(EXCHANGES, &by_people()).await;
    let ledger = &house.options.ledger;
    let (report, events) = house.run(&start()).await;
    let report = report.unwrap();
    assert_eq!((report.verdict, report.promoted), (Verdict::Wait, false));
    assert!(report.reasons[0].contains("wait for people"), "{report:?}");
    let waits = |event: &Event| matches!(event, Event::Waiting { voted: 0, .. });
    assert!(events.iter().any(waits));
    let row = house.row(&start()).await;
    assert_eq!((row.state.as_str(), row.verdict), (JUDGING, None));
    let task = &house.options.config.tasks[0];
    let pairs = ledger.pairs("ask", 1).await.unwrap().unwrap();
    assert_eq!(pairs.criteria.as_deref(), Some("it is right"));
    assert_eq!(pairs.asked().count(), pairs.pairs.len());

    // Neither does it ask again, nor end.
    let asked = house.asked("/v1/chat");
    vote(&house, 1, 3, true).await;
    let (again, _) = house.run(&start()).await;
    assert!(again.unwrap().reasons[0].contains(&format!("{} of", pairs.pairs.len() - 3)));
    assert_eq!(house.row(&start()).await.progress.unwrap().0, 3);
    let row = house.row(&start()).await;
    assert!(!is_settled(ledger, task, &row).await.unwrap());

    vote(&house, 1, 100, true).await;
    assert!(is_settled(ledger, task, &row).await.unwrap());
    let (report, _) = house.run(&start()).await;
    let report = report.unwrap();
    assert_eq!(
        (report.verdict, report.promoted),
        (Verdict::Promote, true),
        "{:?}",
        report.reasons
    );
    assert_eq!(house.asked("/v1/chat"), asked);
    assert_eq!(report.judge.as_deref(), Some("people"));
    let judging = report.judging.unwrap();
    // What came after the test had decided changes nothing.
    assert!(judging.voted < judging.asked, "{judging:?}");
    assert_eq!(report.wins, Some(judging.voted));
    assert_eq!(judging.rubric[0].candidate, 5.0);
    let row = house.row(&start()).await;
    assert_eq!((row.state.as_str(), row.promoted), (DONE, Some(true)));
    assert!(
        ledger
            .open_pairs("ask", Utc::now())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn people_who_like_it_less_reject_it() {
    let house = House::new(EXCHANGES, &by_people()).await;
    house.run(&start()).await.0.unwrap();
    vote(&house, 1, 100, false).await;
    let report = house.run(&start()).await.0.unwrap();
    assert_eq!((report.verdict, report.wins), (Verdict::Reject, Some(0)));
    let stages = house.options.ledger.stages("ask").await.unwrap();
    assert_eq!(stages.stage(1), Stage::Rejected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_costs_no_vote() {
    let house = House::new(EXCHANGES, &by_people()).await;
    house.run(&start()).await.0.unwrap();
    vote(&house, 1, 100, true).await;
    house.fail_once(Fault {
        path: "promote",
        done: false,
    });
    assert!(house.run(&start()).await.0.is_err());
    let row = house.row(&start()).await;
    assert_eq!(
        (row.state.as_str(), row.verdict.as_deref()),
        (FAILED, Some("promote"))
    );
    let asked = house.asked("/v1/chat");
    let report = house.run(&start()).await.0.unwrap();
    assert!(report.promoted);
    assert_eq!(house.asked("/v1/chat"), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watch_takes_it_up_once_people_have_decided() {
    let house = Arc::new(House::new(EXCHANGES, &by_people()).await);
    house.run(&start()).await.0.unwrap();
    let stop = CancellationToken::new();
    let watching = {
        let (house, stop) = (Arc::clone(&house), stop.clone());
        tokio::spawn(async move {
            let launcher = Arc::clone(&house);
            let launch = move |launch: &Launch| -> crate::Launched {
                let (house, launch) = (Arc::clone(&launcher), launch.clone());
                Box::pin(async move {
                    let Launch::Run(start) = launch else {
                        panic!("{launch:?}")
                    };
                    let done = run(&house.options, &start, &mut |_| {}).await;
                    Ok(ExitStatus::from_raw(i32::from(done.is_err())))
                })
            };
            watch(&house.options, launch, stop).await;
        })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(house.row(&start()).await.state, JUDGING);
    vote(&house, 1, 100, true).await;
    let promoted = async {
        while house.row(&start()).await.state != DONE {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), promoted)
        .await
        .unwrap();
    assert_eq!(house.row(&start()).await.promoted, Some(true));
    stop.cancel();
    watching.await.unwrap();
}

fn pairs(count: usize) -> Pairs {
    let pair = |n: usize| Pair {
        id: format!("pair-{n:03}"),
        request_id: format!("request-{n}"),
        left: Some(format!("left-{n}")),
        right: Some(format!("right-{n}")),
        candidate: if n.is_multiple_of(2) {
            Side::Left
        } else {
            Side::Right
        },
        format_valid: true,
        baseline_format_valid: true,
        parts: Vec::new(),
        judged: None,
        asked: true,
    };
    Pairs {
        task: "ask".to_owned(),
        number: 1,
        run_id: "run-1".to_owned(),
        judge: None,
        until: Utc::now(),
        criteria: None,
        pairs: (0..count).map(pair).collect(),
    }
}

proptest! {
    /// Whoever looks earlier sees a beginning of it, and who looks after the end sees the end.
    #[test]
    fn votes_after_the_decision_change_nothing(better in prop::collection::vec(any::<bool>(), 1..120), looks in prop::collection::vec(0..120_usize, 1..5)) {
        let pairs = pairs(better.len());
        let votes: Vec<(String, PairVote)> = pairs
            .pairs
            .iter()
            .zip(&better)
            .enumerate()
            .map(|(n, (pair, better))| (pair.id.clone(), said(pair, *better, n as i64)))
            .collect();
        let whole = Tally::of(&pairs, &votes, Figures::default());
        prop_assert_eq!(whole.marks.len(), whole.voted);
        for look in looks {
            let seen = &votes[..look.min(votes.len())];
            let mut turned = seen.to_vec();
            turned.reverse();
            let tally = Tally::of(&pairs, &turned, Figures::default());
            prop_assert_eq!(tally.voted, whole.voted.min(seen.len()));
            if tally.figures.told() != Told::Open {
                prop_assert_eq!(tally.figures, whole.figures);
                prop_assert_eq!(tally.votes, whole.votes.clone());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_killed_before_it_could_wait_asks_nobody_about_its_first_try() {
    let house = Arc::new(House::new(EXCHANGES, &by_people()).await);
    let killed = {
        let house = Arc::clone(&house);
        tokio::spawn(async move {
            let mut watch = |event: &Event| {
                let is_it = matches!(event, Event::State { state, .. } if *state == JUDGING);
                assert!(!is_it, "killed");
            };
            run(&house.options, &start(), &mut watch).await.is_ok()
        })
    };
    assert!(killed.await.unwrap_err().is_panic());
    let ledger = &house.options.ledger;
    assert!(ledger.pairs("ask", 1).await.unwrap().is_some());
    assert_eq!(house.row(&start()).await.state, EXAMINING);
    house.run(&start()).await.0.unwrap();
    let open = ledger.open_pairs("ask", Utc::now()).await.unwrap();
    let numbers: Vec<u32> = open.iter().map(|pairs| pairs.number).collect();
    assert_eq!(numbers, [2]);
    assert_eq!(house.row(&start()).await.state, JUDGING);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_s_run_ends_as_itself_whatever_fails() {
    let house = House::new(EXCHANGES, &by_people()).await;
    let of = |started_by| Start {
        task: "ask".to_owned(),
        started_by,
    };
    let waiting = house.run(&of(StartedBy::Person)).await.0.unwrap();
    vote(&house, 1, 100, true).await;
    house.fail_once(Fault {
        path: "promote",
        done: false,
    });
    let before = of(StartedBy::Before(waiting.run_id.clone()));
    assert!(house.run(&before).await.0.is_err());
    // Whoever asks next, it is this run that goes on, and a second one that was late finds it done.
    let done = house.run(&of(StartedBy::Person)).await.0.unwrap();
    assert_eq!((&done.run_id, done.promoted), (&waiting.run_id, true));
    let late = house.run(&before).await.0.unwrap();
    assert_eq!(late.run_id, waiting.run_id);
    assert_eq!(house.options.ledger.runs().await.unwrap().len(), 1);
    let none = of(StartedBy::Before("run-none".to_owned()));
    let error = house.run(&none).await.0.unwrap_err();
    assert!(error.to_string().contains("run-none"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_decides_meanwhile_ends_it() {
    let house = House::new(EXCHANGES, &by_people()).await;
    house.run(&start()).await.0.unwrap();
    vote(&house, 1, 2, true).await;
    let ledger = &house.options.ledger;
    let stages = ledger.stages("ask").await.unwrap();
    let rejected = stages.after("ask", Some(1), Action::Reject, &[]).unwrap();
    ledger
        .set_stages("ask", stages.seq, rejected)
        .await
        .unwrap();
    let task = &house.options.config.tasks[0];
    let row = house.row(&start()).await;
    assert!(is_settled(ledger, task, &row).await.unwrap());
    let report = house.run(&start()).await.0.unwrap();
    assert_eq!((report.verdict, report.promoted), (Verdict::Wait, false));
    assert!(report.reasons[0].contains("2 of"), "{:?}", report.reasons);
    assert_eq!(house.row(&start()).await.state, DONE);
    assert!(
        ledger
            .open_pairs("ask", Utc::now())
            .await
            .unwrap()
            .is_empty()
    );
}

#[test]
fn what_is_plain_counts_with_people_s_votes_and_not_before_them() {
    let mut pairs = pairs(120);
    for pair in &mut pairs.pairs[..20] {
        pair.asked = false;
        pair.judged = Some(match pair.candidate {
            Side::Left => Choice::Left,
            Side::Right => Choice::Right,
        });
    }
    let none = Tally::of(&pairs, &[], Figures::default());
    assert_eq!((none.figures.judged(), none.asked), (0, 100));
    // They like the baseline's as often.
    let votes: Vec<(String, PairVote)> = pairs
        .asked()
        .enumerate()
        .map(|(n, pair)| (pair.id.clone(), said(pair, n % 2 == 0, n as i64)))
        .collect();
    let some = Tally::of(&pairs, &votes[..10], Figures::default());
    assert_eq!(
        (some.voted, some.figures.wins, some.figures.losses),
        (10, 7, 5)
    );
    let whole = Tally::of(&pairs, &votes, Figures::default());
    assert!(whole.figures.told() != Told::Better, "{:?}", whole.figures);
}
