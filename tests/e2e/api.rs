//! The OpenAI API as its clients read it: shapes, streams, and errors with their types, codes and parameters.

use serde_json::{Value, json};

use crate::harness::{Server, folder, question, rows};

const CHAT: &str = "/v1/chat/completions";

/// Asserts an error as OpenAI writes them: four keys, all there.
async fn assert_error(
    response: reqwest::Response,
    status: u16,
    code: Option<&str>,
    param: Option<&str>,
) {
    assert_eq!(response.status(), status);
    let body: Value = response.json().await.unwrap();
    let error = body["error"].as_object().expect("an error object");
    let keys: Vec<_> = ["message", "type", "param", "code"]
        .iter()
        .filter(|key| error.contains_key(**key))
        .collect();
    assert_eq!(keys.len(), 4, "{body}");
    assert!(!error["message"].as_str().unwrap().is_empty());
    assert_eq!(error["type"], "invalid_request_error", "{body}");
    if let Some(code) = code {
        assert_eq!(error["code"], code, "{body}");
    }
    if let Some(param) = param {
        assert_eq!(error["param"], param, "{body}");
    }
}

#[tokio::test]
async fn models_are_listed_base_first() {
    let folder = folder();
    let server = Server::start(folder.path()).await;
    let list: Value = server.get("/v1/models").await.json().await.unwrap();
    assert_eq!(list["object"], "list");
    let ids: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["pocket", "triage", "triage@base"]);
    let model: Value = server.get("/v1/models/triage").await.json().await.unwrap();
    assert_eq!(
        (&model["id"], &model["object"]),
        (&json!("triage"), &json!("model"))
    );
    assert_error(
        server.get("/v1/models/nobody").await,
        404,
        Some("model_not_found"),
        None,
    )
    .await;
}

#[tokio::test]
async fn an_answer_has_openai_s_shape_and_retune_s_headers() {
    let folder = folder();
    let server = Server::start(folder.path()).await;
    let request = server
        .http
        .post(format!("{}{CHAT}", server.url))
        .header("x-request-id", "mine-1");
    let response = request
        .json(&question("My parcel never came."))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("x-request-id"), "mine-1");
    assert_eq!(header("retune-adapter"), "triage@base");
    let format = header("retune-format");
    assert!(format == "valid" || format == "invalid", "{format}");
    let body: Value = response.json().await.unwrap();
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(
        (&body["object"], &body["model"]),
        (&json!("chat.completion"), &json!("triage@base"))
    );
    let choice = &body["choices"][0];
    assert_eq!(
        (&choice["index"], &choice["message"]["role"]),
        (&json!(0), &json!("assistant"))
    );
    assert!(choice["message"]["content"].is_string());
    assert!(
        choice["message"]
            .as_object()
            .unwrap()
            .contains_key("refusal"),
        "{body}"
    );
    assert!(["stop", "length"].contains(&choice["finish_reason"].as_str().unwrap()));
    let usage = &body["usage"];
    let tokens = |key: &str| usage[key].as_u64().unwrap();
    assert!(tokens("prompt_tokens") > 0);
    assert_eq!(
        tokens("prompt_tokens") + tokens("completion_tokens"),
        tokens("total_tokens")
    );
}

/// The events of a stream: each `data:` as JSON, `[DONE]` and comments as strings.
async fn events(server: &Server, body: &Value) -> Vec<Value> {
    let response = server.post(CHAT, body).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["retune-format"], "pending");
    let text = response.text().await.unwrap();
    let lines = text.lines().filter(|line| !line.is_empty());
    let event = |line: &str| match line.strip_prefix("data: ") {
        Some("[DONE]") | None => json!(line),
        Some(data) => serde_json::from_str(data).unwrap(),
    };
    lines.map(event).collect()
}

#[tokio::test]
async fn a_stream_says_the_same_as_an_answer_in_openai_s_order() {
    let folder = folder();
    let server = Server::start(folder.path()).await;
    let mut body = question("Where is my order 4711?");
    let whole: Value = server.ask("Where is my order 4711?").await;
    body["stream"] = json!(true);
    let plain = events(&server, &body).await;
    assert!(
        plain
            .iter()
            .filter(|e| e.is_object())
            .all(|chunk| chunk.get("usage").is_none()),
        "{plain:?}"
    );
    body["stream_options"] = json!({"include_usage": true});
    let events = events(&server, &body).await;

    let [head @ .., format, done] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!(done, "data: [DONE]");
    assert!(
        format.as_str().unwrap().starts_with(": retune-format "),
        "{format}"
    );
    let [first, contents @ .., finish, usage] = head else {
        panic!("{head:?}")
    };
    for chunk in head {
        assert_eq!(
            (&chunk["id"], &chunk["created"]),
            (&first["id"], &first["created"])
        );
        assert_eq!(
            (&chunk["object"], &chunk["model"]),
            (&json!("chat.completion.chunk"), &json!("triage@base"))
        );
    }
    assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
    assert!(
        contents
            .iter()
            .all(|chunk| chunk["choices"][0]["delta"].get("role").is_none())
    );
    let said: String = head
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(
        said,
        whole["choices"][0]["message"]["content"].as_str().unwrap()
    );
    assert_eq!(
        finish["choices"][0]["finish_reason"],
        whole["choices"][0]["finish_reason"]
    );
    assert!(
        head[..head.len() - 1]
            .iter()
            .all(|chunk| chunk["usage"].is_null())
    );
    assert_eq!(
        (&usage["choices"], &usage["usage"]),
        (&json!([]), &whole["usage"])
    );
}

#[tokio::test]
async fn feedback_is_kept_and_an_id_of_nobody_is_a_404() {
    let folder = folder();
    let mut server = Server::start(folder.path()).await;
    let id = server.ask("I was charged twice.").await["id"].clone();
    let response = server
        .post(
            "/v1/feedback",
            &json!({"completion_id": id, "rating": 2, "correction": "{}"}),
        )
        .await;
    assert_eq!(response.status(), 201);
    let body: Value = response.json().await.unwrap();
    let feedback_id = body["feedback_id"].as_str().unwrap();

    let mut forged = id.as_str().unwrap().to_owned();
    let last = if forged.pop() == Some('0') { '1' } else { '0' };
    forged.push(last);
    let response = server
        .post(
            "/v1/feedback",
            &json!({"completion_id": forged, "rating": 2}),
        )
        .await;
    assert_error(response, 404, None, None).await;
    let response = server
        .post("/v1/feedback", &json!({"completion_id": id, "rating": 6}))
        .await;
    assert_error(response, 400, None, Some("rating")).await;

    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(0));
    let kept = rows(
        folder.path(),
        "select feedback_id, request_id, rating, correction from feedback",
    );
    let expected =
        json!({"feedback_id": feedback_id, "request_id": id, "rating": 2, "correction": "{}"});
    assert_eq!(kept, [expected]);
}

#[tokio::test]
async fn bad_requests_get_openai_s_errors_and_the_server_lives_on() {
    let folder = folder();
    let server = Server::start(folder.path()).await;
    let url = format!("{}{CHAT}", server.url);
    let malformed = server
        .http
        .post(&url)
        .header("content-type", "application/json")
        .body("{\"model\": \"triage\", ");
    assert_error(malformed.send().await.unwrap(), 400, None, None).await;

    let mut unknown = question("hello");
    unknown["model"] = json!("triage@99");
    assert_error(
        server.post(CHAT, &unknown).await,
        404,
        Some("model_not_found"),
        None,
    )
    .await;

    let mut empty = question("hello");
    empty["messages"] = json!([]);
    assert_error(server.post(CHAT, &empty).await, 400, None, Some("messages")).await;

    let mut hot = question("hello");
    hot["temperature"] = json!(2.5);
    assert_error(
        server.post(CHAT, &hot).await,
        400,
        None,
        Some("temperature"),
    )
    .await;

    let mut options = question("hello");
    options["stream_options"] = json!({"include_usage": true});
    assert_error(
        server.post(CHAT, &options).await,
        400,
        None,
        Some("stream_options"),
    )
    .await;

    let large = question(&"word ".repeat(4_000_000));
    assert_error(server.post(CHAT, &large).await, 413, None, None).await;

    // Within the limit of bytes, over the model's context.
    let long = question(&"word ".repeat(20_000));
    assert_error(
        server.post(CHAT, &long).await,
        400,
        Some("context_length_exceeded"),
        None,
    )
    .await;

    let foreign = server
        .http
        .post(&url)
        .header("host", "evil.example")
        .json(&question("hello"))
        .send()
        .await
        .unwrap();
    assert!(
        foreign.status().is_client_error(),
        "a foreign Host got {}",
        foreign.status()
    );
    let origin = server
        .http
        .post(&url)
        .header("origin", "https://evil.example")
        .json(&question("hello"));
    assert!(origin.send().await.unwrap().status().is_client_error());

    assert_eq!(
        server.ask("Still there?").await["object"],
        "chat.completion"
    );
}

#[tokio::test]
async fn many_at_once_are_all_answered_or_told_to_come_again() {
    let folder = folder();
    let server = Server::start(folder.path()).await;
    let mut asked = tokio::task::JoinSet::new();
    for n in 0..100 {
        let request = server
            .http
            .post(format!("{}{CHAT}", server.url))
            .json(&question(&format!("Order {n} is late.")));
        asked.spawn(async move { request.send().await.unwrap() });
    }
    let (mut answered, mut full) = (0, 0);
    while let Some(response) = asked.join_next().await {
        let response = response.unwrap();
        match response.status().as_u16() {
            200 => answered += 1,
            429 => {
                assert!(response.headers().contains_key("retry-after"));
                full += 1;
            }
            other => panic!("{other}: {}", response.text().await.unwrap()),
        }
    }
    assert_eq!(answered + full, 100);
    // At the least those that run and those that wait as the first ones come.
    assert!(answered >= 12, "only {answered} of 100 answered");
}

#[tokio::test]
async fn metrics_and_probes_can_have_an_address_of_their_own() {
    let folder = folder();
    let env = [("RETUNE_SERVER__OPS_LISTEN", "127.0.0.1:0")];
    let server = Server::start_with(folder.path(), &env).await;
    server.ask("My parcel never came.").await;
    let ops = server.ops.as_deref().unwrap();
    for path in ["/healthz", "/readyz", "/metrics"] {
        let there = server.http.get(format!("{ops}{path}")).send().await;
        assert_eq!(there.unwrap().status(), 200, "{path}");
        assert_eq!(server.get(path).await.status(), 404, "{path}");
    }
}
