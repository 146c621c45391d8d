//! What of a model's writing is refused, and why. Pure.
//!
//! A message is near another where their shingles are, as in curation (`curate/near.rs`), whatever numbers are in them: what differs in a
//! number alone teaches nothing new. Where a run of 13 words stands in a held-out conversation and nowhere in what is trained on, the
//! examination would be given away (13 words after Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use retune_task::{Check, Task};

use super::Known;
use crate::curate::{Index, NEAR, Shingles, plain};
use crate::said;

/// Characters of a message or an answer.
const LONGEST: usize = 32_768;
/// Words in a row that are nobody's by chance.
const RUN: usize = 13;

/// Why something is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// No messages were found in what the model said.
    Unreadable,
    Empty,
    TooLong,
    /// It ended at its limit of tokens.
    CutOff,
    /// The API would not answer it.
    Declined,
    Format(&'static str),
    NearSeed,
    NearOther,
    NearHeldOut,
    LeaksHeldOut,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreadable => "no messages were found in what the model said",
            Self::Empty => "empty",
            Self::TooLong => "too long",
            Self::CutOff => "cut off at the model's limit",
            Self::Declined => "the API declined to answer it",
            Self::Format(reason) => {
                return write!(f, "the answer breaks the task's format ({reason})");
            }
            Self::NearSeed => "nearly the same as one of the dataset",
            Self::NearOther => "nearly the same as another of the file",
            Self::NearHeldOut => "nearly the same as one that is held out",
            Self::LeaksHeldOut => "repeats words of a held-out conversation",
        })
    }
}

/// What is refused, and what it is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub why: Why,
    /// The row, or the file's line, that it is like.
    pub like: Option<String>,
}

impl From<Why> for Refusal {
    fn from(why: Why) -> Self {
        Self { why, like: None }
    }
}

/// Texts, and whose they are.
#[derive(Default)]
struct Texts {
    index: Index,
    ids: Vec<String>,
}

impl Texts {
    fn of<'a>(texts: impl Iterator<Item = (&'a String, &'a String)>) -> Self {
        let mut all = Self::default();
        texts.for_each(|(id, text)| all.add(id, text));
        all
    }

    fn add(&mut self, id: &str, text: &str) {
        self.index.add(Shingles::of(text), 0);
        self.ids.push(id.to_owned());
    }

    fn like(&self, text: &Shingles) -> Option<String> {
        let place = *self.index.near(text, 0, NEAR).first()?;
        self.ids.get(place).cloned()
    }
}

/// Everything that a new row must not be like.
pub(super) struct Filter<'a> {
    task: &'a Task,
    dataset: Texts,
    held_out: Texts,
    /// Runs of words that only held-out conversations have, and whose they are.
    runs: HashMap<u64, u32>,
    others: Texts,
}

impl<'a> Filter<'a> {
    pub(super) fn new(task: &'a Task, known: &Known) -> Self {
        let mut runs: HashMap<u64, u32> = HashMap::new();
        for (place, (_, text)) in known.held_out.iter().enumerate() {
            for run in runs_of(text) {
                runs.entry(run).or_insert(place as u32);
            }
        }
        // What people say all the time gives nothing away; nor do words of the instructions.
        let common: HashSet<u64> = known
            .trained_on
            .iter()
            .map(|(_, text)| text)
            .chain([&task.prompt])
            .flat_map(|text| runs_of(text))
            .filter(|run| runs.contains_key(run))
            .collect();
        runs.retain(|run, _| !common.contains(run));
        let pairs = |list: &'_ [(String, String)]| Texts::of(list.iter().map(|(a, b)| (a, b)));
        Self {
            task,
            dataset: pairs(&known.trained_on),
            held_out: pairs(&known.held_out),
            runs,
            others: Texts::default(),
        }
    }

    /// Whether a message may be asked, as it is trimmed. Held-out ones go first: of those nobody should have known.
    pub(super) fn question(&self, text: &str) -> Result<String, Refusal> {
        let text = text.trim();
        bounded(text)?;
        // Signs alone ask nothing; as an answer they may be what the format wants.
        if !text.contains(char::is_alphanumeric) {
            return Err(Why::Empty.into());
        }
        let shingles = Shingles::of(text);
        for (texts, why) in [
            (&self.held_out, Why::NearHeldOut),
            (&self.dataset, Why::NearSeed),
            (&self.others, Why::NearOther),
        ] {
            if let Some(like) = texts.like(&shingles) {
                let like = Some(like);
                return Err(Refusal { why, like });
            }
        }
        self.leaks(text)?;
        Ok(text.to_owned())
    }

    /// Whether an answer may be kept: without what a model says around it, where the task's format allows nothing around it.
    pub(super) fn answer(&self, said: &str) -> Result<String, Refusal> {
        let said = said::without_thoughts(said);
        bounded(said)?;
        let answer = match self.task.format.as_ref().map(|format| format.check(said)) {
            None | Some(Check::Valid) => said,
            Some(Check::Invalid { reason, .. }) => {
                let inside = said::unfenced(said).filter(|inside| self.keeps_format(inside));
                inside.ok_or(Why::Format(reason))?
            }
        };
        self.leaks(answer)?;
        Ok(answer.to_owned())
    }

    fn keeps_format(&self, text: &str) -> bool {
        let format = self.task.format.as_ref();
        format.is_none_or(|format| format.check(text).is_valid())
    }

    /// Whether a text is a held-out conversation's, or nearly.
    pub(super) fn gives_away(&self, text: &str) -> bool {
        self.held_out.like(&Shingles::of(text)).is_some() || self.leaks(text).is_err()
    }

    pub(super) fn leaks(&self, text: &str) -> Result<(), Refusal> {
        let Some(place) = runs_of(text).find_map(|run| self.runs.get(&run).copied()) else {
            return Ok(());
        };
        Err(Refusal {
            why: Why::LeaksHeldOut,
            like: self.held_out.ids.get(place as usize).cloned(),
        })
    }

    /// Remembers a message that is in the file, or asked at this moment.
    pub(super) fn take(&mut self, id: &str, question: &str) {
        self.others.add(id, question);
    }
}

fn bounded(text: &str) -> Result<(), Refusal> {
    match text.chars().take(LONGEST + 1).count() {
        0 => Err(Why::Empty.into()),
        n if n > LONGEST => Err(Why::TooLong.into()),
        _ => Ok(()),
    }
}

fn runs_of(text: &str) -> impl Iterator<Item = u64> + use<> {
    let plain = plain(text);
    let words: Vec<u64> = plain.split(' ').map(digest).collect();
    let runs: Vec<u64> = words.windows(RUN).map(digest).collect();
    runs.into_iter()
}

fn digest(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
