//! The streams: what is tested about an adapter's answers. All of them are pure.
//!
//! A stream gets the adapter's rows one by one, in the ledger's order, and is nothing but a function of them and of its reference. There
//! is one threshold for each, and one budget of false alarms for all: [`Stream::ALL`] says among how many it is divided.
//!
//! - [`rates`]: the test of [`Stream::Format`] and [`Stream::Output`]: kinds of failures, and whether one of them became more frequent.
//! - [`kinds`]: which kinds there are, what the reference says of them, and what a row does.
//! - [`adapter`]: an adapter's reference, and the streams that are tested against it row by row.
//! - [`input`]: the test of [`Stream::Input`], over windows of prompts.
//! - [`quality`]: that of [`Stream::Quality`], over feedback.
//! - [`operations`]: that of [`Stream::Operations`], over stretches of time.
//! - [`told`]: what is told of all of them.

pub mod adapter;
pub mod input;
pub mod kinds;
pub mod operations;
pub mod quality;
pub mod rates;
pub mod told;

use std::fmt;

use chrono::{DateTime, Utc};
use retune_ledger::Cursor;
use retune_task::{AlarmKind, Traits};
use serde::Serialize;

/// One exchange, as the streams see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its place in the order.
    pub cursor: Cursor,
    /// The answer's id.
    pub request_id: String,
    /// The task that it was asked of.
    pub task: String,
    /// `triage@base`, `triage@3`
    pub adapter: String,
    /// Whether the answer keeps the task's format; None where the row says nothing of that.
    pub check: Option<Checked>,
    /// What an app's answer is like; None where its text was not kept.
    pub traits: Option<Traits>,
    /// How it was served; None of a row that no app waited for.
    pub served: Option<Served>,
}

/// How an exchange was served.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Served {
    /// It ended in a server's error: then the row says nothing of an answer.
    pub failed: bool,
    /// From the request to the last byte.
    pub duration_ms: f64,
    /// Of the answer.
    pub tokens: u64,
}

/// What a check of an answer's format found.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Why the answer breaks the format; None where it keeps it.
    pub failed: Option<String>,
    /// It ended at its limit of tokens.
    pub was_cut_off: bool,
}

/// Something that is tested about an adapter's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Whether answers keep the task's format.
    Format,
    /// What answers are like: their length, refusals, empty ones, repetition.
    Output,
    /// What apps ask.
    Input,
    /// What people say of answers.
    Quality,
    /// How answers are served: errors, latency, tokens an answer.
    Operations,
}

impl Stream {
    /// All; the budget of false alarms is divided among so many.
    pub const ALL: [Stream; 5] = [
        Stream::Format,
        Stream::Output,
        Stream::Input,
        Stream::Quality,
        Stream::Operations,
    ];

    /// Those that are tested row by row; they come first.
    pub const OF_ROWS: [Stream; 2] = [Stream::Format, Stream::Output];

    /// The word for it, in metrics, tables and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Stream::Format => "format",
            Stream::Output => "output",
            Stream::Input => "input",
            Stream::Quality => "quality",
            Stream::Operations => "operations",
        }
    }

    /// What its alarms are about.
    pub fn kind(self) -> AlarmKind {
        match self {
            Stream::Format => AlarmKind::Format,
            Stream::Output => AlarmKind::Output,
            Stream::Input => AlarmKind::Input,
            Stream::Quality => AlarmKind::Quality,
            Stream::Operations => AlarmKind::Operations,
        }
    }

    /// The stream of a word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stream| stream.as_str() == word)
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum State {
    /// Nothing speaks for a change.
    #[serde(rename = "ok")]
    Ok,
    /// The threshold was crossed, and nobody needs to be called: the adapter takes no share of the task's traffic, or somebody knows.
    #[serde(rename = "warning")]
    Warning,
    /// The threshold was crossed by an adapter that serves.
    #[serde(rename = "alarm")]
    Alarm,
    /// Even if every answer so far had failed, that would not be enough to tell.
    #[serde(rename = "not enough data")]
    NotEnoughData,
    /// It is not known yet what is normal.
    #[serde(rename = "no reference")]
    NoReference,
}

impl State {
    /// The words for it, in tables and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Alarm => "alarm",
            State::NotEnoughData => "not enough data",
            State::NoReference => "no reference",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One stream of one adapter, as a line of `retune monitor --once --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StreamReport {
    /// The task.
    pub task: String,
    /// The adapter's name, `triage@base` or `triage@3`.
    pub adapter: String,
    /// What is tested.
    pub stream: Stream,
    /// How it stands.
    pub state: State,
    /// Exchanges tested (feedback, or stretches of time, where those are what is tested); with no reference yet, those collected for it.
    pub exchanges: u64,
    /// The statistic, as a natural logarithm; None without a reference.
    pub log_e: Option<f64>,
    /// Where it alarms; None without a reference.
    pub threshold_log: Option<f64>,
    /// `alarm` and `warning`: the exchange that crossed the threshold. Otherwise the first exchange tested, or collected.
    pub since: Option<DateTime<Utc>>,
    /// The alarm's id, where one was raised.
    pub alarm: Option<String>,
}
