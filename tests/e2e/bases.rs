//! A base that is a GGUF file, from the command line to the API.

use std::fs;

use candle_core::quantized::GgmlDType;
use serde_json::{Value, json};

use crate::harness::{Server, folder, run, text};
use crate::{gguf, model};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gguf_file_is_served_and_neither_adapted_nor_trained_on() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("models")).unwrap();
    model::write_tokenizer(&path("models"));
    let weights = path("models").join("tiny-q8_0.gguf");
    gguf::write(
        &weights,
        &model::config(),
        &model::tensors(),
        GgmlDType::Q8_0,
    );
    model::write_adapter(&path("lora"), 5);
    fs::write(path("prompt.txt"), "Answer with a number.\n").unwrap();
    let toml = "[engine]\nbase = \"models/tiny-q8_0.gguf\"\nadapters_memory_mib = 64\n\n[[task]]\nname = \"count\"\nprompt = \"prompt.txt\"\n";
    fs::write(path("retune.toml"), toml).unwrap();

    let checked = run(folder.path(), &["check"]);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    let refusals = [
        (
            &["retrain", "--task", "count"][..],
            "nothing can be trained",
        ),
        (&["retrain", "--watch"], "nothing can be trained"),
        (
            &["adapter", "import", "--task", "count", "lora"],
            "merges no adapter",
        ),
    ];
    for (arguments, why) in refusals {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = text(&output.stderr);
        let named = ["GGUF", "safetensors", "engine.base", why];
        assert!(named.iter().all(|part| said.contains(part)), "{said}");
    }

    let server = Server::start(folder.path()).await;
    assert_eq!(server.get("/readyz").await.status(), 200);
    let models: Value = server.get("/v1/models").await.json().await.unwrap();
    assert_eq!(models["data"][0]["id"], "tiny-q8_0");
    for name in ["tiny-q8_0", "count"] {
        let body = json!({"model": name, "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 8});
        let response = server.post("/v1/chat/completions", &body).await;
        assert_eq!(response.status(), 200);
        let answer: Value = response.json().await.unwrap();
        let content = answer["choices"][0]["message"]["content"].as_str();
        assert_eq!(content.map(str::len), Some(8), "{answer}");
    }
    let body = json!({"task": "count", "folder": path("lora")});
    let refused = server.post("/admin/adapters", &body).await;
    assert_eq!(refused.status(), 400);
    let refused: Value = refused.json().await.unwrap();
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("GGUF"), "{message}");
}
