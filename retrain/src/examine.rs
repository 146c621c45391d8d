//! The examination: candidate and baseline answer the same prompts through the running server, as an app would ask them.
//!
//! Which prompts, and in which order, is fixed before the first is asked: the held-out rows whose known answer is good enough to judge by, then
//! prompts logged after the dataset was read. There have to be `min_pairs`; as many are asked, and more of those that there are only while
//! the votes leave the verdict open. The order is by lot, so that however many are asked speak for all. No conversation that the training has seen is
//! examined, and none twice.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::TimeDelta;
use retune_ledger::{
    Counts, Cursor, Exchange, ExchangeQuery, FeedbackQuery, Ledger, Pair, Purpose, Sample,
};
use retune_task::{Check, Choice, HeldOutBy, JudgedBy, RetrainPolicy, Side, Task, Traits};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::book::Book;
use crate::dataset::{self, Dataset, KnownBy, Row};
use crate::judge::{self, Judged, Vote};
use crate::run::Event;
use crate::server::{Answer, Question, Server};
use crate::stages::Observer;
use crate::verdict::{Figures, length_fits};
use crate::{Error, Options, slices, trust};

/// Prompts under examination at once; each asks the candidate and then the baseline.
pub(crate) const CONCURRENCY: usize = 4;
/// Rows of several replicas may become visible this much out of order.
const DISORDER_SECONDS: i64 = 120;

/// What the dataset was made from, so that later rows are told from those it saw.
pub(crate) struct Snapshot {
    seen: HashSet<String>,
    after: Option<Cursor>,
    /// The last exchange in it.
    pub(crate) last: Option<Cursor>,
    /// Exchanges a day, from the first to the last; None where that is no time.
    pub(crate) per_day: Option<f64>,
}

impl Snapshot {
    pub(crate) fn of(exchanges: &[Exchange]) -> Self {
        let last = exchanges
            .iter()
            .max_by_key(|exchange| (exchange.ts, &exchange.replica, exchange.seq));
        let after = last.map(|exchange| Cursor {
            ts: exchange.ts - TimeDelta::seconds(DISORDER_SECONDS),
            replica: exchange.replica.clone(),
            seq: exchange.seq,
        });
        Self {
            seen: exchanges
                .iter()
                .map(|exchange| exchange.request_id.clone())
                .collect(),
            after,
            last: last.map(Exchange::cursor),
            per_day: per_day(exchanges),
        }
    }
}

fn per_day(exchanges: &[Exchange]) -> Option<f64> {
    // What was written for the dataset is no traffic.
    let asked = || {
        let users = |exchange: &&Exchange| exchange.purpose == Purpose::User;
        exchanges.iter().filter(users)
    };
    let times = || asked().map(|exchange| exchange.ts);
    let seconds = (times().max()? - times().min()?).as_seconds_f64();
    (seconds > 0.0).then(|| asked().count() as f64 / seconds * 86_400.0)
}

/// The prompts that may be examined, up to `max_pairs`: held-out ones, then later ones. Where the known answer judges it has to be good enough
/// for that; where somebody else does, any that may be trained on will do.
pub(crate) fn choose(policy: &RetrainPolicy, dataset: &Dataset, later: &Dataset) -> Vec<Row> {
    let max_pairs = policy.max_pairs;
    let by_known = policy.judge.by == JudgedBy::KnownAnswer;
    let may_judge = |row: &&Row| match by_known {
        true => row.is_gold(),
        false => row.known_by != KnownBy::Synthetic,
    };
    let seen = dataset.seen_conversations();
    let held_out: Vec<&Row> = dataset.held_out.iter().filter(may_judge).collect();
    // The newest where there are too many: they are nearest to the traffic that the adapter is for.
    let mut list: Vec<Row> = held_out
        .iter()
        .skip(held_out.len().saturating_sub(max_pairs))
        .map(|&row| row.clone())
        .collect();
    let held_out: HashSet<&str> = dataset
        .held_out
        .iter()
        .map(|row| row.conversation.as_str())
        .collect();
    let mut later: Vec<&Row> = later
        .rows()
        .filter(may_judge)
        .filter(|row| {
            !seen.contains(row.conversation.as_str())
                && !held_out.contains(row.conversation.as_str())
        })
        .collect();
    later.sort_by_key(|row| (row.ts, &row.request_id));
    let wanted = max_pairs.saturating_sub(list.len());
    list.extend(later.into_iter().take(wanted).cloned());
    list
}

/// Waits until there are `min_pairs` prompts to examine or the limit is reached; told as they grow.
pub(crate) async fn wait_for_list(
    o: &Options,
    task: &Task,
    dataset: &Dataset,
    snapshot: &Snapshot,
    book: &mut Book<'_>,
    observer: Observer<'_>,
) -> Result<Vec<Row>, Error> {
    let (min_pairs, max_pairs) = (task.retrain.min_pairs, task.retrain.max_pairs);
    let deadline = tokio::time::Instant::now() + o.limits.pairs;
    let mut list = choose(&task.retrain, dataset, &Dataset::default());
    loop {
        if list.len() < max_pairs {
            list = choose(
                &task.retrain,
                dataset,
                &later(&o.ledger, task, snapshot).await?,
            );
        }
        let (have, wanted) = (list.len(), min_pairs);
        observer(&Event::Pairs { have, wanted });
        if have >= wanted || tokio::time::Instant::now() >= deadline {
            return Ok(list);
        }
        book.progress(have, wanted).await?;
        tokio::time::sleep(o.limits.poll).await;
    }
}

/// Puts the prompts into the order in which they are asked: by lot, the same one whenever the run is repeated.
pub(crate) fn draw(run_id: &str, list: &mut [Row]) {
    list.sort_by_cached_key(|row| {
        retune_task::sha256(&format!("order\n{run_id}\n{}", row.request_id))
    });
}

/// The dataset of what was logged after the snapshot.
async fn later(ledger: &Ledger, task: &Task, snapshot: &Snapshot) -> Result<Dataset, Error> {
    let query = ExchangeQuery {
        task: Some(task.name.clone()),
        purpose: Some(Purpose::User),
        after: snapshot.after.clone(),
        ..ExchangeQuery::default()
    };
    let mut exchanges = ledger.exchanges(&query).await?;
    exchanges.retain(|exchange| !snapshot.seen.contains(&exchange.request_id));
    let since = FeedbackQuery {
        since: snapshot.after.as_ref().map(|after| after.ts),
        ..FeedbackQuery::default()
    };
    let feedback = trust::feedback(ledger, &since).await?;
    let later = dataset::build(task, &exchanges, &feedback);
    Ok(match task.retrain.held_out_by {
        HeldOutBy::Conversation => later,
        // Others may be known to the training.
        HeldOutBy::User => Dataset {
            held_out: later.held_out,
            ..Dataset::default()
        },
    })
}

/// One prompt, examined.
#[derive(Debug, Clone)]
pub(crate) struct Examined {
    pub(crate) row: Row,
    pub(crate) candidate: Answer,
    pub(crate) baseline: Answer,
}

impl Examined {
    /// Prompts with their answers, which stand in the same order.
    pub(crate) fn all(list: &[Row], answers: Vec<Answers>) -> impl Iterator<Item = Self> {
        list.iter().zip(answers).map(|(row, answers)| Self {
            row: row.clone(),
            candidate: answers.candidate,
            baseline: answers.baseline,
        })
    }
}

impl From<&Row> for Question {
    fn from(row: &Row) -> Self {
        Self {
            messages: row.messages.clone(),
            user: row.user.clone(),
            may_be_refused: false,
        }
    }
}

/// What both said to one question.
#[derive(Debug, Clone)]
pub(crate) struct Answers {
    pub(crate) candidate: Answer,
    pub(crate) baseline: Answer,
}

/// Who is compared, and for which run.
#[derive(Debug, Clone)]
pub(crate) struct Contest {
    pub(crate) run_id: String,
    pub(crate) candidate: String,
    /// The candidate's digest: every answer of it must carry it.
    pub(crate) digest: String,
    pub(crate) baseline: String,
}

/// Every question of a list is asked, a few at a time. Dropping it stops the asking.
pub(crate) struct Asking<T> {
    asking: JoinSet<Result<(usize, T), Error>>,
    answered: Vec<(usize, T)>,
}

impl Asking<Answers> {
    /// Asks both, in turn one of them first: who is always first waits for the other questions, and seems slower.
    pub(crate) fn start(
        server: &Server,
        contest: &Contest,
        questions: impl Iterator<Item = Question>,
    ) -> Self {
        let (server, contest) = (server.clone(), Arc::new(contest.clone()));
        let turn = AtomicUsize::new(0);
        Self::each(CONCURRENCY, questions, move |question| {
            let (server, contest) = (server.clone(), Arc::clone(&contest));
            let is_first = turn.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
            async move { ask_both(&server, &contest, &question, is_first).await }
        })
    }
}

impl<T: Send + 'static> Asking<T> {
    /// Has `ask` ask each, so many at once.
    pub(crate) fn each<F>(
        at_once: usize,
        questions: impl Iterator<Item = Question>,
        ask: impl Fn(Question) -> F,
    ) -> Self
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let slots = Arc::new(Semaphore::new(at_once));
        let mut asking = JoinSet::new();
        for (index, question) in questions.enumerate() {
            let (asked, slots) = (ask(question), Arc::clone(&slots));
            asking.spawn(async move {
                let _slot = slots.acquire_owned().await.map_err(|_| Error::Stopped)?;
                asked.await.map(|answer| (index, answer))
            });
        }
        Self {
            asking,
            answered: Vec::new(),
        }
    }

    /// Waits for one more prompt; how many are done, `None` once all are. The first error ends the asking.
    pub(crate) async fn next(&mut self) -> Result<Option<usize>, Error> {
        let Some(finished) = self.asking.join_next().await else {
            return Ok(None);
        };
        self.answered.push(finished.map_err(|_| Error::Stopped)??);
        Ok(Some(self.answered.len()))
    }

    /// The answers, in the list's order.
    pub(crate) fn finish(mut self) -> Vec<T> {
        self.answered.sort_by_key(|(index, _)| *index);
        let answered = self.answered.into_iter();
        answered.map(|(_, answer)| answer).collect()
    }
}

async fn ask_both(
    server: &Server,
    contest: &Contest,
    question: &Question,
    candidate_first: bool,
) -> Result<Answers, Error> {
    let ask = |model| server.ask(model, question, &contest.run_id);
    let (candidate, baseline) = match candidate_first {
        true => {
            let candidate = ask(&contest.candidate).await?;
            (candidate, ask(&contest.baseline).await?)
        }
        false => {
            let baseline = ask(&contest.baseline).await?;
            (ask(&contest.candidate).await?, baseline)
        }
    };
    for (asked, answer) in [
        (&contest.candidate, &candidate),
        (&contest.baseline, &baseline),
    ] {
        if answer.adapter != *asked {
            return Err(Error::WrongModel {
                asked: asked.clone(),
                what: format!("`{}` answered", answer.adapter),
            });
        }
    }
    match &candidate.digest {
        Some(digest) if *digest != contest.digest => Err(Error::WrongModel {
            asked: contest.candidate.clone(),
            what: format!(
                "answered with digest {digest} instead of {}",
                contest.digest
            ),
        }),
        _ => Ok(Answers {
            candidate,
            baseline,
        }),
    }
}

/// One prompt's vote: what a report shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voted {
    pub request_id: String,
    pub vote: Vote,
    /// The side the candidate sat on.
    pub seat: Side,
    pub format_valid: bool,
    pub baseline_format_valid: bool,
}

impl Voted {
    /// A choice of a pair.
    pub(crate) fn of(pair: &Pair, choice: Choice) -> Self {
        Self {
            request_id: pair.request_id.clone(),
            vote: judge::unblind(choice, pair.candidate),
            seat: pair.candidate,
            format_valid: pair.format_valid,
            baseline_format_valid: pair.baseline_format_valid,
        }
    }
}

/// What the judge said, and what both kept. Pure.
pub(crate) fn count(
    task: &Task,
    run_id: &str,
    examined: &[Examined],
    judged: &[Judged],
) -> Figures {
    let mut figures = Figures::default();
    for (one, judged) in examined.iter().zip(judged) {
        if let Some(choice) = judged.choice {
            let seat = judge::seat(run_id, &one.row.request_id);
            figures.vote(judge::unblind(choice, seat));
        }
        let (candidate, baseline) = (&one.candidate.content, &one.baseline.content);
        let known = &one.row.answer;
        figures
            .format
            .observe(is_valid(task, candidate), is_valid(task, baseline));
        figures
            .length
            .observe(length_fits(known, candidate), length_fits(known, baseline));
    }
    figures
}

fn is_valid(task: &Task, answer: &str) -> bool {
    let format = task.format.as_ref();
    format.is_none_or(|format| format.check(answer).is_valid())
}

/// The pairs as the ledger keeps them, with the parts of the traffic that each belongs to; all in one order.
pub(crate) fn pairs(
    task: &Task,
    contest: &Contest,
    examined: &[Examined],
    judged: &[Judged],
) -> Vec<Pair> {
    let rows = examined.iter().map(|one| &one.row);
    let parts = slices::parts(&task.retrain.slices, rows);
    let all = examined.iter().zip(judged).zip(parts);
    let pair = |((one, judged), parts): ((&Examined, &Judged), Vec<(String, String)>)| {
        let request_id = &one.row.request_id;
        let candidate = judge::seat(&contest.run_id, request_id);
        let ids = (one.candidate.id.clone(), one.baseline.id.clone());
        let (left, right) = judge::unseat(ids.0, ids.1, candidate);
        let secret = format!("pair\n{}\n{}\n{request_id}", contest.run_id, contest.digest);
        let digest = retune_task::sha256(&secret);
        Pair {
            id: format!("pair-{}", &digest[..24]),
            request_id: request_id.clone(),
            asked: judged.plain.is_none() && left.is_some() && right.is_some(),
            left,
            right,
            candidate,
            format_valid: is_valid(task, &one.candidate.content),
            baseline_format_valid: is_valid(task, &one.baseline.content),
            parts,
            judged: judged.choice.or(judged.plain),
        }
    };
    all.map(pair).collect()
}

/// What the candidate's answers are like: the yardstick of what it will answer.
pub(crate) fn counted(task: &Task, examined: &[Examined]) -> Counts {
    let mut sample = Sample::default();
    for Examined { candidate, .. } in examined {
        if let Some(format) = &task.format {
            let check = format.check(&candidate.content);
            let failed = match &check {
                Check::Valid => None,
                Check::Invalid { reason, .. } => Some(*reason),
            };
            sample.check(failed, candidate.was_cut_off);
        }
        sample.text(&Traits::of(&candidate.content));
    }
    sample.freeze()
}

#[cfg(test)]
#[path = "examine_tests.rs"]
mod tests;
