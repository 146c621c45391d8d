//! What goes with an alarm: why there is one, and what somebody said to it.

use chrono::{DateTime, Utc};
use retune_ledger::{Ledger, Reference, Service, Trigger};
use serde_json::{Value, json};

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
    let why = why::why(ledger, trigger, reference, service).await?;
    let mut explained = trigger.clone();
    explained.evidence["budget"] = budget.clone();
    explained.evidence["reference"] = json!(reference.map(|reference| {
        json!({"created": reference.created, "digest": reference.digest, "exchanges": reference.counts.exchanges})
    }));
    explained.evidence["why"] = json!(why);
    Ok(explained)
}

/// Names in each report the alarm that stands; one that somebody acknowledged, or silenced for now, is a warning.
pub(crate) async fn tell(
    ledger: &Ledger,
    standing: &[Trigger],
    reports: &mut [StreamReport],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    for trigger in standing {
        let word = ledger.last_word(trigger).await?;
        let is_of = |report: &StreamReport| {
            (&report.task, &report.adapter) == (&trigger.task, &trigger.adapter)
                && report.stream.kind() == trigger.kind
        };
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
