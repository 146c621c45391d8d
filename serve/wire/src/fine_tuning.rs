//! A fine-tuning job, as `POST /v1/fine_tuning/jobs` takes it: with the old `hyperparameters` or with `method`, which say the same.

use serde_json::{Map, Value, json};

use crate::params::{Params, unsupported, wrong_type};
use crate::refusal::Refusal;
use crate::request::metadata;

/// OpenAI's limit.
const MAX_SUFFIX: usize = 64;
/// Above it a LoRA loses.
const MAX_BATCH: i64 = 256;
const MAX_EPOCHS: i64 = 50;

/// What is to be trained, on which file.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRequest {
    pub model: String,
    pub training_file: String,
    pub validation_file: Option<String>,
    pub suffix: Option<String>,
    pub seed: Option<u64>,
    pub method: Method,
    pub hyperparameters: Hyperparameters,
    pub metadata: Option<Value>,
}

/// What is learned from, in OpenAI's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Method {
    /// Conversations.
    #[default]
    Supervised,
    /// Preferences.
    Dpo,
}

impl Method {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Supervised => "supervised",
            Self::Dpo => "dpo",
        }
    }
}

/// `None` is `auto`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Hyperparameters {
    pub n_epochs: Option<u32>,
    pub batch_size: Option<u32>,
    /// Of the learning rate that the base's width suggests.
    pub learning_rate_multiplier: Option<f64>,
    /// Of the method `dpo` alone: how close it stays to what it was.
    pub beta: Option<f64>,
}

impl JobRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// The parameter that is missing, wrong, not known, or asks for a method that is not offered.
    pub fn read(mut params: Params) -> Result<Self, Refusal> {
        let p = &mut params;
        let model = p.string("model")?;
        let model = p.required("model", model)?;
        let training_file = p.string("training_file")?;
        let training_file = p.required("training_file", training_file)?;
        let validation_file = p.string("validation_file")?;
        let suffix = p.string("suffix")?;
        if suffix
            .as_ref()
            .is_some_and(|s| s.chars().count() > MAX_SUFFIX)
        {
            let message = format!(
                "Invalid 'suffix': string too long. Expected at most {MAX_SUFFIX} characters."
            );
            return Err(Refusal::param("suffix", "string_above_max_length", message));
        }
        let seed = p.integer("seed", 0, i64::from(i32::MAX))?;
        let old = p.object("hyperparameters")?;
        let old = old
            .map(|members| hyperparameters(members, "hyperparameters", Method::Supervised))
            .transpose()?;
        let method = p.object("method")?.map(method).transpose()?;
        p.unsupported("integrations", |v| v.as_array().is_some_and(Vec::is_empty))?;
        let metadata = metadata(p)?;
        params.finish()?;
        if old.is_some() && method.is_some() {
            let message =
                "'hyperparameters' and 'method' say the same thing: expected one of them.";
            return Err(Refusal::param(
                "hyperparameters",
                "invalid_parameter_combination",
                message,
            ));
        }
        let (method, hyperparameters) = match method {
            Some(chosen) => chosen,
            None => (Method::Supervised, old.unwrap_or_default()),
        };
        Ok(Self {
            model,
            training_file,
            validation_file,
            suffix,
            seed: seed.and_then(|seed| u64::try_from(seed).ok()),
            method,
            hyperparameters,
            metadata,
        })
    }
}

fn method(members: Map<String, Value>) -> Result<(Method, Hyperparameters), Refusal> {
    let mut p = Params::inner(members, "method");
    let kind = p.string("type")?;
    let kind = p.required("type", kind)?;
    let known = [Method::Supervised, Method::Dpo];
    let Some(method) = known.into_iter().find(|method| method.as_str() == kind) else {
        let message =
            format!("Invalid value: '{kind}'. This server trains by 'supervised' and 'dpo'.");
        return Err(Refusal::param("method.type", "unsupported_value", message));
    };
    let of_method = p.object(&kind)?.unwrap_or_default();
    p.finish()?;
    let path = format!("method.{kind}");
    let mut p = Params::inner(of_method, &path);
    let chosen = p.object("hyperparameters")?.unwrap_or_default();
    p.finish()?;
    let chosen = hyperparameters(chosen, &format!("{path}.hyperparameters"), method)?;
    Ok((method, chosen))
}

fn hyperparameters(
    members: Map<String, Value>,
    path: &str,
    method: Method,
) -> Result<Hyperparameters, Refusal> {
    let mut p = Params::inner(members, path);
    let decimal = |p: &mut Params, key: &str, from, to| match is_auto(p, key)? {
        true => Ok(None),
        false => p.decimal(key, from, to),
    };
    let read = Hyperparameters {
        n_epochs: count(&mut p, "n_epochs", MAX_EPOCHS)?,
        batch_size: count(&mut p, "batch_size", MAX_BATCH)?,
        learning_rate_multiplier: decimal(&mut p, "learning_rate_multiplier", 1e-3, 100.0)?,
        beta: match method {
            Method::Supervised => None,
            Method::Dpo => decimal(&mut p, "beta", 1e-3, 2.0)?,
        },
    };
    p.finish()?;
    Ok(read)
}

fn count(p: &mut Params, key: &str, most: i64) -> Result<Option<u32>, Refusal> {
    if is_auto(p, key)? {
        return Ok(None);
    }
    Ok(p.integer(key, 1, most)?.and_then(|n| u32::try_from(n).ok()))
}

/// Takes the word `auto`, if that is what is there.
fn is_auto(p: &mut Params, key: &str) -> Result<bool, Refusal> {
    match p.peek(key) {
        Some(Value::String(word)) if word == "auto" => {
            p.take(key);
            Ok(true)
        }
        Some(other @ Value::String(_)) => {
            Err(wrong_type(&p.name(key), "a number or 'auto'", other))
        }
        _ => Ok(false),
    }
}

impl Hyperparameters {
    /// As the API shows those of a method.
    pub fn object(&self, method: Method) -> Value {
        let or_auto = |value: Option<Value>| value.unwrap_or_else(|| json!("auto"));
        let mut object = json!({
            "n_epochs": or_auto(self.n_epochs.map(Value::from)),
            "batch_size": or_auto(self.batch_size.map(Value::from)),
            "learning_rate_multiplier": or_auto(self.learning_rate_multiplier.map(Value::from)),
        });
        if method == Method::Dpo {
            object["beta"] = or_auto(self.beta.map(Value::from));
        }
        object
    }
}

/// What an upload is for: here only what is trained on.
///
/// # Errors
/// Another purpose.
pub fn purpose(said: &str) -> Result<(), Refusal> {
    match said {
        "fine-tune" => Ok(()),
        "assistants" | "batch" | "vision" | "user_data" | "evals" => Err(unsupported("purpose")),
        other => {
            let message = format!("Invalid value: '{other}'. Supported values are: 'fine-tune'.");
            Err(Refusal::param("purpose", "invalid_value", message))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn read(more: Value) -> Result<JobRequest, Refusal> {
        let mut body = json!({"model": "pocket", "training_file": "file-1"});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        JobRequest::read(Params::parse(body.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn both_ways_to_say_it_are_one() {
        let wanted = json!({"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5});
        let old = read(json!({"hyperparameters": wanted})).unwrap();
        let method = json!({"type": "supervised", "supervised": {"hyperparameters": wanted}});
        let new = read(json!({"method": method})).unwrap();
        assert_eq!(old, new);
        assert_eq!(old.hyperparameters.object(Method::Supervised), wanted);
        assert_eq!(
            read(json!({})).unwrap().hyperparameters,
            Hyperparameters::default()
        );
    }

    #[test]
    fn preferences_have_a_beta() {
        let mut wanted = json!({"n_epochs": 1, "batch_size": "auto", "learning_rate_multiplier": 0.5, "beta": 0.2});
        let read = |wanted: &Value| {
            read(json!({"method": {"type": "dpo", "dpo": {"hyperparameters": wanted}}}))
        };
        let asked = read(&wanted).unwrap();
        assert_eq!(asked.method, Method::Dpo);
        assert_eq!(asked.hyperparameters.object(Method::Dpo), wanted);
        wanted["beta"] = json!("auto");
        assert_eq!(read(&wanted).unwrap().hyperparameters.beta, None);
        wanted["beta"] = json!(3);
        let refusal = read(&wanted).unwrap_err();
        assert_eq!(
            refusal.param.as_deref(),
            Some("method.dpo.hyperparameters.beta")
        );
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (more, param) in [
            (json!({"method": {"type": "reinforcement"}}), "method.type"),
            (
                json!({"method": {"type": "dpo", "supervised": {}}}),
                "method.supervised",
            ),
            (
                json!({"method": {"type": "supervised", "dpo": {}}}),
                "method.dpo",
            ),
            (
                json!({"hyperparameters": {"n_epochs": 0}}),
                "hyperparameters.n_epochs",
            ),
            (
                json!({"hyperparameters": {"n_epochs": "many"}}),
                "hyperparameters.n_epochs",
            ),
            (
                json!({"hyperparameters": {"beta": 1}}),
                "hyperparameters.beta",
            ),
            (json!({"integrations": [{"type": "wandb"}]}), "integrations"),
            (json!({"suffix": "x".repeat(65)}), "suffix"),
            (json!({"seed": -1}), "seed"),
            (json!({"training_file": 7}), "training_file"),
            (
                json!({"hyperparameters": {}, "method": {"type": "supervised"}}),
                "hyperparameters",
            ),
        ] {
            let refusal = read(more.clone()).unwrap_err();
            assert_eq!(refusal.param.as_deref(), Some(param), "{more}: {refusal}");
        }
        assert!(purpose("fine-tune").is_ok());
        assert!(purpose("batch").is_err() && purpose("x").is_err());
    }
}
