//! Tests of `slices`: what a part is, when it is worse, and how often that is said in error.

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use retune_task::Side;

use super::*;
use crate::conclusion::{Beside, temper};
use crate::pace::Pace;
use crate::prompted::Prompted;
use crate::testing::{self, user};
use crate::verdict::Verdict;

type Metadata = BTreeMap<String, String>;

fn metadata(team: &str) -> Metadata {
    match team {
        "" => Metadata::new(),
        team => [("team".to_owned(), team.to_owned())].into(),
    }
}

/// What is known of one examined prompt.
#[derive(Debug, Clone, Copy)]
struct Seen<'a> {
    metadata: &'a Metadata,
    known_by: KnownBy,
    /// Characters of its messages.
    length: usize,
    vote: Vote,
    format_valid: bool,
    baseline_format_valid: bool,
}

fn of(keys: &[String], seen: &[Seen<'_>]) -> Vec<Slice> {
    let row = |one: &Seen<'_>| Row {
        metadata: one.metadata.clone(),
        messages: vec![user(&"x".repeat(one.length))],
        ..testing::row(0, one.known_by)
    };
    let vote = |one: &Seen<'_>| Voted {
        request_id: String::new(),
        vote: one.vote,
        seat: Side::Left,
        format_valid: one.format_valid,
        baseline_format_valid: one.baseline_format_valid,
    };
    let rows: Vec<Row> = seen.iter().map(row).collect();
    let votes: Vec<Voted> = seen.iter().map(vote).collect();
    let parts = parts(keys, rows.iter());
    slices(parts.iter().map(Vec::as_slice).zip(&votes))
}

fn beside(slices: &[Slice]) -> Beside<'_> {
    Beside {
        slices,
        ..Beside::default()
    }
}

fn seen(metadata: &Metadata, length: usize, vote: Vote) -> Seen<'_> {
    Seen {
        metadata,
        known_by: KnownBy::Correction,
        length,
        vote,
        format_valid: true,
        baseline_format_valid: true,
    }
}

fn part<'a>(slices: &'a [Slice], by: &str, value: &str) -> &'a Slice {
    let found = slices.iter().find(|s| s.by == by && s.value == value);
    found.unwrap_or_else(|| unreachable!("no {by} = {value} in {slices:?}"))
}

#[test]
fn a_whole_that_is_better_hides_a_part_that_is_worse() {
    let (billing, shipping) = (metadata("billing"), metadata("shipping"));
    let mut all = vec![seen(&billing, 10, Vote::Win); 130];
    all.extend(vec![seen(&shipping, 10, Vote::Loss); 15]);
    all.extend(vec![seen(&shipping, 10, Vote::Tie); 5]);
    let slices = of(&["team".to_owned()], &all);
    let of_shipping = part(&slices, "team", "shipping");
    assert_eq!((of_shipping.losses, of_shipping.prompts()), (15, 20));
    assert!(of_shipping.votes_worse && !of_shipping.format_worse);
    assert!(!part(&slices, "team", "billing").is_worse());
    for (before, after) in [
        (Verdict::Promote, Verdict::Canary),
        (Verdict::Canary, Verdict::Canary),
        (Verdict::Wait, Verdict::Wait),
        (Verdict::Reject, Verdict::Reject),
    ] {
        let (verdict, reasons) = temper(before, &beside(&slices));
        assert_eq!(verdict, after);
        assert_eq!(
            reasons[0],
            "of team = shipping, 0 answers are better than the baseline's and 15 worse; that is worse"
        );
        assert_eq!(reasons.len(), 1 + usize::from(before == Verdict::Promote));
    }
    assert_eq!(
        temper(Verdict::Promote, &beside(&[])),
        (Verdict::Promote, vec![])
    );
    let slow = Pace::of(&[(3.0, 1.0); 30]);
    let slow = Beside {
        pace: slow.as_ref(),
        ..Beside::default()
    };
    let (verdict, reasons) = temper(Verdict::Promote, &slow);
    assert_eq!(verdict, Verdict::Canary);
    assert!(
        reasons[0].contains("3.00 s") && reasons[0].contains("slower"),
        "{reasons:?}"
    );
    let (verdict, _) = temper(Verdict::Wait, &slow);
    assert_eq!(verdict, Verdict::Wait);
}

#[test]
fn what_a_prompt_does_better_is_left_to_a_person() {
    let prompted = |losses| -> Prompted {
        let paired = serde_json::json!({"prompts": 40, "candidate": 40, "baseline": 40, "gained": 0, "lost": 0});
        let of = serde_json::json!({"baseline": "ask@base", "wins": 2, "losses": losses, "ties": 9, "format": paired,
            "tokens": {"prompt": 1.0, "completion": 1.0}});
        serde_json::from_value(of).unwrap()
    };
    for (losses, before, after) in [
        (20, Verdict::Promote, Verdict::Wait),
        (20, Verdict::Canary, Verdict::Wait),
        (20, Verdict::Reject, Verdict::Reject),
        (6, Verdict::Promote, Verdict::Promote),
    ] {
        let prompted = prompted(losses);
        let beside = Beside {
            prompted: Some(&prompted),
            ..Beside::default()
        };
        let (verdict, reasons) = temper(before, &beside);
        assert_eq!(verdict, after, "{reasons:?}");
        assert!(reasons[0].contains("ask@base with its full prompt"));
    }
}

#[test]
fn a_format_that_is_lost_in_one_part_is_found() {
    let none = Metadata::new();
    let mut all = vec![seen(&none, 10, Vote::Win); 100];
    let broken = Seen {
        known_by: KnownBy::Rating(5),
        format_valid: false,
        ..seen(&none, 10, Vote::Tie)
    };
    all.extend([broken; 9]);
    let slices = of(&[], &all);
    let rated = part(&slices, "known by", "rating");
    assert!(rated.format_worse && !rated.votes_worse);
    assert!(
        temper(Verdict::Promote, &beside(&slices)).1[0]
            .contains("0 of 9 answers keep the format, 9 of")
    );
}

#[test]
fn thirds_by_length_rare_values_together_and_no_part_that_is_the_whole() {
    let teams: Vec<Metadata> = ["a", "b", "", "c"].map(metadata).into();
    let counts = [20, 6, 3, 5];
    let mut all = Vec::new();
    for (team, count) in teams.iter().zip(counts) {
        all.extend(vec![seen(team, all.len() + 1, Vote::Tie); count]);
    }
    for (n, one) in all.iter_mut().enumerate() {
        one.length = n + 1;
    }
    let slices = of(&["team".to_owned(), "nowhere".to_owned()], &all);
    let shown: Vec<(String, u64)> = slices
        .iter()
        .map(|s| (format!("{}={}", s.by, s.value), s.prompts()))
        .collect();
    let expected = [
        ("team=a", 20),
        ("team=b", 6),
        ("team=not given", 3),
        ("team=others", 5),
        ("prompt=long (above 22 characters)", 12),
        ("prompt=medium (up to 22 characters)", 11),
        ("prompt=short (up to 11 characters)", 11),
    ];
    assert_eq!(shown, expected.map(|(name, n)| (name.to_owned(), n)));
    assert!(of(&[], &[]).is_empty());
    let alike = vec![seen(&teams[0], 7, Vote::Win); 30];
    assert!(of(&["team".to_owned()], &alike).is_empty());
}

#[test]
fn a_candidate_that_is_worse_nowhere_is_called_so_in_at_most_one_of_twenty() {
    const RUNS: u32 = 1_000;
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let teams: Vec<Metadata> = (0..8).map(|n| metadata(&format!("team-{n}"))).collect();
    let mut errors = 0;
    for _ in 0..RUNS {
        let one = |_| Seen {
            format_valid: rng.random_bool(0.9),
            baseline_format_valid: rng.random_bool(0.9),
            ..seen(
                &teams[rng.random_range(0..8)],
                rng.random_range(0..500),
                [Vote::Win, Vote::Loss, Vote::Tie][rng.random_range(0..3)],
            )
        };
        let all: Vec<Seen<'_>> = (0..150).map(one).collect();
        errors += u32::from(of(&["team".to_owned()], &all).iter().any(Slice::is_worse));
    }
    assert!(errors <= RUNS / 20, "{errors} of {RUNS}");
}

/// Team, length, vote, whether the format holds for either.
type Drawn = (u8, usize, u8, bool, bool);

fn drawn(all: &[Drawn], turned: bool) -> Vec<Slice> {
    let teams: Vec<Metadata> = ["", "a", "b", "c"].map(metadata).into();
    let seen = |&(team, length, vote, here, there): &Drawn| {
        let (win, loss) = match turned {
            true => (Vote::Loss, Vote::Win),
            false => (Vote::Win, Vote::Loss),
        };
        Seen {
            metadata: &teams[usize::from(team)],
            known_by: KnownBy::Rating(5),
            length,
            vote: [win, loss, Vote::Tie][usize::from(vote)],
            format_valid: if turned { there } else { here },
            baseline_format_valid: if turned { here } else { there },
        }
    };
    of(
        &["team".to_owned()],
        &all.iter().map(seen).collect::<Vec<_>>(),
    )
}

proptest! {
    /// The parts by one thing are the whole; nobody is worse than somebody who is worse there; the order tells nothing.
    #[test]
    fn parts_add_up_and_are_fair(mut all in prop::collection::vec((0_u8..4, 0_usize..9, 0_u8..3, any::<bool>(), any::<bool>()), 0..120)) {
        let slices = drawn(&all, false);
        for by in ["team", "prompt"] {
            let of_it = slices.iter().filter(|slice| slice.by == by);
            let prompts: u64 = of_it.map(Slice::prompts).sum();
            prop_assert!(prompts == 0 || prompts == all.len() as u64, "{by}: {prompts}");
        }
        let turned = drawn(&all, true);
        prop_assert_eq!(slices.len(), turned.len());
        for (one, other) in slices.iter().zip(&turned) {
            prop_assert_eq!((one.wins, one.losses), (other.losses, other.wins));
            prop_assert!(!one.votes_worse || one.losses >= one.wins + 6);
            prop_assert!(!one.format_worse || one.format.lost >= one.format.gained + 6);
            prop_assert!(!one.votes_worse || !other.votes_worse);
            prop_assert!(!one.format_worse || !other.format_worse);
        }
        all.reverse();
        prop_assert_eq!(drawn(&all, false), slices);
    }
}
