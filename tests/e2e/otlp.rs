//! Traces, on a build with the feature `otlp`: what a collector gets, and that it goes on from the trace that the caller began.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::harness::{Server, endless, folder, question};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// As much of a span as is looked at.
#[derive(Debug, Clone, Default, PartialEq)]
struct Span {
    name: String,
    trace: String,
    id: String,
    parent: String,
    attributes: Vec<(String, Value)>,
}

impl Span {
    fn attribute(&self, name: &str) -> &Value {
        let found = self.attributes.iter().find(|(key, _)| key == name);
        found.map_or(&Value::Null, |(_, value)| value)
    }
}

/// Takes `POST /v1/traces` and keeps what is in it.
struct Collector {
    url: String,
    spans: Arc<Mutex<Vec<Span>>>,
    heads: Arc<Mutex<String>>,
    bodies: Arc<Mutex<Vec<u8>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let collector = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            spans: Arc::default(),
            heads: Arc::default(),
            bodies: Arc::default(),
        };
        let (spans, heads, bodies) = (
            collector.spans.clone(),
            collector.heads.clone(),
            collector.bodies.clone(),
        );
        // Ends with the test's process.
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok((head, body)) = read(&connection.unwrap()) else {
                    continue;
                };
                spans.lock().unwrap().extend(spans_of(&body));
                heads.lock().unwrap().push_str(&head);
                bodies.lock().unwrap().extend(body);
            }
        });
        collector
    }
}

/// One request, which is answered and is the connection's last.
fn read(mut connection: &TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut reader = BufReader::new(connection);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        reader.read_line(&mut head)?;
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    reader.read_exact(&mut body)?;
    connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    Ok((head, body))
}

/// The fields of a protobuf message, each with its number; those that are no bytes as their number's bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn number(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = number(&mut bytes);
        let length = match tag & 7 {
            0 => {
                let value = number(&mut bytes);
                found.push((tag >> 3, value.to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => usize::try_from(number(&mut bytes)).unwrap(),
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (value, rest) = bytes.split_at(length);
        found.push((tag >> 3, value.to_vec()));
        bytes = rest;
    }
    found
}

fn within(messages: &[Vec<u8>], field: u64) -> Vec<Vec<u8>> {
    let fields = messages.iter().flat_map(|message| fields(message));
    fields
        .filter(|(number, _)| *number == field)
        .map(|(_, value)| value)
        .collect()
}

/// `ExportTraceServiceRequest.resource_spans.scope_spans.spans`
fn spans_of(body: &[u8]) -> Vec<Span> {
    let scopes = within(&within(&[body.to_vec()], 1), 2);
    within(&scopes, 2).iter().map(|span| one(span)).collect()
}

fn one(bytes: &[u8]) -> Span {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let mut span = Span::default();
    for (number, value) in fields(bytes) {
        match number {
            1 => span.trace = hex(&value),
            2 => span.id = hex(&value),
            4 => span.parent = hex(&value),
            5 => span.name = text(value),
            9 => {
                let attribute = [value];
                let key = text(within(&attribute, 1).remove(0));
                let value = within(&attribute, 2).remove(0);
                let value = match fields(&value).remove(0) {
                    (1, value) => Value::from(text(value)),
                    (3, value) => Value::from(u64::from_le_bytes(value.try_into().unwrap())),
                    (4, value) => Value::from(f64::from_le_bytes(value.try_into().unwrap())),
                    (other, _) => panic!("a value of kind {other}"),
                };
                span.attributes.push((key, value));
            }
            _ => {}
        }
    }
    span
}

#[tokio::test]
async fn a_request_is_a_trace_that_goes_on_from_its_caller_s() {
    let collector = Collector::start();
    let folder = folder();
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=shop"),
        ("RETUNE_ENGINE__DEADLINE_SECONDS", "3"),
    ];
    let mut server = Server::start_with(folder.path(), &env).await;
    let url = format!("{}/v1/chat/completions", server.url);
    let request = server
        .http
        .post(&url)
        .header("x-request-id", "mine")
        .header("traceparent", format!("00-{TRACE}-{CALLER}-01"))
        .json(&question("Where is my Zanzibarian parcel?"));
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    // The log has the request's id although spans of another kind are within.
    let failed = server.http.post(&url).header("x-request-id", "late");
    let failed = failed.json(&endless(128)).send().await.unwrap();
    failed.bytes().await.unwrap();
    let log = server.log_with("a stream failed").await;
    let line = log.lines().find(|line| line.contains("a stream failed"));
    assert!(line.unwrap().contains("request{id=\"late\""), "{log}");
    server.signal("TERM");
    assert_eq!(server.exit_code().await, Some(0));

    let heads = collector.heads.lock().unwrap().clone();
    assert!(heads.starts_with("POST /v1/traces "), "{heads}");
    assert!(heads.contains("x-tenant: shop"), "{heads}");
    let spans = collector.spans.lock().unwrap().clone();
    let ours = |name: &str| {
        let found = spans.iter().find(|s| s.trace == TRACE && s.name == name);
        found.unwrap_or_else(|| panic!("{name} in {spans:#?}"))
    };
    let outer = ours("POST /v1/chat/completions");
    assert_eq!(outer.parent, CALLER);
    assert_eq!(outer.attribute("http.response.status_code"), 200);
    assert_eq!(outer.attribute("http.route"), "/v1/chat/completions");
    assert_eq!(outer.attribute("retune.request.id"), "mine");
    let exchange = ours("chat triage");
    assert_eq!(exchange.parent, outer.id);
    assert_eq!(exchange.attribute("gen_ai.request.model"), "triage");
    assert_eq!(exchange.attribute("gen_ai.response.model"), "triage@base");
    assert_eq!(&answer["id"], exchange.attribute("gen_ai.response.id"));
    for (attribute, count) in [
        ("gen_ai.usage.input_tokens", "prompt_tokens"),
        ("gen_ai.usage.output_tokens", "completion_tokens"),
    ] {
        assert_eq!(exchange.attribute(attribute), &answer["usage"][count]);
    }
    for child in ["admission", "generate", "format check", "ledger"] {
        assert_eq!(ours(child).parent, exchange.id, "{child}");
    }
    let first = ours("generate").attribute("retune.time_to_first_token_seconds");
    assert!(first.as_f64().unwrap() > 0.0);

    // One that nobody traced before, and that failed, is a trace of its own.
    let late = spans
        .iter()
        .find(|s| s.attribute("retune.request.id") == "late");
    let late = late.unwrap();
    assert!(late.trace != TRACE && late.parent.is_empty(), "{late:?}");
    let late = spans
        .iter()
        .find(|s| s.parent == late.id && s.name == "chat triage");
    assert_eq!(late.unwrap().attribute("error.type"), "504");

    let everything = collector.bodies.lock().unwrap();
    let everything = String::from_utf8_lossy(&everything);
    assert!(everything.contains("service.name") && everything.contains("retune"));
    let said = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!everything.contains("Zanzibar") && !everything.contains(said));
}
