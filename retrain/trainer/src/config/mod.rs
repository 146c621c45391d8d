//! A model's shape, as `config.json` has it.
//!
//! The families that are known are one architecture with a dozen differences. Each difference is a field here, read from the file
//! with the family's own default, so that the passes ask for the difference and never for the family.
//!
//! Both generations of transformers are read: 4 writes `rope_theta` and `rope_scaling`, 5 one `rope_parameters`.

mod raw;
mod rope;

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::ops::attention::Attention;
use crate::ops::gated::Activation;
pub(crate) use rope::Rope;

/// The families that can be trained, by their `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
    SmolLm3,
}

impl Family {
    const ALL: [(&'static str, Family); 8] = [
        ("llama", Family::Llama),
        ("mistral", Family::Mistral),
        ("qwen2", Family::Qwen2),
        ("qwen3", Family::Qwen3),
        ("gemma2", Family::Gemma2),
        ("gemma3_text", Family::Gemma3),
        ("phi3", Family::Phi3),
        ("smollm3", Family::SmolLm3),
    ];

    fn named(model_type: &str) -> Option<Self> {
        let found = Family::ALL.iter().find(|(name, _)| *name == model_type);
        found.map(|(_, family)| *family)
    }

    fn is_gemma(self) -> bool {
        matches!(self, Family::Gemma2 | Family::Gemma3)
    }
}

/// A model's shape. Fields are named as in Hugging Face's `config.json`, where they stand there.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub family: Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
    /// The longest sequence, in tokens.
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<u32>,
    /// Every token that ends an answer.
    pub eos_token_id: Vec<u32>,
    pub(crate) layers: Vec<LayerKind>,
    /// By `LayerKind::rope`.
    pub(crate) ropes: Vec<Rope>,
    /// What q, k and v, and o, have beside their weights.
    pub(crate) biases: Biases,
    /// Queries and keys are normalised head by head before they are turned.
    pub(crate) head_norms: bool,
    /// The results of attention and feed-forward are normalised before they join the residual stream.
    pub(crate) result_norms: bool,
    /// q, k and v are one linear map, gate and up another.
    pub(crate) fused: bool,
    /// Added to the norms' weights.
    pub(crate) norm_offset: f32,
    pub(crate) embedding_scale: f32,
    pub(crate) activation: Activation,
    /// The factor of queries' products with keys.
    pub(crate) score_scale: f32,
    /// Scores stay below: cap·tanh(score / cap).
    pub(crate) score_cap: Option<f32>,
    /// Logits, likewise.
    pub(crate) logit_cap: Option<f32>,
    /// The file as it was read.
    pub(crate) raw: Value,
}

/// What sets a layer apart from others of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerKind {
    /// Keys that a query sees, itself included; None: all before it.
    pub(crate) window: Option<usize>,
    /// Which rotary embedding; None: positions are not told.
    pub(crate) rope: Option<usize>,
}

/// Which linear maps have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Biases {
    pub(crate) attention_in: bool,
    pub(crate) attention_out: bool,
    pub(crate) feed_forward: bool,
}

impl ModelConfig {
    /// Reads `config.json` in `folder` and checks it.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|error| Error::file(&path, format!("not a model's configuration: {error}")))?;
        ModelConfig::parse(value).map_err(|error| match error {
            Error::Config(what) => Error::file(&path, what),
            error => error,
        })
    }

    /// A `config.json`'s content. Refuses families that are not known, by name; shapes that do not fit together; and whatever would
    /// change the arithmetic and is not done here.
    pub fn parse(value: Value) -> Result<Self> {
        let named = value["model_type"].as_str().unwrap_or("llama");
        let family = Family::named(named).ok_or_else(|| {
            let known: Vec<&str> = Family::ALL.iter().map(|(name, _)| *name).collect();
            Error::Config(format!(
                "model_type `{named}` cannot be trained; the families that can: {}",
                known.join(", ")
            ))
        })?;
        let (config, mut wrong) = raw::read(family, value)?;
        wrong.extend(config.wrong());
        match wrong.is_empty() {
            true => Ok(config),
            false => Err(Error::Config(wrong.join("; "))),
        }
    }

    /// What does not fit together.
    fn wrong(&self) -> Vec<String> {
        let mut wrong: Vec<String> = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.layers.len()),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ]
        .into_iter()
        .filter(|(_, value)| *value == 0)
        .map(|(name, _)| format!("{name} is 0; expected at least 1"))
        .collect();
        let (queries, keys) = (self.num_attention_heads, self.num_key_value_heads);
        if keys > 0 && !queries.is_multiple_of(keys) {
            wrong.push(format!(
                "num_attention_heads {queries} is not a multiple of num_key_value_heads {keys}"
            ));
        }
        if self.layers.iter().any(|layer| layer.window == Some(0)) {
            wrong.push("sliding_window is 0; expected at least 1".to_owned());
        }
        let turned = |rope: &Rope| rope.dims() == 0 || rope.dims() > self.head_dim;
        if self.ropes.iter().any(turned) || !self.head_dim.is_multiple_of(2) {
            wrong.push(format!(
                "the rotary embedding cannot turn heads of {} dimensions; expected an even number, and pairs within it",
                self.head_dim
            ));
        }
        wrong
    }

    pub fn num_hidden_layers(&self) -> usize {
        self.layers.len()
    }

    /// Width of all query heads together.
    pub(crate) fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub(crate) fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    pub(crate) fn attention(&self, layer: LayerKind) -> Attention {
        Attention {
            queries: self.num_attention_heads,
            keys: self.num_key_value_heads,
            dim: self.head_dim,
            scale: self.score_scale,
            cap: self.score_cap,
            window: layer.window,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use serde_json::json;

    use super::*;

    fn parse(extra: Value) -> Result<ModelConfig> {
        let mut all = json!({"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
            "intermediate_size": 128, "num_key_value_heads": 4, "head_dim": 16});
        let object = all.as_object_mut().unwrap();
        object.extend(extra.as_object().unwrap().clone());
        ModelConfig::parse(all)
    }

    #[test]
    fn both_generations_of_transformers_are_read() {
        let old = parse(json!({"rope_theta": 5e5, "eos_token_id": 2})).unwrap();
        let new = json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "eos_token_id": [2]});
        let new = parse(new).unwrap();
        assert_eq!(
            (&old.ropes, &old.eos_token_id),
            (&new.ropes, &new.eos_token_id)
        );
        assert_eq!((old.head_dim, old.num_key_value_heads), (16, 4));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let refused = |extra| parse(extra).unwrap_err().to_string();
        let message = refused(json!({"model_type": "mamba2"}));
        assert!(
            message.contains("mamba2") && message.contains("qwen3"),
            "{message}"
        );
        // Before anything else of it is read.
        let message = ModelConfig::parse(json!({"model_type": "gemma3"})).unwrap_err();
        assert!(message.to_string().contains("`gemma3`"), "{message}");
        let message = refused(
            json!({"rope_scaling": {"type": "yarn"}, "hidden_act": "relu", "num_key_value_heads": 3}),
        );
        for word in ["yarn", "relu", "num_key_value_heads 3"] {
            assert!(message.contains(word), "{message}");
        }
        let message = refused(json!({"quantization_config": {"bits": 4}}));
        assert!(message.contains("quantization_config"), "{message}");
        let message = refused(json!({"vocab_size": "many"}));
        assert!(message.contains("not a model's configuration"), "{message}");
    }

    #[test]
    fn the_families_have_their_own_defaults() {
        let family = |name: &str, extra: Value| {
            let mut all = json!({ "model_type": name });
            all.as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            parse(all).unwrap()
        };
        let windows = |config: &ModelConfig| -> Vec<Option<usize>> {
            config.layers.iter().map(|layer| layer.window).collect()
        };
        assert_eq!(windows(&family("mistral", json!({}))), [Some(4096); 4]);
        assert_eq!(
            windows(&family("mistral", json!({"sliding_window": null}))),
            [None; 4]
        );
        assert_eq!(
            windows(&family("qwen2", json!({"sliding_window": 8}))),
            [None; 4]
        );
        let qwen = json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 3});
        assert_eq!(windows(&family("qwen2", qwen)), [None, None, None, Some(8)]);
        let gemma = family(
            "gemma2",
            json!({"sliding_window": 8, "query_pre_attn_scalar": 64}),
        );
        assert_eq!(windows(&gemma), [Some(8), None, Some(8), None]);
        assert_eq!(
            (gemma.score_scale, gemma.score_cap, gemma.logit_cap),
            (0.125, Some(50.0), Some(30.0))
        );
        assert!(gemma.tie_word_embeddings && gemma.embedding_scale == 8.0);
        let gemma = family(
            "gemma3_text",
            json!({"sliding_window": 8, "sliding_window_pattern": 3}),
        );
        assert_eq!(windows(&gemma), [Some(8), Some(8), None, Some(8)]);
        assert_ne!(gemma.layers[0].rope, gemma.layers[2].rope);
        assert!(gemma.head_norms && gemma.result_norms && gemma.score_cap.is_none());
        let types = json!({"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention"]});
        assert_eq!(
            windows(&family("gemma3_text", types)),
            [None, Some(8), None, None]
        );
        let smol = family("smollm3", json!({"no_rope_layer_interval": 2}));
        let ropes: Vec<Option<usize>> = smol.layers.iter().map(|layer| layer.rope).collect();
        assert_eq!(ropes, [Some(0), None, Some(0), None]);
    }
}
