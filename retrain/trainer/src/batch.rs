//! Examples, and how a batch of them is laid out: one after another, nothing padded, shared out to the threads.

use crate::config::ModelConfig;

/// One sequence to learn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Token ids, prompt and answer in one.
    pub tokens: Vec<u32>,
    /// `weights[i]` is the loss weight of predicting `tokens[i]` from `tokens[..i]`; 0 where nothing is to be learned.
    /// `weights[0]` must be 0: nothing stands before the first token.
    pub weights: Vec<f32>,
}

impl Example {
    /// Sum of the weights.
    pub(crate) fn weight(&self) -> f64 {
        self.weights.iter().map(|&w| f64::from(w)).sum()
    }

    /// How many tokens must be read: what follows the last supervised prediction changes nothing.
    fn inputs(&self) -> usize {
        self.weights.iter().rposition(|&w| w != 0.0).unwrap_or(0)
    }
}

/// Why an example could not be trained on.
pub(crate) fn problem(example: &Example, config: &ModelConfig) -> Option<String> {
    let (tokens, weights) = (&example.tokens, &example.weights);
    if tokens.len() != weights.len() {
        return Some(format!(
            "{} tokens but {} weights; give one weight a token",
            tokens.len(),
            weights.len()
        ));
    }
    if tokens.len() > config.max_position_embeddings {
        let longest = config.max_position_embeddings;
        return Some(format!(
            "{} tokens; the model takes at most {longest}: shorten or drop it",
            tokens.len()
        ));
    }
    if let Some((i, token)) = tokens
        .iter()
        .enumerate()
        .find(|(_, token)| **token as usize >= config.vocab_size)
    {
        let size = config.vocab_size;
        return Some(format!(
            "token {token} at {i} is outside the vocabulary of {size}: another model's tokenizer?"
        ));
    }
    if let Some((i, weight)) = weights
        .iter()
        .enumerate()
        .find(|(_, w)| !w.is_finite() || **w < 0.0)
    {
        return Some(format!(
            "the weight at {i} is {weight}; expected a finite number, 0 or more"
        ));
    }
    if weights.first().is_some_and(|&w| w != 0.0) {
        return Some(
            "the first token has a weight, but nothing stands before it to predict it from"
                .to_string(),
        );
    }
    if example.inputs() == 0 {
        return Some("no token has a weight above 0: nothing to learn from it".to_string());
    }
    None
}

/// Sequences one after another, with the rows whose next token is supervised.
#[derive(Default)]
pub(crate) struct Pack {
    /// Of the sequences among the examples.
    pub(crate) places: Vec<usize>,
    pub(crate) tokens: Vec<u32>,
    /// The sequences' lengths, which sum to `tokens.len()`.
    pub(crate) lengths: Vec<usize>,
    /// Their supervised rows, which sum to `rows.len()`.
    pub(crate) counts: Vec<usize>,
    /// Supervised rows,
    pub(crate) rows: Vec<usize>,
    /// the token each should predict,
    pub(crate) targets: Vec<u32>,
    /// and its weight.
    pub(crate) weights: Vec<f32>,
}

impl Pack {
    /// Some of the examples, which have no `problem`; their weights may be negative.
    pub(crate) fn new(examples: &[&Example], places: &[usize]) -> Self {
        let mut pack = Pack::default();
        for &place in places {
            let example = examples[place];
            let (start, rows) = (pack.tokens.len(), pack.rows.len());
            pack.places.push(place);
            let length = example.inputs();
            pack.tokens.extend(&example.tokens[..length]);
            pack.lengths.push(length);
            for i in 1..=length {
                if example.weights[i] != 0.0 {
                    pack.rows.push(start + i - 1);
                    pack.targets.push(example.tokens[i]);
                    pack.weights.push(example.weights[i]);
                }
            }
            pack.counts.push(pack.rows.len() - rows);
        }
        pack
    }
}

/// Shares examples out to `threads` of about equal work, each cut into packs of about `tokens` tokens: a pack's
/// intermediates should fit the caches. Longest first to the least loaded, so it depends on lengths and order alone.
pub(crate) fn share_out(examples: &[&Example], threads: usize, tokens: usize) -> Vec<Vec<Pack>> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(examples[i].inputs()));
    let mut shares = vec![(0usize, Vec::new()); threads];
    for i in order {
        if let Some(least) = shares.iter_mut().min_by_key(|share| share.0) {
            least.0 += examples[i].inputs();
            least.1.push(i);
        }
    }
    shares
        .iter()
        .map(|(_, share)| packs(examples, share, tokens))
        .collect()
}

fn packs(examples: &[&Example], share: &[usize], tokens: usize) -> Vec<Pack> {
    let mut packs = Vec::new();
    let mut first = 0;
    let mut held = 0;
    for (i, place) in share.iter().enumerate() {
        let inputs = examples[*place].inputs();
        if held > 0 && held + inputs > tokens {
            packs.push(Pack::new(examples, &share[first..i]));
            (first, held) = (i, 0);
        }
        held += inputs;
    }
    if first < share.len() {
        packs.push(Pack::new(examples, &share[first..]));
    }
    packs
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::test_support::tiny_config;

    fn example(tokens: &[u32], weights: &[f32]) -> Example {
        Example {
            tokens: tokens.to_vec(),
            weights: weights.to_vec(),
        }
    }

    #[test]
    fn the_row_before_a_weighted_token_is_supervised() {
        let a = example(&[5, 6, 7, 8], &[0.0, 0.0, 1.0, 0.0]);
        let b = example(&[8, 9], &[0.0, 0.5]);
        let pack = Pack::new(&[&b, &a, &b], &[1, 2]);
        assert_eq!((pack.places, pack.counts), (vec![1, 2], vec![1, 1]));
        assert_eq!(
            pack.tokens,
            [5, 6, 8],
            "what follows the last supervised prediction is not read"
        );
        assert_eq!(pack.lengths, [2, 1]);
        assert_eq!(pack.rows, [1, 2]);
        assert_eq!(pack.targets, [7, 9]);
        assert_eq!(pack.weights, [1.0, 0.5]);
    }

    #[test]
    fn every_example_is_shared_out_once_and_evenly() {
        let all: Vec<Example> = (2..40u32)
            .map(|n| {
                example(
                    &(0..n).collect::<Vec<_>>(),
                    &(0..n)
                        .map(|i| if i > 0 { 1.0 } else { 0.0 })
                        .collect::<Vec<_>>(),
                )
            })
            .collect();
        let total: usize = all.iter().map(Example::inputs).sum();
        let shares = share_out(&all.iter().collect::<Vec<_>>(), 3, 64);
        let tokens: Vec<usize> = shares
            .iter()
            .map(|s| s.iter().map(|p| p.tokens.len()).sum())
            .collect();
        assert_eq!(tokens.iter().sum::<usize>(), total);
        assert!(
            tokens.iter().all(|&t| t.abs_diff(total / 3) < 20),
            "{tokens:?}"
        );
        assert!(shares.iter().flatten().all(|p| p.tokens.len() <= 64));
    }

    #[test]
    fn what_cannot_be_learned_from_is_refused() {
        let config = tiny_config();
        for (bad, word) in [
            (example(&[1, 2], &[0.0]), "2 tokens but 1 weights"),
            (example(&[1, 9999], &[0.0, 1.0]), "token 9999 at 1"),
            (example(&[1, 2], &[0.0, 0.0]), "no token has a weight"),
            (example(&[1, 2], &[1.0, 1.0]), "first token"),
            (example(&[1, 2], &[0.0, f32::NAN]), "NaN"),
            (example(&[1; 500], &[1.0; 500]), "at most"),
        ] {
            let message = problem(&bad, &config).unwrap();
            assert!(message.contains(word), "{message}");
        }
    }
}
