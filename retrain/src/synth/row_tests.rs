//! Rows of a file: read, reviewed, imported, and what a dataset makes of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use retune_ledger::{Imported, Importer, Ledger, Purpose};
use retune_task::Split;

use super::tests::row;
use super::*;
use crate::testing::{config, task, time, user};

fn reviewed(said: Verdict) -> Row {
    let review = Review {
        said,
        by: "ann".to_owned(),
        at: time(1),
        edited: false,
    };
    Row {
        review: Some(review),
        ..row("Who?", r#"{"is":"a"}"#)
    }
}

#[test]
fn a_row_is_a_line_and_no_other_line_is_a_row() {
    let accepted = reviewed(Verdict::Accepted);
    let line = serde_json::to_string(&accepted).unwrap();
    assert_eq!(Row::read(&line).unwrap().unwrap(), accepted);
    let waiting = serde_json::to_string(&row("a", "b")).unwrap();
    assert!(waiting.contains("\"review\":null"), "{waiting}");
    let chat = accepted.conversation().to_string();
    assert!(TrainingLine::read(chat.as_bytes()).is_ok());
    for other in [
        &chat,
        "{",
        "[\"synthetic\"]",
        "\"synthetic\"",
        r#"{"messages": [{"role": "user", "content": "synthetic"}]}"#,
    ] {
        assert!(Row::read(other).is_none(), "{other}");
    }
    for (from, to, says) in [
        ("\"ann\"", "\" \"", "\"by\""),
        ("\"accepted\"", "\"perhaps\"", "unknown variant"),
        ("\"seeds\"", "\"sheets\"", "unknown field"),
        ("\"assistant\"", "\"system\"", "Nothing would be learned"),
        ("\"user\"", "\"tool\"", "tool_call_id"),
        ("\"review\"", "\"ok\":1,\"review\"", "unknown field `ok`"),
        ("\"strong\"", "7", "expected a string"),
    ] {
        assert_eq!(line.matches(from).count(), 1, "{from} in {line}");
        let error = Row::read(&line.replace(from, to)).unwrap().unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn only_what_somebody_accepted_is_imported_and_for_its_own_task() {
    let line = |row: &Row| serde_json::to_string(row).unwrap();
    let waits = import(&line(&row("a", "b")), "ask");
    assert!(matches!(waits, Import::Waiting { source, .. } if source["task"] == "ask"));
    assert_eq!(
        import(&line(&reviewed(Verdict::Rejected)), "ask"),
        Import::Rejected
    );
    let accepted = line(&reviewed(Verdict::Accepted));
    let Import::Accepted { line: chat, source } = import(&accepted, "ask") else {
        panic!("{accepted}");
    };
    assert!(
        TrainingLine::read(chat.as_bytes()).is_ok() && !chat.contains("strong"),
        "{chat}"
    );
    assert_eq!(
        (
            &source["model"],
            &source["review"]["by"],
            &source["seeds"][0]
        ),
        (&json!("strong"), &json!("ann"), &json!("seed-1"))
    );
    assert!(matches!(import(&accepted, "triage"), Import::Bad(what) if what.contains("\"ask\"")));
    assert_eq!(import(&chat, "ask"), Import::Other);
    // Whoever takes the review away takes the row out.
    let without = accepted
        .replace("accepted", "")
        .replace("\"said\":\"\"", "\"said\":null");
    assert!(matches!(import(&without, "ask"), Import::Bad(_)));
}

#[test]
fn a_file_goes_on_after_a_torn_line_and_has_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new.jsonl");
    assert!(Sheet::open(&path).is_err(), "it is not there");
    let mut sheet = Sheet::create_or_open(&path).unwrap();
    sheet.add(row("a", "b")).unwrap();
    let busy = Sheet::open(&path).unwrap_err().to_string();
    assert!(busy.contains("another process"), "{busy}");
    sheet.rows[0].review = reviewed(Verdict::Rejected).review;
    sheet.replace().unwrap();
    let busy = Sheet::create_or_open(&path).unwrap_err().to_string();
    assert!(
        busy.contains("another process"),
        "the new file is locked, too: {busy}"
    );
    sheet.add(row("c", "d")).unwrap();
    drop(sheet);
    let whole = std::fs::read_to_string(&path).unwrap();
    let begun = format!("{whole}{{\"messages\": \"");
    // Within a character as well: the first byte of two.
    for torn in [
        begun.clone().into_bytes(),
        [begun.as_bytes(), &[0xc3]].concat(),
    ] {
        std::fs::write(&path, torn).unwrap();
        let sheet = Sheet::create_or_open(&path).unwrap();
        assert_eq!(sheet.rows.len(), 2);
    }
    let mut sheet = Sheet::create_or_open(&path).unwrap();
    sheet.add(row("e", "f")).unwrap();
    drop(sheet);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(
        text.starts_with(&whole) && text.lines().count() == 3,
        "{text}"
    );
    // A whole last line without its end stays.
    std::fs::write(&path, whole.trim_end()).unwrap();
    let mut sheet = Sheet::create_or_open(&path).unwrap();
    sheet.add(row("g", "h")).unwrap();
    assert_eq!(sheet.rows.len(), 3);
    drop(sheet);
    assert_eq!(Sheet::open(&path).unwrap().rows.len(), 3);
    // Anything else is not touched.
    for wrong in ["{\"messages\": []}\n", "words", "{\"messages\": [}\n"] {
        std::fs::write(&path, format!("{whole}{wrong}")).unwrap();
        let error = Sheet::open(&path).unwrap_err().to_string();
        assert!(error.contains("new.jsonl:3"), "{error}");
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            format!("{whole}{wrong}")
        );
    }
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "nothing is left beside it"
    );
}

#[test]
fn no_row_is_held_out_whatever_its_words_are() {
    let task = task();
    let held_out = (0..)
        .map(|n| format!("question {n}"))
        .find(|q| retune_task::held_out(&retune_task::conversation(&[user(q)])) == Split::HeldOut);
    let answer = r#"{"is":"a"}"#;
    let mut exchange = crate::testing::asked(1, &held_out.unwrap(), answer);
    exchange.purpose = Purpose::Synthetic;
    let said = [crate::testing::corrected(1, 5, "ann", answer)];
    let dataset = crate::dataset::build(&task, std::slice::from_ref(&exchange), &said);
    assert_eq!((dataset.train.len(), dataset.held_out.len()), (1, 0));
    assert_eq!(
        (
            dataset.counts.kept_synthetic,
            dataset.counts.kept_corrections,
            dataset.counts.kept()
        ),
        (1, 0, 1)
    );
    assert_eq!(
        dataset.usable_since(time(0)),
        0,
        "it tells nothing of the traffic"
    );
    // Somebody asks the same, before or after: their row stays, on its side of the split.
    let mut asked = exchange.clone();
    asked.purpose = Purpose::User;
    asked.request_id = "request-2".to_owned();
    asked.ts = time(-5);
    let said = [said[0].clone(), crate::testing::rated(2, 6, "bob", 5)];
    let dataset = crate::dataset::build(&task, &[exchange, asked], &said);
    assert_eq!((dataset.train.len(), dataset.held_out.len()), (0, 1));
    assert_eq!(dataset.counts.older_in_conversation, 1);
}

#[tokio::test]
async fn an_accepted_row_is_an_example_once_and_nobody_s_traffic() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let (ledger, task) = (Ledger::open(&config.store).await.unwrap(), &config.tasks[0]);
    let line = serde_json::to_string(&reviewed(Verdict::Accepted)).unwrap();
    let Import::Accepted { line, source } = import(&line, "ask") else {
        panic!("{line}");
    };
    for expected in [Imported::Kept, Imported::Known] {
        let importer = Importer::new(&ledger, &config.tasks, Some("ask"))
            .await
            .unwrap();
        let mut importer = importer.as_examples();
        let done = importer
            .synthetic_line(&line, source.clone())
            .await
            .unwrap();
        assert_eq!(done, expected);
        ledger.flush().await.unwrap();
    }
    let of_users = ledger.exchanges(&crate::shelf::of(task)).await.unwrap();
    assert!(of_users.is_empty());
    let all = ledger
        .exchanges(&crate::shelf::of_dataset(task))
        .await
        .unwrap();
    assert_eq!((all.len(), all[0].purpose), (1, Purpose::Synthetic));
    assert_eq!(all[0].parameters["synthetic"], source);
    let read = crate::shelf::read(&ledger, task).await.unwrap();
    let counts = &read.dataset.counts;
    assert_eq!(
        (
            counts.kept_synthetic,
            counts.kept_corrections,
            counts.exchanges
        ),
        (1, 0, 1)
    );
    // What a model wrote is no model's seed, and not written again.
    let known = Known::read(&ledger, task).await.unwrap();
    assert!(known.seeds.is_empty() && known.trained_on.len() == 1);
    let out = folder.path().join("out");
    let written = crate::shelf::write(read, task, &out).unwrap();
    let row = json!(written.files[0].rows[0]);
    assert_eq!(row["known_by"], "synthetic");
    ledger.close().await.unwrap();
}

#[tokio::test]
async fn a_row_that_nobody_has_reviewed_is_an_example_once_a_rater_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let (ledger, task) = (Ledger::open(&config.store).await.unwrap(), &config.tasks[0]);
    let line = serde_json::to_string(&row("Who?", r#"{"is":"a"}"#)).unwrap();
    let Import::Waiting { line, source } = import(&line, "ask") else {
        panic!("it waits")
    };
    let importer = Importer::new(&ledger, &config.tasks, Some("ask")).await;
    let mut importer = importer.unwrap().as_examples();
    for wanted in [Imported::Kept, Imported::Known] {
        let done = importer.unreviewed_line(&line, source.clone()).await;
        assert_eq!(done.unwrap(), wanted);
    }
    let built = async || {
        let exchanges = ledger.exchanges(&Default::default()).await.unwrap();
        let said = ledger.feedback(&Default::default()).await.unwrap();
        let counts = crate::dataset::build(task, &exchanges, &said).counts;
        (
            exchanges,
            counts.kept_synthetic,
            counts.unrated,
            counts.rated_low,
        )
    };
    let (exchanges, kept, unrated, _) = built().await;
    assert_eq!((exchanges.len(), kept, unrated), (1, 0, 1));
    let mut said = crate::testing::rated(1, 5, "ann", 1);
    said.request_id = exchanges[0].request_id.clone();
    for (rating, wanted) in [(1, (0, 1)), (5, (1, 0))] {
        said.rating = Some(rating);
        said.feedback_id = format!("fb-{rating}");
        said.ts = time(i64::from(rating));
        ledger.append_feedback(said.clone()).await.unwrap();
        let (_, kept, _, low) = built().await;
        assert_eq!((kept, low), wanted);
    }
    ledger.close().await.unwrap();
}
