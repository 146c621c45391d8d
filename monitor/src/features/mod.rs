//! Texts as points, so that groups of them can be compared: by their words ([`ngrams`]), and by what they mean to a model
//! ([`sentences`], with the vectors of [`vectors`]).
//!
//! What is tested against each other are conversations rather than exchanges: one customer who asks ten times is one observation, or
//! a talkative one would be a drift.

pub mod ngrams;
pub mod sentences;
pub mod vectors;

use std::sync::Arc;

use retune_stats::{DenseMmd, DenseUnits, Effort, SparseMmd, SparseUnits, holm, permutation_test};

use ngrams::{Counts, Rarity};
use sentences::{Sentences, WIDTH};
use vectors::TokenVectors;

/// The frequencies of the random features: the same for everybody, for ever.
const SEED: u64 = 0x7265_7475_6e65;

/// What a conversation's prompts say, before it is known what is rare.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Said {
    counts: Counts,
    tokens: Vec<u32>,
}

impl Said {
    /// Adds a prompt. Without vectors its words are all there is.
    pub fn add(&mut self, prompt: &str, vectors: Option<&TokenVectors>) {
        self.counts.add(prompt);
        if let Some(vectors) = vectors {
            self.tokens.extend(vectors.tokens(prompt));
        }
    }

    /// How often each sequence of words is in it.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Adds what another part of the conversation says.
    pub fn extend(&mut self, other: &Self) {
        self.counts.extend(&other.counts);
        self.tokens.extend(&other.tokens);
    }
}

/// A reference's conversations as points, and what windows are made to points by.
pub struct Space {
    vectors: Option<Arc<TokenVectors>>,
    rarity: Rarity,
    sentences: Option<Sentences>,
    words: SparseUnits,
    meanings: DenseUnits,
}

/// What a window's test said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compared {
    /// The p value of words alone.
    pub words: f64,
    /// The p value of meanings alone, where there are vectors.
    pub meanings: Option<f64>,
    /// That of both, by Holm.
    pub p: f64,
}

impl Space {
    /// Of the reference's conversations.
    pub fn new(reference: &[Said], vectors: Option<Arc<TokenVectors>>) -> Self {
        let rarity = Rarity::of(reference.iter().map(|said| &said.counts));
        let tokens: Vec<&[u32]> = reference.iter().map(|said| &said.tokens[..]).collect();
        let sentences = vectors.as_deref();
        let sentences = sentences.map(|vectors| Sentences::of(vectors, &tokens, SEED));
        let mut space = Self {
            vectors,
            rarity,
            sentences,
            words: SparseUnits::default(),
            meanings: DenseUnits::new(WIDTH),
        };
        (space.words, space.meanings) = space.points(reference);
        space
    }

    /// Whether meanings are compared, too.
    pub fn has_meanings(&self) -> bool {
        self.sentences.is_some()
    }

    /// How many conversations the reference has.
    pub fn size(&self) -> usize {
        self.words.len()
    }

    fn points(&self, conversations: &[Said]) -> (SparseUnits, DenseUnits) {
        let (mut words, mut meanings) = (SparseUnits::default(), DenseUnits::new(WIDTH));
        for said in conversations {
            self.rarity.push(&said.counts, &mut words);
            if let (Some(sentences), Some(vectors)) = (&self.sentences, self.vectors.as_deref()) {
                sentences.push(vectors, &said.tokens, &mut meanings);
            }
        }
        (words, meanings)
    }

    /// Tests whether a window's conversations come from where the reference's came from. `seed` chooses the permutations.
    pub fn compare(&self, window: &[Said], effort: Effort, seed: u64) -> Compared {
        let (words, meanings) = self.points(window);
        let (n, m) = ((self.size() + window.len()) as u32, window.len() as u32);
        let mut of_words = SparseMmd::new(&self.words, &words);
        let p = if self.sentences.is_some() {
            let mut of_meanings = DenseMmd::new(&self.meanings, &meanings);
            permutation_test(&mut [&mut of_words, &mut of_meanings], n, m, effort, seed)
        } else {
            permutation_test(&mut [&mut of_words], n, m, effort, seed)
        };
        Compared {
            words: p[0],
            meanings: p.get(1).copied(),
            p: holm(&p).into_iter().fold(1.0, f64::min),
        }
    }
}
