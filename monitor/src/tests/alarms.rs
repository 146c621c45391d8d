//! References, alarms and their evidence, a new champion, runs, passes that fail.

use super::*;

#[tokio::test]
async fn no_reference_then_ok_then_an_alarm_and_a_restart_arrives_there_too() {
    let world = World::new();
    let ledger = world.ledger().await;
    let (mut monitor, registry) = world.monitor(&ledger);
    let rows = drifting();

    let reports = monitor.pass().await.unwrap();
    assert_eq!(reports.len(), 5, "the baseline serves: {reports:?}");
    let nothing = of(&reports, "triage@base");
    assert_eq!(
        (nothing.state, nothing.exchanges, nothing.log_e),
        (State::NoReference, 0, None)
    );

    append(&ledger, rows[..299].to_vec()).await;
    // They are older than what was read.
    monitor.audit_now();
    let reports = monitor.pass().await.unwrap();
    assert_eq!(of(&reports, "triage@base").state, State::NoReference);
    assert_eq!(of(&reports, "triage@base").exchanges, 299);
    assert_eq!(
        ledger
            .reference("triage", "triage@base", None)
            .await
            .unwrap(),
        None
    );

    append(&ledger, rows[299..302].to_vec()).await;
    let reports = monitor.pass().await.unwrap();
    assert_eq!(of(&reports, "triage@base").state, State::NotEnoughData);
    let reference = ledger
        .reference("triage", "triage@base", None)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (reference.counts.exchanges, reference.counts.format_invalid),
        (300, 60)
    );
    assert_eq!(reference.last.unwrap().ts, time(299));

    append(&ledger, rows[302..500].to_vec()).await;
    let reports = monitor.pass().await.unwrap();
    let ok = of(&reports, "triage@base");
    assert_eq!(
        (ok.state, ok.exchanges, ok.since),
        (State::Ok, 200, Some(time(300)))
    );
    assert_eq!(
        metric(
            &registry,
            "retune_alarms_total{kind=\"format\",task=\"triage\"}"
        ),
        0.0
    );
    assert!(ledger.triggers(None).await.unwrap().is_empty());

    append(&ledger, rows[500..].to_vec()).await;
    let reports = monitor.pass().await.unwrap();
    let alarm = of(&reports, "triage@base");
    assert_eq!(alarm.state, State::Alarm);
    let triggers = ledger.triggers(None).await.unwrap();
    let [trigger] = triggers.as_slice() else {
        panic!("{triggers:?}")
    };
    assert_eq!(alarm.since, Some(trigger.ts));
    assert_eq!(trigger.kind, retune_task::AlarmKind::Format);
    let crossed = (trigger.ts - time(500)).num_seconds();
    assert!((10..100).contains(&crossed), "{crossed}");
    assert_eq!(trigger.request_id, format!("chatcmpl-{}", 500 + crossed));
    assert_eq!(trigger.exchanges, 201 + crossed as u64);
    assert!(
        trigger.log_e >= trigger.threshold_log
            && (trigger.threshold_log - 5e7_f64.ln()).abs() < 1e-9
    );
    assert_eq!(
        metric(
            &registry,
            "retune_alarms_total{kind=\"format\",task=\"triage\"}"
        ),
        1.0
    );
    let active = "retune_alarm_active{adapter=\"triage@base\",kind=\"format\",task=\"triage\"}";
    assert_eq!(metric(&registry, active), 1.0);

    monitor.pass().await.unwrap();
    let (mut again, fresh) = world.monitor(&world.ledger().await);
    assert_eq!(again.pass().await.unwrap(), reports);
    assert_eq!(ledger.triggers(None).await.unwrap(), triggers);
    assert_eq!(
        metric(
            &fresh,
            "retune_alarms_total{kind=\"format\",task=\"triage\"}"
        ),
        0.0
    );
    assert_eq!(metric(&fresh, active), 1.0);
    let labels = "{adapter=\"triage@base\",stream=\"format\",task=\"triage\"}";
    assert_eq!(
        metric(&fresh, &format!("retune_drift_log_e_value{labels}")),
        alarm.log_e.unwrap()
    );
    assert_eq!(
        metric(&fresh, &format!("retune_window_exchanges{labels}")),
        300.0
    );
    assert!(metric(&fresh, &format!("retune_reference_age_seconds{labels}")) > 1e6);
}

#[tokio::test]
async fn the_evidence_says_what_failed_since_when() {
    let world = World::new();
    let ledger = world.ledger().await;
    append(&ledger, drifting()).await;
    world.monitor(&ledger).0.pass().await.unwrap();
    let trigger = ledger.triggers(Some("triage")).await.unwrap().remove(0);
    let evidence = &trigger.evidence;
    // 60 of 300: the one-sided upper 95 % limit is 0.2418 (SciPy), and 0.01 is the tolerance.
    let any = &evidence["kinds"][0];
    assert!(
        (any["q0"].as_f64().unwrap() - 0.2518).abs() < 1e-3,
        "{evidence}"
    );
    assert_eq!(any["reference"], json!({"of": 300, "failures": 60}));
    assert_eq!(evidence["kinds"].as_array().unwrap().len(), 7);
    assert_eq!(evidence["leading_kind"], "any");
    let change = &evidence["change"];
    let first = change["request_id"].as_str().unwrap();
    let first: i64 = first.strip_prefix("chatcmpl-").unwrap().parse().unwrap();
    assert!(
        (490..=505).contains(&first),
        "the change came at 500, not at {first}"
    );
    let kinds = change["failures_by_kind"].as_object().unwrap();
    let count = |kind: &str| kinds[kind].as_u64().unwrap();
    assert_eq!(kinds.len(), 3);
    let sum = count("not_json") + count("schema");
    assert_eq!(
        (change["failures"].as_u64(), count("any")),
        (Some(sum), sum)
    );
    let newest = evidence["failing_request_ids"].as_array().unwrap();
    assert_eq!(newest[0], trigger.request_id);
    assert!(newest.len() <= 20 && newest.len() as u64 <= sum);
    let path = evidence["log_e_path"].as_array().unwrap();
    assert_eq!(
        path.last().unwrap(),
        &json!([trigger.exchanges, trigger.log_e])
    );
}

#[tokio::test]
async fn a_new_champion_has_its_own_stream_and_the_old_ones_alarm_rests() {
    let world = World::new();
    let ledger = world.ledger().await;
    let (mut monitor, registry) = world.monitor(&ledger);
    append(&ledger, drifting()).await;
    monitor.pass().await.unwrap();

    let examined = Reference {
        task: "triage".to_owned(),
        adapter: "triage@1".to_owned(),
        digest: Some("d".to_owned()),
        created: time(650),
        last: None,
        counts: counts(160, 1),
        prompts: None,
    };
    ledger.put_reference(&examined).await.unwrap();
    promote(&ledger, 1).await;
    let reports = monitor.pass().await.unwrap();
    assert_eq!(of(&reports, "triage@1").state, State::NotEnoughData);
    let old = of(&reports, "triage@base");
    assert_eq!(old.state, State::Warning);
    let active = "retune_alarm_active{adapter=\"triage@base\",kind=\"format\",task=\"triage\"}";
    assert_eq!(metric(&registry, active), 0.0);

    let by_one = |n: i64, failed: bool| Exchange {
        adapter: Some("triage@1".to_owned()),
        ..exchange(n, failed)
    };
    append(&ledger, (700..900).map(|n| by_one(n, n % 50 == 0))).await;
    let reports = monitor.pass().await.unwrap();
    assert_eq!(of(&reports, "triage@1").state, State::Ok);
    assert_eq!(
        of(&reports, "triage@1").exchanges,
        200,
        "an examination is no row of it"
    );
    append(&ledger, (900..950).map(|n| by_one(n, n % 2 == 0))).await;
    let reports = monitor.pass().await.unwrap();
    assert_eq!(of(&reports, "triage@1").state, State::Alarm);
    let triggers = ledger.triggers(None).await.unwrap();
    let adapters: Vec<_> = triggers.iter().map(|t| t.adapter.as_str()).collect();
    assert_eq!(adapters, ["triage@base", "triage@1"]);
    let (mut again, _) = world.monitor(&ledger);
    assert_eq!(again.pass().await.unwrap(), reports);
}

#[tokio::test]
async fn who_comes_back_starts_anew() {
    let world = World::new();
    let ledger = world.ledger().await;
    let (mut monitor, _) = world.monitor(&ledger);
    append(&ledger, drifting()).await;
    assert_eq!(
        of(&monitor.pass().await.unwrap(), "triage@base").state,
        State::Alarm
    );
    promote(&ledger, 1).await;
    assert_eq!(
        of(&monitor.pass().await.unwrap(), "triage@base").state,
        State::Warning
    );
    let stages = ledger.stages("triage").await.unwrap();
    let back = Stages {
        champion: None,
        ..stages.clone()
    };
    ledger.set_stages("triage", stages.seq, back).await.unwrap();
    let reports = monitor.pass().await.unwrap();
    let base = of(&reports, "triage@base");
    assert_eq!((base.state, base.exchanges), (State::NotEnoughData, 0));
    let since = ledger.stages("triage").await.unwrap().at.unwrap();
    let after = |n: i64, failed: bool| Exchange {
        ts: since + TimeDelta::seconds(n + 1),
        ..exchange(n, failed)
    };
    append(&ledger, (0..200).map(|n| after(n, n % 5 == 0))).await;
    let now = since + TimeDelta::days(1);
    let reports = monitor.pass_at(now).await.unwrap();
    let base = of(&reports, "triage@base");
    assert_eq!((base.state, base.exchanges), (State::Ok, 200));
    assert_eq!(ledger.triggers(None).await.unwrap().len(), 1);
    let (mut again, _) = world.monitor(&ledger);
    assert_eq!(again.pass_at(now).await.unwrap(), reports);

    append(&ledger, (200..300).map(|n| after(n, n % 3 != 0))).await;
    let reports = monitor.pass_at(now).await.unwrap();
    assert_eq!(of(&reports, "triage@base").state, State::Alarm);
    // The one of before has its id, this one another.
    assert_eq!(ledger.triggers(None).await.unwrap().len(), 2);
}

#[tokio::test]
async fn answers_that_become_other_ones_are_noticed() {
    let world = World::new();
    let ledger = world.ledger().await;
    let (mut monitor, _) = world.monitor(&ledger);
    let says = |n: i64, text: &str| Exchange {
        answer: Some(text.to_owned()),
        ..exchange(n, false)
    };
    let usual = |n: i64| says(n, &"word ".repeat(5 + (n % 7) as usize));
    append(&ledger, (0..600).map(usual)).await;
    let reports = monitor.pass().await.unwrap();
    let output = |reports: &[StreamReport]| {
        let mut of_stream = reports.iter().filter(|r| r.stream == Stream::Output);
        of_stream.next().unwrap().clone()
    };
    assert_eq!(
        (output(&reports).state, output(&reports).exchanges),
        (State::Ok, 300)
    );
    let odd = |n: i64| match n % 4 {
        0 => says(n, "I'm sorry, but I can't help with that."),
        _ => usual(n),
    };
    append(&ledger, (600..800).map(odd)).await;
    let reports = monitor.pass().await.unwrap();
    assert_eq!(output(&reports).state, State::Alarm);
    assert_eq!(of(&reports, "triage@base").state, State::Ok);
    let triggers = ledger.triggers(None).await.unwrap();
    let [trigger] = triggers.as_slice() else {
        panic!("{triggers:?}")
    };
    assert_eq!(trigger.kind, retune_task::AlarmKind::Output);
    assert_eq!(trigger.evidence["leading_kind"], "refusal");
    let reference = ledger.reference("triage", "triage@base", None).await;
    let texts = reference.unwrap().unwrap().counts.texts.unwrap();
    assert_eq!((texts.answers, texts.characters), (300, (25, 55)));
}

#[tokio::test]
async fn ended_runs_are_counted_once() {
    let world = World::new();
    let ledger = world.ledger().await;
    let (mut monitor, registry) = world.monitor(&ledger);
    let run = |id: &str, second, state: &str, verdict: Option<&str>| Run {
        run_id: id.to_owned(),
        ts: time(second),
        task: "triage".to_owned(),
        started_by: "person".to_owned(),
        state: state.to_owned(),
        verdict: verdict.map(str::to_owned),
        ..Run::default()
    };
    for row in [
        run("a", 1, "training", None),
        run("a", 2, "done", Some("promote")),
        run("b", 3, "failed", None),
        run("c", 4, "training", None),
    ] {
        ledger.append_run(&row).await.unwrap();
    }
    monitor.pass().await.unwrap();
    monitor.pass().await.unwrap();
    let count = |verdict: &str| {
        metric(
            &registry,
            &format!("retune_runs_total{{task=\"triage\",verdict=\"{verdict}\"}}"),
        )
    };
    assert_eq!(
        (count("promote"), count("failed"), count("reject")),
        (1.0, 1.0, 0.0)
    );
    let last = "retune_last_run_timestamp_seconds{task=\"triage\"}";
    assert_eq!(metric(&registry, last), time(3).timestamp() as f64);
    ledger
        .append_run(&run("c", 9, "done", Some("reject")))
        .await
        .unwrap();
    monitor.pass().await.unwrap();
    assert_eq!((count("promote"), count("reject")), (1.0, 1.0));
    assert_eq!(metric(&registry, last), time(9).timestamp() as f64);
}

#[tokio::test]
async fn a_failing_pass_is_counted_and_does_not_end_it() {
    let world = World::new();
    let ledger = world.ledger().await;
    append(&ledger, drifting()).await;
    let broken = world.folder.path().join("stages/triage");
    std::fs::create_dir_all(&broken).unwrap();
    std::fs::write(broken.join("1.json"), "{").unwrap();
    let (monitor, registry) = world.monitor(&ledger);
    let stop = CancellationToken::new();
    let running = tokio::spawn(monitor.run(stop.clone()));
    let patience = std::time::Instant::now();
    let wait = async |line: &str, wanted: f64| {
        while metric(&registry, line) < wanted {
            assert!(patience.elapsed().as_secs() < 30, "{line}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    wait("retune_monitor_pass_failures_total ", 1.0).await;
    assert_eq!(
        metric(&registry, "retune_monitor_last_pass_timestamp_seconds "),
        0.0
    );
    std::fs::remove_file(broken.join("1.json")).unwrap();
    wait("retune_alarms_total{kind=\"format\",task=\"triage\"}", 1.0).await;
    stop.cancel();
    running.await.unwrap();
}

#[test]
fn a_report_is_the_line_that_scripts_read() {
    let report = StreamReport {
        task: "triage".to_owned(),
        adapter: "triage@base".to_owned(),
        stream: crate::Stream::Format,
        state: State::NotEnoughData,
        exchanges: 3,
        log_e: Some(0.5),
        threshold_log: Some(16.0),
        since: Some(time(0)),
        alarm: None,
    };
    assert_eq!(
        serde_json::to_string(&report).unwrap(),
        r#"{"task":"triage","adapter":"triage@base","stream":"format","state":"not enough data","exchanges":3,"log_e":0.5,"threshold_log":16.0,"since":"2023-11-14T22:13:20Z","alarm":null}"#
    );
}
