//! A PEFT adapter's two files, checked before the engine sees them.
//!
//! mistralrs uses `r`, `lora_alpha` and `target_modules` and ignores everything else, silently: an adapter that needs more would be
//! served wrong. So a setting that is not neutral is refused by its name, and every tensor must have its place and shape in the
//! base, none may be missing (PEFT itself only warns), none left over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::base::{BaseFolder, WeightsKind, json};
use super::safetensors::Tensors;
use crate::error::Error;

/// What the engine needs to merge an adapter.
#[derive(Debug, PartialEq)]
pub(crate) struct Lora {
    pub(crate) r: usize,
    pub(crate) alpha: f64,
    pub(crate) target_modules: BTreeSet<String>,
    pub(crate) weights: PathBuf,
}

/// Settings that may have any value: they are used, checked one by one, or matter in training alone.
const KNOWN: &[&str] = &[
    "r",
    "lora_alpha",
    "target_modules",
    "peft_type",
    "task_type",
    "bias",
    "init_lora_weights",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "peft_version",
    "auto_mapping",
    "layers_pattern",
    "runtime_config",
    "qalora_group_size",
    "loftq_config",
    "eva_config",
    "corda_config",
    "arrow_config",
    "ensure_weight_tying",
    "megatron_core",
];

/// So many tensors that are wrong are named: each layer of a model may have some.
const SHOWN: usize = 5;

/// Checks `folder` against `base`; all problems at once.
pub(crate) fn check(folder: &Path, base: &BaseFolder) -> Result<Lora, Error> {
    if base.kind == WeightsKind::Gguf {
        return Err(Error::Adapter {
            folder: folder.to_path_buf(),
            problems: "the base is a GGUF file, into whose weights the engine merges no adapter; name the folder with the same model's \
                       safetensors files in engine.base"
                .to_owned(),
        });
    }
    let mut problems = Vec::new();
    if base.quantised() {
        problems.push("the base is quantised, the engine would ignore the adapter".to_owned());
    }
    let config = json(&folder.join("adapter_config.json"));
    let weights = folder.join("adapter_model.safetensors");
    let tensors = if weights.is_file() {
        Tensors::read(std::slice::from_ref(&weights))
    } else {
        Err(Error::ModelFile {
            path: weights.clone(),
            what: "is missing".to_owned(),
        })
    };
    let mut lora = Lora {
        r: 0,
        alpha: 0.0,
        target_modules: BTreeSet::new(),
        weights,
    };
    match &config {
        Ok(config) => {
            (lora.r, lora.alpha, lora.target_modules) = settings(config, &mut problems);
        }
        Err(e) => problems.push(e.to_string()),
    }
    match &tensors {
        // Where it is not known which there should be, nothing can be said of those that there are.
        Ok(tensors) if lora.r > 0 && !lora.target_modules.is_empty() => places(
            tensors,
            &base.tensors,
            lora.r,
            &lora.target_modules,
            &mut problems,
        ),
        Ok(_) => {}
        Err(e) => problems.push(e.to_string()),
    }
    if problems.is_empty() {
        Ok(lora)
    } else {
        Err(Error::Adapter {
            folder: folder.to_path_buf(),
            problems: problems.join("; "),
        })
    }
}

/// `r`, `lora_alpha` and the target modules: 0 or none where they cannot be used.
fn settings(
    config: &Map<String, Value>,
    problems: &mut Vec<String>,
) -> (usize, f64, BTreeSet<String>) {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    if text("peft_type") != Some("LORA") {
        problems.push(format!(
            "peft_type is {}, only \"LORA\" is served",
            shown(config.get("peft_type"))
        ));
    }
    if text("task_type").is_some_and(|t| t != "CAUSAL_LM") {
        problems.push(format!(
            "task_type is {}, only \"CAUSAL_LM\" is served",
            shown(config.get("task_type"))
        ));
    }
    if text("bias").is_some_and(|b| b != "none") {
        problems.push(format!(
            "bias is {}, the engine would ignore it",
            shown(config.get("bias"))
        ));
    }
    if let Some(start) = text("init_lora_weights").filter(|s| *s != "gaussian") {
        problems.push(format!(
            "init_lora_weights is \"{start}\": such adapters fit a changed base only"
        ));
    }
    for (key, value) in config {
        if !KNOWN.contains(&key.as_str()) && !neutral(value) {
            problems.push(format!(
                "{key} is {}, the engine would ignore it",
                shown(Some(value))
            ));
        }
    }
    let r = config
        .get("r")
        .and_then(Value::as_u64)
        .and_then(|r| usize::try_from(r).ok())
        .filter(|r| *r > 0);
    if r.is_none() {
        problems.push(format!(
            "r is {}, expected a whole number above 0",
            shown(config.get("r"))
        ));
    }
    let alpha = config
        .get("lora_alpha")
        .and_then(Value::as_f64)
        .filter(|a| a.is_finite());
    if alpha.is_none() {
        problems.push(format!(
            "lora_alpha is {}, expected a number",
            shown(config.get("lora_alpha"))
        ));
    }
    let mut modules = BTreeSet::new();
    match config.get("target_modules").and_then(Value::as_array) {
        Some(names) if !names.is_empty() => {
            for name in names {
                match name.as_str().filter(|n| {
                    !n.is_empty() && n.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                }) {
                    Some(name) => {
                        modules.insert(name.to_owned());
                    }
                    None => problems.push(format!(
                        "target_modules names {}, expected a layer's plain name such as \"q_proj\"",
                        shown(Some(name))
                    )),
                }
            }
        }
        _ => problems.push(format!(
            "target_modules is {}, expected a list of layers' names",
            shown(config.get("target_modules"))
        )),
    }
    (r.unwrap_or(0), alpha.unwrap_or(0.0), modules)
}

/// A value that asks for nothing.
fn neutral(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Number(_) | Value::String(_) => false,
    }
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "missing".to_owned(), Value::to_string)
}

/// Compares the adapter's tensors with those that the target modules of the base ask for.
fn places(
    adapter: &Tensors,
    base: &Tensors,
    r: usize,
    modules: &BTreeSet<String>,
    problems: &mut Vec<String>,
) {
    let mut own = Vec::new();
    let mut expected: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for module in modules {
        let suffix = format!(".{module}.weight");
        let places: Vec<_> = base
            .shapes
            .iter()
            .filter(|(name, shape)| {
                name.starts_with("model.layers.") && name.ends_with(&suffix) && shape.len() == 2
            })
            .collect();
        if places.is_empty() {
            own.push(format!(
                "target module {module} is no linear layer of the base's blocks"
            ));
        }
        for (name, shape) in places {
            let path = name.trim_end_matches(".weight");
            expected.insert(
                format!("base_model.model.{path}.lora_A.weight"),
                vec![r, shape[1]],
            );
            expected.insert(
                format!("base_model.model.{path}.lora_B.weight"),
                vec![shape[0], r],
            );
        }
    }
    for (name, shape) in &expected {
        match adapter.shapes.get(name) {
            None => own.push(format!("tensor {name} is missing")),
            Some(found) if found != shape => {
                own.push(format!(
                    "tensor {name} has shape {found:?}, the base and r = {r} want {shape:?}"
                ));
            }
            Some(_) => {}
        }
    }
    for name in adapter.shapes.keys().filter(|n| !expected.contains_key(*n)) {
        own.push(format!(
            "tensor {name} has no place in the base's target modules"
        ));
    }
    if own.len() > SHOWN {
        let more = own.len() - SHOWN;
        own.truncate(SHOWN);
        own.push(format!("and {more} tensors more"));
    }
    problems.extend(own);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;
    use serde_json::json;

    fn problems_of(key: &str, value: Value) -> String {
        let mut config = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.05,
            "target_modules": ["q_proj", "down_proj"], "bias": "none", "use_rslora": false, "use_dora": false,
            "modules_to_save": null, "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": null,
            "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true});
        config[key] = value;
        let mut problems = Vec::new();
        settings(config.as_object().unwrap(), &mut problems);
        problems.join("; ")
    }

    #[test]
    fn settings_the_engine_would_ignore_are_named() {
        assert_eq!(problems_of("r", json!(8)), "");
        for (key, value) in [
            ("use_rslora", json!(true)),
            ("use_dora", json!(true)),
            ("rank_pattern", json!({"q_proj": 2})),
            ("alpha_pattern", json!({"q_proj": 2})),
            ("layers_to_transform", json!([0])),
            ("modules_to_save", json!(["lm_head"])),
            ("fan_in_fan_out", json!(true)),
            ("bias", json!("all")),
            ("peft_type", json!("IA3")),
            ("init_lora_weights", json!("pissa")),
            ("something_new", json!(3)),
            ("r", json!(0)),
            ("target_modules", json!("all-linear")),
            ("target_modules", json!([".*proj"])),
        ] {
            assert!(
                problems_of(key, value.clone()).contains(key),
                "{key} = {value} was let through"
            );
        }
    }

    #[test]
    fn all_problems_are_named_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut base = BaseFolder {
            config: Map::new(),
            tokenizer: PathBuf::new(),
            kind: WeightsKind::Safetensors,
            weights: Vec::new(),
            generation_config: None,
            tensors: Tensors::default(),
        };
        let said = |base: &BaseFolder| check(folder.path(), base).unwrap_err().to_string();
        for part in [
            "adapter_config.json is missing",
            "adapter_model.safetensors is missing",
        ] {
            assert!(said(&base).contains(part), "{}", said(&base));
        }
        let config = json!({"peft_type": "LORA", "r": 0, "lora_alpha": 8, "target_modules": ["q_proj"], "use_dora": true,
            "use_rslora": true});
        std::fs::write(
            folder.path().join("adapter_config.json"),
            config.to_string(),
        )
        .unwrap();
        for part in ["use_dora", "use_rslora", "r is 0", "is missing"] {
            assert!(said(&base).contains(part), "{}", said(&base));
        }
        base.kind = WeightsKind::Gguf;
        assert!(said(&base).contains("the base is a GGUF file"));
    }

    #[test]
    fn tensors_have_their_places() {
        let tensors = |list: &[(&str, &[usize])]| Tensors {
            shapes: list
                .iter()
                .map(|(n, s)| ((*n).to_owned(), s.to_vec()))
                .collect(),
        };
        let base = tensors(&[
            ("model.layers.0.self_attn.q_proj.weight", &[6, 8]),
            ("model.embed_tokens.weight", &[9, 8]),
        ]);
        let found = |module: &str, list: &[(&str, &[usize])]| {
            let mut problems = Vec::new();
            places(
                &tensors(list),
                &base,
                2,
                &BTreeSet::from([module.to_owned()]),
                &mut problems,
            );
            problems.join("; ")
        };
        let a = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
        let b = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
        assert_eq!(found("q_proj", &[(a, &[2, 8]), (b, &[6, 2])]), "");
        assert!(found("q_proj", &[(a, &[2, 8])]).contains("lora_B.weight is missing"));
        assert!(found("q_proj", &[(a, &[2, 8]), (b, &[6, 4])]).contains("has shape [6, 4]"));
        assert!(
            found("q_proj", &[(a, &[2, 8]), (b, &[6, 2]), ("lm_head", &[1])])
                .contains("lm_head has no place")
        );
        assert!(found("embed_tokens", &[]).contains("no linear layer"));
    }
}
