//! Probes of a fresh adapter: what it answers here, where it was trained, a server has to hear from it before anybody else does.
//!
//! The trainer's own arithmetic answers, so that a probe shows two things of a server at once: that the adapter is applied, and that
//! the base, the chat template and the tokens are those that it was trained with. Only answers that rounding errors cannot change are kept.

use std::path::Path;

use retune_ledger::Probe;
use retune_task::{PROBE_TOKENS, Task};
use retune_trainer::{LoraAdapter, Model, Said};

use crate::{Encoder, Error};

/// How far the chosen token has to be ahead of the next best, in logits. Two implementations in f32 differ by less than a hundredth
/// of it.
const LEAD: f32 = 0.1;

/// The adapter's answers to the task's probes, those first that the base does not give.
pub(crate) async fn taken(
    base: &Path,
    adapter: &LoraAdapter,
    encoder: &Encoder,
    task: &Task,
) -> Result<Vec<Probe>, Error> {
    let end = encoder.end_of_turn()?;
    if end.len() != 1 {
        // No single token ends an answer: what an engine makes of that is its own.
        return Ok(Vec::new());
    }
    let (mut conversations, mut prompts) = (Vec::new(), Vec::new());
    for messages in task.probes() {
        if let Some(prompt) = encoder.conversation(&messages, PROBE_TOKENS)? {
            conversations.push(messages);
            prompts.push(prompt);
        }
    }
    let (folder, adapter) = (base.to_owned(), adapter.clone());
    let said = tokio::task::spawn_blocking(move || -> Result<_, Error> {
        // One after the other: each is a whole copy of the weights.
        let with =
            Model::load_frozen(&folder, Some(&adapter))?.say(&prompts, PROBE_TOKENS, &end)?;
        let without = Model::load_frozen(&folder, None)?.say(&prompts, PROBE_TOKENS, &end)?;
        Ok(with.into_iter().zip(without).collect::<Vec<_>>())
    });
    let said: Vec<(Said, Said)> = said.await.map_err(|_| Error::Stopped)??;
    let mut probes = Vec::new();
    for (messages, (with, without)) in conversations.into_iter().zip(said) {
        if with.lead < LEAD {
            continue;
        }
        if let Some(answer) = encoder.text(&with.tokens)? {
            probes.push(Probe {
                messages,
                max_tokens: PROBE_TOKENS,
                answer,
                differs: without.lead >= LEAD && with.tokens != without.tokens,
            });
        }
    }
    probes.sort_by_key(|probe| !probe.differs);
    Ok(probes)
}
