//! What the watcher would do now, without doing it: for whoever has changed a policy, or wonders why nothing happens.
//!
//! It asks what the watcher asks, in its order (`watch`), and writes nothing.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use retune_ledger::{Ledger, Run, Stages, Trigger};
use retune_task::{Config, Task};
use serde::Serialize;

use crate::book::{DONE, FAILED, JUDGING, WAITING};
use crate::dataset::Dataset;
use crate::examine::choose;
use crate::run::{run_id, stopped};
use crate::soon::{self, Held};
use crate::watch::{self, Due, due};
use crate::{Error, Start, StartedBy};

/// What would become of one reason for a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    pub task: String,
    /// The alarm, the schedule, or a person who asks now.
    pub started_by: String,
    /// Whether a run would begin, or go on.
    pub begins: bool,
    /// In words.
    pub what: String,
}

/// For each task, or the one of that name.
pub async fn plan(
    ledger: &Ledger,
    config: &Config,
    only: Option<&str>,
) -> Result<Vec<Planned>, Error> {
    let (runs, now) = (ledger.runs().await?, Utc::now());
    let mut planned = Vec::new();
    let is_asked = |task: &&Arc<Task>| only.is_none_or(|name| name == task.name);
    for task in config.tasks.iter().filter(is_asked) {
        let look = Look {
            config,
            task,
            runs: &runs,
            history: ledger.stages_history(&task.name).await?,
            dataset: watch::read(ledger, task).await?,
            now,
        };
        for trigger in ledger.triggers(Some(&task.name)).await? {
            let word = ledger.last_word(&trigger).await?;
            let is_silenced = word.is_some_and(|word| word.holds_back(now));
            let started_by = StartedBy::Trigger(trigger.alarm.clone());
            let (begins, what) = look.alarm(&trigger, is_silenced, &started_by);
            planned.push(look.planned(started_by.to_string(), begins, what));
        }
        if let Some(schedule) = &task.retrain.schedule {
            let time = schedule.last(now);
            let (begins, what) = look.time(time);
            planned.push(look.planned("schedule".to_owned(), begins, what));
        }
        let (begins, what) = look.person();
        planned.push(look.planned(StartedBy::Person.to_string(), begins, what));
    }
    Ok(planned)
}

/// What one task is like now.
struct Look<'a> {
    config: &'a Config,
    task: &'a Task,
    runs: &'a [Run],
    history: Vec<Stages>,
    dataset: Dataset,
    now: DateTime<Utc>,
}

impl Look<'_> {
    fn planned(&self, started_by: String, begins: bool, what: String) -> Planned {
        Planned {
            task: self.task.name.clone(),
            started_by,
            begins,
            what,
        }
    }

    fn row(&self, started_by: &StartedBy) -> Option<&Run> {
        let id = run_id(&Start {
            task: self.task.name.clone(),
            started_by: started_by.clone(),
        });
        self.runs.iter().find(|run| run.run_id == id)
    }

    fn alarm(
        &self,
        trigger: &Trigger,
        is_silenced: bool,
        started_by: &StartedBy,
    ) -> (bool, String) {
        let (policy, name) = (&self.task.retrain, &self.task.name);
        let row = self.row(started_by);
        if let Some(done) = row.and_then(done) {
            return (false, done);
        }
        let stages = self.history.last().cloned().unwrap_or_default();
        let begun = row.filter(|run| run.state != WAITING);
        if !policy.on.contains(&trigger.kind) {
            let what = format!("an alarm about {} starts none (retrain.on)", trigger.kind);
            return (false, what);
        }
        if is_silenced {
            return (false, "somebody silenced the alarm".to_owned());
        }
        if let Some(verdict) = row.and_then(|run| run.verdict.as_ref()) {
            return (true, format!("its verdict, {verdict}, is carried out"));
        }
        if stages.champion_name(name) != trigger.adapter {
            let what = format!(
                "the alarm is about {}, which is the champion no longer",
                trigger.adapter
            );
            return (false, what);
        }
        if let Some(run) = begun {
            return (true, goes_on(run));
        }
        if soon::after_promotion(policy, &self.history, trigger.kind, trigger.ts) {
            let what = "the alarm came soon after the promotion: the former champion comes back (retrain.roll_back_hours)";
            return (false, what.to_owned());
        }
        let id = row.map_or("", |run| run.run_id.as_str());
        let cooling = soon::cooling(policy, self.runs, name, id, self.now);
        let held = cooling.map(|until| (Held::CoolDown, until));
        match held.or_else(|| self.held()) {
            Some((why, until)) => (false, not_before(why, until)),
            None => match due(policy, &self.dataset, trigger.ts) {
                Due::Ready => (
                    true,
                    format!("it begins, with {} examples", self.dataset.len()),
                ),
                Due::Waiting { have, wanted } => {
                    let what = format!(
                        "it waits for examples: {have} of {wanted} (retrain.min_new_examples, min_examples)"
                    );
                    (false, what)
                }
                Due::NotBefore(why, until) => (false, not_before(why, until)),
            },
        }
    }

    fn time(&self, time: Option<DateTime<Utc>>) -> (bool, String) {
        let Some(time) = time else {
            return (false, "its first time is to come".to_owned());
        };
        let row = self.row(&StartedBy::Schedule(time));
        let of = |what: String| format!("{time}: {what}");
        if let Some(done) = row.and_then(done) {
            return (false, of(done));
        }
        if let Some(run) = row.filter(|run| run.state != WAITING) {
            return (true, of(goes_on(run)));
        }
        match self.held() {
            Some((why, until)) => (false, of(not_before(why, until))),
            None if self.dataset.counts.exchanges == 0 => {
                (false, of("there is nothing to learn from".to_owned()))
            }
            None => (
                true,
                of(format!(
                    "it begins, with {} examples, if there was traffic by then",
                    self.dataset.len()
                )),
            ),
        }
    }

    /// Whom neither hours nor budget keep from it.
    fn person(&self) -> (bool, String) {
        if let Some(id) = stopped(self.runs, &self.task.name, self.now) {
            return (true, format!("{id}, which was stopped, would go on"));
        }
        let (have, wanted) = (self.dataset.len(), self.task.retrain.min_examples);
        if have < wanted {
            let what = format!(
                "its verdict would be wait: {have} usable examples, and the policy wants {wanted} (retrain.min_examples)"
            );
            return (false, what);
        }
        let examined = choose(&self.task.retrain, &self.dataset, &Dataset::default());
        let what = format!(
            "it would train on {} examples, choose the checkpoint by {}, and examine on {} that are held out, of {} that it needs (retrain.min_pairs; others \
             have to be asked while it waits)",
            self.dataset.train.len(),
            self.dataset.development.len(),
            examined.len(),
            self.task.retrain.min_pairs,
        );
        (true, what)
    }

    fn held(&self) -> Option<(Held, DateTime<Utc>)> {
        let (policy, prices) = (&self.task.retrain, &self.config.cost);
        soon::held(policy, prices, self.runs, &self.task.name, self.now)
    }
}

/// What a run that is over says.
fn done(run: &Run) -> Option<String> {
    let over = run.state == DONE;
    over.then(|| match &run.verdict {
        Some(verdict) => format!("it is done: {verdict}"),
        None => run.error.clone().unwrap_or_else(|| "not begun".to_owned()),
    })
}

/// What becomes of one that has begun.
fn goes_on(run: &Run) -> String {
    let why = run.error.as_deref().unwrap_or("nobody knows why");
    match run.state.as_str() {
        JUDGING => {
            let (voted, asked) = run.progress.unwrap_or_default();
            format!("it waits for people: {voted} of {asked} pairs have a vote")
        }
        FAILED => format!("it failed, and is tried again up to three times: {why}"),
        state => format!("it goes on, from {state}"),
    }
}

fn not_before(why: Held, until: DateTime<Utc>) -> String {
    format!("not before {}: {}", until.format("%F %T UTC"), why.shown())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use retune_task::AlarmKind;
    use serde_json::Value;

    use super::*;
    use crate::book::new_row;
    use crate::testing::{asked, config, corrected};

    fn trigger(ledger_time: DateTime<Utc>, kind: AlarmKind, adapter: &str) -> Trigger {
        Trigger {
            alarm: format!("alarm-{kind}"),
            task: "ask".to_owned(),
            adapter: adapter.to_owned(),
            kind,
            ts: ledger_time,
            request_id: "request-1".to_owned(),
            exchanges: 300,
            log_e: 12.0,
            threshold_log: 11.0,
            evidence: Value::Null,
        }
    }

    #[tokio::test]
    async fn every_reason_for_a_run_says_what_would_become_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let more = "schedule = \"0 3 1 */3 *\"\n";
        let config = config(folder.path(), more);
        let ledger = Ledger::open(&config.store).await.unwrap();
        let now = Utc::now();
        for (kind, adapter) in [
            (AlarmKind::Format, "ask@base"),
            (AlarmKind::Input, "ask@base"),
            (AlarmKind::Quality, "ask@7"),
        ] {
            let trigger = trigger(now, kind, adapter);
            ledger.put_trigger(&trigger).await.unwrap();
        }
        let told = async |by: &str| {
            let plan = plan(&ledger, &config, Some("ask")).await.unwrap();
            let one = plan.into_iter().find(|one| one.started_by.ends_with(by));
            let one = one.unwrap();
            (one.begins, one.what)
        };
        let (begins, what) = told("alarm-format").await;
        assert!(!begins && what.contains("0 of 5"), "{what}");
        assert!(told("alarm-input").await.1.contains("retrain.on"));
        assert!(told("alarm-quality").await.1.contains("ask@7"));
        assert!(told("person").await.1.contains("0 usable examples"));
        assert!(told("schedule").await.1.contains("nothing to learn from"));
        assert!(ledger.runs().await.unwrap().is_empty());

        for n in 0..60 {
            let mut exchange = asked(n, &format!("what is thing {}", n * 37), "?");
            exchange.ts = now + chrono::TimeDelta::seconds(1);
            ledger.append_exchange(exchange).await.unwrap();
            let right = format!(r#"{{"is":"{n}"}}"#);
            ledger
                .append_feedback(corrected(n, 100, "ann", &right))
                .await
                .unwrap();
        }
        ledger.flush().await.unwrap();
        let (begins, what) = told("alarm-format").await;
        assert!(begins && what.contains("60 examples"), "{what}");
        assert!(told("person").await.0);
        let start = Start {
            task: "ask".to_owned(),
            started_by: StartedBy::Trigger("alarm-format".to_owned()),
        };
        let mut row = new_row("ask", start.started_by.to_string(), run_id(&start));
        row.state = DONE.to_owned();
        row.verdict = Some("reject".to_owned());
        ledger.append_run(&row).await.unwrap();
        assert_eq!(
            told("alarm-format").await,
            (false, "it is done: reject".to_owned())
        );
        ledger.close().await.unwrap();
    }
}
