//! Which rows count, in which order, when they are settled, and who else may decide.

use super::*;

#[tokio::test]
async fn two_monitors_create_one_trigger_and_a_restart_repeats_no_row() {
    let world = World::new();
    let ledger = world.ledger().await;
    append(&ledger, drifting()).await;
    let (mut one, first) = world.monitor(&ledger);
    let (mut two, second) = world.monitor(&world.ledger().await);
    let (a, b) = tokio::join!(one.pass(), two.pass());
    assert_eq!(a.unwrap(), b.unwrap());
    assert_eq!(ledger.triggers(None).await.unwrap().len(), 1);
    let raised = "retune_alarms_total{kind=\"format\",task=\"triage\"}";
    assert_eq!(metric(&first, raised) + metric(&second, raised), 1.0);

    let (mut late, _) = world.monitor(&ledger);
    let before = windows(&ledger).await;
    late.pass().await.unwrap();
    assert_eq!(windows(&ledger).await, before, "a restart repeats no row");
    assert!(
        before.contains("| ok ") && before.contains("| alarm "),
        "{before}"
    );
}

#[tokio::test]
async fn only_what_users_asked_of_known_tasks_counts() {
    let world = World::new();
    let ledger = world.ledger().await;
    let failed = |n: i64, change: &dyn Fn(&mut Exchange)| {
        let mut row = exchange(n, true);
        change(&mut row);
        row
    };
    let mut rows: Vec<Exchange> = (0..301).map(|n| exchange(n, false)).collect();
    for n in 1_000..1_100 {
        for purpose in [Purpose::Examination, Purpose::Shadow] {
            rows.push(failed(n, &|row| row.purpose = purpose));
        }
        rows.push(failed(n, &|row| row.task = Some("closed".to_owned())));
        rows.push(failed(n, &|row| row.task = None));
        rows.push(failed(n, &|row| row.format_valid = None));
    }
    append(&ledger, rows).await;
    let reports = world.monitor(&ledger).0.pass().await.unwrap();
    let [only, output, input, quality, operations] = reports.as_slice() else {
        panic!("{reports:?}")
    };
    assert_eq!((only.adapter.as_str(), only.exchanges), ("triage@base", 1));
    // No text was kept.
    assert_eq!((output.state, output.exchanges), (State::NoReference, 0));
    assert_eq!((input.state, input.exchanges), (State::NoReference, 0));
    assert_eq!((quality.state, quality.exchanges), (State::NoReference, 0));
    // The five minutes that ended at 100 seconds, and those at 400.
    assert_eq!(
        (operations.state, operations.exchanges),
        (State::NoReference, 2)
    );
    assert!(only.log_e.unwrap() <= 0.0);
    assert!(ledger.triggers(None).await.unwrap().is_empty());
}

#[tokio::test]
async fn rows_of_two_replicas_are_tested_in_their_order_whenever_they_come() {
    let world = World::new();
    let ledger = world.ledger().await;
    let rows = drifting();
    // Every other row is another replica's, which appends twenty seconds' worth later.
    let (early, late): (Vec<_>, Vec<_>) = rows
        .clone()
        .into_iter()
        .partition(|r| r.ts.timestamp() % 2 == 0);
    let (mut monitor, _) = world.monitor(&ledger);
    for second in (0..600_usize).step_by(20) {
        append(&ledger, early[second / 2..second / 2 + 10].to_vec()).await;
        let now = time(second as i64 + 3);
        monitor.pass_at(now).await.unwrap();
        append(&ledger, late[second / 2..second / 2 + 10].to_vec()).await;
        monitor.pass_at(now).await.unwrap();
    }
    let live = monitor.pass_at(time(700)).await.unwrap();

    let sorted = World::new();
    let ordered = sorted.ledger().await;
    append(&ordered, rows).await;
    let fresh = sorted.monitor(&ordered).0.pass().await.unwrap();
    assert_eq!(of(&live, "triage@base"), of(&fresh, "triage@base"));
    let references = (
        ledger
            .reference("triage", "triage@base", None)
            .await
            .unwrap(),
        ordered
            .reference("triage", "triage@base", None)
            .await
            .unwrap(),
    );
    assert_eq!(
        references.0.unwrap().counts.format_invalid,
        references.1.unwrap().counts.format_invalid
    );
}

#[tokio::test]
async fn nothing_is_decided_before_it_is_settled() {
    let world = World::new();
    let ledger = world.ledger().await;
    append(&ledger, drifting()).await;
    let (mut monitor, _) = world.monitor(&ledger);
    let shown = monitor.pass_at(time(0)).await.unwrap();
    assert_eq!(
        of(&shown, "triage@base").state,
        State::Alarm,
        "what is there is shown"
    );
    assert_eq!(
        ledger
            .reference("triage", "triage@base", None)
            .await
            .unwrap(),
        None
    );
    assert!(ledger.triggers(None).await.unwrap().is_empty());
    // The drift is of 500 to 599: all of it is there, and nothing of it settled.
    assert_eq!(monitor.pass_at(time(501)).await.unwrap(), shown);
    assert!(ledger.triggers(None).await.unwrap().is_empty());
    let mut settled = monitor.pass_at(time(601)).await.unwrap();
    let triggers = ledger.triggers(None).await.unwrap();
    assert_eq!(triggers.len(), 1);
    assert_eq!(settled[0].alarm.take(), Some(triggers[0].alarm.clone()));
    assert_eq!(settled, shown);
}

#[tokio::test]
async fn rows_that_come_late_are_found_by_the_count() {
    let world = World::new();
    let ledger = world.ledger().await;
    let mut rows = drifting();
    let late: Vec<_> = rows.drain(350..400).collect();
    let (mut monitor, _) = world.monitor(&ledger);
    append(&ledger, rows).await;
    monitor.pass().await.unwrap();
    append(&ledger, late).await;
    assert_eq!(
        of(&monitor.pass().await.unwrap(), "triage@base").exchanges,
        250
    );
    monitor.audit_now();
    assert_eq!(
        of(&monitor.pass().await.unwrap(), "triage@base").exchanges,
        300
    );
}

#[tokio::test]
async fn anothers_reference_wins_and_everything_is_tested_against_it() {
    let world = World::new();
    let ledger = world.ledger().await;
    let (mut monitor, _) = world.monitor(&ledger);
    append(&ledger, drifting()[..200].to_vec()).await;
    monitor.pass().await.unwrap();
    let last = Cursor {
        ts: time(99),
        replica: "0000aaaa".to_owned(),
        seq: 99,
    };
    let theirs = Reference {
        task: "triage".to_owned(),
        adapter: "triage@base".to_owned(),
        digest: None,
        created: time(99),
        last: Some(last),
        counts: counts(100, 90),
        prompts: None,
    };
    assert!(ledger.put_reference(&theirs).await.unwrap());
    let reports = monitor.pass().await.unwrap();
    let found = of(&reports, "triage@base");
    assert_eq!((found.state, found.exchanges), (State::NotEnoughData, 100));

    append(&ledger, drifting()[200..].to_vec()).await;
    let reports = monitor.pass().await.unwrap();
    assert_eq!(of(&reports, "triage@base").exchanges, 500);
    assert!(
        ledger.triggers(None).await.unwrap().is_empty(),
        "90 % is normal to it"
    );
    assert_eq!(
        ledger
            .reference("triage", "triage@base", None)
            .await
            .unwrap(),
        Some(theirs)
    );
}
