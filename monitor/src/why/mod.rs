//! Why is there an alarm? What sets the requests that are the trouble apart from the usual ones. Pure, and for people: none of it decides.
//!
//! Two groups are compared: the *trouble* (what fails since the likely change; all that was asked since, where the change is in what is
//! asked) and the *usual* (the reference's sample, and what came since and does not fail). Each view answers another question: [`phrases`],
//! which words are in it; [`clusters`], which kinds of requests; [`classifier`], whether the two can be told apart at all, and which
//! requests are the most typical of the trouble; [`slices`], from whom it comes. Where none of them finds anything, the requests are as they were, and
//! the change is on this side: the model, its server, what people expect.
//!
//! No request's text is in it, and no phrase or value that fewer than [`FEWEST`] conversations share: an alarm outlives the rows that somebody
//! has forgotten.

mod classifier;
mod clusters;
mod evidence;
mod phrases;
mod slices;

use std::collections::HashMap;

use retune_stats::{SparseUnits, kolmogorov_smirnov};
use serde_json::Value;

pub(crate) use evidence::why;
pub use retune_ledger::evidence::{Cluster, Moved, Shares, Slice, Typical, Why};

use crate::features::ngrams::{Counts, Rarity};

/// Conversations that share whatever is told of them.
pub const FEWEST: u32 = 5;
/// A difference is told from so many standard errors on: among thousands of phrases two or three are nothing.
const NOTABLE: f64 = 4.0;
/// Of a longer text the beginning counts.
const LONGEST: usize = 4 << 10;

/// A request of one of the groups.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Case {
    /// The answer's id.
    pub request_id: String,
    /// The conversation that it belongs to; what belongs together is one observation.
    pub conversation: String,
    /// What was asked.
    pub prompt: String,
    /// With which key.
    pub api_key_id: Option<String>,
    /// What the app said of it.
    pub metadata: Option<Value>,
}

/// Compares two groups; of each conversation the first case is told.
pub fn explain(usual: &[Case], trouble: &[Case]) -> Why {
    let (usual, trouble) = (conversations(usual), conversations(trouble));
    let groups = Groups::new(&usual, &trouble);
    let (separable, rows) = classifier::rank(&groups);
    let (clusters, clusters_stability) = clusters::moved(&groups);
    let lengths = |group: &[Conversation]| -> Vec<f64> {
        let lengths = group.iter().map(|one| one.text.chars().count() as f64);
        lengths.collect()
    };
    Why {
        usual: usual.len(),
        trouble: trouble.len(),
        separable,
        words_distance: distance(&groups),
        lengths: kolmogorov_smirnov(&lengths(&usual), &lengths(&trouble))
            .map(|test| (test.statistic, test.p)),
        clusters_stability,
        phrases: phrases::moved(&groups),
        clusters,
        slices: slices::moved(&usual, &trouble),
        rows,
    }
}

/// Cases that belong together.
struct Conversation {
    first: Case,
    text: String,
}

/// Both groups, as the views want them.
struct Groups<'a> {
    all: Vec<&'a Conversation>,
    is_trouble: Vec<bool>,
    counts: Vec<Counts>,
    units: SparseUnits,
}

impl<'a> Groups<'a> {
    fn new(usual: &'a [Conversation], trouble: &'a [Conversation]) -> Self {
        let all: Vec<&Conversation> = usual.iter().chain(trouble).collect();
        let is_trouble = (0..all.len()).map(|at| at >= usual.len()).collect();
        let counts: Vec<Counts> = all.iter().map(|one| Counts::of(&one.text)).collect();
        let rarity = Rarity::of(counts.iter());
        let mut units = SparseUnits::default();
        counts.iter().for_each(|one| rarity.push(one, &mut units));
        Self {
            all,
            is_trouble,
            counts,
            units,
        }
    }

    /// How many there are of each group.
    fn sizes(&self) -> (u32, u32) {
        let trouble = self.is_trouble.iter().filter(|is| **is).count() as u32;
        (self.all.len() as u32 - trouble, trouble)
    }

    fn text(&self, at: usize) -> &str {
        &self.all[at].text
    }
}

fn conversations(cases: &[Case]) -> Vec<Conversation> {
    let mut found: Vec<Conversation> = Vec::new();
    let mut at: HashMap<&str, usize> = HashMap::new();
    for case in cases {
        let known = match case.conversation.as_str() {
            "" => None,
            conversation => at.get(conversation).copied(),
        };
        match known {
            Some(known) => {
                let text = &mut found[known].text;
                text.push('\n');
                text.push_str(&case.prompt);
            }
            None => {
                at.insert(&case.conversation, found.len());
                found.push(Conversation {
                    text: case.prompt.clone(),
                    first: case.clone(),
                });
            }
        }
    }
    for conversation in &mut found {
        let mut end = conversation.text.len().min(LONGEST);
        while !conversation.text.is_char_boundary(end) {
            end -= 1;
        }
        conversation.text.truncate(end);
    }
    found
}

fn distance(groups: &Groups<'_>) -> f64 {
    let (mut usual, mut trouble) = (Counts::default(), Counts::default());
    for (counts, is_trouble) in groups.counts.iter().zip(&groups.is_trouble) {
        match is_trouble {
            true => trouble.extend(counts),
            false => usual.extend(counts),
        }
    }
    usual.distance(&trouble)
}

/// So many of each group, of all of each group. The standard error is that of one rate in both (the pooled test of two proportions), half
/// an observation added to each, so that it is never 0.
fn shares((usual, trouble): (u32, u32), (all_usual, all_trouble): (u32, u32)) -> Shares {
    let share = |n: u32, of: u32| f64::from(n) / f64::from(of.max(1));
    let (n, m) = (f64::from(all_usual) + 1.0, f64::from(all_trouble) + 1.0);
    let (p, q) = ((f64::from(usual) + 0.5) / n, (f64::from(trouble) + 0.5) / m);
    let pooled = (p * n + q * m) / (n + m);
    let error = (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt();
    Shares {
        usual: share(usual, all_usual),
        trouble: share(trouble, all_trouble),
        z: (q - p) / error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn case(n: usize, prompt: &str) -> Case {
        Case {
            request_id: format!("chatcmpl-{n}"),
            conversation: n.to_string(),
            prompt: prompt.to_owned(),
            ..Case::default()
        }
    }

    const USUAL: [&str; 4] = [
        "where is my parcel 4711",
        "please send the invoice again",
        "i cannot log in to my account",
        "the parcel is late, where is it",
    ];

    fn usual(n: usize) -> Vec<Case> {
        (0..n).map(|n| case(n, USUAL[n % USUAL.len()])).collect()
    }

    #[test]
    fn a_new_topic_is_found_in_every_view() {
        let usual = usual(400);
        let trouble = (1_000..1_100).map(|n| match n % 2 {
            0 => case(n, "i want to return the shoes, the slip says 169-109"),
            _ => case(n, USUAL[n % USUAL.len()]),
        });
        let why = explain(&usual, &trouble.collect::<Vec<_>>());
        assert_eq!((why.usual, why.trouble), (400, 100));
        assert!(why.separable.unwrap_or(0.0) > 0.7, "{why:?}");
        assert!(
            why.phrases[0].shares.trouble > 0.49 && why.phrases[0].shares.usual < 0.01,
            "{why:?}"
        );
        let returns = why.clusters.iter().find(|c| c.shares.z > NOTABLE);
        let named = returns.map(|cluster| cluster.phrases.join(", "));
        assert!(
            named.clone().unwrap_or_default().contains("shoes"),
            "{named:?}"
        );
        assert_eq!(why.rows.len(), 20);
        for row in &why.rows {
            let n: usize = row.request_id["chatcmpl-".len()..].parse().unwrap_or(1);
            assert_eq!(n % 2, 0, "{row:?}");
        }
        assert!(why.words_distance > 0.2 && why.clusters_stability > 0.25);
    }

    #[test]
    fn the_same_traffic_has_nothing_to_tell() {
        let (before, after) = (usual(400), usual(200));
        let why = explain(&before, &after);
        assert_eq!((&why.phrases[..], &why.slices[..]), (&[][..], &[][..]));
        assert!((why.separable.unwrap_or(0.0) - 0.5).abs() < 0.1, "{why:?}");
        assert!(why.words_distance < 0.05, "{why:?}");
        assert!(
            why.clusters
                .iter()
                .all(|cluster| cluster.shares.z.abs() < NOTABLE)
        );
    }

    /// One customer who asks a hundred times is one observation, and what only they say stays untold.
    #[test]
    fn what_few_say_stays_untold() {
        let mut trouble = usual(100);
        for n in 0..100 {
            let mut one = case(5_000 + n, "my name is kunigunde lang");
            one.conversation = format!("same {}", n % 4);
            one.metadata = Some(serde_json::json!({"mail": "k@example.org"}));
            trouble.push(one);
        }
        let why = explain(&usual(400), &trouble);
        assert_eq!(why.trouble, 104);
        let told = serde_json::to_string(&why).unwrap_or_default();
        assert!(
            !told.contains("kunigunde") && !told.contains("example.org"),
            "{told}"
        );
    }

    #[test]
    fn nothing_and_little_do_no_harm() {
        for (before, after) in [(0, 0), (0, 3), (3, 0), (1, 1), (30, 6)] {
            let why = explain(&usual(before), &usual(after));
            assert_eq!((why.usual, why.trouble), (before, after));
            assert!(why.rows.len() == after.min(20));
        }
        let empty = vec![Case::default(); 50];
        assert_eq!(explain(&empty, &empty).usual, 50);
    }
}
