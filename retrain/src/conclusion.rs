//! From what was counted, marked and voted to a report's verdict. Pure: who judged, and when the last vote came, makes no difference.

use retune_ledger::Pair;
use retune_task::{JudgePolicy, Task};

use crate::examine::Voted;
use crate::judge::report::Judging;
use crate::overfit;
use crate::pace::Pace;
use crate::prompted::Prompted;
use crate::regression::{self, Regression};
use crate::report::Report;
use crate::slices::{self, Slice};
use crate::verdict::{self, Figures, Verdict};

/// Puts it into the report, which has all else by now; `votes` are those of some of the pairs, in their order.
pub(crate) fn conclude(
    task: &Task,
    report: &mut Report,
    pairs: &[Pair],
    figures: Figures,
    votes: Vec<Voted>,
) {
    let policy = &task.retrain;
    report.examples_examined = Some(figures.examined());
    report.votes = Some(figures.wins + figures.losses);
    report.wins = Some(figures.wins);
    report.ties = Some(figures.ties);
    report.p_value = Some(figures.p_value());
    let mut pairs = pairs.iter();
    // Every vote is of a pair, and both stand in the same order.
    let parts = votes.iter().filter_map(|vote| {
        let pair = pairs.find(|pair| pair.request_id == vote.request_id)?;
        Some((&pair.parts[..], vote))
    });
    report.slices = slices::slices(parts);
    let (whole, mut reasons) = verdict::verdict(&figures, policy.min_pairs as u64);
    let beside = Beside {
        slices: &report.slices,
        regression: report.regression.as_ref(),
        pace: report.pace.as_ref(),
        prompted: report.prompted.as_ref(),
        judging: report.judging.as_ref().map(|of| (of, &policy.judge)),
    };
    let (verdict, more) = temper(whole, &beside);
    reasons.extend(more);
    reasons.extend(overfit::in_words(&report.curve, report.chosen_epoch));
    (report.verdict, report.reasons) = (verdict, reasons);
    report.figures = Some(figures);
    report.examined = votes;
}

/// What is known beside the votes of the whole.
#[derive(Default)]
pub(crate) struct Beside<'a> {
    pub(crate) slices: &'a [Slice],
    pub(crate) regression: Option<&'a Regression>,
    pub(crate) pace: Option<&'a Pace>,
    pub(crate) prompted: Option<&'a Prompted>,
    pub(crate) judging: Option<(&'a Judging, &'a JudgePolicy)>,
}

/// The verdict on the whole in the light of its parts, of a suite that rejects nobody, of how long answers take, and of what the judge marked;
/// with reasons.
pub(crate) fn temper(verdict: Verdict, beside: &Beside<'_>) -> (Verdict, Vec<String>) {
    let Beside {
        slices,
        regression,
        pace,
        prompted,
        judging,
    } = *beside;
    let worse: Vec<&Slice> = slices.iter().filter(|slice| slice.is_worse()).collect();
    let mut reasons: Vec<String> = worse.iter().map(|slice| slice.in_words()).collect();
    let default = regression.filter(|suite| !suite.own);
    reasons.extend(default.and_then(|suite| regression::in_words(&suite.suite)));
    reasons.extend(prompted.map(Prompted::in_words));
    reasons.extend(pace.map(Pace::in_words));
    reasons.extend(judging.into_iter().flat_map(|(of, by)| of.in_words(by)));
    if matches!(verdict, Verdict::Promote | Verdict::Canary)
        && prompted.is_some_and(Prompted::is_worse)
    {
        reasons.push(
            "better than what serves, and worse than the base with its prompt: a person has to say which of them is to serve"
                .to_owned(),
        );
        return (Verdict::Wait, reasons);
    }
    let asks = !worse.is_empty()
        || default.is_some_and(Regression::asks_for_a_canary)
        || pace.is_some_and(Pace::is_slower)
        || judging.is_some_and(|(of, _)| of.asks_for_a_canary());
    if verdict != Verdict::Promote || !asks {
        return (verdict, reasons);
    }
    reasons.push(
        "the whole is better and something in it or beside it is worse: a share of the live traffic has to tell whether that matters"
            .to_owned(),
    );
    (Verdict::Canary, reasons)
}
