//! Marks by criterion, the candidate's beside the baseline's: an answer can win and still be worse in what somebody cares for. Pure.
//!
//! In each criterion an exact sign test asks in how many pairs the candidate has the lower mark, and Holm's adjustment holds the chance
//! that any of them errs at 5 %.

use retune_stats::{holm, sign_test};
use retune_task::{CRITERIA, Marks};
use serde::{Deserialize, Serialize};

use crate::verdict::SIGNIFICANCE;

/// One criterion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Criterion {
    pub name: String,
    /// Pairs of which both answers have a mark.
    pub pairs: u64,
    /// Mean marks, 1 to 5.
    pub candidate: f64,
    pub baseline: f64,
    /// Pairs in which the candidate has the higher, and the lower one.
    pub higher: u64,
    pub lower: u64,
    /// Shown to be worse.
    pub is_worse: bool,
}

/// The criteria that were marked, of pairs of marks (the candidate's, the baseline's).
pub(crate) fn criteria(marks: &[(Marks, Marks)]) -> Vec<Criterion> {
    let of = |name: &str| {
        let both = |(candidate, baseline): &(Marks, Marks)| {
            Some((*candidate.get(name)?, *baseline.get(name)?))
        };
        let both: Vec<(f64, f64)> = marks.iter().filter_map(both).collect();
        let count = |is_one: fn(f64, f64) -> bool| {
            let of = both.iter().filter(|(a, b)| is_one(*a, *b));
            of.count() as u64
        };
        let mean = |of: fn(&(f64, f64)) -> f64| {
            both.iter().map(of).sum::<f64>() / both.len().max(1) as f64
        };
        (!both.is_empty()).then(|| Criterion {
            name: name.to_owned(),
            pairs: both.len() as u64,
            candidate: mean(|of| of.0),
            baseline: mean(|of| of.1),
            higher: count(|candidate, baseline| candidate > baseline),
            lower: count(|candidate, baseline| candidate < baseline),
            is_worse: false,
        })
    };
    let mut criteria: Vec<Criterion> = CRITERIA.into_iter().filter_map(of).collect();
    let p: Vec<f64> = criteria
        .iter()
        .map(|one| sign_test(one.higher, one.lower))
        .collect();
    for (one, p) in criteria.iter_mut().zip(holm(&p)) {
        one.is_worse = one.lower > one.higher && p < SIGNIFICANCE;
    }
    criteria
}

impl Criterion {
    /// For people.
    pub(crate) fn in_words(&self) -> String {
        let also = match self.is_worse {
            true => "; that is worse",
            false => "",
        };
        format!(
            "{} {:.2} of 5, the baseline's {:.2} (means of {} pairs){also}",
            self.name, self.candidate, self.baseline, self.pairs
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(accuracy: f64, style: Option<f64>) -> Marks {
        let style = style.map(|mark| ("style".to_owned(), mark));
        Marks::from_iter([("accuracy".to_owned(), accuracy)].into_iter().chain(style))
    }

    #[test]
    fn what_is_lower_on_most_pairs_is_worse() {
        let mut pairs = vec![(marks(5.0, Some(2.0)), marks(4.0, Some(4.0))); 12];
        pairs.extend(vec![(marks(3.0, None), marks(3.0, Some(1.0))); 12]);
        let criteria = criteria(&pairs);
        assert_eq!(criteria.len(), 2);
        let (accuracy, style) = (&criteria[0], &criteria[1]);
        assert_eq!(
            (accuracy.pairs, accuracy.higher, accuracy.lower),
            (24, 12, 0)
        );
        assert_eq!((accuracy.candidate, accuracy.baseline), (4.0, 3.5));
        assert!(!accuracy.is_worse && style.is_worse);
        assert_eq!((style.pairs, style.lower, style.baseline), (12, 12, 4.0));
        assert!(style.in_words().contains("worse"));
    }

    #[test]
    fn of_few_pairs_nothing_is_said() {
        let few = criteria(&vec![(marks(1.0, None), marks(5.0, None)); 5]);
        assert_eq!(few.len(), 1);
        assert!(!few[0].is_worse);
        assert_eq!(criteria(&[]), []);
    }
}
