//! What OpenAI's clients can ask beside a plain answer: choices, probabilities, seeds, formats, tools, raw prompts, stored completions.

use serde_json::{Value, json};

use crate::harness::{Server, folder, question};

const CHAT: &str = "/v1/chat/completions";

async fn answered(server: &Server, path: &str, body: &Value) -> Value {
    let response = server.post(path, body).await;
    let status = response.status();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{answer}");
    answer
}

async fn refused(server: &Server, path: &str, body: &Value, param: &str) {
    let response = server.post(path, body).await;
    assert_eq!(response.status(), 400);
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["error"]["param"], param, "{answer}");
}

/// The chunks of a stream.
async fn streamed(server: &Server, path: &str, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let response = server.post(path, &body).await;
    assert_eq!(response.status(), 200);
    let text = response.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    text.lines()
        .filter_map(|line| line.strip_prefix("data: {"))
        .map(|rest| serde_json::from_str(&format!("{{{rest}")).unwrap())
        .collect()
}

fn with(changes: &Value) -> Value {
    let mut body =
        question("The parcel with my Lumo lamp, order 204417, has not come. Please hurry!");
    for (key, value) in changes.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn content(choice: &Value) -> &str {
    choice["message"]["content"].as_str().unwrap()
}

#[tokio::test]
async fn a_seed_repeats_an_answer_and_choices_differ() {
    let folder = folder();
    let server = Server::start(folder.path()).await;
    let body = with(&json!({"temperature": 1.6, "seed": 7, "n": 3}));
    let (one, two) = (
        answered(&server, CHAT, &body).await,
        answered(&server, CHAT, &body).await,
    );
    let texts = |answer: &Value| -> Vec<String> {
        let choices = answer["choices"].as_array().unwrap();
        choices.iter().map(|c| content(c).to_owned()).collect()
    };
    assert_eq!(texts(&one), texts(&two));
    assert_eq!(texts(&one).len(), 3);
    assert_ne!(texts(&one)[0], texts(&one)[1]);
    let alone = answered(
        &server,
        CHAT,
        &with(&json!({"temperature": 1.6, "seed": 7})),
    )
    .await;
    assert_eq!(texts(&alone)[0], texts(&one)[0]);
    let tokens = |answer: &Value, key: &str| answer["usage"][key].as_u64().unwrap();
    assert_eq!(
        tokens(&one, "prompt_tokens"),
        tokens(&alone, "prompt_tokens")
    );
    assert!(tokens(&one, "completion_tokens") > tokens(&alone, "completion_tokens"));

    let chunks = streamed(&server, CHAT, &body).await;
    for (i, text) in texts(&one).iter().enumerate() {
        let of = |chunk: &&Value| chunk["choices"][0]["index"] == i;
        let said: String = chunks
            .iter()
            .filter(of)
            .filter_map(|c| c["choices"][0]["delta"]["content"].as_str())
            .collect();
        assert_eq!(said, *text);
        let last = chunks.iter().rfind(of).unwrap();
        assert!(last["choices"][0]["finish_reason"].is_string());
    }
}

#[tokio::test]
async fn probabilities_are_of_the_tokens_that_were_said() {
    let folder = folder();
    let server = Server::start(folder.path()).await;
    let body = with(&json!({"logprobs": true, "top_logprobs": 3}));
    let answer = answered(&server, CHAT, &body).await;
    let choice = &answer["choices"][0];
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|t| t["bytes"].as_array().unwrap())
        .map(|b| b.as_u64().unwrap() as u8)
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), content(choice));
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Greedy: what was said was the likeliest.
        assert_eq!(top[0]["token"], token["token"]);
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        let sum: f64 = top
            .iter()
            .map(|t| t["logprob"].as_f64().unwrap().exp())
            .sum();
        assert!(sum <= 1.0001, "{token}");
    }
    let streamed: usize = streamed(&server, CHAT, &body)
        .await
        .iter()
        .filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array())
        .map(Vec::len)
        .sum();
    assert_eq!(streamed, tokens.len());
    refused(
        &server,
        CHAT,
        &with(&json!({"top_logprobs": 3})),
        "top_logprobs",
    )
    .await;

    // A token that is pushed that hard is all that is said.
    let pushed = with(&json!({"logit_bias": {"70": 100}, "max_tokens": 4, "logprobs": true}));
    let answer = answered(&server, CHAT, &pushed).await;
    let tokens = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(tokens.len(), 4);
    assert!(tokens.iter().all(|t| t["token"] == tokens[0]["token"]));
    refused(
        &server,
        CHAT,
        &with(&json!({"logit_bias": {"9999999": 1}})),
        "logit_bias",
    )
    .await;
}

#[tokio::test]
async fn an_answer_is_decoded_under_the_requests_own_schema() {
    let folder = folder();
    let server = Server::start(folder.path()).await;
    let schema = json!({"type": "object", "properties": {
            "mood": {"enum": ["calm", "angry"]}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}},
        "required": ["mood", "stars"], "additionalProperties": false});
    let format = |schema: &Value| json!({"type": "json_schema", "json_schema": {"name": "m", "strict": true, "schema": schema}});
    for model in ["triage", "pocket"] {
        for temperature in [0.0, 1.5] {
            let body = with(
                &json!({"model": model, "temperature": temperature, "response_format": format(&schema)}),
            );
            let response = server.post(CHAT, &body).await;
            assert_eq!(response.headers()["retune-format"], "none");
            let answer: Value = response.json().await.unwrap();
            let object: Value = serde_json::from_str(content(&answer["choices"][0])).unwrap();
            assert!(["calm", "angry"].contains(&object["mood"].as_str().unwrap()));
            assert!((1..=5).contains(&object["stars"].as_i64().unwrap()));
            assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        }
    }
    let any = with(&json!({"response_format": {"type": "json_object"}, "max_tokens": 200}));
    let answer = answered(&server, CHAT, &any).await;
    assert!(content(&answer["choices"][0]).starts_with('{'));
    let impossible = with(&json!({"response_format": format(&json!({"type": "nothing"}))}));
    refused(&server, CHAT, &impossible, "response_format").await;
}

#[tokio::test]
async fn a_tool_is_called_with_arguments_that_fit() {
    let folder = folder();
    let server = Server::start(folder.path()).await;
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": {"order": {"type": "string", "pattern": "^[0-9]{6}$"}},
        "required": ["order"], "additionalProperties": false}}})
    };
    let tools = json!([tool("track"), tool("cancel")]);
    let named = with(
        &json!({"tools": tools, "tool_choice": {"type": "function", "function": {"name": "cancel"}}}),
    );
    let choice = answered(&server, CHAT, &named).await["choices"][0].clone();
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "cancel");
    let fits = |text: &str| {
        let arguments: Value = serde_json::from_str(text).unwrap();
        arguments["order"].as_str().unwrap().len() == 6
    };
    assert!(
        fits(call["function"]["arguments"].as_str().unwrap()),
        "{call}"
    );
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&Value::Null, &json!("stop"))
    );

    let chunks = streamed(&server, CHAT, &named).await;
    let deltas: Vec<&Value> = chunks
        .iter()
        .map(|c| &c["choices"][0]["delta"]["tool_calls"][0])
        .filter(|d| d.is_object())
        .collect();
    assert_eq!(deltas[0]["function"]["name"], "cancel");
    let arguments: String = deltas
        .iter()
        .filter_map(|d| d["function"]["arguments"].as_str())
        .collect();
    assert!(fits(&arguments), "{arguments}");

    let required = with(&json!({"tools": tools, "tool_choice": "required"}));
    let choice = answered(&server, CHAT, &required).await["choices"][0].clone();
    let call = &choice["message"]["tool_calls"][0]["function"];
    assert!(["track", "cancel"].contains(&call["name"].as_str().unwrap()));
    assert_eq!(choice["finish_reason"], "tool_calls");

    // The pocket model's template says nothing of tools.
    refused(
        &server,
        CHAT,
        &with(&json!({"tools": tools})),
        "tool_choice",
    )
    .await;
    let none = with(&json!({"tools": tools, "tool_choice": "none"}));
    assert!(answered(&server, CHAT, &none).await["choices"][0]["message"]["content"].is_string());
}

#[tokio::test]
async fn a_raw_prompt_is_continued() {
    let folder = folder();
    let server = Server::start(folder.path()).await;
    let prompt =
        "<|im_start|>user\nWhich month comes after May?<|im_end|>\n<|im_start|>assistant\n";
    let body = json!({"model": "pocket", "prompt": [prompt, prompt], "n": 2, "temperature": 0, "logprobs": 1});
    let answer = answered(&server, "/v1/completions", &body).await;
    assert_eq!(answer["object"], "text_completion");
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    let first = &choices[0];
    assert!(!first["text"].as_str().unwrap().is_empty());
    assert!(choices.iter().all(|c| c["text"] == first["text"]));
    let (tokens, offsets) = (
        first["logprobs"]["tokens"].as_array().unwrap(),
        first["logprobs"]["text_offset"].as_array().unwrap(),
    );
    assert_eq!(tokens.len(), offsets.len());
    let text: String = tokens.iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(first["text"], text);

    let chunks = streamed(
        &server,
        "/v1/completions",
        &json!({"model": "triage", "prompt": prompt, "temperature": 0}),
    )
    .await;
    let said: String = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(first["text"], said);
    refused(
        &server,
        "/v1/completions",
        &json!({"model": "pocket", "prompt": [1, 2]}),
        "prompt",
    )
    .await;
    refused(
        &server,
        "/v1/completions",
        &json!({"model": "pocket", "prompt": "a", "echo": true}),
        "echo",
    )
    .await;
}

#[tokio::test]
async fn stored_completions_are_found_again() {
    let folder = folder();
    let server = Server::start(folder.path()).await;
    let mut ids = Vec::new();
    for team in ["red", "blue", "red"] {
        let body = with(&json!({"metadata": {"team": team, "say": "a \"quoted\":\"team\""}}));
        ids.push(answered(&server, CHAT, &body).await["id"].clone());
    }
    answered(&server, CHAT, &with(&json!({"store": false}))).await;
    let list = |query: &'static str| {
        let server = &server;
        async move {
            let response = server.get(&format!("{CHAT}{query}")).await;
            assert_eq!(response.status(), 200);
            let body: Value = response.json().await.unwrap();
            body
        }
    };
    let found = |body: &Value| -> Vec<Value> {
        let data = body["data"].as_array().unwrap();
        data.iter().map(|d| d["id"].clone()).collect()
    };
    assert_eq!(found(&list("").await), ids);
    let newest = list("?order=desc&limit=1").await;
    assert_eq!(
        (found(&newest), &newest["has_more"]),
        (vec![ids[2].clone()], &json!(true))
    );
    assert_eq!(
        found(&list("?metadata[team]=red").await),
        [ids[0].clone(), ids[2].clone()]
    );
    assert!(found(&list("?model=pocket").await).is_empty());
    let after = format!("{CHAT}?after={}", ids[0].as_str().unwrap());
    let rest: Value = server.get(&after).await.json().await.unwrap();
    assert_eq!(found(&rest), ids[1..]);

    let id = ids[0].as_str().unwrap();
    let one: Value = server
        .get(&format!("{CHAT}/{id}"))
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(
        (&one["id"], &one["metadata"]["team"]),
        (&ids[0], &json!("red"))
    );
    let messages: Value = server
        .get(&format!("{CHAT}/{id}/messages"))
        .await
        .json()
        .await
        .unwrap();
    assert!(
        messages["data"][0]["content"]
            .as_str()
            .unwrap()
            .contains("Lumo lamp")
    );
    assert_eq!(
        server
            .get(&format!("{CHAT}/chatcmpl-nobody"))
            .await
            .status(),
        404
    );
    assert_eq!(
        server.get(&format!("{CHAT}?limit=1000")).await.status(),
        400
    );
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_a_504() {
    let folder = folder();
    let env = [("RETUNE_ENGINE__DEADLINE_SECONDS", "0.001")];
    let server = Server::start_with(folder.path(), &env).await;
    let response = server.post(CHAT, &with(&json!({}))).await;
    assert_eq!(response.status(), 504);
    assert_eq!(response.headers()["x-should-retry"], "false");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], "deadline_exceeded");
}
