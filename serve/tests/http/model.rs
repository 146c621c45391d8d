//! A tiny random Llama and adapters for it, made on the spot: nothing it says means anything, but it says it every time.

use std::collections::BTreeMap;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

pub(crate) const HIDDEN: usize = 32;
pub(crate) const INNER: usize = 64;
pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const LAYERS: usize = 2;
/// The bytes and the two marks of a turn.
pub(crate) const VOCABULARY: usize = 258;
pub(crate) const CONTEXT: usize = 4096;

pub(crate) const CHAT_TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}\
                                 {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes a base model as transformers 5 does.
pub(crate) fn write_base(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    write_json(&folder.join("config.json"), &config());
    write_tokenizer(folder);
    write_tensors(&folder.join("model.safetensors"), &tensors());
}

pub(crate) fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN / HEADS, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5,
        "rope_parameters": { "rope_theta": 10000.0, "rope_type": "default" }, "tie_word_embeddings": false,
        "attention_bias": false, "mlp_bias": false, "dtype": "float32",
    })
}

pub(crate) fn write_tokenizer(folder: &Path) {
    write_json(&folder.join("tokenizer.json"), &tokenizer());
    let special = json!({ "eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE });
    write_json(&folder.join("tokenizer_config.json"), &special);
}

/// The base's weights.
pub(crate) fn tensors() -> Tensors {
    let mut rng = StdRng::seed_from_u64(1);
    let mut tensors = Tensors::new();
    for (name, shape) in linears() {
        let scale = 2.0 / (shape[1] as f32).sqrt();
        tensors.insert(
            format!("model.layers.{name}.weight"),
            random(&mut rng, &shape, scale),
        );
    }
    for layer in 0..LAYERS {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.insert(
                format!("model.layers.{layer}.{norm}.weight"),
                (vec![HIDDEN], vec![1.0; HIDDEN]),
            );
        }
    }
    tensors.insert(
        "model.norm.weight".to_owned(),
        (vec![HIDDEN], vec![1.0; HIDDEN]),
    );
    tensors.insert(
        "model.embed_tokens.weight".to_owned(),
        random(&mut rng, &[VOCABULARY, HIDDEN], 1.0),
    );
    let (shape, mut head) = random(&mut rng, &[VOCABULARY, HIDDEN], 0.5);
    // Only visible characters are likely, and the end of a turn is not: answers are as long as they may be.
    for (token, row) in head.chunks_mut(HIDDEN).enumerate() {
        if !(token <= 255 && (token as u8).is_ascii_graphic()) {
            row.fill(0.0);
        }
    }
    tensors.insert("lm_head.weight".to_owned(), (shape, head));
    tensors
}

/// Writes an adapter of all seven linear layers whose B is not zero, so that it answers otherwise than the base.
pub(crate) fn write_adapter(folder: &Path, seed: u64) {
    std::fs::create_dir_all(folder).unwrap();
    write_json(&folder.join("adapter_config.json"), &adapter_config());
    let mut rng = StdRng::seed_from_u64(seed);
    let mut tensors = Tensors::new();
    for (name, shape) in linears() {
        let name = format!("base_model.model.model.layers.{name}");
        tensors.insert(
            format!("{name}.lora_A.weight"),
            random(&mut rng, &[4, shape[1]], 0.3),
        );
        tensors.insert(
            format!("{name}.lora_B.weight"),
            random(&mut rng, &[shape[0], 4], 0.3),
        );
    }
    write_tensors(&folder.join("adapter_model.safetensors"), &tensors);
}

pub(crate) fn adapter_config() -> Value {
    json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny", "r": 4, "lora_alpha": 8,
        "lora_dropout": 0.0, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "bias": "none", "use_rslora": false, "use_dora": false, "modules_to_save": null, "fan_in_fan_out": false,
        "inference_mode": true,
    })
}

pub(crate) fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, serde_json::to_string_pretty(value).unwrap()).unwrap();
}

/// Name and shape `[out, in]` of each linear layer.
fn linears() -> Vec<(String, Vec<usize>)> {
    let kv = HIDDEN / HEADS * KV_HEADS;
    let shapes = [
        ("self_attn.q_proj", HIDDEN, HIDDEN),
        ("self_attn.k_proj", kv, HIDDEN),
        ("self_attn.v_proj", kv, HIDDEN),
        ("self_attn.o_proj", HIDDEN, HIDDEN),
        ("mlp.gate_proj", INNER, HIDDEN),
        ("mlp.up_proj", INNER, HIDDEN),
        ("mlp.down_proj", HIDDEN, INNER),
    ];
    (0..LAYERS)
        .flat_map(|layer| {
            shapes.map(|(name, output, input)| (format!("{layer}.{name}"), vec![output, input]))
        })
        .collect()
}

fn random(rng: &mut StdRng, shape: &[usize], scale: f32) -> (Vec<usize>, Vec<f32>) {
    let values = (0..shape.iter().product())
        .map(|_| rng.random_range(-scale..scale))
        .collect();
    (shape.to_vec(), values)
}

pub(crate) fn write_tensors(path: &Path, tensors: &Tensors) {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            (
                name,
                shape,
                values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            )
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, data)| {
        (
            name.as_str(),
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, (*shape).clone(), data)
                .unwrap(),
        )
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// One token a byte, by GPT-2's byte-level alphabet.
fn tokenizer() -> Value {
    let visible =
        |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut vocabulary = serde_json::Map::new();
    let mut hidden = 0;
    for byte in 0..256u32 {
        let letter = if visible(byte) {
            byte
        } else {
            hidden += 1;
            255 + hidden
        };
        vocabulary.insert(char::from_u32(letter).unwrap().to_string(), json!(byte));
    }
    let mark = |id: u32, content: &str| json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [mark(256, "<|im_start|>"), mark(257, "<|im_end|>")],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": [] },
    })
}
