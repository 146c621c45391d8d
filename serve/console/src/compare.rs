//! Two answers to one prompt, and which is better. Nothing of the page tells whose they are, or how the votes stand.

use askama::Template;
use retune_task::{CRITERIA, ChatMessage};

use crate::frame::Frame;

/// The page.
#[derive(Template)]
#[template(path = "compare.html")]
pub struct Page {
    /// What is around it.
    pub frame: Frame,
    /// Of one task, or of all.
    pub task: Option<String>,
    /// The pair; none where none waits.
    pub pair: Option<Pair>,
    /// Pairs without a vote.
    pub waiting: usize,
    /// Pairs with one.
    pub voted: usize,
    /// Why what was sent was not taken.
    pub refused: Option<String>,
}

/// A pair.
pub struct Pair {
    /// Its id.
    pub id: String,
    /// Of which task.
    pub task: String,
    /// What makes an answer better, in the owner's words.
    pub criteria: Option<String>,
    /// What was asked.
    pub messages: Vec<ChatMessage>,
    /// One answer.
    pub left: String,
    /// The other.
    pub right: String,
}

impl Page {
    fn all(&self) -> usize {
        self.waiting + self.voted
    }

    fn rubric(&self) -> [&'static str; 4] {
        CRITERIA
    }
}
