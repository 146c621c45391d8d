//! Tests of `encode`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use retune_task::{ChatMessage, ChatTemplate, PromptKind, Split};
use tokenizers::Tokenizer;

use super::Encoder;
use crate::dataset::{KnownBy, Row};
use crate::testing::{task, time, user, write_tokenizer};

fn row(messages: Vec<ChatMessage>, answer: &str) -> Row {
    Row {
        request_id: "r".to_owned(),
        ts: time(0),
        conversation: "c".to_owned(),
        user: None,
        metadata: Default::default(),
        split: Split::Train,
        messages,
        answer: answer.to_owned(),
        known_by: KnownBy::Correction,
    }
}

#[test]
fn an_example_is_the_prompt_as_served_then_the_answer_then_the_end_of_turn() {
    let base = tempfile::tempdir().unwrap();
    write_tokenizer(base.path());
    let encoder = Encoder::from_folder(base.path(), 4096).unwrap();
    let tokenizer = Tokenizer::from_file(base.path().join("tokenizer.json")).unwrap();
    let template = ChatTemplate::from_folder(base.path()).unwrap();
    let task = task();
    for answer in [
        r#"{"is":"ok"}"#,
        " starts with a space",
        "\n{newline first",
        "k",
    ] {
        let row = row(vec![user("What is it?\n{")], answer);
        let example = encoder.example(&task, &row).unwrap();
        assert_eq!(example.tokens.len(), example.weights.len());

        // What an engine is given for the same messages, and it is the prefix of the example.
        let served = template
            .render(&task.messages(PromptKind::Adapter, &row.messages), true)
            .unwrap();
        let prompt = tokenizer
            .encode(served.as_str(), false)
            .unwrap()
            .get_ids()
            .to_vec();
        assert_eq!(example.tokens[..prompt.len()], prompt);
        assert_eq!(example.weights[..prompt.len()], vec![0.0; prompt.len()]);
        assert!(
            example.weights[prompt.len()..]
                .iter()
                .all(|&weight| weight == 1.0)
        );

        // What it has to say, to the end of the turn and no further.
        let said = tokenizer
            .decode(&example.tokens[prompt.len()..], false)
            .unwrap();
        assert_eq!(said, format!("{answer}<|im_end|>"));

        // The text is the template's own rendering of the finished turn, byte for byte.
        let mut turn = task.messages(PromptKind::Adapter, &row.messages);
        turn.push(ChatMessage::new("assistant", answer));
        let whole = template.render(&turn, false).unwrap();
        assert_eq!(
            whole.trim_end_matches('\n'),
            format!("{served}{answer}<|im_end|>")
        );
    }
}

#[test]
fn no_token_reaches_over_the_border() {
    // "\n{" is one token of this tokenizer. An engine that generates after "assistant\n" can never emit it, so no example may have it there.
    let base = tempfile::tempdir().unwrap();
    write_tokenizer(base.path());
    let encoder = Encoder::from_folder(base.path(), 4096).unwrap();
    let tokenizer = Tokenizer::from_file(base.path().join("tokenizer.json")).unwrap();
    let merged = tokenizer.token_to_id("Ċ{").unwrap();
    let example = encoder
        .example(&task(), &row(vec![user("x")], "{}"))
        .unwrap();
    assert!(!example.tokens.contains(&merged));
    let together = tokenizer.encode("assistant\n{}", true).unwrap();
    assert!(
        together.get_ids().contains(&merged),
        "the trap is real with this tokenizer"
    );
}

#[test]
fn the_short_prompt_is_trained_on_and_an_apps_system_message_is_not() {
    let base = tempfile::tempdir().unwrap();
    write_tokenizer(base.path());
    let encoder = Encoder::from_folder(base.path(), 4096).unwrap();
    let system = ChatMessage::new("system", "Be kind.");
    let prompt = encoder
        .prompt(&task(), &row(vec![system, user("x")], "{}"))
        .unwrap();
    assert!(
        prompt.contains("Ask.")
            && !prompt.contains("Be kind.")
            && !prompt.contains("Answer with a JSON object."),
        "{prompt}"
    );
}

#[test]
fn what_is_longer_than_the_context_is_left_out_and_counted() {
    let base = tempfile::tempdir().unwrap();
    write_tokenizer(base.path());
    let encoder = Encoder::from_folder(base.path(), 60).unwrap();
    let rows = [
        row(vec![user("x")], "{}"),
        row(vec![user(&"long ".repeat(20))], "{}"),
    ];
    let encoded = encoder.examples(&task(), &rows).unwrap();
    assert_eq!((encoded.examples.len(), encoded.too_long), (1, 1));
}

#[test]
fn a_missing_tokenizer_is_named() {
    let base = tempfile::tempdir().unwrap();
    write_tokenizer(base.path());
    std::fs::write(base.path().join("tokenizer.json"), "{").unwrap();
    let error = Encoder::from_folder(base.path(), 60)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}
