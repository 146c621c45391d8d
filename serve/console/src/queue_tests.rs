//! The order in which answers are shown to raters.
#![allow(clippy::unwrap_used, reason = "tests")]

use chrono::DateTime;
use retune_ledger::Purpose;
use retune_task::ChatMessage;
use serde_json::json;

use super::*;

fn exchange(n: usize, prompt: &str) -> Exchange {
    let row = json!({
        "request_id": format!("r{n}"), "replica": "a", "seq": n, "ts": "2026-11-24T12:00:00Z", "purpose": "user", "task": "ask",
        "model_requested": "ask", "base": "pocket", "conversation": format!("c{n}"), "prompt_tokens": 1, "completion_tokens": 1,
        "duration_ms": 1.0, "parameters": {}, "code": 200,
    });
    let row: Exchange = serde_json::from_value(row).unwrap();
    assert_eq!(row.purpose, Purpose::User);
    Exchange {
        messages: Some(vec![ChatMessage::new("user", prompt)]),
        answer: Some("here".to_owned()),
        ..row
    }
}

fn said(n: usize, rater: &str, rating: Option<u8>) -> Feedback {
    let id = format!("f{n}{rater}");
    Feedback {
        ts: DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
        rating,
        ..Feedback::taking_back(id, &format!("r{n}"), None, Some(rater.to_owned()))
    }
}

fn ids(waiting: &[Waiting]) -> Vec<&str> {
    waiting.iter().map(|one| one.request_id.as_str()).collect()
}

#[test]
fn what_teaches_most_comes_first_and_what_is_judged_not_at_all() {
    let mut rows: Vec<Exchange> = (0..8).map(|n| exchange(n, "where is it")).collect();
    rows[1].format_valid = Some(false);
    rows[5].stage = Some("canary".to_owned());
    let corrected = Feedback {
        correction: Some("so".to_owned()),
        ..said(6, "ann", None)
    };
    let feedback = [
        said(2, "ann", Some(5)),
        said(3, "app", Some(1)),
        said(4, "ann", Some(5)),
        said(4, "ben", Some(1)),
        corrected,
        // Ann has thought again.
        said(7, "ann", Some(1)),
        said(7, "ann", Some(5)),
    ];
    rows.push(exchange(8, "where is it"));
    rows[8].purpose = Purpose::Synthetic;
    let named = HashSet::from(["r0".to_owned()]);
    let waiting = rank(&rows, &feedback, &named, 4);
    assert_eq!(ids(&waiting), ["r0", "r4", "r1", "r3", "r5", "r8"]);
    assert_eq!(waiting[3].why, [Why::Uncorrected]);
}

#[test]
fn what_is_asked_in_other_words_is_worth_more() {
    let mut rows: Vec<Exchange> = (0..30)
        .map(|n| exchange(n, "where is my parcel number 7"))
        .collect();
    rows.push(exchange(30, "please cancel the whole subscription"));
    rows.push(exchange(31, "where is my parcel"));
    let few: Vec<Feedback> = (0..19).map(|n| said(n, "ann", Some(5))).collect();
    let by_reason = |feedback: &[Feedback]| -> Vec<String> {
        let waiting = rank(&rows, feedback, &HashSet::new(), 4);
        let unlike = waiting.iter().filter(|one| one.why == [Why::Unlike]);
        unlike.map(|one| one.request_id.clone()).collect()
    };
    assert!(by_reason(&few).is_empty());
    let enough: Vec<Feedback> = (0..20).map(|n| said(n, "ann", Some(5))).collect();
    assert_eq!(by_reason(&enough), ["r30"]);
}

#[test]
fn each_rater_has_an_order_of_their_own_among_equals() {
    let rows: Vec<Exchange> = (0..50).map(|n| exchange(n, "where")).collect();
    let waiting = rank(&rows, &[], &HashSet::new(), 4);
    let walk = |rater: &str| {
        let mut over: Vec<String> = Vec::new();
        while let Some(one) = next(&waiting, rater, |id| over.iter().any(|done| done == id)) {
            over.push(one.request_id.clone());
        }
        over
    };
    let (ann, ben) = (walk("ann"), walk("ben"));
    assert_eq!(ann.len(), 50);
    assert_ne!(ann, ben);
    assert_eq!(ann, walk("ann"));
    assert!(ann.iter().collect::<HashSet<_>>() == ben.iter().collect::<HashSet<_>>());
}
