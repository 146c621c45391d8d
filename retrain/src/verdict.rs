//! From the figures of an examination to a verdict, with reasons in plain words. No I/O, no clock.
//!
//! Votes are counted by a sequential test: an examination asks `min_pairs` prompts, and more only while the votes leave open whether the candidate is
//! better. So what is clear costs little, what is close gets the prompts that it takes, and looking often makes no mistake likelier than
//! asked for.

use retune_stats::{Sprt, Told};
use serde::{Deserialize, Serialize};

use crate::judge::Vote;
use crate::regression;

/// A candidate with three of five votes shall be found; one with half of them shall not, but for one time in twenty.
pub const VOTES: Sprt = Sprt {
    win_rate: 0.6,
    false_yes: 0.05,
    false_no: 0.2,
};
/// A loss this unlikely under "equally good" counts as shown (exact two-sided sign test, ties dropped).
pub const SIGNIFICANCE: f64 = 0.05;
/// Format and length may be this much worse, as a share of the prompts, before the candidate counts as worse.
pub const MARGIN: f64 = 0.05;
/// Prompts asked more, at a time, while a verdict is open.
const STEP: usize = 25;
/// Limits of a loss lie so many standard errors around it. They are looked at after `min_pairs` prompts and after each `STEP`, for the format
/// and for the length, and any look may be the last: 1.645, which is right in 5 % of single looks, rejected a fifth of the winners whose
/// answers are valid in 0.9 of the cases. A constant limit for all looks (Pocock 1977, Biometrika 64:191), for the eleven looks at two streams
/// that `max_pairs` = 400 allows; with 2,000 it errs in a tenth of the examinations.
const LOOKS: f64 = 2.5;
/// The same for what is looked at once: one-sided, 95 %.
const ONCE: f64 = 1.645;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Better, and not worse in any other respect.
    Promote,
    /// Better in the pairs, while format or length are too close to tell, or a part of it is worse: a share of live traffic would settle it.
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

    /// Lower and upper limits of the candidate's loss, as a share of the prompts, each wrong in at most 5 % of the examinations: a Wald
    /// interval for a paired difference with half an observation added to each of the four cells (Agresti and Min 2005, Statistics in
    /// Medicine 24:729).
    pub fn loss_limits(&self) -> (f64, f64) {
        self.limits(LOOKS)
    }

    /// The same where it is looked at but once.
    pub(crate) fn loss_limits_once(&self) -> (f64, f64) {
        self.limits(ONCE)
    }

    fn limits(&self, errors: f64) -> (f64, f64) {
        let n = self.prompts as f64 + 2.0;
        let (lost, gained) = (self.lost as f64 + 0.5, self.gained as f64 + 0.5);
        let loss = (lost - gained) / n;
        let error = ((lost + gained) - (lost - gained).powi(2) / n)
            .max(0.0)
            .sqrt()
            / n;
        (loss - errors * error, loss + errors * error)
    }

    pub fn shown_worse(&self) -> bool {
        self.loss_limits().0 > 0.0
    }

    /// The same, exactly: the sign test over what differs, one-sided at 5 %, however few there are.
    pub(crate) fn shown_worse_once(&self) -> bool {
        let two_sided = retune_stats::sign_test(self.gained, self.lost);
        self.lost > self.gained && two_sided / 2.0 < SIGNIFICANCE
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
    /// Answers to the task's own regression suite that pass its checks: asked once, after the last look.
    #[serde(default)]
    pub regression: Paired,
}

impl Figures {
    /// Prompts that both answered.
    pub fn examined(&self) -> u64 {
        self.judged().max(self.format.prompts)
    }

    /// Those of which it is said which answer is better.
    pub fn judged(&self) -> u64 {
        self.wins + self.losses + self.ties
    }

    pub(crate) fn vote(&mut self, vote: Vote) {
        match vote {
            Vote::Win => self.wins += 1,
            Vote::Loss => self.losses += 1,
            Vote::Tie => self.ties += 1,
        }
    }

    /// Exact two-sided sign test over wins and losses; ties are dropped.
    pub fn p_value(&self) -> f64 {
        retune_stats::sign_test(self.wins, self.losses)
    }

    pub(crate) fn told(&self) -> Told {
        VOTES.told(self.wins, self.losses)
    }

    /// Shown to be worse beside the votes.
    pub(crate) fn worse(&self) -> bool {
        self.format.shown_worse() || self.length.shown_worse() || self.regression.shown_worse_once()
    }

    fn not_worse(&self) -> bool {
        self.format.shown_not_worse() && self.length.shown_not_worse()
    }

    /// Whether more prompts could change the verdict.
    pub fn is_open(&self) -> bool {
        match self.told() {
            Told::Open => true,
            Told::NotBetter => false,
            Told::Better => !self.worse() && !self.not_worse(),
        }
    }
}

/// How many of `available` prompts to ask next; 0: the examination is over.
pub fn more(figures: &Figures, min_pairs: usize, available: usize) -> usize {
    let asked = usize::try_from(figures.examined()).unwrap_or(usize::MAX);
    let wanted = match asked < min_pairs {
        true => min_pairs - asked,
        false if figures.is_open() => STEP,
        false => 0,
    };
    wanted.min(available.saturating_sub(asked))
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
        figures.judged(),
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
    reasons.extend(regression::in_words(&figures.regression));
    if examined < min_pairs {
        reasons.push(format!("{examined} prompts with a known answer could be examined, and a verdict needs {min_pairs}"));
        return (Verdict::Wait, reasons);
    }
    let told = figures.told();
    reasons.push(in_words_told(figures, told));
    let verdict = match told {
        _ if figures.worse() => Verdict::Reject,
        Told::Better if figures.not_worse() => Verdict::Promote,
        Told::Better => Verdict::Canary,
        _ if p < SIGNIFICANCE && figures.losses > figures.wins => Verdict::Reject,
        Told::NotBetter | Told::Open => Verdict::Wait,
    };
    (verdict, reasons)
}

fn in_words_told(figures: &Figures, told: Told) -> String {
    let (no, yes) = VOTES.bounds();
    let what = match told {
        Told::Better => "the candidate is better",
        Told::NotBetter => {
            "the candidate is not clearly better, and more votes would not change that; better examples might"
        }
        Told::Open => "it stays open whether the candidate is better",
    };
    format!(
        "{what} (log likelihood ratio {:.2} of \"{:.0} % of the votes\" over \"half\": from {yes:.2} on it is, up to {no:.2} it is not)",
        VOTES.log_ratio(figures.wins, figures.losses),
        VOTES.win_rate * 100.0,
    )
}

fn in_words(p: f64) -> String {
    if p < 0.0001 {
        format!("{p:.1e}")
    } else {
        format!("{p:.4}")
    }
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
