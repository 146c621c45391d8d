//! A candidate beside the base with the task's full prompt, where an adapter is the champion: each adapter may beat the one before it, and
//! all of them fall behind what a prompt does.
//!
//! The base is asked the first `min_pairs` of the prompts that candidate and champion have answered, which are there by lot, and the run's judge
//! compares; people are asked once a prompt, and not about these. A candidate that is shown to be worse is left to a person: it may still be
//! better than what serves.

use retune_stats::sign_test;
use retune_task::{JudgedBy, ModelName, Task};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::book::Book;
use crate::cost::Tokens;
use crate::examine::{self, Asking, CONCURRENCY, Contest, Examined};
use crate::judge::Judge;
use crate::run::Event;
use crate::server::{Question, Server};
use crate::stages::Observer;
use crate::verdict::{Figures, Paired, SIGNIFICANCE};

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prompted {
    /// `task@base`.
    pub baseline: String,
    /// Prompts whose answer of the candidate is better, worse, or neither.
    pub wins: u64,
    pub losses: u64,
    pub ties: u64,
    /// Answers that keep the task's format.
    pub format: Paired,
    /// All tokens that the base read and wrote for it.
    pub tokens: Tokens,
}

/// Asks the base, unless it is what the candidate was compared with already.
pub(crate) async fn examine(
    task: &Task,
    book: &mut Book<'_>,
    server: &Server,
    judge: &Judge,
    contest: &Contest,
    examined: &[Examined],
    observer: Observer<'_>,
) -> Result<Option<Prompted>, Error> {
    let base = ModelName::Baseline(task.name.clone()).to_string();
    if contest.baseline == base || task.retrain.judge.by == JudgedBy::People {
        return Ok(None);
    }
    let asked = &examined[..examined.len().min(task.retrain.min_pairs)];
    let questions = asked.iter().map(|one| Question::from(&one.row));
    let (of, model, run_id) = (server.clone(), base.clone(), contest.run_id.clone());
    let mut asking = Asking::each(CONCURRENCY, questions, move |question| {
        let (server, model, run_id) = (of.clone(), model.clone(), run_id.clone());
        async move { server.ask(&model, &question, &run_id).await }
    });
    let total = examined.len() + asked.len();
    while let Some(done) = asking.next().await? {
        let done = examined.len() + done;
        book.progress(done, total).await?;
        observer(&Event::Examining { done, total });
    }
    let beside = asked.iter().zip(asking.finish());
    let beside: Vec<Examined> = beside
        .map(|(one, baseline)| Examined {
            baseline,
            ..one.clone()
        })
        .collect();
    let judging = |done| {
        let total = asked.len();
        observer(&Event::Judging { done, total });
    };
    let judged = judge.judge(task, &contest.run_id, &beside, judging).await?;
    let figures = examine::count(task, &contest.run_id, &beside, &judged);
    let sum = |of: fn(&Examined) -> u64| beside.iter().map(of).sum::<u64>() as f64;
    let tokens = Tokens {
        prompt: sum(|one| one.baseline.prompt_tokens),
        completion: sum(|one| one.baseline.completion_tokens),
    };
    Ok(Some(Prompted::of(base, &figures, tokens)))
}

impl Prompted {
    fn of(baseline: String, figures: &Figures, tokens: Tokens) -> Self {
        Self {
            baseline,
            wins: figures.wins,
            losses: figures.losses,
            ties: figures.ties,
            format: figures.format,
            tokens,
        }
    }

    /// Shown to be worse, by an exact sign test.
    pub(crate) fn is_worse(&self) -> bool {
        self.losses > self.wins && sign_test(self.wins, self.losses) < SIGNIFICANCE
    }

    /// For people.
    pub(crate) fn in_words(&self) -> String {
        let also = match self.is_worse() {
            true => "; that is worse: the prompt does better than an adapter",
            false => "",
        };
        format!(
            "{} of {} prompts answered better than {} with its full prompt, {} worse, {} alike; {} answers keep the format, {} of its own{also}",
            self.wins,
            self.wins + self.losses + self.ties,
            self.baseline,
            self.losses,
            self.ties,
            self.format.candidate,
            self.format.baseline
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_losses_show_nothing() {
        let of = |wins, losses| {
            let figures = Figures {
                wins,
                losses,
                ..Figures::default()
            };
            Prompted::of("ask@base".to_owned(), &figures, Tokens::default())
        };
        assert!(of(2, 14).is_worse() && of(2, 14).in_words().contains("worse: the prompt"));
        assert!(!of(0, 5).is_worse());
        assert!(!of(14, 2).is_worse());
        assert!(!of(60, 70).is_worse());
    }
}
