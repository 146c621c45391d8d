//! What a text says, by its words: hashed one- and two-word sequences, weighted by how rare they are in the reference.
//!
//! Needs no model, knows every language that marks its words or its characters, and tells in words what moved. The weights are TF-IDF's
//! (Salton and Buckley 1988, "Term-weighting approaches in automatic text retrieval"): `(1 + ln count) (1 + ln((1 + n) / (1 + df)))`,
//! then unit length, by the hashing trick (Weinberger et al. 2009, arXiv 0902.2206).

use std::collections::{BTreeSet, HashMap};

use retune_stats::{SparseUnits, jensen_shannon};

/// Sequences share so many buckets.
pub const BUCKETS: usize = 1 << 14;
/// Of a longer text the beginning counts.
const LONGEST: usize = 16 << 10;
/// Where a word of a script without spaces, or of anything that is no word, is cut.
const LONGEST_WORD: usize = 48;

/// How rare each bucket is, from the reference's texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Rarity(Vec<f32>);

impl Rarity {
    /// Of some texts' counts.
    pub fn of<'a>(texts: impl Iterator<Item = &'a Counts>) -> Self {
        let mut with = vec![0_u32; BUCKETS];
        let mut n = 0_u32;
        for counts in texts {
            n += 1;
            for bucket in counts.0.keys() {
                with[usize::from(*bucket)] += 1;
            }
        }
        let weight = |df: &u32| 1.0 + ((1.0 + n as f32) / (1.0 + *df as f32)).ln();
        Self(with.iter().map(weight).collect())
    }

    /// Adds a text, or several that belong together, as a unit of length 1; of length 0 where it has no words.
    pub fn push(&self, counts: &Counts, units: &mut SparseUnits) {
        let mut unit: Vec<(u16, f32)> = counts
            .0
            .iter()
            .map(|(bucket, count)| {
                let weight = 1.0 + (*count as f32).ln();
                (*bucket, weight * self.0[usize::from(*bucket)])
            })
            .collect();
        // Sums of floats depend on their order.
        unit.sort_unstable_by_key(|(bucket, _)| *bucket);
        let length = unit.iter().map(|(_, weight)| weight * weight).sum::<f32>();
        let length = length.sqrt();
        units.push(
            unit.into_iter()
                .map(|(bucket, weight)| (bucket, weight / length)),
        );
    }
}

/// How often each bucket's sequences stand in a text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts(HashMap<u16, u32>);

impl Counts {
    /// Of a text.
    pub fn of(text: &str) -> Self {
        let mut counts = Self::default();
        counts.add(text);
        counts
    }

    /// The Jensen-Shannon distance of two mixes, from 0 to 1.
    pub fn distance(&self, other: &Self) -> f64 {
        // In one order, since sums of floats depend on it.
        let buckets: BTreeSet<u16> = self.0.keys().chain(other.0.keys()).copied().collect();
        let count = |counts: &Self, bucket| f64::from(counts.0.get(bucket).copied().unwrap_or(0));
        jensen_shannon(buckets.iter().map(|b| (count(self, b), count(other, b))))
    }

    /// Adds another's.
    pub fn extend(&mut self, other: &Self) {
        for (bucket, count) in &other.0 {
            *self.0.entry(*bucket).or_default() += count;
        }
    }

    /// Adds a text's.
    pub fn add(&mut self, text: &str) {
        let mut before: Option<String> = None;
        for word in words(text) {
            *self.0.entry(bucket(&[&word])).or_default() += 1;
            if let Some(before) = &before {
                *self.0.entry(bucket(&[before, &word])).or_default() += 1;
            }
            before = Some(word);
        }
    }
}

/// A text's words in lower case. Digits are all 0: a number says that there is one. Scripts without spaces give their characters.
pub fn words(text: &str) -> Vec<String> {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut words = Vec::new();
    let mut word = String::new();
    for c in text[..end].chars() {
        let stands_alone = has_no_spaces(c);
        if !word.is_empty() && (stands_alone || !c.is_alphanumeric() || word.len() >= LONGEST_WORD)
        {
            words.push(std::mem::take(&mut word));
        }
        if stands_alone {
            words.push(c.to_string());
        } else if c.is_numeric() {
            word.push('0');
        } else if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Thai, Lao, Burmese and Khmer, kana, and Chinese characters.
fn has_no_spaces(c: char) -> bool {
    matches!(c, '\u{0E00}'..='\u{0EFF}' | '\u{1000}'..='\u{109F}' | '\u{1780}'..='\u{17FF}' | '\u{3040}'..='\u{30FF}'
        | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}')
        && c.is_alphanumeric()
}

/// By FNV-1a (Fowler, Noll and Vo): the same on every machine and in every version, since windows are compared across restarts.
fn bucket(words: &[&str]) -> u16 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut take = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    for word in words {
        word.bytes().for_each(&mut take);
        take(b' ');
    }
    // The low bits of FNV are its weakest; fold the high ones in.
    ((hash ^ (hash >> 32)) % BUCKETS as u64) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_what_people_call_words() {
        for (text, expected) in [
            ("Where's my Order #4711?", "where s my order 0000"),
            ("Straße, ÄRGER & naïve", "straße ärger naïve"),
            ("退款 please", "退 款 please"),
            ("a\u{0}b\n\tc--d", "a b c d"),
            ("", ""),
            ("?!", ""),
        ] {
            assert_eq!(words(text).join(" "), expected, "{text}");
        }
        assert_eq!(words(&"x".repeat(LONGEST_WORD * 2)).len(), 2);
    }

    #[test]
    fn a_rare_word_weighs_more_and_a_unit_has_length_one() {
        let counts = |text: &str| {
            let mut counts = Counts::default();
            counts.add(text);
            counts
        };
        let reference = ["the parcel", "the refund", "the bill"].map(counts);
        let rarity = Rarity::of(reference.iter());
        let mut units = SparseUnits::default();
        rarity.push(&counts("the parcel"), &mut units);
        rarity.push(&counts(""), &mut units);
        let weights: HashMap<u16, f32> = units.unit(0).collect();
        assert_eq!(weights.len(), 3);
        assert!(weights[&bucket(&["parcel"])] > weights[&bucket(&["the"])]);
        let length: f32 = weights.values().map(|weight| weight * weight).sum();
        assert!((length - 1.0).abs() < 1e-6);
        assert_eq!(units.unit(1).count(), 0);
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "\\PC{0,200}") {
            let mut counts = Counts::default();
            counts.add(&text);
            prop_assert!(words(&text).iter().all(|word| !word.is_empty()));
        }
    }
}
