//! Bases and prompts, measured on what was logged: what would the answers be like, had the task another base or another full prompt?
//!
//! Every candidate is asked the same rows, by a running server as an app would ask it, so that what is measured is what would be served: chat
//! template, limits and the enforcing of the format included. The rows' known answers are people's: corrections, and answers that were rated
//! 5. Held-out rows come first, which later examinations use as well. Which rows are asked follows from their ids alone, so that two
//! measurements on the same ledger can be compared.

use retune_stats::{lower_limit, upper_limit};
use retune_task::{EngineKind, ModelName, Split, Task, question, sha256};
use serde::Serialize;

use super::prompts::NamedPrompt;
use super::{BROKEN, CONFIDENCE};
use crate::curate::plain;
use crate::dataset::{Dataset, Row};
use crate::examine::{Asking, CONCURRENCY};
use crate::judge::known::closeness;
use crate::server::{Answer, Question, Server};
use crate::{Error, Limits};

/// Words of a question that are in no prompt by chance.
const TELLING: usize = 4;

/// The rows that candidates are asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    pub rows: Vec<Row>,
    /// Rows that were passed over, since a prompt has them among its examples.
    pub in_prompts: u64,
}

impl Drawn {
    pub fn held_out(&self) -> usize {
        let is_held_out = |row: &&Row| row.split == Split::HeldOut;
        self.rows.iter().filter(is_held_out).count()
    }
}

/// Up to `most` rows with a known answer that is good enough to judge by: held-out ones first, then what chooses checkpoints, then what
/// is trained on, which bases without an adapter have not seen either.
///
/// # Errors
/// There is none.
pub fn draw(
    task: &Task,
    dataset: &Dataset,
    prompts: &[NamedPrompt],
    most: usize,
) -> Result<Drawn, Error> {
    let mut gold: Vec<&Row> = dataset.rows().filter(|row| row.is_gold()).collect();
    gold.sort_by_cached_key(|row| {
        let lot = sha256(&format!("measure\n{}", row.request_id));
        (std::cmp::Reverse(row.split), lot)
    });
    let texts: Vec<String> = prompts.iter().map(|prompt| padded(&prompt.text)).collect();
    let mut drawn = Drawn {
        rows: Vec::new(),
        in_prompts: 0,
    };
    for row in gold {
        if drawn.rows.len() >= most {
            break;
        }
        match texts.iter().any(|text| shows(text, row)) {
            true => drawn.in_prompts += 1,
            false => drawn.rows.push(row.clone()),
        }
    }
    match drawn.rows.is_empty() {
        true => Err(Error::NothingKnown {
            task: task.name.clone(),
            in_prompts: drawn.in_prompts,
        }),
        false => Ok(drawn),
    }
}

fn padded(text: &str) -> String {
    format!(" {} ", plain(text))
}

/// Whether a prompt has the row's question in it, as an example would: a short one only beside its answer.
fn shows(prompt: &str, row: &Row) -> bool {
    let question = padded(question(&row.messages).unwrap_or_default());
    let telling = question.split_whitespace().count() >= TELLING;
    let has = |text: &str| !text.trim().is_empty() && prompt.contains(text);
    has(&question) && (telling || has(&padded(&row.answer)))
}

/// A base with a full prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Candidate {
    pub base: String,
    /// Bytes of the base's weights; none where they are not on this machine.
    pub weight_bytes: Option<u64>,
    pub prompt: String,
}

/// How many of all, as a share, with its one-sided 95 % limits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Share {
    pub count: u64,
    pub share: f64,
    pub at_least: f64,
    pub at_most: f64,
}

impl Share {
    pub(super) fn of(count: u64, all: u64) -> Self {
        Self {
            count,
            share: count as f64 / all.max(1) as f64,
            at_least: lower_limit(count, all, CONFIDENCE),
            at_most: upper_limit(count, all, CONFIDENCE),
        }
    }
}

/// What a candidate answered, counted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    #[serde(flatten)]
    pub candidate: Candidate,
    pub rows: u64,
    /// Answers that hold the task's format; none where it has no format.
    pub format_valid: Option<Share>,
    /// Answers that are right: at least as close to the known one as was asked for, and in the format.
    pub right: Share,
    /// To the known answers, mean, 0 to 1.
    pub closeness: f64,
    /// Of an exchange, means over what was answered.
    pub prompt_tokens: f64,
    pub completion_tokens: f64,
    /// From the question to the last token, mean over the same.
    pub seconds: f64,
    /// Good enough to serve as it is.
    pub will_do: bool,
    /// Which rows were answered rightly, in their order: what two candidates are compared by.
    #[serde(skip)]
    pub(super) right_by_row: Vec<bool>,
}

impl Measured {
    /// Tokens of an exchange, mean.
    pub(super) fn tokens(&self) -> f64 {
        self.prompt_tokens + self.completion_tokens
    }

    /// Whether it is shown to break the format more often than a prompt may.
    pub(super) fn breaks_the_format(&self) -> bool {
        let valid = self.format_valid.as_ref();
        valid.is_some_and(|valid| valid.at_most < 1.0 - BROKEN)
    }
}

/// What candidates are held against.
#[derive(Debug, Clone)]
pub struct Yardstick<'a> {
    pub task: &'a Task,
    pub engine: &'a EngineKind,
    pub rows: &'a [Row],
    /// Share of right answers that is wanted.
    pub good_enough: f64,
    /// How close to the known answer a right one is, 0 to 1.
    pub close_enough: f64,
}

impl Yardstick<'_> {
    /// Asks the server at `url`, which has the candidate's base and prompt, every row; `observer` is told how many are done.
    ///
    /// # Errors
    /// What the server refused; no row that fits into the base's context.
    pub async fn measure(
        &self,
        http: reqwest::Client,
        url: &str,
        candidate: Candidate,
        observer: &mut (dyn FnMut(usize) + Send),
    ) -> Result<Measured, Error> {
        let server = Server::new(http, url, &Limits::default()).like_a_user();
        let model = ModelName::of(&self.task.name, None).to_string();
        // The embedded engine computes one answer at a time: asked one by one, how long they take is what one of them takes.
        let at_once = match self.engine {
            EngineKind::Embedded => 1,
            EngineKind::Upstream(_) => CONCURRENCY,
        };
        let questions = self.rows.iter().map(|row| Question {
            // Nothing is kept that could be forgotten.
            user: None,
            ..Question::from(row)
        });
        let mut asking = Asking::each(at_once, questions, move |question| {
            let (server, model) = (server.clone(), model.clone());
            async move {
                let answer = server.ask(&model, &question, "advise").await?;
                match answer.adapter == model {
                    true => Ok(answer),
                    false => Err(Error::WrongModel {
                        what: format!("`{}` answered", answer.adapter),
                        asked: model,
                    }),
                }
            }
        });
        while let Some(done) = asking.next().await? {
            observer(done);
        }
        self.count(candidate, &asking.finish())
    }

    /// Counts the answers, which stand in the rows' order. Pure.
    ///
    /// A candidate will do where its share of right answers is shown to be `good_enough`, by the lower limit, and its format is not shown
    /// broken. That it will do ends the search and takes the reason for a training away, so that it has to be shown; a few rows that
    /// came out well show nothing, and of many candidates the luckiest looks better than it is.
    fn count(&self, candidate: Candidate, answers: &[Answer]) -> Result<Measured, Error> {
        let format = self.task.format.as_ref();
        let valid = |answer: &str| format.is_none_or(|format| format.check(answer).is_valid());
        let (mut valids, mut close, mut right_by_row) = (0, 0.0, Vec::new());
        for (row, answer) in self.rows.iter().zip(answers) {
            let (said, closeness) = (
                valid(&answer.content),
                closeness(&row.answer, &answer.content),
            );
            valids += u64::from(said);
            close += closeness;
            right_by_row.push(said && closeness >= self.close_enough);
        }
        // What did not fit into the model's context took none.
        let fitting: Vec<&Answer> = answers
            .iter()
            .filter(|answer| answer.prompt_tokens > 0)
            .collect();
        if fitting.is_empty() {
            return Err(Error::NothingFits {
                base: candidate.base,
                prompt: candidate.prompt,
            });
        }
        let mean = |of: fn(&Answer) -> f64| {
            fitting.iter().map(|answer| of(answer)).sum::<f64>() / fitting.len() as f64
        };
        let rows = right_by_row.len() as u64;
        let right = right_by_row.iter().filter(|right| **right).count() as u64;
        let mut measured = Measured {
            candidate,
            rows,
            format_valid: format.map(|_| Share::of(valids, rows)),
            right: Share::of(right, rows),
            closeness: close / rows.max(1) as f64,
            prompt_tokens: mean(|answer| answer.prompt_tokens as f64),
            completion_tokens: mean(|answer| answer.completion_tokens as f64),
            seconds: mean(|answer| answer.seconds),
            will_do: false,
            right_by_row,
        };
        measured.will_do =
            measured.right.at_least >= self.good_enough && !measured.breaks_the_format();
        Ok(measured)
    }

    /// The share that so many rows show where all of them are answered rightly: what is wanted beyond it nothing can reach.
    pub fn most_that_can_be_shown(&self) -> f64 {
        let rows = self.rows.len() as u64;
        lower_limit(rows, rows, CONFIDENCE)
    }
}

#[cfg(test)]
#[path = "measure_tests.rs"]
mod tests;
