//! The pairs of an examination for people: those that a run waits for, and those by which a model's judgement is checked.

use chrono::{TimeDelta, Utc};
use retune_ledger::{Pair, Pairs};
use retune_task::{JudgedBy, Task};

use crate::judge::report::{Agreement, Judging};
use crate::judge::{self, Judge, Judged};
use crate::report::Report;
use crate::slices::OWN_PARTS;
use crate::{Error, Options};

/// Puts the pairs where people judge and the verdict is still open, or may check a model; what is known of the judge goes into the report. The
/// pairs that the run has to wait for, if people are its judges.
pub(crate) async fn put(
    o: &Options,
    task: &Task,
    judge: &Judge,
    report: &mut Report,
    number: u32,
    (pairs, judged, is_open): (&[Pair], &[Judged], bool),
) -> Result<Option<Pairs>, Error> {
    let policy = &task.retrain.judge;
    let asks_people = match policy.by {
        JudgedBy::KnownAnswer => return Ok(None),
        JudgedBy::Model(_) => true,
        JudgedBy::People => is_open,
    };
    let wait = TimeDelta::from_std(policy.longest).unwrap_or(TimeDelta::MAX);
    let put = Pairs {
        task: task.name.clone(),
        number,
        run_id: report.run_id.clone(),
        judge: Some(judge.identity()),
        until: Utc::now() + wait,
        criteria: policy.criteria.clone(),
        pairs: pairs.iter().map(without_metadata).collect(),
    };
    let unseat = |(pair, judged): (&Pair, &Judged)| {
        judge::unseat(judged.left.clone(), judged.right.clone(), pair.candidate)
    };
    let marks: Vec<_> = pairs.iter().zip(judged).map(unseat).collect();
    let mut judging = Judging::of(judged, &marks);
    if asks_people {
        judging.until = Some(put.until);
        judging.asked = put.asked().count() as u64;
    }
    if let Judge::Model(_) = judge {
        let mut runs = Vec::new();
        let mut earlier = o.ledger.all_pairs(&task.name).await?;
        earlier.retain(|pairs| pairs.judge == put.judge);
        for earlier in earlier {
            let votes = o.ledger.votes(&task.name, earlier.number).await?;
            runs.push((earlier, votes));
        }
        judging.agreement = Agreement::of(&runs);
    }
    report.judging = Some(judging);
    if policy.by != JudgedBy::People {
        o.ledger.put_pairs(&put).await?;
        return Ok(None);
    }
    // Put when everything else is there that a run which waits has to leave behind.
    Ok(asks_people.then_some(put))
}

/// What requests carried goes when they are forgotten, and is in no file beside them.
fn without_metadata(pair: &Pair) -> Pair {
    let is_ours = |(by, _): &&(String, String)| OWN_PARTS.contains(&by.as_str());
    Pair {
        parts: pair.parts.iter().filter(is_ours).cloned().collect(),
        ..pair.clone()
    }
}
