//! The loop more than once: `retune demo --once --generations`. It takes as long as everything else together, so `.ci/long` asks for it.

use serde_json::{Value, json};

use crate::harness::{folder, run, text};

#[test]
#[ignore = "ten minutes: .ci/long runs it"]
fn a_second_drift_is_learned_wrong_labels_are_rejected_and_a_worse_canary_is_taken_back() {
    let folder = folder();
    let output = run(
        folder.path(),
        &["demo", "--once", "--generations", "--json", "--seed", "7"],
    );
    let story = text(&output.stderr);
    assert!(output.status.success(), "{story}");
    let last = text(&output.stdout).lines().last().unwrap().to_owned();
    let figures: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(figures["exchanges_logged"], figures["exchanges"]);
    assert_eq!(figures["promoted"], true, "{story}");

    let [second, slipped, canary] = figures["generations"].as_array().unwrap().as_slice() else {
        panic!("three generations were to follow: {last}\n{story}");
    };
    let number = |of: &Value, key: &str| of[key].as_f64().unwrap_or_else(|| panic!("{key}: {of}"));

    // The second drift, without losing what the first had taught.
    assert_eq!(
        (&second["verdict"], &second["stage"]),
        (&json!("promote"), &json!("champion")),
        "{story}"
    );
    assert!(number(second, "p_value") < 0.05, "{second}");
    let gain = number(second, "new_exact_after") - number(second, "new_exact_before");
    assert!(gain >= 0.3, "{second}");
    let loss = number(second, "old_exact_before") - number(second, "old_exact_after");
    assert!(loss <= 0.1, "{second}");
    let loss = number(second, "old_valid_before") - number(second, "old_valid_after");
    assert!(loss <= 0.05, "{second}");

    // What was learned from wrong labels.
    assert_eq!(
        (&slipped["verdict"], &slipped["stage"]),
        (&json!("reject"), &json!("rejected")),
        "{story}"
    );

    // And what somebody lets users meet all the same.
    assert_eq!(
        (&canary["stage"], &canary["by"]),
        (&json!("rejected"), &json!("canary's test")),
        "{story}"
    );
    let reason = canary["reason"].as_str().unwrap();
    assert!(
        reason.contains("worse than triage@2 on live traffic"),
        "{reason}"
    );
    assert!(number(canary, "canary_exchanges") <= 200.0, "{canary}");
}
