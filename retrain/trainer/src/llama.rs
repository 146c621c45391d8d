//! The model: its weights under Hugging Face's names, made at random, loaded, saved.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::config::LlamaConfig;
use crate::error::{Error, Result};
use crate::files::{self, Store};
use crate::linear::{Linear, Parameter};
use crate::lora::LoraAdapter;
use crate::ops::attention::Heads;
use crate::ops::slice::matrix;

/// A Llama in f32 on the CPU. Cheap to clone: clones share their weights, as long as nobody trains them.
#[derive(Clone)]
pub struct Llama {
    pub(crate) config: LlamaConfig,
    pub(crate) embedding: Parameter,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Parameter,
    /// None: the embedding is the output head as well.
    pub(crate) head: Option<Parameter>,
}

#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) input_norm: Parameter,
    pub(crate) attention_norm: Parameter,
    /// In the order of `LINEAR`.
    pub(crate) linear: [Linear; 7],
}

/// A layer's linear maps, as PEFT and Hugging Face name them; their places in `Layer::linear`.
pub(crate) const LINEAR: [(&str, &str); 7] = [
    ("self_attn", "q_proj"),
    ("self_attn", "k_proj"),
    ("self_attn", "v_proj"),
    ("self_attn", "o_proj"),
    ("mlp", "gate_proj"),
    ("mlp", "up_proj"),
    ("mlp", "down_proj"),
];
pub(crate) const Q: usize = 0;
pub(crate) const K: usize = 1;
pub(crate) const V: usize = 2;
pub(crate) const O: usize = 3;
pub(crate) const GATE: usize = 4;
pub(crate) const UP: usize = 5;
pub(crate) const DOWN: usize = 6;

impl LlamaConfig {
    /// `[out, in]` of a layer's linear maps, in the order of `LINEAR`.
    pub(crate) fn linear_shapes(&self) -> [[usize; 2]; 7] {
        let (h, q, k, f) = (
            self.hidden_size,
            self.query_width(),
            self.key_width(),
            self.intermediate_size,
        );
        [[q, h], [k, h], [k, h], [h, q], [f, h], [f, h], [h, f]]
    }

    pub(crate) fn heads(&self) -> Heads {
        Heads {
            queries: self.num_attention_heads,
            keys: self.num_key_value_heads,
            dim: self.head_dim,
        }
    }
}

impl Llama {
    /// Asks `get` for every weight by name and shape.
    fn build(
        config: &LlamaConfig,
        mut get: impl FnMut(&str, &[usize]) -> Result<Tensor>,
    ) -> Result<Self> {
        config.check()?;
        let mut get = |name: &str, shape: &[usize]| -> Result<Parameter> {
            Ok(Parameter {
                tensor: get(name, shape)?,
                slot: None,
            })
        };
        let hidden = config.hidden_size;
        let embedding = get("model.embed_tokens.weight", &[config.vocab_size, hidden])?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for n in 0..config.num_hidden_layers {
            let input_norm = get(
                &format!("model.layers.{n}.input_layernorm.weight"),
                &[hidden],
            )?;
            let attention_norm = get(
                &format!("model.layers.{n}.post_attention_layernorm.weight"),
                &[hidden],
            )?;
            let shapes = config.linear_shapes();
            let mut linear = |i: usize| -> Result<Linear> {
                let (block, name) = LINEAR[i];
                let weight = get(
                    &format!("model.layers.{n}.{block}.{name}.weight"),
                    &shapes[i],
                )?;
                Ok(Linear {
                    weight,
                    delta: None,
                })
            };
            let linear = [
                linear(Q)?,
                linear(K)?,
                linear(V)?,
                linear(O)?,
                linear(GATE)?,
                linear(UP)?,
                linear(DOWN)?,
            ];
            layers.push(Layer {
                input_norm,
                attention_norm,
                linear,
            });
        }
        let norm = get("model.norm.weight", &[hidden])?;
        let head = match config.tie_word_embeddings {
            true => None,
            false => Some(get("lm_head.weight", &[config.vocab_size, hidden])?),
        };
        Ok(Llama {
            config: config.clone(),
            embedding,
            layers,
            norm,
            head,
        })
    }

    /// Random weights: normal with deviation 0.02, smaller by √(2·layers) where a block's result joins the residual
    /// stream (Radford et al. 2019, section 2.3); norms 1.
    pub fn random(config: &LlamaConfig, seed: u64) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let residual = 0.02 / (2.0 * config.num_hidden_layers as f64).sqrt();
        Llama::build(config, |name, shape| match shape {
            [n] => Ok(Tensor::ones(*n, DType::F32, &candle_core::Device::Cpu)?),
            _ => {
                let joins = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
                let deviation = if joins { residual } else { 0.02 };
                let numbers = normal(&mut rng, shape.iter().product(), deviation);
                Ok(matrix(numbers, shape[0], shape[1])?)
            }
        })
    }

    /// Reads a Hugging Face folder: `config.json` and `model.safetensors`, or the shards of
    /// `model.safetensors.index.json`, in f32, bf16 or f16; with an adapter, its deltas are applied on the fly.
    ///
    /// Errors name the file and the tensor that is missing, truncated or of another shape.
    pub fn load(folder: &Path, adapter: Option<&LoraAdapter>) -> Result<Self> {
        let config = LlamaConfig::load(folder)?;
        let mut store = Store::open_model(folder)?;
        let mut model = Llama::build(&config, |name, shape| store.take(name, shape))?;
        if let Some(adapter) = adapter {
            adapter.attach(&mut model, false)?;
        }
        Ok(model)
    }

    /// Writes `config.json` and `model.safetensors` with Hugging Face's names, each whole or not at all. The folder is
    /// made if absent. A tied output head is not written twice.
    ///
    /// Refuses a model with an adapter attached: `merged` makes it one.
    pub fn save(&self, folder: &Path, dtype: DType) -> Result<()> {
        if self
            .layers
            .iter()
            .any(|layer| layer.linear.iter().any(|linear| linear.delta.is_some()))
        {
            return Err(Error::Adapter(
                "the model has an adapter attached; save the adapter, or merge it first".into(),
            ));
        }
        let mut tensors = BTreeMap::new();
        for (name, parameter) in self.parameters() {
            tensors.insert(name, parameter.tensor.to_dtype(dtype)?);
        }
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        files::write_safetensors(&folder.join("model.safetensors"), tensors)?;
        let mut config = serde_json::Value::from(self.config.clone());
        let name = match dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        };
        config["torch_dtype"] = name.into();
        files::write_json(&folder.join("config.json"), &config)
    }

    /// The model with its adapter's deltas added into the weights.
    pub fn merged(&self) -> Result<Self> {
        let mut merged = self.clone();
        for linear in merged.layers.iter_mut().flat_map(|layer| &mut layer.linear) {
            if let Some(delta) = linear.delta.take() {
                let product = (delta.b.tensor.matmul(&delta.a.tensor)? * delta.scale)?;
                linear.weight.tensor = (&linear.weight.tensor + product)?;
            }
        }
        Ok(merged)
    }

    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// How many numbers the model has.
    pub fn parameter_count(&self) -> usize {
        self.parameters()
            .iter()
            .map(|(_, parameter)| parameter.tensor.elem_count())
            .sum()
    }

    /// The base's weights under Hugging Face's names.
    pub(crate) fn parameters(&self) -> Vec<(String, &Parameter)> {
        let mut all = vec![("model.embed_tokens.weight".to_string(), &self.embedding)];
        for (n, layer) in self.layers.iter().enumerate() {
            all.push((
                format!("model.layers.{n}.input_layernorm.weight"),
                &layer.input_norm,
            ));
            all.push((
                format!("model.layers.{n}.post_attention_layernorm.weight"),
                &layer.attention_norm,
            ));
            for ((block, name), linear) in LINEAR.iter().zip(&layer.linear) {
                all.push((
                    format!("model.layers.{n}.{block}.{name}.weight"),
                    &linear.weight,
                ));
            }
        }
        all.push(("model.norm.weight".to_string(), &self.norm));
        all.extend(
            self.head
                .as_ref()
                .map(|head| ("lm_head.weight".to_string(), head)),
        );
        all
    }

    /// Gives every weight a slot and returns the weights in the slots' order.
    pub(crate) fn train_everything(&mut self) -> Vec<Tensor> {
        let mut tensors = Vec::new();
        let mut learn = |parameter: &mut Parameter| {
            parameter.slot = Some(tensors.len());
            tensors.push(parameter.tensor.clone());
        };
        learn(&mut self.embedding);
        for layer in &mut self.layers {
            learn(&mut layer.input_norm);
            learn(&mut layer.attention_norm);
            layer
                .linear
                .iter_mut()
                .for_each(|linear| learn(&mut linear.weight));
        }
        learn(&mut self.norm);
        if let Some(head) = &mut self.head {
            learn(head);
        }
        tensors
    }
}

/// Box-Muller pairs.
fn normal(rng: &mut ChaCha8Rng, n: usize, deviation: f64) -> Vec<f32> {
    use rand::Rng;
    let mut numbers = Vec::with_capacity(n + 1);
    while numbers.len() < n {
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * deviation;
        let (sin, cos) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
        numbers.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    numbers.truncate(n);
    numbers
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::slice::read;
    use crate::test_support::tiny_config;

    fn numbers(model: &Llama) -> Vec<f32> {
        model
            .parameters()
            .iter()
            .flat_map(|(_, p)| read(&p.tensor).unwrap().to_vec())
            .collect()
    }

    #[test]
    fn what_is_saved_is_loaded() {
        for (tied, dtype, tolerance) in [
            (true, DType::F32, 0.0),
            (false, DType::BF16, 4e-3),
            (true, DType::F16, 5e-4),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mut config = tiny_config();
            config.tie_word_embeddings = tied;
            let model = Llama::random(&config, 1).unwrap();
            model.save(&folder.path().join("new"), dtype).unwrap();
            let loaded = Llama::load(&folder.path().join("new"), None).unwrap();
            assert_eq!(loaded.config, config);
            for (a, b) in numbers(&model).iter().zip(numbers(&loaded)) {
                assert!(
                    (a - b).abs() <= tolerance * a.abs() + 1e-7 * f32::from(tolerance > 0.0),
                    "{a} {b}"
                );
            }
            let files = std::fs::read_dir(folder.path().join("new"))
                .unwrap()
                .count();
            assert_eq!(files, 2, "nothing temporary stays");
            let store = Store::open_file(&folder.path().join("new/model.safetensors")).unwrap();
            assert_eq!(store.names().any(|name| name == "lm_head.weight"), !tied);
        }
    }

    fn split(folder: &Path, model: &Llama) {
        let mut shards = [BTreeMap::new(), BTreeMap::new()];
        let mut map = serde_json::Map::new();
        for (i, (name, parameter)) in model.parameters().into_iter().enumerate() {
            map.insert(
                name.clone(),
                format!("model-0000{}-of-00002.safetensors", i % 2 + 1).into(),
            );
            shards[i % 2].insert(name, parameter.tensor.clone());
        }
        for (i, shard) in shards.into_iter().enumerate() {
            let name = format!("model-0000{}-of-00002.safetensors", i + 1);
            files::write_safetensors(&folder.join(name), shard).unwrap();
        }
        let index = serde_json::json!({ "weight_map": map });
        files::write_json(&folder.join("model.safetensors.index.json"), &index).unwrap();
        std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    }

    #[test]
    fn shards_are_found_by_their_index() {
        let folder = tempfile::tempdir().unwrap();
        let model = Llama::random(&tiny_config(), 1).unwrap();
        model.save(folder.path(), DType::F32).unwrap();
        split(folder.path(), &model);
        assert_eq!(
            numbers(&Llama::load(folder.path(), None).unwrap()),
            numbers(&model)
        );
        std::fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
        let message = Llama::load(folder.path(), None).err().unwrap().to_string();
        assert!(
            message.contains("model-00002-of-00002.safetensors"),
            "{message}"
        );
    }

    #[test]
    fn damaged_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let fails = || Llama::load(folder.path(), None).err().unwrap().to_string();
        assert!(fails().contains("config.json"));
        let model = Llama::random(&tiny_config(), 1).unwrap();
        model.save(folder.path(), DType::F32).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 5, 100, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let message = fails();
            assert!(
                message.contains("model.safetensors") && message.contains("truncated"),
                "{length}: {message}"
            );
        }
        let mut tensors: BTreeMap<_, _> = model
            .parameters()
            .into_iter()
            .map(|(name, parameter)| (name, parameter.tensor.clone()))
            .collect();
        let name = "model.layers.1.mlp.up_proj.weight";
        let wrong = tensors[name].t().unwrap().contiguous().unwrap();
        tensors.insert(name.to_string(), wrong);
        files::write_safetensors(&path, tensors.clone()).unwrap();
        let message = fails();
        assert!(
            message.contains(name) && message.contains("[16, 24]") && message.contains("[24, 16]"),
            "{message}"
        );
        tensors.remove(name);
        files::write_safetensors(&path, tensors).unwrap();
        let message = fails();
        assert!(
            message.contains(name) && message.contains("missing"),
            "{message}"
        );
    }
}
