//! Processes that keep rows, killed at any moment, and ones whose writes break off.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::Utc;
use retune_ledger::{Error, FeedbackQuery, Ledger};
use retune_task::Store;

use super::{all_once, append, feedback, seen, store};

/// Keeps rows until it is killed, or a hundred are kept behind one that was not; what is said on stdout is so.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a part of other tests, which start it as a process of its own"]
async fn keeps_rows_in_a_process_of_its_own() {
    let Ok(folder) = std::env::var("RETUNE_TEST_STORE") else {
        return;
    };
    let place = Store {
        append_rows: 30,
        append_seconds: 0.03,
        fsync_seconds: 0.02,
        ..store(Path::new(&folder))
    };
    let full = std::env::var("RETUNE_TEST_FULL").is_ok();
    let ledger = Ledger::open(&place).await.unwrap();
    let lost = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let (ledger, lost) = (ledger.clone(), lost.clone());
        tasks.push(tokio::spawn(async move {
            let mut left = 100;
            while left > 0 {
                match append(&ledger, &"long ".repeat(200)).await {
                    Ok(id) => {
                        println!("kept {id}");
                        ledger.append_feedback(feedback(&id)).await.unwrap();
                        println!("kept fb-{id}");
                        left -= u64::from(full && lost.load(Ordering::SeqCst));
                    }
                    Err(Error::Log { .. }) if full => {
                        println!("lost one");
                        lost.store(true, Ordering::SeqCst);
                    }
                    Err(e) => panic!("{e}"),
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    ledger.close().await.unwrap();
}

fn child(folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "killed::keeps_rows_in_a_process_of_its_own"])
        .args(["--ignored", "--nocapture"])
        .env("RETUNE_TEST_STORE", folder)
        .stdout(Stdio::piped());
    command
}

/// The whole lines of what it says, until it ends.
fn lines(stdout: impl std::io::Read) -> Vec<String> {
    let mut stdout = BufReader::new(stdout);
    let mut lines = Vec::new();
    let mut line = String::new();
    while stdout.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
        lines.push(std::mem::take(&mut line).trim().to_owned());
    }
    lines
}

fn kept(lines: &[String]) -> BTreeSet<String> {
    let kept = lines.iter().filter_map(|line| line.strip_prefix("kept "));
    kept.map(str::to_owned).collect()
}

/// `RETUNE_KILLS=50 cargo test …` for more than a handful.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_at_any_moment_loses_and_doubles_nothing() {
    let kills = std::env::var("RETUNE_KILLS").map_or(5, |n| n.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let mut all = BTreeSet::new();
    for round in 0..kills {
        let mut running = child(folder.path()).spawn().unwrap();
        let stdout = running.stdout.take().unwrap();
        let read = std::thread::spawn(move || lines(stdout));
        // From the start, when it takes over what the one before left, into the middle of writing and publishing.
        let pause = 20 + u64::from(Utc::now().timestamp_subsec_micros()) % 400;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        running.kill().unwrap();
        running.wait().unwrap();
        all.extend(kept(&read.join().unwrap()));
        if round % 5 == 0 {
            let beside = Ledger::open_briefly(&store(folder.path())).await.unwrap();
            all_once(&beside, &all).await;
        }
    }
    assert!(!all.is_empty(), "it never came to keep a row");
    let ledger = Ledger::open(&store(folder.path())).await.unwrap();
    ledger.flush().await.unwrap();
    all_once(&ledger, &all).await;
    let left = std::fs::read_dir(folder.path().join("wal")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        left.iter()
            .all(|name| name.to_string_lossy().starts_with('.')),
        "{left:?}"
    );
}

/// No file may be longer than 64 KiB: writes to the log break off in the middle, as on a full disk.
#[cfg(unix)]
#[tokio::test]
async fn a_write_that_breaks_off_costs_its_own_rows_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let child = child(folder.path());
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 128; exec \"$0\" \"$@\""])
        .arg(child.get_program())
        .args(child.get_args())
        .env("RETUNE_TEST_STORE", folder.path())
        .env("RETUNE_TEST_FULL", "1")
        .stdout(Stdio::piped());
    let mut running = limited.spawn().unwrap();
    let lines = lines(running.stdout.take().unwrap());
    assert!(running.wait().unwrap().success(), "{lines:?}");
    let kept = kept(&lines);
    assert!(kept.len() >= 800 && lines.iter().any(|line| line == "lost one"));
    let ledger = Ledger::open(&store(folder.path())).await.unwrap();
    ledger.flush().await.unwrap();
    all_once(&ledger, &kept).await;
    let rows = seen(&ledger).await.len();
    let feedback = ledger.feedback(&FeedbackQuery::default()).await.unwrap();
    assert_eq!(
        rows + feedback.len(),
        kept.len(),
        "none of those that were lost"
    );
}
