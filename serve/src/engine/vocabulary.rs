//! The tokens' own bytes, and grammars that only let through what a format allows.
//!
//! The grammar runs in Retune's own choice of the next token rather than in the engine's sampler, which would choose a second time
//! after it. Two traps are met here: the JSON grammar allows white space anywhere by default, and a weak model then pads until it has no
//! tokens left, so separators are fixed to those of Python's `json.dumps`; and an answer that its grammar ended is given the
//! end-of-turn token, so that it ends like any other.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use retune_task::Grammar;
use retune_wire::Refusal;
use serde_json::{Value, json};
use tokenizers::Tokenizer;
use toktrie::{ApproximateTokEnv, TokEnv, TokTrie};
use toktrie_hf_tokenizers::{ByteTokenizer, ByteTokenizerEnv};

use super::Constraint;
use crate::error::Error;

/// A base's tokens.
pub(crate) struct Vocabulary {
    env: TokEnv,
    grammars: ParserFactory,
}

impl Vocabulary {
    /// Takes the tokenizer apart; for a large vocabulary this takes a good part of a second.
    pub(crate) fn new(tokenizer: &Tokenizer, end_of_turn: u32) -> Result<Self, Error> {
        let failed = |e: anyhow::Error| {
            Error::Engine(format!("the tokenizer's tokens cannot be read: {e:#}"))
        };
        let special: Vec<(u32, String)> = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (id, token.content))
            .collect();
        let mut bytes = ByteTokenizer::from_tokenizer(tokenizer.clone()).map_err(failed)?;
        bytes.set_eos_token(end_of_turn);
        let mut words = bytes.token_bytes();
        // No grammar may write a special token as if it were text; some tokenizers do not mark theirs.
        for (id, content) in special {
            if let Some(word) = words.get_mut(id as usize)
                && word.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER)
            {
                *word = [&[TokTrie::SPECIAL_TOKEN_MARKER], content.as_bytes()].concat();
            }
        }
        let trie = TokTrie::from(&bytes.tokrx_info(), &words);
        let env = ByteTokenizerEnv {
            tokenizer: bytes,
            tok_trie: trie,
        }
        .to_env();
        Self::of(env).map_err(failed)
    }

    /// Of bytes, for whoever has no base at hand: whether there is a grammar of it does not depend on the tokens.
    pub(crate) fn of_bytes() -> Result<Self, Error> {
        let env = ApproximateTokEnv::single_byte_env();
        Self::of(env).map_err(|e| Error::Engine(format!("grammars cannot be made: {e:#}")))
    }

    fn of(env: TokEnv) -> anyhow::Result<Self> {
        let mut grammars = ParserFactory::new_simple(&env)?;
        // Its log would repeat parts of answers.
        grammars.quiet();
        grammars.limits_mut().verbose_errors = false;
        Ok(Self { env, grammars })
    }

    pub(crate) fn size(&self) -> usize {
        self.env.tok_trie().vocab_size()
    }

    /// The bytes that `token` stands for; of a special token its name's.
    pub(crate) fn bytes(&self, token: u32) -> Vec<u8> {
        let trie = self.env.tok_trie();
        if token as usize >= trie.vocab_size() {
            return Vec::new();
        }
        let bytes = trie.token(token);
        bytes
            .strip_prefix(&[TokTrie::SPECIAL_TOKEN_MARKER])
            .unwrap_or(bytes)
            .to_vec()
    }

    /// The state of an answer under `constraint`, before its first token.
    pub(crate) fn matcher(&self, constraint: &Constraint) -> Result<Matcher, Error> {
        let refused = |e: anyhow::Error| Refusal {
            message: format!(
                "Invalid '{}': no answer can be decoded under it: {e:#}",
                constraint.param
            ),
            param: Some(constraint.param.to_owned()),
            code: Some("invalid_grammar"),
        };
        let grammar = match &*constraint.grammar {
            Grammar::JsonSchema(schema) => TopLevelGrammar::from_json_schema(tight(schema)),
            Grammar::JsonObject => {
                TopLevelGrammar::from_json_schema(tight(&json!({"type": "object"})))
            }
            Grammar::Regex(pattern) => TopLevelGrammar::from_regex(pattern),
        };
        let parser = self.grammars.create_parser(grammar).map_err(refused)?;
        Ok(Matcher::new(Ok(parser)))
    }
}

/// The schema with fixed separators.
fn tight(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(members) => Value::Object(members.clone()),
        // `true` allows everything; nothing can be hung on it.
        _ => json!({}),
    };
    let options = JsonCompileOptions {
        whitespace_flexible: false,
        item_separator: ", ".to_owned(),
        key_separator: ": ".to_owned(),
        ..JsonCompileOptions::default()
    };
    options.apply_to(&mut schema);
    schema
}

/// A matcher with what it needs of the vocabulary: which tokens may come next.
pub(crate) struct Allowed {
    matcher: Matcher,
    end_of_turn: u32,
}

impl Allowed {
    pub(crate) fn new(matcher: Matcher, end_of_turn: u32) -> Self {
        Self {
            matcher,
            end_of_turn,
        }
    }

    /// Puts every token that may not come next out of reach.
    pub(crate) fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        if self.matcher.is_stopped() {
            return if self.matcher.stop_reason().is_ok() {
                only(logits, self.end_of_turn);
                Ok(())
            } else {
                Err(self.failure())
            };
        }
        let mask = self.matcher.compute_mask().map_err(|e| format!("{e:#}"))?;
        for (token, logit) in (0u32..).zip(logits.iter_mut()) {
            if token as usize >= mask.len() || !mask.is_allowed(token) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Takes the chosen token in.
    pub(crate) fn take(&mut self, token: u32) -> Result<(), String> {
        if self.matcher.is_stopped() {
            return Ok(());
        }
        self.matcher
            .consume_token(token)
            .map_err(|e| format!("{e:#}"))
    }

    fn failure(&self) -> String {
        self.matcher
            .get_error()
            .unwrap_or_else(|| format!("the grammar gave up: {}", self.matcher.stop_reason()))
    }
}

fn only(logits: &mut [f32], token: u32) {
    for (at, logit) in (0u32..).zip(logits.iter_mut()) {
        if at != token {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Made when first needed: most servers never constrain anything.
pub(crate) struct LazyVocabulary {
    tokenizer: Arc<Tokenizer>,
    end_of_turn: u32,
    made: tokio::sync::OnceCell<Arc<Vocabulary>>,
}

impl LazyVocabulary {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, end_of_turn: u32) -> Self {
        Self {
            tokenizer,
            end_of_turn,
            made: tokio::sync::OnceCell::new(),
        }
    }

    pub(crate) async fn get(&self) -> Result<Arc<Vocabulary>, Error> {
        let made = self.made.get_or_try_init(|| async {
            let (tokenizer, end_of_turn) = (Arc::clone(&self.tokenizer), self.end_of_turn);
            off_thread(move || Vocabulary::new(&tokenizer, end_of_turn).map(Arc::new)).await
        });
        made.await.cloned()
    }

    /// A compiled constraint. Compiling may take tens of milliseconds, so not on a thread that serves others.
    pub(crate) async fn allowed(&self, constraint: Constraint) -> Result<Allowed, Error> {
        let (vocabulary, end_of_turn) = (self.get().await?, self.end_of_turn);
        off_thread(move || {
            let matcher = vocabulary.matcher(&constraint)?;
            Ok(Allowed::new(matcher, end_of_turn))
        })
        .await
    }
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::Engine(format!("the tokenizer's work failed: {e}")))?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const END: u32 = 2;

    fn vocabulary() -> Vocabulary {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/pocket");
        let tokenizer = Tokenizer::from_file(format!("{folder}/tokenizer.json")).unwrap();
        assert_eq!(tokenizer.token_to_id("<|im_end|>"), Some(END));
        Vocabulary::new(&tokenizer, END).unwrap()
    }

    /// The text of the answer that prefers, at each step, the allowed token that `likes` ranks highest.
    fn written(vocabulary: &Vocabulary, grammar: Grammar, likes: impl Fn(&[u8]) -> f32) -> String {
        let constraint = Constraint {
            grammar: Arc::new(grammar),
            param: "response_format",
        };
        let mut allowed = Allowed::new(vocabulary.matcher(&constraint).unwrap(), END);
        let mut text = Vec::new();
        for _ in 0..200 {
            let mut logits: Vec<f32> = (0..vocabulary.size() as u32)
                .map(|token| likes(&vocabulary.bytes(token)))
                .collect();
            allowed.mask(&mut logits).unwrap();
            let best = (0u32..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1));
            let token = best.unwrap().0;
            if token == END {
                break;
            }
            allowed.take(token).unwrap();
            text.extend(vocabulary.bytes(token));
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_model_that_loves_white_space_still_writes_the_object() {
        let schema = json!({"type": "object", "properties": {"team": {"enum": ["billing", "shipping"]}, "urgent": {"type": "boolean"}},
            "required": ["team", "urgent"], "additionalProperties": false});
        let spaces = |bytes: &[u8]| bytes.iter().filter(|b| b.is_ascii_whitespace()).count() as f32;
        let text = written(&vocabulary(), Grammar::JsonSchema(schema), spaces);
        assert!(text.starts_with("{\"team\": \""), "{text}");
        let object: Value = serde_json::from_str(&text).unwrap();
        assert!(object["urgent"].is_boolean());
    }

    #[test]
    fn a_regex_holds_and_the_answer_ends() {
        let digits = |bytes: &[u8]| bytes.iter().filter(|b| b.is_ascii_digit()).count() as f32;
        let text = written(
            &vocabulary(),
            Grammar::Regex("[a-c]{2}-[0-9]{3}".to_owned()),
            digits,
        );
        assert_eq!(text.len(), 6, "{text}");
        assert!(text.as_bytes()[3].is_ascii_digit());
    }

    #[test]
    fn a_schema_that_cannot_be_held_names_its_parameter() {
        let constraint = Constraint {
            grammar: Arc::new(Grammar::Regex("(".to_owned())),
            param: "response_format",
        };
        match vocabulary().matcher(&constraint) {
            Err(Error::Invalid(refusal)) => {
                assert_eq!(refusal.param.as_deref(), Some("response_format"))
            }
            _ => unreachable!("an open bracket is no regex"),
        }
        assert!(
            Vocabulary::of_bytes()
                .unwrap()
                .matcher(&constraint)
                .is_err()
        );
    }

    #[test]
    fn special_tokens_have_their_names_bytes() {
        assert_eq!(vocabulary().bytes(END), b"<|im_end|>");
        assert_eq!(vocabulary().bytes(u32::MAX), b"");
    }
}
