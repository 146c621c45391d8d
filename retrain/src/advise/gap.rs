//! Where the answers fall short: the failures, by the words that their prompts have and others have not. Names for people to look at;
//! nothing is decided by them.

use std::collections::HashSet;

use retune_ledger::Exchange;
use serde::Serialize;

use crate::words::{Kind, Limits, Prompt, kinds, log_odds};

const LIMITS: Limits = Limits {
    most: 8,
    least: 5,
    far: 2.0,
};
/// Exchanges of a cluster that are named.
const NAMED: usize = 3;

/// Failures whose prompts have a word, or two in a row, in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cluster {
    /// The words.
    pub words: String,
    pub failures: u64,
    /// Exchanges that have them, in all.
    pub exchanges: u64,
    /// Some of the failures.
    pub request_ids: Vec<String>,
}

pub(super) fn clusters(exchanges: &[Exchange], failed: &HashSet<&str>) -> Vec<Cluster> {
    let prompts: Vec<Prompt<'_>> = exchanges
        .iter()
        .filter_map(|exchange| Prompt::of(&exchange.request_id, exchange.messages.as_ref()?))
        .collect();
    let (failures, others): (Vec<_>, Vec<_>) = prompts
        .iter()
        .partition(|prompt| failed.contains(prompt.id));
    let cluster = |kind: Kind<'_>| Cluster {
        words: kind.words,
        failures: kind.prompts.len() as u64,
        exchanges: (kind.prompts.len() + kind.others) as u64,
        request_ids: kind
            .prompts
            .iter()
            .take(NAMED)
            .map(|prompt| prompt.id.to_owned())
            .collect(),
    };
    kinds(failures, &others, log_odds, LIMITS)
        .into_iter()
        .map(cluster)
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::testing::asked;

    #[test]
    fn failures_are_named_by_what_they_have_in_common() {
        let mut exchanges = Vec::new();
        for n in 0..200 {
            let prompt = match n % 10 {
                0 | 1 => format!("please cancel my gift card number {n}"),
                2 => format!("the drone does not fly, order {n}"),
                _ => format!("where is my parcel, order {n}"),
            };
            exchanges.push(asked(n, &prompt, "x"));
        }
        let failed: HashSet<&str> = exchanges
            .iter()
            .enumerate()
            .filter(|(n, _)| n % 10 < 3)
            .map(|(_, exchange)| exchange.request_id.as_str())
            .collect();
        let found = clusters(&exchanges, &failed);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            "please cancel my gift card number".contains(&found[0].words),
            "{found:?}"
        );
        assert_eq!((found[0].failures, found[0].exchanges), (40, 40));
        assert!(
            "the drone does not fly".contains(&found[1].words),
            "{found:?}"
        );
        assert_eq!(found[1].failures, 20);
        assert!(clusters(&exchanges, &HashSet::new()).is_empty());
    }
}
