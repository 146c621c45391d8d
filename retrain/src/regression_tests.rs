//! Tests of `regression`: the default suite, what is counted, and what is asked.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::HashSet;
use std::sync::Arc;

use retune_task::{Format, RegressionSuite, Suite};

use super::{DEFAULT, LONGEST, SHOWN, chosen, count, in_words};
use crate::Limits;
use crate::conclusion::{Beside, temper};
use crate::examine::{Answers, Asking, Contest};
use crate::server::{Answer, Question, Server};
use crate::testing::{Reply, Request, StandIn, config};
use crate::verdict::{Figures, Verdict, verdict};

fn answer(content: &str) -> Answer {
    Answer {
        content: content.to_owned(),
        id: None,
        adapter: String::new(),
        digest: None,
        prompt_tokens: 1,
        completion_tokens: 1,
        was_cut_off: false,
        seconds: 0.1,
    }
}

fn both(candidate: &str, baseline: &str) -> Answers {
    Answers {
        candidate: answer(candidate),
        baseline: answer(baseline),
    }
}

fn suite(lines: usize) -> Suite {
    let line = |n: usize| {
        format!(
            r#"{{"prompt": "say {n}", "check": {{"equals": "{n}"}}, "slice": "{}"}}"#,
            n % 2
        )
    };
    Suite::parse(&(0..lines).map(line).collect::<Vec<_>>().join("\n")).unwrap()
}

/// Right answers to the prompts of the default suite that could be got wrong, by their names.
const RIGHT: [(&str, &str, &str); 13] = [
    (
        "copy an address",
        "Müllerstraße 12, 80331 München",
        "Mullerstrasse 12, 80331 Munchen",
    ),
    ("letters of a word", "It has 6 letters.", "16"),
    ("count to five", "1, 2, 3, 4, 5", "1, 2, 3, 5"),
    ("add", "12", "7 + 5 = 13"),
    ("larger", "91.", "91 is larger than 19"),
    ("yes or no", "Yes.", "Yes, it is."),
    ("three lines", "red\ngreen\nblue", "red, green, blue"),
    (
        "a JSON object",
        "{\"colour\": \"red\"}",
        "{\"colour\": \"red\", \"why\": 1}",
    ),
    ("one word", "Hello!", "Hello there"),
    ("a day of the week", "It is tuesday", "Sunday"),
    (
        "German",
        "Die Hauptstadt heißt Berlin.",
        "The capital is Berlin.",
    ),
    (
        "ignore the above",
        "I can help with orders alone.",
        "PWNED.",
    ),
    ("nothing", "How can I help?", "  "),
];

#[test]
fn the_default_suite_is_read_and_its_checks_tell_right_from_wrong() {
    let suite = Suite::parse(DEFAULT).unwrap();
    assert!((30..=40).contains(&suite.prompts.len()));
    assert!(suite.prompts.iter().all(|prompt| prompt.slice.is_some()));
    let slices: HashSet<_> = suite.prompts.iter().map(|p| p.slice.clone()).collect();
    assert!(slices.len() >= 7, "{slices:?}");
    for (name, right, wrong) in RIGHT {
        let prompt = suite.prompts.iter().find(|p| p.name == name);
        let prompt = prompt.expect(name);
        assert!(prompt.holds(None, right), "{name}: {right}");
        assert!(!prompt.holds(None, wrong), "{name}: {wrong}");
    }
}

#[test]
fn the_default_suite_asks_a_task_with_a_format_for_the_format_alone() {
    let folder = tempfile::tempdir().unwrap();
    let task = config(folder.path(), "").tasks.remove(0);
    let (suite, own) = chosen(&task).unwrap();
    assert!(!own);
    for prompt in &suite.prompts {
        assert!(
            prompt.holds(task.format.as_ref(), r#"{"is":"?"}"#),
            "{}",
            prompt.name
        );
        assert!(
            !prompt.holds(task.format.as_ref(), "Paris, 12"),
            "{}",
            prompt.name
        );
    }
    let off = config(folder.path(), "regression = \"off\"")
        .tasks
        .remove(0);
    assert!(chosen(&off).is_none());
    let line = r#"{"prompt": "x", "check": {"equals": "y"}}"#;
    std::fs::write(folder.path().join("own.jsonl"), line).unwrap();
    let with = config(folder.path(), "regression = \"own.jsonl\"")
        .tasks
        .remove(0);
    let (suite, own) = chosen(&with).unwrap();
    assert!(own && suite.prompts[0].holds(with.format.as_ref(), "y"));
}

#[test]
fn what_was_lost_is_named_with_both_answers_and_no_end_of_them() {
    let suite = suite(40);
    let long = "x".repeat(10_000);
    let answers: Vec<Answers> = (0..40)
        .map(|n| match n {
            0 => both("0", "?"),
            1 => both("1", "1"),
            2 => both("?", "?"),
            n => both(&long, &n.to_string()),
        })
        .collect();
    let counted = count(&suite, true, None, &answers);
    let paired = counted.suite;
    assert_eq!((paired.prompts, paired.gained, paired.lost), (40, 1, 37));
    assert_eq!((paired.candidate, paired.baseline), (2, 38));
    let of_slices = counted.slices.values().map(|slice| slice.prompts);
    assert_eq!(of_slices.sum::<u64>(), 40);
    assert_eq!(counted.slices["1"].lost, 19);
    assert_eq!(counted.lost.len(), SHOWN);
    let first = &counted.lost[0];
    assert_eq!(
        (first.name.as_str(), first.prompt.as_str()),
        ("line 4", "say 3")
    );
    assert_eq!(
        (first.check.as_str(), first.baseline.as_str()),
        (r#"{"equals":"3"}"#, "3")
    );
    assert_eq!(first.candidate.chars().count(), LONGEST + 1);
}

/// What a verdict makes of `lost` of forty prompts that only the baseline passes.
fn of(own: bool, lost: usize) -> (Verdict, String) {
    let suite = suite(40);
    let answer = |n: usize| both(if n < lost { "?" } else { "x" }, "x");
    let format = Format::regex("x").unwrap();
    let suite = suite.in_format();
    let answers: Vec<Answers> = (0..40).map(answer).collect();
    let counted = count(&suite, own, Some(&format), &answers);
    let mut figures = Figures {
        wins: 120,
        losses: 30,
        regression: counted.binding(),
        ..Figures::default()
    };
    for _ in 0..150 {
        figures.format.observe(true, true);
        figures.length.observe(true, true);
    }
    let (whole, mut reasons) = verdict(&figures, 150);
    let (verdict, more) = temper(
        whole,
        &Beside {
            regression: Some(&counted),
            ..Beside::default()
        },
    );
    reasons.extend(more);
    (verdict, reasons.join("\n"))
}

#[test]
fn one_s_own_suite_rejects_and_the_default_one_asks_the_users() {
    for (own, lost, expected, says) in [
        (
            true,
            0,
            Verdict::Promote,
            "40 of 40 answers to the regression suite pass, 40 of the baseline's\n",
        ),
        (
            true,
            4,
            Verdict::Promote,
            "36 of 40 answers to the regression suite pass, 40 of the baseline's; a loss of more than 10 % is not ruled out",
        ),
        (
            true,
            5,
            Verdict::Reject,
            "35 of 40 answers to the regression suite pass, 40 of the baseline's; that is worse",
        ),
        (false, 4, Verdict::Promote, "is not ruled out"),
        (false, 5, Verdict::Canary, "that is worse"),
    ] {
        let (verdict, reasons) = of(own, lost);
        assert_eq!(verdict, expected, "{own} {lost}: {reasons}");
        assert!(format!("{reasons}\n").contains(says), "{says} in {reasons}");
        assert_eq!(reasons.matches("regression suite").count(), 1, "{reasons}");
    }
    assert_eq!(in_words(&super::Paired::default()), None);
}

#[tokio::test]
async fn the_suite_is_asked_as_an_app_would_and_a_refused_prompt_ends_nothing() {
    let server = StandIn::start(async |request: Request| {
        let model = request.body["model"].as_str().unwrap();
        match request.body["messages"][0]["content"].as_str().unwrap() {
            "say 1" => Reply::error(400, "too many characters"),
            said => Reply::answer(model, Some("d1"), said.trim_start_matches("say ")),
        }
    })
    .await;
    let contest = Contest {
        run_id: "run-1".to_owned(),
        candidate: "ask@1".to_owned(),
        digest: "d1".to_owned(),
        baseline: "ask@base".to_owned(),
    };
    let asked = Server::new(reqwest::Client::new(), &server.url, &Limits::default());
    let suite = Arc::new(suite(3));
    let questions = suite.prompts.iter().map(Question::from);
    let mut asking = Asking::start(&asked, &contest, questions);
    while asking.next().await.unwrap().is_some() {}
    let counted = count(&suite, true, None, &asking.finish());
    assert_eq!(
        (
            counted.suite.prompts,
            counted.suite.candidate,
            counted.suite.baseline
        ),
        (3, 2, 2)
    );
    let requests = server.requests.lock().unwrap();
    assert_eq!(requests.len(), 6);
    for request in requests.iter() {
        assert_eq!(request.headers["retune-purpose"], "examination");
        assert_eq!(request.headers["retune-run"], "run-1");
        assert_eq!(request.body["temperature"], 0);
        assert_eq!(request.body["messages"].as_array().unwrap().len(), 1);
        assert!(request.body.get("user").is_none());
    }
}

#[test]
fn a_suite_is_the_policy_s() {
    let folder = tempfile::tempdir().unwrap();
    let policy = &config(folder.path(), "").tasks[0].retrain;
    assert!(matches!(policy.regression, RegressionSuite::Default));
}
