//! The threads that share a step's sequences.
//!
//! Each thread takes whole sequences through the whole model: threads meet once a step instead of at every product,
//! and what lies between the products runs in parallel as well. Each has a rayon pool of its own with one thread, so
//! that candle's products inside it stay on it. Gradients are summed in the threads' order: nothing depends on timing.

use crate::batch::{Example, Pack, share_out};
use crate::error::{Error, Result};
use crate::forward::{Way, loss_and_gradients, losses, mix};
use crate::linear::{Dropout, Gradients};
use crate::model::Model;

/// Tokens that go through the model together. Fewer make thin products, more fall out of the caches.
const PACK_TOKENS: usize = 768;

pub(crate) struct Workers {
    pools: Vec<rayon::ThreadPool>,
    /// Layers are computed again in the backward pass.
    recompute: bool,
}

impl Workers {
    /// `threads` 0 means one a core.
    pub(crate) fn new(threads: usize, recompute: bool) -> Result<Self> {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let pool = |i: usize| {
            let builder = rayon::ThreadPoolBuilder::new()
                .num_threads(1)
                .thread_name(move |_| format!("train-{i}"));
            builder
                .build()
                .map_err(|error| Error::Threads(error.to_string()))
        };
        Ok(Workers {
            pools: (0..threads).map(pool).collect::<Result<_>>()?,
            recompute,
        })
    }

    /// Runs `work` on every thread's packs; results are in the threads' order.
    fn each<R: Send>(
        &self,
        packs: &[Vec<Pack>],
        work: impl Fn(usize, &[Pack]) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let work = &work;
        std::thread::scope(|scope| {
            let busy: Vec<_> = self
                .pools
                .iter()
                .zip(packs)
                .enumerate()
                .filter(|(_, (_, packs))| !packs.is_empty())
                .map(|(i, (pool, packs))| scope.spawn(move || pool.install(|| work(i, packs))))
                .collect();
            busy.into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|_| Err(Error::Threads("it panicked".to_string())))
                })
                .collect()
        })
    }

    /// The batch's loss Σ weight·nll / Σ weight and its gradients.
    pub(crate) fn gradients(
        &self,
        model: &Model,
        slots: usize,
        batch: &[&Example],
        dropout: Option<Dropout>,
    ) -> Result<(f64, Gradients)> {
        let weight: f64 = batch.iter().map(|example| example.weight()).sum();
        let scale = (1.0 / weight) as f32;
        let (total, gradients) = self.scaled_gradients(model, slots, batch, scale, dropout)?;
        Ok((total / weight, gradients))
    }

    /// Σ weight·nll, and the gradients of `scale` times it. Weights may be negative.
    pub(crate) fn scaled_gradients(
        &self,
        model: &Model,
        slots: usize,
        batch: &[&Example],
        scale: f32,
        dropout: Option<Dropout>,
    ) -> Result<(f64, Gradients)> {
        let shares = share_out(batch, self.pools.len(), PACK_TOKENS);
        let parts = self.each(&shares, |thread, packs| {
            let mut gradients = Gradients::new(slots);
            let mut total = 0.0;
            for (i, pack) in packs.iter().enumerate() {
                let place = (thread << 32 | i) as u64;
                let dropout = dropout.map(|dropout| Dropout {
                    seed: mix(dropout.seed, place),
                    ..dropout
                });
                let way = Way {
                    scale,
                    dropout,
                    recompute: self.recompute,
                };
                total += loss_and_gradients(model, pack, way, &mut gradients)?;
            }
            Ok((total, gradients))
        })?;
        let mut total = 0.0;
        let mut sum = Gradients::new(slots);
        for (part, gradients) in parts {
            total += part;
            sum.merge(gradients)?;
        }
        Ok((total, sum))
    }

    /// Σ weight·nll / Σ weight over all examples.
    pub(crate) fn loss(&self, model: &Model, examples: &[Example]) -> Result<f64> {
        let weight: f64 = examples.iter().map(Example::weight).sum();
        let losses = self.losses(model, &examples.iter().collect::<Vec<_>>())?;
        Ok(losses.iter().sum::<f64>() / weight)
    }

    /// Σ weight·nll of each example.
    pub(crate) fn losses(&self, model: &Model, examples: &[&Example]) -> Result<Vec<f64>> {
        let shares = share_out(examples, self.pools.len(), PACK_TOKENS);
        let parts = self.each(&shares, |_, packs| {
            let packs = packs.iter().map(|pack| Ok(losses(model, pack)?));
            packs.collect::<Result<Vec<_>>>()
        })?;
        let mut all = vec![0.0; examples.len()];
        for (packs, found) in shares.iter().filter(|share| !share.is_empty()).zip(parts) {
            for (pack, losses) in packs.iter().zip(found) {
                for (place, loss) in pack.places.iter().zip(losses) {
                    all[*place] = loss;
                }
            }
        }
        Ok(all)
    }
}
