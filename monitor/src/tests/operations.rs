//! How an adapter is served: stretches of time against its first day.

use retune_task::AlarmKind;

use super::*;

/// Two exchanges a minute; a third longer in the evening than in the morning.
fn served(n: i64, slower: f64, code: u16) -> Exchange {
    let hour = (n / 120) % 24;
    Exchange {
        ts: time(n * 30),
        duration_ms: (200.0 + (n % 7) as f64 + 3.0 * hour as f64) * slower,
        completion_tokens: 20 + (n % 3) as u64,
        code,
        format_valid: (code == 200).then_some(true),
        ..exchange(n, false)
    }
}

fn operations(reports: &[StreamReport]) -> &StreamReport {
    let mut found = reports.iter().filter(|r| r.stream == Stream::Operations);
    found.next().unwrap()
}

#[tokio::test]
async fn a_slower_server_is_noticed_and_a_busy_evening_is_not() {
    let world = World::new();
    let ledger = world.ledger().await;
    let (mut monitor, _) = world.monitor(&ledger);
    let day = 2_880;
    append(&ledger, (0..day).map(|n| served(n, 1.0, 200))).await;
    let reports = monitor.pass().await.unwrap();
    assert_eq!(operations(&reports).state, State::NoReference);
    assert_eq!(ledger.service("triage", "triage@base").await.unwrap(), None);

    append(&ledger, (day..2 * day).map(|n| served(n, 1.0, 200))).await;
    let reports = monitor.pass().await.unwrap();
    assert_eq!(operations(&reports).state, State::Ok);
    let reference = ledger.service("triage", "triage@base").await.unwrap();
    let reference = reference.unwrap();
    assert_eq!((reference.stretches, reference.with_errors), (289, 0));
    assert!(
        (335.0..355.0).contains(&reference.slowest_ms),
        "{reference:?}"
    );
    assert!(ledger.triggers(None).await.unwrap().is_empty());

    append(
        &ledger,
        (2 * day..2 * day + 300).map(|n| served(n, 2.0, 200)),
    )
    .await;
    let reports = monitor.pass().await.unwrap();
    assert_eq!(operations(&reports).state, State::Alarm);
    let triggers = ledger.triggers(None).await.unwrap();
    let [trigger] = triggers.as_slice() else {
        panic!("{triggers:?}")
    };
    assert_eq!(trigger.kind, AlarmKind::Operations);
    assert_eq!(trigger.evidence["leading_kind"], "slow");
    let after = (trigger.ts - time(2 * day * 30)).num_minutes();
    assert!((25..120).contains(&after), "{after} minutes");

    let (mut again, _) = world.monitor(&world.ledger().await);
    assert_eq!(again.pass().await.unwrap(), reports);
    assert_eq!(ledger.triggers(None).await.unwrap(), triggers);
}

/// Errors are in no other stream, and the requests that met them are what the alarm shows.
#[tokio::test]
async fn errors_are_noticed_and_are_no_answers() {
    let world = World::new();
    let ledger = world.ledger().await;
    let day = 2_880;
    let rows = (0..day + 20).map(|n| served(n, 1.0, 200));
    append(&ledger, rows).await;
    let broken = |n: i64| served(n, 1.0, if n % 5 == 0 { 500 } else { 200 });
    append(&ledger, (day + 20..day + 400).map(broken)).await;
    let (mut monitor, _) = world.monitor(&ledger);
    let reports = monitor.pass().await.unwrap();
    assert_eq!(operations(&reports).state, State::Alarm);
    let format = of(&reports, "triage@base");
    assert_eq!((format.stream, format.state), (Stream::Format, State::Ok));
    assert_eq!(format.exchanges, (day + 20 - 300 + 304) as u64);
    let trigger = ledger.triggers(None).await.unwrap().remove(0);
    assert_eq!(trigger.evidence["leading_kind"], "errors");
    let shown = trigger.evidence["failing_request_ids"][0].as_str().unwrap();
    let n: i64 = shown["chatcmpl-".len()..].parse().unwrap();
    assert_eq!(n % 5, 0, "{shown}");
}
