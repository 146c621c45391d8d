//! Held to TRL's masks: the tokens that a conversation's answers are learned by, for every family's own chat template.
//!
//! `masks.json` is stored (tests/parity/masks.py made it); another file of such cases can be named by `RETUNE_MASKS`. TRL has one sequence with
//! a mask over it, of a template that is made for training; Retune has the template that models are served with.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::path::Path;

use retune_task::Task;
use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::{AddedToken, Tokenizer};

use crate::Encoder;
use crate::job::learned;

#[derive(Deserialize)]
struct Cases {
    families: Vec<Family>,
}

#[derive(Deserialize)]
struct Family {
    name: String,
    chat_template: String,
    bos_token: Option<String>,
    eos_token: String,
    added: Vec<String>,
    /// Whether TRL has a template for training of this very family.
    own: bool,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    messages: Value,
    ids: Vec<u32>,
    mask: Vec<u8>,
}

fn cases() -> Cases {
    let text = match std::env::var("RETUNE_MASKS") {
        Ok(path) => std::fs::read_to_string(path).unwrap(),
        Err(_) => include_str!("masks.json").to_owned(),
    };
    serde_json::from_str(&text).unwrap()
}

fn encoder(family: &Family, folder: &Path) -> (Encoder, Tokenizer) {
    let pocket = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/pocket/tokenizer.json");
    let mut tokenizer = Tokenizer::from_file(pocket).unwrap();
    let added = family
        .added
        .iter()
        .map(|token| AddedToken::from(token.as_str(), true).normalized(false));
    tokenizer.add_special_tokens(&added.collect::<Vec<_>>());
    tokenizer
        .save(folder.join("tokenizer.json"), false)
        .unwrap();
    let config = json!({
        "chat_template": family.chat_template, "bos_token": family.bos_token, "eos_token": family.eos_token,
    });
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    (Encoder::from_folder(folder, 4096).unwrap(), tokenizer)
}

/// The answers among tokens: runs with a weight.
fn answers(tokens: &[u32], is_learned: impl Fn(usize) -> bool) -> Vec<Vec<u32>> {
    let mut runs: Vec<Vec<u32>> = Vec::new();
    let mut before = false;
    for (place, token) in tokens.iter().enumerate() {
        let now = is_learned(place);
        match runs.last_mut() {
            Some(run) if now && before => run.push(*token),
            _ if now => runs.push(vec![*token]),
            _ => {}
        }
        before = now;
    }
    runs
}

#[test]
fn the_same_tokens_are_learned_as_by_trl() {
    let mut compared = 0;
    for family in cases().families {
        let folder = tempfile::tempdir().unwrap();
        let (encoder, tokenizer) = encoder(&family, folder.path());
        let end = encoder.end_of_turn().unwrap();
        let shown = |tokens: &[u32]| tokenizer.decode(tokens, false).unwrap();
        for (number, case) in family.cases.iter().enumerate() {
            let name = format!("{} {number}", family.name);
            let line = json!({ "messages": case.messages }).to_string();
            let examples = learned(&encoder, &Task::of_job("x"), &line).unwrap();
            let theirs = answers(&case.ids, |place| case.mask[place] == 1);
            let ours = examples
                .iter()
                .flat_map(|e| answers(&e.tokens, |place| e.weights[place] > 0.0));
            let ours: Vec<Vec<u32>> = ours.collect();
            assert_eq!(ours.len(), theirs.len(), "{name}");
            for (ours, theirs) in ours.iter().zip(&theirs) {
                // Behind the end of the turn, where serving never comes, a template may write a new line, or the end of the text.
                let cut = theirs.iter().rposition(|token| [*token] == *end);
                let (theirs, behind) = theirs.split_at(cut.expect(&name) + 1);
                let behind = shown(behind).replace(&family.eos_token, "");
                assert!(behind.trim().is_empty(), "{name}: {behind}");
                // In front of an answer TRL counts the new line that asks for it in some templates.
                let is_blank = |token: &u32| shown(&[*token]).trim().is_empty();
                let blanks = theirs.iter().take_while(|token| is_blank(token)).count();
                let theirs = match theirs.split_at(blanks) {
                    (before, rest) if !ours.starts_with(before) => rest,
                    _ => theirs,
                };
                // Qwen 3's own template writes empty thoughts into the last answer, which it does not when an answer is asked for.
                let thoughts = "<think>\n\n</think>\n\n";
                match shown(theirs).strip_prefix(thoughts) {
                    Some(theirs) => assert_eq!(shown(ours), theirs, "{name}"),
                    None => assert_eq!(
                        ours,
                        theirs,
                        "{name}: {:?} {:?}",
                        shown(ours),
                        shown(theirs)
                    ),
                }
                compared += 1;
            }
            // What is read before an answer is the same, too.
            if let [example] = examples.as_slice()
                && family.own
                && !shown(&case.ids).contains("<think>")
            {
                assert_eq!(example.tokens, case.ids[..example.tokens.len()], "{name}");
                assert!(
                    shown(&case.ids[example.tokens.len()..]).len() < 20,
                    "{name}"
                );
            }
        }
    }
    assert!(compared >= 70, "{compared}");
}
