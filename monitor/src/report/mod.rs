//! What there is to know of the streams and their alarms now, as one page for people.
//!
//! An alarm's evidence was kept when it was raised and names requests; what was said in them is looked up now, so that the page shows
//! nothing that somebody has forgotten since.

mod page;
mod plot;

use std::collections::BTreeMap;

use arrow::array::{Array, RecordBatch};
use chrono::{DateTime, Utc};
use retune_ledger::{Ledger, Trigger, Word};
use serde::Serialize;

use crate::error::Error;
use crate::prompts::prompt;
use crate::reader::{Answer, ask, quoted, to_time};
use crate::streams::StreamReport;
use crate::why::Why;

/// Points of a stream's history in a plot: the newest ones.
const POINTS: usize = 2_000;

/// Everything that a page shows.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// When it was made.
    pub made: DateTime<Utc>,
    /// A line for each stream.
    pub streams: Vec<StreamReport>,
    /// The alarms, the newest first.
    pub alarms: Vec<Alarm>,
    /// By adapter and stream, oldest first.
    #[serde(skip)]
    history: BTreeMap<(String, String), Vec<Point>>,
}

/// An alarm, what was said to it, and why it is there.
#[derive(Debug, Clone, Serialize)]
pub struct Alarm {
    /// As it was raised.
    #[serde(flatten)]
    pub trigger: Trigger,
    /// The last word to it.
    pub word: Option<Word>,
    /// What sets the trouble apart, of `trigger`'s evidence; None in alarms of earlier versions.
    #[serde(skip)]
    pub why: Option<Why>,
    /// The requests that it names and that are still there.
    pub requests: Vec<Request>,
}

/// A request that an alarm names.
#[derive(Debug, Clone, Serialize)]
pub struct Request {
    /// The answer's id.
    pub request_id: String,
    /// When it was asked.
    pub ts: DateTime<Utc>,
    /// What was asked; empty where no text was kept.
    pub prompt: String,
    /// What was answered, likewise.
    pub answer: String,
    /// Why the answer breaks its format, if it does.
    pub format_reason: Option<String>,
}

/// A stream's evidence at a time.
#[derive(Debug, Clone, Copy)]
struct Point {
    ts: DateTime<Utc>,
    log_e: f64,
    threshold_log: f64,
}

impl Report {
    /// Of these streams, as the last pass has them, and the alarms that stand; with `all` those of the past, too.
    pub async fn read(
        ledger: &Ledger,
        streams: Vec<StreamReport>,
        all: bool,
        now: DateTime<Utc>,
    ) -> Result<Self, Error> {
        let mut alarms = Vec::new();
        for trigger in ledger.triggers(None).await?.into_iter().rev() {
            let stands = streams
                .iter()
                .any(|report| report.alarm.as_ref() == Some(&trigger.alarm));
            if !stands && !all {
                continue;
            }
            let why: Option<Why> = serde_json::from_value(trigger.evidence["why"].clone()).ok();
            alarms.push(Alarm {
                word: ledger.last_word(&trigger).await?,
                requests: requests(ledger, &named(&trigger, why.as_ref())).await?,
                why,
                trigger,
            });
        }
        Ok(Self {
            made: now,
            history: history(ledger).await?,
            streams,
            alarms,
        })
    }

    /// The page: one file with everything in it, plots as SVG; it loads nothing.
    pub fn html(&self) -> Result<String, Error> {
        page::html(self)
    }
}

/// The requests to look up, those first that are the most typical.
fn named(trigger: &Trigger, why: Option<&Why>) -> Vec<String> {
    let typical = why.map(|why| &why.rows[..]).unwrap_or_default();
    let mut ids: Vec<String> = typical.iter().map(|row| row.request_id.clone()).collect();
    if ids.is_empty() {
        let failing = trigger.evidence["failing_request_ids"].as_array();
        let failing = failing.map(Vec::as_slice).unwrap_or_default();
        ids.extend(
            failing
                .iter()
                .filter_map(|id| id.as_str().map(str::to_owned)),
        );
    }
    ids
}

async fn requests(ledger: &Ledger, ids: &[String]) -> Result<Vec<Request>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let wanted: Vec<String> = ids.iter().map(|id| quoted(id)).collect();
    let sql = format!(
        "select request_id, ts, messages, answer, format_reason from exchanges where request_id in ({})",
        wanted.join(", ")
    );
    let found = ask(ledger, &sql, read).await?.into_iter();
    let mut found: BTreeMap<String, Request> = found
        .map(|request| (request.request_id.clone(), request))
        .collect();
    Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
}

fn read(batch: &RecordBatch, requests: &mut Vec<Request>) -> Result<(), Error> {
    let table = Answer("exchanges");
    let ids = table.texts(batch, "request_id")?;
    let times = table.times(batch, "ts")?;
    let messages = table.texts(batch, "messages")?;
    let answers = table.texts(batch, "answer")?;
    let reasons = table.texts(batch, "format_reason")?;
    for i in 0..batch.num_rows() {
        requests.push(Request {
            request_id: ids.value(i).to_owned(),
            ts: to_time(times.value(i))?,
            prompt: match messages.is_valid(i) {
                true => prompt(messages.value(i)),
                false => String::new(),
            },
            answer: match answers.is_valid(i) {
                true => answers.value(i).to_owned(),
                false => String::new(),
            },
            format_reason: reasons.is_valid(i).then(|| reasons.value(i).to_owned()),
        });
    }
    Ok(())
}

async fn history(ledger: &Ledger) -> Result<BTreeMap<(String, String), Vec<Point>>, Error> {
    let sql =
        "select ts, adapter, stream, log_e, threshold_log from windows order by ts, exchanges";
    let mut history: BTreeMap<(String, String), Vec<Point>> = BTreeMap::new();
    for (of, point) in ask(ledger, sql, read_points).await? {
        history.entry(of).or_default().push(point);
    }
    for points in history.values_mut() {
        points.drain(..points.len().saturating_sub(POINTS));
    }
    Ok(history)
}

fn read_points(
    batch: &RecordBatch,
    points: &mut Vec<((String, String), Point)>,
) -> Result<(), Error> {
    let table = Answer("windows");
    let times = table.times(batch, "ts")?;
    let [adapters, streams] = ["adapter", "stream"].map(|c| table.texts(batch, c));
    let (adapters, streams) = (adapters?, streams?);
    let [logs, thresholds] = ["log_e", "threshold_log"].map(|c| table.decimals(batch, c));
    let (logs, thresholds) = (logs?, thresholds?);
    for i in 0..batch.num_rows() {
        let of = (adapters.value(i).to_owned(), streams.value(i).to_owned());
        let point = Point {
            ts: to_time(times.value(i))?,
            log_e: logs.value(i),
            threshold_log: thresholds.value(i),
        };
        points.push((of, point));
    }
    Ok(())
}
