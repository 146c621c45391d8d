//! What becomes now of a run that an alarm or a schedule asks for. Pure: the watcher does it, and `plan` tells it.

use chrono::{DateTime, Utc};
use retune_ledger::{Run, Stages, Trigger};
use retune_task::{ModelName, Prices, RetrainPolicy, Task};

use crate::book::{DONE, JUDGING, WAITING};
use crate::dataset::Dataset;
use crate::run::run_id;
use crate::soon::{self, Held};
use crate::{Start, StartedBy};

/// In the order in which it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// It is over.
    Done,
    /// The policy starts no run for such an alarm.
    Unasked,
    /// Somebody silenced the alarm.
    Silenced,
    /// Its verdict stands, and waits to be carried out.
    CarryOut,
    /// People vote on its pairs.
    Judging,
    /// The task has no traffic of before the schedule's time to learn from.
    NoTraffic,
    /// Its alarm is about an adapter that is the champion no longer: it is closed.
    Retired,
    /// It has begun: neither the hour nor what others cost keeps it from its end.
    GoOn,
    /// The alarm speaks against a promotion: the former champion comes back.
    RollBack,
    /// Nothing of the task's begins before that.
    NotBefore(Held, DateTime<Utc>),
    /// It begins; an alarm's once its examples are [`due`].
    Begin,
}

/// Are an alarm's examples there?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Ready,
    /// What is missing most, as (there are, wanted).
    Waiting {
        have: usize,
        wanted: usize,
    },
}

/// A run begins once there are `min_new_examples` usable rows since the alarm, and `min_examples` in all.
pub(crate) fn due(policy: &RetrainPolicy, dataset: &Dataset, alarm: DateTime<Utc>) -> Due {
    let new = dataset.usable_since(alarm);
    if new < policy.min_new_examples {
        Due::Waiting {
            have: new,
            wanted: policy.min_new_examples,
        }
    } else if dataset.len() < policy.min_examples {
        Due::Waiting {
            have: dataset.len(),
            wanted: policy.min_examples,
        }
    } else {
        Due::Ready
    }
}

/// A task's runs, and the decisions about its adapters.
pub(crate) struct Look<'a> {
    pub(crate) task: &'a Task,
    pub(crate) prices: &'a Prices,
    /// Of all tasks.
    pub(crate) runs: &'a [Run],
    pub(crate) history: &'a [Stages],
    pub(crate) now: DateTime<Utc>,
}

impl Look<'_> {
    /// The run that was asked for so, if it has a row.
    pub(crate) fn row(&self, started_by: &StartedBy) -> Option<&Run> {
        let id = run_id(&Start {
            task: self.task.name.clone(),
            started_by: started_by.clone(),
        });
        self.runs.iter().find(|run| run.run_id == id)
    }

    /// Of an alarm's. `may_roll_back`: going back was not tried yet.
    pub(crate) fn alarm(&self, trigger: &Trigger, is_silenced: bool, may_roll_back: bool) -> Next {
        let (policy, name) = (&self.task.retrain, &self.task.name);
        let row = self.row(&StartedBy::Trigger(trigger.alarm.clone()));
        let champion = self.history.last().and_then(|stages| stages.champion);
        let serves = || ModelName::of(name, champion).to_string() == trigger.adapter;
        let against = || soon::after_promotion(policy, self.history, trigger.kind, trigger.ts);
        let cooling = || {
            let id = row.map_or("", |run| run.run_id.as_str());
            let until = soon::cooling(policy, self.runs, name, id, self.now);
            until.map(|until| (Held::CoolDown, until))
        };
        match row {
            Some(run) if run.state == DONE => Next::Done,
            _ if !policy.on.contains(&trigger.kind) => Next::Unasked,
            _ if is_silenced => Next::Silenced,
            Some(run) if run.verdict.is_some() => Next::CarryOut,
            Some(run) if run.state == JUDGING => Next::Judging,
            _ if !serves() => Next::Retired,
            Some(run) if run.state != WAITING => Next::GoOn,
            _ if may_roll_back && against() => Next::RollBack,
            _ => match cooling().or_else(|| self.held()) {
                Some((why, until)) => Next::NotBefore(why, until),
                None => Next::Begin,
            },
        }
    }

    /// Of a schedule's. `first`: when the task's first exchange was.
    pub(crate) fn time(&self, time: DateTime<Utc>, first: Option<DateTime<Utc>>) -> Next {
        let row = self.row(&StartedBy::Schedule(time));
        match row {
            Some(run) if run.state == DONE => Next::Done,
            Some(run) if run.verdict.is_some() => Next::CarryOut,
            Some(run) if run.state == JUDGING => Next::Judging,
            _ if first.is_none_or(|first| first >= time) => Next::NoTraffic,
            // That its time has passed is no reason not to.
            Some(run) if run.state != WAITING => Next::GoOn,
            _ => match self.held() {
                Some((why, until)) => Next::NotBefore(why, until),
                None => Next::Begin,
            },
        }
    }

    fn held(&self) -> Option<(Held, DateTime<Utc>)> {
        let (policy, name) = (&self.task.retrain, &self.task.name);
        soon::held(policy, self.prices, self.runs, name, self.now)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use chrono::{TimeDelta, Timelike};
    use retune_task::AlarmKind;

    use super::*;
    use crate::book::new_row;
    use crate::testing::{config, trigger};

    /// What becomes of an alarm about the format of the base, whose run has this row.
    fn alarm(task: &Task, row: Option<&Run>, is_silenced: bool) -> Next {
        let runs: Vec<Run> = row.cloned().into_iter().collect();
        let look = Look {
            task,
            prices: &Prices::default(),
            runs: &runs,
            history: &[],
            now: Utc::now(),
        };
        look.alarm(
            &trigger(Utc::now(), AlarmKind::Format, "ask@base"),
            is_silenced,
            true,
        )
    }

    fn row(state: &str, verdict: Option<&str>) -> Run {
        let started_by = StartedBy::Trigger("alarm-format".to_owned());
        let start = Start {
            task: "ask".to_owned(),
            started_by: started_by.clone(),
        };
        Run {
            state: state.to_owned(),
            verdict: verdict.map(str::to_owned),
            ..new_row("ask", started_by.to_string(), run_id(&start))
        }
    }

    #[test]
    fn what_has_begun_goes_on_whatever_keeps_others_from_it() {
        let folder = tempfile::tempdir().unwrap();
        // Hours that are not now, nor in a minute.
        let [from, to] = [3, 5].map(|h| (Utc::now() + TimeDelta::hours(h)).hour());
        let closed = config(folder.path(), &format!("hours = [{from}, {to}]"));
        let closed = &closed.tasks[0];
        assert!(matches!(
            alarm(closed, None, false),
            Next::NotBefore(Held::Hours, _)
        ));
        assert!(matches!(
            alarm(closed, Some(&row(WAITING, None)), false),
            Next::NotBefore(Held::Hours, _)
        ));
        for (state, verdict, next) in [
            ("training", None, Next::GoOn),
            ("failed", None, Next::GoOn),
            (JUDGING, None, Next::Judging),
            (JUDGING, Some("promote"), Next::CarryOut),
            (DONE, Some("promote"), Next::Done),
            (DONE, None, Next::Done),
        ] {
            assert_eq!(
                alarm(closed, Some(&row(state, verdict)), false),
                next,
                "{state}"
            );
        }
        assert_eq!(
            alarm(closed, Some(&row("training", None)), true),
            Next::Silenced
        );
    }

    #[test]
    fn an_alarm_that_nobody_waits_for_starts_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), "");
        let look = Look {
            task: &config.tasks[0],
            prices: &config.cost,
            runs: &[],
            history: &[],
            now: Utc::now(),
        };
        let next = |kind, adapter| look.alarm(&trigger(look.now, kind, adapter), false, true);
        assert_eq!(next(AlarmKind::Format, "ask@base"), Next::Begin);
        assert_eq!(next(AlarmKind::Format, "ask@7"), Next::Retired);
        assert_eq!(next(AlarmKind::Input, "ask@base"), Next::Unasked);
        let (hour, day) = (TimeDelta::hours(1), TimeDelta::days(1));
        assert_eq!(look.time(look.now - hour, None), Next::NoTraffic);
        assert_eq!(
            look.time(look.now - day, Some(look.now - hour)),
            Next::NoTraffic
        );
        assert_eq!(
            look.time(look.now - hour, Some(look.now - day)),
            Next::Begin
        );
    }

    #[test]
    fn a_champion_that_an_alarm_follows_at_once_goes_back_if_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), "roll_back_hours = 24");
        let promoted = Stages {
            champion: Some(1),
            at: Some(Utc::now() - TimeDelta::hours(1)),
            ..Stages::default()
        };
        let history = [Stages::default(), promoted];
        let look = Look {
            task: &config.tasks[0],
            prices: &config.cost,
            runs: &[],
            history: &history,
            now: Utc::now(),
        };
        let trigger = trigger(look.now, AlarmKind::Format, "ask@1");
        assert_eq!(look.alarm(&trigger, false, true), Next::RollBack);
        assert_eq!(look.alarm(&trigger, false, false), Next::Begin);
    }
}
