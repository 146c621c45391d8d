//! Which rows are asked, how, and what the answers add up to.

#![allow(clippy::unwrap_used, reason = "tests")]

use retune_task::PromptKind;
use serde_json::json;

use super::*;
use crate::advise::{Advised, Measurement, choose::Unmeasured, prompts};
use crate::testing::{Reply, StandIn, asked, corrected, rated, task};

fn dataset(task: &Task, rows: u64) -> Dataset {
    let exchanges: Vec<_> = (0..rows)
        .map(|n| asked(n, &format!("what is thing {}", n * 37), &right(n)))
        .collect();
    let feedback: Vec<_> = (0..rows)
        .map(|n| match n % 4 {
            0 => rated(n, 1000, "ann", 4),
            1 => rated(n, 1000, "ann", 5),
            _ => corrected(n, 1000, "ann", &right(n)),
        })
        .collect();
    crate::dataset::build(task, &exchanges, &feedback)
}

fn right(n: u64) -> String {
    json!({ "is": n.to_string() }).to_string()
}

fn named(text: &str) -> NamedPrompt {
    NamedPrompt {
        name: "n".to_owned(),
        text: text.to_owned(),
    }
}

fn candidate(prompt: &str) -> Candidate {
    Candidate {
        base: "base".to_owned(),
        weight_bytes: Some(7),
        prompt: prompt.to_owned(),
    }
}

fn answer(content: &str) -> Answer {
    Answer {
        content: content.to_owned(),
        id: None,
        adapter: "ask@base".to_owned(),
        digest: None,
        prompt_tokens: 8,
        completion_tokens: 2,
        was_cut_off: false,
        seconds: 0.5,
    }
}

#[test]
fn held_out_rows_come_first_and_only_gold_ones() {
    let task = task();
    let dataset = dataset(&task, 400);
    let held_out = dataset.held_out.iter().filter(|row| row.is_gold()).count();
    let few = draw(&task, &dataset, &[], 10).unwrap();
    assert_eq!((few.rows.len(), few.held_out()), (10, 10));
    let many = draw(&task, &dataset, &[], 1000).unwrap();
    assert_eq!(many.held_out(), held_out);
    assert_eq!(many.rows.len(), 300, "a rating of 4 is not good enough");
    assert!(
        many.rows.starts_with(&few.rows),
        "a prefix of what more would be"
    );
    assert_eq!(many, draw(&task, &dataset, &[], 1000).unwrap());
}

#[test]
fn what_a_prompt_shows_is_not_asked() {
    let task = task();
    let dataset = dataset(&task, 400);
    let before = draw(&task, &dataset, &[], 20).unwrap();
    let first = &before.rows[0];
    let shown = format!(
        "Answer.\nUser: {}\nAssistant: x",
        first.messages[0].content.to_uppercase()
    );
    let after = draw(&task, &dataset, &[named(&shown)], 20).unwrap();
    assert_eq!(after.in_prompts, 1);
    assert!(
        after
            .rows
            .iter()
            .all(|row| row.request_id != first.request_id)
    );
    assert_eq!(after.rows.len(), 20);

    // A short question is shown where its answer is, too.
    let exchanges = [asked(1, "yes", "?")];
    let dataset = crate::dataset::build(&task, &exchanges, &[corrected(1, 9, "ann", &right(1))]);
    let with = |text: &str| draw(&task, &dataset, &[named(text)], 9);
    assert_eq!(with("Say yes or no.").unwrap().rows.len(), 1);
    let error = with("User: yes\nAssistant: {\"is\": \"1\"}")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("task `ask`") && error.contains("1 have one"),
        "{error}"
    );
    let error = draw(&task, &Dataset::default(), &[], 9)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("ledger import") && !error.contains("examples"),
        "{error}"
    );
}

#[test]
fn answers_are_counted_as_the_judge_and_the_format_see_them() {
    let task = task();
    let drawn = draw(&task, &dataset(&task, 400), &[], 4).unwrap();
    let yardstick = Yardstick {
        task: &task,
        engine: &EngineKind::Embedded,
        rows: &drawn.rows,
        good_enough: 0.4,
        close_enough: 1.0,
    };
    let known = |row: usize| drawn.rows[row].answer.clone();
    let mut too_long = answer("");
    (too_long.prompt_tokens, too_long.completion_tokens) = (0, 0);
    let answers = [
        answer(&known(0)),
        answer(&known(1).replace(':', " : ")),
        answer(r#"{"is":"else"}"#),
        too_long.clone(),
    ];
    let one = yardstick.count(candidate("long"), &answers).unwrap();
    assert_eq!((one.rows, one.right.count), (4, 2));
    assert_eq!(one.format_valid.unwrap().count, 3);
    assert_eq!(one.closeness, 0.5);
    assert_eq!(
        (one.prompt_tokens, one.completion_tokens, one.seconds),
        (8.0, 2.0, 0.5)
    );
    assert_eq!(one.right_by_row, [true, true, false, false]);
    assert!(!one.will_do, "two of four show no 40 %");
    let error = yardstick
        .count(candidate("long"), &vec![too_long; 4])
        .unwrap_err()
        .to_string();
    assert!(error.contains("base") && error.contains("long"), "{error}");
    assert!((yardstick.most_that_can_be_shown() - 0.05_f64.powf(0.25)).abs() < 1e-9);
}

/// From a server that knows the answers where its prompt is the long one, to the advice.
#[tokio::test]
async fn every_row_is_asked_as_an_app_would() {
    let task = task();
    let dataset = dataset(&task, 400);
    let prompts = prompts(&task, None).unwrap();
    let drawn = draw(&task, &dataset, &prompts, 40).unwrap();
    let yardstick = Yardstick {
        task: &task,
        engine: &EngineKind::Embedded,
        rows: &drawn.rows,
        good_enough: 0.9,
        close_enough: 1.0,
    };
    let server = StandIn::start(|request| async move {
        let asked = request.body["messages"][0]["content"].as_str().unwrap();
        let n: u64 = asked.rsplit(' ').next().unwrap().parse().unwrap();
        Reply::answer("ask@base", None, &right(n / 37))
    })
    .await;
    let mut told = Vec::new();
    let client = reqwest::Client::new();
    let measured = yardstick
        .measure(
            client.clone(),
            &server.url,
            candidate("current"),
            &mut |done| told.push(done),
        )
        .await
        .unwrap();
    assert_eq!(told, (1..=40).collect::<Vec<_>>());
    assert_eq!((measured.right.count, measured.will_do), (40, true));
    {
        let requests = server.requests.lock().unwrap();
        assert_eq!(requests.len(), 40);
        for (request, row) in requests.iter().zip(&drawn.rows) {
            assert_eq!(request.headers["retune-purpose"], "user");
            assert_eq!(request.body["model"], "ask@base");
            assert_eq!(request.body["messages"], json!(row.messages));
            assert!(request.body.get("user").is_none());
        }
    }
    let other = StandIn::start(|_| async { Reply::answer("ask@2", None, "x") }).await;
    let error = yardstick
        .measure(client, &other.url, candidate("current"), &mut |_| {})
        .await
        .unwrap_err();
    assert!(matches!(error, Error::WrongModel { .. }), "{error}");

    let failed = Unmeasured {
        candidate: candidate("other"),
        why: error.to_string(),
    };
    let measurement =
        Measurement::new(&yardstick, &drawn, &prompts, vec![measured], vec![failed]).unwrap();
    let (verdict, reasons) = super::super::verdict(&task.retrain, &Default::default());
    let advice = super::super::Advice {
        verdict,
        reasons,
        gap: Vec::new(),
        unread: None,
        measured: None,
    };
    assert_eq!(verdict, Advised::Collect);
    let json = serde_json::to_value(&advice).unwrap();
    assert!(json.get("candidates").is_none() && json.get("baseline").is_none());
    let json = serde_json::to_value(advice.clone().after(measurement.clone())).unwrap();
    assert_eq!(json["verdict"], "prompt");
    assert_eq!(json["reasons"][0]["wanted"], 0.9);
    assert_eq!(json["candidates"][0]["right"]["share"], 1.0);
    assert_eq!(json["candidates"][0]["base"], "base");
    assert_eq!(json["unmeasured"][0]["prompt"], "other");
    assert_eq!(json["baseline"]["prompt"], "current");
    let text = &task.messages(PromptKind::Full, &[])[0].content;
    assert_eq!(json["baseline"]["text"], json!(text));

    let mut short = measurement;
    short.baseline.will_do = false;
    let stays = advice.clone().after(short);
    assert_eq!(stays.verdict, Advised::Collect);
    assert_eq!(stays.reasons.len(), advice.reasons.len() + 1);
}
