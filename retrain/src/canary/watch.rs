//! Looks after the tasks' canaries: reads what they and their champions answered, and carries out what the test says.
//!
//! Only requests to the task's bare name count: who answers those is drawn by the server, while whoever names an adapter has chosen it.
//! The draw is by user, or by conversation where nobody is named, and whoever was drawn counts once in each stream: two answers to one user are
//! no two trials. The first word on an answer is the one that counts, so that what was counted never changes.
//! A canary that a person began is looked after as well: it is taken back where it is worse. What a run has shown to be better than the present
//! champion, or too close to tell, is promoted by itself where the policy says so. A decision that somebody made meanwhile stands.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use retune_ledger::{
    Cursor, Exchange, ExchangeQuery, Feedback, FeedbackQuery, Purpose, Run, Stages,
};
use retune_task::{Enforce, ModelName, Promote, Task};
use tokio_util::sync::CancellationToken;

use super::{Arm, Beside, Stream, Told};
use crate::book::DONE;
use crate::report::Report;
use crate::server::Server;
use crate::stages::show_nothing_forgotten;
use crate::{Error, Options, soon, trust};

/// Who is named in the history of what a canary's test decided.
const WHO: &str = "canary's test";
/// Rows of several replicas may become visible this much out of order.
const DISORDER: TimeDelta = TimeDelta::seconds(120);
/// The longest pause between two looks, but for ten times the look itself.
const PAUSE: Duration = Duration::from_secs(30);

/// Looks after all canaries until `stop`.
pub(crate) async fn watch(o: &Options, stop: CancellationToken) {
    let mut watched: HashMap<&str, Canary> = HashMap::new();
    let mut told: HashMap<&str, u64> = HashMap::new();
    loop {
        let began = Instant::now();
        for task in &o.config.tasks {
            let looked = async {
                look_at(o, task, &mut watched).await?;
                tell_its_run(o, task, &mut told).await
            };
            if let Err(error) = looked.await {
                tracing::warn!(task = task.name, %error, "the canary could not be looked at; trying again");
            }
        }
        // It is not in a hurry, and gets at most a tenth of the time.
        let pause = (o.limits.poll * 5).min(PAUSE).max(began.elapsed() * 10);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// One canary beside one champion.
struct Canary {
    /// The newest decision when it was last looked at.
    seq: u64,
    number: u32,
    champion: Option<u32>,
    /// Since when these two answer.
    since: DateTime<Utc>,
    beside: Beside,
    /// Exchanges that were seen, with who answered whom.
    seen: HashMap<String, (Arm, String)>,
    rated: HashSet<String>,
    /// Who has counted.
    counted: HashSet<(Stream, String)>,
    /// How far the ledger was read.
    exchanges_until: DateTime<Utc>,
    feedback_until: DateTime<Utc>,
    /// It is better, and waits for a person.
    waits: bool,
}

impl Canary {
    /// None where the task has no canary, or nobody knows since when.
    fn of(task: &Task, history: &[Stages]) -> Option<Self> {
        let now = history.last()?;
        let (number, _) = now.canary?;
        let is_other = |stages: &Stages| {
            stages.canary.map(|(n, _)| n) != Some(number) || stages.champion != now.champion
        };
        let first = history
            .iter()
            .rposition(is_other)
            .map_or(0, |last| last + 1);
        let since = history.get(first)?.at?;
        Some(Self {
            seq: now.seq,
            number,
            champion: now.champion,
            since,
            // What is decoded under a grammar says nothing of the model.
            beside: Beside::new(task.format.is_some() && task.enforce != Enforce::Constrain),
            seen: HashMap::new(),
            rated: HashSet::new(),
            counted: HashSet::new(),
            exchanges_until: since,
            feedback_until: since,
            waits: false,
        })
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.number, self.champion, self.since) == (other.number, other.champion, other.since)
    }

    fn exchange(&mut self, task: &Task, arm: Arm, exchange: &Exchange) {
        let counts = exchange.model_requested == task.name
            && exchange.code == 200
            && exchange.ts >= self.since
            && !self.seen.contains_key(&exchange.request_id);
        if !counts {
            return;
        }
        let user = exchange.user.as_ref().filter(|user| !user.is_empty());
        let drawn = match user {
            Some(user) => format!("user {user}"),
            None => exchange.conversation.clone(),
        };
        if let Some(valid) = exchange.format_valid
            && self.counted.insert((Stream::Format, drawn.clone()))
        {
            self.beside.observe(Stream::Format, arm, valid);
        }
        self.seen.insert(exchange.request_id.clone(), (arm, drawn));
    }

    fn feedback(&mut self, task: &Task, said: &Feedback) {
        let Some((arm, drawn)) = self.seen.get(&said.request_id) else {
            return;
        };
        let content = match (&said.correction, said.rating) {
            (Some(_), _) => false,
            (None, Some(rating)) => rating >= task.retrain.rating_at_least,
            (None, None) => return,
        };
        if self.rated.insert(said.request_id.clone())
            && self.counted.insert((Stream::Content, drawn.clone()))
        {
            self.beside.observe(Stream::Content, *arm, content);
        }
    }

    /// Reads on in the ledger.
    async fn read(&mut self, o: &Options, task: &Task) -> Result<(), Error> {
        // What is read now was there by now.
        let now = Utc::now();
        let mut exchanges = Vec::new();
        for (arm, number) in [
            (Arm::Canary, Some(self.number)),
            (Arm::Champion, self.champion),
        ] {
            let query = ExchangeQuery {
                task: Some(task.name.clone()),
                adapter: Some(ModelName::of(&task.name, number).to_string()),
                purpose: Some(Purpose::User),
                after: Some(Cursor {
                    ts: self.since.max(self.exchanges_until - DISORDER),
                    replica: String::new(),
                    seq: 0,
                }),
                ..ExchangeQuery::default()
            };
            let found = o.ledger.exchanges(&query).await?;
            exchanges.extend(found.into_iter().map(|exchange| (arm, exchange)));
        }
        // As they came: the test compares neighbours.
        exchanges
            .sort_by(|(_, a), (_, b)| (a.ts, &a.replica, a.seq).cmp(&(b.ts, &b.replica, b.seq)));
        for (arm, exchange) in &exchanges {
            self.exchange(task, *arm, exchange);
        }
        self.exchanges_until = now;
        let query = FeedbackQuery {
            since: Some(self.since.max(self.feedback_until - DISORDER)),
            ..FeedbackQuery::default()
        };
        let mut feedback = trust::feedback(&o.ledger, &query).await?;
        feedback.sort_by(|a, b| (a.ts, &a.feedback_id).cmp(&(b.ts, &b.feedback_id)));
        for said in &feedback {
            self.feedback(task, said);
        }
        self.feedback_until = now;
        Ok(())
    }
}

async fn look_at<'a>(
    o: &Options,
    task: &'a Task,
    watched: &mut HashMap<&'a str, Canary>,
) -> Result<(), Error> {
    if o.ledger.stages(&task.name).await?.canary.is_none() {
        watched.remove(task.name.as_str());
        return Ok(());
    }
    let history = o.ledger.stages_history(&task.name).await?;
    let Some(now) = Canary::of(task, &history) else {
        return Ok(());
    };
    let before = watched.remove(task.name.as_str());
    let seq = now.seq;
    let mut canary = before.filter(|before| before.is_same(&now)).unwrap_or(now);
    canary.seq = seq;
    canary.read(o, task).await?;
    carry_out(o, task, &mut canary).await?;
    watched.insert(&task.name, canary);
    Ok(())
}

async fn carry_out(o: &Options, task: &Task, canary: &mut Canary) -> Result<(), Error> {
    let name = ModelName::of(&task.name, Some(canary.number)).to_string();
    let champion = ModelName::of(&task.name, canary.champion).to_string();
    let server = Server::new(o.http.clone(), &o.server, &o.limits);
    let server = server.by(WHO).after(canary.seq);
    let shown = canary.beside.shown();
    let done = match canary.beside.told() {
        Told::Worse => {
            tracing::warn!(
                task = task.name,
                adapter = name,
                shown,
                "the canary is worse than the champion: it is rejected"
            );
            server
                .reject(
                    &name,
                    &format!("worse than {champion} on live traffic: {shown}"),
                )
                .await
        }
        // A person has been told; where none is to decide, it goes when its time is over.
        Told::NotWorse if canary.waits => match task.retrain.promote {
            Promote::Approve => Ok(()),
            Promote::Auto => end(&server, task, canary, &name, "nobody promoted it").await,
        },
        Told::NotWorse => {
            let why_not = match task.retrain.promote {
                Promote::Auto => unproven(o, &name, &champion).await?,
                Promote::Approve => Some("promote = \"approve\"".to_owned()),
            };
            if why_not.is_none() {
                tracing::info!(
                    task = task.name,
                    adapter = name,
                    shown,
                    "the canary is not worse than the champion: it is promoted"
                );
                let reason =
                    format!("examined, and not worse than {champion} on live traffic: {shown}");
                server.promote(&name, &champion, &reason).await
            } else {
                canary.waits = true;
                tracing::info!(
                    task = task.name,
                    adapter = name,
                    shown,
                    why_not,
                    "the canary is not worse than the champion, and waits for a person to promote it"
                );
                Ok(())
            }
        }
        Told::Open => end(&server, task, canary, &name, "nothing was shown").await,
    };
    match done {
        // Somebody else was faster: the next look sees what they decided.
        Err(Error::Refused {
            status: 409,
            message,
            ..
        }) => {
            tracing::warn!(
                task = task.name,
                adapter = name,
                message,
                "the canary was not moved"
            );
            Ok(())
        }
        done => done,
    }
}

/// Takes a canary back whose time is over.
async fn end(
    server: &Server,
    task: &Task,
    canary: &Canary,
    name: &str,
    what: &str,
) -> Result<(), Error> {
    let longest = TimeDelta::from_std(task.retrain.canary.longest).unwrap_or(TimeDelta::MAX);
    if Utc::now() - canary.since < longest {
        return Ok(());
    }
    let shown = canary.beside.shown();
    tracing::warn!(
        task = task.name,
        adapter = name,
        shown,
        "the canary's time is over, and {what}: it is a candidate again"
    );
    let days = longest.num_days();
    let reason = format!("{what} in {days} days (canary.max_days): {shown}");
    server.no_canary(name, &reason).await
}

/// Why the adapter is not promoted by itself; None where a run has compared it with this champion, and found nothing against it.
async fn unproven(o: &Options, adapter: &str, champion: &str) -> Result<Option<String>, Error> {
    let runs = o.ledger.runs().await?;
    let examined: Vec<&Run> = runs
        .iter()
        .filter(|run| run.adapter.as_deref() == Some(adapter))
        .filter(|run| matches!(run.verdict.as_deref(), Some("promote" | "canary")))
        .collect();
    let baseline = |run: &&Run| run.baseline.as_deref() == Some(champion);
    Ok(match examined.first() {
        None => Some("no run has shown it to be better".to_owned()),
        Some(_) if examined.iter().any(baseline) => None,
        Some(run) => {
            let other = run.baseline.as_deref().unwrap_or("nobody");
            Some(format!(
                "it was compared with {other}, which is the champion no longer"
            ))
        }
    })
}

/// The run of a champion that a canary's test has promoted says so. It is told from the decisions: a process that died between the
/// promotion and this row leaves it to the next.
async fn tell_its_run<'a>(
    o: &Options,
    task: &'a Task,
    told: &mut HashMap<&'a str, u64>,
) -> Result<(), Error> {
    let seq = o.ledger.stages(&task.name).await?.seq;
    if told.get(task.name.as_str()) == Some(&seq) {
        return Ok(());
    }
    let history = o.ledger.stages_history(&task.name).await?;
    if let Some(number) = promoted(&history) {
        let adapter = ModelName::of(&task.name, Some(number)).to_string();
        let runs = o.ledger.runs().await?;
        let mut of = runs.into_iter().filter(|run| {
            run.adapter.as_deref() == Some(&adapter)
                && run.state == DONE
                && run.promoted == Some(false)
        });
        if let Some(run) = of.next() {
            tell(o, run, &adapter).await?;
        }
    }
    told.insert(&task.name, seq);
    Ok(())
}

/// The present champion, if it became it by a canary's test.
fn promoted(history: &[Stages]) -> Option<u32> {
    let crowning = soon::crowning(history)?;
    let by = crowning.by.as_deref()?;
    crowning.champion.filter(|_| by.starts_with(WHO))
}

async fn tell(o: &Options, mut run: Run, adapter: &str) -> Result<(), Error> {
    run.promoted = Some(true);
    let report = run.report.clone();
    if let Some(mut report) =
        report.and_then(|report| serde_json::from_value::<Report>(report).ok())
    {
        report.promoted = true;
        report.reasons.push(format!(
            "on live traffic it was not worse, and `{adapter}` was promoted"
        ));
        // It may have lain in memory while somebody was forgotten.
        show_nothing_forgotten(o, &mut report).await?;
        report.write_files(&o.ledger.files().join("reports"))?;
        run.report = Some(serde_json::to_value(&report).map_err(Error::Report)?);
    }
    run.ts = Utc::now();
    Ok(o.ledger.append_run(&run).await?)
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
