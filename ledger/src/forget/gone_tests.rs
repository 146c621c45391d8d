//! What is to go and what stays, row by row and report by report.
#![allow(clippy::unwrap_used, reason = "tests")]

use chrono::TimeZone;
use serde_json::Map;

use super::*;

const SECRET: [u8; 32] = [7; 32];

fn at(day: u32, hour: u32) -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 3, day, hour, 0, 0).unwrap()
}

/// Of a user who is to go until noon of the second of March, with one exchange besides.
fn gone() -> Gone {
    Gone {
        secret: SECRET,
        users: [(user_key(&SECRET, "ann"), at(2, 12))].into(),
        exchanges: ["known".to_owned()].into(),
        conversations: ["hers".to_owned()].into(),
        before: None,
    }
}

fn batch(table: Table, rows: &[Value]) -> RecordBatch {
    let rows: Vec<Map<String, Value>> = rows
        .iter()
        .map(|row| row.as_object().unwrap().clone())
        .collect();
    table.batch(&rows).unwrap()
}

fn left(gone: &Gone, table: Table, rows: &[Value], column: &str) -> Option<Vec<String>> {
    let left = gone.clean(table, &batch(table, rows)).unwrap()?;
    let column = text(&left, column).unwrap();
    Some(column.iter().flatten().map(str::to_owned).collect())
}

#[test]
fn of_exchanges_go_the_user_s_until_then_and_what_asked_them_again() {
    let row = |id: &str,
               user: Option<&str>,
               purpose: &str,
               conversation: &str,
               ts: DateTime<Utc>| {
        json!({"request_id": id, "user": user, "purpose": purpose, "conversation": conversation, "ts": ts})
    };
    let rows = [
        row("hers", Some("ann"), "user", "hers", at(2, 12)),
        row("hers, later", Some("ann"), "user", "new", at(2, 13)),
        row("another's", Some("anne"), "user", "hers", at(1, 0)),
        row("nobody's", None, "user", "hers", at(1, 0)),
        json!({"request_id": "under way", "user": "ann", "purpose": "user", "conversation": "x", "ts": at(2, 13), "duration_ms": 3.7e6}),
        row("known", None, "user", "other", at(9, 0)),
        row("asked again", None, "examination", "hers", at(9, 0)),
        row(
            "asked again in her name",
            Some("ann"),
            "examination",
            "x",
            at(3, 11),
        ),
        row("long after", Some("ann"), "probe", "x", at(3, 13)),
        row("another's shadow", Some("bob"), "shadow", "hers", at(1, 0)),
    ];
    assert_eq!(
        left(&gone(), Table::Exchanges, &rows, "request_id").unwrap(),
        [
            "hers, later",
            "another's",
            "nobody's",
            "long after",
            "another's shadow"
        ]
    );
    assert_eq!(
        left(&gone(), Table::Exchanges, &rows[1..4], "request_id"),
        None
    );
    assert!(Gone::default().is_nothing() && !gone().is_nothing());
}

#[test]
fn of_feedback_goes_what_was_said_of_them() {
    let row = |id: &str, of: &str, over: &str| json!({"feedback_id": id, "request_id": of, "preferred_over": over, "ts": at(5, 0)});
    let rows = [
        row("a", "known", "other"),
        row("b", "other", "another"),
        row("c", "other", "known"),
    ];
    assert_eq!(
        left(&gone(), Table::Feedback, &rows, "feedback_id").unwrap(),
        ["b"]
    );
}

#[test]
fn by_age_go_whole_days() {
    let gone = Gone {
        before: at(3, 0).date_naive().into(),
        ..Gone::default()
    };
    let row = |id: &str, ts| json!({"feedback_id": id, "request_id": id, "ts": ts});
    let rows = [row("a", at(2, 23)), row("b", at(3, 0))];
    assert_eq!(
        left(&gone, Table::Feedback, &rows, "feedback_id").unwrap(),
        ["b"]
    );
    let day = |day| at(day, 0).date_naive();
    assert!(gone.has_day(Table::Exchanges, day(2)) && !gone.has_day(Table::Exchanges, day(3)));
    assert!(!gone.has_day(Table::Runs, day(2)), "runs are kept");
    assert!(gone.may_touch(day(2), None) && !gone.may_touch(day(3), None));
}

#[test]
fn reports_stay_without_what_they_show_of_them() {
    let report = json!({
        "run_id": "r",
        "won": [{"request_id": "known", "prompt": "secret"}, {"request_id": "other", "prompt": "open"}],
        "nested": {"ids": ["known", "other"]},
        "votes": 2,
    });
    let rows = [
        json!({"run_id": "r", "report": report.to_string()}),
        json!({"run_id": "s", "report": "{\"won\":[{\"request_id\":\"other\"}]}"}),
        json!({"run_id": "t", "report": null}),
    ];
    let cleaned = left(&gone(), Table::Runs, &rows, "report").unwrap();
    let first: Value = serde_json::from_str(&cleaned[0]).unwrap();
    assert_eq!(
        first,
        json!({
            "run_id": "r", "won": [{"request_id": "other", "prompt": "open"}], "nested": {"ids": ["other"]}, "votes": 2, "forgotten": 2
        })
    );
    assert_eq!(
        (cleaned.len(), cleaned[1].as_str()),
        (2, "{\"won\":[{\"request_id\":\"other\"}]}")
    );
    assert_eq!(left(&gone(), Table::Runs, &rows[1..], "report"), None);
    assert_eq!(gone().clean_report("no json"), None);
}

#[test]
fn a_user_s_key_tells_nobody_the_name() {
    assert_eq!(user_key(&SECRET, "ann"), user_key(&SECRET, "ann"));
    assert_ne!(user_key(&SECRET, "ann"), user_key(&[8; 32], "ann"));
    assert!(!user_key(&SECRET, "ann").contains("ann"));
}

#[test]
fn files_of_days_before_the_first_exchange_are_not_looked_at() {
    // chatcmpl-<replica><milliseconds>…: of the third of March.
    let id = |ts: DateTime<Utc>| {
        format!(
            "chatcmpl-0a1b2c3d{:012x}0000000000000000000000",
            ts.timestamp_millis()
        )
    };
    let gone = Gone {
        exchanges: [id(at(3, 1)), id(at(5, 0))].into(),
        ..Gone::default()
    };
    let since = gone.since();
    let may_touch = |day| gone.may_touch(at(day, 0).date_naive(), since);
    // A day of slack: an answer may have begun before midnight.
    assert_eq!([1, 2, 3, 9].map(may_touch), [false, true, true, true]);
}
