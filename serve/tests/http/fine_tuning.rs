//! Files and fine-tuning jobs, up to where a process that trains takes over; and the models that it leaves.

use chrono::Utc;
use retune_ledger::{JobCheckpoint, JobEntry, JobStatus, Manifest, Source, Upload};
use serde_json::{Value, json};

use crate::model;
use crate::support::Server;

const LINE: &str =
    r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;

async fn upload(server: &Server, fields: &[(&str, Option<&str>, &str)]) -> (u16, Value) {
    let mut form = String::new();
    for (name, file, text) in fields {
        let file = file.map_or_else(String::new, |file| format!("; filename=\"{file}\""));
        form += &format!(
            "--part\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n{text}\r\n"
        );
    }
    form += "--part--\r\n";
    let response = server
        .client
        .post(format!("{}/v1/files", server.url))
        .header("content-type", "multipart/form-data; boundary=part")
        .body(form)
        .send()
        .await
        .unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn good_file(server: &Server) -> String {
    let purpose = ("purpose", None, "fine-tune");
    let (status, file) = upload(server, &[purpose, ("file", Some("a.jsonl"), LINE)]).await;
    assert_eq!(status, 200, "{file}");
    file["id"].as_str().unwrap().to_owned()
}

async fn create(server: &Server, body: &Value) -> (u16, Value) {
    let response = server
        .post("/v1/fine_tuning/jobs", body)
        .send()
        .await
        .unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn delete(server: &Server, path: &str) -> u16 {
    let request = server.client.delete(format!("{}{path}", server.url));
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_comes_is_listed_and_goes() {
    let server = Server::start(&[]).await;
    let id = good_file(&server).await;
    let path = format!("/v1/files/{id}");
    let (_, file) = server.get(&path).await;
    assert_eq!(
        (&file["filename"], &file["bytes"]),
        (&json!("a.jsonl"), &json!(LINE.len()))
    );
    let other = good_file(&server).await;
    let listed = server.get("/v1/files?limit=1").await.1;
    assert_eq!(
        (&listed["data"][0]["id"], &listed["has_more"]),
        (&json!(other), &json!(true))
    );
    let rest = server
        .get(&format!("/v1/files?after={other}&purpose=fine-tune"))
        .await
        .1;
    assert_eq!(rest["data"], json!([file]));
    let content = server
        .client
        .get(format!("{}{path}/content", server.url))
        .send()
        .await
        .unwrap();
    assert_eq!(content.text().await.unwrap(), LINE);
    assert_eq!(delete(&server, &path).await, 200);
    assert_eq!(delete(&server, &path).await, 404);
    for gone in [
        path.clone(),
        format!("{path}/content"),
        "/v1/files/..%2Fkeys".to_owned(),
    ] {
        assert_eq!(server.get(&gone).await.0, 404, "{gone}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_upload_is_refused_by_name_and_leaves_nothing() {
    let server = Server::start(&[]).await;
    let purpose = ("purpose", None, "fine-tune");
    let file = |text| ("file", Some("a.jsonl"), text);
    let wrong = format!("{LINE}\n{{\"messages\": []}}");
    for (fields, param, says) in [
        (vec![purpose], json!("file"), "Missing"),
        (vec![file(LINE)], json!("purpose"), "Missing"),
        (
            vec![purpose, file(&wrong)],
            json!("file"),
            "Line 2: Invalid 'messages'",
        ),
        (vec![purpose, file("")], json!("file"), "no example"),
        (
            vec![("purpose", None, "batch"), file(LINE)],
            json!("purpose"),
            "not supported",
        ),
        (
            vec![purpose, file(LINE), ("colour", None, "red")],
            json!("colour"),
            "Unrecognized",
        ),
    ] {
        let (status, said) = upload(&server, &fields).await;
        assert_eq!((status, &said["error"]["param"]), (400, &param), "{said}");
        let message = said["error"]["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
    }
    let no_form = server.post("/v1/files", &json!({})).send().await.unwrap();
    assert_eq!(no_form.status(), 400);
    assert_eq!(server.get("/v1/files").await.1["data"], json!([]));
    let parts = std::fs::read_dir(server.ledger.files().join("uploads")).unwrap();
    assert_eq!(parts.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_asked_for_followed_and_halted() {
    let server = Server::start(&[]).await;
    let file = good_file(&server).await;
    let (status, job) = create(&server, &json!({"model": "tiny", "training_file": file, "suffix": "My Tone", "metadata": {"a": "b"}})).await;
    assert_eq!(status, 200, "{job}");
    assert_eq!(
        (&job["status"], &job["hyperparameters"]["n_epochs"]),
        (&json!("queued"), &json!("auto"))
    );
    let id = job["id"].as_str().unwrap();
    let path = format!("/v1/fine_tuning/jobs/{id}");
    let kept = server.ledger.job(id).await.unwrap().unwrap();
    assert_eq!(kept.job.task, "my-tone");

    let act = async |action: &str| {
        let response = server
            .client
            .post(format!("{}{path}/{action}", server.url))
            .send()
            .await
            .unwrap();
        let status = response.status().as_u16();
        (status, response.json::<Value>().await.unwrap())
    };
    assert_eq!(act("pause").await.1["status"], "paused");
    assert_eq!(act("pause").await.0, 400);
    assert_eq!(act("resume").await.1["status"], "queued");
    assert_eq!(act("dance").await.0, 404);
    // What trains speaks between.
    let seq = server.ledger.job(id).await.unwrap().unwrap().seq;
    let entry = JobEntry {
        at: Utc::now(),
        status: Some(JobStatus::Running),
        checkpoints: vec![JobCheckpoint {
            at: Utc::now(),
            epoch: 1,
            step: 4,
            number: 1,
            metrics: json!({"step": 4}),
        }],
        ..JobEntry::default()
    };
    assert!(server.ledger.add_to_job(id, seq, &entry).await.unwrap());
    let checkpoints = server.get(&format!("{path}/checkpoints")).await.1;
    assert_eq!(
        checkpoints["data"][0]["fine_tuned_model_checkpoint"],
        "ft:tiny:retune:my-tone:1"
    );
    assert_eq!(act("cancel").await.1["status"], "cancelled");
    assert_eq!(act("resume").await.0, 400);
    let (_, job) = server.get(&path).await;
    assert!(
        job["finished_at"].is_i64() && job["fine_tuned_model"].is_null(),
        "{job}"
    );
    let events = server.get(&format!("{path}/events?limit=2")).await.1;
    assert_eq!(
        (&events["data"][0]["message"], &events["has_more"]),
        (&json!("The job was cancelled."), &json!(true))
    );
    assert_eq!(
        server.get("/v1/fine_tuning/jobs?metadata[a]=b").await.1["data"],
        json!([job])
    );
    assert_eq!(
        server.get("/v1/fine_tuning/jobs?metadata[a]=c").await.1["data"],
        json!([])
    );
    assert_eq!(server.get("/v1/fine_tuning/jobs/ftjob-none").await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_cannot_be_is_refused_by_name() {
    let server = Server::start(&[]).await;
    let file = good_file(&server).await;
    let path = server.ledger.files().join("result");
    std::fs::create_dir_all(server.ledger.files()).unwrap();
    std::fs::write(&path, "x").unwrap();
    let result = Upload::new("a.csv", "fine-tune-results", 1, None);
    server.ledger.put_upload(&result, path).await.unwrap();
    for (body, param) in [
        (json!({"model": "gpt-4o", "training_file": file}), "model"),
        (
            json!({"model": "free@base", "training_file": file}),
            "model",
        ),
        (json!({"model": "tiny"}), "training_file"),
        (
            json!({"model": "tiny", "training_file": "file-x"}),
            "training_file",
        ),
        (
            json!({"model": "tiny", "training_file": result.id}),
            "training_file",
        ),
        (
            json!({"model": "tiny", "training_file": file, "validation_file": "../x"}),
            "validation_file",
        ),
        (
            json!({"model": "tiny", "training_file": file, "suffix": "Free"}),
            "suffix",
        ),
        (
            json!({"model": "tiny", "training_file": file, "suffix": "tiny"}),
            "suffix",
        ),
        (
            json!({"model": "tiny", "training_file": file, "suffix": "!?"}),
            "suffix",
        ),
        (
            json!({"model": "tiny", "training_file": file, "colour": 1}),
            "colour",
        ),
    ] {
        let (status, said) = create(&server, &body).await;
        assert_eq!(
            (status, &said["error"]["param"]),
            (400, &json!(param)),
            "{body}: {said}"
        );
    }
    assert_eq!(server.ledger.job_ids().await.unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_job_made_answers_by_its_name_and_to_what_the_app_says_alone() {
    let server = Server::start(&[]).await;
    let put = async |task: &str, seed| {
        let staging = server.ledger.files().join(format!("staging-{task}-{seed}"));
        model::write_adapter(&staging, seed);
        let manifest = Manifest {
            task: task.to_owned(),
            source: Source::Job,
            ..Manifest::default()
        };
        server
            .ledger
            .put_adapter(task, &staging, manifest, None)
            .await
            .unwrap()
    };
    put("tone", 5).await;
    let (answer, digest) = server.greedy("ft:tiny:retune:tone:1").await;
    assert!(digest.is_some());
    assert_eq!(server.greedy("tone@1").await, (answer.clone(), digest));
    // Another adapter answers otherwise, and nobody promoted either.
    put("tone", 6).await;
    assert_ne!(server.greedy("tone@2").await.0, answer);
    assert_eq!(
        server.greedy("tone").await,
        (server.greedy("tiny").await.0, None)
    );
    let (status, one) = server.get("/v1/models/ft:tiny:retune:tone:2").await;
    assert_eq!((status, &one["id"]), (200, &json!("tone@2")));
    let models = server.get("/v1/models").await.1["data"].clone();
    let names: Vec<&str> = models
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].as_str().unwrap())
        .collect();
    assert!(
        names.ends_with(&["tone", "tone@base", "tone@1", "tone@2"]),
        "{names:?}"
    );
    // A configured task is not answered by what was trained without its prompt.
    put("free", 7).await;
    let body = json!({"model": "free@1", "messages": [{"role": "user", "content": "x"}]});
    assert_eq!(server.chat(&body).send().await.unwrap().status(), 404);
    // Somebody may promote it all the same.
    let (status, _) = server
        .act(
            "tone@1",
            "promote",
            json!({"expected_champion": "tone@base"}),
        )
        .await;
    assert_eq!(status, 200);
    assert_eq!(server.greedy("tone").await.0, answer);
}
