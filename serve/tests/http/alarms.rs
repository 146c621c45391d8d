//! What somebody says to an alarm.

use chrono::{TimeDelta, Utc};
use retune_ledger::Trigger;
use retune_task::AlarmKind;
use serde_json::{Value, json};

use crate::support::Server;

const ALARM: &str = "count@base-format-20260101T000000000Z";

async fn alarmed() -> Server {
    let server = Server::start(&[]).await;
    let trigger = Trigger {
        alarm: ALARM.to_owned(),
        task: "count".to_owned(),
        adapter: "count@base".to_owned(),
        kind: AlarmKind::Format,
        ts: Utc::now(),
        request_id: "chatcmpl-1".to_owned(),
        exchanges: 400,
        log_e: 20.0,
        threshold_log: 18.0,
        evidence: json!({"test": "a test"}),
    };
    server.ledger.put_trigger(&trigger).await.unwrap();
    server
}

async fn say(server: &Server, alarm: &str, action: &str, body: &Value) -> (u16, Value) {
    let request = server.post(&format!("/admin/alarms/{alarm}/{action}"), body);
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_word_to_an_alarm_stands_in_the_list() {
    let server = alarmed().await;
    let listed = async || server.get("/admin/alarms").await.1["data"].clone();
    assert_eq!(listed().await[0]["word"], json!(null));
    assert_eq!(listed().await[0]["evidence"]["test"], "a test");

    let until = (Utc::now() + TimeDelta::hours(2)).to_rfc3339();
    let body = json!({"reason": "the shop moves", "until": until});
    let (status, said) = say(&server, ALARM, "silence", &body).await;
    assert_eq!(status, 200, "{said}");
    assert_eq!(said["alarm"], ALARM);
    assert_eq!(listed().await[0]["word"], said["word"]);
    assert_eq!(said["word"]["reason"], "the shop moves");
    assert!(said["word"]["silenced_until"].is_string());

    let body = json!({"reason": "we retrain on Monday"});
    assert_eq!(say(&server, ALARM, "acknowledge", &body).await.0, 200);
    let word = listed().await[0]["word"].clone();
    assert_eq!(word["reason"], "we retrain on Monday");
    assert_eq!(word["silenced_until"], json!(null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_said_is_refused_by_name() {
    let server = alarmed().await;
    let until = json!((Utc::now() + TimeDelta::hours(2)).to_rfc3339());
    let past = json!((Utc::now() - TimeDelta::hours(2)).to_rfc3339());
    for (alarm, action, body, status, param) in [
        (
            "none",
            "acknowledge",
            json!({"reason": "r"}),
            404,
            json!(null),
        ),
        (ALARM, "dance", json!({"reason": "r"}), 404, json!(null)),
        (ALARM, "acknowledge", json!({}), 400, json!("reason")),
        (
            ALARM,
            "acknowledge",
            json!({"reason": " "}),
            400,
            json!("reason"),
        ),
        (
            ALARM,
            "acknowledge",
            json!({"reason": "r", "until": until}),
            400,
            json!("until"),
        ),
        (
            ALARM,
            "silence",
            json!({"reason": "r"}),
            400,
            json!("until"),
        ),
        (
            ALARM,
            "silence",
            json!({"reason": "r", "until": past}),
            400,
            json!("until"),
        ),
        (
            ALARM,
            "silence",
            json!({"reason": "r", "until": "soon"}),
            400,
            json!("until"),
        ),
        (
            ALARM,
            "silence",
            json!({"reason": 7, "until": until}),
            400,
            json!("reason"),
        ),
    ] {
        let (found, said) = say(&server, alarm, action, &body).await;
        assert_eq!((found, &said["error"]["param"]), (status, &param), "{body}");
    }
    assert_eq!(
        server.get("/admin/alarms").await.1["data"][0]["word"],
        json!(null)
    );
}
