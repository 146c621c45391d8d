//! What a model may be shown, and what it must not be: from the ledger, or a file in place of it.
//!
//! Of the dataset only what is trained on is shown, and of that nothing that a model wrote: writing after writing, a model's habits would
//! be all that is left. A file's conversations are held out by the same key as the ledger's.

use std::path::Path;

use retune_ledger::{Ledger, Purpose};
use retune_task::{ChatMessage, Split, Task};
use retune_wire::TrainingLine;
use sha2::{Digest, Sha256};

use super::Row;
use super::filter::Filter;
use crate::dataset::{self, KnownBy};
use crate::{Error, shelf, trust};

/// Seeds that a model is shown at once.
const SHOWN: usize = 6;

/// An example that a model may be shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Seed {
    /// The row's, or the file's name and line.
    pub id: String,
    pub messages: Vec<ChatMessage>,
    pub answer: String,
}

impl Seed {
    /// What its conversation began with.
    pub(super) fn question(&self) -> &str {
        let first = self.messages.iter().find(|m| m.role == "user");
        first.map_or("", |message| &message.content)
    }

    /// Its answer is that to its only message.
    pub(super) fn is_one_exchange(&self) -> bool {
        let mut said = self.messages.iter().filter(|m| m.role != "system");
        said.next().is_some_and(|m| m.role == "user") && said.next().is_none()
    }
}

/// What is known of a task before anything is written for it.
#[derive(Debug, Clone, Default)]
pub struct Known {
    pub seeds: Vec<Seed>,
    /// Ids and messages of what is trained on, or chooses the checkpoint.
    pub trained_on: Vec<(String, String)>,
    /// Ids and messages of every held-out conversation, rated or not.
    pub held_out: Vec<(String, String)>,
}

impl Known {
    /// From the ledger: its dataset's seeds, and everything that must not be written again.
    ///
    /// # Errors
    /// Of the ledger.
    pub async fn read(ledger: &Ledger, task: &Task) -> Result<Self, Error> {
        let exchanges = ledger.exchanges(&shelf::of_dataset(task)).await?;
        let feedback = trust::feedback(ledger, &Default::default()).await?;
        let dataset = dataset::build(task, &exchanges, &feedback);
        let mut known = Self::default();
        let asked = exchanges.iter().filter(|e| e.purpose == Purpose::User);
        for exchange in asked {
            if dataset::split(task, exchange) == Split::HeldOut {
                let messages = exchange.messages.as_deref().unwrap_or_default();
                said(&mut known.held_out, &exchange.request_id, messages);
            }
        }
        for row in dataset.train.iter().chain(&dataset.development) {
            said(&mut known.trained_on, &row.request_id, &row.messages);
        }
        let shown = dataset.train.into_iter();
        known.seeds = shown
            .filter(|row| row.known_by != KnownBy::Synthetic)
            .map(|row| Seed {
                id: row.request_id,
                messages: row.messages,
                answer: row.answer,
            })
            .collect();
        Ok(known)
    }

    /// A file's conversations in place of the dataset's seeds; says how many were left out since they are held out, or like one that is.
    ///
    /// # Errors
    /// The line that cannot be read, or was written by a model.
    pub fn read_file(&mut self, ledger: &Ledger, task: &Task, path: &Path) -> Result<usize, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::file(path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let refused = |number: usize, what: String| Error::NoDataset {
            name: format!("{}:{number}", path.display()),
            what,
        };
        self.seeds.clear();
        let mut held_out = 0;
        let text = text.trim_start_matches('\u{feff}');
        let mut found = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let number = index + 1;
            if Row::read(line).is_some() {
                let what = "a model wrote it; expected examples of people";
                return Err(refused(number, what.to_owned()));
            }
            let read = TrainingLine::read(line.as_bytes());
            let mut messages = match read.map_err(|refusal| refused(number, refusal.message))? {
                TrainingLine::Conversation(line) => line.messages,
                TrainingLine::Preference(_) => {
                    let what = "two answers to choose from; expected a conversation";
                    return Err(refused(number, what.to_owned()));
                }
            };
            let answer = messages.pop().filter(|last| last.role == "assistant");
            let has_question = messages.iter().any(|message| message.role == "user");
            let (Some(answer), true) = (answer, has_question) else {
                let what = "expected a user's message, and the assistant's answer last";
                return Err(refused(number, what.to_owned()));
            };
            let key = ledger.conversation(&messages, &task.privacy);
            if retune_task::held_out(&key) == Split::HeldOut {
                held_out += 1;
                continue;
            }
            found.push(Seed {
                id: format!("{name}:{number}"),
                messages,
                answer: answer.content,
            });
        }
        // Those that only resemble a held-out conversation, or quote one.
        let filter = Filter::new(task, self);
        let gives_away = |seed: &Seed| {
            let users = seed.messages.iter().filter(|m| m.role == "user");
            users.into_iter().any(|m| filter.gives_away(&m.content))
                || filter.leaks(&seed.answer).is_err()
        };
        let before = found.len();
        found.retain(|seed| !gives_away(seed));
        held_out += before - found.len();
        for seed in &found {
            said(&mut self.trained_on, &seed.id, &seed.messages);
        }
        self.seeds = found;
        Ok(held_out)
    }

    /// Some seeds, drawn anew for each request.
    pub(super) fn draw(&self, seed: u64, request: u64) -> Vec<&Seed> {
        let mut places = Vec::new();
        let wanted = SHOWN.min(self.seeds.len());
        for n in 0_u64.. {
            if places.len() == wanted {
                break;
            }
            let place = number(seed, request, n) % self.seeds.len() as u64;
            if !places.contains(&place) {
                places.push(place);
            }
        }
        let at = |place: &u64| self.seeds.get(*place as usize);
        places.iter().filter_map(at).collect()
    }
}

/// What users said in it.
fn said(list: &mut Vec<(String, String)>, id: &str, messages: &[ChatMessage]) {
    let texts = messages.iter().filter(|message| message.role == "user");
    list.extend(texts.map(|message| (id.to_owned(), message.content.clone())));
}

fn number(seed: u64, request: u64, n: u64) -> u64 {
    let digest = Sha256::digest(format!("{seed}\n{request}\n{n}"));
    let mut head = [0; 8];
    head.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(head)
}
