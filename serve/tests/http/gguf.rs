//! GGUF files of models in Hugging Face's layout, as llama.cpp's converter makes them.

use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value as Setting};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde_json::Value;

use super::model::Tensors;

/// Writes `tensors` with the shape that `config` describes; matrices are kept as `kind`.
pub(crate) fn write(path: &Path, config: &Value, tensors: &Tensors, kind: GgmlDType) {
    let architecture = config["model_type"].as_str().unwrap();
    let number = |key: &str| Setting::U32(u32::try_from(config[key].as_u64().unwrap()).unwrap());
    let (heads, kv_heads) = ("num_attention_heads", "num_key_value_heads");
    let head_dim = Setting::U32(u32::try_from(config["head_dim"].as_u64().unwrap()).unwrap());
    let of = |key: &str| format!("{architecture}.{key}");
    let settings = [
        (
            "general.architecture".to_owned(),
            Setting::String(architecture.to_owned()),
        ),
        (
            "general.name".to_owned(),
            Setting::String("tiny".to_owned()),
        ),
        (of("block_count"), number("num_hidden_layers")),
        (of("context_length"), number("max_position_embeddings")),
        (of("embedding_length"), number("hidden_size")),
        (of("feed_forward_length"), number("intermediate_size")),
        (of("vocab_size"), number("vocab_size")),
        (of("attention.head_count"), number(heads)),
        (of("attention.head_count_kv"), number(kv_heads)),
        (of("attention.key_length"), head_dim.clone()),
        (of("attention.value_length"), head_dim.clone()),
        (of("attention.layer_norm_rms_epsilon"), Setting::F32(1e-5)),
        (of("rope.dimension_count"), head_dim),
        (of("rope.freq_base"), Setting::F32(10_000.0)),
    ];
    let settings: Vec<_> = settings
        .iter()
        .map(|(key, value)| (key.as_str(), value))
        .collect();
    let count = |key: &str| usize::try_from(config[key].as_u64().unwrap()).unwrap();
    let tensors: Vec<(String, QTensor)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            // llama.cpp rotates neighbours where transformers rotates halves.
            let values = match name.rsplit('.').nth(1) {
                Some("q_proj") if architecture == "llama" => {
                    neighbours(values, shape, count(heads))
                }
                Some("k_proj") if architecture == "llama" => {
                    neighbours(values, shape, count(kv_heads))
                }
                _ => values.clone(),
            };
            let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap();
            let kind = if shape.len() == 2 {
                kind
            } else {
                GgmlDType::F32
            };
            (renamed(name), QTensor::quantize(&tensor, kind).unwrap())
        })
        .collect();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    let mut file = std::fs::File::create(path).unwrap();
    gguf_file::write(&mut file, &settings, &tensors).unwrap();
}

/// `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py: each head's rows `[2, half]` become `[half, 2]`.
fn neighbours(values: &[f32], shape: &[usize], heads: usize) -> Vec<f32> {
    let (rows, width) = (shape[0], shape[1]);
    let dim = rows / heads;
    let row = |head: usize, part: usize, at: usize| head * dim + part * (dim / 2) + at;
    let mut permuted = Vec::with_capacity(values.len());
    for head in 0..heads {
        for at in 0..dim / 2 {
            for part in 0..2 {
                let from = row(head, part, at) * width;
                permuted.extend_from_slice(&values[from..from + width]);
            }
        }
    }
    permuted
}

fn renamed(name: &str) -> String {
    let parts = [
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ];
    parts
        .iter()
        .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}
