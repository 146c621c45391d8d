//! Fine-tuning jobs and other trainers, as processes: killed, halted with their server, out of memory, on another server.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Server, folder, retune, run, text};

/// Lines of a training file.
fn lines(count: usize) -> String {
    let mut lines = String::new();
    for n in 0..count {
        let line = json!({"messages": [
            {"role": "user", "content": format!("Order {n} has not come.")},
            {"role": "assistant", "content": "ahoy"},
        ]});
        writeln!(lines, "{line}").unwrap();
    }
    lines
}

/// A job on 160 lines, and its path.
async fn job(server: &Server, epochs: usize) -> String {
    let settings = json!({"n_epochs": epochs, "batch_size": 8});
    job_on(server, "pocket", 160, settings).await
}

/// A job for the task `ahoy` on so many lines, and its path.
pub(crate) async fn job_on(server: &Server, base: &str, count: usize, settings: Value) -> String {
    let form = format!(
        "--part\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n\
         --part\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n{}\r\n--part--\r\n",
        lines(count)
    );
    let request = server.http.post(format!("{}/v1/files", server.url));
    let request = request.header("content-type", "multipart/form-data; boundary=part");
    let file: Value = request
        .body(form)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let body = json!({
        "model": base, "training_file": file["id"], "suffix": "ahoy", "seed": 1, "hyperparameters": settings,
    });
    let job: Value = server
        .post("/v1/fine_tuning/jobs", &body)
        .await
        .json()
        .await
        .unwrap();
    format!("/v1/fine_tuning/jobs/{}", job["id"].as_str().unwrap())
}

async fn get(server: &Server, path: &str) -> Value {
    server.get(path).await.json().await.unwrap()
}

/// The steps that were told, in order.
async fn steps(server: &Server, job: &str) -> Vec<u64> {
    let (mut steps, mut after) = (Vec::new(), String::new());
    loop {
        let page = get(server, &format!("{job}/events?limit=100{after}")).await;
        let events = page["data"].as_array().unwrap();
        steps.extend(
            events
                .iter()
                .filter_map(|event| event["data"]["step"].as_u64()),
        );
        if page["has_more"] == json!(false) {
            steps.reverse();
            return steps;
        }
        after = format!("&after={}", page["last_id"].as_str().unwrap());
    }
}

/// Waits until so many steps were told.
async fn trains(server: &Server, job: &str, wanted: usize) {
    let give_up = Instant::now() + Duration::from_secs(120);
    while steps(server, job).await.len() < wanted {
        assert!(Instant::now() < give_up, "{}", get(server, job).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn end(server: &Server, job: &str) -> Value {
    let give_up = Instant::now() + Duration::from_secs(240);
    loop {
        let state = get(server, job).await;
        if ["succeeded", "failed", "cancelled"].contains(&state["status"].as_str().unwrap()) {
            return state;
        }
        assert!(Instant::now() < give_up, "{state}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Processes that this one started for a job.
#[cfg(target_os = "linux")]
fn trainers(server: &Server) -> Vec<u32> {
    let of = server.pid();
    let tasks = std::fs::read_dir(format!("/proc/{of}/task")).unwrap();
    let children =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
    let children: Vec<String> = children.collect();
    let pids = children.iter().flat_map(|line| line.split_whitespace());
    pids.map(|pid| pid.parse().unwrap()).collect()
}

async fn answers(server: &Server, model: &str) -> Value {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "Order 999 has not come."}], "temperature": 0, "max_tokens": 8});
    let answer: Value = server
        .post("/v1/chat/completions", &body)
        .await
        .json()
        .await
        .unwrap();
    answer["choices"][0]["message"]["content"].clone()
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_training_goes_on_and_one_whose_server_ends_too() {
    let folder = folder();
    let mut server = Server::start(folder.path()).await;
    let job = job(&server, 6).await;
    trains(&server, &job, 10).await;
    let killed = trainers(&server);
    assert_eq!(killed.len(), 1, "{killed:?}");
    let status = std::process::Command::new("sh")
        .args(["-c", &format!("kill -9 {}", killed[0])])
        .status();
    assert!(status.unwrap().success());
    // The server does not notice.
    server.ask("Where is my parcel?").await;
    server.log_with("did not finish").await;
    let told = steps(&server, &job).await.len();
    trains(&server, &job, told + 10).await;
    // Told to end, the server ends its training, too, and soon.
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(0));
    let server = Server::start(folder.path()).await;
    let ended = end(&server, &job).await;
    assert_eq!(ended["status"], "succeeded", "{ended}");
    // No step is missing, none is told twice.
    assert_eq!(steps(&server, &job).await, (1..=120).collect::<Vec<u64>>());
    let checkpoints = get(&server, &format!("{job}/checkpoints")).await;
    assert_eq!(checkpoints["data"].as_array().unwrap().len(), 6);
    let model = ended["fine_tuned_model"].as_str().unwrap();
    assert_eq!(model, "ft:pocket:retune:ahoy:6");
    assert_eq!(answers(&server, model).await, "ahoy");
    // Its adapter is one as any other, though its task is in no configuration.
    for arguments in [&["adapter", "promote", "ahoy@6"][..], &["adapter", "list"]] {
        let output = run(folder.path(), arguments);
        let told = text(&output.stdout);
        assert!(
            told.contains("ahoy@6") && told.contains("champion"),
            "{told}{}",
            text(&output.stderr)
        );
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_that_takes_too_much_memory_ends_and_says_so() {
    let folder = folder();
    let server = Server::start_with(folder.path(), &[("RETUNE_TRAINING__MEMORY_MIB", "1")]).await;
    let job = job(&server, 1).await;
    let ended = end(&server, &job).await;
    assert_eq!(
        (&ended["status"], &ended["error"]["code"]),
        (&json!("failed"), &json!("out_of_memory"))
    );
    let message = ended["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("training.memory_mib allows 1"),
        "{message}"
    );
    server.ask("Where is my parcel?").await;
}

/// A run of one server trains on another, by OpenAI's API.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_trains_on_another_server() {
    let (here, there) = (folder(), folder());
    let trainer = Server::start(there.path()).await;
    let server = Server::start(here.path()).await;
    let mut log = String::new();
    for n in 0..150 {
        let answer = json!({"team": "shipping", "urgent": false, "product": null, "order": (200_000 + n).to_string()});
        let line = json!({"task": "triage", "rating": 5, "messages": [
            {"role": "user", "content": format!("Order {} is late, where is it?", 200_000 + n)},
            {"role": "assistant", "content": answer.to_string()},
        ]});
        writeln!(log, "{line}").unwrap();
    }
    std::fs::write(here.path().join("log.jsonl"), log).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = retune(here.path());
        command.args(arguments).envs([
            ("RETUNE_TASK__TRIAGE__RETRAIN__TRAINER", "openai"),
            ("RETUNE_TASK__TRIAGE__RETRAIN__TRAINER_MODEL", "pocket"),
            ("RETUNE_TASK__TRIAGE__RETRAIN__MIN_EXAMPLES", "50"),
            ("RETUNE_TASK__TRIAGE__RETRAIN__MIN_PAIRS", "16"),
            ("RETUNE_TASK__TRIAGE__RETRAIN__LORA__EPOCHS", "2"),
        ]);
        command.env(
            "RETUNE_TASK__TRIAGE__RETRAIN__TRAINER_URL",
            format!("{}/v1", trainer.url),
        );
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    run(&["ledger", "import", "log.jsonl"]);
    let report = tokio::task::block_in_place(|| {
        run(&[
            "retrain",
            "--task",
            "triage",
            "--server",
            &server.url,
            "--json",
        ])
    });
    let report: Value = serde_json::from_str(report.lines().last().unwrap()).unwrap();
    assert_eq!(report["adapter"], "triage@1", "{report}");
    assert!(
        report["votes"].is_u64() && report["training_steps"].as_u64() > Some(5),
        "{report}"
    );
    // The other server has the job, and none of the examples.
    let jobs = get(&trainer, "/v1/fine_tuning/jobs").await;
    assert_eq!(jobs["data"][0]["status"], "succeeded", "{jobs}");
    let files = get(&trainer, "/v1/files?purpose=fine-tune").await;
    assert_eq!(files["data"], json!([]));
    let (_, digest) = (report["verdict"].clone(), report["digest"].clone());
    let shown: Value = get(&server, "/admin/adapters/triage@1").await;
    assert_eq!(shown["manifest"]["digest"], digest);
}
