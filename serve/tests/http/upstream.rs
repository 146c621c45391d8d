//! A server in front of another one: the same API, the same log, whatever the other one does.

use std::time::Duration;

use serde_json::{Value, json};

use crate::standin::{Act, BASE, DONE, End, StandIn, at_once, ends, says, usage};
use crate::support::Server;

fn settings(url: &str) -> [(&str, &str); 2] {
    [
        ("RETUNE_ENGINE__KIND", "upstream"),
        ("RETUNE_ENGINE__URL", url),
    ]
}

fn ask(stream: bool) -> Value {
    json!({"model": "count", "messages": [{"role": "user", "content": "How many?"}], "max_tokens": 24, "stream": stream})
}

/// Waits until a model answers.
async fn until_ready(server: &Server) {
    for _ in 0..200 {
        if server.get("/readyz").await.0 == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it is not ready");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_come_whole_and_streamed_and_are_kept() {
    let upstream = StandIn::start();
    let server = Server::start(&settings(&upstream.url)).await;
    until_ready(&server).await;
    let response = server.chat(&ask(false)).send().await.unwrap();
    assert_eq!(response.headers()["retune-format"], "invalid");
    let answer: Value = response.json().await.unwrap();
    let expected = format!("This is {BASE}");
    assert_eq!(answer["choices"][0]["message"]["content"], expected);
    assert_eq!(answer["model"], "count@base");
    assert_eq!(answer["usage"]["prompt_tokens"], 11);
    // Bad habits stay upstream: one role, a reason that clients know.
    upstream.next([at_once(
        &[
            says("1"),
            says("2"),
            ends("eos"),
            usage(7, 2),
            DONE.to_owned(),
        ],
        End::Close,
    )]);
    let response = server.chat(&ask(true)).send().await.unwrap();
    let stream = response.text().await.unwrap();
    assert_eq!(stream.matches("assistant").count(), 1, "{stream}");
    assert!(stream.contains("\"finish_reason\":\"stop\""), "{stream}");
    assert!(
        stream.ends_with(": retune-format valid\n\ndata: [DONE]\n\n"),
        "{stream}"
    );
    let rows = server.exchanges(2).await;
    let kept: Vec<_> = rows
        .iter()
        .map(|r| (r.answer.as_deref(), r.prompt_tokens, r.completion_tokens))
        .collect();
    assert_eq!(kept, [(Some(expected.as_str()), 11, 2), (Some("12"), 7, 2)]);
    let asked = upstream.answers();
    assert_eq!(
        asked[0].body["messages"][0]["content"],
        "Answer with a number."
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_is_served_upstream_and_survives_restarts_of_both() {
    let upstream = StandIn::start();
    let server = Server::start(&settings(&upstream.url)).await;
    let adapter = server.adapter("count", 5).await;
    let (answer, digest) = server.greedy("count@1").await;
    assert!(answer.starts_with("This is count@1#"), "{answer}");
    assert_eq!(digest.as_deref(), Some(adapter.manifest.digest.as_str()));
    let loras = upstream.loras();
    assert_eq!(loras.len(), 1);
    assert!(
        loras
            .values()
            .all(|path| path.ends_with("adapters/count/1")),
        "{loras:?}"
    );
    upstream.forget();
    assert_eq!(server.greedy("count@1").await.0, answer);
    let (status, _) = server
        .act(
            "count@1",
            "promote",
            json!({"expected_champion": "count@base"}),
        )
        .await;
    assert_eq!(status, 200);

    // Both are gone; Retune comes back first, and answers for the task by nobody but its champion.
    let url = upstream.url.clone();
    upstream.stop().await;
    let server = server.restarted_with(&settings(&url)).await;
    assert_eq!(server.get("/readyz").await.0, 503);
    let response = server.chat(&ask(false)).send().await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["code"], "upstream_unavailable");
    let upstream = StandIn::start_at(url.strip_prefix("http://").unwrap().parse().unwrap());
    until_ready(&server).await;
    assert_eq!(server.greedy("count").await.0, answer);
    assert_eq!(upstream.loras().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_upstream_is_told_as_openai_tells_it() {
    let upstream = StandIn::start();
    let server = Server::start(&settings(&upstream.url)).await;
    let error = json!({"error": {"message": "too hot", "type": "BadRequestError", "param": "temperature", "code": 400}});
    upstream.next([
        Act::Refuse(400, None, error),
        Act::Refuse(429, Some("17"), json!({"error": "slowly"})),
        Act::Refuse(401, None, json!({"error": "Unauthorized"})),
        Act::Refuse(500, None, json!({"error": "oh"})),
        at_once(&[says("Well")], End::Cut),
    ]);
    for (status, code, retry_after) in [
        (400, Value::Null, None),
        (429, json!("rate_limit_exceeded"), Some("17")),
        (502, json!("upstream_error"), None),
        (503, json!("upstream_unavailable"), Some("2")),
    ] {
        let response = server.chat(&ask(false)).send().await.unwrap();
        assert_eq!(response.status(), status);
        let after = response.headers().get("retry-after");
        assert_eq!(after.map(|v| v.to_str().unwrap()), retry_after);
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"]["code"], code, "{body}");
    }
    let response = server.chat(&ask(true)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let stream = response.text().await.unwrap();
    assert!(
        stream.contains("Well") && stream.contains("\"error\""),
        "{stream}"
    );
    assert!(!stream.contains("[DONE]"), "{stream}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_go_through_and_on() {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let upstream = StandIn::start();
    let server = Server::start(&settings(&upstream.url)).await;
    until_ready(&server).await;
    let mut twice = ask(false);
    twice["n"] = json!(2);
    for (body, parent) in [(&twice, PARENT), (&ask(true), "nonsense")] {
        let request = server.chat(body).header("x-request-id", "mine");
        let response = request.header("traceparent", parent).send().await.unwrap();
        assert_eq!(response.headers()["x-request-id"], "mine");
        response.bytes().await.unwrap();
    }
    let made = server.chat(&ask(false)).send().await.unwrap();
    let made = made.headers()["x-request-id"].to_str().unwrap().to_owned();
    let asked = upstream.answers();
    let sent: Vec<_> = asked
        .iter()
        .map(|asked| (asked.request_id.as_deref(), asked.traceparent.as_deref()))
        .collect();
    // A server that still has the first one may refuse another by its name.
    let expected = [
        (Some("mine"), Some(PARENT)),
        (Some("mine-1"), Some(PARENT)),
        (Some("mine"), None),
        (Some(made.as_str()), None),
    ];
    assert_eq!(sent, expected);
}
