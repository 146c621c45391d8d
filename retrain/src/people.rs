//! People as judges: a run puts its pairs, ends its process, and goes on when enough of them have a vote.
//!
//! How many are enough the sequential test says, after each vote, in the order in which they came: what comes after it has decided changes
//! nothing, so whoever looks later arrives at the same verdict. Undecided pairs wait until `judge.days` are over.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use retune_ledger::{Ledger, Pair, PairVote, Pairs, Run, Stage};
use retune_stats::Told;
use retune_task::{Choice, Marks, ModelName, Task, question};

use crate::book::{Book, JUDGING};
use crate::conclusion::conclude;
use crate::examine::Voted;
use crate::judge::rubric::criteria;
use crate::judge::{self, Vote};
use crate::report::{Report, SAMPLES, Sample};
use crate::run::Event;
use crate::stages::{self, Observer};
use crate::verdict::{Figures, Verdict};
use crate::{Error, Options};

/// What people have said by now, up to the vote that decided.
struct Tally {
    figures: Figures,
    /// In the pairs' order.
    votes: Vec<Voted>,
    /// The candidate's marks, and the baseline's.
    marks: Vec<(Marks, Marks)>,
    /// Votes of people.
    voted: usize,
    /// Pairs that they are asked about.
    asked: usize,
}

impl Tally {
    /// `counted`: what was counted of the answers themselves.
    fn of(pairs: &Pairs, votes: &[(String, PairVote)], counted: Figures) -> Self {
        let mut tally = Self {
            figures: Figures {
                wins: 0,
                losses: 0,
                ties: 0,
                ..counted
            },
            votes: Vec::new(),
            marks: Vec::new(),
            voted: 0,
            asked: pairs.asked().count(),
        };
        let by_id: HashMap<&str, &Pair> = pairs.asked().map(|of| (of.id.as_str(), of)).collect();
        let plain: Vec<(&Pair, Choice)> = pairs
            .pairs
            .iter()
            .filter(|pair| !pair.asked)
            .filter_map(|pair| Some((pair, pair.judged?)))
            .collect();
        let mut choices: HashMap<&str, Choice> = HashMap::new();
        let mut by_time: Vec<&(String, PairVote)> = votes.iter().collect();
        by_time.sort_by_key(|(id, vote)| (vote.at, id));
        let mut counted = 0;
        for (id, vote) in by_time {
            if tally.figures.told() != Told::Open {
                break;
            }
            let Some(pair) = by_id.get(id.as_str()) else {
                continue;
            };
            tally.voted += 1;
            let marks = (vote.left.clone(), vote.right.clone());
            tally
                .marks
                .push(judge::unseat(marks.0, marks.1, pair.candidate));
            let mut count = |pair: &'_ Pair, choice| {
                tally.figures.vote(judge::unblind(choice, pair.candidate));
            };
            count(pair, vote.choice);
            choices.insert(&pair.id, vote.choice);
            // As large a share of what is plain as of what people are asked, in the order that was drawn: all of it first would begin the test
            // near its end, with answers that are like no others.
            let due = plain.len() * tally.voted / tally.asked.max(1);
            for (pair, choice) in plain.iter().take(due).skip(counted) {
                count(pair, *choice);
                choices.insert(&pair.id, *choice);
            }
            counted = due.max(counted);
        }
        let voted = |pair: &Pair| Some(Voted::of(pair, *choices.get(pair.id.as_str())?));
        tally.votes = pairs.pairs.iter().filter_map(voted).collect();
        tally
    }

    fn is_settled(&self, until: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        self.figures.told() != Told::Open || self.voted == self.asked || now >= until
    }
}

/// Whether an examination needs to ask people at all: not where the answers have told already.
pub(crate) fn is_open(task: &Task, pairs: &[Pair], figures: &Figures) -> bool {
    pairs.iter().any(|pair| pair.asked)
        && figures.examined() >= task.retrain.min_pairs as u64
        && !figures.worse()
}

/// Leaves the run to people.
pub(crate) async fn leave(
    o: &Options,
    book: &mut Book<'_>,
    mut report: Report,
    pairs: &Pairs,
    observer: Observer<'_>,
) -> Result<Report, Error> {
    o.ledger.put_pairs(pairs).await?;
    let asked = pairs.asked().count();
    tell(&mut report, pairs, 0, asked);
    stages::show_nothing_forgotten(o, &mut report).await?;
    book.fill(&report);
    book.run.report = Some(serde_json::to_value(&report).map_err(Error::Report)?);
    book.run.error = None;
    book.enter(JUDGING, observer).await?;
    book.waits(0, asked).await?;
    observer(&Event::Waiting {
        voted: 0,
        asked,
        until: pairs.until,
    });
    Ok(report)
}

fn tell(report: &mut Report, pairs: &Pairs, voted: usize, asked: usize) {
    report.verdict = Verdict::Wait;
    report.reasons = vec![format!(
        "{} of {asked} pairs wait for people (GET /v1/pairs, until {})",
        asked - voted,
        pairs.until.format("%F %T UTC")
    )];
}

/// Takes up a run that people were left with: to its end if they have decided or their time is over, else it goes on waiting.
pub(crate) async fn go_on(
    o: &Options,
    task: &Task,
    book: &mut Book<'_>,
    mut report: Report,
    observer: Observer<'_>,
) -> Result<Report, Error> {
    let Some((pairs, votes)) = found(&o.ledger, task, &report).await? else {
        report.reasons = vec!["the pairs that people were asked about are gone".to_owned()];
        return stages::finish(o, task, book, report, observer).await;
    };
    let tally = Tally::of(&pairs, &votes, report.figures.unwrap_or_default());
    if has_moved(&o.ledger, task, pairs.number).await? {
        o.ledger.end_pairs(&task.name, pairs.number).await?;
        report.reasons = vec![format!(
            "{} of {} pairs had a vote of people when somebody decided about it",
            tally.voted, tally.asked
        )];
        return stages::finish(o, task, book, report, observer).await;
    }
    if !tally.is_settled(pairs.until, Utc::now()) {
        tell(&mut report, &pairs, tally.voted, tally.asked);
        book.waits(tally.voted, tally.asked).await?;
        observer(&Event::Waiting {
            voted: tally.voted,
            asked: tally.asked,
            until: pairs.until,
        });
        return Ok(report);
    }
    o.ledger.end_pairs(&task.name, pairs.number).await?;
    if let Some(judging) = &mut report.judging {
        judging.rubric = criteria(&tally.marks);
        judging.voted = tally.voted as u64;
    }
    (report.won, report.lost) = samples(&o.ledger, &pairs, &tally.votes).await?;
    conclude(task, &mut report, &pairs.pairs, tally.figures, tally.votes);
    stages::finish(o, task, book, report, observer).await
}

/// Whether a run that waits for people would come to its end now.
pub(crate) async fn is_settled(ledger: &Ledger, task: &Task, run: &Run) -> Result<bool, Error> {
    let report = run.report.clone();
    let report = report.and_then(|report| serde_json::from_value::<Report>(report).ok());
    let Some(report) = report else {
        return Ok(true);
    };
    if is_moved(ledger, task, run).await? {
        return Ok(true);
    }
    let found = found(ledger, task, &report).await?;
    Ok(found.is_none_or(|(pairs, votes)| {
        Tally::of(&pairs, &votes, report.figures.unwrap_or_default())
            .is_settled(pairs.until, Utc::now())
    }))
}

/// Whether somebody has decided about a run's candidate while it waited.
pub(crate) async fn is_moved(ledger: &Ledger, task: &Task, run: &Run) -> Result<bool, Error> {
    match run.adapter.as_deref().and_then(ModelName::number_of) {
        Some(number) => has_moved(ledger, task, number).await,
        None => Ok(false),
    }
}

async fn has_moved(ledger: &Ledger, task: &Task, number: u32) -> Result<bool, Error> {
    let stages = ledger.stages(&task.name).await?;
    Ok(stages.champion == Some(number) || stages.stage(number) == Stage::Rejected)
}

/// How many of its pairs have a vote.
pub(crate) async fn voted(ledger: &Ledger, task: &Task, run: &Run) -> Result<usize, Error> {
    let number = run.adapter.as_deref().and_then(ModelName::number_of);
    Ok(match number {
        Some(number) => ledger.voted(&task.name, number).await?.len(),
        None => 0,
    })
}

/// The run's pairs, with people's votes.
async fn found(
    ledger: &Ledger,
    task: &Task,
    report: &Report,
) -> Result<Option<(Pairs, Vec<(String, PairVote)>)>, Error> {
    let number = report.adapter.as_deref().and_then(ModelName::number_of);
    let Some(number) = number else {
        return Ok(None);
    };
    let pairs = ledger.pairs(&task.name, number).await?;
    let votes = ledger.votes(&task.name, number).await?;
    Ok(pairs.map(|pairs| (pairs, votes)))
}

/// Some that were won, and some that were lost, with their texts.
async fn samples(
    ledger: &Ledger,
    pairs: &Pairs,
    votes: &[Voted],
) -> Result<(Vec<Sample>, Vec<Sample>), Error> {
    let (mut won, mut lost) = (Vec::new(), Vec::new());
    for voted in votes {
        let into = match voted.vote {
            Vote::Win => &mut won,
            Vote::Loss => &mut lost,
            Vote::Tie => continue,
        };
        let mut all = pairs.pairs.iter();
        let pair = all.find(|pair| pair.request_id == voted.request_id);
        if let Some(pair) = pair.filter(|_| into.len() < SAMPLES) {
            into.extend(sample(ledger, pair).await?);
        }
    }
    Ok((won, lost))
}

async fn sample(ledger: &Ledger, pair: &Pair) -> Result<Option<Sample>, Error> {
    let mut found = Vec::new();
    for id in [&pair.left, &pair.right].into_iter().flatten() {
        found.extend(ledger.exchange(id).await?);
    }
    let Ok([left, right]) = <[_; 2]>::try_from(found) else {
        return Ok(None);
    };
    let asked = question(left.messages.as_deref().unwrap_or_default());
    let prompt = asked.unwrap_or_default().to_owned();
    let (candidate, baseline) = judge::unseat(left.answer, right.answer, pair.candidate);
    Ok(Some(Sample {
        request_id: pair.request_id.clone(),
        prompt,
        // People judge without one.
        known: String::new(),
        candidate: candidate.unwrap_or_default(),
        baseline: baseline.unwrap_or_default(),
    }))
}

#[cfg(test)]
#[path = "people_tests.rs"]
mod tests;
