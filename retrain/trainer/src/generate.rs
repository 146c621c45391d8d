//! Greedy generation with a cache of keys and values: for measuring a model, not for serving it.
//!
//! The running sequences' newest tokens go through the linear maps as rows of one matrix; each attends to its own
//! cache, so that neither prompts nor answers need the same length.

use candle_core::Tensor;

use crate::block::{Block, norm};
use crate::error::{Error, Result};
use crate::forward::{Reader, Rotations, embed, select};
use crate::model::{Layer, Model};
use crate::ops::math::{dot, exp_all, max, tanh};
use crate::ops::slice::{matrix, read};

/// Prompts' tokens that are read together.
const READ_TOKENS: usize = 2048;

/// One layer's keys (turned) and values of one sequence, `[keys, t, dim]` as one growing list for each key head.
#[derive(Default, Clone)]
struct Cache {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

/// A greedy answer, and how sure it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    pub tokens: Vec<u32>,
    /// How far the chosen token's logit was ahead of the next best's, where it was least, the end included: another
    /// implementation with rounding errors below that says the same.
    pub lead: f32,
}

struct Running {
    /// Which prompt it answers.
    index: usize,
    length: usize,
    last: Next,
    layers: Vec<Cache>,
}

/// The likeliest token, and how far its logit is ahead of the next best's.
#[derive(Clone, Copy)]
struct Next {
    token: u32,
    lead: f32,
}

impl Model {
    /// Answers each prompt with the likeliest token at a time, until one of `eos` (which is left out of the answer),
    /// `max_new` tokens, or the model's longest sequence.
    ///
    /// Errors on an empty prompt, one longer than the model takes, or a token outside the vocabulary.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        max_new: usize,
        eos: &[u32],
    ) -> Result<Vec<Vec<u32>>> {
        let said = self.say(prompts, max_new, eos)?;
        Ok(said.into_iter().map(|said| said.tokens).collect())
    }

    /// The same, and how sure each answer is.
    pub fn say(&self, prompts: &[Vec<u32>], max_new: usize, eos: &[u32]) -> Result<Vec<Said>> {
        self.check_prompts(prompts)?;
        let nothing = Said {
            tokens: Vec::new(),
            lead: f32::INFINITY,
        };
        let mut answers = vec![nothing; prompts.len()];
        if max_new == 0 {
            return Ok(answers);
        }
        let mut running = Vec::new();
        let mut start = 0;
        while start < prompts.len() {
            let mut end = start + 1;
            let mut tokens = prompts[start].len();
            while end < prompts.len() && tokens + prompts[end].len() <= READ_TOKENS {
                tokens += prompts[end].len();
                end += 1;
            }
            running.extend(self.read_prompts(start, &prompts[start..end])?);
            start = end;
        }
        loop {
            running.retain(|sequence: &Running| {
                let answer = &mut answers[sequence.index];
                answer.lead = answer.lead.min(sequence.last.lead);
                if eos.contains(&sequence.last.token) {
                    return false;
                }
                answer.tokens.push(sequence.last.token);
                answer.tokens.len() < max_new
                    && sequence.length < self.config.max_position_embeddings
            });
            if running.is_empty() {
                return Ok(answers);
            }
            self.step(&mut running)?;
        }
    }

    fn check_prompts(&self, prompts: &[Vec<u32>]) -> Result<()> {
        let (longest, size) = (self.config.max_position_embeddings, self.config.vocab_size);
        for (index, prompt) in prompts.iter().enumerate() {
            let what = if prompt.is_empty() {
                "it is empty; give at least one token".to_string()
            } else if prompt.len() > longest {
                format!("{} tokens; the model takes at most {longest}", prompt.len())
            } else if let Some(token) = prompt.iter().find(|&&token| token as usize >= size) {
                format!("token {token} is outside the vocabulary of {size}")
            } else {
                continue;
            };
            return Err(Error::Example {
                set: "prompt",
                index,
                what,
            });
        }
        Ok(())
    }

    fn read_prompts(&self, first: usize, prompts: &[Vec<u32>]) -> Result<Vec<Running>> {
        let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
        let reader = Reader::new(self, &lengths, None);
        let mut x = embed(self, &prompts.concat())?;
        let mut caches = vec![Vec::with_capacity(self.layers.len()); prompts.len()];
        for n in 0..self.layers.len() {
            let (y, kept) = reader.layer(n, x)?;
            x = y;
            for (sequence, cache) in kept.attended.iter().zip(&mut caches) {
                let heads = |x: &Tensor| -> Result<Vec<Vec<f32>>> {
                    let x = read(x)?;
                    Ok(x.chunks_exact(x.len() / self.config.num_key_value_heads)
                        .map(<[f32]>::to_vec)
                        .collect())
                };
                cache.push(Cache {
                    keys: heads(&sequence.k)?,
                    values: heads(&sequence.v)?,
                });
            }
        }
        let ends: Vec<usize> = lengths
            .iter()
            .scan(0, |end, length| {
                *end += length;
                Some(*end - 1)
            })
            .collect();
        let next = self.likeliest(&select(&x, &ends)?)?;
        let running = caches.into_iter().zip(lengths).zip(next).enumerate();
        Ok(running
            .map(|(i, ((layers, length), last))| Running {
                index: first + i,
                length,
                last,
                layers,
            })
            .collect())
    }

    fn step(&self, running: &mut [Running]) -> Result<()> {
        let tokens: Vec<u32> = running.iter().map(|sequence| sequence.last.token).collect();
        let rotations: Vec<Rotations> = running
            .iter()
            .map(|sequence| Rotations::new(self, sequence.length, 1))
            .collect();
        let mut x = embed(self, &tokens)?;
        for (n, layer) in self.layers.iter().enumerate() {
            let block = Block {
                config: &self.config,
                layer,
                dropout: |_| None,
            };
            let attend = |qkv: [&Tensor; 3]| {
                let mut caches: Vec<&mut Cache> = Vec::with_capacity(running.len());
                caches.extend(running.iter_mut().map(|sequence| &mut sequence.layers[n]));
                Ok((self.attend(layer, &mut caches, &rotations, qkv)?, ()))
            };
            x = block.forward(x, attend)?.0;
        }
        let next = self.likeliest(&x)?;
        for (sequence, next) in running.iter_mut().zip(next) {
            sequence.last = next;
            sequence.length += 1;
        }
        Ok(())
    }

    /// One new row a sequence, which joins the sequence's cache and attends to what it sees of it.
    fn attend(
        &self,
        layer: &Layer,
        caches: &mut [&mut Cache],
        rotations: &[Rotations],
        qkv: [&Tensor; 3],
    ) -> candle_core::Result<Tensor> {
        let of = self.config.attention(layer.kind);
        let dim = of.dim;
        let [q, k, v] = qkv;
        let (q, k, v) = (read(q)?, read(k)?, read(v)?);
        let (width, key_width) = (of.queries * dim, of.keys * dim);
        let mut out = vec![0.0; caches.len() * width];
        let mut turned = vec![0.0; dim];
        let rows = caches
            .iter_mut()
            .zip(rotations)
            .zip(q.chunks_exact(width))
            .zip(out.chunks_exact_mut(width));
        for ((((cache, rotations), q), out), (k, v)) in
            rows.zip(k.chunks_exact(key_width).zip(v.chunks_exact(key_width)))
        {
            let rotation = rotations.of(layer);
            for (head, (k, v)) in k.chunks_exact(dim).zip(v.chunks_exact(dim)).enumerate() {
                rotation.turn(k, &mut turned, 0);
                cache.keys[head].extend_from_slice(&turned);
                cache.values[head].extend_from_slice(v);
            }
            for (head, (q, out)) in q
                .chunks_exact(dim)
                .zip(out.chunks_exact_mut(dim))
                .enumerate()
            {
                let shared = head * of.keys / of.queries;
                let first = of.first(cache.keys[shared].len() / dim - 1) * dim;
                rotation.turn(q, &mut turned, 0);
                let mut p: Vec<f32> = cache.keys[shared][first..]
                    .chunks_exact(dim)
                    .map(|k| dot(&turned, k))
                    .collect();
                of.score(&mut p);
                let top = max(&p);
                let mass = exp_all(&mut p, top);
                for (p, v) in p
                    .iter()
                    .zip(cache.values[shared][first..].chunks_exact(dim))
                {
                    out.iter_mut()
                        .zip(v)
                        .for_each(|(out, v)| *out += p / mass * v);
                }
            }
        }
        matrix(out, caches.len(), width)
    }

    /// The likeliest next token after each row; the first of equals.
    fn likeliest(&self, x: &Tensor) -> Result<Vec<Next>> {
        let (y, _) = norm(&self.config, x, &self.norm)?;
        let weight = self.head.as_ref().unwrap_or(&self.embedding);
        let logits = y.matmul(&weight.tensor.t()?)?;
        let logits = read(&logits)?;
        let best = |row: &[f32]| {
            let (mut best, mut second) = (0, f32::NEG_INFINITY);
            for (i, value) in row.iter().enumerate().skip(1) {
                if *value > row[best] {
                    second = row[best];
                    best = i;
                } else {
                    second = second.max(*value);
                }
            }
            Next {
                token: best as u32,
                lead: match self.config.logit_cap {
                    Some(cap) => cap * (tanh(row[best] / cap) - tanh(second / cap)),
                    None => row[best] - second,
                },
            }
        };
        Ok(logits
            .chunks_exact(self.config.vocab_size)
            .map(best)
            .collect())
    }
}
