//! What depends on when something was: an alarm soon after a promotion, an alarm soon after a run, a time of day or of the budget when nothing
//! begins by itself. Pure.

use std::time::Duration;

use chrono::{DateTime, DurationRound, TimeDelta, Timelike, Utc};
use retune_ledger::{Run, Stages};
use retune_task::{AlarmKind, Prices, RetrainPolicy};

use crate::book::{self, DONE, JUDGING};

/// Does an alarm about the champion speak against its promotion? What apps ask is not the champion's doing, and one that already is
/// there by going back has nothing better behind it.
pub(crate) fn after_promotion(
    policy: &RetrainPolicy,
    history: &[Stages],
    kind: AlarmKind,
    alarm: DateTime<Utc>,
) -> bool {
    kind != AlarmKind::Input
        && crowned(history).is_some_and(|crowned| {
            crowned <= alarm && alarm - crowned < delta(policy.roll_back_within)
        })
}

/// The decision since which the champion is it.
pub(crate) fn crowning(history: &[Stages]) -> Option<&Stages> {
    let champion = history.last()?.champion;
    let others = |stages: &Stages| stages.champion != champion;
    let first = history.iter().rposition(others).map_or(0, |last| last + 1);
    history.get(first)
}

/// When the champion was promoted; None where it is there from the start, or by going back.
fn crowned(history: &[Stages]) -> Option<DateTime<Utc>> {
    let crowned = crowning(history)?;
    let is_promotion = crowned.champion.is_some() && !crowned.rolled_back;
    crowned.at.filter(|_| is_promotion)
}

/// Until when no other alarm of the task starts a run, since one did.
pub(crate) fn cooling(
    policy: &RetrainPolicy,
    runs: &[Run],
    task: &str,
    run_id: &str,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let ended = runs.iter().filter(|run| {
        run.task == task
            && run.run_id != run_id
            && run.started_by.starts_with("trigger:")
            // One without a verdict never began.
            && run.state == DONE
            && run.verdict.is_some()
    });
    let until = ended.map(|run| run.ended() + delta(policy.cool_down)).max();
    until.filter(|until| now < *until)
}

/// Why no run begins that no person asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Another run waits for people's votes.
    People,
    /// Another alarm's run has just ended.
    CoolDown,
    /// The policy has other hours.
    Hours,
    /// The policy's budget is spent.
    Budget,
}

impl Held {
    /// For people.
    pub(crate) fn shown(self) -> &'static str {
        match self {
            Self::People => {
                "another run waits for people to vote on its pairs (retrain.judge.days)"
            }
            Self::CoolDown => "another alarm's run has just ended (retrain.cool_down_hours)",
            Self::Hours => "it begins in other hours (retrain.hours)",
            Self::Budget => {
                "the runs of 90 days have cost as much as they may (retrain.budget); a person can start one"
            }
        }
    }
}

/// Until when another run, the hours or the budget keep a task's runs from beginning.
pub(crate) fn held(
    policy: &RetrainPolicy,
    prices: &Prices,
    runs: &[Run],
    task: &str,
    now: DateTime<Utc>,
) -> Option<(Held, DateTime<Utc>)> {
    let judging = runs.iter().filter(|run| run.task == task);
    let people = judging.filter_map(|run| waits_until(run, now)).max();
    let budget = policy
        .budget
        .and_then(|budget| spent(budget, prices, runs, task, now));
    let hours = policy.hours.filter(|hours| !hours.contains(now.hour()));
    let open = hours.and_then(|hours| {
        let hour = now.duration_trunc(TimeDelta::hours(1)).ok()?;
        let mut next = (1..24).map(|n| hour + TimeDelta::hours(n));
        next.find(|time| hours.contains(time.hour()))
    });
    let people = people.map(|until| (Held::People, until));
    let budget = budget.map(|until| (Held::Budget, until));
    people
        .or(budget)
        .or_else(|| open.map(|until| (Held::Hours, until)))
}

/// Until when a run waits for people, if it does.
pub(crate) fn waits_until(run: &Run, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let report = run.report.as_ref().filter(|_| run.state == JUDGING)?;
    let until = report.pointer("/judging/until")?.as_str()?.parse().ok()?;
    Some(until).filter(|until| now < *until)
}

/// When so much of the last 90 days' cost is 90 days old that the rest is within the budget; None where it is now.
fn spent(
    budget: f64,
    prices: &Prices,
    runs: &[Run],
    task: &str,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let quarter = TimeDelta::days(90);
    let mut costs: Vec<(DateTime<Utc>, f64)> = runs
        .iter()
        .filter(|run| run.task == task)
        .map(|run| (run.ended(), book::spent(run, prices.training_hour)))
        .filter(|(at, _)| now - *at < quarter)
        .collect();
    costs.sort_by_key(|(ts, _)| *ts);
    let mut left: f64 = costs.iter().map(|(_, cost)| cost).sum();
    let mut until = None;
    for (ts, cost) in costs {
        if left < budget {
            break;
        }
        left -= cost;
        until = Some(ts + quarter);
    }
    until
}

fn delta(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}

#[cfg(test)]
mod tests {
    use retune_task::Hours;

    use super::*;
    use crate::book::{FAILED, new_row};
    use crate::testing::{task, time};

    const DAY: i64 = 24 * 3600;

    fn stages(seq: u64, at: i64, champion: Option<u32>, rolled_back: bool) -> Stages {
        Stages {
            seq,
            at: Some(time(at)),
            champion,
            rolled_back,
            ..Stages::default()
        }
    }

    #[test]
    fn an_alarm_speaks_against_a_promotion_for_a_day() {
        let policy = task().retrain.clone();
        let promoted = [
            stages(1, 0, Some(1), false),
            stages(2, 100, Some(2), false),
            // A canary's share: the champion stays.
            stages(3, 200, Some(2), false),
        ];
        let at =
            |history: &[Stages], kind, alarm| after_promotion(&policy, history, kind, time(alarm));
        for (alarm, soon) in [
            (99, false),
            (100, true),
            (99 + DAY, true),
            (100 + DAY, false),
        ] {
            assert_eq!(at(&promoted, AlarmKind::Format, alarm), soon, "{alarm}");
        }
        assert!(at(&promoted[..1], AlarmKind::Quality, 7));
        assert!(!at(&promoted, AlarmKind::Input, 100));
        assert!(!at(&[], AlarmKind::Format, 100));
        let back = [&promoted[..], &[stages(4, 300, Some(1), true)]].concat();
        assert!(!at(&back, AlarmKind::Format, 301));
        let to_baseline = [&promoted[..], &[stages(4, 300, None, false)]].concat();
        assert!(!at(&to_baseline, AlarmKind::Format, 301));
        let mut never = policy.clone();
        never.roll_back_within = Duration::ZERO;
        assert!(!after_promotion(
            &never,
            &promoted,
            AlarmKind::Format,
            time(100)
        ));
    }

    #[test]
    fn hours_and_budget_hold_back() {
        let mut policy = task().retrain.clone();
        // A full hour.
        let time = |seconds: i64| time(2_800 + seconds);
        let hour = time(0).hour();
        let prices = Prices {
            training_hour: 2.0,
            ..Prices::default()
        };
        let at = |policy: &RetrainPolicy, runs: &[Run], now| {
            held(policy, &prices, runs, "ask", time(now))
        };
        assert_eq!(at(&policy, &[], 0), None);
        policy.hours = Some(Hours {
            from: (hour + 3) % 24,
            until: (hour + 5) % 24,
        });
        let until = (Held::Hours, time(3 * 3600));
        assert_eq!(at(&policy, &[], 0), Some(until));
        assert_eq!(at(&policy, &[], 3 * 3600 - 1), Some(until));
        assert_eq!(at(&policy, &[], 3 * 3600), None);
        assert_eq!(at(&policy, &[], 5 * 3600 - 1), None);
        assert!(at(&policy, &[], 5 * 3600).is_some());

        let mut judging = new_row("ask", "person".to_owned(), "run".to_owned());
        JUDGING.clone_into(&mut judging.state);
        let until = serde_json::json!({"judging": {"until": time(7).to_rfc3339()}});
        judging.report = Some(until);
        let runs = std::slice::from_ref(&judging);
        policy.hours = None;
        assert_eq!(at(&policy, runs, 6), Some((Held::People, time(7))));
        assert_eq!(at(&policy, runs, 7), None);
        assert_eq!(held(&policy, &prices, runs, "other", time(6)), None);

        policy.budget = Some(10.0);
        let run = |at: i64, total: f64| {
            let mut run = new_row("ask", "person".to_owned(), format!("run-{at}"));
            run.ts = time(at);
            run.report = Some(serde_json::json!({"cost": {"total": total}}));
            run
        };
        let runs = [run(DAY, 6.0), run(0, 3.0), run(2 * DAY, 4.0)];
        assert_eq!(at(&policy, &runs[..2], 3 * DAY), None);
        // The oldest one's 3 are not enough to let go of; with it 10 are left.
        assert_eq!(
            at(&policy, &runs, 3 * DAY),
            Some((Held::Budget, time(91 * DAY)))
        );
        assert_eq!(at(&policy, &runs, 91 * DAY), None);
        assert_eq!(held(&policy, &prices, &runs, "other", time(3 * DAY)), None);

        // One that failed after five hours of training has cost them.
        let mut failed = run(0, 0.0);
        failed.report = Some(serde_json::json!({"training_seconds": 18_000.0}));
        let held_by = (Held::Budget, time(90 * DAY));
        assert_eq!(at(&policy, &[failed], DAY), Some(held_by));
        // One whose candidate was promoted later has its cost where it ended.
        let mut later = run(80 * DAY, 10.0);
        let report = serde_json::json!({"cost": {"total": 10.0}, "finished": time(0).to_rfc3339()});
        later.report = Some(report);
        assert_eq!(
            at(&policy, std::slice::from_ref(&later), DAY),
            Some(held_by)
        );
        assert_eq!(at(&policy, &[later], 90 * DAY), None);
    }

    #[test]
    fn a_run_that_an_alarm_started_keeps_others_from_starting_one_for_a_day() {
        let policy = task().retrain.clone();
        let run = |id: &str, by: &str, state: &str, verdict: Option<&str>| {
            let mut run = new_row("ask", by.to_owned(), id.to_owned());
            state.clone_into(&mut run.state);
            run.verdict = verdict.map(str::to_owned);
            run.ts = time(0);
            run
        };
        let until = |runs: &[Run], now| cooling(&policy, runs, "ask", "mine", time(now));
        let ended = run("a", "trigger:a", DONE, Some("reject"));
        let runs = std::slice::from_ref(&ended);
        assert_eq!(until(runs, DAY - 1), Some(time(DAY)));
        assert_eq!(until(runs, DAY), None);
        assert_eq!(cooling(&policy, runs, "other", "mine", time(1)), None);
        for other in [
            run("mine", "trigger:a", DONE, Some("reject")),
            run("a", "person", DONE, Some("reject")),
            run("a", "trigger:a", DONE, None),
            run("a", "trigger:a", FAILED, None),
        ] {
            assert_eq!(until(&[other], 1), None);
        }
    }
}
