//! What a task's configuration lets of people's words be kept: everything else is gone before a row is a row.
//!
//! A conversation's key is a digest of its first message, from which a short one can be guessed; where anything is withheld, it becomes
//! one that takes the installation's secret. So what is one conversation stays one, and surrogates are the same within it.

use retune_task::{ChatMessage, Privacy, Prompts, Redaction, fraction};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::import;
use crate::ledger::Ledger;
use crate::rows::{Exchange, Feedback};

impl Ledger {
    /// The key that a conversation has in the tables.
    pub fn conversation(&self, messages: &[ChatMessage], privacy: &Privacy) -> String {
        let key = retune_task::conversation(messages);
        match privacy.keeps_all() {
            true => key,
            false => digest(self.secret(), &key),
        }
    }

    /// An exchange as a task lets it be kept.
    pub fn withhold(&self, mut row: Exchange, privacy: &Privacy) -> Exchange {
        let (redaction, secret) = (&privacy.redaction, self.secret());
        if privacy.keeps_all() {
            return row;
        }
        row.conversation = digest(secret, &row.conversation);
        let scope = row.conversation.clone();
        if fraction("text", &scope) >= privacy.text_share {
            row.messages = None;
            row.answer = None;
            row.tool_calls = None;
            row.metadata = None;
            if let Value::Object(parameters) = &mut row.parameters {
                parameters.remove("other_answers");
            }
            return row;
        }
        let clean = |text: &mut String| *text = redacted(redaction, text, secret, &scope);
        for message in row.messages.iter_mut().flatten() {
            clean(&mut message.content);
            message.name.as_mut().map(clean);
            texts(message.tool_calls.as_mut(), &clean);
        }
        row.answer.as_mut().map(clean);
        texts(row.tool_calls.as_mut(), &clean);
        texts(row.metadata.as_mut(), &clean);
        // What is the ledger's own there has to stay as it is: by the digest a line is known again.
        for (name, value) in row.parameters.as_object_mut().into_iter().flatten() {
            if !import::OWN_PARAMETERS.contains(&name.as_str()) {
                texts(Some(value), &clean);
            }
        }
        match privacy.prompts {
            Prompts::Keep => {}
            Prompts::Drop => row.messages = None,
            Prompts::Hash => {
                for message in row.messages.iter_mut().flatten() {
                    message.content = digest(secret, &message.content);
                    message.tool_calls = None;
                }
            }
        }
        row
    }

    /// A feedback on an exchange, as that was kept, or, where nobody knows it, with all care; none where nothing is left of it.
    pub fn withhold_feedback(
        &self,
        mut row: Feedback,
        privacy: &Privacy,
        exchange: Option<&Exchange>,
    ) -> Option<Feedback> {
        let is_without_text = match exchange {
            Some(kept) => kept.messages.is_none() && kept.answer.is_none(),
            None => privacy.text_share < 1.0,
        };
        if is_without_text {
            return row.without_text();
        }
        let scope =
            exchange.map_or_else(|| row.request_id.clone(), |kept| kept.conversation.clone());
        let clean = |text: &mut String| {
            *text = redacted(&privacy.redaction, text, self.secret(), &scope);
        };
        row.correction.as_mut().map(&clean);
        row.comment.as_mut().map(&clean);
        Some(row)
    }
}

fn redacted(redaction: &Redaction, text: &str, secret: &[u8], scope: &str) -> String {
    redaction.redact(text, secret, scope).into_owned()
}

/// Every text in a JSON value; keys stay.
fn texts(value: Option<&mut Value>, clean: &impl Fn(&mut String)) {
    match value {
        Some(Value::String(text)) => clean(text),
        Some(Value::Array(list)) => list.iter_mut().for_each(|value| texts(Some(value), clean)),
        Some(Value::Object(map)) => map.values_mut().for_each(|value| texts(Some(value), clean)),
        _ => {}
    }
}

fn digest(secret: &[u8], text: &str) -> String {
    let hash = Sha256::new().chain_update(secret).chain_update(text);
    retune_task::hex(&hash.finalize())
}

#[cfg(test)]
#[path = "privacy_tests.rs"]
mod tests;
