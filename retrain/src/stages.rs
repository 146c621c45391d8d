//! The work of each state of a run, in order; `run` decides where to begin.

use std::collections::HashSet;
use std::time::Instant;

use chrono::{DateTime, Utc};
use retune_ledger::{
    AdapterRef, FeedbackQuery, Pair, Pairs, Reference, Span, Stage, Table, Trigger,
};
use retune_task::{Enforce, ModelName, Task, question};

use crate::book::{Book, DATASET, DONE, EXAMINING};
use crate::conclusion::conclude;
use crate::cost::{self, Corrections, Counted, Side, Tokens};
use crate::coverage;
use crate::dataset::Dataset;
use crate::examine::{self, Contest, Examined, Snapshot, Voted};
use crate::judge::{Judge, Judged, Vote, known};
use crate::pace::Pace;
use crate::regression::Regression;
use crate::report::{Lineage, Report, SAMPLES, Sample};
use crate::run::Event;
use crate::server::{Answer, Question, Server};
use crate::verdict::{self, Verdict};
use crate::{
    Error, Options, StartedBy, candidate, jury, people, promote, prompted, regression, shelf,
    staging, trust,
};

pub(crate) type Observer<'a> = &'a mut (dyn FnMut(&Event) + Send);

/// All of it, from reading the ledger on.
pub(crate) async fn from_the_start(
    o: &Options,
    task: &Task,
    book: &mut Book<'_>,
    observer: Observer<'_>,
) -> Result<Report, Error> {
    let server = Server::new(o.http.clone(), &o.server, &o.limits);
    let judge = Judge::of(&task.retrain.judge, &o.limits)?;
    judge.tried().await?;
    staging::clear_leftovers(o, task, &server, &book.run.run_id).await?;

    book.enter(DATASET, observer).await?;
    let (dataset, snapshot, mut report) = read(o, task, book).await?;
    observer(&Event::Dataset {
        counts: dataset.counts.clone(),
        train: dataset.train.len(),
        development: dataset.development.len(),
        held_out: dataset.held_out.len(),
    });
    if let Some(reason) = too_few(task, &dataset) {
        // Of an earlier try, when there were enough.
        report.training_seconds = Some(book.training_seconds()).filter(|seconds| *seconds > 0.0);
        report.reasons = vec![reason];
        return finish(o, task, book, report, observer).await;
    }

    server.is_there().await?;
    let candidate = candidate::make(o, task, book, &dataset, &mut report, observer).await?;

    book.fill(&report);
    book.enter(EXAMINING, observer).await?;
    let waits = examine(
        o,
        task,
        book,
        &server,
        &judge,
        &candidate,
        &dataset,
        &snapshot,
        &mut report,
        observer,
    )
    .await?;
    if let Some(pairs) = waits {
        return people::leave(o, book, report, &pairs, observer).await;
    }
    finish(o, task, book, report, observer).await
}

/// Why nothing can be trained yet.
fn too_few(task: &Task, dataset: &Dataset) -> Option<String> {
    let (have, wanted) = (dataset.len(), task.retrain.min_examples);
    if have < wanted {
        return Some(format!(
            "{have} usable examples, and the policy wants {wanted} (min_examples); collect more ratings and corrections"
        ));
    }
    let parts = [
        ("to train on", &dataset.train),
        ("to choose the checkpoint by", &dataset.development),
        ("to hold out", &dataset.held_out),
    ];
    let (what, _) = parts.iter().find(|(_, rows)| rows.is_empty())?;
    Some(format!(
        "of {have} usable examples none is left {what}; collect more ratings and corrections"
    ))
}

pub(crate) fn name(task: &str, number: u32) -> String {
    ModelName::Adapter {
        task: task.to_owned(),
        number,
    }
    .to_string()
}

/// Reads the ledger into a dataset, and begins the report.
async fn read(
    o: &Options,
    task: &Task,
    book: &Book<'_>,
) -> Result<(Dataset, Snapshot, Report), Error> {
    // The report names the versions: whoever reads the tables at them finds the very rows that this run saw.
    let tables = o.ledger.snapshot().await?;
    let exchanges = tables.exchanges(&shelf::of_dataset(task)).await?;
    let feedback = tables.feedback(&FeedbackQuery::default()).await?;
    let feedback = trust::trusted(&o.ledger, feedback).await?;
    let dataset = shelf::build(task, &exchanges, &feedback);
    let champion = o.ledger.stages(&task.name).await?.champion;
    let baseline = match champion {
        Some(number) => name(&task.name, number),
        None => ModelName::Baseline(task.name.clone()).to_string(),
    };
    let corrections = Corrections::of(&baseline, &exchanges, &feedback);
    let report = Report {
        run_id: book.run.run_id.clone(),
        task: task.name.clone(),
        started_by: book.run.started_by.clone(),
        started: Utc::now(),
        finished: Utc::now(),
        adapter: None,
        digest: None,
        baseline,
        exchanges_version: tables.version(Table::Exchanges),
        feedback_version: tables.version(Table::Feedback),
        dataset: dataset.counts.clone(),
        corrections,
        coverage: coverage::coverage(task, &exchanges, &dataset),
        taken: crate::report::some_of_each(&dataset.taken),
        examples_train: dataset.train.len() as u64,
        examples_development: dataset.development.len() as u64,
        examples_held_out: dataset.held_out.len() as u64,
        examples_too_long: 0,
        loss_first: None,
        loss_last: None,
        chosen_epoch: None,
        training_steps: None,
        training_tokens: None,
        training_seconds: None,
        curve: Vec::new(),
        preferences: None,
        trials: Vec::new(),
        examples_examined: None,
        examination_seconds: None,
        figures: None,
        slices: Vec::new(),
        regression: None,
        prompted: None,
        pace: None,
        lineage: Some(Lineage::of(task, &dataset)),
        votes: None,
        wins: None,
        ties: None,
        p_value: None,
        judge: None,
        judging: None,
        prompt_tokens: None,
        prompt_tokens_baseline: None,
        cost: None,
        verdict: Verdict::Wait,
        reasons: Vec::new(),
        promoted: false,
        won: Vec::new(),
        lost: Vec::new(),
        examined: Vec::new(),
        forgotten: 0,
    };
    Ok((dataset, Snapshot::of(&exchanges), report))
}

/// Votes, figures and verdict into the report, or the pairs that have to wait for people; the candidate's reference for the monitor into the
/// ledger.
#[expect(
    clippy::too_many_arguments,
    reason = "one call: what the earlier states made, side by side"
)]
async fn examine(
    o: &Options,
    task: &Task,
    book: &mut Book<'_>,
    server: &Server,
    judge: &Judge,
    candidate: &AdapterRef,
    dataset: &Dataset,
    snapshot: &Snapshot,
    report: &mut Report,
    observer: Observer<'_>,
) -> Result<Option<Pairs>, Error> {
    let candidate_name = name(&task.name, candidate.number);
    server.load(&candidate_name).await?;
    let wanted = task.retrain.min_pairs;
    let mut list = examine::wait_for_list(o, task, dataset, snapshot, book, observer).await?;

    examine::draw(&report.run_id, &mut list);
    let contest = Contest {
        run_id: report.run_id.clone(),
        candidate: candidate_name.clone(),
        digest: candidate.manifest.digest.clone(),
        baseline: report.baseline.clone(),
    };
    let started = Instant::now();
    let mut examined: Vec<Examined> = Vec::new();
    let mut judged: Vec<Judged> = Vec::new();
    let mut figures = loop {
        let figures = examine::count(task, &report.run_id, &examined, &judged);
        let before = examined.len();
        let total = before + verdict::more(&figures, wanted, list.len());
        if total == before {
            break figures;
        }
        let asked = &list[before..total];
        let questions = asked.iter().map(Question::from);
        let mut asking = examine::Asking::start(server, &contest, questions);
        while let Some(done) = asking.next().await? {
            let done = before + done;
            book.progress(done, total).await?;
            observer(&Event::Examining { done, total });
        }
        examined.extend(Examined::all(asked, asking.finish()));
        let judging = |done| {
            let done = before + done;
            observer(&Event::Judging { done, total });
        };
        let new = &examined[before..];
        judged.extend(judge.judge(task, &report.run_id, new, judging).await?);
    };
    let (before, asked) = (examined.len(), &contest);
    report.regression = regression::examine(task, book, server, asked, before, observer).await?;
    let suite = report.regression.as_ref();
    figures.regression = suite.map(Regression::binding).unwrap_or_default();
    let in_suite = suite.map_or(0, |suite| suite.suite.prompts);

    report.prompted =
        prompted::examine(task, book, server, judge, asked, &examined, observer).await?;

    report.examination_seconds = Some(started.elapsed().as_secs_f64());
    report.judge = Some(judge.name());
    report.prompt_tokens = mean(examined.iter().map(|pair| pair.candidate.prompt_tokens));
    report.prompt_tokens_baseline = mean(examined.iter().map(|pair| pair.baseline.prompt_tokens));
    let counted = Counted {
        training_seconds: book.training_seconds(),
        examined: figures.examined() + in_suite,
        candidate: side(task, &examined, figures.format.candidate, |pair| {
            &pair.candidate
        }),
        baseline: side(task, &examined, figures.format.baseline, |pair| {
            &pair.baseline
        }),
        beside: report
            .prompted
            .as_ref()
            .map(|of| of.tokens)
            .unwrap_or_default(),
        corrections: report.corrections,
        adapter_bytes: retune_ledger::ADAPTER_FILES
            .iter()
            .filter_map(|file| candidate.folder.join(file).metadata().ok())
            .map(|file| file.len())
            .sum(),
        exchanges_per_day: snapshot.per_day,
    };
    let cost = cost::cost(&o.config.cost, &counted, Utc::now());
    report.cost = Some(Box::new(cost));
    let seconds: Vec<(f64, f64)> = examined
        .iter()
        .map(|pair| (pair.candidate.seconds, pair.baseline.seconds))
        .collect();
    report.pace = Pace::of(&seconds);
    let pairs = examine::pairs(task, &contest, &examined, &judged);
    let is_open = people::is_open(task, &pairs, &figures);
    let of = (&pairs[..], &judged[..], is_open);
    let waits = jury::put(o, task, judge, report, candidate.number, of).await?;
    if waits.is_none() {
        let voted = |pair: &Pair| Some(Voted::of(pair, pair.judged?));
        let votes: Vec<Voted> = pairs.iter().filter_map(voted).collect();
        // What is plain, where people were to judge and are not asked.
        if figures.judged() == 0 {
            votes.iter().for_each(|voted| figures.vote(voted.vote));
        }
        report.won = samples(&examined, &votes, Vote::Win);
        report.lost = samples(&examined, &votes, Vote::Loss);
        conclude(task, report, &pairs, figures, votes);
    }
    report.figures = Some(figures);

    // Before any promotion: the monitor must know what to expect of a new champion from its first answer on.
    let reference = Reference {
        task: task.name.clone(),
        adapter: candidate_name.clone(),
        digest: Some(candidate.manifest.digest.clone()),
        created: Utc::now(),
        last: None,
        counts: examine::counted(task, &examined),
        prompts: prompts(o, task, report, snapshot).await?,
    };
    o.ledger.put_reference(&reference).await?;
    Ok(waits)
}

/// Which traffic is normal for an adapter: what the dataset was made of, and of that only what came since the change where a change
/// was the reason.
async fn prompts(
    o: &Options,
    task: &Task,
    report: &Report,
    snapshot: &Snapshot,
) -> Result<Option<Span>, Error> {
    let triggers = o.ledger.triggers(Some(&task.name)).await?;
    let started_by = |trigger: &&Trigger| {
        StartedBy::Trigger(trigger.alarm.clone()).to_string() == report.started_by
    };
    let change = triggers.iter().find(started_by);
    let since = change.and_then(|trigger| trigger.evidence["change"]["since"].as_str());
    let from = since.and_then(|since| since.parse::<DateTime<Utc>>().ok());
    let until = snapshot.last.clone();
    Ok(until.map(|until| Span { from, until }))
}

/// What one side's answers were like, of which `valid` hold the format.
fn side(task: &Task, examined: &[Examined], valid: u64, of: fn(&Examined) -> &Answer) -> Side {
    let answers = examined.iter().map(of);
    let is_wrong = |pair: &&Examined| !known::is_right(&pair.row.answer, &of(pair).content);
    let wrong = examined.iter().filter(is_wrong).count() as u64;
    let invalid = match task.enforce {
        // Users get no such answer; the examination asks without the constraint.
        Enforce::Constrain => 0,
        Enforce::Off | Enforce::Retry => (examined.len() as u64).saturating_sub(valid),
    };
    let share = |count: u64| count as f64 / examined.len().max(1) as f64;
    Side {
        tokens: Tokens {
            prompt: mean(answers.clone().map(|answer| answer.prompt_tokens)).unwrap_or_default(),
            completion: mean(answers.map(|answer| answer.completion_tokens)).unwrap_or_default(),
        },
        invalid: share(invalid),
        wrong: share(wrong),
    }
}

fn mean(tokens: impl ExactSizeIterator<Item = u64>) -> Option<f64> {
    let count = tokens.len();
    (count > 0).then(|| tokens.sum::<u64>() as f64 / count as f64)
}

fn samples(examined: &[Examined], votes: &[Voted], vote: Vote) -> Vec<Sample> {
    let voted = votes.iter().filter(|voted| voted.vote == vote);
    let ids: HashSet<&str> = voted.map(|voted| voted.request_id.as_str()).collect();
    examined
        .iter()
        .filter(|pair| ids.contains(pair.row.request_id.as_str()))
        .take(SAMPLES)
        .map(|pair| Sample {
            request_id: pair.row.request_id.clone(),
            prompt: question(&pair.row.messages).unwrap_or_default().to_owned(),
            known: pair.row.answer.clone(),
            candidate: pair.candidate.content.clone(),
            baseline: pair.baseline.content.clone(),
        })
        .collect()
}

/// From the verdict on: the row that makes it stand, its carrying out, the report.
pub(crate) async fn finish(
    o: &Options,
    task: &Task,
    book: &mut Book<'_>,
    mut report: Report,
    observer: Observer<'_>,
) -> Result<Report, Error> {
    show_nothing_forgotten(o, &mut report).await?;
    observer(&Event::Verdict {
        verdict: report.verdict,
        reasons: report.reasons.clone(),
    });
    if let Some(candidate) = report.adapter.clone() {
        book.run.error = None;
        book.decide(&report)?;
        book.write().await?;
        let stages = o.ledger.stages(&task.name).await?;
        let number = ModelName::number_of(&candidate);
        let serves = number.is_some() && stages.champion == number;
        let is_rejected = number.map(|number| stages.stage(number)) == Some(Stage::Rejected);
        let wins = matches!(report.verdict, Verdict::Promote | Verdict::Canary);
        // A run that died between its promotion and its last row finds the work done.
        let outcome = if serves && wins {
            Ok(())
        } else if serves || is_rejected && report.verdict != Verdict::Reject {
            Err(format!(
                "somebody has decided about `{candidate}` meanwhile"
            ))
        } else {
            let server = Server::new(o.http.clone(), &o.server, &o.limits).by(&report.run_id);
            promote::carry_out(&server, &task.retrain, &report, &candidate).await?
        };
        match outcome {
            Ok(()) => {
                report.promoted = true;
                observer(&Event::Promoted { adapter: candidate });
            }
            Err(why_not) => report.reasons.push(why_not),
        }
    }
    report.finished = Utc::now();
    show_nothing_forgotten(o, &mut report).await?;
    report.write_files(&o.ledger.files().join("reports"))?;
    book.decide(&report)?;
    book.enter(DONE, observer).await?;
    Ok(report)
}

/// The run has its rows in memory, where nobody else can take them from.
pub(crate) async fn show_nothing_forgotten(o: &Options, report: &mut Report) -> Result<(), Error> {
    let forgotten = o.ledger.forgotten(report.shown()).await?;
    report.leave_out(&forgotten);
    Ok(())
}
