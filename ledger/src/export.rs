//! What apps asked and were answered, as OpenAI's chat JSONL: `{"messages": [… the answer last]}`, a line each.
//!
//! Answers are the raters' newest correction, where there is one, else what the model said. Only raters' corrections count, as for
//! retraining. An export of any size takes little memory: it is one query, whose order spills.

use arrow::array::{Array, RecordBatch};
use retune_task::ChatMessage;
use serde::Serialize;
use serde_json::Value;

use crate::error::Error;
use crate::ledger::Ledger;
use crate::queries::quoted;
use crate::schema::text;
use crate::session::Answer;

/// Which exchanges are exported; every field that is set narrows.
#[derive(Debug, Clone, Default)]
pub struct Export {
    /// Of this task.
    pub task: Option<String>,
    /// Rated, and never lower than this.
    pub rating_at_least: Option<u8>,
}

/// Lines as they are computed.
pub struct Lines(Answer);

#[derive(Serialize)]
struct Line {
    messages: Vec<Message>,
}

#[derive(Serialize)]
struct Message {
    role: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

impl Ledger {
    /// Apps' exchanges whose text was kept and whose answer is whole, in the order (ts, replica, seq).
    pub async fn export(&self, wanted: &Export) -> Result<Lines, Error> {
        let keys = self.keys().await?;
        let trusted = match keys.raters() {
            None => "true".to_owned(),
            Some(raters) if raters.is_empty() => "f.rater is null".to_owned(),
            Some(raters) => {
                let raters: Vec<String> = raters.into_iter().map(quoted).collect();
                format!("f.rater is null or f.rater in ({})", raters.join(", "))
            }
        };
        let mut conditions = vec![
            "e.purpose = 'user' and e.code = 200 and e.messages is not null".to_owned(),
            "e.finish_reason in ('stop', 'tool_calls')".to_owned(),
            "strpos(e.parameters, '\"raw_prompt\":true') = 0".to_owned(),
        ];
        let task = wanted.task.as_deref().map(quoted);
        conditions.extend(task.map(|task| format!("e.task = {task}")));
        let least = wanted.rating_at_least;
        conditions.extend(least.map(|least| format!("s.rating >= {least}")));
        let conditions = conditions.join(" and ");
        let query = format!(
            "with taken_back as (
               select request_id, source, rater, max(ts) as ts from feedback
               where rating is null and correction is null and rubric is null and comment is null and preferred_over is null
               group by request_id, source, rater),
             said as (
               select f.request_id, min(f.rating) as rating,
                      last_value(f.correction order by f.ts) filter (where f.correction is not null and ({trusted})) as correction
               from feedback f left join taken_back t
                 on f.request_id = t.request_id and (f.source is not distinct from t.source) and (f.rater is not distinct from t.rater)
               where t.ts is null or f.ts > t.ts
               group by f.request_id)
             select e.messages, coalesce(s.correction, e.answer) as answer,
                    case when s.correction is null then e.tool_calls end as tool_calls
             from exchanges e left join said s on e.request_id = s.request_id
             where {conditions} order by e.ts, e.replica, e.seq"
        );
        Ok(Lines(self.sql_stream(&query).await?))
    }
}

impl Lines {
    /// The next lines, without their ends; none at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<String>>, Error> {
        match self.0.next().await? {
            Some(batch) => lines(&batch).map(Some),
            None => Ok(None),
        }
    }
}

fn lines(batch: &RecordBatch) -> Result<Vec<String>, Error> {
    let wrong = |what: String| Error::Row {
        table: "exchanges",
        what,
    };
    let column = |name: &str| text(batch, name).map_err(|e| wrong(e.to_string()));
    let (messages, answers, calls) = (
        column("messages")?,
        column("answer")?,
        column("tool_calls")?,
    );
    let line = |row: usize| -> Result<String, Error> {
        let json = |e: serde_json::Error| wrong(e.to_string());
        let asked: Vec<ChatMessage> = serde_json::from_str(messages.value(row)).map_err(json)?;
        let calls = match calls.is_valid(row) {
            true => Some(serde_json::from_str(calls.value(row)).map_err(json)?),
            false => None,
        };
        let mut messages: Vec<Message> = asked.into_iter().map(message).collect();
        let content = answers.is_valid(row).then(|| answers.value(row).to_owned());
        messages.push(Message {
            role: "assistant".to_owned(),
            content: content.filter(|text| !text.is_empty() || calls.is_none()),
            tool_calls: calls.map(with_texts),
            tool_call_id: None,
            name: None,
        });
        serde_json::to_string(&Line { messages }).map_err(json)
    };
    (0..batch.num_rows()).map(line).collect()
}

fn message(said: ChatMessage) -> Message {
    let calls = said.tool_calls.map(with_texts);
    Message {
        role: said.role,
        content: Some(said.content).filter(|text| !text.is_empty() || calls.is_none()),
        tool_calls: calls,
        tool_call_id: said.tool_call_id,
        name: said.name,
    }
}

/// Arguments are objects where templates read them, and texts in OpenAI's API.
fn with_texts(mut calls: Value) -> Value {
    for call in calls.as_array_mut().into_iter().flatten() {
        let arguments = call
            .get_mut("function")
            .and_then(|f| f.get_mut("arguments"));
        if let Some(arguments) = arguments.filter(|arguments| !arguments.is_string()) {
            *arguments = Value::String(arguments.to_string());
        }
    }
    calls
}
