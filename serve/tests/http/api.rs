//! The API as a client meets it.

use std::time::Duration;

use crate::support::Server;
use futures::StreamExt;
use serde_json::{Value, json};

fn hello(more: Value) -> Value {
    let mut body = json!({"model": "count", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 5});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn text(message: &Value) -> String {
    message["content"].as_str().unwrap_or_default().to_owned()
}

/// Replaces what differs from run to run.
fn redacted(mut value: Value) -> Value {
    for key in ["id", "created"] {
        if value.get(key).is_some() {
            value[key] = json!(format!("[{key}]"));
        }
    }
    value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_answer() {
    let server = Server::start(&[]).await;
    let body = hello(json!({"user": "u1", "metadata": {"a": "b"}}));
    let response = server
        .chat(&body)
        .header("x-request-id", "mine")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let header = |name: &str| {
        response
            .headers()
            .get(name)
            .map(|v| v.to_str().unwrap().to_owned())
    };
    assert_eq!(header("x-request-id").as_deref(), Some("mine"));
    assert_eq!(header("retune-adapter").as_deref(), Some("count@base"));
    assert_eq!(header("retune-format").as_deref(), Some("invalid"));
    assert_eq!(header("retune-digest"), None);
    let answer: Value = response.json().await.unwrap();
    assert!(
        server
            .ledger
            .is_own_request_id(answer["id"].as_str().unwrap())
    );
    insta::assert_json_snapshot!(redacted(answer.clone()));

    let row = server.exchanges(1).await.remove(0);
    assert_eq!(row.request_id, answer["id"]);
    assert_eq!(
        (row.task.as_deref(), row.adapter.as_deref()),
        (Some("count"), Some("count@base"))
    );
    assert_eq!(
        (row.code, row.format_valid, row.format_reason.as_deref()),
        (200, Some(false), Some("regex"))
    );
    assert_eq!(
        (row.user.as_deref(), row.metadata),
        (Some("u1"), Some(json!({"a": "b"})))
    );
    assert_eq!(
        row.answer.as_deref(),
        answer["choices"][0]["message"]["content"].as_str()
    );
    // As the app sent them: the task's prompt is not the app's.
    assert_eq!(row.messages.unwrap().len(), 1);
    assert_eq!(row.finish_reason.as_deref(), Some("length"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_carry_the_same_answer() {
    let server = Server::start(&[]).await;
    let whole: Value = server
        .chat(&hello(json!({})))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    for (name, options) in [
        ("stream", json!({})),
        (
            "stream_with_usage",
            json!({"stream_options": {"include_usage": true}}),
        ),
    ] {
        let mut body = hello(options);
        body["stream"] = json!(true);
        let response = server.chat(&body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["retune-format"], "pending");
        let text = response.text().await.unwrap();
        let mut answer = String::new();
        let mut ids = Vec::new();
        let events: Vec<Value> = text
            .split_terminator("\n\n")
            .map(|event| match event.strip_prefix("data: {") {
                None => json!(event),
                Some(rest) => {
                    let chunk: Value = serde_json::from_str(&format!("{{{rest}")).unwrap();
                    ids.push((chunk["id"].clone(), chunk["created"].clone()));
                    answer.push_str(
                        chunk["choices"][0]["delta"]["content"]
                            .as_str()
                            .unwrap_or(""),
                    );
                    redacted(chunk)
                }
            })
            .collect();
        assert!(
            text.ends_with(": retune-format invalid\n\ndata: [DONE]\n\n"),
            "{text}"
        );
        assert_eq!(answer, whole["choices"][0]["message"]["content"]);
        ids.dedup();
        assert_eq!(ids.len(), 1);
        insta::assert_json_snapshot!(name, events);
    }
    let rows = server.exchanges(3).await;
    assert!(rows.iter().all(|r| r.answer == rows[0].answer && r.completion_tokens == rows[0].completion_tokens));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said_in_openais_shape() {
    let server = Server::start(&[("RETUNE_SERVER__MAX_BODY_BYTES", "20000")]).await;
    let error = async |request: reqwest::RequestBuilder| {
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        assert!(response.headers().contains_key("x-request-id"));
        let body: Value = response.json().await.unwrap();
        let error = body["error"]
            .as_object()
            .unwrap_or_else(|| panic!("{body}"))
            .clone();
        assert_eq!(
            error.keys().collect::<Vec<_>>(),
            ["message", "type", "param", "code"]
        );
        assert!(!error["message"].as_str().unwrap().is_empty());
        (status, error["param"].clone(), error["code"].clone())
    };
    let url = |path: &str| format!("{}{path}", server.url);
    let raw = |body: &'static str| server.client.post(url("/v1/chat/completions")).body(body);
    let huge = hello(json!({"messages": [{"role": "user", "content": "x".repeat(20_000)}]}));
    let long = hello(json!({"messages": [{"role": "user", "content": "x".repeat(5_000)}]}));
    for (name, request, wanted) in [
        (
            "malformed",
            raw("{\"model\": "),
            (400, json!(null), json!(null)),
        ),
        ("no object", raw("[]"), (400, json!(null), json!(null))),
        ("empty body", raw(""), (400, json!(null), json!(null))),
        (
            "no messages",
            server.chat(&hello(json!({"messages": []}))),
            (400, json!("messages"), json!("empty_array")),
        ),
        (
            "unknown model",
            server.chat(&hello(json!({"model": "x"}))),
            (404, json!(null), json!("model_not_found")),
        ),
        (
            "unknown adapter",
            server.chat(&hello(json!({"model": "count@7"}))),
            (404, json!(null), json!("model_not_found")),
        ),
        (
            "unknown parameter",
            server.chat(&hello(json!({"colour": 1}))),
            (400, json!("colour"), json!("unknown_parameter")),
        ),
        (
            "unsupported",
            server.chat(&hello(json!({"reasoning_effort": "low"}))),
            (
                400,
                json!("reasoning_effort"),
                json!("unsupported_parameter"),
            ),
        ),
        (
            "too hot",
            server.chat(&hello(json!({"temperature": 3}))),
            (400, json!("temperature"), json!("decimal_above_max_value")),
        ),
        (
            "too large",
            server.chat(&huge),
            (413, json!(null), json!("request_too_large")),
        ),
        (
            "too long",
            server.chat(&long),
            (400, json!("messages"), json!("context_length_exceeded")),
        ),
        (
            "too long, streamed",
            server.chat(&hello(
                json!({"messages": long["messages"], "stream": true}),
            )),
            (400, json!("messages"), json!("context_length_exceeded")),
        ),
        (
            "unknown route",
            server.client.get(url("/v1/nothing")),
            (404, json!(null), json!("unknown_url")),
        ),
        (
            "wrong method",
            server.client.put(url("/v1/chat/completions")),
            (405, json!(null), json!("method_not_supported")),
        ),
        (
            "foreign host",
            server
                .client
                .get(url("/v1/models"))
                .header("host", "example.com"),
            (403, json!(null), json!("forbidden")),
        ),
        (
            "foreign origin",
            server
                .client
                .get(url("/v1/models"))
                .header("origin", "https://example.com"),
            (403, json!(null), json!("forbidden")),
        ),
        (
            "unknown model by id",
            server.client.get(url("/v1/models/none")),
            (404, json!(null), json!("model_not_found")),
        ),
        (
            "unknown purpose",
            server
                .chat(&hello(json!({})))
                .header("retune-purpose", "fun"),
            (400, json!("retune-purpose"), json!("invalid_value")),
        ),
        (
            "unknown action",
            server.post("/admin/adapters/count@1/dance", &json!({})),
            (404, json!(null), json!("not_found")),
        ),
        (
            "unknown adapter to load",
            server.post("/admin/adapters/count@1/load", &json!({})),
            (404, json!(null), json!("not_found")),
        ),
    ] {
        assert_eq!(error(request).await, wanted, "{name}");
    }
    // None of them was an exchange, and the server is none the worse.
    assert_eq!(
        server
            .chat(&hello(json!({})))
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
    server.exchanges(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_frees_its_place_and_is_logged() {
    let server = Server::start(&[
        ("RETUNE_ENGINE__MAX_RUNNING", "1"),
        ("RETUNE_ENGINE__MAX_QUEUE", "0"),
    ])
    .await;
    for stream in [true, false] {
        let request = server.chat(&hello(json!({"stream": stream, "max_tokens": 3500})));
        if stream {
            let mut stream = request.send().await.unwrap().bytes_stream();
            assert!(stream.next().await.unwrap().is_ok());
        } else {
            let left = tokio::time::timeout(Duration::from_millis(150), request.send()).await;
            assert!(left.is_err(), "the answer was there before the client left");
        }
        server.metrics_say("retune_requests_running 0").await;
        assert_eq!(
            server
                .chat(&hello(json!({})))
                .send()
                .await
                .unwrap()
                .status(),
            200
        );
    }
    let rows = server.exchanges(4).await;
    let codes: Vec<u16> = rows.iter().map(|r| r.code).collect();
    assert_eq!(codes, [499, 200, 499, 200]);
    assert_eq!(
        (rows[0].finish_reason.as_deref(), rows[0].format_valid),
        (None, None)
    );
    assert!(rows[0].completion_tokens < 3500);
    server.metrics_say(r#"retune_requests_total{adapter="count@base",code="499",stage="baseline",task="count"} 2"#).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_too_many_is_sent_away_at_once() {
    let server = Server::start(&[
        ("RETUNE_ENGINE__MAX_RUNNING", "1"),
        ("RETUNE_ENGINE__MAX_QUEUE", "1"),
    ])
    .await;
    let long = hello(json!({"stream": true, "max_tokens": 3500}));
    let mut running = server.chat(&long).send().await.unwrap().bytes_stream();
    assert!(running.next().await.unwrap().is_ok());
    let waiting = tokio::spawn(server.chat(&hello(json!({}))).send());
    server.metrics_say("retune_requests_waiting 1").await;
    let refused = server.chat(&hello(json!({}))).send().await.unwrap();
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    drop(running);
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_clients_each_get_their_own_answer() {
    let server = Server::start(&[("RETUNE_ENGINE__MAX_QUEUE", "16")]).await;
    let ask = async |i: usize| {
        let content = format!("Hello {i:02}");
        let messages = json!([{ "role": "user", "content": content }]);
        let body = hello(json!({ "messages": messages, "stream": i < 8, "max_tokens": 20 }));
        let answer = server
            .chat(&body)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        if i >= 8 {
            let answer: Value = serde_json::from_str(&answer).unwrap();
            return text(&answer["choices"][0]["message"]);
        }
        let chunks = answer.lines().filter_map(|l| l.strip_prefix("data: "));
        let chunks = chunks.filter_map(|l| serde_json::from_str::<Value>(l).ok());
        chunks
            .map(|chunk| text(&chunk["choices"][0]["delta"]))
            .collect()
    };
    let mut alone: Vec<String> = Vec::new();
    for i in 0..16 {
        alone.push(ask(i).await);
    }
    let together = futures::future::join_all((0..16).map(ask)).await;
    assert_eq!(together, alone);
    server.exchanges(32).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feedback_follows_the_answer_at_once() {
    let server = Server::start(&[]).await;
    let answer: Value = server
        .chat(&hello(json!({})))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let body = json!({"completion_id": answer["id"], "rating": 2, "correction": "42", "rubric": {"accuracy": 1}, "comment": "no"});
    let response = server.post("/v1/feedback", &body).send().await.unwrap();
    assert_eq!(response.status(), 201);
    let id = response.json::<Value>().await.unwrap()["feedback_id"].clone();
    for (id, wanted) in [(json!("chatcmpl-made-up"), 404), (json!(7), 400)] {
        let refused = server
            .post("/v1/feedback", &json!({"completion_id": id, "rating": 1}))
            .send()
            .await
            .unwrap();
        assert_eq!(refused.status(), wanted);
    }
    server.ledger.flush().await.unwrap();
    let rows = server.ledger.feedback(&Default::default()).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(json!(rows[0].feedback_id), id);
    assert_eq!(
        (
            &rows[0].request_id,
            rows[0].rating,
            rows[0].correction.as_deref()
        ),
        (
            &answer["id"].as_str().unwrap().to_owned(),
            Some(2),
            Some("42")
        )
    );
    server
        .metrics_say(r#"retune_feedback_total{rating="2"} 1"#)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_false_keeps_no_text() {
    let server = Server::start(&[]).await;
    let body = hello(json!({"store": false, "model": "tiny"}));
    let response = server.chat(&body).send().await.unwrap();
    assert_eq!(response.headers()["retune-format"], "none");
    let row = server.exchanges(1).await.remove(0);
    assert_eq!(
        (row.messages, row.answer, row.task, row.adapter.as_deref()),
        (None, None, None, Some("tiny"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_lets_running_requests_finish() {
    let mut server = Server::start(&[]).await;
    let long = hello(json!({"stream": true, "max_tokens": 600}));
    let mut running = server.chat(&long).send().await.unwrap().bytes_stream();
    let mut text = String::from_utf8(running.next().await.unwrap().unwrap().to_vec()).unwrap();
    let stopped = tokio::spawn(server.stop());
    while let Some(piece) = running.next().await {
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    stopped.await.unwrap();
    assert!(
        server
            .client
            .get(format!("{}/healthz", server.url))
            .send()
            .await
            .is_err()
    );
    assert_eq!(server.exchanges(1).await[0].code, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_and_probes() {
    let server = Server::start(&[]).await;
    assert_eq!(server.get("/healthz").await.0, 200);
    assert_eq!(server.get("/readyz").await.0, 200);
    server.chat(&hello(json!({}))).send().await.unwrap();
    // An examination is no traffic.
    server
        .chat(&hello(json!({})))
        .header("retune-purpose", "examination")
        .header("retune-run", "run-1")
        .send()
        .await
        .unwrap();
    server.metrics_say(r#"retune_requests_total{adapter="count@base",code="200",stage="baseline",task="count"} 1"#).await;
    server.metrics_say(r#"retune_format_checks_total{adapter="count@base",reason="regex",result="invalid",task="count"} 1"#).await;
    let metrics = server.metrics().await;
    for name in [
        "request_duration_seconds_bucket",
        "time_to_first_token_seconds_bucket",
        "time_per_output_token_seconds_bucket",
        "tokens_total",
        "adapters_loaded",
        "ledger_rows_total",
        "ledger_lag_seconds",
    ] {
        assert!(
            metrics.contains(&format!("\nretune_{name}")),
            "{name} is not in\n{metrics}"
        );
    }
    let rows = server.exchanges(2).await;
    assert_eq!(rows[1].run_id.as_deref(), Some("run-1"));
}
