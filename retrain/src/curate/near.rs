//! Texts that are nearly the same, found without comparing each with each.
//!
//! How like two texts are is the Jaccard similarity of their sets of shingles, five characters each, after case, punctuation and white
//! space are made alike. Candidates come of MinHash (Broder 1997, "On the resemblance and containment of documents") in bands
//! (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3): 20 bands of 6 rows find 99.8 % of the pairs that are 0.8
//! alike. Each candidate's similarity is then computed, so that nothing is called near that is not.

use std::collections::HashMap;

/// Characters.
const SHINGLE: usize = 5;
const BANDS: usize = 20;
const ROWS: usize = 6;
/// Texts that a band remembers of those alike in it: of a form that is filled in a million times all are much the same.
const MOST: usize = 128;

/// A text's shingles, as sorted hashes without repetition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shingles(Box<[u32]>);

impl Shingles {
    pub(crate) fn of(text: &str) -> Self {
        let plain: Vec<char> = plain(text).chars().collect();
        let windows = plain.windows(SHINGLE.min(plain.len()).max(1));
        let mut hashes: Vec<u32> = windows.map(hash).collect();
        hashes.sort_unstable();
        hashes.dedup();
        Self(hashes.into())
    }

    /// |A ∩ B| / |A ∪ B|; 1 for two empty ones.
    pub(crate) fn jaccard(&self, other: &Self) -> f64 {
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut both = 0_usize;
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            match x.cmp(y) {
                std::cmp::Ordering::Less => drop(a.next()),
                std::cmp::Ordering::Greater => drop(b.next()),
                std::cmp::Ordering::Equal => {
                    both += 1;
                    a.next();
                    b.next();
                }
            }
        }
        let either = self.0.len() + other.0.len() - both;
        if either == 0 {
            return 1.0;
        }
        both as f64 / either as f64
    }

    /// The least of each of many hash functions, folded into a number a band; half of it is enough, since what a band gives is looked at.
    pub(super) fn bands(&self, key: u64) -> Bands {
        std::array::from_fn(|band| {
            let whole = (0..ROWS).fold(band as u64, |folded, row| {
                let (multiplier, addend) = function(band * ROWS + row);
                let least = self.0.iter().map(|x| {
                    // Multiply and shift (Dietzfelbinger et al. 1997).
                    (multiplier.wrapping_mul(u64::from(*x)).wrapping_add(addend) >> 32) as u32
                });
                mix(folded ^ u64::from(least.min().unwrap_or(u32::MAX)))
            });
            half(whole ^ key)
        })
    }
}

/// What a text with a key is found by.
pub(super) type Bands = [u32; BANDS];

/// Which of the texts share a band with another one. All others are near none, and need not be kept to find that out.
pub(super) fn met(texts: &[Bands]) -> Vec<bool> {
    let mut met = vec![false; texts.len()];
    for n in 0..BANDS {
        let band = texts.iter().map(|bands| bands[n]);
        let mut band: Vec<(u32, u32)> = band.zip(0..).collect();
        band.sort_unstable();
        let alike = band.chunk_by(|a, b| a.0 == b.0);
        for (_, place) in alike.filter(|alike| alike.len() > 1).flatten() {
            met[*place as usize] = true;
        }
    }
    met
}

/// Lower case; letters, digits and single spaces.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for word in text.split(|c: char| !c.is_alphanumeric()) {
        if word.is_empty() {
            continue;
        }
        if !plain.is_empty() {
            plain.push(' ');
        }
        plain.extend(word.chars().flat_map(char::to_lowercase));
    }
    plain
}

fn hash(window: &[char]) -> u32 {
    let folded = window
        .iter()
        .fold(0, |folded, c| mix(folded ^ u64::from(u32::from(*c))));
    (folded >> 32) as u32
}

/// SplitMix64's step.
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn half(x: u64) -> u32 {
    (mix(x) >> 32) as u32
}

/// The `n`th hash function: an odd multiplier, and an addend.
fn function(n: usize) -> (u64, u64) {
    (mix(2 * n as u64) | 1, mix(2 * n as u64 + 1))
}

/// Texts that were seen, to be asked for those near another.
///
/// Most texts are alone in their bands, of which there are twenty million for a million texts: so a band has no list of its own, but
/// its newest text, and each text the one before it in each of its bands.
#[derive(Default)]
pub(crate) struct Index {
    texts: Vec<Shingles>,
    newest: [HashMap<u32, u32>; BANDS],
    before: Vec<Bands>,
}

/// There is no text before.
const NONE: u32 = u32::MAX;

impl Index {
    /// Those seen with the same key that are at least so like, the likest first.
    pub(crate) fn near(&self, text: &Shingles, key: u64, least: f64) -> Vec<usize> {
        let bands = text.bands(key).into_iter().enumerate();
        let mut found: Vec<u32> = bands.flat_map(|(n, band)| self.members(n, band)).collect();
        found.sort_unstable();
        found.dedup();
        let found = found.into_iter().map(|place| place as usize);
        let mut near: Vec<(f64, usize)> = found
            .map(|place| (self.texts[place].jaccard(text), place))
            .filter(|(like, _)| *like >= least)
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        near.into_iter().map(|(_, place)| place).collect()
    }

    /// Remembers a text by the next number, from 0.
    pub(crate) fn add(&mut self, text: Shingles, key: u64) {
        let place = self.texts.len() as u32;
        let mut before = [NONE; BANDS];
        for (n, band) in text.bands(key).into_iter().enumerate() {
            if self.members(n, band).count() < MOST {
                before[n] = self.newest[n].insert(band, place).unwrap_or(NONE);
            }
        }
        self.before.push(before);
        self.texts.push(text);
    }

    /// The texts of one band, the newest first.
    fn members(&self, n: usize, band: u32) -> impl Iterator<Item = u32> {
        let newest = self.newest[n].get(&band).copied();
        let before = move |place: &u32| {
            let before = self.before[*place as usize][n];
            (before != NONE).then_some(before)
        };
        std::iter::successors(newest, before)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn case_punctuation_and_space_make_no_difference() {
        let (a, b) = ("Where  is my ORDER?", "where is, my order");
        assert_eq!(Shingles::of(a).jaccard(&Shingles::of(b)), 1.0);
        assert_eq!(Shingles::of("").jaccard(&Shingles::of("?!")), 1.0);
        assert_eq!(Shingles::of("abc").jaccard(&Shingles::of("xyz")), 0.0);
    }

    #[test]
    fn likeness_is_that_of_the_sets() {
        // Of "abcdef" abcde, bcdef; of "abcdex" abcde, bcdex.
        let (a, b) = (Shingles::of("abcdef"), Shingles::of("abcdex"));
        assert!((a.jaccard(&b) - 1.0 / 3.0).abs() < 1e-12);
    }

    proptest! {
        /// Against each with each.
        #[test]
        fn what_is_near_is_found(words in prop::collection::vec(0usize..40, 400)) {
            let texts: Vec<Shingles> = (0..60)
                .map(|n: usize| {
                    let words = words[n / 2 * 10..][..12].iter().enumerate();
                    let text: Vec<String> = words
                        .map(|(at, word)| match at == n % 7 && n % 2 == 1 {
                            true => format!("word{word}"),
                            false => format!("wort{word}"),
                        })
                        .collect();
                    Shingles::of(&text.join(" "))
                })
                .collect();
            let bands: Vec<Bands> = texts.iter().map(|text| text.bands(0)).collect();
            let met = met(&bands);
            let mut index = Index::default();
            let (mut found, mut there) = (0, 0);
            for (n, text) in texts.iter().enumerate() {
                let near = index.near(text, 0, 0.8);
                let all = (0..n).filter(|m| texts[*m].jaccard(text) >= 0.8);
                let all: Vec<usize> = all.collect();
                prop_assert!(near.iter().all(|place| all.contains(place)));
                prop_assert!(near.iter().all(|place| met[*place] && met[n]));
                found += near.len();
                there += all.len();
                prop_assert!(index.near(text, 1, 0.8).is_empty(), "another key");
                index.add(text.clone(), 0);
            }
            prop_assert!(there >= 20 && found as f64 >= 0.95 * there as f64, "{found} of {there}");
        }
    }
}
