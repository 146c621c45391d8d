//! Adapters while the server runs: loading, promotion, rejection, the way back, and what a restart remembers.

use crate::support::Server;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_takes_over_and_gives_back() {
    let server = Server::start(&[]).await;
    let (base, none) = server.greedy("count").await;
    assert_eq!(none, None);
    let one = server.adapter("count", 5).await;
    let (answer, digest) = server.greedy("count@1").await;
    assert_ne!(answer, base);
    assert_eq!(digest.as_deref(), Some(one.manifest.digest.as_str()));
    // A candidate answers by its name alone.
    assert_eq!(server.greedy("count").await.0, base);

    let (status, item) = server
        .act(
            "count@1",
            "promote",
            json!({"expected_champion": "count@9"}),
        )
        .await;
    assert_eq!((status, &item["error"]["code"]), (409, &json!("conflict")));
    // Nor after another decision than the expected one.
    let late = json!({"expected_champion": "count@base", "expected_seq": 7});
    let (status, item) = server.act("count@1", "promote", late).await;
    assert_eq!((status, &item["error"]["code"]), (409, &json!("conflict")));
    let (status, item) = server
        .act(
            "count@1",
            "promote",
            json!({"expected_champion": "count@base"}),
        )
        .await;
    assert_eq!(
        (status, &item["stage"], &item["loaded"]),
        (200, &json!("champion"), &json!(true))
    );
    assert_eq!(
        server.greedy("count").await,
        (answer.clone(), digest.clone())
    );
    assert_eq!(server.greedy("ft:tiny:me:count:1").await.0, answer);
    assert_eq!(server.greedy("count@base").await.0, base);
    server
        .metrics_say(r#"retune_adapter_stage{adapter="count@1",stage="champion",task="count"} 1"#)
        .await;

    // The champion can be neither unloaded nor rejected.
    assert_eq!(server.act("count@1", "unload", json!({})).await.0, 409);
    assert_eq!(server.act("count@1", "reject", json!({})).await.0, 409);

    server.adapter("count", 6).await;
    let (second, _) = server.greedy("count@2").await;
    assert_eq!(
        server
            .act(
                "count@2",
                "promote",
                json!({"expected_champion": "count@1"})
            )
            .await
            .0,
        200
    );
    assert_eq!(server.greedy("count").await.0, second);
    let (_, list) = server.get("/admin/adapters").await;
    let stages: Vec<&Value> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| &a["stage"])
        .collect();
    assert_eq!(stages, [&json!("retired"), &json!("champion")]);

    // Out of memory and back: the same answers.
    assert_eq!(server.act("count@1", "unload", json!({})).await.0, 200);
    assert_eq!(server.act("count@1", "unload", json!({})).await.0, 409);
    assert_eq!(
        server.act("count@1", "load", json!({})).await.1["loaded"],
        json!(true)
    );
    assert_eq!(server.greedy("count@1").await.0, answer);

    // The way back, to the old champion and to the baseline.
    assert_eq!(
        server
            .act(
                "count@1",
                "promote",
                json!({"expected_champion": "count@2"})
            )
            .await
            .0,
        200
    );
    assert_eq!(server.greedy("count").await.0, answer);
    assert_eq!(
        server.act("count@2", "reject", json!({})).await.1["stage"],
        json!("rejected")
    );
    assert_eq!(
        server
            .act(
                "count@2",
                "promote",
                json!({"expected_champion": "count@1"})
            )
            .await
            .0,
        409
    );

    let server = server.restarted().await;
    assert_eq!(server.greedy("count").await, (answer, digest));
    assert_eq!(
        server
            .act(
                "count@base",
                "promote",
                json!({"expected_champion": "count@1"})
            )
            .await
            .0,
        200
    );
    assert_eq!(server.greedy("count").await.0, base);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_models() {
    let server = Server::start(&[]).await;
    let one = server.adapter("count", 5).await;
    server.get("/admin/adapters").await;
    let (_, list) = server.get("/v1/models").await;
    let ids: Vec<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].as_str().unwrap())
        .collect();
    assert_eq!(
        ids,
        [
            "tiny",
            "count",
            "count@base",
            "count@1",
            "free",
            "free@base"
        ]
    );
    let (status, model) = server.get("/v1/models/count@1").await;
    assert_eq!(status, 200);
    assert_eq!(
        (&model["object"], &model["parent"], &model["stage"]),
        (&json!("model"), &json!("tiny"), &json!("candidate"))
    );
    assert_eq!(model["digest"], json!(one.manifest.digest));
    assert!(model["created"].is_i64() && model["owned_by"].is_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_stay_in_memory() {
    let server = Server::start(&[("RETUNE_ENGINE__MAX_LOADED", "2")]).await;
    let mut answers = Vec::new();
    for seed in 5..9 {
        server.adapter("count", seed).await;
        answers.push(server.greedy(&format!("count@{}", seed - 4)).await.0);
    }
    server.metrics_say("retune_adapters_loaded 2").await;
    // The first two left for the others, and come back unchanged.
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(&server.greedy(&format!("count@{}", i + 1)).await.0, answer);
    }
    server.metrics_say("retune_adapters_loaded 2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_much_memory_is_taken() {
    // A copy of the tiny model's 35,104 parameters takes 140 kB: seven fit.
    let limits = [
        ("RETUNE_ENGINE__MAX_LOADED", "100"),
        ("RETUNE_ENGINE__ADAPTERS_MEMORY_MIB", "1"),
    ];
    let server = Server::start(&limits).await;
    let mut answers = Vec::new();
    for number in 1..9 {
        server.adapter("count", number + 4).await;
        answers.push(server.greedy(&format!("count@{number}")).await.0);
    }
    server.metrics_say("retune_adapters_loaded 7").await;
    assert_eq!(server.greedy("count@1").await.0, answers[0]);
    server.metrics_say("retune_adapters_loaded 7").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_flight_finish_on_what_they_started_with() {
    let server = Server::start(&[]).await;
    server.adapter("count", 5).await;
    let long = json!({"model": "count@1", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 500});
    let content = async |request: reqwest::RequestBuilder| {
        request.send().await.unwrap().json::<Value>().await.unwrap()["choices"][0]["message"]["content"].clone()
    };
    let whole = content(server.chat(&long)).await;
    let running = tokio::spawn(server.chat(&long).send());
    server.metrics_say("retune_requests_running 1").await;
    assert_eq!(server.act("count@1", "unload", json!({})).await.0, 200);
    let answer: Value = running.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], whole);
    assert_eq!(
        server.get("/admin/adapters").await.1["data"][0]["loaded"],
        json!(false)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_file_is_not_served() {
    let server = Server::start(&[]).await;
    let adapter = server.adapter("count", 5).await;
    let weights = adapter.folder.join("adapter_model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let (status, body) = server.act("count@1", "load", json!({})).await;
    assert!(status >= 400, "{body}");
    assert_eq!(
        server.get("/admin/adapters").await.1["data"][0]["loaded"],
        json!(false)
    );
}
