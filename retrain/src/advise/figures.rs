//! What a task's logs say of the need to train, counted.

use std::collections::{HashMap, HashSet};

use retune_ledger::{Exchange, Feedback};
use retune_task::{PromptKind, Task};

use crate::dataset::asked;
use crate::{Encoder, Error};

/// Exchanges whose tokens are counted again, the newest.
const COUNTED: usize = 2_000;
/// Exchanges whose median tells which prompt they had.
const BLOCK: usize = 20;
/// Tokens by which two prompts differ at least, if anybody is to notice.
const APART: i64 = 2;
/// Conversations in which a word has to stand before it is known.
const KNOWN: usize = 3;

/// All that advice is given by.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Figures {
    /// Whose answers are looked at: what serves now.
    pub(crate) champion: String,
    /// It is the base with the full prompt.
    pub(crate) is_baseline: bool,
    /// Examples that a run could learn from.
    pub(crate) usable: u64,
    /// Its answers that were checked for their format, and those that break it.
    pub(crate) checked: u64,
    pub(crate) broken: u64,
    /// Its answers that somebody rated or corrected, and those that were rated low or corrected.
    pub(crate) rated: u64,
    pub(crate) discontent: u64,
    /// Corrections of whosever answers, and those with something that was not to be known.
    pub(crate) corrections: u64,
    pub(crate) news: u64,
    /// Share of an exchange's tokens by which the prompt for adapters is shorter.
    pub(crate) saving: Option<f64>,
    /// Of the full prompt, in 90 days.
    pub(crate) prompt_changes: Option<u64>,
}

/// All but the tokens, and which exchanges went wrong: those of the champion that break the format, were rated low or corrected.
pub(super) fn count<'a>(
    task: &Task,
    champion: &str,
    exchanges: &'a [Exchange],
    feedback: &[Feedback],
) -> (Figures, HashSet<&'a str>) {
    let mut figures = Figures {
        champion: champion.to_owned(),
        is_baseline: champion == retune_task::ModelName::of(&task.name, None).to_string(),
        ..Figures::default()
    };
    let said = Said::gather(feedback);
    let mut failed = HashSet::new();
    let answered: Vec<&Exchange> = exchanges
        .iter()
        .filter(|exchange| asked(task, exchange).is_ok())
        .collect();
    for &exchange in &answered {
        if exchange.adapter.as_deref() != Some(champion) {
            continue;
        }
        let is_broken = exchange.format_valid == Some(false);
        figures.checked += u64::from(exchange.format_valid.is_some());
        figures.broken += u64::from(is_broken);
        let content = said.content(&exchange.request_id, task.retrain.rating_at_least);
        figures.rated += u64::from(content.is_some());
        figures.discontent += u64::from(content == Some(false));
        if is_broken || content == Some(false) {
            failed.insert(exchange.request_id.as_str());
        }
    }
    let known = known_words(&answered, &said);
    for exchange in &answered {
        let Some(correction) = said.corrections.get(exchange.request_id.as_str()) else {
            continue;
        };
        // An expert's example corrects nothing.
        if exchange.answer.as_deref() == Some(*correction) {
            continue;
        }
        figures.corrections += 1;
        figures.news += u64::from(has_news(task, exchange, correction, &known));
    }
    (figures, failed)
}

/// The newest word on each exchange.
struct Said<'a> {
    corrections: HashMap<&'a str, &'a str>,
    ratings: HashMap<&'a str, u8>,
}

impl<'a> Said<'a> {
    fn gather(feedback: &'a [Feedback]) -> Self {
        let mut oldest_first: Vec<&Feedback> = feedback.iter().collect();
        oldest_first.sort_by_key(|said| (said.ts, &said.feedback_id));
        let mut all = Self {
            corrections: HashMap::new(),
            ratings: HashMap::new(),
        };
        for said in oldest_first {
            let id = said.request_id.as_str();
            if let Some(correction) = &said.correction {
                all.corrections.insert(id, correction);
            }
            if let Some(rating) = said.rating {
                all.ratings.insert(id, rating);
            }
        }
        all
    }

    /// None where nobody said anything.
    fn content(&self, id: &str, rating_at_least: u8) -> Option<bool> {
        match (self.corrections.contains_key(id), self.ratings.get(id)) {
            (true, _) => Some(false),
            (false, rating) => rating.map(|rating| *rating >= rating_at_least),
        }
    }
}

/// Words of four letters and more, and whatever has a digit: what facts are made of.
fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| word.chars().count() >= 4 || word.chars().any(|c| c.is_ascii_digit()))
        .map(str::to_lowercase)
}

/// Words that stand in the right answers to several conversations: behaviour, which a training teaches.
fn known_words(answered: &[&Exchange], said: &Said<'_>) -> HashSet<String> {
    let mut in_how_many: HashMap<String, HashSet<&str>> = HashMap::new();
    for exchange in answered {
        let id = exchange.request_id.as_str();
        let right = said.corrections.get(id).copied();
        for word in words(right.or(exchange.answer.as_deref()).unwrap_or_default()) {
            in_how_many
                .entry(word)
                .or_default()
                .insert(&exchange.conversation);
        }
    }
    let often = in_how_many.into_iter().filter(|(_, of)| of.len() >= KNOWN);
    often.map(|(word, _)| word).collect()
}

/// Whether a correction says what neither the prompt nor the conversation does, and no several other answers.
fn has_news(task: &Task, exchange: &Exchange, correction: &str, known: &HashSet<String>) -> bool {
    let messages = exchange.messages.iter().flatten();
    let mut told: HashSet<String> = messages.flat_map(|m| words(&m.content)).collect();
    told.extend(words(&task.prompt));
    words(correction).any(|word| !told.contains(&word) && !known.contains(&word))
}

/// What learning the prompt would save, and how often it was another one.
pub(super) fn tokens(
    figures: &mut Figures,
    task: &Task,
    encoder: &Encoder,
    exchanges: &[Exchange],
) -> Result<(), Error> {
    let baseline = retune_task::ModelName::of(&task.name, None).to_string();
    let mut by_time: Vec<&Exchange> = exchanges
        .iter()
        .filter(|exchange| asked(task, exchange).is_ok())
        .collect();
    by_time.sort_by(|a, b| (a.ts, &a.replica, a.seq).cmp(&(b.ts, &b.replica, b.seq)));
    let newest = by_time.last().map(|exchange| exchange.ts);
    let (mut saved, mut all) = (0, 0);
    let mut off: Vec<i64> = Vec::new();
    for exchange in by_time.iter().rev().take(COUNTED) {
        let messages = asked(task, exchange).unwrap_or_default();
        let length = |prompt| -> Result<Option<u64>, Error> {
            let tokens = encoder.conversation(&task.messages(prompt, messages), 0)?;
            Ok(tokens.map(|tokens| tokens.len() as u64))
        };
        let (Some(full), Some(short)) = (length(PromptKind::Full)?, length(PromptKind::Adapter)?)
        else {
            continue;
        };
        saved += full.saturating_sub(short);
        all += full + exchange.completion_tokens;
        let is_recent = newest.is_some_and(|newest| (newest - exchange.ts).num_days() < 90);
        // What was imported was not counted.
        let is_counted = exchange.prompt_tokens > 0;
        if is_recent && is_counted && exchange.adapter.as_ref() == Some(&baseline) {
            off.push(exchange.prompt_tokens as i64 - full as i64);
        }
    }
    figures.saving = (all > 0).then(|| saved as f64 / all as f64);
    figures.prompt_changes = changes(&off);
    Ok(())
}

/// How often the prompt was another, from how many tokens more each exchange had than it would have with today's. The median of a block
/// tells its prompt: withheld words, and tools, add a few tokens here and there.
fn changes(off: &[i64]) -> Option<u64> {
    if off.len() < 2 * BLOCK {
        return None;
    }
    let median = |block: &[i64]| {
        let mut block = block.to_vec();
        block.sort_unstable();
        block[block.len() / 2]
    };
    let medians: Vec<i64> = off.chunks_exact(BLOCK).map(median).collect();
    let mut last = medians[0];
    let mut changes = 0;
    for median in medians {
        if (median - last).abs() > APART {
            changes += 1;
            last = median;
        }
    }
    Some(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_that_grew_twice_changed_twice() {
        let off: Vec<i64> = [vec![0; 60], vec![12; 60], vec![30; 60]].concat();
        assert_eq!(changes(&off), Some(2));
        let mut noisy = vec![0; 200];
        for n in (0..200).step_by(7) {
            noisy[n] = 40;
        }
        assert_eq!(changes(&noisy), Some(0));
        assert_eq!(changes(&[0; 39]), None);
    }
}
