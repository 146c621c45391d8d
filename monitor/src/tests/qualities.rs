//! What people say of answers, against what they said at first.

use retune_ledger::Feedback;

use super::*;

fn said(n: i64, second: i64, rating: Option<u8>, correction: bool) -> Feedback {
    Feedback {
        feedback_id: format!("fb-{second:06}"),
        request_id: format!("chatcmpl-{n}"),
        ts: time(second),
        source: None,
        rater: None,
        rating,
        correction: correction.then(|| "better".to_owned()),
        rubric: None,
        comment: None,
        preferred_over: None,
    }
}

async fn say(ledger: &Ledger, rows: impl IntoIterator<Item = Feedback>) {
    for row in rows {
        ledger.append_feedback(row).await.unwrap();
    }
    ledger.flush().await.unwrap();
}

fn quality(reports: &[StreamReport]) -> &StreamReport {
    let mut found = reports.iter().filter(|r| r.stream == Stream::Quality);
    found.next().unwrap()
}

#[tokio::test]
async fn worse_ratings_raise_an_alarm_and_a_restart_arrives_there_too() {
    let world = World::new();
    let ledger = world.ledger().await;
    append(&ledger, (0..400).map(|n| exchange(n, false))).await;
    // Of another adapter, of none, and of nobody's exchange.
    append(
        &ledger,
        (1_000..1_100).map(|n| Exchange {
            adapter: Some("triage@7".to_owned()),
            ..exchange(n, false)
        }),
    )
    .await;
    say(
        &ledger,
        (1_000..1_100).map(|n| said(n, 2_000 + n, Some(1), false)),
    )
    .await;
    say(&ledger, (7_000..7_100).map(|n| said(n, n, Some(1), false))).await;
    // Days after the answer.
    let usual = |n: i64| {
        said(
            n % 400,
            100_000 + n,
            Some(if n % 10 == 0 { 1 } else { 5 }),
            n % 20 == 0,
        )
    };
    say(&ledger, (0..99).map(usual)).await;
    let (mut monitor, registry) = world.monitor(&ledger);
    let reports = monitor.pass().await.unwrap();
    let found = quality(&reports);
    assert_eq!((found.state, found.exchanges), (State::NoReference, 99));
    assert_eq!(ledger.ratings("triage", "triage@base").await.unwrap(), None);

    say(&ledger, (99..300).map(usual)).await;
    let reports = monitor.pass().await.unwrap();
    assert_eq!(
        (quality(&reports).state, quality(&reports).exchanges),
        (State::Ok, 200)
    );
    let reference = ledger
        .ratings("triage", "triage@base")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (
            reference.feedback,
            reference.rated,
            reference.low,
            reference.corrected
        ),
        (100, 100, 10, 5)
    );
    assert!(ledger.triggers(None).await.unwrap().is_empty());

    let worse = |n: i64| {
        said(
            n % 400,
            100_000 + n,
            Some(if n % 2 == 0 { 2 } else { 4 }),
            false,
        )
    };
    say(&ledger, (300..420).map(worse)).await;
    let reports = monitor.pass().await.unwrap();
    assert_eq!(quality(&reports).state, State::Alarm);
    assert_eq!(of(&reports, "triage@base").stream, Stream::Format);
    assert_eq!(of(&reports, "triage@base").state, State::Ok);
    let triggers = ledger.triggers(None).await.unwrap();
    let [trigger] = triggers.as_slice() else {
        panic!("{triggers:?}")
    };
    assert_eq!(trigger.kind, retune_task::AlarmKind::Quality);
    assert_eq!(trigger.evidence["leading_kind"], "low");
    let raised = "retune_alarms_total{kind=\"quality\",task=\"triage\"}";
    assert_eq!(metric(&registry, raised), 1.0);
    let (mut again, _) = world.monitor(&world.ledger().await);
    assert_eq!(again.pass().await.unwrap(), reports);
    assert_eq!(ledger.triggers(None).await.unwrap(), triggers);
}

#[tokio::test]
async fn more_corrections_are_worse_whatever_the_rating() {
    let world = World::new();
    let ledger = world.ledger().await;
    append(&ledger, (0..400).map(|n| exchange(n, false))).await;
    say(
        &ledger,
        (0..200).map(|n| said(n, 1_000 + n, Some(5), false)),
    )
    .await;
    let (mut monitor, _) = world.monitor(&ledger);
    assert_ne!(quality(&monitor.pass().await.unwrap()).state, State::Alarm);
    say(
        &ledger,
        (200..260).map(|n| said(n, 1_000 + n, None, n % 2 == 0)),
    )
    .await;
    assert_eq!(quality(&monitor.pass().await.unwrap()).state, State::Alarm);
    let triggers = ledger.triggers(None).await.unwrap();
    assert_eq!(triggers[0].evidence["leading_kind"], "corrected");
}
