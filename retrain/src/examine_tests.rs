//! Tests of `examine`: which prompts, who is asked, what is counted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use retune_task::{JudgedBy, RetrainPolicy, Side, Split, Task};

use super::{Asking, Contest, Examined, Voted, choose, count, draw, pairs};
use crate::dataset::{Dataset, KnownBy, Row};
use crate::judge::Judge;
use crate::server::{Answer, Question, Server};
use crate::testing::{self, Reply, Request, StandIn, task};
use crate::verdict::Figures;
use crate::{Error, Limits};

fn row(n: usize, split: Split, known_by: KnownBy) -> Row {
    Row {
        split,
        ..testing::row(n, known_by)
    }
}

fn rows(numbers: std::ops::Range<usize>, split: Split) -> Vec<Row> {
    numbers
        .map(|n| row(n, split, KnownBy::Correction))
        .collect()
}

fn names(list: &[Row]) -> Vec<&str> {
    list.iter().map(|row| row.request_id.as_str()).collect()
}

fn policy(max_pairs: usize) -> RetrainPolicy {
    RetrainPolicy {
        max_pairs,
        ..task().retrain.clone()
    }
}

/// By the known answers.
async fn judged(task: &Task, examined: &[Examined]) -> (Figures, Vec<Voted>) {
    let judge = Judge::of(&task.retrain.judge, &limits()).unwrap();
    let judged = judge.judge(task, "run-1", examined, |_| {}).await.unwrap();
    let pairs = pairs(task, &contest(), examined, &judged);
    let votes = pairs
        .iter()
        .map(|pair| Voted::of(pair, pair.judged.unwrap()));
    (count(task, "run-1", examined, &judged), votes.collect())
}

#[test]
fn held_out_rows_come_first_and_later_ones_fill_up() {
    let dataset = Dataset {
        train: rows(0..50, Split::Train),
        development: rows(50..55, Split::Development),
        held_out: rows(55..57, Split::HeldOut)
            .into_iter()
            .chain([row(57, Split::HeldOut, KnownBy::Rating(4))])
            .collect(),
        ..Dataset::default()
    };
    // Later: conversations that were trained on, chose the checkpoint, are held out already; new ones; one not good enough.
    let later = Dataset {
        train: [
            row(3, Split::Train, KnownBy::Correction),
            row(51, Split::Train, KnownBy::Correction),
        ]
        .into_iter()
        .chain(rows(100..102, Split::Train))
        .collect(),
        development: vec![row(98, Split::Development, KnownBy::Rating(5))],
        held_out: vec![
            row(55, Split::HeldOut, KnownBy::Correction),
            row(99, Split::HeldOut, KnownBy::Rating(4)),
        ],
        ..Dataset::default()
    };
    assert_eq!(
        names(&choose(&policy(4), &dataset, &later)),
        ["request-55", "request-56", "request-98", "request-100"]
    );
    assert_eq!(
        names(&choose(&policy(1), &dataset, &later)),
        ["request-56"],
        "the newest that is held out"
    );
    assert_eq!(
        choose(&policy(50), &dataset, &later).len(),
        5,
        "no more than there are"
    );
    // Who needs no known answer to judge by takes what may be trained on.
    let mut by_people = policy(50);
    by_people.judge.by = JudgedBy::People;
    assert_eq!(choose(&by_people, &dataset, &later).len(), 7);
}

#[test]
fn the_newest_held_out_rows_where_there_are_too_many() {
    let dataset = Dataset {
        held_out: rows(0..1000, Split::HeldOut),
        ..Dataset::default()
    };
    let list = choose(&policy(400), &dataset, &Dataset::default());
    assert_eq!(
        (list.len(), list[0].request_id.as_str()),
        (400, "request-600")
    );
}

#[test]
fn the_order_is_by_lot_and_the_run_s_own() {
    let drawn = |run_id: &str| {
        let mut list = rows(0..50, Split::HeldOut);
        draw(run_id, &mut list);
        names(&list).join(" ")
    };
    let in_time = names(&rows(0..50, Split::HeldOut)).join(" ");
    assert_eq!(drawn("run-1"), drawn("run-1"));
    assert_ne!(drawn("run-1"), drawn("run-2"));
    assert_ne!(drawn("run-1"), in_time);
}

fn contest() -> Contest {
    Contest {
        run_id: "run-1".to_owned(),
        candidate: "ask@1".to_owned(),
        digest: "d1".to_owned(),
        baseline: "ask@base".to_owned(),
    }
}

fn limits() -> Limits {
    Limits {
        retry: Duration::from_millis(2),
        ..Limits::default()
    }
}

/// The candidate knows the answers, the baseline does not.
fn answer(request: &Request) -> Reply {
    let model = request.body["model"].as_str().unwrap();
    let prompt = request.body["messages"][0]["content"].as_str().unwrap();
    let n = prompt.strip_prefix("prompt ").unwrap();
    match model {
        "ask@1" => Reply::answer(model, Some("d1"), &format!(r#"{{"is":"{n}"}}"#)),
        _ => Reply::answer(model, None, "I do not know"),
    }
}

async fn examined(server: &StandIn, list: &[Row]) -> Result<Vec<Examined>, Error> {
    let server = Server::new(reqwest::Client::new(), &server.url, &limits());
    let mut asking = Asking::start(&server, &contest(), list.iter().map(Question::from));
    let mut last = 0;
    while let Some(done) = asking.next().await? {
        assert_eq!(done, last + 1);
        last = done;
    }
    Ok(Examined::all(list, asking.finish()).collect())
}

#[tokio::test]
async fn both_are_asked_for_every_prompt_as_an_examination_at_temperature_zero() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (running_, most_) = (Arc::clone(&running), Arc::clone(&most));
    let server = StandIn::start(move |request| {
        let (running, most) = (Arc::clone(&running_), Arc::clone(&most_));
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(5)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            answer(&request)
        }
    })
    .await;
    let list = rows(0..20, Split::HeldOut);
    let examined = examined(&server, &list).await.unwrap();
    assert_eq!(
        examined
            .iter()
            .map(|pair| pair.row.clone())
            .collect::<Vec<_>>(),
        list,
        "in the list's order"
    );
    assert!(
        examined
            .iter()
            .all(|pair| pair.candidate.content == pair.row.answer
                && pair.baseline.content == "I do not know")
    );
    assert!(
        (2..=super::CONCURRENCY).contains(&most.load(Ordering::SeqCst)),
        "{most:?} at once"
    );
    let requests = server.requests.lock().unwrap().clone();
    assert_eq!(requests.len(), 40);
    for request in requests.iter() {
        assert_eq!(request.path, "/v1/chat/completions");
        assert_eq!(request.headers["retune-purpose"], "examination");
        assert_eq!(request.headers["retune-run"], "run-1");
        assert_eq!(request.body["temperature"], 0);
    }

    let task = task();
    let (figures, votes) = judged(&task, &examined).await;
    assert_eq!((figures.wins, figures.losses, figures.ties), (20, 0, 0));
    assert_eq!((figures.format.candidate, figures.format.baseline), (20, 0));
    assert!(
        votes.iter().any(|vote| vote.seat == Side::Left)
            && votes.iter().any(|vote| vote.seat == Side::Right)
    );
}

#[tokio::test]
async fn a_server_that_is_busy_is_asked_again() {
    let calls = AtomicUsize::new(0);
    let server = StandIn::start(move |request| {
        let reply = match calls.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::error(429, "too many"),
            1 => Reply {
                headers: vec![("retry-after", "0".to_owned())],
                ..Reply::error(503, "loading")
            },
            _ => answer(&request),
        };
        async move { reply }
    })
    .await;
    assert_eq!(
        examined(&server, &rows(0..1, Split::HeldOut))
            .await
            .unwrap()
            .len(),
        1
    );
    assert_eq!(server.paths().len(), 4);
}

#[tokio::test]
async fn an_error_ends_the_examination_with_the_servers_words() {
    let server = StandIn::start(async |_| Reply::error(500, "the engine fell over")).await;
    let error = examined(&server, &rows(0..8, Split::HeldOut))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("500") && error.contains("the engine fell over"),
        "{error}"
    );
}

#[tokio::test]
async fn another_model_than_the_candidate_is_no_examination() {
    for (adapter, digest) in [("ask@2", "d1"), ("ask@1", "d2")] {
        let server =
            StandIn::start(async move |_| Reply::answer(adapter, Some(digest), "{}")).await;
        let error = examined(&server, &rows(0..1, Split::HeldOut))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::WrongModel { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_is_an_empty_answer() {
    let server = StandIn::start(async |request: Request| match request.body["model"].as_str() {
        Some("ask@1") => answer(&request),
        _ => {
            let error = serde_json::json!({"message": "too long", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"});
            Reply { status: 400, headers: Vec::new(), body: serde_json::json!({ "error": error }) }
        }
    })
    .await;
    let examined = examined(&server, &rows(0..1, Split::HeldOut))
        .await
        .unwrap();
    assert_eq!(
        (
            examined[0].baseline.content.as_str(),
            judged(&task(), &examined).await.0.wins
        ),
        ("", 1)
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let gone = StandIn::start(async |_| Reply::error(500, ""))
        .await
        .url
        .clone();
    let server = Server::new(
        reqwest::Client::new(),
        &gone,
        &Limits {
            retry: Duration::from_micros(10),
            ..Limits::default()
        },
    );
    let error = server.load("ask@1").await.unwrap_err().to_string();
    assert!(error.contains(&gone), "{error}");
}

#[tokio::test]
async fn counting_is_fair_to_both() {
    let answer = |content: &str| Answer {
        was_cut_off: false,
        seconds: 0.1,
        content: content.to_owned(),
        id: None,
        adapter: String::new(),
        digest: None,
        prompt_tokens: 1,
        completion_tokens: 1,
    };
    let texts = [r#"{"is":"0"}"#, r#"{"is":"1"}"#, "no json", "{}"];
    let examined: Vec<Examined> = (0..40)
        .map(|n| Examined {
            row: row(n % 2, Split::HeldOut, KnownBy::Correction),
            candidate: answer(texts[n % 4]),
            baseline: answer(texts[n / 4 % 4]),
        })
        .collect();
    let swapped: Vec<Examined> = examined
        .iter()
        .map(|pair| Examined {
            row: pair.row.clone(),
            candidate: pair.baseline.clone(),
            baseline: pair.candidate.clone(),
        })
        .collect();
    let (there, back) = (
        judged(&task(), &examined).await.0,
        judged(&task(), &swapped).await.0,
    );
    assert_eq!(
        (there.wins, there.losses, there.ties),
        (back.losses, back.wins, back.ties)
    );
    assert_eq!(
        (there.format.gained, there.format.lost),
        (back.format.lost, back.format.gained)
    );
    assert_eq!(there.examined(), 40);
}
