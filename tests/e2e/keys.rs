//! Who gets in: keys and their roles, limits, revocation, addresses that others can reach, TLS, and clients that keep the server waiting.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{ROOT, Server, folder, question, retune, rows, run, text};

const CHAT: &str = "/v1/chat/completions";
const FEEDBACK: &str = "/v1/feedback";
/// As the documentation says.
const SEEN_WITHIN: Duration = Duration::from_secs(2);

/// Makes a key with `retune keys create`: its id and its text.
fn create(folder: &Path, role: &str, more: &[&str]) -> (String, String) {
    let arguments = [
        &["keys", "create", "--json", "--name", role, "--role", role],
        more,
    ]
    .concat();
    let output = run(folder, &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let made: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    let field = |key: &str| made[key].as_str().unwrap().to_owned();
    (field("id"), field("key"))
}

fn revoke(folder: &Path, id: &str) {
    let output = run(folder, &["keys", "revoke", id]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Sends a request with a key, or none.
async fn send(
    server: &Server,
    key: Option<&str>,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> reqwest::Response {
    let mut request = server.http.request(method, format!("{}{path}", server.url));
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    if let Some(body) = body {
        request = request.json(body);
    }
    request.send().await.unwrap()
}

async fn get(server: &Server, key: Option<&str>, path: &str) -> StatusCode {
    send(server, key, Method::GET, path, None).await.status()
}

/// The error object, whose four members are all there.
async fn error(response: reqwest::Response) -> Value {
    let body: Value = response.json().await.unwrap();
    let error = body["error"].as_object().expect("an error object");
    let members: Vec<_> = error.keys().map(String::as_str).collect();
    assert_eq!(members, ["message", "type", "param", "code"]);
    assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()));
    body["error"].clone()
}

/// Waits until the server answers so to a key.
async fn becomes(server: &Server, key: Option<&str>, status: StatusCode) {
    let began = Instant::now();
    while get(server, key, "/v1/models").await != status {
        assert!(
            began.elapsed() < SEEN_WITHIN,
            "it is not {status} after {SEEN_WITHIN:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn each_role_may_what_it_is_for() {
    let folder = folder();
    let (_, app) = create(folder.path(), "app", &[]);
    let (rater_id, rater) = create(folder.path(), "rater", &[]);
    let (_, admin) = create(folder.path(), "admin", &[]);
    let server = Server::start(folder.path()).await;
    let server = &server;

    for key in [&app, &rater, &admin] {
        let key = Some(key.as_str());
        let asked = send(server, key, Method::POST, CHAT, Some(&question("Hello"))).await;
        assert_eq!(asked.status(), 200);
        let answer: Value = asked.json().await.unwrap();
        assert_eq!(get(server, key, "/v1/models").await, 200);
        assert_eq!(get(server, key, "/v1/models/triage").await, 200);
        assert_eq!(get(server, key, "/v1/nothing").await, 404);
        let said = json!({"completion_id": answer["id"], "rating": 1, "correction": "{}"});
        let given = send(server, key, Method::POST, FEEDBACK, Some(&said)).await;
        assert_eq!(given.status(), 201);
    }
    assert_eq!(get(server, Some(&admin), "/admin/adapters").await, 200);
    for key in [&app, &rater] {
        // However it is written.
        for path in ["/admin/adapters", "/%61dmin/adapters", "/admin/runs"] {
            let response = send(server, Some(key), Method::GET, path, None).await;
            assert_eq!(response.status(), 403, "{path}");
            let error = error(response).await;
            assert_eq!(
                (&error["type"], &error["code"], &error["param"]),
                (
                    &json!("invalid_request_error"),
                    &json!("insufficient_permissions"),
                    &Value::Null
                )
            );
            assert!(error["message"].as_str().unwrap().contains("role admin"));
        }
        let request = server.http.post(format!("{}{CHAT}", server.url));
        let request = request.bearer_auth(key).header("retune-purpose", "probe");
        let response = request.json(&question("Hello")).send().await.unwrap();
        assert_eq!(response.status(), 403);
    }
    // Whoever is not asked for a key.
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(server, None, path).await, 200, "{path}");
    }
    // A page of another origin, by another name: a key is what counts now.
    let request = server.http.get(format!("{}/v1/models", server.url));
    let request = request.bearer_auth(&app).header("host", "retune.example");
    let response = request.header("origin", "https://example.com").send().await;
    assert_eq!(response.unwrap().status(), 200);

    let query = format!("select rater from feedback where rater = '{rater_id}'");
    let began = Instant::now();
    while rows(folder.path(), &query).len() != 1 {
        assert!(began.elapsed() < Duration::from_secs(15), "no row came");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn without_a_good_key_nobody_gets_in() {
    let folder = folder();
    let (id, key) = create(folder.path(), "admin", &[]);
    let server = Server::start(folder.path()).await;
    let last = if key.ends_with('0') { '1' } else { '0' };
    let other = format!("{}{last}", &key[..key.len() - 1]);
    let internal = key.replace(&id, "internal");
    for key in [None, Some(other.as_str()), Some(&internal), Some("sk-none")] {
        for path in ["/v1/models", "/admin/adapters", "/v1/nothing"] {
            let response = send(&server, key, Method::GET, path, None).await;
            assert_eq!(response.status(), 401, "{key:?} {path}");
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            let error = error(response).await;
            assert_eq!(
                (&error["type"], &error["code"]),
                (&json!("invalid_request_error"), &json!("invalid_api_key"))
            );
            assert!(key.is_none_or(|key| !error["message"].as_str().unwrap().contains(key)));
        }
    }
    // Whoever opens the address in a browser is led to where one signs in.
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    let root = http.build().unwrap().get(&server.url).send().await.unwrap();
    assert_eq!(root.status(), 302);
    assert_eq!(root.headers()["location"], "/console");
}

#[tokio::test]
async fn keys_are_seen_as_they_come_and_go() {
    let folder = folder();
    let server = Server::start(folder.path()).await;
    assert_eq!(get(&server, None, "/v1/models").await, 200);
    let (id, key) = create(folder.path(), "app", &[]);
    becomes(&server, None, StatusCode::UNAUTHORIZED).await;
    assert_eq!(get(&server, Some(&key), "/v1/models").await, 200);

    revoke(folder.path(), &id);
    becomes(&server, Some(&key), StatusCode::UNAUTHORIZED).await;
    // With every key revoked it is as closed as before; and another damaged file keeps nothing from being seen.
    fs::write(folder.path().join("store/keys/damaged1.json"), "{").unwrap();
    let (id, key) = create(folder.path(), "app", &[]);
    becomes(&server, Some(&key), StatusCode::OK).await;
    revoke(folder.path(), &id);
    becomes(&server, Some(&key), StatusCode::UNAUTHORIZED).await;
    // Whoever removes the files does not open it.
    fs::remove_dir_all(folder.path().join("store/keys")).unwrap();
    tokio::time::sleep(SEEN_WITHIN).await;
    assert_eq!(get(&server, None, "/v1/models").await, 401);
}

#[tokio::test]
async fn above_its_rate_a_key_is_told_when_to_come_back() {
    let folder = folder();
    let (_, few) = create(folder.path(), "rater", &["--requests-per-minute", "2"]);
    let (_, many) = create(folder.path(), "rater", &[]);
    let server = Server::start(folder.path()).await;
    let said = json!({"completion_id": "chatcmpl-none", "rating": 1});
    let give = async |key| send(&server, Some(key), Method::POST, FEEDBACK, Some(&said)).await;
    for _ in 0..2 {
        assert_eq!(give(&few).await.status(), 404);
    }
    let response = give(&few).await;
    assert_eq!(response.status(), 429);
    let wait: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    let error = error(response).await;
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("requests"), &json!("rate_limit_exceeded"))
    );
    assert_eq!(give(&many).await.status(), 404);
}

#[tokio::test]
async fn others_reach_it_with_keys_alone() {
    let folder = folder();
    let up = |env: &[(&str, &str)]| {
        let mut command = retune(folder.path());
        let output = command.envs(env.iter().copied()).arg("up").output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
        assert_eq!(text(&output.stdout), "", "it never listened");
        text(&output.stderr)
    };
    let open = [("RETUNE_SERVER__LISTEN", "0.0.0.0:0")];
    let ops = [("RETUNE_SERVER__OPS_LISTEN", "0.0.0.0:0")];
    for (env, key) in [(open, "server.listen"), (ops, "server.ops_listen")] {
        let said = up(&env);
        for part in [key, "0.0.0.0:0", "retune keys create", "127.0.0.1"] {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
        // The configuration itself is right.
        let check = retune(folder.path()).envs(env).arg("check").output();
        assert!(check.unwrap().status.success());
    }
    let (id, key) = create(folder.path(), "app", &[]);
    let server = Server::start_with(folder.path(), &open).await;
    assert!(
        server.url.starts_with("http://127.0.0.1:"),
        "{}",
        server.url
    );
    assert_eq!(get(&server, None, "/v1/models").await, 401);
    assert_eq!(get(&server, Some(&key), "/v1/models").await, 200);
    drop(server);

    // A damaged key opens nothing, and is named.
    let file = format!("store/keys/{id}.json");
    fs::write(folder.path().join(&file), "{}").unwrap();
    for env in [&open[..], &[]] {
        let said = up(env);
        assert!(said.contains(&file), "{said}");
    }
}

#[test]
fn a_key_is_shown_once() {
    let folder = folder();
    let made = run(
        folder.path(),
        &["keys", "create", "--name", "the shop", "--role", "app"],
    );
    assert!(made.status.success(), "{}", text(&made.stderr));
    let made = text(&made.stdout);
    let key = made.lines().next().unwrap();
    assert!(key.starts_with("rt-") && key.len() == 76, "{made}");
    assert!(made.contains("cannot be shown again"), "{made}");
    let (id, secret) = key["rt-".len()..].split_once('-').unwrap();

    let list = || {
        let output = run(folder.path(), &["keys", "list", "--json"]);
        assert!(output.status.success());
        let listed = text(&output.stdout);
        assert!(!listed.contains(secret) && !listed.contains("hash"));
        serde_json::from_str::<Value>(&listed).unwrap()
    };
    let listed = list();
    assert_eq!(
        (&listed["id"], &listed["name"], &listed["role"]),
        (&json!(id), &json!("the shop"), &json!("app"))
    );
    assert_eq!(listed["revoked"], Value::Null);
    for file in fs::read_dir(folder.path().join("store/keys")).unwrap() {
        let kept = fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!kept.contains(secret));
    }
    revoke(folder.path(), id);
    assert!(list()["revoked"].is_string());
    revoke(folder.path(), id);
    let nobody = run(folder.path(), &["keys", "revoke", "nobody00"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("nobody00"));
    for wrong in [
        &["--name", "x", "--role", "king"][..],
        &["--name", "", "--role", "app"],
        &["--name", "x", "--role", "app", "--tokens-per-minute", "0"],
    ] {
        let output = run(folder.path(), &[&["keys", "create"], wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}

fn tls(file: &str) -> String {
    format!("{ROOT}/tests/e2e/tls/{file}")
}

#[tokio::test]
async fn over_tls_and_its_own_commands_get_in() {
    let folder = folder();
    let (_, admin) = create(folder.path(), "admin", &[]);
    let (cert, key) = (tls("cert.pem"), tls("key.pem"));
    let env = [
        ("RETUNE_SERVER__TLS_CERT", cert.as_str()),
        ("RETUNE_SERVER__TLS_KEY", key.as_str()),
    ];
    let mut server = Server::start_with(folder.path(), &env).await;
    let port = server.url.strip_prefix("https://127.0.0.1:");
    let port = port.expect("https").to_owned();
    let certificate = reqwest::Certificate::from_pem(&fs::read(&cert).unwrap()).unwrap();
    // One that does not know the certificate does not trust it.
    let models = format!("{}/v1/models", server.url);
    assert!(server.http.get(&models).send().await.is_err());
    server.http = reqwest::Client::builder()
        .tls_certs_only([certificate])
        .build()
        .unwrap();
    assert_eq!(get(&server, Some(&admin), "/v1/models").await, 200);
    let hello = question("Hello");
    let asked = send(&server, Some(&admin), Method::POST, CHAT, Some(&hello)).await;
    assert_eq!(asked.status(), 200);
    let plain = reqwest::get(format!("http://127.0.0.1:{port}/v1/models")).await;
    assert!(plain.is_err_and(|e| !e.is_status()));

    // The commands know the certificate from the configuration, whatever names it has.
    let load = |url: &str, env: &[(&str, &str)]| {
        let mut command = retune(folder.path());
        command.args(["adapter", "load", "triage@1", "--server", url]);
        command.envs(env.iter().copied()).output().unwrap()
    };
    let with_key = [&env[..], &[("RETUNE_API_KEY", admin.as_str())]].concat();
    let got_in = load(&server.url, &with_key);
    assert!(
        text(&got_in.stderr).contains("no adapter 'triage@1'"),
        "{}",
        text(&got_in.stderr)
    );
    let refused = load(&server.url, &env);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("API key"));
    // Without the configuration it is a server like any other, and this one's authority is unknown.
    let unknown = load(&server.url, &[("RETUNE_API_KEY", &admin)]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(!text(&unknown.stderr).contains(&admin));
}

#[test]
fn what_is_wrong_with_tls_is_named_by_its_file() {
    let folder = folder();
    let prompt = folder.path().join("prompt.txt");
    fs::write(&prompt, "no PEM at all").unwrap();
    let prompt = prompt.display().to_string();
    let (cert, key, other) = (tls("cert.pem"), tls("key.pem"), tls("other-key.pem"));
    let none = tls("none.pem");
    for (cert, key, named) in [
        (&cert, &other, [&other, "server.tls_key"]),
        (&none, &key, [&none, "server.tls_cert"]),
        (&cert, &none, [&none, "server.tls_key"]),
        (&prompt, &key, [&prompt, "server.tls_cert"]),
        (&cert, &prompt, [&prompt, "server.tls_key"]),
        (&cert, &cert, [&cert, "server.tls_key"]),
        (&key, &key, [&key, "server.tls_cert"]),
    ] {
        for command in ["up", "check"] {
            let output = retune(folder.path())
                .env("RETUNE_SERVER__TLS_CERT", cert)
                .env("RETUNE_SERVER__TLS_KEY", key)
                .arg(command)
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(1));
            let said = text(&output.stderr);
            assert!(named.iter().all(|part| said.contains(part)), "{said}");
            assert!(!said.contains("no PEM at all"), "{said}");
        }
    }
}

/// What the server says to a client that sends this, and then keeps still.
async fn said_to(server: &Server, sent: &str) -> String {
    let address = server.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(sent.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    let read = stream.read_to_end(&mut said);
    let read = tokio::time::timeout(Duration::from_secs(10), read).await;
    read.expect("the connection is cut off").unwrap();
    text(&said)
}

#[tokio::test]
async fn who_keeps_it_waiting_is_cut_off() {
    let folder = folder();
    let env = [("RETUNE_SERVER__CLIENT_TIMEOUT_SECONDS", "2")];
    let server = Server::start_with(folder.path(), &env).await;
    let said = said_to(&server, "POST /v1/feedback HTTP/1.1\r\nHost: loc").await;
    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    let said = said_to(
        &server,
        "POST /v1/feedback HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{\"completion_id\":",
    )
    .await;
    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    assert!(said.contains("\"code\":\"request_timeout\""), "{said}");
    server.ask("Is it still there?").await;
}
