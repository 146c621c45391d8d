//! From what was asked, answered and said of it to examples: each prompt with the answer known to be right.
//!
//! Pure, and independent of the order of what comes in: the same ledger gives the same dataset, and a conversation stands on the
//! same side of the split in every run. Whatever is left out is counted with its reason.
//!
//! What is known of an exchange:
//! - its newest correction, whoever rated what; one that breaks the task's format does not take the place of one that holds it;
//! - else its own answer, where the raters' verdict is at least `rating_at_least`. Each rater's newest rating counts, and of
//!   several raters the lower median: half of them have to agree that it is good, and one enthusiast cannot outvote one critic.
//!
//! So a bad rating without a correction excludes. A known answer that breaks the task's own format teaches the wrong thing and is
//! left out too, whoever gave it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};
use retune_ledger::{Examples, Exchange, Feedback, Purpose};
use retune_task::{ChatMessage, Check, HeldOutBy, Redaction, Split, Task, held_out};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::curate::{self, Reason, Taken};
use crate::preferences::{Pair, Preferences};

/// A rating that makes an answer good enough to judge others by.
const GOLD: u8 = 5;

/// Why an answer counts as right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KnownBy {
    Correction,
    /// The raters' verdict, 1 to 5.
    Rating(u8),
    /// A stronger model wrote it, and a person accepted it.
    Synthetic,
}

/// A prompt and the answer known to be right.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub request_id: String,
    pub ts: DateTime<Utc>,
    pub conversation: String,
    /// Who asked, as the app named them.
    pub user: Option<String>,
    /// What the request carries of the keys that the policy tells results apart by.
    pub metadata: BTreeMap<String, String>,
    pub split: Split,
    /// As the app sent them.
    pub messages: Vec<ChatMessage>,
    pub answer: String,
    pub known_by: KnownBy,
}

impl Row {
    /// Good enough to judge others by: a correction, or an answer rated 5.
    pub fn is_gold(&self) -> bool {
        match self.known_by {
            KnownBy::Correction => true,
            KnownBy::Rating(rating) => rating >= GOLD,
            KnownBy::Synthetic => false,
        }
    }
}

/// What became of every exchange that was looked at: the counts add up to `exchanges`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub exchanges: u64,
    /// Examinations, probes and shadow requests, and other tasks' exchanges.
    pub not_user: u64,
    /// Answered with an error.
    pub failed: u64,
    /// Kept without its text (`store: false`), or without a user message.
    pub no_text: u64,
    /// No rating and no correction.
    pub unrated: u64,
    /// The raters' verdict is below `rating_at_least`, and nobody corrected it.
    pub rated_low: u64,
    /// Rated, but there is no answer (a tool call alone, or nothing at all).
    pub no_answer: u64,
    /// Known answers that break the task's format, by reason.
    pub format_invalid: BTreeMap<String, u64>,
    /// A newer exchange of the same conversation is kept in its place.
    pub older_in_conversation: u64,
    /// A newer exchange with the very same messages and answer is kept in its place (logs from elsewhere).
    pub same_text: u64,
    /// Usable rows that are not worth learning from, by reason.
    #[serde(default)]
    pub curated: BTreeMap<Reason, u64>,
    pub kept_corrections: u64,
    pub kept_ratings: u64,
    /// Written by a stronger model, accepted by a person.
    #[serde(default)]
    pub kept_synthetic: u64,
}

impl Counts {
    /// Why exchanges are no examples, in words, and how many for each reason.
    pub fn left_out(&self) -> Vec<(String, u64)> {
        let mut all: Vec<(String, u64)> = [
            ("not of users", self.not_user),
            ("failed", self.failed),
            ("kept without text", self.no_text),
            ("neither rated nor corrected", self.unrated),
            ("rated too low, not corrected", self.rated_low),
            ("without an answer", self.no_answer),
            ("older in the same conversation", self.older_in_conversation),
            ("same text as a newer one", self.same_text),
        ]
        .map(|(what, count)| (what.to_owned(), count))
        .into();
        let invalid = self.format_invalid.iter();
        all.extend(
            invalid.map(|(reason, count)| {
                (format!("known answer breaks the format ({reason})"), *count)
            }),
        );
        let curated = self.curated.iter();
        all.extend(curated.map(|(reason, count)| (reason.to_string(), *count)));
        all
    }

    /// How many of those kept are known by that.
    pub(crate) fn kept_by(&mut self, known_by: KnownBy) -> &mut u64 {
        match known_by {
            KnownBy::Correction => &mut self.kept_corrections,
            KnownBy::Rating(_) => &mut self.kept_ratings,
            KnownBy::Synthetic => &mut self.kept_synthetic,
        }
    }

    pub fn kept(&self) -> u64 {
        self.kept_corrections + self.kept_ratings + self.kept_synthetic
    }

    pub fn dropped(&self) -> u64 {
        self.left_out().iter().map(|(_, count)| count).sum()
    }
}

/// The examples of one task, oldest first within each split.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dataset {
    pub train: Vec<Row>,
    /// Chooses the checkpoint; neither trained on nor examined.
    pub development: Vec<Row>,
    pub held_out: Vec<Row>,
    pub counts: Counts,
    /// Usable rows that are not learned from.
    pub taken: Vec<Taken>,
    /// None where the policy does not learn from them.
    pub preferences: Preferences,
}

impl Dataset {
    pub fn len(&self) -> usize {
        self.train.len() + self.development.len() + self.held_out.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.train
            .iter()
            .chain(&self.development)
            .chain(&self.held_out)
    }

    /// Which exchanges it is made of.
    pub fn examples(&self) -> Examples {
        let ids = |rows: &[Row], pairs: &[Pair]| {
            let rows = rows.iter().map(|row| &row.request_id);
            let pairs = pairs.iter().flat_map(|pair| &pair.request_ids);
            let ids: BTreeSet<&String> = rows.chain(pairs).collect();
            ids.into_iter().cloned().collect()
        };
        let pairs = &self.preferences;
        Examples {
            train: ids(&self.train, &pairs.train),
            development: ids(&self.development, &pairs.development),
            held_out: ids(&self.held_out, &pairs.held_out),
        }
    }

    /// Rows asked after `ts`: what there is to learn about the traffic since an alarm, of which a model's own writing tells nothing.
    pub fn usable_since(&self, ts: DateTime<Utc>) -> usize {
        self.rows()
            .filter(|row| row.ts > ts && row.known_by != KnownBy::Synthetic)
            .count()
    }

    /// Conversations that the training has seen, to choose weights or a checkpoint: never to be examined.
    pub fn seen_conversations(&self) -> HashSet<&str> {
        self.train
            .iter()
            .chain(&self.development)
            .map(|row| row.conversation.as_str())
            .chain(self.preferences.seen_conversations())
            .collect()
    }
}

/// The dataset of `task` from exchanges and feedback in any order; rows of other tasks are counted and left out.
pub fn build(task: &Task, exchanges: &[Exchange], feedback: &[Feedback]) -> Dataset {
    let said = Said::gather(task, feedback);
    let mut counts = Counts {
        exchanges: exchanges.len() as u64,
        ..Counts::default()
    };
    let mut newest_first: Vec<&Exchange> = exchanges.iter().collect();
    // What somebody asked stays where a model wrote the same.
    newest_first.sort_by_key(|exchange| {
        let was_asked = exchange.purpose != Purpose::Synthetic;
        Reverse((was_asked, exchange.ts, &exchange.replica, exchange.seq))
    });

    let mut rows = Vec::new();
    let (mut conversations, mut texts) = (HashSet::new(), HashSet::new());
    for exchange in newest_first {
        let row = match known(task, exchange, &said) {
            Ok(row) => row,
            Err(reason) => {
                reason.count(&mut counts);
                continue;
            }
        };
        if !conversations.insert(exchange.conversation.as_str()) {
            counts.older_in_conversation += 1;
        } else if !texts.insert(digest(&row)) {
            counts.same_text += 1;
        } else {
            rows.push(row);
        }
    }
    drop((conversations, texts));
    rows.reverse();
    rows.sort_by_key(|row| row.ts);
    let (mut rows, taken) = curate::curate(rows, &personal(task));
    counts.curated = curate::counts(&taken);
    for row in &rows {
        *counts.kept_by(row.known_by) += 1;
    }
    let mut part = |split| rows.extract_if(.., |row| row.split == split).collect();
    Dataset {
        development: part(Split::Development),
        held_out: part(Split::HeldOut),
        train: rows,
        counts,
        taken,
        preferences: Preferences::default(),
    }
}

/// Of all that is said in a row: a million texts need not be kept twice.
fn digest(row: &Row) -> [u8; 32] {
    let mut digest = Sha256::new();
    put_row(&mut digest, row);
    digest.finalize().into()
}

pub(crate) fn put_row(digest: &mut Sha256, row: &Row) {
    let messages = row.messages.iter().flat_map(|m| [&m.role, &m.content]);
    for text in messages.chain([&row.answer]) {
        put(digest, text);
    }
}

/// A text with its length, so that no two lists of texts are alike.
pub(crate) fn put(digest: &mut Sha256, text: &str) {
    digest.update((text.len() as u64).to_le_bytes());
    digest.update(text);
}

pub(crate) fn text(messages: &[ChatMessage]) -> Vec<(String, String)> {
    messages
        .iter()
        .map(|message| (message.role.clone(), message.content.clone()))
        .collect()
}

/// What people said of each exchange.
pub(crate) struct Said<'a> {
    pub(crate) corrections: HashMap<&'a str, &'a str>,
    /// The lower median of the raters' newest ratings.
    ratings: HashMap<&'a str, u8>,
}

impl<'a> Said<'a> {
    pub(crate) fn gather(task: &Task, feedback: &'a [Feedback]) -> Self {
        let mut oldest_first: Vec<&Feedback> = feedback.iter().collect();
        oldest_first.sort_by_key(|said| (said.ts, &said.feedback_id));
        let holds = |answer: &str| match &task.format {
            Some(format) => format.check(answer).is_valid(),
            None => true,
        };
        let mut corrections: HashMap<&str, &str> = HashMap::new();
        let mut by_rater: HashMap<&str, HashMap<_, u8>> = HashMap::new();
        for said in oldest_first {
            if let Some(correction) = &said.correction {
                let id = said.request_id.as_str();
                let before = corrections.get(id);
                if !before.is_some_and(|before| holds(before) && !holds(correction)) {
                    corrections.insert(id, correction);
                }
            }
            if let Some(rating) = said.rating {
                by_rater
                    .entry(&said.request_id)
                    .or_default()
                    .insert((&said.source, &said.rater), rating);
            }
        }
        let ratings = by_rater
            .into_iter()
            .filter_map(|(request_id, by_rater)| {
                Some((request_id, lower_median(by_rater.into_values().collect())?))
            })
            .collect();
        Self {
            corrections,
            ratings,
        }
    }
}

fn lower_median(mut ratings: Vec<u8>) -> Option<u8> {
    ratings.sort_unstable();
    ratings.get(ratings.len().checked_sub(1)? / 2).copied()
}

pub(crate) enum Dropped {
    NotUser,
    Failed,
    NoText,
    Unrated,
    RatedLow,
    NoAnswer,
    FormatInvalid(&'static str),
}

impl Dropped {
    fn count(self, counts: &mut Counts) {
        match self {
            Self::NotUser => counts.not_user += 1,
            Self::Failed => counts.failed += 1,
            Self::NoText => counts.no_text += 1,
            Self::Unrated => counts.unrated += 1,
            Self::RatedLow => counts.rated_low += 1,
            Self::NoAnswer => counts.no_answer += 1,
            Self::FormatInvalid(reason) => {
                *counts.format_invalid.entry(reason.to_owned()).or_default() += 1
            }
        }
    }
}

/// What a user asked of this task, or a model wrote for it, or why the exchange is nothing of the kind.
pub(crate) fn asked<'a>(task: &Task, exchange: &'a Exchange) -> Result<&'a [ChatMessage], Dropped> {
    let counts = matches!(exchange.purpose, Purpose::User | Purpose::Synthetic);
    if !counts || exchange.task.as_deref() != Some(task.name.as_str()) {
        return Err(Dropped::NotUser);
    }
    if exchange.code != 200 {
        return Err(Dropped::Failed);
    }
    let messages = exchange.messages.as_ref().ok_or(Dropped::NoText)?;
    if !messages.iter().any(|message| message.role == "user") {
        return Err(Dropped::NoText);
    }
    Ok(messages)
}

/// Where an exchange belongs, in every run the same.
pub(crate) fn split(task: &Task, exchange: &Exchange) -> Split {
    let user = exchange.user.as_deref().filter(|user| !user.is_empty());
    match (task.retrain.held_out_by, user) {
        (HeldOutBy::User, Some(user)) => held_out(&format!("user {user}")),
        _ => held_out(&exchange.conversation),
    }
}

/// What no example may hold. What the task replaces when it is logged cannot be told from its surrogates, and is not looked for.
pub(crate) fn personal(task: &Task) -> Redaction {
    let replaced = task.privacy.redaction.kinds();
    let mut kinds = task.retrain.personal.clone();
    kinds.retain(|kind| !replaced.contains(kind));
    // Without patterns of its own nothing can be wrong with it.
    Redaction::new(&kinds, &[]).unwrap_or_default()
}

/// The known answer of one exchange, or why there is none.
fn known(task: &Task, exchange: &Exchange, said: &Said<'_>) -> Result<Row, Dropped> {
    let messages = asked(task, exchange)?;
    let id = exchange.request_id.as_str();
    let (answer, known_by) = if let Some(correction) = said.corrections.get(id) {
        (*correction, KnownBy::Correction)
    } else {
        let rating = *said.ratings.get(id).ok_or(Dropped::Unrated)?;
        if rating < task.retrain.rating_at_least {
            return Err(Dropped::RatedLow);
        }
        (
            exchange.answer.as_deref().ok_or(Dropped::NoAnswer)?,
            KnownBy::Rating(rating),
        )
    };
    if answer.trim().is_empty() {
        return Err(Dropped::NoAnswer);
    }
    if let Some(Check::Invalid { reason, .. }) =
        task.format.as_ref().map(|format| format.check(answer))
    {
        return Err(Dropped::FormatInvalid(reason));
    }
    // What is examined, and chosen by, is what users ask: a model's own writing is trained on alone.
    let (split, known_by) = match exchange.purpose {
        Purpose::Synthetic => (Split::Train, KnownBy::Synthetic),
        _ => (split(task, exchange), known_by),
    };
    Ok(Row {
        request_id: exchange.request_id.clone(),
        ts: exchange.ts,
        conversation: exchange.conversation.clone(),
        user: exchange.user.clone(),
        metadata: carried(task, exchange),
        split,
        messages: messages.to_vec(),
        answer: answer.to_owned(),
        known_by,
    })
}

fn carried(task: &Task, exchange: &Exchange) -> BTreeMap<String, String> {
    let value = |key: &String| {
        let value = exchange.metadata.as_ref()?.get(key)?.as_str()?;
        Some((key.clone(), value.to_owned()))
    };
    task.retrain.slices.iter().filter_map(value).collect()
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
