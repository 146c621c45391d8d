//! Which figures give which advice.

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use retune_ledger::Ledger;
use retune_task::{ModelName, RetrainPolicy};

use super::{Advised, Figures, advise, verdict};
use crate::testing::{asked, config, corrected, task, write_base};

fn policy() -> RetrainPolicy {
    RetrainPolicy {
        min_examples: 200,
        ..task().retrain.clone()
    }
}

/// A prompt that does its job.
fn good() -> Figures {
    Figures {
        champion: "ask@base".to_owned(),
        is_baseline: true,
        usable: 900,
        checked: 2_000,
        broken: 10,
        rated: 1_000,
        discontent: 40,
        corrections: 40,
        news: 2,
        saving: Some(0.1),
        prompt_changes: Some(1),
    }
}

#[test]
fn each_advice_has_its_figures() {
    let advised = |figures: Figures| verdict(&policy(), &figures).0;
    assert_eq!(advised(good()), Advised::Prompt);
    let adapter = Figures {
        champion: "ask@2".to_owned(),
        is_baseline: false,
        ..good()
    };
    assert_eq!(advised(adapter), Advised::Wait);
    let unrated = Figures {
        rated: 12,
        discontent: 12,
        ..good()
    };
    assert_eq!(advised(unrated), Advised::Collect);
    let discontent = Figures {
        discontent: 300,
        corrections: 300,
        ..good()
    };
    assert_eq!(advised(discontent.clone()), Advised::FineTune);
    let broken = Figures {
        broken: 200,
        ..good()
    };
    assert_eq!(advised(broken), Advised::FineTune);
    let long = Figures {
        saving: Some(0.8),
        ..good()
    };
    assert_eq!(advised(long), Advised::FineTune);
    let restless = Figures {
        prompt_changes: Some(9),
        ..discontent.clone()
    };
    assert_eq!(advised(restless), Advised::Wait);
    let unknowing = Figures {
        news: 200,
        ..discontent.clone()
    };
    assert_eq!(advised(unknowing), Advised::Retrieve);
    let few = Figures {
        usable: 199,
        ..discontent
    };
    assert_eq!(advised(few), Advised::Collect);
    let unclear = Figures {
        rated: 60,
        discontent: 8,
        ..good()
    };
    assert_eq!(advised(unclear), Advised::Collect);
}

proptest! {
    #[test]
    fn always_a_reason_and_never_a_training_of_too_few(
        usable in 0_u64..400, checked in 0_u64..500, rated in 0_u64..500, corrections in 0_u64..100,
        shares in prop::array::uniform3(0.0_f64..=1.0), saving in prop::option::of(0.0_f64..1.0), changes in prop::option::of(0_u64..9),
        is_baseline in any::<bool>(),
    ) {
        let part = |share: f64, of: u64| (share * of as f64) as u64;
        let figures = Figures {
            champion: ModelName::of("ask", None).to_string(), is_baseline, usable, checked, broken: part(shares[0], checked), rated,
            discontent: part(shares[1], rated), corrections, news: part(shares[2], corrections), saving, prompt_changes: changes,
        };
        let (advised, reasons) = verdict(&policy(), &figures);
        prop_assert!(!reasons.is_empty());
        prop_assert!(reasons.iter().all(|one| one.figure.is_finite() && one.wanted.is_finite()));
        prop_assert!(advised != Advised::FineTune || usable >= 200);
    }
}

/// From a ledger: a base that answers "?" and raters who say what it should be.
#[tokio::test]
async fn read_from_the_logs() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let base = folder.path().join("base");
    write_base(&base);
    let ledger = Ledger::open(&config.store).await.unwrap();
    let task = &config.tasks[0];
    let nothing = advise(&ledger, task, Some(&base)).await.unwrap();
    assert_eq!(nothing.verdict, Advised::Collect);
    assert!(nothing.gap.is_empty());
    for n in 0..150 {
        let prompt = format!("prompt {n}");
        let mut exchange = asked(n, &prompt, r#"{"is":"?"}"#);
        exchange.adapter = Some("ask@base".to_owned());
        ledger.append_exchange(exchange).await.unwrap();
        let right = format!(r#"{{"is":"{prompt}"}}"#);
        ledger
            .append_feedback(corrected(n, 1000, "ann", &right))
            .await
            .unwrap();
    }
    ledger.flush().await.unwrap();
    let advice = advise(&ledger, task, Some(&base)).await.unwrap();
    assert_eq!(advice.verdict, Advised::FineTune, "{advice:?}");
    let json = serde_json::to_value(&advice).unwrap();
    assert_eq!(json["verdict"], "fine-tune");
    assert_eq!(json["reasons"][0]["figure"], 150.0);
    assert_eq!(json["reasons"][0]["wanted"], 10.0);
    ledger.close().await.unwrap();
}
