//! An adapter on disk: the two files that PEFT, vLLM, mistralrs and llama.cpp all read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::files::{self, Store};
use crate::linear::Map;
use crate::lora::{LoraAdapter, Pair, name};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

#[derive(Deserialize)]
struct Config {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f32,
    target_modules: Vec<String>,
    bias: Option<String>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    modules_to_save: Option<Vec<String>>,
    rank_pattern: Option<BTreeMap<String, Value>>,
    alpha_pattern: Option<BTreeMap<String, Value>>,
    layers_to_transform: Option<Value>,
}

impl Config {
    /// What would change the arithmetic and is not done here.
    fn unsupported(&self) -> Vec<String> {
        let some = |map: &Option<BTreeMap<_, _>>| map.as_ref().is_some_and(|map| !map.is_empty());
        let mut all: Vec<String> = [
            (self.use_rslora, "use_rslora"),
            (self.use_dora, "use_dora"),
            (self.fan_in_fan_out, "fan_in_fan_out"),
            (
                self.modules_to_save
                    .as_ref()
                    .is_some_and(|modules| !modules.is_empty()),
                "modules_to_save",
            ),
            (some(&self.rank_pattern), "rank_pattern"),
            (some(&self.alpha_pattern), "alpha_pattern"),
            (
                self.layers_to_transform
                    .as_ref()
                    .is_some_and(|layers| !layers.is_null()),
                "layers_to_transform",
            ),
            (
                self.bias.as_deref().is_some_and(|bias| bias != "none"),
                "bias other than none",
            ),
        ]
        .into_iter()
        .filter(|(there, _)| *there)
        .map(|(_, name)| name.to_string())
        .collect();
        if self.peft_type != "LORA" {
            all.push(format!("peft_type {}", self.peft_type));
        }
        let unknown = self
            .target_modules
            .iter()
            .filter(|name| Map::named(name).is_none());
        all.extend(unknown.map(|name| format!("target module {name}")));
        all
    }
}

impl LoraAdapter {
    /// Writes `adapter_model.safetensors` (f32) and then `adapter_config.json`, each whole or not at all: a folder with
    /// a configuration is complete. The folder is made if absent. `base_id` becomes `base_model_name_or_path`.
    pub fn save(&self, folder: &Path, base_id: &str) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for (n, layer) in self.layers.iter().enumerate() {
            for (map, Pair { a, b }) in layer {
                tensors.insert(name(n, *map, 'A'), a.clone());
                tensors.insert(name(n, *map, 'B'), b.clone());
            }
        }
        // PEFT writes whole numbers as such, and some readers take nothing else.
        let alpha = if self.alpha.fract() == 0.0 {
            json!(self.alpha as i64)
        } else {
            json!(self.alpha)
        };
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_id,
            "r": self.r,
            "lora_alpha": alpha,
            "lora_dropout": self.dropout,
            "target_modules": self.target_modules(),
            "bias": "none",
            "use_rslora": false,
            "use_dora": false,
            "modules_to_save": null,
            "fan_in_fan_out": false,
            "inference_mode": true,
        });
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        files::write_safetensors(&folder.join(WEIGHTS), tensors, HashMap::new())?;
        files::write_json(&folder.join(CONFIG), &config)
    }

    /// Reads PEFT's two files.
    ///
    /// Refuses what would be computed otherwise (rsLoRA, DoRA, patterns, biases, other modules than a layer's
    /// linear maps), a tensor too many, and one too few: PEFT only warns of that and leaves it at its random start.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let config: Config = serde_json::from_str(&text)
            .map_err(|error| Error::file(&path, format!("not a LoRA's configuration: {error}")))?;
        let unsupported = config.unsupported();
        if !unsupported.is_empty() {
            return Err(Error::file(
                &path,
                format!("not supported: {}", unsupported.join(", ")),
            ));
        }
        if config.r == 0 || config.target_modules.is_empty() {
            return Err(Error::file(
                &path,
                "r is 0 or target_modules is empty: there is nothing in this adapter",
            ));
        }
        let path = folder.join(WEIGHTS);
        let mut store = Store::open_file(&path)?;
        let mut left: BTreeSet<String> = store.names().map(str::to_string).collect();
        let layer_of = |name: &String| {
            let rest = name.strip_prefix("base_model.model.model.layers.")?;
            rest.split('.').next()?.parse::<usize>().ok()
        };
        let Some(last) = left.iter().filter_map(layer_of).max() else {
            let example = name(0, Map::Q, 'A');
            return Err(Error::file(
                path,
                format!("no tensor of a LoRA in it, such as `{example}`"),
            ));
        };
        // A layer's number comes from the file: one far off would otherwise make a very long list.
        if last >= left.len() {
            return Err(Error::file(
                path,
                format!(
                    "{} tensors cannot be those of {} layers",
                    left.len(),
                    last + 1
                ),
            ));
        }
        let maps: BTreeSet<Map> = config
            .target_modules
            .iter()
            .filter_map(|module| Map::named(module))
            .collect();
        let mut layers = Vec::with_capacity(last + 1);
        for n in 0..=last {
            let mut half = |map: Map, half: char| {
                let name = name(n, map, half);
                left.remove(&name);
                store.take_any(&name)
            };
            let pairs = maps.iter().map(|map| {
                let (a, b) = (half(*map, 'A')?, half(*map, 'B')?);
                Ok((*map, Pair { a, b }))
            });
            layers.push(pairs.collect::<Result<_>>()?);
        }
        if let Some(name) = left.first() {
            return Err(Error::file(
                path,
                format!("tensor `{name}` belongs to none of target_modules"),
            ));
        }
        Ok(LoraAdapter {
            r: config.r,
            alpha: config.lora_alpha,
            dropout: config.lora_dropout,
            layers,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::model::Model;
    use crate::ops::slice::read;
    use crate::test_support::{tiny, tiny_config};

    fn saved() -> (tempfile::TempDir, LoraAdapter) {
        let folder = tempfile::tempdir().unwrap();
        let adapter =
            LoraAdapter::new(&tiny_config(), tiny_config().maps(), 4, 8.0, 0.05, 1).unwrap();
        adapter.save(folder.path(), "models/pocket").unwrap();
        (folder, adapter)
    }

    fn change(folder: &Path, edit: impl FnOnce(&mut Value)) {
        let path = folder.join(CONFIG);
        let mut config: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        edit(&mut config);
        files::write_json(&path, &config).unwrap();
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let (folder, adapter) = saved();
        let loaded = LoraAdapter::load(folder.path()).unwrap();
        assert_eq!((loaded.r, loaded.alpha, loaded.dropout), (4, 8.0, 0.05));
        let (a, b) = (adapter.tensors(), loaded.tensors());
        assert_eq!(a.len(), 2 * 7 * 2);
        for (a, b) in a.iter().zip(&b) {
            assert_eq!(*read(a).unwrap(), *read(b).unwrap());
        }
        let config: Value =
            serde_json::from_str(&std::fs::read_to_string(folder.path().join(CONFIG)).unwrap())
                .unwrap();
        assert_eq!(config["lora_alpha"], json!(8));
        assert_eq!(config["target_modules"].as_array().unwrap().len(), 7);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_tensor_too_few_or_too_many_is_an_error() {
        let (folder, mut adapter) = saved();
        adapter.layers[1].remove(&Map::O);
        adapter.save(folder.path(), "x").unwrap();
        let message = LoraAdapter::load(folder.path()).unwrap_err().to_string();
        assert!(
            message.contains("layers.1.self_attn.o_proj.lora_A.weight")
                && message.contains("missing"),
            "{message}"
        );

        let (folder, _) = saved();
        change(folder.path(), |config| {
            config["target_modules"] = json!(["q_proj"])
        });
        let message = LoraAdapter::load(folder.path()).unwrap_err().to_string();
        assert!(message.contains("none of target_modules"), "{message}");
    }

    #[test]
    fn other_kinds_of_adapters_are_refused() {
        for (key, value) in [
            ("use_rslora", json!(true)),
            ("use_dora", json!(true)),
            ("rank_pattern", json!({"q_proj": 8})),
            ("modules_to_save", json!(["lm_head"])),
            ("layers_to_transform", json!([1])),
            ("bias", json!("all")),
        ] {
            let (folder, _) = saved();
            change(folder.path(), |config| config[key] = value);
            let message = LoraAdapter::load(folder.path()).unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
    }

    #[test]
    fn an_adapter_of_another_base_is_refused() {
        let (_folder, adapter) = saved();
        let refused = |settings| {
            let mut other = Model::random(&tiny(settings), 1).unwrap();
            adapter.attach(&mut other, false).unwrap_err().to_string()
        };
        let message = refused(json!({ "intermediate_size": 32 }));
        assert!(
            message.contains("gate_proj") && message.contains("another base"),
            "{message}"
        );
        let message = refused(json!({ "num_hidden_layers": 3 }));
        assert!(message.contains("2 layers"), "{message}");
        let message = refused(json!({ "model_type": "phi3" }));
        assert!(message.contains("no q_proj"), "{message}");
    }
}
