//! Conversations: who says what, what the engine is told, and which split a conversation belongs to.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::Task;
use crate::digest::sha256;

/// One message, as OpenAI's API has it, with its content joined into one string.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
    /// What an assistant called, as OpenAI's API has it but with `arguments` as an object, which is how chat templates want them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Value>,
    /// Which call a tool's message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Who of several people or tools speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl ChatMessage {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        ChatMessage {
            role: role.into(),
            content: content.into(),
            ..ChatMessage::default()
        }
    }
}

/// What becomes of a system message that an app sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientSystem {
    /// The task's prompt takes its place.
    Replace,
    /// It follows the task's prompt, in the same message.
    Keep,
}

/// Which of a task's two prompts is put in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptKind {
    /// The whole instruction, for the base.
    Full,
    /// The short one that adapters are trained and served with.
    Adapter,
}

/// Where a conversation belongs, in every run the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Split {
    /// Trained on.
    Train,
    /// Chooses the checkpoint; neither trained on nor examined.
    Development,
    /// Examined.
    HeldOut,
}

impl Task {
    /// What the engine gets for an app's messages: the task's prompt in front, and no other system message beside it; none at all where
    /// neither says anything.
    pub fn messages(&self, prompt: PromptKind, client: &[ChatMessage]) -> Vec<ChatMessage> {
        let prompt = match prompt {
            PromptKind::Full => &self.prompt,
            PromptKind::Adapter => &self.adapter_prompt,
        };
        let is_system = |m: &&ChatMessage| m.role == "system" || m.role == "developer";
        let mut system = vec![prompt.as_str()];
        if self.client_system == ClientSystem::Keep {
            system.extend(client.iter().filter(is_system).map(|m| m.content.as_str()));
        }
        system.retain(|said| !said.trim().is_empty());
        let mut messages = Vec::with_capacity(client.len() + 1);
        if !system.is_empty() {
            messages.push(ChatMessage::new("system", system.join("\n\n")));
        }
        messages.extend(client.iter().filter(|m| !is_system(m)).cloned());
        messages
    }
}

/// What is asked: the last that a user said.
pub fn question(messages: &[ChatMessage]) -> Option<&str> {
    let asked = messages.iter().rev().find(|said| said.role == "user");
    asked.map(|said| said.content.as_str())
}

/// A conversation's key: lower-case hex SHA-256 of its first user message, runs of white space made one space and the
/// ends trimmed. Without a user message it is the hash of nothing.
pub fn conversation(messages: &[ChatMessage]) -> String {
    let first = messages
        .iter()
        .find(|m| m.role == "user")
        .map_or("", |m| m.content.as_str());
    let normalised = first.split_whitespace().collect::<Vec<_>>().join(" ");
    sha256(&normalised)
}

/// The split of a conversation, by its key alone: 15 % are held out, 10 % of the rest are for development.
pub fn held_out(conversation: &str) -> Split {
    // Hashed again, so that the split doesn't follow from the key's first letters to a reader of the key.
    let digest = Sha256::digest(conversation.as_bytes());
    let mut head = [0u8; 8];
    head.copy_from_slice(&digest[..8]);
    match u64::from_be_bytes(head) % 1000 {
        0..150 => Split::HeldOut,
        150..235 => Split::Development,
        _ => Split::Train,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_are_as_documented() {
        let mut counts = [0usize; 3];
        for i in 0..20_000 {
            counts[held_out(&i.to_string()) as usize] += 1;
        }
        assert!((2_800..3_200).contains(&counts[2]), "{counts:?}");
        assert!((1_550..1_850).contains(&counts[1]), "{counts:?}");
    }

    #[test]
    fn a_job_s_task_says_what_its_apps_say_and_nothing_else() {
        let task = Task::of_job("support");
        let user = ChatMessage::new("user", "hi");
        for prompt in [PromptKind::Full, PromptKind::Adapter] {
            let alone = task.messages(prompt, std::slice::from_ref(&user));
            assert_eq!(alone, std::slice::from_ref(&user));
            let said = [
                ChatMessage::new("developer", "Be brief."),
                user.clone(),
                ChatMessage::new("system", " "),
            ];
            let system = ChatMessage::new("system", "Be brief.");
            assert_eq!(task.messages(prompt, &said), [system, user.clone()]);
        }
    }

    proptest! {
        #[test]
        fn white_space_and_later_messages_do_not_change_a_conversation(words in prop::collection::vec("[a-zäß]{1,8}", 1..9)) {
            let a = [ChatMessage::new("user", words.join(" "))];
            let b = [
                ChatMessage::new("system", "x"),
                ChatMessage::new("user", format!("  {}\n", words.join(" \t\n"))),
                ChatMessage::new("assistant", "y"),
                ChatMessage::new("user", "z"),
            ];
            prop_assert_eq!(conversation(&a), conversation(&b));
            prop_assert_eq!(conversation(&a).len(), 64);
        }
    }
}
