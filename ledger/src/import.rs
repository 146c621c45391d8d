//! Logs from elsewhere: a line each, to an exchange and what was said of it.
//!
//! As examples (`as_examples`) a line is OpenAI's for fine-tuning: its answer is an expert's, and the right one.
//!
//! A line of a log is `{"task", "messages": [… the answer last], "ts"?, "adapter"?, "user"?, "metadata"?, "rating"?, "correction"?}`; for
//! the user, `safety_identifier` as in OpenAI's API. What cannot be kept is named, and the others are. A line that was kept before is
//! left out, so that an import that was cut off can be run again: the row carries the line's digest.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use retune_task::{ChatMessage, Check, ModelName, Task, conversation, sha256};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::Error;
use crate::ledger::Ledger;
use crate::rows::{Exchange, Feedback, Purpose};

/// The `base` of what was not answered here.
const BASE: &str = "imported";
/// The `source` of what lines say of their answers.
const SOURCE: &str = "import";
/// The parameter that has the line's digest.
const DIGEST: &str = "imported";
/// The parameter that says which model wrote it, from which seeds, and who accepted it.
const SYNTHETIC: &str = "synthetic";

/// What the ledger itself writes among an exchange's parameters.
pub(crate) const OWN_PARAMETERS: [&str; 2] = [DIGEST, SYNTHETIC];

/// Seconds since 1970 beyond this are meant as milliseconds: it is the year 5138.
const MILLISECONDS: i64 = 100_000_000_000;

/// What became of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Imported {
    /// It is a row now.
    Kept,
    /// It was one already.
    Known,
    /// It is none, because of this.
    Bad(String),
}

/// Takes lines into a ledger.
pub struct Importer<'a> {
    ledger: Ledger,
    tasks: &'a [Arc<Task>],
    /// The task of lines that name none.
    task: Option<String>,
    known: HashSet<String>,
    /// Of those, the exchanges without feedback: an import may have been cut off between the two.
    unsaid: HashMap<String, String>,
    by_experts: bool,
    /// Where the line at hand comes from, if a model wrote it.
    synthetic: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    task: Option<String>,
    messages: Vec<Said>,
    ts: Option<Time>,
    adapter: Option<String>,
    safety_identifier: Option<String>,
    user: Option<String>,
    metadata: Option<BTreeMap<String, String>>,
    rating: Option<u8>,
    correction: Option<String>,
}

/// RFC 3339, or seconds since 1970 as OpenAI's `created`.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "ts is no time; expected one such as \"2026-03-01T12:00:00Z\", or seconds since 1970"
)]
enum Time {
    Text(DateTime<Utc>),
    Seconds(i64),
}

impl Time {
    /// The time, if a log can be of it.
    fn checked(self) -> Result<DateTime<Utc>, String> {
        let ts = match self {
            Self::Text(ts) => ts,
            Self::Seconds(seconds) if seconds > MILLISECONDS => {
                return Err(format!(
                    "ts is {seconds}; are these milliseconds? expected seconds since 1970"
                ));
            }
            Self::Seconds(seconds) => DateTime::from_timestamp(seconds, 0)
                .ok_or_else(|| format!("ts is {seconds}; expected seconds since 1970"))?,
        };
        match ts.year() < 2000 || ts > Utc::now() + TimeDelta::days(1) {
            true => Err(format!("ts is {ts}; expected a time from 2000 until now")),
            false => Ok(ts),
        }
    }
}

/// A message as OpenAI's API has it.
#[derive(Deserialize)]
struct Said {
    role: String,
    content: Option<Content>,
    tool_calls: Option<Value>,
    tool_call_id: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a message's content is neither a text nor a list of parts"
)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
}

impl<'a> Importer<'a> {
    /// For these tasks; `task` is that of lines that name none.
    pub async fn new(
        ledger: &Ledger,
        tasks: &'a [Arc<Task>],
        task: Option<&str>,
    ) -> Result<Self, Error> {
        let mut said = HashSet::new();
        let query = format!("select request_id from feedback where source = '{SOURCE}'");
        ledger
            .each_text(&query, |id, _| {
                said.insert(id.to_owned());
            })
            .await?;
        let (mut known, mut unsaid) = (HashSet::new(), HashMap::new());
        let query = format!("select parameters, request_id from exchanges where base = '{BASE}'");
        ledger
            .each_text(&query, |parameters, id| {
                let parsed = serde_json::from_str::<Value>(parameters).ok();
                let digest = parsed.and_then(|p| Some(p[DIGEST].as_str()?.to_owned()));
                let (Some(digest), Some(id)) = (digest, id) else {
                    return;
                };
                if !said.contains(id) {
                    unsaid.insert(digest.clone(), id.to_owned());
                }
                known.insert(digest);
            })
            .await?;
        Ok(Self {
            ledger: ledger.clone(),
            tasks,
            task: task.map(str::to_owned),
            known,
            unsaid,
            by_experts: false,
            synthetic: None,
        })
    }

    /// The answers are experts': each is kept as the correction of itself, and so is an example.
    pub fn as_examples(self) -> Self {
        Self {
            by_experts: true,
            ..self
        }
    }

    /// Keeps one line that a model wrote, and, of examples, a person accepted: it is no user's, and says where it comes from.
    pub async fn synthetic_line(&mut self, text: &str, source: Value) -> Result<Imported, Error> {
        self.synthetic = Some(source);
        let done = self.line(text).await;
        self.synthetic = None;
        done
    }

    /// Keeps one line that a model wrote and nobody has accepted: raters are shown it, and it is an example once one of them says so.
    pub async fn unreviewed_line(&mut self, text: &str, source: Value) -> Result<Imported, Error> {
        let by_experts = std::mem::take(&mut self.by_experts);
        let done = self.synthetic_line(text, source).await;
        self.by_experts = by_experts;
        done
    }

    /// Keeps one line; fails where the ledger cannot keep any.
    pub async fn line(&mut self, text: &str) -> Result<Imported, Error> {
        let digest = match self.by_experts {
            // A log's line that says the same is another row: nobody has said that it is right.
            true => sha256(&format!("example\n{}", text.trim())),
            false => sha256(text.trim()),
        };
        let is_known = self.known.contains(&digest);
        let unsaid = self.unsaid.remove(&digest);
        if is_known && unsaid.is_none() {
            return Ok(Imported::Known);
        }
        let line = match serde_json::from_str::<Line>(text) {
            Ok(line) => line,
            Err(error) => return Ok(Imported::Bad(problem(&error))),
        };
        let (exchange, feedback) = match self.rows(line, &digest, unsaid) {
            Ok(rows) => rows,
            Err(what) => return Ok(Imported::Bad(what)),
        };
        // The feedback last: what is said of an exchange that is not there nobody could forget.
        if !is_known {
            while let Err(error) = self.ledger.append_exchange(exchange.clone()).await {
                self.make_room(error).await?;
            }
        }
        let Some(feedback) = feedback else {
            self.known.insert(digest);
            return Ok(match is_known {
                true => Imported::Known,
                false => Imported::Kept,
            });
        };
        while let Err(error) = self.ledger.append_feedback(feedback.clone()).await {
            self.make_room(error).await?;
        }
        self.known.insert(digest);
        Ok(Imported::Kept)
    }

    /// The log is full where lines come faster than tables take them.
    async fn make_room(&self, error: Error) -> Result<(), Error> {
        match error {
            Error::LogFull { .. } => self.ledger.flush().await,
            error => Err(error),
        }
    }

    /// `id`: the exchange's, which is there.
    fn rows(
        &self,
        line: Line,
        digest: &str,
        id: Option<String>,
    ) -> Result<(Exchange, Option<Feedback>), String> {
        let task = line.task.or_else(|| self.task.clone());
        let task = task.ok_or("names no task; expected \"task\", or --task for all lines")?;
        let configured = self.tasks.iter().find(|known| known.name == task);
        let configured = configured.ok_or_else(|| {
            let tasks: Vec<&str> = self.tasks.iter().map(|task| task.name.as_str()).collect();
            format!(
                "there is no task {task:?} in the configuration; there are: {}",
                tasks.join(", ")
            )
        })?;
        if let Some(adapter) = &line.adapter {
            let of = match ModelName::parse(adapter) {
                Some(ModelName::Adapter { task, .. } | ModelName::Baseline(task)) => Some(task),
                _ => None,
            };
            if of.as_deref() != Some(task.as_str()) {
                return Err(format!(
                    "adapter {adapter:?} is none of {task}; expected {task}@<number> or {task}@base"
                ));
            }
        }
        if let Some(rating) = line.rating.filter(|rating| !(1..=5).contains(rating)) {
            return Err(format!("rating is {rating}; expected 1 to 5"));
        }
        let ts = match line.ts {
            None => Utc::now(),
            Some(ts) => ts.checked()?,
        };
        let mut said = line.messages.into_iter();
        let answer = said.next_back();
        let answer = answer.filter(|last| last.role == "assistant");
        let answer = answer
            .ok_or("messages do not end with the answer; expected the role \"assistant\" last")?;
        let messages = said.map(message).collect::<Result<Vec<_>, _>>()?;
        if !messages.iter().any(|m| m.role == "user") {
            return Err("messages have no question; expected one with the role \"user\"".into());
        }
        let calls = answer.tool_calls.clone().filter(|calls| !calls.is_null());
        let text = message(answer)?.content;
        let correction = match self.by_experts {
            true if text.trim().is_empty() => {
                return Err("the answer has no text, which an example needs".into());
            }
            true => Some(text.clone()),
            false => line.correction,
        };
        let format = configured.format.as_ref();
        let check = format.filter(|_| calls.is_none()).map(|f| f.check(&text));
        let request_id = id.unwrap_or_else(|| self.ledger.new_request_id_at(ts));
        let feedback = (line.rating.is_some() || correction.is_some()).then(|| Feedback {
            feedback_id: format!("fb-{}", &uuid::Uuid::new_v4().simple().to_string()[..24]),
            request_id: request_id.clone(),
            ts,
            source: Some(SOURCE.to_owned()),
            rater: None,
            rating: line.rating,
            correction,
            rubric: None,
            comment: None,
            preferred_over: None,
        });
        let exchange = Exchange {
            request_id,
            replica: self.ledger.replica().to_owned(),
            seq: 0,
            ts,
            purpose: match self.synthetic {
                None => Purpose::User,
                Some(_) => Purpose::Synthetic,
            },
            model_requested: line.adapter.clone().unwrap_or_else(|| task.clone()),
            task: Some(task),
            adapter: line.adapter,
            adapter_digest: None,
            stage: None,
            base: BASE.to_owned(),
            api_key_id: None,
            user: line.safety_identifier.or(line.user),
            metadata: line.metadata.map(|pairs| json!(pairs)),
            conversation: conversation(&messages),
            messages: Some(messages),
            answer: Some(text),
            finish_reason: Some(
                if calls.is_some() {
                    "tool_calls"
                } else {
                    "stop"
                }
                .to_owned(),
            ),
            tool_calls: calls,
            prompt_tokens: 0,
            completion_tokens: 0,
            time_to_first_token_ms: None,
            duration_ms: 0.0,
            parameters: match &self.synthetic {
                None => json!({ DIGEST: digest }),
                Some(source) => json!({ DIGEST: digest, SYNTHETIC: source }),
            },
            code: 200,
            format_valid: check.as_ref().map(Check::is_valid),
            format_reason: check.and_then(|check| match check {
                Check::Valid => None,
                Check::Invalid { reason, .. } => Some(reason.to_owned()),
            }),
            run_id: None,
        };
        let privacy = &configured.privacy;
        let exchange = self.ledger.withhold(exchange, privacy);
        let feedback = feedback.and_then(|said| {
            self.ledger
                .withhold_feedback(said, privacy, Some(&exchange))
        });
        Ok((exchange, feedback))
    }
}

/// What is wrong with the JSON, and where, without its place in a "line 1" that is none of the file's.
fn problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    match error.column() {
        0 => what.to_owned(),
        column => format!("{what}, at column {column}"),
    }
}

fn message(said: Said) -> Result<ChatMessage, String> {
    let roles = ["system", "developer", "user", "assistant", "tool"];
    if !roles.contains(&said.role.as_str()) {
        let role = said.role;
        return Err(format!(
            "a message's role is {role:?}; expected one of {}",
            roles.join(", ")
        ));
    }
    let content = match said.content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let texts: Option<Vec<String>> = parts.into_iter().map(|part| part.text).collect();
            texts
                .ok_or("a message has parts that are no text, which are not kept")?
                .join("\n")
        }
    };
    let calls = said.tool_calls.filter(|calls| !calls.is_null());
    Ok(ChatMessage {
        role: said.role,
        content,
        tool_calls: calls.map(with_arguments),
        tool_call_id: said.tool_call_id,
        name: said.name,
    })
}

/// Arguments are texts in OpenAI's API, and objects where templates read them.
fn with_arguments(mut calls: Value) -> Value {
    for call in calls.as_array_mut().into_iter().flatten() {
        let arguments = call
            .get_mut("function")
            .and_then(|f| f.get_mut("arguments"));
        if let Some(arguments) = arguments
            && let Some(object) = arguments
                .as_str()
                .and_then(|text| serde_json::from_str(text).ok())
        {
            *arguments = object;
        }
    }
    calls
}
