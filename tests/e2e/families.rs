//! Every family that can be trained, from a training to an answer: a job trains on a tiny random base, and the engine, whose arithmetic is
//! another's, has to answer the adapter's probes as the trainer did before anybody gets an answer of it.

use std::path::Path;

use candle_core::{DType, safetensors};
use retune_trainer::{Model, ModelConfig};
use serde_json::{Value, json};

use crate::fine_tuning::{end, job_on};
use crate::harness::{ROOT, Server, folder, run, text};
use crate::model;

const TOML: &str =
    "[engine]\nbase = \"base\"\n\n[[task]]\nname = \"any\"\nprompt = \"prompt.txt\"\n";

/// A base of the family's own kind, with a vocabulary of bytes. The figures of its shape are those that the trainer is held to
/// transformers with.
fn write_base(family: &str, base: &Path) {
    std::fs::create_dir_all(base).unwrap();
    let stored = Path::new(ROOT).join("retrain/trainer/parity").join(family);
    let config = std::fs::read_to_string(stored.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["vocab_size"] = json!(model::VOCABULARY);
    config["hidden_size"] = json!(32);
    config["max_position_embeddings"] = json!(512);
    config["bos_token_id"] = json!(256);
    config["eos_token_id"] = json!(257);
    config["dtype"] = json!("float32");
    if config["head_dim"].is_number() {
        // The engine's Llama has no other.
        config["head_dim"] = json!(8);
    }
    if family == "phi3" {
        // Of the engine's ways to stretch a context none is transformers 5's for Phi.
        config["rope_parameters"] = json!({"rope_theta": 10000.0, "rope_type": "default"});
    }
    std::fs::write(base.join("config.json"), config.to_string()).unwrap();
    model::write_tokenizer(base);
    let random = Model::random(&ModelConfig::load(base).unwrap(), 3).unwrap();
    random.save(base, DType::F32).unwrap();
    // Large enough for the head, which no adapter changes, to tell one token from another.
    let file = base.join("model.safetensors");
    let mut tensors = safetensors::load(&file, &candle_core::Device::Cpu).unwrap();
    for (name, tensor) in &mut tensors {
        if name.contains("embed_tokens") || name.contains("lm_head") {
            *tensor = (&*tensor * 40.0).unwrap();
        }
    }
    safetensors::save(&tensors, file).unwrap();
}

async fn trained_and_served(family: &str) {
    let folder = folder();
    write_base(family, &folder.path().join("base"));
    std::fs::write(folder.path().join("prompt.txt"), "Answer.\n").unwrap();
    std::fs::write(folder.path().join("retune.toml"), TOML).unwrap();
    let server = Server::start(folder.path()).await;
    // Its layers without places are slow to tell one thing from another.
    let lines = if family == "smollm3" { 160 } else { 40 };
    let job = job_on(
        &server,
        "base",
        lines,
        json!({"n_epochs": 12, "batch_size": 4, "learning_rate_multiplier": 1}),
    )
    .await;
    let ended = end(&server, &job).await;
    assert_eq!(ended["status"], "succeeded", "{family}: {ended}");
    let name = ended["fine_tuned_model"].as_str().unwrap();
    let body = json!({"model": name, "messages": [{"role": "user", "content": "Order 7 has not come."}], "temperature": 0, "max_tokens": 8});
    let response = server.post("/v1/chat/completions", &body).await;
    let answer: Value = response.json().await.unwrap();
    assert!(
        answer["choices"][0]["message"]["content"].is_string(),
        "{family}: {answer}"
    );
    // It proved itself by what the trainer answered, which is not what the base says.
    let shown: Value = server
        .get("/admin/adapters/ahoy@12")
        .await
        .json()
        .await
        .unwrap();
    let probes = shown["manifest"]["probes"].as_array().unwrap();
    assert!(probes.len() >= 4, "{family}: {shown}");
    let probe = &probes[0];
    let body = json!({"model": "base", "messages": probe["messages"], "temperature": 0, "max_tokens": probe["max_tokens"]});
    let base: Value = server
        .post("/v1/chat/completions", &body)
        .await
        .json()
        .await
        .unwrap();
    assert_ne!(
        base["choices"][0]["message"]["content"], probe["answer"],
        "{family}"
    );
}

macro_rules! families {
    ($($family:ident),*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $family() {
                trained_and_served(stringify!($family)).await;
            }
        )*
    };
}

families!(llama, mistral, qwen2, qwen3, gemma2, phi3, smollm3);

/// The engine inside has Gemma 3 with its eyes alone: what is trained here is served by others.
#[test]
fn gemma3_is_trained_here_and_served_elsewhere() {
    let folder = folder();
    write_base("gemma3", &folder.path().join("base"));
    std::fs::write(folder.path().join("prompt.txt"), "Answer.\n").unwrap();
    std::fs::write(folder.path().join("retune.toml"), TOML).unwrap();
    let refused = run(folder.path(), &["serve"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(said.contains("Gemma3ForCausalLM"), "{said}");
}
