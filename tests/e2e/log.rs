//! What the log says, and that it never says what people wrote.

use serde_json::{Value, json};

use crate::harness::{Server, endless, folder, question, retune, text};

#[test]
fn what_the_log_s_variables_cannot_be_is_said_at_the_start() {
    let folder = folder();
    for (name, value, expected) in [
        ("RETUNE_LOG", "retune=loud", "RETUNE_LOG is \"retune=loud\""),
        ("RETUNE_LOG_FORMAT", "yaml", "RETUNE_LOG_FORMAT is \"yaml\""),
    ] {
        let mut command = retune(folder.path());
        let output = command.arg("check").env(name, value).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(expected) && said.contains("expected"),
            "{said}"
        );
    }
}

/// Sends a question with an id.
async fn ask(server: &Server, id: &str, body: &Value) -> reqwest::Response {
    let url = format!("{}/v1/chat/completions", server.url);
    let request = server.http.post(url).header("x-request-id", id).json(body);
    request.send().await.unwrap()
}

#[tokio::test]
async fn a_request_that_fails_is_logged_behind_its_id() {
    let folder = folder();
    // Enough for a stream to begin on a busy machine, and too little for any end.
    let env = [("RETUNE_ENGINE__DEADLINE_SECONDS", "4")];
    let server = Server::start_with(folder.path(), &env).await;
    let mut body = endless(128);
    body["stream"] = json!(false);
    let response = ask(&server, "mine-1", &body).await;
    assert_eq!(response.status(), 504);
    assert_eq!(response.headers()["x-request-id"], "mine-1");
    let log = server.log_with("a request failed").await;
    let line = log.lines().find(|line| line.contains("a request failed"));
    let line = line.unwrap();
    for part in [
        "request{id=\"mine-1\"",
        "path=\"/v1/chat/completions\"",
        "adapter=\"triage@base\"",
        "exchange=\"chatcmpl-",
        "status=504",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    let stream = ask(&server, "mine-2", &endless(128)).await;
    assert!(stream.text().await.unwrap().contains("deadline_exceeded"));
    let log = server.log_with("a stream failed").await;
    let line = log.lines().find(|line| line.contains("a stream failed"));
    assert!(line.unwrap().contains("request{id=\"mine-2\""), "{log}");
    assert!(!log.contains("retune::access"), "off by default: {log}");
}

#[tokio::test]
async fn as_json_every_line_is_json_and_none_holds_a_text() {
    let folder = folder();
    let env = [
        ("RETUNE_LOG", "warn,retune=trace"),
        ("RETUNE_LOG_FORMAT", "json"),
    ];
    let mut server = Server::start_with(folder.path(), &env).await;
    let mut body = question("Where is my Zanzibarian parcel?");
    body["metadata"] = json!({"shop": "Zanzibar"});
    body["user"] = json!("zanzibarian");
    let answer: Value = ask(&server, "mine-1", &body).await.json().await.unwrap();
    let url = format!("{}/v1/models/Zanzibar?q=Zanzibar", server.url);
    assert_eq!(server.http.get(url).send().await.unwrap().status(), 404);
    // The client leaves.
    drop(ask(&server, "mine-2", &endless(128)).await);
    server.log_with("\"status\":499").await;
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(0));
    let log = server.log_with("stopping;").await;
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    let access: Vec<&Value> = lines
        .iter()
        .filter(|line| line["target"] == "retune::access" && line["method"] == "POST")
        .collect();
    let told = |line: &Value| (line["id"].clone(), line["status"].clone());
    let told: Vec<_> = access.iter().map(|line| told(line)).collect();
    assert_eq!(
        told,
        [(json!("mine-1"), json!(200)), (json!("mine-2"), json!(499))]
    );
    assert_eq!(access[0]["route"], "/v1/chat/completions");
    assert_eq!(access[0]["adapter"], "triage@base");
    assert!(access[0]["seconds"].as_f64().unwrap() > 0.0);
    let exchange = lines.iter().find(|line| line["message"] == "exchange");
    let exchange = exchange.unwrap();
    assert_eq!(exchange["spans"][0]["name"], "request");
    assert_eq!(exchange["spans"][0]["id"], "mine-1");
    assert_eq!(exchange["request_id"], answer["id"]);

    let said = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(said.len() > 10, "{said}");
    let escaped = json!(said).to_string();
    assert!(!log.contains(escaped.trim_matches('"')), "{log}");
    assert!(!log.to_lowercase().contains("zanzibar"), "{log}");
}
