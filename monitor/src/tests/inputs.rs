//! Prompts against their sample: what is noticed, and what is not.

use std::path::PathBuf;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use retune_ledger::Span;
use retune_task::ChatMessage;

use super::*;
use crate::features::Said;
use crate::features::Space;
use crate::features::sentences::Vectors;
use crate::features::vectors::TokenVectors;
use crate::streams::input::{Input, Prompt};

const TOPICS: [[&str; 6]; 3] = [
    ["parcel", "late", "arrived", "address", "driver", "tracking"],
    ["invoice", "paid", "twice", "card", "charged", "bill"],
    ["return", "slip", "broken", "refund", "box", "label"],
];
const ANY: [&str; 8] = ["please", "my", "the", "was", "I", "help", "with", "again"];

/// Somebody asks about one of the first two topics, and some about the third.
fn prompt(rng: &mut ChaCha8Rng, share_of_new: f64) -> String {
    let topic = match rng.random_bool(share_of_new) {
        true => 2,
        false => rng.random_range(0..2),
    };
    let word = |rng: &mut ChaCha8Rng| match rng.random_bool(0.5) {
        true => *ANY.choose(rng).unwrap(),
        false => *TOPICS[topic].choose(rng).unwrap(),
    };
    let words: Vec<&str> = (0..8).map(|_| word(rng)).collect();
    words.join(" ")
}

fn pocket() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/pocket")
}

fn said(text: &str, vectors: Option<&TokenVectors>) -> Said {
    let mut said = Said::default();
    said.add(text, vectors);
    said
}

/// Prompts taken by an input stream: how many until it crosses.
fn crossing(sample: usize, shares: impl Iterator<Item = f64>, with_model: bool) -> Option<usize> {
    let vectors = with_model.then(|| TokenVectors::open(&pocket()).unwrap().unwrap());
    let vectors = vectors.map(std::sync::Arc::new);
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let reference: Vec<Said> = (0..sample)
        .map(|_| said(&prompt(&mut rng, 0.0), vectors.as_deref()))
        .collect();
    let space = Space::new(&reference, vectors.clone());
    assert_eq!(space.has_meanings(), with_model);
    let mut input = Input::new(space, 3e7_f64.ln());
    for (n, share) in shares.enumerate() {
        let text = prompt(&mut rng, share);
        input.observe(&Prompt {
            cursor: Cursor {
                ts: time(n as i64),
                replica: "a".to_owned(),
                seq: n as u64,
            },
            request_id: n.to_string(),
            conversation: n.to_string(),
            said: std::sync::Arc::new(said(&text, vectors.as_deref())),
        });
        if input.crossing().is_some() {
            return Some(n + 1);
        }
    }
    None
}

#[test]
fn a_new_topic_is_noticed_within_some_windows_and_the_old_ones_never() {
    for with_model in [false, true] {
        let usual = std::iter::repeat_n(0.0, 6_000);
        assert_eq!(crossing(2_000, usual, with_model), None);
        let drift = std::iter::repeat_n(0.0, 400).chain(std::iter::repeat_n(0.2, 2_000));
        let noticed = crossing(2_000, drift, with_model);
        assert!(
            noticed.is_some_and(|n| n > 400 && n <= 1_400),
            "{noticed:?}"
        );
    }
}

#[test]
fn one_talkative_customer_is_one_conversation() {
    let vectors = None;
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let reference: Vec<Said> = (0..2_000)
        .map(|_| said(&prompt(&mut rng, 0.0), vectors))
        .collect();
    let mut input = Input::new(Space::new(&reference, None), 3e7_f64.ln());
    let mut windows = 0;
    for n in 0..1_000_i64 {
        let is_talkative = n % 2 == 0;
        let share = if is_talkative { 1.0 } else { 0.0 };
        let tested = input.observe(&Prompt {
            cursor: Cursor {
                ts: time(n),
                replica: "a".to_owned(),
                seq: n as u64,
            },
            request_id: n.to_string(),
            conversation: match is_talkative {
                true => "the same".to_owned(),
                false => n.to_string(),
            },
            said: std::sync::Arc::new(said(&prompt(&mut rng, share), vectors)),
        });
        windows += tested.len();
        assert!(tested.iter().all(|tested| tested.p > 0.001));
    }
    // 199 others and the one are a window: 398 exchanges.
    assert_eq!((windows, input.crossing()), (2, None));
}

#[test]
fn vectors_are_the_models_own() {
    let vectors = TokenVectors::open(&pocket()).unwrap().unwrap();
    let tokens = vectors.tokens("Where is my order?");
    assert!(tokens.len() > 2, "{tokens:?}");
    let of = |token: u32| {
        let mut sum = vec![0.0; vectors.width()];
        vectors.add(token, 1.0, &mut sum);
        sum
    };
    let (once, again) = (of(tokens[0]), of(tokens[0]));
    assert_eq!(once, again);
    assert!(once.iter().any(|value| *value != 0.0) && once.iter().all(|value| value.is_finite()));
    assert_ne!(once, of(tokens[1]));
    // Beyond the table there is nothing to add.
    assert!(of(u32::MAX).iter().all(|value| *value == 0.0));
}

#[test]
fn a_folder_without_vectors_is_none_and_a_damaged_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    assert!(TokenVectors::open(folder.path()).unwrap().is_none());
    let copy = |name: &str| {
        std::fs::copy(pocket().join(name), folder.path().join(name)).unwrap();
    };
    copy("tokenizer.json");
    assert!(TokenVectors::open(folder.path()).unwrap().is_none());
    let weights = folder.path().join("model.safetensors");
    for bytes in [
        &b"short"[..],
        &[0xff; 64],
        b"\x02\0\0\0\0\0\0\0{]",
        b"\x63\0\0\0\0\0\0\0{\"embeddings\": {\"dtype\": \"F32\", \"shape\": [9, 4], \"data_offsets\": [0, 4]}}",
    ] {
        std::fs::write(&weights, bytes).unwrap();
        let error = TokenVectors::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("model.safetensors"), "{error}");
    }
}

fn asked(n: i64, text: &str, adapter: &str) -> Exchange {
    Exchange {
        adapter: Some(adapter.to_owned()),
        conversation: n.to_string(),
        messages: Some(vec![
            ChatMessage::new("system", "Be brief."),
            ChatMessage::new("user", text),
        ]),
        answer: Some("an answer".to_owned()),
        ..exchange(n, false)
    }
}

#[tokio::test]
async fn prompts_are_compared_with_what_was_asked_before_and_a_restart_arrives_there_too() {
    let world = World::new();
    let ledger = world.ledger().await;
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    let rows: Vec<Exchange> = (0..2_100)
        .map(|n| asked(n, &prompt(&mut rng, 0.0), "triage@base"))
        .collect();
    append(&ledger, rows).await;
    let reference = Reference {
        task: "triage".to_owned(),
        adapter: "triage@1".to_owned(),
        digest: None,
        created: time(2_100),
        last: None,
        counts: counts(160, 1),
        prompts: Some(Span {
            from: None,
            until: Cursor {
                ts: time(2_100),
                replica: String::new(),
                seq: 0,
            },
        }),
    };
    ledger.put_reference(&reference).await.unwrap();
    promote(&ledger, 1).await;
    let (mut monitor, registry) = world.monitor(&ledger);
    let input = |reports: &[StreamReport]| {
        let mut found = reports
            .iter()
            .filter(|r| r.stream == Stream::Input && r.adapter == "triage@1");
        found.next().unwrap().clone()
    };
    let reports = monitor.pass_at(time(2_100)).await.unwrap();
    assert_eq!(input(&reports).state, State::NotEnoughData);

    let rows: Vec<Exchange> = (2_100..2_700)
        .map(|n| asked(n, &prompt(&mut rng, 0.0), "triage@1"))
        .collect();
    append(&ledger, rows).await;
    let reports = monitor.pass().await.unwrap();
    assert_eq!(
        (input(&reports).state, input(&reports).exchanges),
        (State::Ok, 600)
    );
    assert!(ledger.triggers(None).await.unwrap().is_empty());
    let p = "retune_input_drift_p_value{adapter=\"triage@1\",task=\"triage\"}";
    assert!(metric(&registry, p) > 0.001);

    let rows: Vec<Exchange> = (2_700..3_700)
        .map(|n| asked(n, &prompt(&mut rng, 0.3), "triage@1"))
        .collect();
    append(&ledger, rows).await;
    let reports = monitor.pass().await.unwrap();
    assert_eq!(input(&reports).state, State::Alarm);
    let triggers = ledger.triggers(None).await.unwrap();
    let [trigger] = triggers.as_slice() else {
        panic!("{triggers:?}")
    };
    assert_eq!(trigger.kind, retune_task::AlarmKind::Input);
    assert_eq!(trigger.evidence["sample_conversations"], 2_100);
    let since: DateTime<Utc> = trigger.evidence["change"]["since"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    // To three short windows.
    let late = (since - time(2_700)).num_seconds();
    assert!((-600..=200).contains(&late), "{since}");
    let (mut again, _) = world.monitor(&world.ledger().await);
    assert_eq!(again.pass().await.unwrap(), reports);
    assert_eq!(ledger.triggers(None).await.unwrap(), triggers);
    let written = windows(&ledger).await;
    assert!(written.contains("| input  | alarm "), "{written}");
}

#[tokio::test]
async fn a_small_sample_warns_and_calls_nobody() {
    let world = World::new();
    let ledger = world.ledger().await;
    let (mut monitor, _) = world.monitor(&ledger);
    let mut rng = ChaCha8Rng::seed_from_u64(14);
    let rows: Vec<Exchange> = (0..1_800)
        .map(|n| {
            let share = if n < 500 { 0.0 } else { 0.5 };
            asked(n, &prompt(&mut rng, share), "triage@base")
        })
        .collect();
    append(&ledger, rows).await;
    let reports = monitor.pass().await.unwrap();
    let input = reports.iter().find(|r| r.stream == Stream::Input).unwrap();
    assert_eq!((input.state, input.exchanges), (State::Warning, 1_500));
    assert!(ledger.triggers(None).await.unwrap().is_empty());
}
