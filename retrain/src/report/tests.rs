//! Tests of the pages, and of reports that were written before there was something to say.

#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use super::Report;
use crate::cost::{Corrections, Counted, Side, cost};
use crate::regression::{Lost, Regression};
use crate::slices::Slice;
use crate::testing::time;
use crate::verdict::Paired;

/// A report as it was before there were slices and suites.
fn old() -> Value {
    let paired = json!({"prompts": 150, "candidate": 150, "baseline": 150, "gained": 0, "lost": 0});
    json!({
        "run_id": "run-1", "task": "ask", "started_by": "person", "started": "2026-03-01T00:00:00Z", "finished": "2026-03-01T01:00:00Z",
        "adapter": "ask@1", "digest": "d1", "baseline": "ask@base", "exchanges_version": 3, "feedback_version": 4,
        "dataset": {
            "exchanges": 1000, "not_user": 0, "failed": 0, "no_text": 0, "unrated": 0, "rated_low": 0, "no_answer": 0, "format_invalid": {},
            "older_in_conversation": 0, "same_text": 0, "kept_corrections": 500, "kept_ratings": 500,
        },
        "examples_train": 700, "examples_development": 100, "examples_held_out": 150, "examples_too_long": 0, "loss_first": 3.0,
        "loss_last": 1.0, "chosen_epoch": 1, "training_steps": 10, "training_tokens": 1000, "training_seconds": 1.0,
        "curve": [{"step": 10, "epoch": 1, "train_loss": 1.0, "held_out_loss": 1.0}],
        "examples_examined": 150, "examination_seconds": 2.0, "votes": 120, "wins": 100, "ties": 30, "p_value": 0.001,
        "figures": {"wins": 100, "losses": 20, "ties": 30, "format": paired, "length": paired},
        "judge": "known-answer", "prompt_tokens": 7.0, "prompt_tokens_baseline": 9.0, "verdict": "promote", "reasons": ["better"],
        "promoted": true, "won": [], "lost": [], "examined": [],
    })
}

#[test]
fn an_old_report_is_read_and_says_nothing_of_what_it_did_not_ask() {
    let report: Report = serde_json::from_value(old()).unwrap();
    assert!(report.slices.is_empty() && report.regression.is_none());
    for page in [report.markdown(), report.html().unwrap()] {
        assert!(page.contains("ask@1"));
        assert!(
            !page.contains("Regression suite") && !page.contains("By parts"),
            "{page}"
        );
    }
}

#[test]
fn what_an_exchange_costs_is_told_by_kind_on_both_pages() {
    let mut report: Report = serde_json::from_value(old()).unwrap();
    report.corrections = Corrections {
        exchanges: 900,
        corrected: 90,
    };
    let side = |wrong| Side {
        invalid: wrong,
        wrong,
        ..Side::default()
    };
    let counted = Counted {
        candidate: side(0.25),
        baseline: side(0.5),
        corrections: report.corrections,
        ..Counted::default()
    };
    let prices = retune_task::Prices {
        currency: "E<U>R".to_owned(),
        edit: 0.5,
        ..Default::default()
    };
    report.cost = Some(Box::new(cost(&prices, &counted, time(0))));
    for (page, cells) in [
        (
            report.markdown(),
            [
                "| 25.0000 (50 times) | 50.0000 (100 times) |",
                "exchanges, E U R",
            ],
        ),
        (
            report.html().unwrap(),
            [
                "<td>25.0000 (50 times)</td><td>50.0000 (100 times)</td>",
                "E&#60;U&#62;R",
            ],
        ),
    ] {
        let said =
            "People corrected 90 of the 900 exchanges of ask@base that the dataset was read from.";
        for part in cells.into_iter().chain([said]) {
            assert!(page.contains(part), "{part} in {page}");
        }
    }
}

#[test]
fn parts_and_suite_are_on_both_pages_and_whatever_stands_in_them_is_text() {
    let mut report: Report = serde_json::from_value(old()).unwrap();
    let script = || "<script>alert(1)</script>".to_owned();
    let paired = |candidate| Paired {
        prompts: 40,
        candidate,
        baseline: 39,
        gained: 0,
        lost: 39 - candidate,
    };
    let slice = |value: &str, votes_worse| Slice {
        by: "team".to_owned(),
        value: value.to_owned(),
        wins: 1,
        losses: 22,
        ties: 3,
        format: paired(38),
        votes_worse,
        format_worse: false,
    };
    report.slices = vec![slice("billing", false), slice(&script(), true)];
    report.regression = Some(Regression {
        own: true,
        suite: paired(12),
        slices: [("copying".to_owned(), paired(37))].into(),
        lost: vec![Lost {
            name: "copy words".to_owned(),
            prompt: script(),
            check: script(),
            candidate: script(),
            baseline: "line one\nline two".to_owned(),
        }],
    });
    let (text, page) = (report.markdown(), report.html().unwrap());
    for part in [
        "By parts of the traffic",
        "team = billing",
        "1 / 22 / 3",
        "38 of 40",
        "12 of 40",
        "copying",
        "37 of 40",
        "copy words",
        "line two",
    ] {
        assert!(text.contains(part), "{part} in {text}");
        assert!(page.contains(part), "{part} in {page}");
    }
    assert!(
        text.contains("| 1 / 22 / 3 | 38 of 40 | 39 of 40 | worse |"),
        "{text}"
    );
    assert_eq!(page.matches(">worse<").count(), 2, "{page}");
    assert!(
        !page.contains("<script") && page.contains("alert(1)"),
        "{page}"
    );
    let again: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(again, report);
}
