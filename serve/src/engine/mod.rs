//! What generates: one trait, behind which the embedded engine sits now and remote ones later.

mod base;
mod embedded;
mod peft;
mod safetensors;
mod sampling;
#[cfg(test)]
mod tests;
mod text;

use std::path::Path;

use async_trait::async_trait;
use retune_task::ChatMessage;
use tokio::sync::mpsc;

pub(crate) use embedded::Embedded;
pub(crate) use sampling::Sampling;

use crate::error::Error;

/// One answer that is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Generation {
    /// An adapter's engine name, as it was given to [`Engine::load`]; `None` is the bare base.
    pub(crate) adapter: Option<String>,
    /// The whole conversation, the task's prompt included.
    pub(crate) messages: Vec<ChatMessage>,
    pub(crate) sampling: Sampling,
    /// The answer's limit in tokens, above 0; less if the context is full before.
    pub(crate) max_tokens: usize,
    /// The answer ends before the first of these.
    pub(crate) stop: Vec<String>,
}

/// An answer that has begun.
#[derive(Debug)]
pub(crate) struct Generating {
    pub(crate) prompt_tokens: usize,
    /// Text as it comes, then one [`Event::Done`] or [`Event::Failed`]. Dropping it frees the engine's slot at the next token.
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
}

/// What happens to an answer.
#[derive(Debug)]
pub(crate) enum Event {
    /// The next piece; `tokens`: how many tokens the answer has so far.
    Text {
        text: String,
        tokens: usize,
    },
    /// The answer is complete; `tokens` includes the end-of-turn token.
    Done {
        finish: Finish,
        tokens: usize,
    },
    Failed(Error),
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model ended its turn, or a stop string came.
    Stop,
    /// The token limit, or the end of the context.
    Length,
}

impl Finish {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// A base model with adapters that come and go.
#[async_trait]
pub(crate) trait Engine: Send + Sync {
    /// Loads the adapter in `folder` as `name`. A name is never used for a second load.
    async fn load(&self, name: &str, folder: &Path) -> Result<(), Error>;
    /// Lets the requests of `name` finish, then frees it. No request may start on it any more.
    async fn unload(&self, name: &str) -> Result<(), Error>;
    /// Begins an answer; what is wrong with the request is an error here, not an event.
    async fn generate(&self, generation: Generation) -> Result<Generating, Error>;
}
