//! What of an exchange and its feedback is kept.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;

use retune_task::{Config, Task};

use super::*;
use crate::import::{Imported, Importer};

#[test]
fn a_share_is_that_share_of_conversations() {
    let kept = (0..10_000)
        .filter(|n| fraction("text", &n.to_string()) < 0.1)
        .count();
    assert!((900..1100).contains(&kept), "{kept}");
}

/// A ledger, and a task `ask` with this in its `[task.privacy]`.
async fn with(folder: &std::path::Path, privacy: &str) -> (Ledger, Arc<Task>) {
    let toml = format!(
        "[store]\nurl = \"file:./store\"\n[[task]]\nname = \"ask\"\nprompt = \"prompt.txt\"\n[task.privacy]\n{privacy}\n"
    );
    std::fs::write(folder.join("prompt.txt"), "Answer.").unwrap();
    let path = folder.join("retune.toml");
    std::fs::write(&path, toml).unwrap();
    let config = Config::load(Some(&path), []).unwrap_or_else(|problems| panic!("{problems}"));
    let ledger = Ledger::open(&config.store).await.unwrap();
    (ledger, config.tasks[0].clone())
}

const LINE: &str = r#"{"ts": 1760000000, "rating": 5, "correction": "It is 4711.", "messages": [{"role": "user", "content": "What is my number?"},
    {"role": "assistant", "content": "It is 4710."}]}"#;

async fn take(ledger: &Ledger, task: &Arc<Task>) -> Imported {
    let tasks = [task.clone()];
    let mut importer = Importer::new(ledger, &tasks, Some("ask")).await.unwrap();
    let done = importer.line(&LINE.replace('\n', "")).await.unwrap();
    ledger.flush().await.unwrap();
    done
}

#[tokio::test]
async fn a_line_is_known_again_whatever_is_replaced_in_its_words() {
    let folder = tempfile::tempdir().unwrap();
    // As good as every digest has two digits in a row.
    let (ledger, task) = with(folder.path(), "patterns = ['\\d{2,}']").await;
    assert_eq!(take(&ledger, &task).await, Imported::Kept);
    assert_eq!(take(&ledger, &task).await, Imported::Known);
    let rows = ledger.exchanges(&Default::default()).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert!(!rows[0].answer.as_ref().unwrap().contains("4710"));
    ledger.close().await.unwrap();
}

#[tokio::test]
async fn where_no_words_are_kept_none_come_by_feedback() {
    let folder = tempfile::tempdir().unwrap();
    let (ledger, task) = with(folder.path(), "text_share = 0.0").await;
    assert_eq!(take(&ledger, &task).await, Imported::Kept);
    let said = ledger.feedback(&Default::default()).await.unwrap();
    assert_eq!((said[0].rating, &said[0].correction), (Some(5), &None));
    let rows = ledger.exchanges(&Default::default()).await.unwrap();
    let correction = |rating| Feedback {
        rating,
        correction: Some("It is 4711.".to_owned()),
        ..Feedback::taking_back("fb-1".to_owned(), &rows[0].request_id, None, None)
    };
    for exchange in [rows.first(), None] {
        let kept = |said| ledger.withhold_feedback(said, &task.privacy, exchange);
        let rated = kept(correction(Some(4))).unwrap();
        assert_eq!((rated.rating, rated.correction), (Some(4), None));
        // It would take back what was said before.
        assert_eq!(kept(correction(None)), None);
        let taking_back = Feedback {
            correction: None,
            ..correction(None)
        };
        assert!(kept(taking_back).is_some());
    }
    ledger.close().await.unwrap();
}

#[tokio::test]
async fn an_import_that_was_cut_off_between_an_exchange_and_its_feedback_is_gone_on_with() {
    let [whole, cut] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (ledger, task) = with(whole.path(), "").await;
    assert_eq!(take(&ledger, &task).await, Imported::Kept);
    let exchange = ledger
        .exchanges(&Default::default())
        .await
        .unwrap()
        .remove(0);
    let said = ledger
        .feedback(&Default::default())
        .await
        .unwrap()
        .remove(0);
    ledger.close().await.unwrap();

    let (ledger, task) = with(cut.path(), "").await;
    ledger.append_exchange(exchange.clone()).await.unwrap();
    assert_eq!(take(&ledger, &task).await, Imported::Kept);
    assert_eq!(take(&ledger, &task).await, Imported::Known);
    let exchanges = ledger.exchanges(&Default::default()).await.unwrap();
    assert_eq!(exchanges.len(), 1);
    let again = ledger.feedback(&Default::default()).await.unwrap();
    assert_eq!(again.len(), 1);
    let what = |said: &Feedback| {
        (
            said.request_id.clone(),
            said.rating,
            said.correction.clone(),
        )
    };
    assert_eq!(what(&again[0]), what(&said));
    ledger.close().await.unwrap();
}
