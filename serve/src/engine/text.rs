//! From tokens to text while they arrive, and the strings that end an answer.
//!
//! Both are done here rather than by the engine: its streams drop leading white space, send nothing for an answer that
//! ends within a character, and may send the beginning of a stop string.

use std::sync::Arc;

use tokenizers::Tokenizer;

use crate::error::Error;

/// Turns tokens into text, one at a time; text is held back until its last character is complete.
pub(crate) struct Decoder {
    tokenizer: Arc<Tokenizer>,
    tokens: Vec<u32>,
    /// Where decoding starts: far enough back that the tokenizer sees the context which its spacing depends on.
    prefix: usize,
    /// The tokens before this one are already out.
    read: usize,
}

impl Decoder {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            tokenizer,
            tokens: Vec::new(),
            prefix: 0,
            read: 0,
        }
    }

    /// The text that `token` completes; empty while a character is incomplete. Special tokens have no text.
    pub(crate) fn push(&mut self, token: u32) -> Result<String, Error> {
        self.tokens.push(token);
        let text = self.new_text()?;
        if text.is_empty() || text.ends_with('\u{FFFD}') {
            return Ok(String::new());
        }
        self.prefix = self.read;
        self.read = self.tokens.len();
        Ok(text)
    }

    /// What was held back, with U+FFFD for a character that never became complete.
    pub(crate) fn finish(&mut self) -> Result<String, Error> {
        let text = self.new_text()?;
        self.prefix = self.read;
        self.read = self.tokens.len();
        Ok(text)
    }

    fn new_text(&self) -> Result<String, Error> {
        let before = self.decode(&self.tokens[self.prefix..self.read])?;
        let all = self.decode(&self.tokens[self.prefix..])?;
        Ok(all.get(before.len()..).unwrap_or_default().to_owned())
    }

    fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        self.tokenizer
            .decode(tokens, true)
            .map_err(|e| Error::Engine(format!("tokens cannot be decoded: {e}")))
    }
}

/// Lets text through up to the first stop string, and never a part of one.
pub(crate) struct StopScanner {
    stops: Vec<String>,
    held: String,
}

impl StopScanner {
    /// `stops` without empty strings.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    /// The text that may go out, and whether a stop string was found behind it.
    pub(crate) fn push(&mut self, text: &str) -> (String, bool) {
        if self.stops.is_empty() {
            return (text.to_owned(), false);
        }
        self.held.push_str(text);
        if let Some(at) = self
            .stops
            .iter()
            .filter_map(|s| self.held.find(s.as_str()))
            .min()
        {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self
            .stops
            .iter()
            .map(|s| self.beginning_of(s))
            .max()
            .unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, kept), false)
    }

    /// What was held back because it could have become a stop string.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the held text that are a proper beginning of `stop`.
    fn beginning_of(&self, stop: &str) -> usize {
        stop.char_indices()
            .map(|(at, _)| at)
            .rev()
            .find(|&at| at > 0 && self.held.ends_with(&stop[..at]))
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanned(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut scanner = StopScanner::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut out = Vec::new();
        for piece in pieces {
            let (text, stopped) = scanner.push(piece);
            out.push(text);
            if stopped {
                return (out, true);
            }
        }
        out.push(scanner.finish());
        (out, false)
    }

    #[test]
    fn no_part_of_a_stop_string_gets_out() {
        assert_eq!(
            scanned(&["END"], &["a", "bE", "N", "D c"]),
            (vec!["a".into(), "b".into(), "".into(), "".into()], true)
        );
    }

    #[test]
    fn a_beginning_that_came_to_nothing_gets_out() {
        assert_eq!(
            scanned(&["END"], &["aEN", "Ex"]),
            (vec!["a".into(), "ENEx".into(), "".into()], false)
        );
        assert_eq!(
            scanned(&["END"], &["aEN"]),
            (vec!["a".into(), "EN".into()], false)
        );
    }

    #[test]
    fn the_first_of_several_wins() {
        assert_eq!(
            scanned(&["\n\n", "é!"], &["x é", "! y\n\n"]),
            (vec!["x ".into(), "".into()], true)
        );
    }

    #[test]
    fn nothing_to_look_for() {
        assert_eq!(
            scanned(&[], &["a", "b"]),
            (vec!["a".into(), "b".into(), "".into()], false)
        );
    }
}
