//! Questions that show whether an adapter is applied: what it answers where it was made it must answer where it is served.
//!
//! Fixed texts of all kinds rather than a task's own logs: a manifest outlives its dataset, and must not keep what a user wrote.

use crate::chat::{ChatMessage, PromptKind};
use crate::config::Task;

/// Tokens of an answer to a probe.
pub const PROBE_TOKENS: usize = 8;

const TEXTS: [&str; 8] = [
    "Hello",
    "I was charged twice for my last order, please check.",
    "Where is my parcel? It should have been here on Monday.",
    "The app shows an error each time I sign in.",
    "Please change the address of my account to 12 Mill Lane.",
    "Thank you, that was quick and friendly!",
    "What do you need to know from me?",
    "1, 2, 3, 4,",
];

impl Task {
    /// What an adapter of this task is asked, as the engine gets it: its short prompt in front.
    pub fn probes(&self) -> Vec<Vec<ChatMessage>> {
        let asked =
            |text: &str| self.messages(PromptKind::Adapter, &[ChatMessage::new("user", text)]);
        TEXTS.into_iter().map(asked).collect()
    }
}
