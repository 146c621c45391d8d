//! People as judges: a run that leaves its pairs to raters, and goes on by itself once they have decided.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Server, folder, retune, run, text};

/// What everybody learns to answer: as long as what the base says, so that neither takes longer on any machine.
const ANSWER: &str = "billing";
const ENV: [(&str, &str); 4] = [
    ("RETUNE_TASK__ABOUT__RETRAIN__JUDGE__BY", "people"),
    (
        "RETUNE_TASK__ABOUT__RETRAIN__JUDGE__CRITERIA",
        "It says what it is about.",
    ),
    ("RETUNE_TASK__ABOUT__RETRAIN__PROMOTE", "auto"),
    ("RETUNE_TASK__ABOUT__RETRAIN__REGRESSION", "off"),
];
const WORDS: [&str; 12] = [
    "green", "broken", "second", "lost", "heavy", "late", "small", "wet", "new", "blue", "old",
    "open",
];

fn question(n: usize) -> String {
    let word = |n: usize| WORDS[n % WORDS.len()];
    let (a, b, c) = (word(n), word(n / 12 + 3), word(n / 5 + 7));
    format!(
        "the {a} parcel number {} came {b} and {c}",
        n * 7919 % 10_007
    )
}

fn key(folder: &std::path::Path, role: &str) -> String {
    let made = run(
        folder,
        &["keys", "create", "--json", "--name", role, "--role", role],
    );
    let made: Value = serde_json::from_str(&text(&made.stdout)).unwrap();
    made["key"].as_str().unwrap().to_owned()
}

struct Rater<'a> {
    server: &'a Server,
    key: &'a str,
}

impl Rater<'_> {
    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let request = self.server.http.get(format!("{}{path}", self.server.url));
        let response = request.bearer_auth(self.key).send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    async fn vote(&self, id: &str, body: &Value) -> StatusCode {
        let url = format!("{}/v1/pairs/{id}", self.server.url);
        let request = self.server.http.post(url).bearer_auth(self.key);
        request.json(body).send().await.unwrap().status()
    }
}

/// Waits until the monitor says that so many pairs wait.
async fn waiting(server: &Server, is_right: impl Fn(u64) -> bool) {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        let metrics = server.get("/metrics").await.text().await.unwrap();
        let pairs = metrics
            .lines()
            .find_map(|line| line.strip_prefix("retune_pairs_waiting{task=\"about\"} "));
        if pairs.is_some_and(|pairs| is_right(pairs.parse().unwrap())) {
            return;
        }
        assert!(Instant::now() < give_up, "{pairs:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raters_decide_blindly_and_the_run_goes_on_by_itself() {
    let folder = folder();
    std::fs::write(folder.path().join("prompt.txt"), "Say what it is about.\n").unwrap();
    let toml = "[[task]]\nname = \"about\"\nprompt = \"prompt.txt\"\nadapter_prompt = \"About?\"\n[task.retrain]\nmin_examples = 50\nmin_pairs = 16\n\
                [task.retrain.lora]\nepochs = 2\n";
    std::fs::write(folder.path().join("retune.toml"), toml).unwrap();
    let mut log = String::new();
    for n in 0..300 {
        let line = json!({"task": "about", "rating": 4, "messages": [
            {"role": "user", "content": question(n)}, {"role": "assistant", "content": ANSWER},
        ]});
        writeln!(log, "{line}").unwrap();
    }
    std::fs::write(folder.path().join("log.jsonl"), log).unwrap();
    let imported = run(folder.path(), &["ledger", "import", "log.jsonl"]);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    let [admin, rater, app] = ["admin", "rater", "app"].map(|role| key(folder.path(), role));
    let server = Server::start_with(folder.path(), &ENV).await;

    let mut command = retune(folder.path());
    command.args([
        "retrain",
        "--task",
        "about",
        "--server",
        &server.url,
        "--json",
    ]);
    command.envs(ENV).env("RETUNE_API_KEY", &admin);
    let output = tokio::task::block_in_place(|| command.output().unwrap());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
    let reason = report["reasons"][0].as_str().unwrap();
    assert!(reason.contains("wait for people"), "{report}");
    assert_eq!(
        (&report["verdict"], &report["judge"]),
        (&json!("wait"), &json!("people"))
    );

    let [admin, rater, app] = [&admin, &rater, &app].map(|key| Rater {
        server: &server,
        key,
    });
    assert_eq!(app.get("/v1/pairs").await.0, 403);
    let (_, runs) = admin.get("/admin/runs").await;
    assert_eq!(runs["data"][0]["state"], "judging", "{runs}");
    let (_, unknown) = rater.get("/v1/pairs?task=nothing").await;
    assert_eq!(unknown["error"]["param"], "task");
    assert_eq!(
        rater.vote("pair-none", &json!({"choice": "tie"})).await,
        404
    );

    waiting(&server, |pairs| pairs > 0).await;

    // As many as it takes, each blind: by its words alone.
    let mut votes = 0;
    let give_up = Instant::now() + Duration::from_secs(120);
    loop {
        let (status, list) = rater.get("/v1/pairs?limit=3").await;
        assert_eq!(status, 200, "{list}");
        for pair in list["data"].as_array().unwrap() {
            let mut names: Vec<&String> = pair.as_object().unwrap().keys().collect();
            names.sort();
            assert_eq!(
                names,
                [
                    "criteria", "id", "left", "messages", "object", "right", "task"
                ]
            );
            assert_eq!(pair["criteria"], "It says what it is about.");
            let choice = match (pair["left"] == ANSWER, pair["right"] == ANSWER) {
                (true, false) => "left",
                (false, true) => "right",
                _ => "tie",
            };
            let marks = |is_better| json!({"accuracy": if is_better { 5 } else { 2 }});
            let rubric =
                json!({"left": marks(choice == "left"), "right": marks(choice == "right")});
            let id = pair["id"].as_str().unwrap();
            let body = json!({"choice": choice, "rubric": rubric});
            match rater.vote(id, &body).await.as_u16() {
                201 => votes += 1,
                // The others have decided meanwhile.
                404 => break,
                status => panic!("{status}"),
            }
            let again = rater.vote(id, &json!({"choice": "tie"})).await.as_u16();
            assert!([404, 409].contains(&again), "{again}");
        }
        let (_, runs) = admin.get("/admin/runs").await;
        if runs["data"][0]["state"] == "done" {
            break;
        }
        assert!(Instant::now() < give_up, "{votes} votes: {runs}");
        if list["waiting"] == 0 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    let (_, runs) = admin.get("/admin/runs").await;
    let done = &runs["data"][0];
    assert_eq!(done["judge"], "people");
    // Better either way; a canary where the machine was so busy that one of them took longer.
    let verdict = done["verdict"].as_str().unwrap();
    assert!(["promote", "canary"].contains(&verdict), "{done}");
    assert_eq!(done["promoted"], verdict == "promote", "{done}");
    assert_eq!(done["wins"], done["votes"], "{done}");
    assert!(done["votes"].as_u64().unwrap() <= votes);
    let (_, rest) = rater.get("/v1/pairs").await;
    assert_eq!((&rest["waiting"], &rest["data"]), (&json!(0), &json!([])));
    waiting(&server, |pairs| pairs == 0).await;
    let metrics = server.get("/metrics").await.text().await.unwrap();
    assert!(
        metrics.contains(&format!(
            "retune_pair_votes_total{{task=\"about\"}} {votes}"
        )),
        "{votes}"
    );
}
