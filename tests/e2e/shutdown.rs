//! Ends, asked for and not: nothing that was answered is lost to SIGTERM, and a kill leaves a store that opens again.

use std::time::{Duration, Instant};

use crate::harness::{Server, folder, rows};

fn count(folder: &std::path::Path) -> u64 {
    rows(folder, "select count(*) as n from exchanges")[0]["n"]
        .as_u64()
        .unwrap()
}

#[tokio::test]
async fn sigterm_appends_everything() {
    let folder = folder();
    let mut server = Server::start(folder.path()).await;
    for n in 0..5 {
        server.ask(&format!("Refund order {n}, please.")).await;
    }
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(0));
    assert_eq!(count(folder.path()), 5);
}

#[tokio::test]
async fn a_log_that_nobody_reads_any_more_keeps_nothing_from_working() {
    let folder = folder();
    let mut server = Server::start_unheard(folder.path()).await;
    server.ask("Where is my parcel?").await;
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(0));
    assert_eq!(count(folder.path()), 1);
}

#[tokio::test]
async fn sigterm_finishes_what_is_under_way() {
    let folder = folder();
    let mut server = Server::start(folder.path()).await;
    let mut asked = tokio::task::JoinSet::new();
    for n in 0..6 {
        let url = format!("{}/v1/chat/completions", server.url);
        let body = crate::harness::question(&format!("Where is parcel {n}?"));
        let request = server.http.post(url).json(&body);
        asked.spawn(async move { request.send().await?.error_for_status()?.bytes().await });
    }
    tokio::time::sleep(Duration::from_millis(60)).await;
    server.signal("TERM");
    let mut answered = 0;
    while let Some(answer) = asked.join_next().await {
        // One that had not been accepted yet may be refused, but none may be cut short and counted.
        answered += u64::from(answer.unwrap().is_ok());
    }
    assert_eq!(server.exit_code().await, Some(0));
    assert_eq!(count(folder.path()), answered);
}

#[tokio::test]
async fn the_end_of_stdin_stops_a_child() {
    let folder = folder();
    let mut server = Server::start(folder.path()).await;
    server.ask("Hello?").await;
    // Waiting closes the child's stdin first.
    assert_eq!(server.exit_code().await, Some(0));
    assert_eq!(count(folder.path()), 1);
}

#[tokio::test]
async fn after_a_kill_the_store_opens_again_and_takes_more() {
    let folder = folder();
    let mut server = Server::start(folder.path()).await;
    server.ask("First question.").await;
    // Rows reach the tables within a second or so; what a kill may take is what had not yet.
    let give_up = Instant::now() + Duration::from_secs(20);
    while count(folder.path()) < 1 {
        assert!(Instant::now() < give_up, "a row within twenty seconds");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    server.signal("KILL");
    assert_eq!(server.exit_code().await, None);

    let mut server = Server::start(folder.path()).await;
    server.ask("Second question.").await;
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(0));
    let kept = rows(
        folder.path(),
        "select request_id, replica from exchanges order by ts, replica, seq",
    );
    assert_eq!(kept.len(), 2);
    assert_ne!(kept[0]["replica"], kept[1]["replica"]);
}
