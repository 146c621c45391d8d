//! What a person says of rows, one after the other, and takes back. Pure: whoever shows the rows and keeps the file is elsewhere.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use retune_task::{Check, Task};
use serde::Serialize;

use super::{Review, Row, Verdict};

/// What a person may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Accept,
    Edit,
    Reject,
    Skip,
    Undo,
    Quit,
}

impl Key {
    /// What a line says, by its letter or the whole word.
    pub fn read(line: &str) -> Option<Self> {
        Some(match line.trim().to_lowercase().as_str() {
            "a" | "accept" => Self::Accept,
            "e" | "edit" => Self::Edit,
            "r" | "reject" => Self::Reject,
            "s" | "skip" => Self::Skip,
            "u" | "undo" => Self::Undo,
            "q" | "quit" => Self::Quit,
            _ => return None,
        })
    }
}

/// How far a file is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    pub accepted: usize,
    pub rejected: usize,
    pub waiting: usize,
}

impl Progress {
    /// Of these rows.
    pub fn of(rows: &[Row]) -> Self {
        let mut progress = Self::default();
        for row in rows {
            *match row.review.as_ref().map(|review| review.said) {
                None => &mut progress.waiting,
                Some(Verdict::Accepted) => &mut progress.accepted,
                Some(Verdict::Rejected) => &mut progress.rejected,
            } += 1;
        }
        progress
    }
}

/// Where somebody is in a file, and what they did there.
#[derive(Debug)]
pub struct Desk {
    by: String,
    /// Passed over for now.
    skipped: HashSet<usize>,
    /// Places, and the rows as they were; none where one was skipped.
    done: Vec<(usize, Option<Row>)>,
    /// Goes before the others.
    again: Option<usize>,
}

impl Desk {
    /// For somebody who says their name.
    pub fn new(by: &str) -> Self {
        Self {
            by: by.to_owned(),
            skipped: HashSet::new(),
            done: Vec::new(),
            again: None,
        }
    }

    /// The place of the row to look at; `None` where nothing is left but what was skipped.
    pub fn place(&self, rows: &[Row]) -> Option<usize> {
        let waits = |place: &usize| {
            let row = rows.get(*place);
            row.is_some_and(|row| row.review.is_none()) && !self.skipped.contains(place)
        };
        let mut all = self.again.into_iter().chain(0..rows.len());
        all.find(waits)
    }

    /// Says something of the row at a place; with another answer, if there is one.
    pub fn say(
        &mut self,
        rows: &mut [Row],
        place: usize,
        said: Verdict,
        answer: Option<String>,
        at: DateTime<Utc>,
    ) {
        let Some(row) = rows.get_mut(place) else {
            return;
        };
        self.done.push((place, Some(row.clone())));
        let edited = answer.as_ref().is_some_and(|answer| answer != row.answer());
        if let Some((last, answer)) = row.messages.last_mut().zip(answer) {
            last.content = answer;
        }
        row.review = Some(Review {
            said,
            by: self.by.clone(),
            at,
            edited,
        });
        self.again = None;
    }

    /// Passes a row over.
    pub fn skip(&mut self, place: usize) {
        self.skipped.insert(place);
        self.done.push((place, None));
        self.again = None;
    }

    /// Takes back what was done last; whether there was anything.
    pub fn undo(&mut self, rows: &mut [Row]) -> bool {
        let Some((place, before)) = self.done.pop() else {
            return false;
        };
        self.skipped.remove(&place);
        if let Some((row, before)) = rows.get_mut(place).zip(before) {
            *row = before;
        }
        self.again = Some(place);
        true
    }
}

/// Why an answer cannot be accepted, if it cannot.
pub fn objection(task: &Task, answer: &str) -> Option<String> {
    if answer.trim().is_empty() {
        return Some("it is empty".to_owned());
    }
    match task.format.as_ref()?.check(answer) {
        Check::Valid => None,
        Check::Invalid { reason, detail } => {
            Some(format!("it breaks the task's format ({reason}): {detail}"))
        }
    }
}

/// A text as a terminal may have it: whatever would move its cursor, or colour it, is shown instead.
pub fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            // Bidirectional marks make a text look like another one.
            c if c.is_control()
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                shown.extend(c.escape_unicode());
            }
            c => shown.push(c),
        }
    }
    shown
}
