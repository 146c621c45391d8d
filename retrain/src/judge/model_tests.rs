//! Tests of the model as judge: what it is asked, how it is read, and that a place is no reason.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use super::*;
use crate::testing::{self, Reply, Request, StandIn, task};
use proptest::prelude::*;

fn row(n: usize, known_by: KnownBy) -> Row {
    Row {
        answer: "the expert's".to_owned(),
        ..testing::row(n, known_by)
    }
}

fn limits() -> Limits {
    Limits {
        retry: Duration::from_millis(1),
        ..Limits::default()
    }
}

fn model(url: &str, criteria: Option<&str>) -> Model {
    let model = JudgeModel {
        url: format!("{url}/v1"),
        model: "strong".to_owned(),
        api_key_env: None,
    };
    Model::new(&model, criteria, &limits()).unwrap()
}

fn said(content: &str) -> Reply {
    Reply::ok(
        json!({"choices": [{"message": {"content": content}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 10, "completion_tokens": 2}}),
    )
}

/// What the model was asked about.
fn asked(request: &Request) -> Value {
    let messages = request.body["messages"].as_array().unwrap();
    serde_json::from_str(messages[1]["content"].as_str().unwrap()).unwrap()
}

/// Prefers the longer answer, and marks by length.
fn longer(request: &Request) -> Reply {
    let question = asked(request);
    let length = |of: &str| question[of].as_str().unwrap().len();
    let (first, second) = (length("first"), length("second"));
    let better = match first.cmp(&second) {
        std::cmp::Ordering::Greater => "first",
        std::cmp::Ordering::Less => "second",
        std::cmp::Ordering::Equal => "tie",
    };
    let marks = |of: usize| json!({"accuracy": of.min(5), "style": 3, "charm": 9});
    let said_ = json!({"first": marks(first), "second": marks(second), "better": better});
    said(&format!("Let me see.\n```json\n{said_}\n```"))
}

#[tokio::test]
async fn each_pair_is_asked_about_in_both_orders() {
    let server = StandIn::start(|request| async move { longer(&request) }).await;
    let model = model(&server.url, Some("short sentences"));
    let rows = [
        row(0, KnownBy::Correction),
        row(1, KnownBy::Rating(5)),
        row(2, KnownBy::Correction),
    ];
    let pairs = vec![
        (&rows[0], "long", "so"),
        (&rows[1], "on", "here"),
        (&rows[2], "same", "same "),
    ];
    let mut done = Vec::new();
    let judged = model
        .judge(&task(), pairs, &mut |n| done.push(n))
        .await
        .unwrap();
    let choices: Vec<_> = judged.iter().map(|one| one.choice.unwrap()).collect();
    assert_eq!(choices, [Choice::Left, Choice::Right, Choice::Tie]);
    assert_eq!(done, [1, 2, 3]);
    assert_eq!(
        (judged[2].plain, judged[0].plain),
        (Some(Choice::Tie), None)
    );
    assert_eq!((judged[0].prompt_tokens, judged[2].prompt_tokens), (20, 0));
    let marks = |of: &[(&str, f64)]| -> Marks {
        of.iter()
            .map(|(of, mark)| ((*of).to_owned(), *mark))
            .collect()
    };
    assert_eq!(judged[0].left, marks(&[("accuracy", 4.0), ("style", 3.0)]));
    assert_eq!(judged[0].right, marks(&[("accuracy", 2.0), ("style", 3.0)]));

    let requests = server.requests.lock().unwrap();
    assert_eq!(requests.len(), 4);
    let mut orders: Vec<(String, bool)> = Vec::new();
    for request in requests.iter() {
        assert_eq!(request.body["temperature"], 0.0);
        let rules = request.body["messages"][0]["content"].as_str().unwrap();
        assert!(rules.contains("short sentences") && rules.contains("\"tie\""));
        let question = asked(request);
        assert_eq!(question["instructions"], "Answer with a JSON object.");
        let first = question["first"].as_str().unwrap().to_owned();
        orders.push((first, question["known"] == "the expert's"));
    }
    orders.sort();
    let wanted = [("here", false), ("long", true), ("on", false), ("so", true)];
    assert_eq!(
        orders,
        wanted.map(|(first, known)| (first.to_owned(), known))
    );
}

#[tokio::test]
async fn who_prefers_a_place_has_said_nothing() {
    let server =
        StandIn::start(|_| async { said(r#"{"first": {}, "second": {}, "better": "first"}"#) })
            .await;
    let row = row(0, KnownBy::Correction);
    let judged = model(&server.url, None)
        .judge(&task(), vec![(&row, "a", "b")], &mut |_| {})
        .await
        .unwrap();
    assert_eq!(judged[0].choice, Some(Choice::Tie));
    assert!(judged[0].swayed && !judged[0].unread);
}

#[tokio::test]
async fn what_cannot_be_read_is_asked_once_more_and_counts_as_a_tie() {
    let server = StandIn::start(|request| async move {
        // The first order is understood at the second time, the other never.
        let again = request.body["messages"].as_array().unwrap().len() > 2;
        match asked(&request)["first"] == "a" && again {
            true => said(r#"{"first": {}, "second": {}, "better": "first"}"#),
            false => said("both are nice"),
        }
    })
    .await;
    let row = row(0, KnownBy::Correction);
    let judged = model(&server.url, None)
        .judge(&task(), vec![(&row, "a", "b")], &mut |_| {})
        .await
        .unwrap();
    assert_eq!(judged[0].choice, Some(Choice::Tie));
    assert!(judged[0].unread && !judged[0].swayed);
    assert_eq!(judged[0].prompt_tokens, 40);
}

#[tokio::test]
async fn a_model_that_takes_no_temperature_is_asked_without() {
    let server = StandIn::start(|request| async move {
        match request.body.get("temperature") {
            Some(_) => Reply::error(400, "Unsupported value: 'temperature' does not support 0."),
            None => longer(&request),
        }
    })
    .await;
    let row = row(0, KnownBy::Correction);
    let judged = model(&server.url, None)
        .judge(&task(), vec![(&row, "ab", "b")], &mut |_| {})
        .await
        .unwrap();
    assert_eq!(judged[0].choice, Some(Choice::Left));
    assert_eq!(server.paths().len(), 3);
}

#[tokio::test]
async fn who_cannot_judge_is_known_before_anything_is_trained() {
    let server = StandIn::start(|request| async move { longer(&request) }).await;
    model(&server.url, None).tried().await.unwrap();
    let talker = StandIn::start(|_| async { said("What a lovely question!") }).await;
    let error = model(&talker.url, None).tried().await.unwrap_err();
    assert!(error.to_string().contains("cannot be read"), "{error}");
    assert_eq!(talker.paths().len(), 2);
}

#[tokio::test]
async fn a_judge_that_refuses_ends_the_examination() {
    let server = StandIn::start(|_| async { Reply::error(401, "no such key") }).await;
    let row = row(0, KnownBy::Correction);
    let error = model(&server.url, None)
        .judge(&task(), vec![(&row, "a", "b")], &mut |_| {})
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no such key"), "{error}");
}

#[test]
fn a_key_that_is_not_there_is_missed_at_once() {
    let wanted = JudgeModel {
        url: "http://127.0.0.1:1/v1".to_owned(),
        model: "m".to_owned(),
        api_key_env: Some("RETUNE_TEST_NO_SUCH_KEY".to_owned()),
    };
    let error = Model::new(&wanted, None, &limits()).err().unwrap();
    assert!(
        error.to_string().contains("RETUNE_TEST_NO_SUCH_KEY"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn no_text_breaks_out_of_the_question(first in ".{0,40}", second in "[\"}{,:a\\\\]{0,40}") {
        let question = question(&task(), &row(1, KnownBy::Rating(5)), &first, &second);
        let value: Value = serde_json::from_str(&question).unwrap();
        prop_assert_eq!(value["first"].as_str(), Some(first.as_str()));
        prop_assert_eq!(value["second"].as_str(), Some(second.as_str()));
        prop_assert_eq!(value.as_object().unwrap().len(), 4);
    }

    #[test]
    fn whatever_a_model_says_is_read_or_not(said in ".{0,80}") {
        let _ = read(&said);
    }

    #[test]
    fn marks_are_within_one_to_five(mark in -10.0..20.0_f64) {
        let marks = marks(&json!({"accuracy": mark, "style": "5"}));
        prop_assert_eq!(marks.len(), usize::from((1.0..=5.0).contains(&mark)));
    }
}
