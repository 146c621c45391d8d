//! A task's whole surroundings for tests of runs: a tiny random base, the real trainer and ledger; only the server is a stand-in, since the
//! real one is no dependency of this crate (the demo runs against it). It moves stages in the ledger as the server does, and can be told to
//! fail.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use retune_ledger::{Action, Ledger, Run};
use serde_json::json;

use crate::run::run;
use crate::testing::{Reply, Request, StandIn, asked, config, corrected, write_base};
use crate::{Error, Event, Limits, Options, Report, Start, StartedBy, run_id};

pub(crate) struct House {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) server: StandIn,
    pub(crate) options: Options,
    fault: Arc<Mutex<Option<Fault>>>,
}

/// The server fails once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    /// At the first request whose path has this.
    pub(crate) path: &'static str,
    /// Having done what it was asked, and only its answer is lost.
    pub(crate) done: bool,
}

/// The candidates know what the corrections say; whoever else is asked does not.
async fn reply(ledger: Ledger, request: Request) -> Reply {
    let parts: Vec<&str> = request.path.split('/').collect();
    if request.path == "/v1/chat/completions" {
        let model = request.body["model"].as_str().unwrap();
        let number = model.strip_prefix("ask@").unwrap();
        let prompt = request.body["messages"][0]["content"].as_str().unwrap();
        return match number.parse() {
            Ok(number) => {
                let digest = ledger.adapter("ask", number).await.unwrap().manifest.digest;
                Reply::answer(model, Some(&digest), &json!({"is": prompt}).to_string())
            }
            Err(_) => Reply::answer(model, None, r#"{"is":"?"}"#),
        };
    }
    if request.path == "/admin/adapters" {
        return Reply::ok(json!({}));
    }
    let number: u32 = parts[3].strip_prefix("ask@").unwrap().parse().unwrap();
    let stages = ledger.stages("ask").await.unwrap();
    let expected = request.body["expected_seq"].as_u64();
    if expected.is_some_and(|seq| seq != stages.seq) {
        return Reply::error(409, "somebody was faster");
    }
    let action = match parts[4] {
        "load" => return Reply::ok(json!({})),
        "promote" => {
            let expected = request.body["expected_champion"].as_str().unwrap();
            if let Err(refused) = stages.expect_champion("ask", expected) {
                return Reply::error(409, &refused.0);
            }
            Action::Promote
        }
        "reject" => Action::Reject,
        "canary" => Action::Canary(request.body["share"].as_f64().unwrap()),
        other => panic!("{other}"),
    };
    let after = match stages.after("ask", Some(number), action, &[]) {
        Ok(after) => after,
        Err(refused) => return Reply::error(409, &refused.0),
    };
    let by = request.headers.get("retune-run").cloned();
    let after = after.decided(by, request.body["reason"].as_str()).unwrap();
    ledger.set_stages("ask", stages.seq, after).await.unwrap();
    Reply::ok(json!({}))
}

impl House {
    pub(crate) async fn new(exchanges: u64, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), more);
        let base = folder.path().join("base");
        write_base(&base);
        let ledger = Ledger::open(&config.store).await.unwrap();
        for n in 0..exchanges {
            let prompt = format!("prompt {n}{}", " please".repeat(n as usize % 3));
            ledger
                .append_exchange(asked(n, &prompt, r#"{"is":"?"}"#))
                .await
                .unwrap();
            ledger
                .append_feedback(corrected(
                    n,
                    1000,
                    "ann",
                    &format!(r#"{{"is":"{prompt}"}}"#),
                ))
                .await
                .unwrap();
        }
        ledger.flush().await.unwrap();
        let (served, fault) = (ledger.clone(), Arc::new(Mutex::new(None::<Fault>)));
        let faulty = Arc::clone(&fault);
        let server = StandIn::start(move |request| {
            let mut fault = faulty.lock().unwrap();
            let now = fault.take_if(|fault| request.path.contains(fault.path));
            let served = served.clone();
            async move {
                let failed = Reply::error(500, "it failed");
                match now {
                    None => reply(served, request).await,
                    Some(Fault { done: false, .. }) => failed,
                    Some(Fault { done: true, .. }) => {
                        reply(served, request).await;
                        failed
                    }
                }
            }
        })
        .await;
        let mut options = Options::new(
            Arc::new(config),
            base,
            ledger,
            server.url.clone(),
            reqwest::Client::new(),
        );
        options.limits = Limits {
            pairs: Duration::from_millis(50),
            poll: Duration::from_millis(10),
            retry: Duration::from_millis(1),
            ..Limits::default()
        };
        Self {
            folder,
            server,
            options,
            fault,
        }
    }

    pub(crate) async fn run(&self, start: &Start) -> (Result<Report, Error>, Vec<Event>) {
        let mut events = Vec::new();
        let report = run(&self.options, start, &mut |event| {
            events.push(event.clone())
        })
        .await;
        (report, events)
    }

    /// The next request to that path fails.
    pub(crate) fn fail_once(&self, fault: Fault) {
        *self.fault.lock().unwrap() = Some(fault);
    }

    pub(crate) async fn row(&self, start: &Start) -> Run {
        let id = run_id(start);
        self.options
            .ledger
            .runs()
            .await
            .unwrap()
            .into_iter()
            .find(|run| run.run_id == id)
            .unwrap()
    }

    pub(crate) fn asked(&self, what: &str) -> usize {
        self.server
            .paths()
            .iter()
            .filter(|path| path.contains(what))
            .count()
    }
}

/// Enough that the held-out ones (15 %) can rule out a loss of format or length.
pub(crate) const EXCHANGES: u64 = 450;
pub(crate) const AUTO: &str = "promote = \"auto\"\n[task.retrain.lora]\nepochs = 2";

pub(crate) fn start() -> Start {
    Start {
        task: "ask".to_owned(),
        started_by: StartedBy::Trigger("alarm-1".to_owned()),
    }
}
