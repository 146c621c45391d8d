//! What apps asked, read from the ledger: an adapter's prompts in order, and the sample that they are compared with.

use std::collections::HashMap;

use arrow::array::{Array, RecordBatch};
use chrono::{DateTime, Utc};
use retune_ledger::{Cursor, Ledger, Span};
use retune_task::{ChatMessage, question};

use crate::error::Error;
use crate::reader::{self, Answer, behind, cursors, quoted, since, time, up_to};

/// Rows a question at first, and at most.
pub(crate) const PAGE: usize = 2_000;
const LARGEST: usize = 64_000;
/// What a page's messages may take.
const BYTES: usize = 64 << 20;
/// Conversations of a sample: more cost each window time, and tell it little.
pub(crate) const SAMPLE: usize = 5_000;
/// An app's own request that was answered and whose text was kept.
const COUNTED: &str = "purpose = 'user' and code = 200 and messages is not null";

/// One request.
pub(crate) struct Asked {
    pub(crate) cursor: Cursor,
    pub(crate) request_id: String,
    pub(crate) conversation: String,
    pub(crate) prompt: String,
    /// Of the messages that it was read from.
    bytes: usize,
}

/// Whose prompts are read next.
pub(crate) struct Next<'a> {
    pub(crate) task: &'a str,
    pub(crate) adapter: &'a str,
    /// Behind this place; where there is none, behind the time.
    pub(crate) after: Option<&'a Cursor>,
    pub(crate) behind: Option<DateTime<Utc>>,
    /// None from the start.
    pub(crate) from: Option<DateTime<Utc>>,
    pub(crate) until: DateTime<Utc>,
    /// Rows of this page.
    pub(crate) rows: usize,
}

/// Rows of the page after a full one. Every page is a question, and a question looks at every file again: a long history is read in few
/// large ones, as large as memory has room for.
pub(crate) fn next_page(last: &[Asked]) -> usize {
    let bytes: usize = last.iter().map(|asked| asked.bytes).sum();
    let with_room = last.len().saturating_mul(BYTES) / bytes.max(1);
    with_room.min(last.len() * 4).clamp(PAGE, LARGEST)
}

/// The next of an adapter's prompts, oldest first, and whether there may be more.
pub(crate) async fn page(ledger: &Ledger, next: &Next<'_>) -> Result<(Vec<Asked>, bool), Error> {
    let behind = behind(next.after, next.behind);
    let from = since(next.from);
    let asked = ask(
        ledger,
        &format!(
            "task = {} and adapter = {} and ts <= {}{from}{behind} order by ts, replica, seq limit {}",
            quoted(next.task),
            quoted(next.adapter),
            time(next.until),
            next.rows
        ),
    )
    .await?;
    let more = asked.len() == next.rows;
    Ok((asked, more))
}

/// The newest conversations of a task's traffic in a span, as lists of their prompts.
pub(crate) async fn sample(
    ledger: &Ledger,
    task: &str,
    span: &Span,
) -> Result<Vec<Vec<String>>, Error> {
    let mut at: HashMap<String, usize> = HashMap::new();
    let mut sample: Vec<Vec<String>> = Vec::new();
    let from = since(span.from);
    let mut before: Option<Cursor> = None;
    loop {
        let place = match &before {
            None => up_to(&span.until),
            Some(cursor) => format!("{} and not {}", up_to(cursor), is(cursor)),
        };
        let page = ask(
            ledger,
            &format!(
                "task = {}{from} and {place} order by ts desc, replica desc, seq desc limit {PAGE}",
                quoted(task)
            ),
        )
        .await?;
        let is_last = page.len() < PAGE;
        before = page.last().map(|asked| asked.cursor.clone());
        for asked in page {
            if let Some(at) = at.get(&asked.conversation) {
                sample[*at].push(asked.prompt);
            } else if sample.len() < SAMPLE {
                at.insert(asked.conversation, sample.len());
                sample.push(vec![asked.prompt]);
            }
        }
        if is_last || sample.len() == SAMPLE {
            return Ok(sample);
        }
    }
}

/// What was asked in some exchanges, of those that are still kept.
pub(crate) async fn of(ledger: &Ledger, request_ids: &[String]) -> Result<Vec<String>, Error> {
    let mut prompts = Vec::new();
    for ids in request_ids.chunks(PAGE) {
        let ids: Vec<String> = ids.iter().map(|id| quoted(id)).collect();
        let asked = ask(ledger, &format!("request_id in ({})", ids.join(", "))).await?;
        prompts.extend(asked.into_iter().map(|asked| asked.prompt));
    }
    Ok(prompts)
}

async fn ask(ledger: &Ledger, condition: &str) -> Result<Vec<Asked>, Error> {
    let sql = format!(
        "select request_id, replica, seq, ts, conversation, messages from exchanges where {COUNTED} and {condition}"
    );
    reader::ask(ledger, &sql, read).await
}

fn read(batch: &RecordBatch, asked: &mut Vec<Asked>) -> Result<(), Error> {
    let table = Answer("exchanges");
    let request_ids = table.texts(batch, "request_id")?;
    let conversations = table.texts(batch, "conversation")?;
    let messages = table.texts(batch, "messages")?;
    for (i, cursor) in cursors(batch)?.into_iter().enumerate() {
        asked.push(Asked {
            cursor,
            request_id: request_ids.value(i).to_owned(),
            conversation: match conversations.is_valid(i) {
                true => conversations.value(i).to_owned(),
                false => String::new(),
            },
            prompt: prompt(messages.value(i)),
            bytes: messages.value(i).len(),
        });
    }
    Ok(())
}

/// What the user said last; nothing where messages are none that this version reads.
pub(crate) fn prompt(messages: &str) -> String {
    let messages: Vec<ChatMessage> = serde_json::from_str(messages).unwrap_or_default();
    question(&messages).unwrap_or_default().to_owned()
}

fn is(cursor: &Cursor) -> String {
    let replica = quoted(&cursor.replica);
    format!(
        "(ts = {} and replica = {replica} and seq = {})",
        time(cursor.ts),
        cursor.seq
    )
}
