//! From seeds to rows in a file: a request for some messages, then one for the answer to each that is none of those that are refused.
//!
//! Each row is in the file as soon as it is whole. So this can be dropped at any moment, and goes on where it was with the same file.

use std::collections::BTreeMap;

use chrono::Utc;
use retune_task::{ChatMessage, Task};
use serde::Serialize;
use tokio::task::JoinSet;

use super::filter::Filter;
use super::{Api, Known, Refusal, Row, Seed, Sheet, Source, Why, ask};
use crate::Error;
use crate::api::Said;

/// Messages that are asked for at once; their answers come side by side.
const AT_ONCE: usize = 5;
/// Requests for messages in a row that may bring no row.
const BARREN: u32 = 10;
/// Refused texts of each reason that are shown, and characters of them.
const FEW: usize = 3;
const SHOWN: usize = 80;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Order {
    /// Rows that the file is to have, those that it has included.
    pub count: usize,
    /// Draws the seeds.
    pub seed: u64,
    /// Is sent along too, so that an API that knows how answers the same again.
    pub sends_seed: bool,
    /// Of the request for messages; answers are asked for at 0 then.
    pub temperature: Option<f64>,
}

/// What became of all that the model wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Rows that were added.
    pub kept: u64,
    /// By the reason, in words.
    pub refused: BTreeMap<String, Told>,
    pub requests: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
}

/// What was refused for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Told {
    pub count: u64,
    /// The beginnings of some, and what they are like.
    pub such_as: Vec<String>,
}

impl Tally {
    fn refuse(&mut self, text: &str, refusal: &Refusal) {
        let told = self.refused.entry(refusal.why.to_string()).or_default();
        told.count += 1;
        if told.such_as.len() < FEW && !text.trim().is_empty() {
            let mut shown: String = text.chars().take(SHOWN).collect();
            if shown.len() < text.len() {
                shown.push('…');
            }
            let shown = serde_json::Value::from(shown).to_string();
            told.such_as.push(match &refusal.like {
                Some(like) => format!("{shown} (like {like})"),
                None => shown,
            });
        }
    }

    fn count(&mut self, said: &Said) {
        self.requests += 1;
        self.prompt_tokens += said.prompt_tokens;
        self.completion_tokens += said.completion_tokens;
    }

    /// How many were refused.
    pub fn refused(&self) -> u64 {
        self.refused.values().map(|told| told.count).sum()
    }
}

/// Writes rows until the file has as many as are wanted. What is told of in `tally` is in the file, however this ends.
///
/// # Errors
/// Of the API, of the file; that nothing is left to show, or that nothing comes that could be kept.
pub async fn write(
    api: &Api,
    task: &Task,
    known: &Known,
    order: &Order,
    sheet: &mut Sheet,
    tally: &mut Tally,
    observer: &mut (dyn FnMut(usize) + Send),
) -> Result<(), Error> {
    let refused = |what: &str| Error::NoDataset {
        name: task.name.clone(),
        what: what.to_owned(),
    };
    if let Some(other) = sheet
        .rows
        .iter()
        .find(|row| row.synthetic.task != task.name)
    {
        let what = format!(
            "the file has rows of {}; name another file with --out",
            other.synthetic.task
        );
        return Err(refused(&what));
    }
    if known.seeds.is_empty() && sheet.rows.len() < order.count {
        return Err(refused(
            "there is nothing to show a model: no rated or corrected answers that are trained on; collect some, or name a file of examples \
             with --from",
        ));
    }
    let mut filter = Filter::new(task, known);
    for (index, row) in sheet.rows.iter().enumerate() {
        filter.take(&format!("line {}", index + 1), row.question());
    }
    // The same file gone on with draws others than before.
    let mut request = sheet.rows.len() as u64;
    let mut barren = 0;
    while sheet.rows.len() < order.count {
        let before = sheet.rows.len();
        let seeds = known.draw(order.seed, request);
        let wanted = AT_ONCE.min(order.count - before);
        let asked = ask::for_messages(task, &seeds, wanted);
        let seed = order.sends_seed.then_some(order.seed.wrapping_add(request));
        let said = api.ask(&asked, order.temperature, seed).await?;
        tally.count(&said);
        request += 1;
        let questions = questions(&said, wanted, &mut filter, tally);
        answers(
            api, task, &seeds, order, questions, &filter, sheet, tally, observer,
        )
        .await?;
        barren = match sheet.rows.len() > before {
            true => 0,
            false => barren + 1,
        };
        if barren == BARREN {
            return Err(refused(&format!(
                "{BARREN} requests in a row brought nothing that could be kept; show other seeds, or ask another model"
            )));
        }
    }
    Ok(())
}

/// Those of the messages that may be asked.
fn questions(said: &Said, most: usize, filter: &mut Filter<'_>, tally: &mut Tally) -> Vec<String> {
    let messages = ask::messages(&said.content, most);
    let Some(messages) = messages.filter(|messages| !messages.is_empty()) else {
        let why = match said.was_cut_off {
            true => Why::CutOff,
            false => Why::Unreadable,
        };
        tally.refuse(&said.content, &why.into());
        return Vec::new();
    };
    let mut questions = Vec::new();
    for message in messages {
        match filter.question(&message) {
            Ok(question) => {
                filter.take("one that was asked", &question);
                questions.push(question);
            }
            Err(refusal) => tally.refuse(&message, &refusal),
        }
    }
    questions
}

#[allow(clippy::too_many_arguments, reason = "the parts of one loop")]
async fn answers(
    api: &Api,
    task: &Task,
    seeds: &[&Seed],
    order: &Order,
    questions: Vec<String>,
    filter: &Filter<'_>,
    sheet: &mut Sheet,
    tally: &mut Tally,
    observer: &mut (dyn FnMut(usize) + Send),
) -> Result<(), Error> {
    let mut asked = JoinSet::new();
    for question in questions {
        let messages = ask::for_answer(task, seeds, &question);
        let (api, temperature) = (api.clone(), order.temperature.map(|_| 0.0));
        let seed = order.sends_seed.then_some(order.seed);
        asked.spawn(async move { (question, api.ask(&messages, temperature, seed).await) });
    }
    while let Some(done) = asked.join_next().await {
        let (question, said) = done.map_err(|_| Error::Stopped)?;
        let answer = match said {
            Ok(said) => {
                tally.count(&said);
                match said.was_cut_off {
                    true => Err(Refusal::from(Why::CutOff)),
                    false => filter.answer(&said.content),
                }
            }
            // Something in this one message: the last request, by the same API and model, was answered.
            Err(Error::Refused {
                status: 400 | 413 | 422,
                ..
            }) => Err(Why::Declined.into()),
            Err(error) => return Err(error),
        };
        match answer {
            Ok(answer) => {
                sheet.add(Row {
                    messages: vec![
                        ChatMessage::new("user", question),
                        ChatMessage::new("assistant", answer),
                    ],
                    synthetic: Source {
                        task: task.name.clone(),
                        model: api.model().to_owned(),
                        at: Utc::now(),
                        seeds: seeds.iter().map(|seed| seed.id.clone()).collect(),
                    },
                    review: None,
                })?;
                tally.kept += 1;
                observer(sheet.rows.len());
            }
            Err(refusal) => tally.refuse(&question, &refusal),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
