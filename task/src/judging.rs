//! The words of a blind comparison: what whoever compares two answers can say, and by what.
//!
//! Servers take them from people, and retraining from models; both mean the same by them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a rubric rates, each 1 to 5.
pub const CRITERIA: [&str; 4] = ["accuracy", "relevance", "style", "usefulness"];

/// An answer's marks by criterion, 1 to 5; those that nobody gave are not there.
pub type Marks = BTreeMap<String, f64>;

/// Of two answers, which is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// The left one.
    Left,
    /// The right one.
    Right,
    /// Neither.
    Tie,
}

impl Choice {
    /// All, in one order.
    pub const ALL: [Choice; 3] = [Choice::Left, Choice::Right, Choice::Tie];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Choice::Left => "left",
            Choice::Right => "right",
            Choice::Tie => "tie",
        }
    }

    /// The choice that a word names.
    pub fn read(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|choice| choice.as_str() == word)
    }
}

/// Where an answer sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// On the left.
    Left,
    /// On the right.
    Right,
}
