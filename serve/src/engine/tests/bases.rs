//! Bases as people have them: saved by transformers 4 or 5, in one file or in shards, or as a GGUF file.

use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use serde_json::{Value, json};

use super::*;

/// The greedy answer of the base in `folder`, and that of an adapter if it takes one.
async fn answers(base: &Path, adapter: Option<&Path>) -> (String, Option<String>) {
    let engine = Embedded::start(base, counter()).await.unwrap();
    let (text, finish, tokens) = answer(&engine, generation(None, "Hello")).await;
    assert_eq!((finish, tokens), (Finish::Length, 24));
    let Some(adapter) = adapter else {
        return (text, None);
    };
    engine.load("t@1#a/0", adapter).await.unwrap();
    let (adapted, ..) = answer(&engine, generation(Some("t@1#a/0"), "Hello")).await;
    (text, Some(adapted))
}

async fn refusal(base: &Path) -> String {
    let started = Embedded::start(base, counter()).await;
    started.err().expect("a refusal").to_string()
}

/// The config of transformers 4 for the same model.
fn config_of_transformers_4() -> Value {
    let mut config = model::config();
    let object = config.as_object_mut().unwrap();
    object.remove("rope_parameters");
    object.remove("dtype");
    object.insert("rope_theta".to_owned(), json!(10_000.0));
    object.insert("rope_scaling".to_owned(), Value::Null);
    object.insert("torch_dtype".to_owned(), json!("float32"));
    config
}

/// The weights in two files and an index.
fn write_shards(folder: &Path) {
    let tensors = model::tensors();
    let mut map = serde_json::Map::new();
    for (at, name) in ["model-00001-of-00002", "model-00002-of-00002"]
        .iter()
        .enumerate()
    {
        let file = format!("{name}.safetensors");
        let part: model::Tensors = tensors
            .iter()
            .enumerate()
            .filter(|(i, _)| i % 2 == at)
            .map(|(_, (name, tensor))| (name.clone(), tensor.clone()))
            .collect();
        map.extend(part.keys().map(|name| (name.clone(), json!(file))));
        model::write_tensors(&folder.join(file), &part);
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    model::write_json(&folder.join("model.safetensors.index.json"), &index);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transformers_4_and_5_whole_and_in_shards_are_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    model::write_adapter(&path("adapter"), 5);
    let write = |name: &str, config: &Value, sharded: bool| -> PathBuf {
        let base = path(name);
        std::fs::create_dir(&base).unwrap();
        model::write_json(&base.join("config.json"), config);
        model::write_tokenizer(&base);
        if sharded {
            write_shards(&base);
        } else {
            model::write_tensors(&base.join("model.safetensors"), &model::tensors());
        }
        base
    };
    let (four, five) = (config_of_transformers_4(), model::config());
    let five_whole = answers(&write("five", &five, false), Some(&path("adapter"))).await;
    assert_ne!(Some(&five_whole.0), five_whole.1.as_ref());
    for (name, config, sharded) in [
        ("four", &four, false),
        ("four-sharded", &four, true),
        ("five-sharded", &five, true),
    ] {
        let base = write(name, config, sharded);
        let answered = answers(&base, Some(&path("adapter"))).await;
        assert_eq!(answered, five_whole, "{name}");
    }
    let sharded = path("four-sharded");
    std::fs::remove_file(sharded.join("model-00002-of-00002.safetensors")).unwrap();
    let refused = refusal(&sharded).await;
    assert!(
        refused.contains("model-00002-of-00002.safetensors is missing"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gguf_file_answers_as_the_folder_that_it_was_made_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for family in families() {
        let name = family.config["model_type"].as_str().unwrap().to_owned();
        let base = path(&name);
        std::fs::create_dir(&base).unwrap();
        model::write_json(&base.join("config.json"), &family.config);
        model::write_tokenizer(&base);
        model::write_tensors(&base.join("model.safetensors"), &family.tensors);
        let expected = answers(&base, None).await;

        let quantised = path(&format!("{name}-gguf"));
        std::fs::create_dir(&quantised).unwrap();
        model::write_tokenizer(&quantised);
        let whole = quantised.join("tiny-f32.gguf");
        gguf::write(&whole, &family.config, &family.tensors, GgmlDType::F32);
        assert_eq!(answers(&quantised, None).await, expected, "{name}, folder");
        let eight_bits = quantised.join("tiny-q8_0.gguf");
        gguf::write(
            &eight_bits,
            &family.config,
            &family.tensors,
            GgmlDType::Q8_0,
        );
        assert_eq!(answers(&whole, None).await, expected, "{name}, file");
        let once = answers(&eight_bits, None).await;
        assert_eq!(answers(&eight_bits, None).await, once);
        assert!(once.0.bytes().all(|b| b.is_ascii_graphic()), "{once:?}");
        let refused = refusal(&quantised).await;
        assert!(
            refused.contains("tiny-f32.gguf, tiny-q8_0.gguf"),
            "{refused}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gguf_file_needs_its_tokenizer_and_takes_no_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("tiny.gguf");
    gguf::write(&base, &model::config(), &model::tensors(), GgmlDType::Q8_0);
    let refused = refusal(&base).await;
    assert!(refused.contains("tokenizer.json is missing"), "{refused}");
    model::write_tokenizer(folder.path());
    let adapter = folder.path().join("adapter");
    model::write_adapter(&adapter, 5);
    let restarts = counter();
    let engine = Embedded::start(&base, restarts.clone()).await.unwrap();
    let refused = engine.load("t@1#a/0", &adapter).await.unwrap_err();
    assert!(
        refused.to_string().contains("the base is a GGUF file"),
        "{refused}"
    );
    // It comes back as another base does.
    let (before, ..) = answer(&engine, generation(None, "Hello")).await;
    engine.poison(None);
    let mut broken = engine.generate(generation(None, "Hello")).await.unwrap();
    let ended = broken.events.recv().await;
    assert!(
        matches!(ended, Some(Event::Failed(Error::Restarting { .. }))),
        "{ended:?}"
    );
    restarted(&restarts, 1).await;
    back(&engine).await;
    assert_eq!(answer(&engine, generation(None, "Hello")).await.0, before);
}

struct Family {
    config: Value,
    tensors: model::Tensors,
}

/// The architectures that are read from GGUF files.
fn families() -> [Family; 3] {
    let llama = Family {
        config: model::config(),
        tensors: model::tensors(),
    };
    let of = |architecture: &str, model_type: &str| {
        let mut config = config_of_transformers_4();
        config["architectures"] = json!([architecture]);
        config["model_type"] = json!(model_type);
        config["use_sliding_window"] = json!(false);
        config["sliding_window"] = Value::Null;
        config["max_window_layers"] = json!(model::LAYERS);
        config
    };
    // Something else than zeros and ones, the same each time.
    let row = |length: usize, around: f32| -> (Vec<usize>, Vec<f32>) {
        let values = (0..length).map(|i| around + 0.3 * (i as f32).sin());
        (vec![length], values.collect())
    };
    let (mut biased, mut normed) = (model::tensors(), model::tensors());
    let head = model::HIDDEN / model::HEADS;
    for layer in 0..model::LAYERS {
        let attention = format!("model.layers.{layer}.self_attn");
        for (name, length) in [
            ("q_proj", model::HIDDEN),
            ("k_proj", head * model::KV_HEADS),
            ("v_proj", head * model::KV_HEADS),
        ] {
            biased.insert(format!("{attention}.{name}.bias"), row(length, 0.0));
        }
        for name in ["q_norm", "k_norm"] {
            normed.insert(format!("{attention}.{name}.weight"), row(head, 1.0));
        }
    }
    let qwen2 = Family {
        config: of("Qwen2ForCausalLM", "qwen2"),
        tensors: biased,
    };
    let qwen3 = Family {
        config: of("Qwen3ForCausalLM", "qwen3"),
        tensors: normed,
    };
    [llama, qwen2, qwen3]
}
