//! A canary's test: what it says of simulated traffic, and how often it errs.

#![allow(clippy::print_stdout, reason = "tests, which tell their figures")]

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Arm, Beside, Stream, Told};

/// How the answers of one are taken.
#[derive(Clone, Copy)]
struct Rates {
    valid: f64,
    content: f64,
}

/// Traffic until the test says something, or to `most` exchanges: what it said, and after how many. A tenth is the canary's, and three of ten answers are
/// rated.
fn play(seed: u64, canary: Rates, champion: Rates, most: u32) -> (Told, u32) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut beside = Beside::new(true);
    for n in 1..=most {
        let (arm, rates) = match rng.random_bool(0.1) {
            true => (Arm::Canary, canary),
            false => (Arm::Champion, champion),
        };
        beside.observe(Stream::Format, arm, rng.random_bool(rates.valid));
        if rng.random_bool(0.3) {
            beside.observe(Stream::Content, arm, rng.random_bool(rates.content));
        }
        if beside.told() != Told::Open {
            return (beside.told(), n);
        }
    }
    (Told::Open, most)
}

/// Shares of worse and of not worse, and the median exchanges to either.
fn shares(canary: Rates, champion: Rates) -> (f64, f64, u32) {
    const RUNS: u64 = 200;
    let mut played: Vec<(Told, u32)> = (0..RUNS)
        .map(|seed| play(seed, canary, champion, 40_000))
        .collect();
    let share = |told| played.iter().filter(|(said, _)| *said == told).count() as f64 / RUNS as f64;
    let (worse, not_worse) = (share(Told::Worse), share(Told::NotWorse));
    played.sort_by_key(|(_, after)| *after);
    (worse, not_worse, played[played.len() / 2].1)
}

/// The table in docs/benchmarks.md: `cargo test --release what_a_canary_s_test_says -- --nocapture`.
#[test]
fn what_a_canary_s_test_says() {
    let champion = Rates {
        valid: 0.98,
        content: 0.85,
    };
    println!("valid | content | worse | not worse | median exchanges");
    for (valid, content) in [
        (0.98, 0.85),
        (0.99, 0.9),
        (0.98, 0.8),
        (0.93, 0.85),
        (0.98, 0.75),
        (0.98, 0.65),
        (0.9, 0.85),
        (0.7, 0.85),
    ] {
        let (worse, not_worse, median) = shares(Rates { valid, content }, champion);
        println!("{valid} | {content} | {worse:.3} | {not_worse:.3} | {median}");
        // With three standard errors for the draw.
        if valid >= champion.valid && content >= champion.content {
            assert!(
                worse <= 0.05 + 0.046 && not_worse >= 0.9,
                "{worse} {not_worse}"
            );
        }
        if valid <= champion.valid - 0.05 || content <= champion.content - 0.1 {
            assert!(not_worse <= 0.05 + 0.046, "{valid} {content}: {not_worse}");
        }
        if valid <= champion.valid - 0.08 || content <= champion.content - 0.1 {
            assert!(worse >= 0.9, "{valid} {content}: {worse}");
        }
    }
}

#[test]
fn a_task_without_a_format_is_told_by_its_raters_alone() {
    let mut beside = Beside::new(false);
    for n in 0..4_000 {
        let arm = match n % 4 {
            0 => Arm::Canary,
            _ => Arm::Champion,
        };
        beside.observe(Stream::Format, arm, false);
        beside.observe(Stream::Content, arm, n % 101 != 0);
    }
    assert_eq!(beside.told(), Told::NotWorse);
    assert!(!beside.shown().contains("format"), "{}", beside.shown());
}

#[test]
fn without_a_word_from_anybody_nothing_is_told() {
    let mut beside = Beside::new(true);
    for n in 0..4_000 {
        let arm = match n % 4 {
            0 => Arm::Canary,
            _ => Arm::Champion,
        };
        beside.observe(Stream::Format, arm, true);
    }
    assert_eq!(beside.told(), Told::Open);
    assert!(beside.shown().contains("0 of 0"), "{}", beside.shown());
}
