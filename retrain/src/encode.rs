//! From rows to tokens: the text that the engine will see, byte for byte, with loss on the answer alone.
//!
//! The prompt is tokenised as the engine does it: the task's `adapter_prompt`, the base's chat template with its generation prompt,
//! special tokens only where the template writes them. The answer follows as its own tokens, because that is how an engine
//! reaches it: from the end of the prompt, token by token, to the end of the turn. Tokenising both in one go could merge across
//! that border into tokens that serving never sees.

use std::path::Path;

use retune_task::{ChatMessage, ChatTemplate, PromptKind, Task};
use retune_trainer::{Example, Preference};
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::Error;
use crate::dataset::Row;
use crate::preferences::Pair;

/// Renders and tokenises for one base.
pub struct Encoder {
    template: ChatTemplate,
    tokenizer: Tokenizer,
    /// The model's context, in tokens: longer examples cannot be trained on.
    context: usize,
}

/// Encoded rows or pairs, in their order; `too_long` of them were left out.
#[derive(Debug)]
pub struct Encoded<T = Example> {
    pub examples: Vec<T>,
    pub too_long: u64,
}

impl Encoder {
    /// `context` is the model's length limit in tokens.
    pub fn from_folder(base: &Path, context: usize) -> Result<Self, Error> {
        let template = ChatTemplate::from_folder(base)?;
        let path = base.join("tokenizer.json");
        let tokenizer = Tokenizer::from_file(&path).map_err(|error| Error::Tokenizer {
            path: path.clone(),
            what: error.to_string(),
        })?;
        Ok(Self {
            template,
            tokenizer,
            context,
        })
    }

    /// The tokens that the engine gets for a whole conversation; None if the model has no room for `answer` more.
    pub(crate) fn conversation(
        &self,
        messages: &[ChatMessage],
        answer: usize,
    ) -> Result<Option<Vec<u32>>, Error> {
        let tokens = self.tokens(&self.template.render(messages, true)?)?;
        Ok((tokens.len() + answer <= self.context).then_some(tokens))
    }

    /// The tokens that end an answer.
    pub(crate) fn end_of_turn(&self) -> Result<Vec<u32>, Error> {
        self.tokens(self.template.end_of_turn())
    }

    /// The text of an answer; None where engines may differ on it, that is if a special token or half a character is in it.
    pub(crate) fn text(&self, answer: &[u32]) -> Result<Option<String>, Error> {
        let added = self.tokenizer.get_added_tokens_decoder();
        if answer
            .iter()
            .any(|token| added.get(token).is_some_and(|added| added.special))
        {
            return Ok(None);
        }
        let text = self
            .tokenizer
            .decode(answer, true)
            .map_err(|error| Error::Tokenise {
                what: error.to_string(),
            })?;
        Ok((!text.contains('\u{FFFD}')).then_some(text))
    }

    /// The text in front of the answer, with the task's short prompt for adapters.
    #[cfg(test)]
    fn prompt(&self, task: &Task, row: &Row) -> Result<String, Error> {
        Ok(self
            .template
            .render(&task.messages(PromptKind::Adapter, &row.messages), true)?)
    }

    /// The model's length limit in tokens.
    pub(crate) fn context(&self) -> usize {
        self.context
    }

    /// The tokens up to where an answer begins, and those of the answer with its end of turn. One that calls tools is written as the
    /// chat template writes it.
    pub(crate) fn turn(
        &self,
        before: &[ChatMessage],
        answer: &ChatMessage,
        tools: Option<&Value>,
    ) -> Result<(Vec<u32>, Vec<u32>), Error> {
        let prompt = self.template.render_with_tools(before, tools, true)?;
        let end = self.template.end_of_turn();
        let said = if answer.tool_calls.is_none() {
            [self.tokens(&answer.content)?, self.tokens(end)?].concat()
        } else {
            let whole = [before, std::slice::from_ref(answer)].concat();
            let whole = self.template.render_with_tools(&whole, tools, false)?;
            let rest = whole.strip_prefix(&prompt);
            let rest = rest.and_then(|rest| rest.get(..rest.rfind(end)? + end.len()));
            self.tokens(rest.ok_or(Error::Calls)?)?
        };
        Ok((self.tokens(&prompt)?, said))
    }

    /// Tokens of prompt, answer and end of turn; loss weight 1 on the last two, 0 on the prompt.
    pub fn example(&self, task: &Task, row: &Row) -> Result<Example, Error> {
        let before = task.messages(PromptKind::Adapter, &row.messages);
        let answer = ChatMessage::new("assistant", row.answer.as_str());
        self.answered(&before, &answer, None)
    }

    fn answered(
        &self,
        before: &[ChatMessage],
        answer: &ChatMessage,
        tools: Option<&Value>,
    ) -> Result<Example, Error> {
        let (prompt, said) = self.turn(before, answer, tools)?;
        Ok(Example {
            weights: [vec![0.0; prompt.len()], vec![1.0; said.len()]].concat(),
            tokens: [prompt, said].concat(),
        })
    }

    pub fn examples(&self, task: &Task, rows: &[Row]) -> Result<Encoded, Error> {
        let examples = rows.iter().map(|row| self.example(task, row));
        self.encoded(examples, |example| self.fits(example))
    }

    /// Both answers of each pair, after the prompt.
    pub fn preferences(&self, task: &Task, pairs: &[Pair]) -> Result<Encoded<Preference>, Error> {
        let preference = |pair: &Pair| {
            let before = task.messages(PromptKind::Adapter, &pair.messages);
            let answer = |text: &str| ChatMessage::new("assistant", text);
            self.preference(
                &before,
                &answer(&pair.preferred),
                &answer(&pair.other),
                None,
            )
        };
        self.encoded(pairs.iter().map(preference), |both| self.both_fit(both))
    }

    pub(crate) fn preference(
        &self,
        before: &[ChatMessage],
        preferred: &ChatMessage,
        other: &ChatMessage,
        tools: Option<&Value>,
    ) -> Result<Preference, Error> {
        Ok(Preference {
            preferred: self.answered(before, preferred, tools)?,
            other: self.answered(before, other, tools)?,
        })
    }

    /// Whether it is no longer than the model's context.
    pub(crate) fn fits(&self, example: &Example) -> bool {
        example.tokens.len() <= self.context
    }

    pub(crate) fn both_fit(&self, both: &Preference) -> bool {
        self.fits(&both.preferred) && self.fits(&both.other)
    }

    fn encoded<T>(
        &self,
        all: impl Iterator<Item = Result<T, Error>>,
        fits: impl Fn(&T) -> bool,
    ) -> Result<Encoded<T>, Error> {
        let all: Vec<T> = all.collect::<Result<_, _>>()?;
        let (examples, too_long): (Vec<T>, Vec<T>) = all.into_iter().partition(fits);
        Ok(Encoded {
            examples,
            too_long: too_long.len() as u64,
        })
    }

    /// The text of any tokens.
    #[cfg(test)]
    pub(crate) fn shown(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens, false).unwrap_or_default()
    }

    /// Without the tokenizer's own additions: a template that wants a beginning of text writes it, and a second one would be a
    /// prompt that serving never sees.
    fn tokens(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding =
            self.tokenizer
                .encode_fast(text, false)
                .map_err(|error| Error::Tokenise {
                    what: error.to_string(),
                })?;
        Ok(encoding.get_ids().to_vec())
    }
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
