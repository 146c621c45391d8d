//! What goes with an alarm: why it is there, what somebody said to it, the page; and when runs were due.

use std::sync::Arc;

use retune_ledger::{ExchangeQuery, Trigger, Word};
use retune_task::Schedule;

use super::*;
use crate::Report;
use crate::why::Why;

/// The same conversation is never asked twice.
fn asked(n: i64, prompt: &str, failed: bool) -> Exchange {
    Exchange {
        conversation: format!("conversation {n}"),
        messages: Some(vec![retune_task::ChatMessage::new("user", prompt)]),
        answer: Some("<b>an answer</b>".to_owned()),
        metadata: Some(json!({"app": if failed { "kiosk" } else { "web" }})),
        ..exchange(n, failed)
    }
}

const USUAL: [&str; 3] = [
    "where is my parcel",
    "please send the invoice again",
    "i cannot log in",
];

/// The usual for 400, then every second one is about returns, and fails.
fn drifted() -> Vec<Exchange> {
    let usual = |n: i64| USUAL[n as usize % USUAL.len()];
    let row = |n: i64| match n >= 400 && n % 2 == 0 {
        true => asked(n, "i <i>return</i> the shoes, slip 169-109", true),
        false => asked(n, usual(n), n % 50 == 1),
    };
    (0..600).map(row).collect()
}

async fn alarmed() -> (World, Ledger, Trigger) {
    let world = World::new();
    let ledger = world.ledger().await;
    append(&ledger, drifted()).await;
    world.monitor(&ledger).0.pass().await.unwrap();
    let triggers = ledger.triggers(None).await.unwrap();
    let format = triggers.into_iter().find(|t| t.alarm.contains("-format-"));
    (world, ledger, format.unwrap())
}

#[tokio::test]
async fn an_alarm_says_why() {
    let (_world, _, alarm) = alarmed().await;
    assert_eq!(alarm.evidence["budget"]["divided_among_streams"], 5);
    assert_eq!(alarm.evidence["reference"]["exchanges"], 300);
    let why: Why = serde_json::from_value(alarm.evidence["why"].clone()).unwrap();
    assert!(why.usual >= 300 && why.trouble >= 10, "{why:?}");
    let phrases: Vec<&str> = why.phrases.iter().map(|p| p.phrase.as_str()).collect();
    assert!(phrases.iter().any(|p| p.contains("shoes")), "{phrases:?}");
    let app = why.slices.iter().find(|s| s.by == "metadata.app").unwrap();
    assert!(["kiosk", "web"].contains(&app.value.as_str()), "{app:?}");
    for row in &why.rows {
        let n: i64 = row.request_id["chatcmpl-".len()..].parse().unwrap();
        assert!(n % 2 == 0 || n % 50 == 1, "{row:?}");
    }
}

#[tokio::test]
async fn an_acknowledged_alarm_is_a_warning_and_a_silenced_one_for_its_time() {
    let (world, ledger, alarm) = alarmed().await;
    let (mut monitor, registry) = world.monitor(&ledger);
    let now = Utc::now();
    let state = async |monitor: &mut Monitor, at| {
        let reports = monitor.pass_at(at).await.unwrap();
        let report = of(&reports, "triage@base");
        assert_eq!(report.alarm.as_ref(), Some(&alarm.alarm));
        report.state
    };
    assert_eq!(state(&mut monitor, now).await, State::Alarm);
    let say = async |until: Option<DateTime<Utc>>| {
        let word = Word::new(now, Some("key-1".to_owned()), "a campaign", until).unwrap();
        ledger.say(&alarm, &word).await.unwrap();
    };
    let labels = "{adapter=\"triage@base\",kind=\"format\",task=\"triage\"}";
    let gauges =
        || ["active", "quiet"].map(|of| metric(&registry, &format!("retune_alarm_{of}{labels}")));
    say(Some(now + TimeDelta::minutes(10))).await;
    assert_eq!(state(&mut monitor, now).await, State::Warning);
    assert_eq!(gauges(), [0.0, 1.0]);
    let later = now + TimeDelta::minutes(11);
    assert_eq!(state(&mut monitor, later).await, State::Alarm);
    assert_eq!(gauges(), [1.0, 0.0]);
    say(None).await;
    assert_eq!(state(&mut monitor, later).await, State::Warning);
}

#[tokio::test]
async fn the_page_shows_the_evidence_and_text_as_text() {
    let (world, ledger, alarm) = alarmed().await;
    let streams = world.monitor(&ledger).0.pass().await.unwrap();
    let report = Report::read(&ledger, streams, false, Utc::now())
        .await
        .unwrap();
    assert!(report.alarms.iter().any(|a| a.trigger.alarm == alarm.alarm));
    let page = report.html().unwrap();
    for expected in [
        alarm.alarm.as_str(),
        "<svg",
        "shoes",
        "metadata.app = kiosk",
        "&#60;i&#62;return&#60;/i&#62; the shoes",
    ] {
        assert!(page.contains(expected), "no {expected} in\n{page}");
    }
    for unwanted in ["<i>return", "<b>an answer", "http:", "https:", "<script"] {
        let urls = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!urls.contains(unwanted), "{unwanted} in\n{page}");
    }
    // Once it is nobody's any more, only who asks for the past gets it.
    promote(&ledger, 1).await;
    let streams = world.monitor(&ledger).0.pass().await.unwrap();
    let now = Report::read(&ledger, streams.clone(), false, Utc::now())
        .await
        .unwrap();
    let all = Report::read(&ledger, streams, true, Utc::now())
        .await
        .unwrap();
    assert!(now.alarms.is_empty() && !all.alarms.is_empty());
    assert!(now.html().unwrap().contains("None stands."));
}

#[tokio::test]
async fn a_run_is_due_where_there_was_something_to_learn_from() {
    let mut world = World::new();
    let task = Arc::get_mut(&mut world.config.tasks[0]).unwrap();
    task.retrain.schedule = Schedule::parse("0 3 1 1 *");
    let ledger = world.ledger().await;
    let due = "retune_run_due_timestamp_seconds{task=\"triage\"}";
    let (mut monitor, registry) = world.monitor(&ledger);
    monitor.pass().await.unwrap();
    let shown = || {
        let text = TextEncoder::new().encode_to_string(&registry.gather());
        text.unwrap().contains(due)
    };
    assert!(!shown(), "nobody has asked anything yet");
    append(&ledger, [exchange(0, false)]).await;
    monitor.pass().await.unwrap();
    assert!(shown());
    let at = DateTime::from_timestamp(metric(&registry, due) as i64, 0).unwrap();
    assert_eq!(at.format("%m-%d %H:%M").to_string(), "01-01 03:00");
    assert_eq!(
        ledger
            .exchanges(&ExchangeQuery::default())
            .await
            .unwrap()
            .len(),
        1
    );
}
