//! A Llama's shape, as `config.json` has it.
//!
//! transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 one `rope_parameters`; both are read, and both
//! spellings are written, so that every reader finds its own.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// The shape of a Llama. Fields are named as in Hugging Face's `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Raw", into = "Value")]
pub struct LlamaConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    /// Llama 3's stretching of the long wavelengths; None: plain rotary embedding.
    pub rope_scaling: Option<RopeScaling>,
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<u32>,
    /// Every token that ends an answer.
    pub eos_token_id: Vec<u32>,
    /// What this trainer cannot do although the file asks for it; `check` refuses it.
    pub unsupported: Vec<String>,
}

/// `rope_type: llama3`, as transformers' `_compute_llama3_parameters`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RopeScaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position_embeddings: f64,
}

#[derive(Deserialize)]
struct Raw {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    #[serde(default)]
    tie_word_embeddings: bool,
    bos_token_id: Option<u32>,
    eos_token_id: Option<Value>,
    model_type: Option<String>,
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    quantization_config: Option<Value>,
}

// transformers' LlamaConfig has these defaults.
fn default_positions() -> usize {
    2048
}
fn default_eps() -> f64 {
    1e-6
}

impl From<Raw> for LlamaConfig {
    fn from(raw: Raw) -> Self {
        let mut unsupported = Vec::new();
        let rope = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref());
        let rope_theta = raw
            .rope_parameters
            .as_ref()
            .and_then(|rope| rope.get("rope_theta")?.as_f64())
            .or(raw.rope_theta)
            .unwrap_or(10_000.0);
        let kind =
            rope.and_then(|rope| rope.get("rope_type").or_else(|| rope.get("type"))?.as_str());
        let rope_scaling = match kind {
            None | Some("default") => None,
            Some("llama3") => rope.and_then(|rope| serde_json::from_value(rope.clone()).ok()),
            Some(_) => None,
        };
        match kind {
            Some("llama3") if rope_scaling.is_none() => {
                unsupported.push("rope_type `llama3` without its four numbers".to_string());
            }
            Some(kind) if kind != "llama3" && kind != "default" => {
                unsupported.push(format!("rope_type `{kind}` (default and llama3 are known)"));
            }
            _ => {}
        }
        if let Some(kind) = raw.model_type.filter(|kind| kind != "llama") {
            unsupported.push(format!("model_type `{kind}` (only llama is known)"));
        }
        if let Some(act) = raw.hidden_act.filter(|act| act != "silu") {
            unsupported.push(format!("hidden_act `{act}` (only silu is known)"));
        }
        if raw.attention_bias || raw.mlp_bias {
            unsupported.push("attention_bias or mlp_bias".to_string());
        }
        if raw.quantization_config.is_some() {
            unsupported.push("quantised weights (quantization_config)".to_string());
        }
        let eos_token_id = match raw.eos_token_id {
            Some(Value::Number(id)) => id.as_u64().into_iter().map(|id| id as u32).collect(),
            Some(Value::Array(ids)) => ids
                .iter()
                .filter_map(|id| Some(id.as_u64()? as u32))
                .collect(),
            _ => Vec::new(),
        };
        LlamaConfig {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim: raw
                .head_dim
                .unwrap_or(raw.hidden_size / raw.num_attention_heads.max(1)),
            intermediate_size: raw.intermediate_size,
            max_position_embeddings: raw.max_position_embeddings,
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: raw.tie_word_embeddings,
            bos_token_id: raw.bos_token_id,
            eos_token_id,
            unsupported,
        }
    }
}

impl From<LlamaConfig> for Value {
    fn from(c: LlamaConfig) -> Value {
        let mut rope = json!({ "rope_type": "default" });
        if let Some(scaling) = &c.rope_scaling {
            rope = json!(scaling);
            rope["rope_type"] = json!("llama3");
        }
        let rope_scaling = if c.rope_scaling.is_some() {
            rope.clone()
        } else {
            Value::Null
        };
        rope["rope_theta"] = json!(c.rope_theta);
        let eos = match c.eos_token_id.as_slice() {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        };
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": c.vocab_size,
            "hidden_size": c.hidden_size,
            "num_hidden_layers": c.num_hidden_layers,
            "num_attention_heads": c.num_attention_heads,
            "num_key_value_heads": c.num_key_value_heads,
            "head_dim": c.head_dim,
            "intermediate_size": c.intermediate_size,
            "hidden_act": "silu",
            "max_position_embeddings": c.max_position_embeddings,
            "rms_norm_eps": c.rms_norm_eps,
            "rope_theta": c.rope_theta,
            "rope_scaling": rope_scaling,
            "rope_parameters": rope,
            "tie_word_embeddings": c.tie_word_embeddings,
            "attention_bias": false,
            "mlp_bias": false,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "bos_token_id": c.bos_token_id,
            "eos_token_id": eos,
            "use_cache": true,
        })
    }
}

impl LlamaConfig {
    /// Reads `config.json` in `folder` and checks it.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let config: LlamaConfig = serde_json::from_str(&text)
            .map_err(|error| Error::file(&path, format!("not a Llama's configuration: {error}")))?;
        config
            .check()
            .map_err(|error| Error::file(&path, error.to_string()))?;
        Ok(config)
    }

    /// Refuses shapes that do not fit together and features this trainer lacks.
    pub fn check(&self) -> Result<()> {
        let mut wrong = self
            .unsupported
            .iter()
            .map(|what| format!("{what} is not supported"))
            .collect::<Vec<_>>();
        for (name, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if value == 0 {
                wrong.push(format!("{name} is 0; expected at least 1"));
            }
        }
        if self.num_key_value_heads > 0
            && !self
                .num_attention_heads
                .is_multiple_of(self.num_key_value_heads)
        {
            wrong.push(format!(
                "num_attention_heads {} is not a multiple of num_key_value_heads {}",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            wrong.push(format!(
                "head_dim {} is odd; the rotary embedding wants it even",
                self.head_dim
            ));
        }
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(Error::Config(wrong.join("; ")))
        }
    }

    /// Width of all query heads together.
    pub(crate) fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub(crate) fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Angles' steps a position, one for each pair of a head's dimensions.
    pub(crate) fn inverse_frequencies(&self) -> Vec<f32> {
        let half = self.head_dim / 2;
        (0..half)
            .map(|i| {
                // f32 as in transformers: the angle at position 1,000 already differs otherwise in the fifth digit.
                let exponent = (2 * i) as f32 / self.head_dim as f32;
                let plain = 1.0 / (self.rope_theta as f32).powf(exponent);
                self.rope_scaling
                    .map_or(plain, |scaling| scaling.apply(plain))
            })
            .collect()
    }
}

impl RopeScaling {
    fn apply(&self, frequency: f32) -> f32 {
        let wavelength = std::f64::consts::TAU / f64::from(frequency);
        let low = self.original_max_position_embeddings / self.low_freq_factor;
        let high = self.original_max_position_embeddings / self.high_freq_factor;
        let scaled = f64::from(frequency) / self.factor;
        if wavelength < high {
            frequency
        } else if wavelength > low {
            scaled as f32
        } else {
            let smooth = (self.original_max_position_embeddings / wavelength
                - self.low_freq_factor)
                / (self.high_freq_factor - self.low_freq_factor);
            ((1.0 - smooth) * scaled + smooth * f64::from(frequency)) as f32
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn parse(extra: Value) -> LlamaConfig {
        let mut all = json!({"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 128});
        all.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn both_generations_of_transformers_are_read() {
        let old = parse(json!({"rope_theta": 5e5, "eos_token_id": 2}));
        let new = parse(
            json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "eos_token_id": [2]}),
        );
        assert_eq!(old, new);
        assert_eq!(
            (old.rope_theta, old.head_dim, old.num_key_value_heads),
            (5e5, 16, 4)
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192});
        for config in [
            parse(json!({})),
            parse(json!({"rope_scaling": scaling, "eos_token_id": [1, 2]})),
        ] {
            let text = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<LlamaConfig>(&text).unwrap(), config);
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let config = parse(
            json!({"rope_scaling": {"type": "yarn"}, "attention_bias": true, "model_type": "qwen2",
            "num_key_value_heads": 3}),
        );
        let message = config.check().unwrap_err().to_string();
        for word in ["yarn", "attention_bias", "qwen2", "num_key_value_heads 3"] {
            assert!(message.contains(word), "{message}");
        }
    }
}
