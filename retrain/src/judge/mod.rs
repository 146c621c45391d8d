//! Who says which of two answers is better, and what that says of the candidate.
//!
//! Whoever judges sees a left and a right answer and never learns which is the candidate's. Which side the candidate sits on is drawn
//! from the run's id and the prompt's, so that it is the same whenever the run is repeated and owes nothing to the judge. Models and people prefer
//! a place, whatever stands there: a model is asked in both orders (`model`), and people get each pair as it was drawn.

pub mod known;
mod model;
pub(crate) mod report;
pub(crate) mod rubric;

use retune_task::{Choice, JudgePolicy, JudgedBy, Marks, Side, Task};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::dataset::Row;
use crate::examine::Examined;
use crate::{Error, Limits};
use known::BlindPair;

/// What a choice means once the seats are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vote {
    Win,
    Loss,
    Tie,
}

/// Where the candidate sits for this prompt: a fair coin, tossed by the run and the prompt.
pub fn seat(run_id: &str, request_id: &str) -> Side {
    let digest = Sha256::digest(format!("seat\n{run_id}\n{request_id}"));
    if digest.first().is_some_and(|byte| byte & 1 == 1) {
        Side::Right
    } else {
        Side::Left
    }
}

/// The choice, unblinded: did the candidate win?
pub fn unblind(choice: Choice, candidate: Side) -> Vote {
    match (choice, candidate) {
        (Choice::Tie, _) => Vote::Tie,
        (Choice::Left, Side::Left) | (Choice::Right, Side::Right) => Vote::Win,
        (Choice::Left, Side::Right) | (Choice::Right, Side::Left) => Vote::Loss,
    }
}

/// Of (left, right) the candidate's first, then the baseline's.
pub(crate) fn unseat<T>(left: T, right: T, candidate: Side) -> (T, T) {
    match candidate {
        Side::Left => (left, right),
        Side::Right => (right, left),
    }
}

/// What was said of one pair of answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Judged {
    /// None: people have to say.
    pub(crate) choice: Option<Choice>,
    /// Both answers' marks, where somebody gave any.
    pub(crate) left: Marks,
    pub(crate) right: Marks,
    /// What is so whoever is asked: the answers are the same, or one of them is none.
    pub(crate) plain: Option<Choice>,
    /// It was the place that the model preferred.
    pub(crate) swayed: bool,
    /// What the model said could not be read.
    pub(crate) unread: bool,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
}

impl Judged {
    fn plainly(choice: Choice) -> Self {
        Self {
            choice: Some(choice),
            plain: Some(choice),
            ..Self::default()
        }
    }
}

/// Two answers of which nobody needs to be asked which is better.
fn plain(left: &str, right: &str) -> Option<Choice> {
    match (left.trim(), right.trim()) {
        (left, right) if left == right => Some(Choice::Tie),
        ("", _) => Some(Choice::Right),
        (_, "") => Some(Choice::Left),
        _ => None,
    }
}

/// The prompt, and both answers in their seats.
fn seated<'a>(run_id: &str, one: &'a Examined) -> (&'a Row, &'a str, &'a str) {
    let (candidate, baseline) = (&one.candidate.content, &one.baseline.content);
    let seat = seat(run_id, &one.row.request_id);
    // What unseats seats as well.
    let (left, right) = unseat(candidate.as_str(), baseline.as_str(), seat);
    (&one.row, left, right)
}

/// Who judges.
pub(crate) enum Judge {
    KnownAnswer,
    Model(model::Model),
    People,
}

impl Judge {
    /// As the policy has it; before anything is trained, so that what is missing is missed at once.
    pub(crate) fn of(policy: &JudgePolicy, limits: &Limits) -> Result<Self, Error> {
        Ok(match &policy.by {
            JudgedBy::KnownAnswer => Self::KnownAnswer,
            JudgedBy::People => Self::People,
            JudgedBy::Model(model) => Self::Model(model::Model::new(
                model,
                policy.criteria.as_deref(),
                limits,
            )?),
        })
    }

    /// Whether it can judge.
    ///
    /// # Errors
    /// Why a model cannot.
    pub(crate) async fn tried(&self) -> Result<(), Error> {
        match self {
            Self::Model(model) => model.tried().await,
            Self::KnownAnswer | Self::People => Ok(()),
        }
    }

    /// Its name in runs and reports.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::KnownAnswer => "known-answer".to_owned(),
            Self::Model(model) => format!("model {}", model.name()),
            Self::People => "people".to_owned(),
        }
    }

    /// What tells it from other judges.
    pub(crate) fn identity(&self) -> String {
        match self {
            Self::Model(model) => model.identity(),
            Self::KnownAnswer | Self::People => self.name(),
        }
    }

    /// What is said of some pairs, in their order; `done` hears how many are judged. Of people's nothing is known but what is plain.
    pub(crate) async fn judge(
        &self,
        task: &Task,
        run_id: &str,
        examined: &[Examined],
        mut done: impl FnMut(usize) + Send,
    ) -> Result<Vec<Judged>, Error> {
        let pairs = examined.iter().map(|one| seated(run_id, one));
        match self {
            Self::KnownAnswer => Ok(pairs
                .map(|(row, left, right)| Judged {
                    choice: Some(known::judge(&BlindPair {
                        known: &row.answer,
                        left,
                        right,
                    })),
                    ..Judged::default()
                })
                .collect()),
            Self::People => Ok(pairs
                .map(|(_, left, right)| Judged {
                    // It counts with people's votes, and not before them: what is plain is no sample of what is not.
                    plain: plain(left, right),
                    ..Judged::default()
                })
                .collect()),
            Self::Model(model) => model.judge(task, pairs.collect(), &mut done).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_fair_and_repeat() {
        let right = (0..2000)
            .filter(|n| seat("run-1", &format!("request-{n}")) == Side::Right)
            .count();
        assert!(
            (900..=1100).contains(&right),
            "{right} of 2000 on the right"
        );
        assert_eq!(seat("run-1", "a"), seat("run-1", "a"));
        for seat in [Side::Left, Side::Right] {
            let (left, right) = unseat("candidate", "baseline", seat);
            assert_eq!(unseat(left, right, seat), ("candidate", "baseline"));
        }
    }

    #[test]
    fn nobody_is_asked_which_of_the_same_is_better() {
        assert_eq!(plain("a", " a\n"), Some(Choice::Tie));
        assert_eq!(plain("", " "), Some(Choice::Tie));
        assert_eq!(plain("", "a"), Some(Choice::Right));
        assert_eq!(plain("a", "\n"), Some(Choice::Left));
        assert_eq!(plain("a", "b"), None);
    }
}
