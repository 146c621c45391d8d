//! The model: its weights under Hugging Face's names, made at random, loaded, saved.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::config::{LayerKind, ModelConfig};
use crate::error::{Error, Result};
use crate::files::{self, Store};
use crate::linear::{Linear, Map, Parameter};
use crate::lora::LoraAdapter;
use crate::ops::slice::matrix;

/// A model on the CPU, computed in f32. Cheap to clone: clones share their weights, as long as nobody trains them.
#[derive(Clone)]
pub struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) embedding: Parameter,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Parameter,
    /// None: the embedding is the output head as well.
    pub(crate) head: Option<Parameter>,
}

#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) kind: LayerKind,
    /// Before attention.
    pub(crate) input_norm: Parameter,
    /// q, k and v, or all in one.
    pub(crate) attention_in: Vec<Linear>,
    /// Of each head of q, and of k.
    pub(crate) head_norms: Option<[Parameter; 2]>,
    pub(crate) attention_out: Linear,
    /// Before the feed-forward block.
    pub(crate) middle_norm: Parameter,
    /// gate and up, or both in one.
    pub(crate) gate_up: Vec<Linear>,
    pub(crate) down: Linear,
    /// After attention, and after the feed-forward block.
    pub(crate) result_norms: Option<[Parameter; 2]>,
}

impl ModelConfig {
    /// Which linear maps a layer has.
    pub(crate) fn maps(&self) -> &'static [Map] {
        match self.fused {
            true => &[Map::Qkv, Map::O, Map::GateUp, Map::Down],
            false => &[
                Map::Q,
                Map::K,
                Map::V,
                Map::O,
                Map::Gate,
                Map::Up,
                Map::Down,
            ],
        }
    }

    /// `[out, in]` of a linear map.
    pub(crate) fn shape(&self, map: Map) -> [usize; 2] {
        let (h, q, k, f) = (
            self.hidden_size,
            self.query_width(),
            self.key_width(),
            self.intermediate_size,
        );
        match map {
            Map::Q => [q, h],
            Map::K | Map::V => [k, h],
            Map::Qkv => [q + 2 * k, h],
            Map::O => [h, q],
            Map::Gate | Map::Up => [f, h],
            Map::GateUp => [2 * f, h],
            Map::Down => [h, f],
        }
    }

    fn has_bias(&self, map: Map) -> bool {
        match map {
            Map::Q | Map::K | Map::V | Map::Qkv => self.biases.attention_in,
            Map::O => self.biases.attention_out,
            Map::Gate | Map::Up | Map::GateUp | Map::Down => self.biases.feed_forward,
        }
    }
}

/// Where weights come from: by name and shape.
type Get<'a> = dyn FnMut(&str, &[usize]) -> Result<Tensor> + 'a;

impl Layer {
    fn build(config: &ModelConfig, n: usize, get: &mut Get) -> Result<Self> {
        let mut parameter = |name: &str, shape: &[usize]| {
            let name = format!("model.layers.{n}.{name}");
            Ok::<_, Error>(Parameter {
                tensor: get(&name, shape)?,
                name,
                slot: None,
            })
        };
        let hidden = [config.hidden_size];
        let input_norm = parameter("input_layernorm.weight", &hidden)?;
        // Gemma's name for the norm before the feed-forward block; what the others call so is Gemma's norm of attention's result.
        let (middle, results) = match config.result_norms {
            false => ("post_attention_layernorm", None),
            true => (
                "pre_feedforward_layernorm",
                Some(["post_attention_layernorm", "post_feedforward_layernorm"]),
            ),
        };
        let middle_norm = parameter(&format!("{middle}.weight"), &hidden)?;
        let result_norms = match results {
            None => None,
            Some([attention, feed_forward]) => Some([
                parameter(&format!("{attention}.weight"), &hidden)?,
                parameter(&format!("{feed_forward}.weight"), &hidden)?,
            ]),
        };
        let head_norms = match config.head_norms {
            false => None,
            true => Some([
                parameter("self_attn.q_norm.weight", &[config.head_dim])?,
                parameter("self_attn.k_norm.weight", &[config.head_dim])?,
            ]),
        };
        let mut linear = |map: Map| {
            let name = format!("{}.{}", map.block(), map.name());
            let shape = config.shape(map);
            let weight = parameter(&format!("{name}.weight"), &shape)?;
            let bias = match config.has_bias(map) {
                true => Some(parameter(&format!("{name}.bias"), &shape[..1])?),
                false => None,
            };
            Ok::<_, Error>(Linear {
                map,
                weight,
                bias,
                delta: None,
            })
        };
        let (attention_in, gate_up): (&[Map], &[Map]) = match config.fused {
            true => (&[Map::Qkv], &[Map::GateUp]),
            false => (&[Map::Q, Map::K, Map::V], &[Map::Gate, Map::Up]),
        };
        let attention_in: Result<_> = attention_in.iter().map(|map| linear(*map)).collect();
        let attention_out = linear(Map::O)?;
        let gate_up: Result<_> = gate_up.iter().map(|map| linear(*map)).collect();
        Ok(Layer {
            kind: config.layers[n],
            input_norm,
            attention_in: attention_in?,
            head_norms,
            attention_out,
            middle_norm,
            gate_up: gate_up?,
            down: linear(Map::Down)?,
            result_norms,
        })
    }

    /// Every linear map, in one order.
    pub(crate) fn linear(&self) -> impl Iterator<Item = &Linear> {
        let attention = self.attention_in.iter().chain([&self.attention_out]);
        attention.chain(&self.gate_up).chain([&self.down])
    }

    /// The same, in the same order.
    pub(crate) fn linear_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let attention = self.attention_in.iter_mut();
        let attention = attention.chain([&mut self.attention_out]);
        attention.chain(&mut self.gate_up).chain([&mut self.down])
    }

    fn norms(&self) -> impl Iterator<Item = &Parameter> {
        let own = [&self.input_norm, &self.middle_norm].into_iter();
        let others = [&self.head_norms, &self.result_norms].into_iter().flatten();
        own.chain(others.flatten())
    }

    fn norms_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let own = [&mut self.input_norm, &mut self.middle_norm].into_iter();
        let others = [&mut self.head_norms, &mut self.result_norms].into_iter();
        own.chain(others.flatten().flatten())
    }
}

impl Model {
    /// Asks `get` for every weight by name and shape.
    fn build(config: &ModelConfig, get: &mut Get) -> Result<Self> {
        let mut parameter = |name: &str, shape: &[usize]| {
            Ok::<_, Error>(Parameter {
                name: name.to_owned(),
                tensor: get(name, shape)?,
                slot: None,
            })
        };
        let table = [config.vocab_size, config.hidden_size];
        let embedding = parameter("model.embed_tokens.weight", &table)?;
        let norm = parameter("model.norm.weight", &table[1..])?;
        let head = match config.tie_word_embeddings {
            true => None,
            false => Some(parameter("lm_head.weight", &table)?),
        };
        let layers = (0..config.layers.len()).map(|n| Layer::build(config, n, get));
        Ok(Model {
            config: config.clone(),
            embedding,
            layers: layers.collect::<Result<_>>()?,
            norm,
            head,
        })
    }

    /// Random weights: normal with deviation 0.02, smaller by √(2·layers) where a block's result joins the residual
    /// stream (Radford et al. 2019, section 2.3); norms as if they were not there, biases 0.
    pub fn random(config: &ModelConfig, seed: u64) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let residual = 0.02 / (2.0 * config.layers.len() as f64).sqrt();
        let norm = 1.0 - config.norm_offset;
        Model::build(config, &mut |name, shape| match shape {
            [n] => {
                let value = if name.ends_with(".bias") { 0.0 } else { norm };
                Ok(Tensor::new(vec![value; *n], &Device::Cpu)?)
            }
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
        Model::read(folder, adapter, false)
    }

    /// The same for one whose weights stay as they are: the layers' maps are kept as the files have them, in bf16 or f16 at half the memory,
    /// and are made f32 where they are used, with the same results to the bit.
    pub fn load_frozen(folder: &Path, adapter: Option<&LoraAdapter>) -> Result<Self> {
        Model::read(folder, adapter, true)
    }

    fn read(folder: &Path, adapter: Option<&LoraAdapter>, is_frozen: bool) -> Result<Self> {
        let config = ModelConfig::load(folder)?;
        let mut store = Store::open_model(folder)?;
        let mut model = Model::build(&config, &mut |name, shape| {
            if is_frozen && shape.len() == 2 && name.starts_with("model.layers.") {
                store.take_stored(name, shape)
            } else {
                store.take(name, shape)
            }
        })?;
        if let Some(adapter) = adapter {
            adapter.attach(&mut model, false)?;
        }
        Ok(model)
    }

    /// Writes `config.json`, as it was read, and `model.safetensors` with Hugging Face's names, each whole or not at all. The folder is
    /// made if absent. A tied output head is not written twice.
    ///
    /// Refuses a model with an adapter attached: `merged` makes it one.
    pub fn save(&self, folder: &Path, dtype: DType) -> Result<()> {
        let mut all = self.layers.iter().flat_map(Layer::linear);
        if all.any(|linear| linear.delta.is_some()) {
            return Err(Error::Adapter(
                "the model has an adapter attached; save the adapter, or merge it first".into(),
            ));
        }
        let mut tensors = BTreeMap::new();
        for parameter in self.parameters() {
            let name = parameter.name.clone();
            tensors.insert(name, parameter.tensor.to_dtype(dtype)?);
        }
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        files::write_safetensors(&folder.join("model.safetensors"), tensors, HashMap::new())?;
        let mut config = self.config.raw.clone();
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
        for linear in merged.layers.iter_mut().flat_map(Layer::linear_mut) {
            if let Some(delta) = linear.delta.take() {
                let product = (delta.b.tensor.matmul(&delta.a.tensor)? * delta.scale)?;
                linear.weight.tensor = (linear.weights()? + product)?;
            }
        }
        Ok(merged)
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How many numbers the model has.
    pub fn parameter_count(&self) -> usize {
        let all = self.parameters();
        all.map(|parameter| parameter.tensor.elem_count()).sum()
    }

    /// The base's weights.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let layers = self.layers.iter().flat_map(|layer| {
            let linear = layer.linear();
            let linear =
                linear.flat_map(|linear| std::iter::once(&linear.weight).chain(&linear.bias));
            layer.norms().chain(linear)
        });
        let ends = [&self.embedding, &self.norm].into_iter();
        layers.chain(ends).chain(&self.head)
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
            layer.norms_mut().for_each(&mut learn);
            for linear in layer.linear_mut() {
                learn(&mut linear.weight);
                linear.bias.iter_mut().for_each(&mut learn);
            }
        }
        learn(&mut self.norm);
        self.head.iter_mut().for_each(&mut learn);
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
    use crate::test_support::{tiny, tiny_config};
    use serde_json::json;

    fn numbers(model: &Model) -> Vec<f32> {
        model
            .parameters()
            .flat_map(|p| read(&p.tensor).unwrap().to_vec())
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
            let config = tiny(json!({ "tie_word_embeddings": tied }));
            let model = Model::random(&config, 1).unwrap();
            model.save(&folder.path().join("new"), dtype).unwrap();
            let loaded = Model::load(&folder.path().join("new"), None).unwrap();
            assert_eq!(loaded.config.layers, config.layers);
            assert_eq!(loaded.config.tie_word_embeddings, tied);
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

    fn split(folder: &Path, model: &Model) {
        let mut shards = [BTreeMap::new(), BTreeMap::new()];
        let mut map = serde_json::Map::new();
        for (i, parameter) in model.parameters().enumerate() {
            let name = parameter.name.clone();
            map.insert(
                name.clone(),
                format!("model-0000{}-of-00002.safetensors", i % 2 + 1).into(),
            );
            shards[i % 2].insert(name, parameter.tensor.clone());
        }
        for (i, shard) in shards.into_iter().enumerate() {
            let name = format!("model-0000{}-of-00002.safetensors", i + 1);
            files::write_safetensors(&folder.join(name), shard, HashMap::new()).unwrap();
        }
        let index = serde_json::json!({ "weight_map": map });
        files::write_json(&folder.join("model.safetensors.index.json"), &index).unwrap();
        std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    }

    #[test]
    fn shards_are_found_by_their_index() {
        let folder = tempfile::tempdir().unwrap();
        let model = Model::random(&tiny_config(), 1).unwrap();
        model.save(folder.path(), DType::F32).unwrap();
        split(folder.path(), &model);
        assert_eq!(
            numbers(&Model::load(folder.path(), None).unwrap()),
            numbers(&model)
        );
        std::fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
        let message = Model::load(folder.path(), None).err().unwrap().to_string();
        assert!(
            message.contains("model-00002-of-00002.safetensors"),
            "{message}"
        );
    }

    #[test]
    fn damaged_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let fails = || Model::load(folder.path(), None).err().unwrap().to_string();
        assert!(fails().contains("config.json"));
        let model = Model::random(&tiny_config(), 1).unwrap();
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
            .map(|parameter| (parameter.name.clone(), parameter.tensor.clone()))
            .collect();
        let name = "model.layers.1.mlp.up_proj.weight";
        let wrong = tensors[name].t().unwrap().contiguous().unwrap();
        tensors.insert(name.to_string(), wrong);
        files::write_safetensors(&path, tensors.clone(), HashMap::new()).unwrap();
        let message = fails();
        assert!(
            message.contains(name) && message.contains("[16, 24]") && message.contains("[24, 16]"),
            "{message}"
        );
        tensors.remove(name);
        files::write_safetensors(&path, tensors, HashMap::new()).unwrap();
        let message = fails();
        assert!(
            message.contains(name) && message.contains("missing"),
            "{message}"
        );
    }
}
