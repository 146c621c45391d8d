//! One question to several models, side by side.

use askama::Template;

use crate::frame::Frame;

/// The page.
#[derive(Template)]
#[template(path = "try.html")]
pub struct Page {
    /// What is around it.
    pub frame: Frame,
    /// All tasks.
    pub tasks: Vec<String>,
    /// Whose models are asked.
    pub task: String,
    /// What is asked.
    pub message: String,
    /// The models, with their answers where there are some.
    pub answers: Vec<Answer>,
}

/// A model, and what it answered.
pub struct Answer {
    /// Its name.
    pub model: String,
    /// What it is: the base, the champion, the candidate.
    pub is: &'static str,
    /// Its answer.
    pub text: String,
    /// How it went.
    pub said: String,
}
