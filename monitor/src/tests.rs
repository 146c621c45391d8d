//! The monitor on a real ledger in a temporary folder: references, alarms, restarts, replicas, what does not count.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use chrono::{DateTime, TimeDelta, Utc};
use prometheus::{Registry, TextEncoder};
use retune_ledger::{Cursor, Exchange, Ledger, Purpose, Reference, Run, Stages};
use retune_task::{Config, Store};
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{Monitor, State, StreamReport};

fn time(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + second, 0).unwrap()
}

/// The `n`th exchange, in second `n`, answered by the baseline of `triage`.
fn exchange(n: i64, failed: bool) -> Exchange {
    Exchange {
        request_id: format!("chatcmpl-{n}"),
        replica: "0000aaaa".to_owned(),
        seq: 0,
        ts: time(n),
        purpose: Purpose::User,
        task: Some("triage".to_owned()),
        model_requested: "triage".to_owned(),
        adapter: Some("triage@base".to_owned()),
        adapter_digest: None,
        stage: Some("champion".to_owned()),
        base: "pocket".to_owned(),
        api_key_id: None,
        user: None,
        metadata: None,
        conversation: String::new(),
        messages: None,
        answer: None,
        tool_calls: None,
        finish_reason: Some("stop".to_owned()),
        prompt_tokens: 1,
        completion_tokens: 1,
        time_to_first_token_ms: None,
        duration_ms: 1.0,
        parameters: json!({}),
        code: 200,
        format_valid: Some(!failed),
        format_reason: failed.then(|| if n % 2 == 0 { "not_json" } else { "enum" }.to_owned()),
        run_id: None,
    }
}

/// 500 exchanges of which every fifth fails, then 100 of which two in three do.
fn drifting() -> Vec<Exchange> {
    (0..600)
        .map(|n| exchange(n, if n < 500 { n % 5 == 0 } else { n % 3 != 0 }))
        .collect()
}

struct World {
    folder: TempDir,
    config: Config,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::load(None, []).unwrap();
        Self { folder, config }
    }

    async fn ledger(&self) -> Ledger {
        let store = Store {
            url: format!("file:{}", self.folder.path().display()),
            ..self.config.store.clone()
        };
        Ledger::open(&store).await.unwrap()
    }

    fn monitor(&self, ledger: &Ledger) -> (Monitor, Registry) {
        let registry = Registry::new();
        let monitor = Monitor::new(&self.config, ledger.clone(), &registry).unwrap();
        (monitor, registry)
    }
}

async fn append(ledger: &Ledger, rows: impl IntoIterator<Item = Exchange>) {
    for row in rows {
        ledger.append_exchange(row).unwrap();
    }
    ledger.flush().await.unwrap();
}

fn of<'a>(reports: &'a [StreamReport], adapter: &str) -> &'a StreamReport {
    reports.iter().find(|r| r.adapter == adapter).unwrap()
}

async fn promote(ledger: &Ledger, number: u32) {
    let stages = ledger.stages("triage").await.unwrap();
    let after = Stages {
        champion: Some(number),
        ..stages.clone()
    };
    ledger
        .set_stages("triage", stages.seq, after)
        .await
        .unwrap();
}

fn metric(registry: &Registry, line: &str) -> f64 {
    let text = TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap();
    let found = text.lines().find_map(|l| l.strip_prefix(line));
    let value = found.unwrap_or_else(|| panic!("no {line} in:\n{text}"));
    value.trim().parse().unwrap()
}

async fn windows(ledger: &Ledger) -> String {
    let rows = ledger
        .sql("select adapter, stream, state, exchanges, failures, count(*) as n from windows group by 1, 2, 3, 4, 5 order by exchanges")
        .await
        .unwrap();
    arrow::util::pretty::pretty_format_batches(&rows)
        .unwrap()
        .to_string()
}

#[tokio::test]
async fn no_reference_then_ok_then_an_alarm_and_a_restart_arrives_there_too() {
    let world = World::new();
    let ledger = world.ledger().await;
    let (mut monitor, registry) = world.monitor(&ledger);
    let rows = drifting();

    let reports = monitor.pass().await.unwrap();
    assert_eq!(reports.len(), 1, "the baseline serves: {reports:?}");
    let nothing = of(&reports, "triage@base");
    assert_eq!(
        (nothing.state, nothing.exchanges, nothing.log_e),
        (State::NoReference, 0, None)
    );

    append(&ledger, rows[..299].to_vec()).await;
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
    assert_eq!((reference.exchanges, reference.format_invalid), (300, 60));
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
            && (trigger.threshold_log - 1e7_f64.ln()).abs() < 1e-9
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
    assert!(
        (evidence["q0"].as_f64().unwrap() - 0.2518).abs() < 1e-3,
        "{evidence}"
    );
    assert_eq!(evidence["reference"]["format_invalid"], 60);
    let change = &evidence["change"];
    let first = change["request_id"].as_str().unwrap();
    let first: i64 = first.strip_prefix("chatcmpl-").unwrap().parse().unwrap();
    assert!(
        (490..=505).contains(&first),
        "the change came at 500, not at {first}"
    );
    let reasons = change["failures_by_reason"].as_object().unwrap();
    let sum: u64 = reasons.values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(reasons.len(), 2);
    assert_eq!(change["failures"], sum);
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
async fn two_monitors_create_one_trigger_and_one_history() {
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
        for purpose in [Purpose::Examination, Purpose::Shadow, Purpose::Probe] {
            rows.push(failed(n, &|row| row.purpose = purpose));
        }
        rows.push(failed(n, &|row| row.task = Some("closed".to_owned())));
        rows.push(failed(n, &|row| row.task = None));
        rows.push(failed(n, &|row| row.format_valid = None));
    }
    append(&ledger, rows).await;
    let reports = world.monitor(&ledger).0.pass().await.unwrap();
    let [only] = reports.as_slice() else {
        panic!("{reports:?}")
    };
    assert_eq!((only.adapter.as_str(), only.exchanges), ("triage@base", 1));
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
        references.0.unwrap().format_invalid,
        references.1.unwrap().format_invalid
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
    // Two seconds and twice the age at which rows are appended.
    assert_eq!(monitor.pass_at(time(604)).await.unwrap(), shown);
    assert_eq!(ledger.triggers(None).await.unwrap().len(), 1);
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
        exchanges: 100,
        format_invalid: 90,
        last: Some(last),
        prompts: None,
    };
    assert!(ledger.put_reference(&theirs).await.unwrap());
    let reports = monitor.pass().await.unwrap();
    let found = of(&reports, "triage@base");
    assert_eq!((found.state, found.exchanges), (State::Ok, 100));

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
        exchanges: 160,
        format_invalid: 1,
        last: None,
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
    };
    assert_eq!(
        serde_json::to_string(&report).unwrap(),
        r#"{"task":"triage","adapter":"triage@base","stream":"format","state":"not enough data","exchanges":3,"log_e":0.5,"threshold_log":16.0,"since":"2023-11-14T22:13:20Z"}"#
    );
}
