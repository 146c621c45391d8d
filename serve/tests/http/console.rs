//! The console as a browser without scripts sees it: who is let in, what a form needs, and that texts stay texts.

use chrono::{TimeDelta, Utc};
use reqwest::redirect::Policy;
use reqwest::{RequestBuilder, Response, StatusCode};
use retune_ledger::{Key, Pair, Pairs, Role};
use retune_task::{Choice, Side};
use serde_json::json;

use crate::support::Server;

/// A browser: it keeps cookies, and goes where it is sent only when told to.
struct Browser<'a> {
    server: &'a Server,
    client: reqwest::Client,
    cookie: Option<String>,
}

impl<'a> Browser<'a> {
    fn new(server: &'a Server) -> Self {
        let client = reqwest::Client::builder().redirect(Policy::none());
        Self {
            server,
            client: client.build().unwrap(),
            cookie: None,
        }
    }

    async fn send(&mut self, request: RequestBuilder) -> Response {
        let request = match &self.cookie {
            Some(cookie) => request.header("cookie", cookie),
            None => request,
        };
        let response = request.send().await.unwrap();
        if let Some(set) = response.headers().get("set-cookie") {
            let set = set.to_str().unwrap();
            assert!(
                set.contains("HttpOnly") && set.contains("SameSite=Lax"),
                "{set}"
            );
            self.cookie = set.split(';').next().map(str::to_owned);
        }
        response
    }

    async fn get(&mut self, path: &str) -> (u16, String) {
        let request = self.client.get(format!("{}{path}", self.server.url));
        let response = self.send(request).await;
        let status = response.status().as_u16();
        let policy = response.headers()["content-security-policy"]
            .to_str()
            .unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"));
        (status, response.text().await.unwrap())
    }

    /// Sends a form; where the browser is sent to, or the page that comes.
    async fn post(&mut self, path: &str, form: &[(&str, &str)]) -> (u16, String) {
        let body: Vec<String> = form
            .iter()
            .map(|(k, v)| format!("{k}={}", encoded(v)))
            .collect();
        let request = self
            .client
            .post(format!("{}{path}", self.server.url))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.join("&"));
        let response = self.send(request).await;
        let status = response.status();
        let to = response.headers().get("location").cloned();
        match to {
            Some(to) if status == StatusCode::SEE_OTHER => (303, to.to_str().unwrap().to_owned()),
            _ => (status.as_u16(), response.text().await.unwrap()),
        }
    }

    /// The token that a page's forms carry.
    async fn token(&mut self, path: &str) -> String {
        value(&self.get(path).await.1, "token")
    }

    async fn sign_in(&mut self, key: &str) -> (u16, String) {
        let token = self.token("/console/sign-in").await;
        let form = [
            ("token", token.as_str()),
            ("key", key),
            ("to", "/console/compare"),
        ];
        self.post("/console/sign-in", &form).await
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

/// The value of a page's last field of that name.
fn value(page: &str, name: &str) -> String {
    let (_, rest) = page
        .rsplit_once(&format!("name=\"{name}\" value=\""))
        .expect(page);
    rest.split('"').next().unwrap().to_owned()
}

async fn key(server: &Server, role: Role) -> (String, String) {
    let (key, text) = Key::new(role.as_str(), role).unwrap();
    assert!(server.ledger.put_key(&key).await.unwrap());
    (key.id, text.reveal())
}

/// With a key of each role, once the server asks for keys.
async fn keyed() -> (Server, [(String, String); 3]) {
    let server = Server::start(&[]).await;
    let keys = [
        key(&server, Role::App).await,
        key(&server, Role::Rater).await,
        key(&server, Role::Admin).await,
    ];
    for _ in 0..500 {
        if server.get("/v1/models").await.0 == 401 {
            return (server, keys);
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("keys are not asked for");
}

async fn asked(server: &Server, text: &str) -> String {
    let body =
        json!({"model": "free", "messages": [{"role": "user", "content": text}], "max_tokens": 4});
    let response = server.chat(&body).send().await.unwrap();
    let answer: serde_json::Value = response.json().await.unwrap();
    answer["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_comes_in_without_a_key_of_the_right_role() {
    let (server, [app, rater, admin]) = keyed().await;
    let mut browser = Browser::new(&server);
    for path in [
        "/console",
        "/console/runs",
        "/console/review",
        "/console/none",
    ] {
        let response = browser.client.get(format!("{}{path}", server.url));
        let response = browser.send(response).await;
        assert_eq!(response.status(), 303, "{path}");
        let to = response.headers()["location"].to_str().unwrap();
        assert!(to.starts_with("/console/sign-in"), "{to}");
    }
    assert!(
        browser
            .sign_in("rt-00000000-none")
            .await
            .1
            .contains("Incorrect API key")
    );
    assert!(browser.sign_in(&app.1).await.1.contains("is an app&#39;s"));
    assert_eq!(browser.get("/console/review").await.0, 303);

    let (status, to) = browser.sign_in(&rater.1).await;
    assert_eq!((status, to.as_str()), (303, "/console/compare"));
    assert!(!browser.cookie.as_deref().unwrap().contains(&rater.1[12..]));
    assert_eq!(browser.get("/console/compare").await.0, 200);
    for path in [
        "/console/runs",
        "/console/drift",
        "/console/try",
        "/console/adapters/count@1/promote",
    ] {
        assert_eq!(browser.get(path).await.0, 403, "{path}");
    }
    let (status, _) = browser.get("/console").await;
    assert_eq!(status, 303);

    // Its cookie is good for the console alone.
    let cookie = browser.cookie.clone().unwrap();
    let models = browser.client.get(format!("{}/v1/models", server.url));
    let models = models.header("cookie", &cookie).send().await.unwrap();
    assert_eq!(models.status(), 401);

    server.ledger.revoke_key(&rater.0).await.unwrap();
    for _ in 0..500 {
        if browser.get("/console/compare").await.0 == 303 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(browser.get("/console/compare").await.0, 303);

    assert_eq!(browser.sign_in(&admin.1).await.0, 303);
    for path in [
        "/console",
        "/console/runs",
        "/console/drift",
        "/console/try",
        "/console/review",
    ] {
        let (status, page) = browser.get(path).await;
        assert_eq!(status, 200, "{path}: {page}");
        assert!(page.contains("Sign out"));
    }
    let token = browser.token("/console").await;
    assert_eq!(
        browser
            .post("/console/sign-out", &[("token", &token)])
            .await
            .0,
        303
    );
    assert_eq!(browser.get("/console/runs").await.0, 303);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_is_taken_with_its_session_s_token_alone() {
    let server = Server::start(&[]).await;
    let id = asked(&server, "How many?").await;
    server.exchanges(1).await;
    let (mut browser, mut other) = (Browser::new(&server), Browser::new(&server));
    let token = browser.token("/console/review?task=free").await;
    let others = other.token("/console/review?task=free").await;
    let form = |token: &str| {
        let fields = [("task", "free"), ("id", id.as_str()), ("rating", "5")];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut fields = Vec::from(fields);
        fields.push(("token".to_owned(), token.to_owned()));
        fields
    };
    for wrong in ["", "0", others.as_str()] {
        let fields = form(wrong);
        let fields: Vec<(&str, &str)> = fields
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(browser.post("/console/review", &fields).await.0, 403);
    }
    let request = browser
        .client
        .post(format!("{}/console/review", server.url))
        .header("sec-fetch-site", "cross-site")
        .body(format!("task=free&id={id}&rating=5&token={token}"));
    assert_eq!(browser.send(request).await.status(), 403);
    assert!(
        server
            .ledger
            .feedback(&Default::default())
            .await
            .unwrap()
            .is_empty()
    );

    let fields = form(&token);
    let fields: Vec<(&str, &str)> = fields
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let (status, to) = browser.post("/console/review", &fields).await;
    assert_eq!(status, 303, "{to}");
    assert!(to.contains(&format!("last={id}")), "{to}");
    let said = server.ledger.feedback(&Default::default()).await.unwrap();
    assert_eq!((said.len(), said[0].rating), (1, Some(5)));
    assert_eq!(said[0].source.as_deref(), Some("console"));

    // It waits no more, until the word is taken back.
    let (_, page) = browser.get(&to).await;
    assert!(page.contains("Nothing of free waits"), "{page}");
    let back = [
        ("task", "free"),
        ("id", id.as_str()),
        ("token", token.as_str()),
    ];
    assert_eq!(browser.post("/console/review/undo", &back).await.0, 303);
    assert!(
        server
            .ledger
            .feedback(&Default::default())
            .await
            .unwrap()
            .is_empty()
    );
    let (_, page) = browser.get("/console/review?task=free").await;
    assert_eq!(value(&page, "id"), id);
    assert_eq!(browser.post("/console/review/skip", &back).await.0, 303);
    let (_, page) = browser.get("/console/review?task=free").await;
    assert!(page.contains("Nothing of free waits"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_logged_is_text_and_a_correction_keeps_the_format() {
    let server = Server::start(&[]).await;
    let hostile = "</pre><script>alert(1)</script>\"'><img src=x onerror=alert(1)>";
    let id = asked(&server, hostile).await;
    server.exchanges(1).await;
    let mut browser = Browser::new(&server);
    for path in [
        format!("/console/review?task=free&id={id}"),
        format!("/console/review?task={}", encoded(hostile)),
        format!("/console/drift/{}", encoded(hostile)),
        format!("/console/runs/{}", encoded(hostile)),
        format!("/console/adapters/{}/promote", encoded(hostile)),
    ] {
        let (_, page) = browser.get(&path).await;
        assert!(!page.contains("<script>alert"), "{path}: {page}");
        assert!(!page.contains("<img"), "{path}: {page}");
        assert!(page.contains("alert(1)"), "{path}: {page}");
    }
    // The answer of the task with a format, corrected.
    let body = json!({"model": "count", "messages": [{"role": "user", "content": "How many?"}], "max_tokens": 4});
    let answer: serde_json::Value = server
        .chat(&body)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let id = answer["id"].as_str().unwrap();
    let token = browser.token("/console/review?task=count").await;
    let form = |correction: &'static str| {
        [
            ("task", "count"),
            ("id", id),
            ("token", token.as_str()),
            ("correction", correction),
        ]
    };
    let (status, page) = browser.post("/console/review", &form("<b>seven</b>")).await;
    assert_eq!(status, 422);
    assert!(page.contains("breaks the task&#39;s own format"), "{page}");
    assert!(
        page.contains("&#60;b&#62;seven&#60;/b&#62;</textarea>"),
        "{page}"
    );
    assert_eq!(browser.post("/console/review", &form("7")).await.0, 303);
    let said = server.ledger.feedback(&Default::default()).await.unwrap();
    assert_eq!(said[0].correction.as_deref(), Some("7"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_decided_is_what_was_asked() {
    let server = Server::start(&[]).await;
    server.adapter("free", 1).await;
    server.adapter("free", 2).await;
    let mut browser = Browser::new(&server);
    let (_, page) = browser.get("/console/runs").await;
    assert!(page.contains("free@1") && page.contains("free@2"), "{page}");
    let (status, page) = browser.get("/console/adapters/free@2/promote").await;
    assert_eq!(status, 200);
    assert!(page.contains("in place of free@base"), "{page}");
    let (token, seq) = (value(&page, "token"), value(&page, "seq"));
    let mut form = vec![
        ("token", token.as_str()),
        ("champion", "free@base"),
        ("seq", seq.as_str()),
    ];
    assert_eq!(
        browser
            .post("/console/adapters/free@2/promote", &form)
            .await
            .0,
        400
    );
    form.push(("reason", "it is better"));
    // Somebody else was quicker.
    let quicker = json!({"expected_champion": "free@base"});
    assert_eq!(server.act("free@1", "promote", quicker).await.0, 200);
    let (status, page) = browser
        .post("/console/adapters/free@2/promote", &form)
        .await;
    assert_eq!(status, 409);
    assert!(page.contains("in place of free@1"), "{page}");
    let seq = value(&page, "seq");
    (form[1], form[2]) = (("champion", "free@1"), ("seq", seq.as_str()));
    let (status, to) = browser
        .post("/console/adapters/free@2/promote", &form)
        .await;
    assert_eq!(status, 303, "{to}");
    let (_, page) = browser.get(&to).await;
    assert!(page.contains("it is better"), "{page}");
    let stages = server.ledger.stages("free").await.unwrap();
    assert_eq!(stages.champion, Some(2));
    assert_eq!(browser.get("/console/adapters/free@2/promote").await.0, 409);
    assert_eq!(browser.get("/console/adapters/free@base").await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_is_shown_blind_and_a_mark_alone_is_no_vote() {
    let server = Server::start(&[]).await;
    let (left, right) = (
        asked(&server, "How many?").await,
        asked(&server, "How many?").await,
    );
    server.exchanges(2).await;
    let pair = Pair {
        id: "pair-1".to_owned(),
        request_id: left.clone(),
        left: Some(left),
        right: Some(right),
        candidate: Side::Right,
        format_valid: true,
        baseline_format_valid: true,
        parts: Vec::new(),
        judged: None,
        asked: true,
    };
    let pairs = Pairs {
        task: "free".to_owned(),
        number: 7,
        run_id: "run-1".to_owned(),
        judge: None,
        until: Utc::now() + TimeDelta::days(1),
        criteria: Some("<b>Short</b>".to_owned()),
        pairs: vec![pair],
    };
    assert!(server.ledger.put_pairs(&pairs).await.unwrap());
    let mut browser = Browser::new(&server);
    let (_, page) = browser.get("/console/compare").await;
    assert!(
        page.contains("How many?") && page.contains("0 of 1 pairs have a vote"),
        "{page}"
    );
    for telling in ["free@", "chatcmpl-", "candidate", "<b>"] {
        assert!(!page.contains(telling), "{telling}: {page}");
    }
    let token = value(&page, "token");
    let mut form = vec![
        ("token", token.as_str()),
        ("id", "pair-1"),
        ("left.accuracy", "5"),
    ];
    let (status, page) = browser.post("/console/compare", &form).await;
    assert!(
        status == 422 && page.contains("Marks alone are no vote"),
        "{page}"
    );
    assert!(server.ledger.votes("free", 7).await.unwrap().is_empty());
    form.push(("choice", "left"));
    let (status, to) = browser.post("/console/compare", &form).await;
    assert_eq!(status, 303, "{to}");
    let (_, page) = browser.get(&to).await;
    assert!(page.contains("No pair waits"), "{page}");
    let votes = server.ledger.votes("free", 7).await.unwrap();
    assert_eq!(
        (votes[0].1.choice, votes[0].1.left["accuracy"]),
        (Choice::Left, 5.0)
    );
    assert_eq!(browser.post("/console/compare", &form).await.0, 409);
}
