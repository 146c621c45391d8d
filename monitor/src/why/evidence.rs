//! The requests that an alarm is explained by, read from the ledger.

use std::collections::HashSet;

use arrow::array::{Array, RecordBatch};
use chrono::{DateTime, Utc};
use retune_ledger::{Cursor, Ledger, Reference, Service, Trigger};
use retune_task::{AlarmKind, Traits};

use super::{Case, Why, explain};
use crate::error::Error;
use crate::prompts::prompt;
use crate::reader::{self, Answer, quoted, since, time, up_to};
use crate::streams::quality::LOW;
use crate::streams::{Row, Stream, kinds};

/// Requests of each group, the newest ones: more tell little more.
const MOST: usize = 2_000;

/// Why there is an alarm, beside its test's own figures.
pub(crate) async fn why(
    ledger: &Ledger,
    trigger: &Trigger,
    reference: Option<&Reference>,
    service: Option<&Service>,
) -> Result<Why, Error> {
    let changed = trigger.evidence["change"]["since"].as_str();
    let changed: Option<DateTime<Utc>> = changed.and_then(|since| since.parse().ok());
    let (trouble, fine) = since_the_change(ledger, trigger, changed, reference, service).await?;
    let mut usual = fine;
    if let Some(span) = reference.and_then(|reference| reference.prompts.as_ref()) {
        let whose = format!(
            "task = {}{} and {}",
            quoted(&trigger.task),
            since(span.from),
            up_to(&span.until)
        );
        let sample = ask(ledger, "code = 200", &whose).await?;
        usual.extend(sample.into_iter().map(|asked| asked.case));
    }
    let explained = tokio::task::spawn_blocking(move || explain(&usual, &trouble));
    explained.await.map_err(|_| Error::Broken)
}

/// The trouble, and what came in the same time and is fine.
async fn since_the_change(
    ledger: &Ledger,
    trigger: &Trigger,
    changed: Option<DateTime<Utc>>,
    reference: Option<&Reference>,
    service: Option<&Service>,
) -> Result<(Vec<Case>, Vec<Case>), Error> {
    let until = time(trigger.ts);
    let low = match trigger.kind {
        AlarmKind::Quality => Some(said(ledger, changed, &until).await?),
        _ => None,
    };
    let (codes, when) = match (&low, trigger.kind) {
        (Some(said), _) => {
            let ids: Vec<String> = said.iter().map(|(id, _)| quoted(id)).collect();
            match ids.is_empty() {
                true => return Ok((Vec::new(), Vec::new())),
                false => ("code = 200", format!("request_id in ({})", ids.join(", "))),
            }
        }
        (None, kind) => {
            let codes = match kind {
                AlarmKind::Operations => "(code = 200 or code >= 500)",
                _ => "code = 200",
            };
            (codes, format!("ts <= {until}{}", since(changed)))
        }
    };
    let whose = format!(
        "task = {} and adapter = {} and {when}",
        quoted(&trigger.task),
        quoted(&trigger.adapter)
    );
    let bad: HashSet<String> = low
        .into_iter()
        .flatten()
        .filter_map(|(id, is_low)| is_low.then_some(id))
        .collect();
    let is_trouble = |asked: &Asked| match trigger.kind {
        AlarmKind::Format => !asked.is_valid,
        AlarmKind::Quality => bad.contains(&asked.case.request_id),
        AlarmKind::Output => reference.is_some_and(|reference| is_odd(reference, asked)),
        AlarmKind::Operations => {
            asked.code != 200 || service.is_some_and(|s| asked.duration_ms > s.slowest_ms)
        }
        AlarmKind::Input => true,
    };
    let asked = ask(ledger, codes, &whose).await?;
    let (trouble, fine): (Vec<Asked>, Vec<Asked>) = asked.into_iter().partition(is_trouble);
    let cases = |asked: Vec<Asked>| asked.into_iter().map(|asked| asked.case).collect();
    Ok((cases(trouble), cases(fine)))
}

/// The answer is of one of the kinds that the output's test counts.
fn is_odd(reference: &Reference, asked: &Asked) -> bool {
    let row = Row {
        cursor: Cursor {
            ts: DateTime::UNIX_EPOCH,
            replica: String::new(),
            seq: 0,
        },
        request_id: String::new(),
        task: String::new(),
        adapter: String::new(),
        check: None,
        traits: asked.traits,
        served: None,
    };
    let mut failed = Vec::new();
    kinds::failed(Stream::Output, reference, &row, &mut failed);
    failed.contains(&Some(true))
}

struct Asked {
    case: Case,
    code: i64,
    is_valid: bool,
    traits: Option<Traits>,
    duration_ms: f64,
}

/// The newest requests of some, oldest last.
async fn ask(ledger: &Ledger, codes: &str, whose: &str) -> Result<Vec<Asked>, Error> {
    let sql = format!(
        "select request_id, conversation, messages, api_key_id, metadata, code, format_valid, answer, duration_ms from exchanges \
         where purpose = 'user' and messages is not null and {codes} and {whose} \
         order by ts desc, replica desc, seq desc limit {MOST}"
    );
    reader::ask(ledger, &sql, read).await
}

fn read(batch: &RecordBatch, asked: &mut Vec<Asked>) -> Result<(), Error> {
    let table = Answer("exchanges");
    let [ids, conversations, messages, keys, metadata, answers] = [
        "request_id",
        "conversation",
        "messages",
        "api_key_id",
        "metadata",
        "answer",
    ]
    .map(|column| table.texts(batch, column));
    let (ids, conversations, messages) = (ids?, conversations?, messages?);
    let (keys, metadata, answers) = (keys?, metadata?, answers?);
    let codes = table.numbers(batch, "code")?;
    let valid = table.flags(batch, "format_valid")?;
    let durations = table.decimals(batch, "duration_ms")?;
    let text = |column: &arrow::array::StringArray, i: usize| {
        column.is_valid(i).then(|| column.value(i).to_owned())
    };
    for i in 0..batch.num_rows() {
        asked.push(Asked {
            case: Case {
                request_id: ids.value(i).to_owned(),
                conversation: text(&conversations, i).unwrap_or_default(),
                prompt: prompt(messages.value(i)),
                api_key_id: text(&keys, i),
                metadata: text(&metadata, i).and_then(|text| serde_json::from_str(&text).ok()),
            },
            code: codes.value(i),
            is_valid: valid.is_null(i) || valid.value(i),
            traits: text(&answers, i).map(|answer| Traits::of(&answer)),
            duration_ms: durations.value(i),
        });
    }
    Ok(())
}

/// Of which answers something was said in a time, and whether it was bad.
async fn said(
    ledger: &Ledger,
    changed: Option<DateTime<Utc>>,
    until: &str,
) -> Result<Vec<(String, bool)>, Error> {
    let sql = format!(
        "select request_id, bool_or(coalesce(rating <= {LOW}, false) or correction is not null) as bad from feedback \
         where ts <= {until}{} group by request_id order by max(ts) desc, request_id limit {MOST}",
        since(changed)
    );
    reader::ask(ledger, &sql, |batch, found| {
        let table = Answer("feedback");
        let ids = table.texts(batch, "request_id")?;
        let bad = table.flags(batch, "bad")?;
        found.extend((0..batch.num_rows()).map(|i| (ids.value(i).to_owned(), bad.value(i))));
        Ok(())
    })
    .await
}
