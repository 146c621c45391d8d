//! Which answers are worth a person's time: those first of which a word teaches most.
//!
//! Pure. Of each answer that nobody has judged it is told why it waits, and the reasons add up; equal ones come in an order of each rater's
//! own, so that two raters are seldom shown the same. Uncertain is what raters disagree on, or rated badly without saying what would
//! have been right; drifted is what an alarm names, and what broke the format; new is what is asked in words that nothing judged so far has
//! (the choice of unlike examples of active learning: Settles, Active Learning Literature Survey, 2009, section 5).

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use retune_ledger::{Exchange, Feedback, Purpose};
use retune_task::question;

/// Judged prompts below which nothing can be called unlike them.
const ENOUGH_JUDGED: usize = 20;
/// Words of a prompt that are looked at.
const WORDS: usize = 200;

/// Why an answer waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// Its request is in an alarm's evidence.
    Alarm,
    /// Raters disagree.
    Disagreed,
    /// It was rated badly, and nobody said what would have been right.
    Uncorrected,
    /// It broke the format.
    Format,
    /// A canary gave it.
    Canary,
    /// Its prompt is unlike all that was judged.
    Unlike,
    /// A model wrote it, question and answer.
    Synthetic,
}

impl Why {
    fn value(self) -> u32 {
        match self {
            Self::Alarm => 5,
            Self::Disagreed => 4,
            Self::Uncorrected | Self::Format => 3,
            Self::Canary | Self::Unlike | Self::Synthetic => 2,
        }
    }

    /// For the rater.
    pub(crate) fn in_words(self) -> &'static str {
        match self {
            Self::Alarm => "an alarm names it",
            Self::Disagreed => "raters disagree on it",
            Self::Uncorrected => "it was rated badly, and nobody said what would have been right",
            Self::Format => "it broke the format",
            Self::Canary => "the canary gave it",
            Self::Unlike => "nothing like it was judged so far",
            Self::Synthetic => {
                "a model wrote it for the dataset, and waits to be told whether it is right"
            }
        }
    }
}

/// An answer that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The exchange.
    pub request_id: String,
    /// Why it comes before others.
    pub why: Vec<Why>,
}

impl Waiting {
    fn value(&self) -> u32 {
        self.why.iter().map(|why| why.value()).sum()
    }
}

/// What waits, the most valuable first. Corrections are those that train. `named` are requests in the evidence of alarms that stand; ratings from `good` on are good ones.
pub fn rank(
    exchanges: &[Exchange],
    feedback: &[Feedback],
    named: &HashSet<String>,
    good: u8,
) -> Vec<Waiting> {
    let mut said: HashMap<&str, Vec<&Feedback>> = HashMap::new();
    for one in feedback {
        said.entry(&one.request_id).or_default().push(one);
    }
    let of = |row: &Exchange| {
        said.get(row.request_id.as_str())
            .map_or(&[][..], Vec::as_slice)
    };
    let judged = exchanges.iter().filter(|row| !of(row).is_empty());
    let judged: Vec<HashSet<u64>> = judged.map(|row| pairs(asked(row))).collect();
    let known: Option<HashSet<u64>> =
        (judged.len() >= ENOUGH_JUDGED).then(|| judged.into_iter().flatten().collect());

    let mut waiting = Vec::new();
    for row in exchanges {
        // Of an answer without words, such as a call, nothing is learned.
        if row
            .answer
            .as_deref()
            .is_none_or(|text| text.trim().is_empty())
        {
            continue;
        }
        let mut why = Vec::new();
        match standing(of(row), good) {
            Standing::Judged => continue,
            Standing::Open => {}
            Standing::Again(reason) => why.push(reason),
        }
        if named.contains(&row.request_id) {
            why.push(Why::Alarm);
        }
        if row.format_valid == Some(false) {
            why.push(Why::Format);
        }
        if row.stage.as_deref() == Some("canary") {
            why.push(Why::Canary);
        }
        if row.purpose == Purpose::Synthetic {
            why.push(Why::Synthetic);
        }
        let words = pairs(asked(row));
        let is_unlike = known.as_ref().is_some_and(|known| {
            let strange = words.iter().filter(|pair| !known.contains(pair)).count();
            !words.is_empty() && strange * 5 >= words.len() * 4
        });
        if is_unlike {
            why.push(Why::Unlike);
        }
        waiting.push(Waiting {
            request_id: row.request_id.clone(),
            why,
        });
    }
    waiting.sort_by_key(|one| Reverse(one.value()));
    waiting
}

/// The next for a rater: the most valuable one that they have not passed over, of equal ones the first in their own order.
pub fn next<'a>(
    waiting: &'a [Waiting],
    rater: &str,
    is_over: impl Fn(&str) -> bool,
) -> Option<&'a Waiting> {
    let place =
        |one: &Waiting| retune_task::sha256(&format!("review\n{rater}\n{}", one.request_id));
    let mut open = waiting.iter().filter(|one| !is_over(&one.request_id));
    let first = open.next()?;
    let equal = open.take_while(|one| one.value() == first.value());
    std::iter::once(first)
        .chain(equal)
        .min_by_key(|one| place(one))
}

enum Standing {
    Open,
    Again(Why),
    Judged,
}

fn standing(said: &[&Feedback], good: u8) -> Standing {
    if said.iter().any(|one| one.correction.is_some()) {
        return Standing::Judged;
    }
    // Each rater's newest rating counts.
    let mut ratings: HashMap<_, u8> = HashMap::new();
    for one in said {
        if let Some(rating) = one.rating {
            ratings.insert((&one.source, &one.rater), rating);
        }
    }
    let is_good = |rating: &&u8| **rating >= good;
    let (good, all) = (ratings.values().filter(is_good).count(), ratings.len());
    match good {
        _ if all == 0 => Standing::Open,
        0 => Standing::Again(Why::Uncorrected),
        good if good < all => Standing::Again(Why::Disagreed),
        _ => Standing::Judged,
    }
}

fn asked(row: &Exchange) -> &str {
    let messages = row.messages.as_deref().unwrap_or_default();
    question(messages).unwrap_or_default()
}

/// Pairs of words beside each other, and a single one by itself.
fn pairs(text: &str) -> HashSet<u64> {
    let hash = |words: &[String]| {
        let mut hasher = DefaultHasher::new();
        words.hash(&mut hasher);
        hasher.finish()
    };
    let words = text.split(|c: char| !c.is_alphanumeric());
    let words = words.filter(|word| !word.is_empty()).take(WORDS);
    let words: Vec<String> = words.map(str::to_lowercase).collect();
    match words.as_slice() {
        [] => HashSet::new(),
        [_] => HashSet::from([hash(&words)]),
        words => words.windows(2).map(hash).collect(),
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
