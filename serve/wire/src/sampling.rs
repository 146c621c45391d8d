//! OpenAI's sampling parameters: what they are, and how they are read.

use serde_json::Map;

use crate::params::Params;
use crate::refusal::Refusal;

/// How an answer's tokens are to be chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 to 2; 0 is greedy and exact.
    pub temperature: f64,
    /// 0 to 1: the smallest set of tokens that has this probability.
    pub top_p: f64,
    /// -2 to 2, once for each token that the answer has already.
    pub presence_penalty: f32,
    /// -2 to 2, for each time that the answer has the token already.
    pub frequency_penalty: f32,
    /// The same seed and parameters give the same answer.
    pub seed: Option<i64>,
    /// -100 to 100, added to these tokens' logits.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Sampling {
    /// The likeliest token each time.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: None,
        logit_bias: Vec::new(),
    };

    pub(crate) fn read(p: &mut Params) -> Result<Self, Refusal> {
        Ok(Self {
            temperature: p.decimal("temperature", 0.0, 2.0)?.unwrap_or(1.0),
            top_p: p.decimal("top_p", 0.0, 1.0)?.unwrap_or(1.0),
            presence_penalty: p.decimal("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0) as f32,
            frequency_penalty: p.decimal("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0) as f32,
            seed: p.integer("seed", i64::MIN, i64::MAX)?,
            logit_bias: logit_bias(p)?,
        })
    }
}

/// Token ids and what is added to their logits, -100 to 100.
fn logit_bias(p: &mut Params) -> Result<Vec<(u32, f32)>, Refusal> {
    let Some(biases) = p.object("logit_bias")? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::with_capacity(biases.len());
    for (key, value) in biases {
        let token: u32 = key.parse().map_err(|_| {
            let message = format!("Invalid 'logit_bias': '{key}' is no token id.");
            Refusal::param("logit_bias", "invalid_value", message)
        })?;
        let mut one = Params::inner(Map::from_iter([(key.clone(), value)]), "logit_bias");
        let bias = one.decimal(&key, -100.0, 100.0)?;
        found.push((token, bias.unwrap_or(0.0) as f32));
    }
    Ok(found)
}
