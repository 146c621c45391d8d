//! From what people said to pairs of answers to one prompt, of which one is known to be better.
//!
//! Two things say so: a correction is better than the answer that it corrects, and an answer that raters preferred (`preferred_over`) is
//! better than the other. Of each rater the newest word counts, and more raters must prefer the one than the other. Both answers must
//! have been given to the very same messages: else it may be the question that was liked. What breaks the task's format is never the
//! better one. Pure, and independent of the order of what comes in; whatever is left out is counted with its reason.

use std::collections::{BTreeMap, HashMap, HashSet};

use retune_ledger::{Exchange, Feedback};
use retune_task::{ChatMessage, Check, Redaction, Split, Task};
use serde::{Deserialize, Serialize};

use crate::curate::leaks;
use crate::dataset::{Row, Said, asked, split, text};

/// Two answers to a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The exchanges that the answers are of; a correction is nobody's.
    pub request_ids: Vec<String>,
    pub conversation: String,
    pub split: Split,
    /// As the app sent them.
    pub messages: Vec<ChatMessage>,
    pub preferred: String,
    pub other: String,
}

/// A task's pairs, oldest first within each split.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Preferences {
    pub train: Vec<Pair>,
    pub development: Vec<Pair>,
    pub held_out: Vec<Pair>,
    pub counts: PreferenceCounts,
}

/// What became of everything that says which answer is better.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreferenceCounts {
    pub kept_corrections: u64,
    pub kept_preferences: u64,
    /// By reason.
    pub dropped: BTreeMap<String, u64>,
}

impl Preferences {
    /// Conversations that the training sees.
    pub(crate) fn seen_conversations(&self) -> impl Iterator<Item = &str> {
        let seen = self.train.iter().chain(&self.development);
        seen.map(|pair| pair.conversation.as_str())
    }

    /// Leaves out what holds personal data of a kind that no example may hold.
    pub(crate) fn leave_out_personal(&mut self, personal: &Redaction) {
        let mut count = 0;
        for pairs in [&mut self.train, &mut self.development, &mut self.held_out] {
            let before = pairs.len();
            pairs.retain(|pair| {
                let texts = pair.messages.iter().map(|said| &said.content);
                let mut texts = texts.chain([&pair.preferred, &pair.other]);
                texts.all(|text| personal.find(text).is_empty())
            });
            count += (before - pairs.len()) as u64;
        }
        if count > 0 {
            let what = "with personal data left in it";
            self.counts.dropped.insert(what.to_owned(), count);
        }
    }

    /// Leaves out what is trained on though a row that is held out asks nearly the same.
    pub(crate) fn leave_out_near(&mut self, held_out: &[Row]) {
        let mut near = 0;
        for pairs in [&mut self.train, &mut self.development] {
            let prompts: Vec<&[ChatMessage]> =
                pairs.iter().map(|pair| &pair.messages[..]).collect();
            let leaks = leaks(&prompts, held_out);
            near += leaks.iter().flatten().count() as u64;
            let mut leaks = leaks.into_iter();
            pairs.retain(|_| leaks.next().flatten().is_none());
        }
        if near > 0 {
            let what = "nearly the same as a row that is held out";
            self.counts.dropped.insert(what.to_owned(), near);
        }
    }

    fn add(&mut self, pair: Pair) {
        match pair.split {
            Split::Train => self.train.push(pair),
            Split::Development => self.development.push(pair),
            Split::HeldOut => self.held_out.push(pair),
        }
    }
}

/// Why a pair is none.
#[derive(Clone, Copy)]
enum Dropped {
    Unusable,
    SameAnswer,
    FormatInvalid,
    OtherPrompt,
    Disagreed,
    SameText,
}

impl Dropped {
    fn reason(self) -> &'static str {
        match self {
            Self::Unusable => {
                "no answer of a user's exchange of this task, or kept without its text"
            }
            Self::SameAnswer => "both answers are the same",
            Self::FormatInvalid => "the better one breaks the format",
            Self::OtherPrompt => "the answers are to different messages",
            Self::Disagreed => "raters disagree",
            Self::SameText => "a newer pair with the same texts is kept in its place",
        }
    }
}

/// The pairs of `task` from exchanges and feedback in any order.
pub fn build(task: &Task, exchanges: &[Exchange], feedback: &[Feedback]) -> Preferences {
    let usable = exchanges.iter().filter(|e| asked(task, e).is_ok());
    let usable: HashMap<&str, &Exchange> = usable.map(|e| (e.request_id.as_str(), e)).collect();
    let mut found = Preferences::default();
    let mut pairs = Vec::new();
    let mut drop = |reason: Dropped| {
        let dropped = &mut found.counts.dropped;
        *dropped.entry(reason.reason().to_owned()).or_default() += 1;
    };
    let said = Said::gather(task, feedback);
    for (id, correction) in &said.corrections {
        match corrected(task, usable.get(id).copied(), correction) {
            Ok(pair) => pairs.push((usable.get(id).map(|e| e.ts), true, pair)),
            Err(reason) => drop(reason),
        }
    }
    for (ids, net) in votes(feedback) {
        let (better, other) = match net {
            1.. => ids,
            ..=-1 => (ids.1, ids.0),
            0 => {
                drop(Dropped::Disagreed);
                continue;
            }
        };
        let both = usable.get(better).zip(usable.get(other));
        match both
            .ok_or(Dropped::Unusable)
            .and_then(|(better, other)| preferred(task, better, other))
        {
            Ok(pair) => pairs.push((usable.get(better).map(|e| e.ts), false, pair)),
            Err(reason) => drop(reason),
        }
    }
    // Newest first, to keep the newest of the same.
    pairs.sort_by(|a, b| (b.0, &b.2.request_ids).cmp(&(a.0, &a.2.request_ids)));
    let mut texts = HashSet::new();
    let mut kept = Vec::new();
    for (_, is_correction, pair) in pairs {
        let key = (
            text(&pair.messages),
            pair.preferred.clone(),
            pair.other.clone(),
        );
        if texts.insert(key) {
            kept.push((is_correction, pair));
        } else {
            drop(Dropped::SameText);
        }
    }
    for (is_correction, pair) in kept.into_iter().rev() {
        match is_correction {
            true => found.counts.kept_corrections += 1,
            false => found.counts.kept_preferences += 1,
        }
        found.add(pair);
    }
    found
}

/// For each two answers how many more raters prefer the first to the second than the other way round.
fn votes(feedback: &[Feedback]) -> BTreeMap<(&str, &str), i64> {
    let mut oldest_first: Vec<&Feedback> = feedback.iter().collect();
    oldest_first.sort_by_key(|said| (said.ts, &said.feedback_id));
    let mut newest: BTreeMap<(&str, &str), HashMap<_, i64>> = BTreeMap::new();
    for said in oldest_first {
        let Some(other) = said.preferred_over.as_deref() else {
            continue;
        };
        let better = said.request_id.as_str();
        let (ids, vote) = match better <= other {
            true => ((better, other), 1),
            false => ((other, better), -1),
        };
        let rater = (&said.source, &said.rater);
        newest.entry(ids).or_default().insert(rater, vote);
    }
    let net = |(ids, votes): (_, HashMap<_, i64>)| (ids, votes.into_values().sum());
    newest.into_iter().map(net).collect()
}

fn corrected(task: &Task, exchange: Option<&Exchange>, correction: &str) -> Result<Pair, Dropped> {
    let exchange = exchange.ok_or(Dropped::Unusable)?;
    pair(task, exchange, correction, answer(exchange)?, &[exchange])
}

fn preferred(task: &Task, better: &Exchange, other: &Exchange) -> Result<Pair, Dropped> {
    let prompt = |e: &Exchange| text(e.messages.as_deref().unwrap_or_default());
    if prompt(better) != prompt(other) {
        return Err(Dropped::OtherPrompt);
    }
    pair(
        task,
        better,
        answer(better)?,
        answer(other)?,
        &[better, other],
    )
}

fn answer(exchange: &Exchange) -> Result<&str, Dropped> {
    let answer = exchange.answer.as_deref();
    let answer = answer.filter(|answer| !answer.trim().is_empty());
    answer.ok_or(Dropped::Unusable)
}

fn pair(
    task: &Task,
    exchange: &Exchange,
    preferred: &str,
    other: &str,
    of: &[&Exchange],
) -> Result<Pair, Dropped> {
    if preferred.trim().is_empty() {
        return Err(Dropped::Unusable);
    }
    if preferred == other {
        return Err(Dropped::SameAnswer);
    }
    let format = task.format.as_ref();
    if let Some(Check::Invalid { .. }) = format.map(|format| format.check(preferred)) {
        return Err(Dropped::FormatInvalid);
    }
    Ok(Pair {
        request_ids: of.iter().map(|e| e.request_id.clone()).collect(),
        conversation: exchange.conversation.clone(),
        split: split(task, exchange),
        messages: exchange.messages.clone().unwrap_or_default(),
        preferred: preferred.to_owned(),
        other: other.to_owned(),
    })
}

#[cfg(test)]
#[path = "preferences_tests.rs"]
mod tests;
