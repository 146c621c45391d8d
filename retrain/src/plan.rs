//! What the watcher would do now, without doing it: for whoever has changed a policy, or wonders why nothing happens.
//!
//! It asks what the watcher asks (`next`), and writes nothing.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use retune_ledger::{Ledger, Run, Trigger};
use retune_task::{Config, Task};
use serde::Serialize;

use crate::book::FAILED;
use crate::dataset::Dataset;
use crate::examine::choose;
use crate::next::{Due, Look, Next, due};
use crate::run::stopped;
use crate::{Error, StartedBy, watch};

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
        let history = ledger.stages_history(&task.name).await?;
        let look = Look {
            task,
            prices: &config.cost,
            runs: &runs,
            history: &history,
            now,
        };
        let dataset = watch::read(ledger, task).await?;
        let mut plan = |started_by: String, (begins, what): (bool, String)| {
            planned.push(Planned {
                task: task.name.clone(),
                started_by,
                begins,
                what,
            });
        };
        for trigger in ledger.triggers(Some(&task.name)).await? {
            let word = ledger.last_word(&trigger).await?;
            let is_silenced = word.is_some_and(|word| word.holds_back(now));
            let started_by = StartedBy::Trigger(trigger.alarm.clone());
            let next = look.alarm(&trigger, is_silenced, true);
            let row = look.row(&started_by);
            plan(
                started_by.to_string(),
                told(next, row, task, &dataset, Some(&trigger)),
            );
        }
        if let Some(schedule) = &task.retrain.schedule {
            let of_schedule = match schedule.last(now) {
                None => (false, "its first time is to come".to_owned()),
                Some(time) => {
                    let next = look.time(time, watch::first(ledger, task).await?);
                    let row = look.row(&StartedBy::Schedule(time));
                    let (begins, what) = told(next, row, task, &dataset, None);
                    (begins, format!("{time}: {what}"))
                }
            };
            plan("schedule".to_owned(), of_schedule);
        }
        let of_person = person(task, &runs, &dataset, now);
        plan(StartedBy::Person.to_string(), of_person);
    }
    Ok(planned)
}

/// Whether it begins or goes on, and that in words. `trigger`: the alarm's, that asks for it.
fn told(
    next: Next,
    row: Option<&Run>,
    task: &Task,
    dataset: &Dataset,
    trigger: Option<&Trigger>,
) -> (bool, String) {
    let verdict = row.and_then(|run| run.verdict.as_deref());
    let error = row.and_then(|run| run.error.as_deref());
    let due = trigger.map(|trigger| due(&task.retrain, dataset, trigger.ts));
    let begins = matches!(next, Next::CarryOut | Next::GoOn)
        || next == Next::Begin && !matches!(due, Some(Due::Waiting { .. }));
    let what = match next {
        Next::Done => match verdict {
            Some(verdict) => format!("it is done: {verdict}"),
            None => error.unwrap_or("not begun").to_owned(),
        },
        Next::Unasked => "such an alarm starts none (retrain.on)".to_owned(),
        Next::Silenced => "somebody silenced the alarm".to_owned(),
        Next::CarryOut => {
            let verdict = verdict.unwrap_or_default();
            format!("its verdict, {verdict}, is carried out")
        }
        Next::Judging => {
            let (voted, asked) = row.and_then(|run| run.progress).unwrap_or_default();
            format!("it waits for people: {voted} of {asked} pairs have a vote")
        }
        Next::NoTraffic => "there is nothing to learn from of before that time".to_owned(),
        Next::Retired => {
            let adapter = trigger.map_or("another adapter", |trigger| &trigger.adapter);
            format!("the alarm is about {adapter}, which is the champion no longer")
        }
        Next::GoOn => match row.map_or("", |run| &run.state) {
            FAILED => {
                let why = error.unwrap_or("nobody knows why");
                format!("it failed, and is tried again up to three times: {why}")
            }
            state => format!("it goes on, from {state}"),
        },
        Next::RollBack => "the alarm came soon after the promotion: the former champion comes back (retrain.roll_back_hours)".to_owned(),
        Next::NotBefore(why, until) => {
            let until = until.format("%F %T UTC");
            format!("not before {until}: {}", why.shown())
        }
        Next::Begin => match due {
            Some(Due::Waiting { have, wanted }) => format!(
                "it waits for examples: {have} of {wanted} (retrain.min_new_examples, min_examples)"
            ),
            _ => format!("it begins, with {} examples", dataset.len()),
        },
    };
    (begins, what)
}

/// Of a run that a person starts, whom neither hours nor budget keep from it.
fn person(task: &Task, runs: &[Run], dataset: &Dataset, now: DateTime<Utc>) -> (bool, String) {
    if let Some(id) = stopped(runs, &task.name, now) {
        return (true, format!("{id}, which was stopped, would go on"));
    }
    let policy = &task.retrain;
    let (have, wanted) = (dataset.len(), policy.min_examples);
    if have < wanted {
        let what = format!(
            "its verdict would be wait: {have} usable examples, and the policy wants {wanted} (retrain.min_examples)"
        );
        return (false, what);
    }
    let examined = choose(policy, dataset, &Dataset::default());
    let what = format!(
        "it would train on {} examples, choose the checkpoint by {}, and examine on {} that are held out, of {} that it needs (retrain.min_pairs; others \
         have to be asked while it waits)",
        dataset.train.len(),
        dataset.development.len(),
        examined.len(),
        policy.min_pairs,
    );
    (true, what)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use retune_task::AlarmKind;

    use super::*;
    use crate::Start;
    use crate::book::{DONE, new_row};
    use crate::run::run_id;
    use crate::testing::{asked, config, corrected, trigger};

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
