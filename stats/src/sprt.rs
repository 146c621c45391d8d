//! Does a candidate win clearly more than half of its votes? A sequential answer, for as few votes as it takes.
//!
//! Wald's sequential probability ratio test (1945, Annals of Mathematical Statistics 16:117) of "wins half" against "wins `win_rate`": the
//! log likelihood ratio of the votes so far is compared with two bounds after each vote, or as seldom as one likes. Stopping at the first
//! one beyond a bound keeps both errors, since each vote moves the ratio by little: a candidate that is as good as the other is taken for better with a
//! chance of at most about `false_yes`, one that wins `win_rate` is passed over with about `false_no`.

/// What a test is to tell apart, and how surely.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sprt {
    /// Share of the votes that is worth finding, above 0.5.
    pub win_rate: f64,
    /// Chance that one with half of the votes is taken for better.
    pub false_yes: f64,
    /// Chance that one with `win_rate` is not.
    pub false_no: f64,
}

/// What the votes so far say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Better,
    NotBetter,
    /// More votes are wanted.
    Open,
}

impl Sprt {
    /// The log likelihood ratio of "wins `win_rate`" over "wins half"; ties have to be left out.
    pub fn log_ratio(&self, wins: u64, losses: u64) -> f64 {
        wins as f64 * (2.0 * self.win_rate).ln()
            + losses as f64 * (2.0 * (1.0 - self.win_rate)).ln()
    }

    /// At or below the first it is not better, at or above the second it is.
    pub fn bounds(&self) -> (f64, f64) {
        (
            (self.false_no / (1.0 - self.false_yes)).ln(),
            ((1.0 - self.false_no) / self.false_yes).ln(),
        )
    }

    pub fn told(&self, wins: u64, losses: u64) -> Told {
        let ratio = self.log_ratio(wins, losses);
        let (no, yes) = self.bounds();
        if ratio >= yes {
            Told::Better
        } else if ratio <= no {
            Told::NotBetter
        } else {
            Told::Open
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPRT: Sprt = Sprt {
        win_rate: 0.6,
        false_yes: 0.05,
        false_no: 0.2,
    };

    /// The chances of each answer, and the mean number of votes, exactly: the walk of all votes, vote by vote, those beyond a bound
    /// leave it. Looked at from `first` votes on, and left open after `last`.
    fn chances(win_rate: f64, first: u64, last: u64) -> (f64, f64, f64) {
        let mut at = vec![1.0];
        let (mut better, mut not_better, mut votes) = (0.0, 0.0, 0.0);
        for n in 1..=last {
            let mut next = vec![0.0; n as usize + 1];
            for (wins, chance) in at.iter().enumerate() {
                next[wins + 1] += chance * win_rate;
                next[wins] += chance * (1.0 - win_rate);
            }
            if n >= first {
                for (wins, chance) in next.iter_mut().enumerate() {
                    let wins = wins as u64;
                    match SPRT.told(wins, n - wins) {
                        Told::Better => better += *chance,
                        Told::NotBetter => not_better += *chance,
                        Told::Open => continue,
                    }
                    votes += *chance * n as f64;
                    *chance = 0.0;
                }
            }
            at = next;
        }
        let open: f64 = at.iter().sum();
        assert!((better + not_better + open - 1.0).abs() < 1e-9);
        (better, not_better, votes + open * last as f64)
    }

    #[test]
    fn the_errors_are_as_they_were_asked_for() {
        let (yes, no, _) = chances(0.5, 1, 5_000);
        assert!(yes < 0.05 && no > 0.95, "{yes} {no}");
        let (yes, no, _) = chances(0.6, 1, 5_000);
        assert!(yes > 0.8 && no < 0.2, "{yes} {no}");
    }

    /// A test that may look later, and has to end: what a verdict is made by.
    #[test]
    fn from_150_votes_on_and_to_400() {
        let (yes, _, _) = chances(0.5, 150, 400);
        assert!(yes < 0.035, "{yes}");
        let (yes, _, votes) = chances(0.6, 150, 400);
        assert!(yes > 0.82 && votes < 190.0, "{yes} {votes}");
        let (yes, _, _) = chances(0.4, 150, 400);
        assert!(yes < 1e-5, "{yes}");
    }

    /// The fewest wins in a row that decide: 16 of 0.182 each are more than 2.77.
    #[test]
    fn wins_in_a_row() {
        assert_eq!(SPRT.told(15, 0), Told::Open);
        assert_eq!(SPRT.told(16, 0), Told::Better);
        assert_eq!(SPRT.told(0, 6), Told::Open);
        assert_eq!(SPRT.told(0, 7), Told::NotBetter);
        assert_eq!(SPRT.told(0, 0), Told::Open);
    }
}
