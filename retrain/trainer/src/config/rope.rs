//! Rotary position embeddings, as `config.json` describes them.

use serde::Deserialize;
use serde_json::Value;

/// Angles' steps a position, and how long the turned vectors become.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rope {
    /// One for each pair of a head's first dimensions; the others are not turned.
    pub(crate) inverse_frequencies: Vec<f32>,
    pub(crate) magnitude: f32,
}

/// What a model's file says of one.
pub(super) struct Described<'a> {
    /// `rope_parameters`, or `rope_scaling`.
    pub(super) value: Option<&'a Value>,
    /// Where that does not say it.
    pub(super) theta: f64,
    /// Dimensions of a head that are turned.
    pub(super) dims: usize,
    pub(super) max_positions: usize,
    /// Phi-3 has it beside the description, not in it.
    pub(super) original_positions: Option<usize>,
}

/// `rope_type: llama3`, as transformers' `_compute_llama3_parameters`.
#[derive(Deserialize)]
struct Llama3 {
    factor: f64,
    low_freq_factor: f64,
    high_freq_factor: f64,
    original_max_position_embeddings: f64,
}

/// `rope_type: longrope`, as transformers' `_compute_longrope_parameters`.
#[derive(Deserialize)]
struct Long {
    short_factor: Vec<f64>,
    factor: Option<f64>,
    attention_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

impl Rope {
    /// How many of a head's dimensions it turns.
    pub(crate) fn dims(&self) -> usize {
        self.inverse_frequencies.len() * 2
    }

    /// The embedding, and the longest sequence that it is for, if that is shorter than the model's; Err: what is not known.
    pub(super) fn read(of: &Described) -> Result<(Self, Option<usize>), String> {
        let get = |key: &str| of.value.and_then(|value| value.get(key));
        let theta = get("rope_theta").and_then(Value::as_f64);
        let theta = theta.unwrap_or(of.theta) as f32;
        // f32 as in transformers: the angle at position 1,000 already differs otherwise in the fifth digit.
        let plain = |i: usize| 1.0 / theta.powf((2 * i) as f32 / of.dims as f32);
        let mut inverse: Vec<f32> = (0..of.dims / 2).map(plain).collect();
        let mut rope = |change: &dyn Fn(usize, f32) -> f32, magnitude: f64| {
            for (i, frequency) in inverse.iter_mut().enumerate() {
                *frequency = change(i, *frequency);
            }
            Rope {
                inverse_frequencies: std::mem::take(&mut inverse),
                magnitude: magnitude as f32,
            }
        };
        let kind = get("rope_type").or_else(|| get("type"));
        let kind = kind.and_then(Value::as_str).unwrap_or("default");
        let numbers = |error: serde_json::Error| format!("rope_type `{kind}`: {error}");
        match kind {
            "default" => Ok((rope(&|_, frequency| frequency, 1.0), None)),
            "linear" => {
                let factor = get("factor").and_then(Value::as_f64);
                let factor = factor.ok_or("rope_type `linear` without its factor")? as f32;
                Ok((rope(&|_, frequency| frequency / factor, 1.0), None))
            }
            "llama3" => {
                let value = of.value.unwrap_or(&Value::Null);
                let scaling = Llama3::deserialize(value).map_err(numbers)?;
                Ok((rope(&|_, frequency| scaling.apply(frequency), 1.0), None))
            }
            "longrope" => {
                let value = of.value.unwrap_or(&Value::Null);
                let long = Long::deserialize(value).map_err(numbers)?;
                let original = of
                    .original_positions
                    .or(long.original_max_position_embeddings)
                    .ok_or("rope_type `longrope` without original_max_position_embeddings")?;
                if long.short_factor.len() != of.dims / 2 {
                    return Err(format!(
                        "rope_type `longrope` has {} short factors; expected {}",
                        long.short_factor.len(),
                        of.dims / 2
                    ));
                }
                let stretched = of.max_positions as f64 / original as f64;
                let factor = match of.original_positions {
                    Some(_) => stretched,
                    None => long.factor.unwrap_or(stretched),
                };
                let magnitude = long.attention_factor.unwrap_or_else(|| match factor > 1.0 {
                    true => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
                    false => 1.0,
                });
                let short = |i: usize, frequency: f32| {
                    let factor = long.short_factor.get(i).copied().unwrap_or(1.0);
                    (f64::from(frequency) / factor) as f32
                };
                Ok((rope(&short, magnitude), Some(original)))
            }
            kind => Err(format!(
                "rope_type `{kind}` is not supported (default, linear, llama3 and longrope are)"
            )),
        }
    }
}

impl Llama3 {
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
