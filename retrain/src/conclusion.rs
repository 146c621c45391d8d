//! From what was counted, marked and voted to a report's verdict. Pure: who judged, and when the last vote came, makes no difference.

use retune_ledger::Pair;
use retune_task::Task;

use crate::examine::Voted;
use crate::overfit;
use crate::report::Report;
use crate::slices::{self, Beside};
use crate::verdict::{self, Figures};

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
    let (verdict, more) = slices::temper(whole, &beside);
    reasons.extend(more);
    reasons.extend(overfit::in_words(&report.curve, report.chosen_epoch));
    (report.verdict, report.reasons) = (verdict, reasons);
    report.figures = Some(figures);
    report.examined = votes;
}
