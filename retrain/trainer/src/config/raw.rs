//! `config.json` itself: which keys there are, and what each family takes for one that is not there (transformers' defaults).

use serde::Deserialize;
use serde_json::Value;

use super::rope::Described;
use super::{Biases, Family, LayerKind, ModelConfig, Rope};
use crate::error::{Error, Result};
use crate::ops::gated::Activation;

#[derive(Deserialize)]
struct Raw {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    max_position_embeddings: Option<usize>,
    original_max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
    tie_word_embeddings: Option<bool>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<Tokens>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    #[serde(default, deserialize_with = "said")]
    sliding_window: Option<Option<usize>>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    #[serde(alias = "_sliding_window_pattern")]
    sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    no_rope_layers: Option<Vec<u8>>,
    no_rope_layer_interval: Option<usize>,
    query_pre_attn_scalar: Option<f64>,
    #[serde(default, deserialize_with = "said")]
    attn_logit_softcapping: Option<Option<f32>>,
    #[serde(default, deserialize_with = "said")]
    final_logit_softcapping: Option<Option<f32>>,
    use_bidirectional_attention: Option<bool>,
    quantization_config: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Tokens {
    One(u32),
    Several(Vec<u32>),
}

/// Tells a null, which says "none", from a key that is not there.
fn said<'de, D, T>(deserializer: D) -> std::result::Result<Option<Option<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

/// The shape, and what the file asks for that is not done here.
pub(super) fn read(family: Family, value: Value) -> Result<(ModelConfig, Vec<String>)> {
    let raw = Raw::deserialize(&value)
        .map_err(|error| Error::Config(format!("not a model's configuration: {error}")))?;
    let mut wrong = raw.unsupported(family);
    let (activation, unknown) = raw.activation(family);
    wrong.extend(unknown);
    let head_dim = raw.head_dim.unwrap_or_else(|| raw.default_head_dim(family));
    let max_positions = raw.max_position_embeddings.unwrap_or(match family {
        Family::Llama => 2_048,
        Family::Phi3 => 4_096,
        Family::Gemma2 => 8_192,
        Family::Qwen2 | Family::Qwen3 | Family::SmolLm3 => 32_768,
        Family::Mistral | Family::Gemma3 => 131_072,
    });
    let (ropes, shortest, unknown) = raw.ropes(family, head_dim, max_positions);
    wrong.extend(unknown);
    let cap = |said: Option<Option<f32>>, default: f32| match family {
        Family::Gemma2 => said.unwrap_or(Some(default)),
        Family::Gemma3 => said.flatten(),
        _ => None,
    };
    let gemma = family.is_gemma();
    let config = ModelConfig {
        family,
        vocab_size: raw.vocab_size,
        hidden_size: raw.hidden_size,
        num_attention_heads: raw.num_attention_heads,
        num_key_value_heads: raw.num_key_value_heads.unwrap_or(match family {
            Family::Mistral => 8,
            Family::Qwen2 | Family::Qwen3 => 32,
            Family::Gemma2 | Family::Gemma3 | Family::SmolLm3 => 4,
            Family::Llama | Family::Phi3 => raw.num_attention_heads,
        }),
        head_dim,
        intermediate_size: raw.intermediate_size,
        max_position_embeddings: shortest.unwrap_or(max_positions),
        rms_norm_eps: raw.rms_norm_eps.unwrap_or(match family {
            Family::Phi3 => 1e-5,
            _ => 1e-6,
        }),
        tie_word_embeddings: raw
            .tie_word_embeddings
            .unwrap_or(gemma || family == Family::SmolLm3),
        bos_token_id: raw.bos_token_id,
        eos_token_id: match &raw.eos_token_id {
            Some(Tokens::One(id)) => vec![*id],
            Some(Tokens::Several(ids)) => ids.clone(),
            None => Vec::new(),
        },
        layers: raw.layers(family),
        ropes,
        biases: Biases {
            attention_in: raw.attention_bias == Some(true) || family == Family::Qwen2,
            attention_out: raw.attention_bias == Some(true) && family != Family::Qwen2,
            feed_forward: raw.mlp_bias == Some(true),
        },
        head_norms: matches!(family, Family::Qwen3 | Family::Gemma3),
        result_norms: gemma,
        fused: family == Family::Phi3,
        norm_offset: if gemma { 1.0 } else { 0.0 },
        embedding_scale: match gemma {
            true => (raw.hidden_size as f32).sqrt(),
            false => 1.0,
        },
        activation,
        score_scale: match gemma {
            true => raw.query_pre_attn_scalar.unwrap_or(256.0),
            false => head_dim as f64,
        }
        .powf(-0.5) as f32,
        score_cap: cap(raw.attn_logit_softcapping, 50.0),
        logit_cap: cap(raw.final_logit_softcapping, 30.0),
        raw: value,
    };
    if config.layers.len() != raw.num_hidden_layers {
        wrong.push(format!(
            "layer_types has {} entries; expected num_hidden_layers {}",
            config.layers.len(),
            raw.num_hidden_layers
        ));
    }
    Ok((config, wrong))
}

impl Raw {
    fn default_head_dim(&self, family: Family) -> usize {
        match family {
            Family::Gemma2 | Family::Gemma3 => 256,
            Family::Qwen3 => 128,
            _ => self.hidden_size / self.num_attention_heads.max(1),
        }
    }

    fn unsupported(&self, family: Family) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.quantization_config.is_some() {
            wrong.push("quantised weights (quantization_config) are not supported".to_owned());
        }
        if self.use_bidirectional_attention == Some(true) {
            wrong.push("use_bidirectional_attention is not supported".to_owned());
        }
        let known = ["full_attention", "sliding_attention"];
        for kind in self.layer_types.iter().flatten() {
            if !known.contains(&kind.as_str()) {
                wrong.push(format!("layer type `{kind}` is not supported"));
            }
        }
        if self.mlp_bias == Some(true) && !matches!(family, Family::Llama | Family::SmolLm3) {
            wrong.push("mlp_bias is not supported in this family".to_owned());
        }
        wrong
    }

    fn activation(&self, family: Family) -> (Activation, Option<String>) {
        let default = match family.is_gemma() {
            true => "gelu_pytorch_tanh",
            false => "silu",
        };
        // Gemma's older files have a `hidden_act` that was never obeyed.
        let named = match family.is_gemma() {
            true => self.hidden_activation.as_deref(),
            false => self.hidden_act.as_deref(),
        };
        match named.unwrap_or(default) {
            "silu" => (Activation::Silu, None),
            "gelu_pytorch_tanh" => (Activation::GeluTanh, None),
            other => (
                Activation::Silu,
                Some(format!(
                    "activation `{other}` is not supported (silu and gelu_pytorch_tanh are)"
                )),
            ),
        }
    }

    /// The rotary embeddings, the longest sequence if they are for shorter ones than the model, and what is not known of them.
    fn ropes(
        &self,
        family: Family,
        head_dim: usize,
        max_positions: usize,
    ) -> (Vec<Rope>, Option<usize>, Vec<String>) {
        let theta = self.rope_theta.unwrap_or(match family {
            Family::Gemma3 => 1e6,
            Family::SmolLm3 => 2e6,
            _ => 1e4,
        });
        let new = self.rope_parameters.as_ref();
        let partial = |value: Option<&Value>| {
            let inside = value.and_then(|value| value.get("partial_rotary_factor")?.as_f64());
            inside.or(self.partial_rotary_factor)
        };
        let describe = |value: Option<&Value>, theta: f64| {
            let share = partial(value).filter(|_| family == Family::Phi3);
            let dims = (head_dim as f64 * share.unwrap_or(1.0)) as usize;
            let described = Described {
                value,
                theta,
                dims,
                max_positions,
                original_positions: self.original_max_position_embeddings,
            };
            Rope::read(&described)
        };
        let read = match family {
            Family::Gemma3 => {
                let of = |kind: &str| new.and_then(|new| new.get(kind));
                let local = self.rope_local_base_freq.unwrap_or(1e4);
                let full = of("full_attention").or(self.rope_scaling.as_ref());
                vec![
                    describe(full, theta),
                    describe(of("sliding_attention"), local),
                ]
            }
            _ => vec![describe(new.or(self.rope_scaling.as_ref()), theta)],
        };
        let (mut ropes, mut shortest, mut wrong) = (Vec::new(), None, Vec::new());
        for read in read {
            match read {
                Ok((rope, longest)) => {
                    ropes.push(rope);
                    shortest = shortest.or(longest);
                }
                Err(what) => wrong.push(what),
            }
        }
        (ropes, shortest, wrong)
    }

    fn layers(&self, family: Family) -> Vec<LayerKind> {
        let window = match (family, self.sliding_window) {
            (Family::Qwen2 | Family::Qwen3 | Family::SmolLm3, _)
                if self.use_sliding_window != Some(true) =>
            {
                None
            }
            (Family::Llama, _) => None,
            (Family::Phi3, said) => said.flatten(),
            (_, said) => said.unwrap_or(Some(4_096)),
        };
        let slides = |n: usize| match family {
            Family::Mistral | Family::Phi3 => true,
            Family::Qwen2 | Family::Qwen3 | Family::SmolLm3 => {
                n >= self.max_window_layers.unwrap_or(28)
            }
            Family::Gemma2 => n.is_multiple_of(2),
            Family::Gemma3 => !(n + 1).is_multiple_of(self.sliding_window_pattern.unwrap_or(6)),
            Family::Llama => false,
        };
        let slides: Vec<bool> = match &self.layer_types {
            Some(types) => types
                .iter()
                .map(|kind| kind == "sliding_attention")
                .collect(),
            None => (0..self.num_hidden_layers).map(slides).collect(),
        };
        let interval = self.no_rope_layer_interval.unwrap_or(4).max(1);
        let is_told = |n: usize| match (family, &self.no_rope_layers) {
            (Family::SmolLm3, Some(told)) => told.get(n).is_none_or(|told| *told == 1),
            (Family::SmolLm3, None) => !(n + 1).is_multiple_of(interval),
            _ => true,
        };
        let layer = |(n, slides): (usize, bool)| LayerKind {
            window: window.filter(|_| slides),
            rope: is_told(n).then_some(usize::from(family == Family::Gemma3 && slides)),
        };
        slides.into_iter().enumerate().map(layer).collect()
    }
}
