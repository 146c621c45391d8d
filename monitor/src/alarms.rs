//! What goes with an alarm: why there is one, and what somebody said to it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use retune_ledger::{Ledger, Reference, Service, Trigger};
use serde_json::Value;

use crate::error::Error;
use crate::streams::{State, StreamReport};
use crate::why;

/// The alarm with all of its evidence: its test's, the budget, the reference's version, and why.
pub(crate) async fn explained(
    ledger: &Ledger,
    trigger: &Trigger,
    reference: Option<&Reference>,
    service: Option<&Service>,
    budget: &Value,
) -> Result<Trigger, Error> {
    let mut explained = trigger.clone();
    explained.evidence["budget"] = budget.clone();
    let more = why::evidence(ledger, trigger, reference, service).await?;
    for name in ["reference", "why"] {
        explained.evidence[name] = more[name].clone();
    }
    Ok(explained)
}

/// Names in each report the alarm that stands; one that somebody acknowledged, or silenced for now, is a warning.
pub(crate) async fn tell(
    ledger: &Ledger,
    standing: &[Trigger],
    reports: &mut [StreamReport],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let mut words = BTreeMap::new();
    for trigger in standing {
        if !words.contains_key(&trigger.task) {
            let of_task = ledger.alarm_words(&trigger.task).await?;
            words.insert(trigger.task.clone(), of_task);
        }
        let is_of = |report: &StreamReport| {
            (&report.task, &report.adapter) == (&trigger.task, &trigger.adapter)
                && report.stream.kind() == trigger.kind
        };
        let word = words
            .get(&trigger.task)
            .and_then(|of| of.get(&trigger.alarm));
        let is_quiet = word.is_some_and(|word| word.quiets(now));
        for report in reports.iter_mut().filter(|report| is_of(report)) {
            report.alarm = Some(trigger.alarm.clone());
            if is_quiet && report.state == State::Alarm {
                report.state = State::Warning;
            }
        }
    }
    Ok(())
}
