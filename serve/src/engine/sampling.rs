//! How the next token is chosen: OpenAI's parameters, applied by Retune itself.
//!
//! mistralrs asks a logits processor before it samples. Ours chooses the token, reports it, and hands back logits that leave no
//! other choice. So the tokens arrive exactly as they are made, a seed is possible (the engine has none per request), penalties
//! count the answer and not the prompt, and an answer nobody waits for any more is ended by its end-of-turn token: dropping the
//! engine's response channel would fail every request that runs in the same batch.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Tensor};
use mistralrs_core::CustomLogitsProcessor;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use retune_wire::Sampling;
use tokio::sync::mpsc::UnboundedSender;

use super::vocabulary::Allowed;

/// A token that was chosen.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) token: u32,
    /// Its log-probability and the likeliest tokens with theirs, if wanted.
    pub(crate) logprobs: Option<(f32, Vec<(u32, f32)>)>,
}

/// The logits processor of one request.
pub(crate) struct Chooser {
    pub(crate) prompt_tokens: usize,
    pub(crate) logprobs: Option<usize>,
    /// A failure ends the answer.
    pub(crate) tokens: UnboundedSender<Result<Chosen, String>>,
    /// Set when the answer is not wanted any more.
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) end_of_turn: u32,
    pub(crate) sampling: Sampling,
    /// What changes from token to token.
    pub(crate) state: Mutex<State>,
    #[cfg(test)]
    pub(crate) fault: Arc<Fault>,
}

/// A panic for tests, on the engine's thread, in the middle of an answer.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Fault(std::sync::atomic::AtomicUsize);

#[cfg(test)]
impl Fault {
    /// The next answer is broken off after so many tokens.
    pub(crate) fn after(&self, tokens: usize) {
        self.0.store(tokens + 1, Ordering::SeqCst);
    }

    fn strike(&self) {
        let left = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        assert_ne!(left, Ok(1), "a fault that a test asked for");
    }
}

pub(crate) struct State {
    rng: StdRng,
    allowed: Option<Allowed>,
}

impl State {
    pub(crate) fn new(sampling: &Sampling, allowed: Option<Allowed>) -> Self {
        Self {
            rng: match sampling.seed {
                Some(seed) => StdRng::seed_from_u64(seed.cast_unsigned()),
                None => StdRng::from_rng(&mut rand::rng()),
            },
            allowed,
        }
    }
}

impl CustomLogitsProcessor for Chooser {
    /// `logits`: `[vocabulary]`; `context`: prompt and answer so far.
    fn apply(&self, logits: &Tensor, context: &[u32]) -> candle_core::Result<Tensor> {
        let only = |token: u32| {
            let mut chosen = vec![0f32; logits.elem_count()];
            if let Some(slot) = chosen.get_mut(token as usize) {
                *slot = 1.0;
            }
            Tensor::from_vec(chosen, logits.shape(), logits.device())
        };
        #[cfg(test)]
        self.fault.strike();
        if self.stop.load(Ordering::Relaxed) {
            return only(self.end_of_turn);
        }
        let values: Vec<f32> = logits.to_dtype(DType::F32)?.to_vec1()?;
        let answer = context.get(self.prompt_tokens..).unwrap_or_default();
        let chosen = self.next(values, answer);
        let token = match &chosen {
            Ok(chosen) => chosen.token,
            Err(_) => {
                self.stop.store(true, Ordering::Relaxed);
                self.end_of_turn
            }
        };
        // Nobody listens once the answer's reader is gone; the sequence ends by itself then.
        let _ = self.tokens.send(chosen);
        only(token)
    }
}

impl Chooser {
    fn next(&self, mut logits: Vec<f32>, answer: &[u32]) -> Result<Chosen, String> {
        let own = self.logprobs.map(|top| (logits.clone(), top));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { rng, allowed } = &mut *state;
        if let Some(allowed) = allowed {
            allowed.mask(&mut logits)?;
        }
        let token = choose(&mut logits, answer, &self.sampling, rng);
        if let Some(allowed) = allowed {
            allowed.take(token)?;
        }
        let logprobs = own.map(|(own, top)| logprobs(&own, token, top));
        Ok(Chosen { token, logprobs })
    }
}

/// `token`'s log-probability, and the `top` likeliest tokens with theirs, best first.
fn logprobs(logits: &[f32], token: u32, top: usize) -> (f32, Vec<(u32, f32)>) {
    let real = || {
        (0u32..)
            .zip(logits.iter().copied())
            .filter(|(_, v)| !v.is_nan())
    };
    let maximum = real().map(|(_, v)| v).fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = real().map(|(_, v)| f64::from(v - maximum).exp()).sum();
    let of = |logit: f32| (f64::from(logit - maximum) - sum.ln()) as f32;
    let mut best: Vec<(u32, f32)> = real().collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if top < best.len() && top > 0 {
        best.select_nth_unstable_by(top, order);
    }
    best.truncate(top);
    best.sort_by(order);
    let chosen = logits
        .get(token as usize)
        .copied()
        .unwrap_or(f32::NEG_INFINITY);
    let told = best.into_iter().map(|(token, logit)| (token, of(logit)));
    (of(chosen), told.collect())
}

/// The next token's index in `logits`, given the answer so far. Changes `logits`.
pub(crate) fn choose(
    logits: &mut [f32],
    answer: &[u32],
    sampling: &Sampling,
    rng: &mut impl Rng,
) -> u32 {
    penalise(logits, answer, sampling);
    for &(token, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    if sampling.temperature <= 0.0 {
        return likeliest(logits);
    }
    let maximum = logits
        .iter()
        .copied()
        .filter(|v| !v.is_nan())
        .fold(f32::NEG_INFINITY, f32::max);
    let mut candidates: Vec<(u32, f64)> = (0u32..)
        .zip(logits.iter())
        .map(|(token, &v)| (token, (f64::from(v - maximum) / sampling.temperature).exp()))
        .filter(|(_, weight)| *weight > 0.0)
        .collect();
    let mut total: f64 = candidates.iter().map(|(_, w)| w).sum();
    if sampling.top_p < 1.0 {
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut kept = 0.0;
        let wanted = sampling.top_p * total;
        let count = candidates.iter().take_while(|(_, w)| {
            let more = kept < wanted;
            kept += w;
            more
        });
        let count = count.count().max(1);
        candidates.truncate(count);
        total = candidates.iter().map(|(_, w)| w).sum();
    }
    let mut at = rng.random::<f64>() * total;
    for (token, weight) in &candidates {
        at -= weight;
        if at < 0.0 {
            return *token;
        }
    }
    candidates
        .last()
        .map_or_else(|| likeliest(logits), |(token, _)| *token)
}

/// `logit -= count * frequency_penalty + (count > 0) * presence_penalty`, as OpenAI's documentation has it.
fn penalise(logits: &mut [f32], answer: &[u32], sampling: &Sampling) {
    if sampling.presence_penalty == 0.0 && sampling.frequency_penalty == 0.0 {
        return;
    }
    let mut counts: HashMap<u32, f32> = HashMap::new();
    for token in answer {
        *counts.entry(*token).or_default() += 1.0;
    }
    for (token, count) in counts {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit -= count * sampling.frequency_penalty + sampling.presence_penalty;
        }
    }
}

/// The first of the largest values; NaN is never chosen.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &value) in (0u32..).zip(logits) {
        if value > best.1 {
            best = (token, value);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(logits: &[f32], sampling: Sampling, draws: usize) -> Vec<u32> {
        let mut rng = State::new(&sampling, None).rng;
        (0..draws)
            .map(|_| choose(&mut logits.to_vec(), &[], &sampling, &mut rng))
            .collect()
    }

    #[test]
    fn greedy_takes_the_first_maximum_and_never_nan() {
        assert_eq!(drawn(&[1.0, 3.0, f32::NAN, 3.0], Sampling::GREEDY, 1), [1]);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let sampling = Sampling {
            temperature: 0.5,
            seed: Some(7),
            ..Sampling::GREEDY
        };
        let draws = drawn(&[0.0, 0.5, f32::NEG_INFINITY], sampling, 20_000);
        // softmax of [0, 1]: 0.7311 for the second.
        let share = draws.iter().filter(|t| **t == 1).count() as f64 / 20_000.0;
        assert!((share - 0.7311).abs() < 0.015, "{share}");
        assert!(!draws.contains(&2));
    }

    #[test]
    fn a_seed_repeats_the_draws_and_another_does_not() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 * 0.1).collect();
        let with = |seed| Sampling {
            temperature: 1.0,
            seed: Some(seed),
            ..Sampling::GREEDY
        };
        assert_eq!(drawn(&logits, with(-3), 40), drawn(&logits, with(-3), 40));
        assert_ne!(drawn(&logits, with(-3), 40), drawn(&logits, with(4), 40));
    }

    #[test]
    fn top_p_keeps_the_smallest_set() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let with = |top_p| Sampling {
            temperature: 1.0,
            top_p,
            seed: Some(1),
            ..Sampling::GREEDY
        };
        assert!(drawn(&logits, with(0.0), 200).iter().all(|t| *t == 0));
        assert!(drawn(&logits, with(0.6), 200).iter().all(|t| *t < 2));
        assert!(drawn(&logits, with(0.6), 200).contains(&1));
        assert!(drawn(&logits, with(1.0), 200).contains(&2));
    }

    #[test]
    fn a_bias_forbids_and_forces() {
        let with = |bias: f32| Sampling {
            logit_bias: vec![(1, bias)],
            ..Sampling::GREEDY
        };
        assert_eq!(drawn(&[1.0, 3.0, 2.0], with(-100.0), 1), [2]);
        assert_eq!(drawn(&[1.0, 0.0, 2.0], with(100.0), 1), [1]);
    }

    #[test]
    fn logprobs_are_of_the_softmax_best_first() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), f32::NAN, 0.2f32.ln()];
        let (chosen, top) = logprobs(&logits, 3, 2);
        assert!((chosen - 0.2f32.ln()).abs() < 1e-6);
        assert_eq!(top.iter().map(|(t, _)| *t).collect::<Vec<_>>(), [0, 1]);
        assert!((top[1].1 - 0.3f32.ln()).abs() < 1e-6);
        assert!(logprobs(&logits, 0, 0).1.is_empty());
        assert_eq!(logprobs(&logits, 0, 20).1.len(), 3);
    }

    #[test]
    fn penalties_count_the_answer() {
        let sampling = Sampling {
            frequency_penalty: 0.5,
            presence_penalty: 0.2,
            ..Sampling::GREEDY
        };
        let mut logits = vec![2.0, 1.0, 1.5];
        penalise(&mut logits, &[0, 0, 2], &sampling);
        assert_eq!(logits, [2.0 - 1.2, 1.0, 1.5 - 0.7]);
    }
}
