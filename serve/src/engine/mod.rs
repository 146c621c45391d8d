//! What generates: one trait, behind which sit the engine inside this process and those on other servers.

mod answer;
mod base;
mod embedded;
mod gguf;
mod load;
mod model;
mod peft;
mod safetensors;
mod sampling;
#[cfg(test)]
pub(crate) mod tests;
mod text;
pub(crate) mod upstream;
mod vocabulary;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use retune_task::{ChatMessage, Grammar};
use retune_wire::{Sampling, TokenLogprob};
use serde_json::Value;
use tokio::sync::mpsc;

pub(crate) use base::{BaseFolder, json};
pub(crate) use embedded::Embedded;
pub(crate) use peft::check as check_adapter;
pub(crate) use upstream::Upstream;
pub(crate) use vocabulary::Vocabulary;

use crate::error::Error;
use crate::trace::Trail;

/// One answer that is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Generation {
    /// An adapter's engine name, as it was given to [`Engine::load`]; `None` is the bare base.
    pub(crate) adapter: Option<String>,
    pub(crate) prompt: Prompt,
    pub(crate) sampling: Sampling,
    /// The answer's limit in tokens, above 0; less if the context is full before.
    pub(crate) max_tokens: usize,
    /// The answer ends before the first of these.
    pub(crate) stop: Vec<String>,
    /// How many of the likeliest tokens are told beside each chosen one; `None`: no probabilities at all.
    pub(crate) logprobs: Option<usize>,
    /// What the answer is held to while it is made.
    pub(crate) constraint: Option<Constraint>,
    /// What goes on to a server that is asked for it.
    pub(crate) trail: Trail,
}

/// What the model reads.
#[derive(Debug, Clone)]
pub(crate) enum Prompt {
    /// A whole conversation, the task's prompt included, which the model's chat template makes into text.
    Messages {
        messages: Vec<ChatMessage>,
        /// What the model may call, as OpenAI's API has it.
        tools: Option<Arc<Value>>,
    },
    /// The text as it stands.
    Text(String),
}

/// A grammar, and the parameter it came from: the one to name if it cannot be held.
#[derive(Debug, Clone)]
pub(crate) struct Constraint {
    pub(crate) grammar: Arc<Grammar>,
    pub(crate) param: &'static str,
}

/// An answer that has begun.
#[derive(Debug)]
pub(crate) struct Generating {
    /// An estimate where the engine learns it at the end alone, with [`Event::Done`].
    pub(crate) prompt_tokens: usize,
    /// Text as it comes, then one [`Event::Done`] or [`Event::Failed`]. Dropping it frees the engine's slot at the next token.
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
}

/// What happens to an answer.
#[derive(Debug)]
pub(crate) enum Event {
    /// The next piece, with its tokens' probabilities if they were asked for. The text of a token may come after it, while a
    /// character is incomplete or a stop string may have begun.
    Text {
        text: String,
        /// How many tokens the answer has so far.
        tokens: usize,
        logprobs: Vec<TokenLogprob>,
    },
    /// The answer is complete; `tokens` includes the end-of-turn token.
    Done {
        finish: Finish,
        tokens: usize,
        /// The prompt's tokens, where they were not known before.
        prompt_tokens: Option<usize>,
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
    /// Whether it still holds the adapter: one whose engine broke down is gone.
    fn holds_adapter(&self, _name: &str) -> bool {
        true
    }
    /// Begins an answer; what is wrong with the request is an error here, not an event.
    async fn generate(&self, generation: Generation) -> Result<Generating, Error>;
    /// Whether answers can be held to the grammar.
    async fn holds(&self, constraint: Constraint) -> Result<(), Error>;
    /// Whether the model's chat template tells it of tools.
    fn knows_tools(&self) -> bool;
    /// Whether a greedy answer is the same wherever and whenever it is made, to the letter.
    fn repeats(&self) -> bool {
        true
    }
    /// Whether it could answer now.
    async fn ready(&self) -> bool {
        true
    }
}
