//! The verdict: its table, its words, and how often it errs.

#![allow(clippy::print_stdout, reason = "tests, which tell their figures")]

use super::*;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

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
        ..Figures::default()
    }
}

#[test]
fn the_table() {
    // A win weighs 0.1823, a loss -0.2231; from 2.77 on it is better, up to -1.56 it is not.
    for (wins, losses, ties, expected) in [
        (63, 39, 50, Verdict::Promote),
        (62, 39, 50, Verdict::Wait),
        (51, 48, 51, Verdict::Wait),
        (39, 61, 50, Verdict::Reject),
        (40, 60, 50, Verdict::Wait),
        (0, 0, 150, Verdict::Wait),
        (149, 0, 0, Verdict::Wait),
        (0, 149, 0, Verdict::Wait),
        (150, 0, 0, Verdict::Promote),
        (16, 0, 134, Verdict::Promote),
        (15, 0, 135, Verdict::Wait),
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
fn a_suite_that_is_worse_rejects_and_one_that_is_not_shown_to_be_keeps_nothing_back() {
    let mut better = figures(100, 20, 30);
    assert!(!better.is_open());
    better.regression = paired(40, 0, 4, 20);
    assert_eq!(verdict(&better, 150).0, Verdict::Promote);
    better.regression = paired(40, 0, 5, 20);
    assert_eq!(verdict(&better, 150).0, Verdict::Reject);
    let old = serde_json::json!({"wins": 1, "losses": 0, "ties": 2, "format": better.format, "length": better.length});
    let old: Figures = serde_json::from_value(old).unwrap_or_default();
    assert_eq!((old.judged(), old.regression), (3, Paired::default()));
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

/// What an examined candidate is like.
#[derive(Clone, Copy)]
struct Like {
    /// Its share of the votes.
    wins: f64,
    ties: f64,
    /// Shares of valid answers, its own and the baseline's.
    valid: (f64, f64),
    /// Shares of answers of about the known length.
    length: (f64, f64),
    /// Prompts that there are.
    available: usize,
}

/// Examinations as the policy's defaults have them: which of them promote, send to a canary, wait and reject, as shares, and the mean votes that
/// they took.
fn outcomes(like: Like) -> ([f64; 4], f64) {
    const RUNS: u32 = 4_000;
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let (mut counts, mut votes) = ([0_u32; 4], 0);
    for _ in 0..RUNS {
        let mut figures = Figures::default();
        loop {
            let more = more(&figures, 150, like.available);
            for _ in 0..more {
                match (rng.random_bool(like.ties), rng.random_bool(like.wins)) {
                    (true, _) => figures.ties += 1,
                    (false, true) => figures.wins += 1,
                    (false, false) => figures.losses += 1,
                }
                let mut both =
                    |(candidate, baseline)| (rng.random_bool(candidate), rng.random_bool(baseline));
                let (candidate, baseline) = both(like.valid);
                figures.format.observe(candidate, baseline);
                let (candidate, baseline) = both(like.length);
                figures.length.observe(candidate, baseline);
            }
            if more == 0 {
                break;
            }
        }
        votes += figures.wins + figures.losses;
        counts[verdict(&figures, 150).0 as usize] += 1;
    }
    let share = |count| f64::from(count) / f64::from(RUNS);
    (counts.map(share), votes as f64 / f64::from(RUNS))
}

/// The tables in docs/benchmarks.md: `cargo test --release operating_characteristics -- --nocapture`.
#[test]
fn operating_characteristics() {
    let usual = Like {
        wins: 0.6,
        ties: 0.0,
        valid: (0.99, 0.99),
        length: (1.0, 1.0),
        available: 400,
    };
    println!("wins | ties | promote | canary | wait | reject | votes");
    for ties in [0.0, 0.3, 0.6] {
        for wins in [0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8] {
            let ([promote, canary, wait, reject], votes) = outcomes(Like {
                wins,
                ties,
                ..usual
            });
            println!(
                "{wins} | {ties} | {promote:.3} | {canary:.3} | {wait:.3} | {reject:.3} | {votes:.0}"
            );
            if wins <= 0.5 {
                assert!(promote + canary <= 0.05, "{wins} {ties}");
            }
            if wins >= 0.6 && ties <= 0.3 {
                assert!(promote + canary >= 0.8, "{wins} {ties}");
            }
        }
    }
    let few = Like {
        available: 150,
        ..usual
    };
    let ([promote, canary, ..], _) = outcomes(few);
    println!("0.6 of 150 prompts and no more: {:.3}", promote + canary);
}

/// The same for answers that break the format, or have another length: one no worse than the baseline is hardly ever rejected, and one worse by the
/// margin hardly ever promoted.
#[test]
fn operating_characteristics_of_format_and_length() {
    println!("wins | valid | of the baseline | length of both | promote | canary | wait | reject");
    for (wins, valid, length) in [
        (0.6, (0.99, 0.99), 1.0),
        (0.6, (0.95, 0.95), 0.95),
        (0.7, (0.95, 0.95), 0.95),
        (0.6, (0.9, 0.9), 0.9),
        (0.7, (0.9, 0.9), 0.9),
        (0.6, (0.8, 0.8), 0.8),
        (0.8, (0.94, 0.99), 1.0),
        (0.6, (0.9, 0.95), 1.0),
        (0.7, (0.85, 0.9), 0.9),
        (0.7, (0.85, 0.95), 1.0),
        (0.8, (0.8, 0.95), 1.0),
    ] {
        let ([promote, canary, wait, reject], _) = outcomes(Like {
            wins,
            ties: 0.0,
            valid,
            length: (length, length),
            available: 400,
        });
        println!(
            "{wins} | {} | {} | {length} | {promote:.3} | {canary:.3} | {wait:.3} | {reject:.3}",
            valid.0, valid.1
        );
        if valid.0 < valid.1 {
            assert!(promote <= 0.05, "{valid:?}");
        } else {
            assert!(reject <= 0.05 && promote + canary >= 0.8, "{valid:?}");
        }
    }
}
