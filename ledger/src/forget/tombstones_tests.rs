//! What comes of a person while, and after, they are forgotten.
#![allow(clippy::unwrap_used, reason = "tests")]

use chrono::TimeZone;
use serde_json::{Map, Value, json};

use super::*;

const SECRET: [u8; 32] = [7; 32];

fn tombstones(folder: &std::path::Path) -> Tombstones {
    Tombstones::of(&Place::folder(folder.to_owned()), SECRET)
}

fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 3, 2, 12, 0, 0).unwrap()
}

fn batch(table: Table, row: &Value) -> RecordBatch {
    let row: Map<String, Value> = row.as_object().unwrap().clone();
    table.batch(&[row]).unwrap()
}

/// One of Ann's, asked before noon.
fn hers(id: &str) -> RecordBatch {
    let row = json!({
        "request_id": id, "user": "ann", "ts": "2026-03-02T11:00:00Z", "duration_ms": 1.0, "purpose": "user", "conversation": "c",
    });
    batch(Table::Exchanges, &row)
}

fn said(of: &str, preferred_over: Option<&str>) -> RecordBatch {
    let row = json!({
        "feedback_id": "fb-1", "request_id": of, "ts": "2026-03-02T11:30:00Z", "preferred_over": preferred_over,
    });
    batch(Table::Feedback, &row)
}

fn ids(of: &[&str]) -> BTreeSet<String> {
    of.iter().map(|id| (*id).to_owned()).collect()
}

fn found(exchanges: &[&str]) -> Found {
    Found {
        exchanges: ids(exchanges),
        feedback: BTreeSet::new(),
    }
}

/// Of whatever is not done the exchanges.
fn open(of: &Tombstones) -> Vec<BTreeSet<String>> {
    let all = of.all().unwrap().into_iter().filter(|t| !t.is_done);
    all.map(|t| t.found.exchanges.clone()).collect()
}

#[test]
fn what_comes_to_a_table_after_the_look_is_looked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let all = tombstones(folder.path());
    let name = all.begin("ann", noon()).unwrap();
    all.note_come(Table::Exchanges, &hers("one")).unwrap();
    assert_eq!(open(&all), [ids(&["one"])]);
    let listed = all.add(&name, &found(&["two"])).unwrap();
    assert_eq!(listed.found.exchanges, ids(&["one", "two"]));
    all.end(&listed, &Forgotten::default()).unwrap();
    assert_eq!(open(&all), [] as [BTreeSet<String>; 0]);
    // Known ones as well, since they are in a table; and what is said of them, wherever their name stands.
    all.note_come(Table::Exchanges, &hers("one")).unwrap();
    assert_eq!(open(&all), [ids(&["one"])]);
    all.note_come(Table::Feedback, &said("another's", Some("two")))
        .unwrap();
    assert!(open(&all).contains(&ids(&["two"])), "{:?}", open(&all));
    // Somebody else's is nobody's concern.
    let before = open(&all);
    all.note_come(Table::Feedback, &said("another's", None))
        .unwrap();
    assert_eq!(open(&all), before);
}

#[test]
fn what_is_noted_between_the_last_look_and_the_end_is_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let all = tombstones(folder.path());
    let name = all.begin("ann", noon()).unwrap();
    let listed = all.add(&name, &found(&["one"])).unwrap();
    // A log's row that goes no further, with feedback that may be in its table.
    all.note(Table::Exchanges, &hers("late")).unwrap();
    all.end(&listed, &Forgotten::default()).unwrap();
    assert_eq!(open(&all), [ids(&["late", "one"])]);
    // And one that comes when all is done.
    all.note(Table::Exchanges, &hers("later")).unwrap();
    assert!(open(&all).contains(&ids(&["later"])), "{:?}", open(&all));
    let count = all.all().unwrap().len();
    all.note(Table::Exchanges, &hers("one")).unwrap();
    assert_eq!(
        all.all().unwrap().len(),
        count,
        "a row that is known and in no table"
    );
}
