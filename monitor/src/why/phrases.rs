//! The words and pairs of words that moved: the share of conversations that have them, in each group.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::{FEWEST, Groups, Moved, NOTABLE, Shares, shares};
use crate::features::ngrams::words;

/// So many are told.
const TOLD: usize = 20;
/// So many are looked at, since most of a new sentence's phrases say the same.
const CANDIDATES: usize = 400;

/// What moved most, whichever way.
pub(super) fn moved(groups: &Groups<'_>) -> Vec<Moved> {
    compare(groups, &groups.is_trouble, |shares| {
        shares.z.abs() >= NOTABLE
    })
}

/// What tells the members of a part from the others.
pub(super) fn names(groups: &Groups<'_>, is_member: &[bool], most: usize) -> Vec<String> {
    let told = compare(groups, is_member, |shares| shares.z > 0.0);
    told.into_iter().take(most).map(|m| m.phrase).collect()
}

fn compare(
    groups: &Groups<'_>,
    is_member: &[bool],
    is_told: impl Fn(&Shares) -> bool,
) -> Vec<Moved> {
    let members = is_member.iter().filter(|is| **is).count() as u32;
    let sizes = (is_member.len() as u32 - members, members);
    let mut counts: HashMap<u64, (u32, u32)> = HashMap::new();
    for (at, is_member) in is_member.iter().enumerate() {
        for phrase in phrases(groups.text(at)).keys() {
            let count = counts.entry(*phrase).or_default();
            match is_member {
                true => count.1 += 1,
                false => count.0 += 1,
            }
        }
    }
    let told = counts.into_iter().filter_map(|(phrase, count)| {
        let shares = shares(count, sizes);
        (count.0 + count.1 >= FEWEST && is_told(&shares)).then_some((phrase, shares))
    });
    let mut told: Vec<(u64, Shares)> = told.collect();
    // The order of a hash map is nobody's, and an alarm is the same whoever makes it.
    told.sort_by(|(a, x), (b, y)| y.z.abs().total_cmp(&x.z.abs()).then(a.cmp(b)));
    told.truncate(CANDIDATES);
    let spelled = spell(groups, told.iter().map(|(phrase, _)| *phrase).collect());
    let mut moved: Vec<Moved> = Vec::new();
    for (phrase, shares) in told {
        let Some(phrase) = spelled.get(&phrase).cloned() else {
            continue;
        };
        let one = Moved { phrase, shares };
        if moved.len() < TOLD && !moved.iter().any(|other| says_the_same(other, &one)) {
            moved.push(one);
        }
    }
    moved.sort_by(|a, b| b.shares.z.total_cmp(&a.shares.z));
    moved
}

/// One is in the other, and where the one is the other is as well.
fn says_the_same(a: &Moved, b: &Moved) -> bool {
    let words =
        |moved: &Moved| -> HashSet<String> { moved.phrase.split(' ').map(str::to_owned).collect() };
    let near = |x: f64, y: f64| (x - y).abs() <= 0.1 * x.max(y);
    let alike = near(a.shares.trouble, b.shares.trouble) && near(a.shares.usual, b.shares.usual);
    alike && !words(a).is_disjoint(&words(b))
}

/// A text's phrases by their hashes: they are spelled out only where they are told.
fn phrases(text: &str) -> HashMap<u64, (usize, usize)> {
    let words = words(text);
    let mut found = HashMap::new();
    for at in 0..words.len() {
        for length in 1..=2.min(words.len() - at) {
            found
                .entry(hash(&words[at..at + length]))
                .or_insert((at, length));
        }
    }
    found
}

fn spell(groups: &Groups<'_>, wanted: HashSet<u64>) -> HashMap<u64, String> {
    let mut spelled = HashMap::new();
    for at in 0..groups.all.len() {
        if spelled.len() == wanted.len() {
            break;
        }
        let words = words(groups.text(at));
        for (phrase, (at, length)) in phrases(groups.text(at)) {
            if wanted.contains(&phrase) {
                spelled
                    .entry(phrase)
                    .or_insert_with(|| words[at..at + length].join(" "));
            }
        }
    }
    spelled
}

fn hash(words: &[String]) -> u64 {
    // Its keys are fixed, other than a hash map's.
    let mut hasher = DefaultHasher::new();
    words.hash(&mut hasher);
    hasher.finish()
}
