//! The corpus: an endless, seeded stream of conversations of five kinds, and how they become tokens.

use anyhow::{Context, Result, anyhow};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use retune_trainer::Example;
use tokenizers::Tokenizer;

use super::message::Material;
use super::{classify, extract, jobs};

/// Loss weight of the prompt's tokens; the answer's have 1. A little of it teaches the words that prompts are made of.
const PROMPT_WEIGHT: f32 = 0.2;
pub(crate) const END_OF_TURN: &str = "<|im_end|>";
const START: &str = "<|im_start|>";

/// One conversation of one turn. An empty `system` means none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) system: String,
    pub(crate) user: String,
    pub(crate) answer: String,
}

/// The jobs of the corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Extract,
    Classify,
    Template,
    Question,
    Talk,
}

impl Kind {
    pub(crate) const ALL: [Kind; 5] = [
        Kind::Extract,
        Kind::Classify,
        Kind::Template,
        Kind::Question,
        Kind::Talk,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Extract => "extract fields into JSON",
            Kind::Classify => "classify",
            Kind::Template => "fill a template",
            Kind::Question => "answer shortly",
            Kind::Talk => "small talk",
        }
    }

    fn drawn(rng: &mut ChaCha8Rng) -> Self {
        match rng.random_range(0..100) {
            0..54 => Kind::Extract,
            54..76 => Kind::Classify,
            76..85 => Kind::Template,
            85..96 => Kind::Question,
            _ => Kind::Talk,
        }
    }
}

/// The stream; the same seed gives the same samples.
pub(crate) struct Corpus {
    material: Material,
    rng: ChaCha8Rng,
}

impl Corpus {
    pub(crate) fn new(seed: u64) -> Result<Self> {
        Ok(Corpus {
            material: Material::new()?,
            rng: ChaCha8Rng::seed_from_u64(seed),
        })
    }

    pub(crate) fn sample(&mut self) -> Result<Sample> {
        let kind = Kind::drawn(&mut self.rng);
        self.sample_of(kind)
    }

    pub(crate) fn sample_of(&mut self, kind: Kind) -> Result<Sample> {
        let (material, rng) = (&self.material, &mut self.rng);
        match kind {
            Kind::Extract => extract::sample(material, rng),
            Kind::Classify => classify::sample(material, rng),
            Kind::Template => jobs::template(material, rng),
            Kind::Question => jobs::question(material, rng),
            Kind::Talk => Ok(jobs::talk(rng)),
        }
    }
}

impl Sample {
    /// The conversation up to where the answer begins, as the chat template of tokenizer_config.json writes it.
    pub(crate) fn prompt(&self) -> String {
        let mut text = String::new();
        if !self.system.is_empty() {
            text.push_str(&format!("{START}system\n{}{END_OF_TURN}\n", self.system));
        }
        text.push_str(&format!(
            "{START}user\n{}{END_OF_TURN}\n{START}assistant\n",
            self.user
        ));
        text
    }

    /// The tokens with their loss weights: 1 on the answer and its end, 0.2 on the prompt.
    pub(crate) fn example(&self, tokenizer: &Tokenizer) -> Result<Example> {
        let mut tokens = encode(tokenizer, &self.prompt())?;
        let prompt = tokens.len();
        tokens.extend(encode(tokenizer, &self.answer)?);
        tokens.push(
            tokenizer
                .token_to_id(END_OF_TURN)
                .context("the tokenizer lacks <|im_end|>")?,
        );
        let mut weights = vec![PROMPT_WEIGHT; prompt];
        weights.resize(tokens.len(), 1.0);
        if let Some(first) = weights.first_mut() {
            *first = 0.0;
        }
        Ok(Example { tokens, weights })
    }
}

pub(crate) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer
        .encode_fast(text, false)
        .map_err(|error| anyhow!("could not tokenise: {error}"))?;
    Ok(encoding.get_ids().to_vec())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeSet;

    use retune_demo::Texts;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_corpus_again() {
        let draw = |seed| {
            let mut corpus = Corpus::new(seed).unwrap();
            (0..100)
                .map(|_| corpus.sample().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn the_demos_object_is_not_in_the_corpus() {
        let demo = Texts::new(1).normal().answer;
        let demo: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&demo).unwrap();
        let mut corpus = Corpus::new(5).unwrap();
        for _ in 0..3000 {
            let answer = corpus.sample_of(Kind::Extract).unwrap().answer;
            let object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(&answer).unwrap();
            assert!(!demo.keys().all(|key| object.contains_key(key)), "{answer}");
        }
    }

    #[test]
    fn the_demos_sentences_are_not_in_the_corpus() {
        // Greetings and thanks of a word or two may be anybody's.
        let sentences = |text: &str| -> BTreeSet<String> {
            let parts = text
                .split_inclusive(['.', '!', '?'])
                .map(|part| part.trim().to_owned());
            parts.filter(|part| part.split(' ').count() > 2).collect()
        };
        let mut texts = Texts::new(1);
        let demo: BTreeSet<String> = (0..4000)
            .flat_map(|_| sentences(&texts.drifted().text))
            .collect();
        let mut corpus = Corpus::new(5).unwrap();
        for _ in 0..6000 {
            let sample = corpus.sample().unwrap();
            let both: Vec<_> = sentences(&sample.user)
                .intersection(&demo)
                .cloned()
                .collect();
            assert_eq!(both, Vec::<String>::new());
        }
    }
}
