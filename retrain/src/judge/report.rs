//! What a run's report says of its judge, and how far the judge is to be believed. Pure.

use chrono::{DateTime, Utc};
use retune_ledger::{PairVote, Pairs};
use retune_stats::kappa;
use retune_task::{Choice, JudgePolicy, JudgedBy, Marks};
use serde::{Deserialize, Serialize};

use super::Judged;
use super::rubric::{self, Criterion};

/// Pairs that both have judged, below which nobody knows how far they agree.
const LEAST: u64 = 30;
/// Agreement beyond chance below which a judge is not one that people agree with: "fair" at best, in the words of Landis and Koch (1977,
/// Biometrics 33:159).
const FAIR: f64 = 0.4;

/// How the answers of a run were judged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Judging {
    /// Pairs that were judged without asking anybody: both answers are the same, or one is none.
    pub plain: u64,
    /// Pairs of which the model preferred the same place in both orders; they count as ties.
    pub swayed: u64,
    /// Pairs of which the model's word could not be read; they count as ties.
    pub unread: u64,
    /// What asking the model took.
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// Marks by criterion.
    pub rubric: Vec<Criterion>,
    /// The model and people, on pairs of this task's runs that both have judged.
    pub agreement: Option<Agreement>,
    /// People are asked about pairs until then.
    pub until: Option<DateTime<Utc>>,
    /// Pairs that people were asked about, and those that have their vote.
    pub asked: u64,
    pub voted: u64,
}

/// How far a model and people agree.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    pub pairs: u64,
    pub agreed: u64,
    /// Beyond chance; None where all are one.
    pub kappa: Option<f64>,
}

impl Judging {
    /// Of what was said of all pairs, with the marks as (the candidate's, the baseline's).
    pub(crate) fn of(judged: &[Judged], marks: &[(Marks, Marks)]) -> Self {
        let count = |is_one: fn(&&Judged) -> bool| judged.iter().filter(is_one).count() as u64;
        Self {
            plain: count(|one| one.plain.is_some()),
            swayed: count(|one| one.swayed),
            unread: count(|one| one.unread),
            prompt_tokens: judged.iter().map(|one| one.prompt_tokens).sum(),
            completion_tokens: judged.iter().map(|one| one.completion_tokens).sum(),
            rubric: rubric::criteria(marks),
            ..Self::default()
        }
    }

    /// Whether it speaks against believing the votes alone.
    pub(crate) fn asks_for_a_canary(&self) -> bool {
        self.rubric.iter().any(|one| one.is_worse)
            || self.agreement.is_some_and(|agreement| agreement.is_poor())
    }

    /// For people, a sentence each.
    pub(crate) fn in_words(&self, policy: &JudgePolicy) -> Vec<String> {
        let mut words: Vec<String> = self.rubric.iter().map(Criterion::in_words).collect();
        if self.asked > 0 && policy.by == JudgedBy::People {
            words.push(format!(
                "people judged {} of {} pairs, and {} more were plain",
                self.voted, self.asked, self.plain
            ));
        }
        if self.swayed + self.unread > 0 {
            words.push(format!(
                "the judge preferred a place in {} pairs, and could not be read in {}: these count as ties",
                self.swayed, self.unread
            ));
        }
        words.extend(self.agreement.map(Agreement::in_words));
        words
    }
}

impl Agreement {
    /// Of all pairs of a task's candidates, each with people's votes; None where nobody has voted on what a model judged.
    pub(crate) fn of(runs: &[(Pairs, Vec<(String, PairVote)>)]) -> Option<Self> {
        let mut table = [[0; Choice::ALL.len()]; Choice::ALL.len()];
        for (pairs, votes) in runs {
            for pair in pairs.asked() {
                let vote = votes.iter().find(|(id, _)| *id == pair.id);
                let Some((model, (_, people))) = pair.judged.zip(vote) else {
                    continue;
                };
                let cell = table
                    .get_mut(model as usize)
                    .and_then(|row| row.get_mut(people.choice as usize));
                if let Some(cell) = cell {
                    *cell += 1;
                }
            }
        }
        let pairs: u64 = table.iter().flatten().sum();
        let agreed = table.iter().enumerate().filter_map(|(i, row)| row.get(i));
        (pairs > 0).then(|| Self {
            pairs,
            agreed: agreed.sum(),
            kappa: kappa(&table),
        })
    }

    fn is_poor(self) -> bool {
        self.pairs >= LEAST && self.kappa.is_some_and(|kappa| kappa < FAIR)
    }

    fn in_words(self) -> String {
        let kappa = self.kappa.map(|kappa| format!(", kappa {kappa:.2}"));
        let also = match (self.is_poor(), self.pairs < LEAST) {
            (true, _) => "; that is poor",
            (false, true) => "; too few to tell",
            (false, false) => "",
        };
        format!(
            "people agreed with the judge on {} of {} pairs of this task's runs{}{also}",
            self.agreed,
            self.pairs,
            kappa.unwrap_or_default()
        )
    }
}
