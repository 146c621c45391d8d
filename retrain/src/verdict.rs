//! From the figures of an examination to a verdict, with reasons in plain words. No I/O, no clock.

use serde::{Deserialize, Serialize};

/// A win share this unlikely under "equally good" counts as shown (exact two-sided sign test, ties dropped).
pub const SIGNIFICANCE: f64 = 0.05;
/// Format and length may be this much worse, as a share of the prompts, before the candidate counts as worse.
pub const MARGIN: f64 = 0.05;
/// One-sided 95 % point of the normal distribution.
const Z: f64 = 1.645;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Better, and not worse in any other respect.
    Promote,
    /// Better in the pairs, while format or length are too close to tell: a share of live traffic would settle it.
    Canary,
    /// Not shown to be better or worse: more examples, or more prompts, before another try.
    Wait,
    /// Shown to be worse.
    Reject,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Promote => "promote",
            Self::Canary => "canary",
            Self::Wait => "wait",
            Self::Reject => "reject",
        })
    }
}

/// A yes-or-no property of both answers to the same prompts: how often each has it, and where they differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paired {
    pub prompts: u64,
    pub candidate: u64,
    pub baseline: u64,
    /// The candidate has it and the baseline has not.
    pub gained: u64,
    /// The baseline has it and the candidate has not.
    pub lost: u64,
}

impl Paired {
    pub fn observe(&mut self, candidate: bool, baseline: bool) {
        self.prompts += 1;
        self.candidate += u64::from(candidate);
        self.baseline += u64::from(baseline);
        self.gained += u64::from(candidate && !baseline);
        self.lost += u64::from(baseline && !candidate);
    }

    /// Lower and upper one-sided 95 % limits of the candidate's loss, as a share of the prompts: a Wald interval for a paired
    /// difference with half an observation added to each of the four cells (Agresti and Min 2005, Statistics in Medicine 24:729).
    pub fn loss_limits(&self) -> (f64, f64) {
        let n = self.prompts as f64 + 2.0;
        let (lost, gained) = (self.lost as f64 + 0.5, self.gained as f64 + 0.5);
        let loss = (lost - gained) / n;
        let error = ((lost + gained) - (lost - gained).powi(2) / n)
            .max(0.0)
            .sqrt()
            / n;
        (loss - Z * error, loss + Z * error)
    }

    pub fn shown_worse(&self) -> bool {
        self.loss_limits().0 > 0.0
    }

    pub fn shown_not_worse(&self) -> bool {
        self.loss_limits().1 < MARGIN
    }
}

/// What an examination counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    pub wins: u64,
    pub losses: u64,
    pub ties: u64,
    /// Answers that keep the task's format.
    pub format: Paired,
    /// Answers between half and double the known answer's length, in characters.
    pub length: Paired,
}

impl Figures {
    pub fn examined(&self) -> u64 {
        self.wins + self.losses + self.ties
    }

    /// Exact two-sided sign test over wins and losses; ties are dropped.
    pub fn p_value(&self) -> f64 {
        retune_stats::sign_test(self.wins, self.losses)
    }
}

/// Does an answer have about the length that the known one has? Between half and double; two characters are always forgiven.
pub fn length_fits(known: &str, answer: &str) -> bool {
    let (known, answer) = (known.trim().chars().count(), answer.trim().chars().count());
    answer + 2 >= known / 2 && answer <= 2 * known + 2
}

/// The verdict on a candidate, with its reasons; `min_pairs` is the policy's.
pub fn verdict(figures: &Figures, min_pairs: u64) -> (Verdict, Vec<String>) {
    let p = figures.p_value();
    let examined = figures.examined();
    let mut reasons = vec![format!(
        "{} of {} prompts answered better than the baseline, {} worse, {} alike (sign test p = {})",
        figures.wins,
        examined,
        figures.losses,
        figures.ties,
        in_words(p)
    )];
    for (what, paired) in [
        ("keep the format", &figures.format),
        ("have about the known answer's length", &figures.length),
    ] {
        reasons.push(format!(
            "{} of {} answers {what}, {} of the baseline's{}",
            paired.candidate,
            paired.prompts,
            paired.baseline,
            if paired.shown_worse() {
                "; that is worse".to_owned()
            } else if paired.shown_not_worse() {
                String::new()
            } else {
                format!(
                    "; a loss of more than {:.0} % is not ruled out",
                    MARGIN * 100.0
                )
            }
        ));
    }
    let worse = figures.format.shown_worse() || figures.length.shown_worse();
    let not_worse = figures.format.shown_not_worse() && figures.length.shown_not_worse();
    let decided = p < SIGNIFICANCE;
    let verdict = if examined < min_pairs {
        reasons.push(format!("{examined} prompts with a known answer could be examined, and a verdict needs {min_pairs}"));
        Verdict::Wait
    } else if worse || (decided && figures.losses > figures.wins) {
        Verdict::Reject
    } else if decided && figures.wins > figures.losses {
        if not_worse {
            Verdict::Promote
        } else {
            Verdict::Canary
        }
    } else {
        reasons.push("neither is shown to be better".to_owned());
        Verdict::Wait
    };
    (verdict, reasons)
}

fn in_words(p: f64) -> String {
    if p < 0.0001 {
        format!("{p:.1e}")
    } else {
        format!("{p:.4}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn paired(prompts: u64, gained: u64, lost: u64, both: u64) -> Paired {
        Paired {
            prompts,
            candidate: both + gained,
            baseline: both + lost,
            gained,
            lost,
        }
    }

    fn figures(wins: u64, losses: u64, ties: u64) -> Figures {
        let n = wins + losses + ties;
        Figures {
            wins,
            losses,
            ties,
            format: paired(n, 0, 0, n),
            length: paired(n, 0, 0, n),
        }
    }

    #[test]
    fn the_table() {
        // 61 of 100 is the least that a sign test at 5 % accepts, 60 of 100 the most that it does not.
        for (wins, losses, ties, expected) in [
            (61, 39, 50, Verdict::Promote),
            (60, 40, 50, Verdict::Wait),
            (39, 61, 50, Verdict::Reject),
            (40, 60, 50, Verdict::Wait),
            (0, 0, 150, Verdict::Wait),
            (149, 0, 0, Verdict::Wait),
            (0, 149, 0, Verdict::Wait),
            (150, 0, 0, Verdict::Promote),
            (6, 0, 144, Verdict::Promote),
            (5, 0, 145, Verdict::Wait),
        ] {
            let (verdict, reasons) = verdict(&figures(wins, losses, ties), 150);
            assert_eq!(
                verdict, expected,
                "{wins} wins, {losses} losses, {ties} ties: {reasons:?}"
            );
            assert!(!reasons.is_empty());
        }
    }

    #[test]
    fn a_worse_format_rejects_and_an_unclear_one_asks_for_a_canary() {
        let mut better = figures(100, 20, 30);
        better.format = paired(150, 0, 12, 138);
        assert_eq!(verdict(&better, 150).0, Verdict::Reject);
        better.format = paired(150, 8, 12, 130);
        assert_eq!(verdict(&better, 150).0, Verdict::Canary);
        better.format = paired(150, 60, 2, 88);
        assert_eq!(verdict(&better, 150).0, Verdict::Promote);
        better.length = paired(150, 0, 12, 138);
        assert_eq!(verdict(&better, 150).0, Verdict::Reject);
    }

    #[test]
    fn lengths() {
        assert!(length_fits("12345678", "1234"));
        assert!(!length_fits("1234567890", "12"));
        assert!(length_fits("1234", "1234567890"));
        assert!(!length_fits("1234", "12345678901"));
        assert!(length_fits("", ""));
    }

    #[test]
    fn observing_counts_where_they_differ() {
        let mut paired = Paired::default();
        for (candidate, baseline) in [
            (true, true),
            (true, false),
            (false, true),
            (false, false),
            (true, false),
        ] {
            paired.observe(candidate, baseline);
        }
        assert_eq!(
            paired,
            Paired {
                prompts: 5,
                candidate: 3,
                baseline: 2,
                gained: 2,
                lost: 1
            }
        );
    }

    proptest! {
        /// A candidate exactly as good as the baseline in the votes is never promoted, and never both better and worse.
        #[test]
        fn promotion_needs_everything(wins in 0_u64..200, losses in 0_u64..200, ties in 0_u64..100, gained in 0_u64..50, lost in 0_u64..50) {
            let mut figures = figures(wins, losses, ties);
            figures.format = paired(figures.examined().max(gained + lost), gained, lost, 0);
            if verdict(&figures, 150).0 == Verdict::Promote {
                prop_assert!(figures.wins > figures.losses && figures.p_value() < SIGNIFICANCE && figures.examined() >= 150);
                prop_assert!(figures.format.shown_not_worse());
            }
            prop_assert!(!(figures.format.shown_worse() && figures.format.shown_not_worse() && figures.format.loss_limits().0 > MARGIN));
        }
    }
}
