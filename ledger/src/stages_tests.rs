//! Tests of `stages`: single steps by hand, and what must hold after any of them.

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

/// A task's decisions, kept as the ledger keeps them.
#[derive(Default)]
struct Task {
    history: Vec<Stages>,
}

impl Task {
    fn now(&self) -> Stages {
        self.history.last().cloned().unwrap_or_default()
    }

    fn act(&mut self, who: Option<u32>, action: Action) -> Result<(), Refused> {
        let now = self.now();
        let after = now.after("a", who, action, &self.history)?;
        if after != now {
            self.history.push(Stages {
                seq: now.seq + 1,
                ..after
            });
        }
        Ok(())
    }

    fn promote(&mut self, who: Option<u32>) {
        self.act(who, Action::Promote).unwrap();
    }

    /// The champion after going back, or why not.
    fn back(&mut self) -> Result<Option<u32>, Refused> {
        self.act(self.now().champion, Action::RollBack)?;
        Ok(self.now().champion)
    }
}

#[test]
fn going_back_twice_goes_two_back() {
    let mut task = Task::default();
    for number in [1, 2, 3] {
        task.promote(Some(number));
    }
    assert_eq!(task.back(), Ok(Some(2)));
    assert_eq!(task.now().stage(3), Stage::Retired);
    assert_eq!(task.back(), Ok(Some(1)));
    // A promotion between: it is what is gone back from.
    task.promote(Some(4));
    assert_eq!(task.back(), Ok(Some(1)));
    assert_eq!(task.back(), Ok(None));
    assert!(task.back().unwrap_err().0.contains("nothing to go back to"));
}

#[test]
fn the_baseline_is_a_champion_like_another() {
    let mut task = Task::default();
    task.promote(Some(1));
    task.promote(None);
    assert_eq!(task.now().stage(1), Stage::Retired);
    assert_eq!(task.back(), Ok(Some(1)));
    assert_eq!(task.back(), Ok(None));
}

#[test]
fn what_was_rejected_is_passed_over() {
    let mut task = Task::default();
    for number in [1, 2, 3] {
        task.promote(Some(number));
    }
    task.act(Some(2), Action::Reject).unwrap();
    assert_eq!(task.back(), Ok(Some(1)));
    assert_eq!(task.back(), Ok(None));
}

#[test]
fn only_the_champion_is_rolled_back_and_only_if_it_is_the_one_expected() {
    let mut task = Task::default();
    task.promote(Some(1));
    let refused = task.act(Some(2), Action::RollBack).unwrap_err().0;
    assert!(
        refused.contains("a@2 is not the champion of a, a@1 is"),
        "{refused}"
    );
    let refused = task.now().expect_champion("a", "a@base").unwrap_err().0;
    assert!(
        refused.contains("The champion of a is a@1, not a@base"),
        "{refused}"
    );
    assert_eq!(task.now().expect_champion("a", "a@1"), Ok(()));
}

#[test]
fn canary_and_shadow_begin_change_and_end() {
    let mut task = Task::default();
    task.act(Some(1), Action::Shadow(0.5)).unwrap();
    assert_eq!(
        (task.now().stage(1), task.now().shadow_share(1)),
        (Stage::Candidate, Some(0.5))
    );
    task.act(Some(1), Action::Canary(0.1)).unwrap();
    assert_eq!(
        (task.now().stage(1), task.now().shadow),
        (Stage::Canary, None)
    );
    task.act(Some(1), Action::Canary(0.2)).unwrap();
    assert_eq!(task.now().canary_share(1), Some(0.2));
    for refused in [
        task.act(Some(2), Action::Canary(0.1)),
        task.act(Some(1), Action::Shadow(0.1)),
        task.act(Some(1), Action::Canary(1.1)),
        task.act(Some(1), Action::Canary(f64::NAN)),
        task.act(None, Action::Canary(0.1)),
    ] {
        refused.unwrap_err();
    }
    task.act(Some(1), Action::Canary(0.0)).unwrap();
    assert_eq!(
        (task.now().stage(1), task.now().canary),
        (Stage::Candidate, None)
    );
    // What is no canary cannot stop being one, and an old champion stays what it is.
    task.promote(Some(1));
    task.promote(Some(2));
    let before = task.now();
    task.act(Some(1), Action::Canary(0.0)).unwrap();
    assert_eq!(task.now(), before);

    let stages: Vec<_> = standings(&task.history, 1)
        .iter()
        .map(|s| (s.stage, s.canary_share, s.shadow_share))
        .collect();
    assert_eq!(
        stages,
        [
            (Stage::Candidate, None, Some(0.5)),
            (Stage::Canary, Some(0.1), None),
            (Stage::Canary, Some(0.2), None),
            (Stage::Candidate, None, None),
            (Stage::Champion, None, None),
            (Stage::Retired, None, None),
        ]
    );
}

#[test]
fn files_of_earlier_versions_are_read() {
    let old = r#"{"seq": 2, "champion": 1, "canary": [2, 0.1], "stage_of": {"1": "champion", "2": "canary"}}"#;
    let stages: Stages = serde_json::from_str(old).unwrap();
    assert_eq!(
        (stages.shadow, stages.rolled_back, stages.at),
        (None, false, None)
    );
    assert_eq!(stages.stage(2), Stage::Canary);
}

fn actions() -> impl Strategy<Value = Vec<(Option<u32>, Action)>> {
    let action = prop_oneof![
        3 => Just(Action::Promote),
        2 => (-0.2..1.2).prop_map(Action::Canary),
        2 => (-0.2..1.2).prop_map(Action::Shadow),
        1 => Just(Action::Canary(0.0)),
        1 => Just(Action::Shadow(0.0)),
        3 => Just(Action::RollBack),
        1 => Just(Action::Reject),
    ];
    prop::collection::vec((prop::option::weighted(0.9, 1u32..6), action), 0..60)
}

proptest! {
    #[test]
    fn whatever_is_decided_the_stages_are_sound(actions in actions()) {
        let mut task = Task::default();
        for (who, action) in actions {
            // Rolling back is asked of whoever is the champion, or it would hardly ever be granted.
            let who = if action == Action::RollBack { task.now().champion } else { who };
            let before = task.now();
            let granted = task.act(who, action).is_ok();
            let now = task.now();
            prop_assert!(granted || now == before);
            let at = |stage| now.stage_of.iter().filter(move |(_, s)| **s == stage).map(|(n, _)| *n).collect::<Vec<_>>();
            prop_assert_eq!(at(Stage::Champion), now.champion.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(at(Stage::Canary), now.canary.map(|(n, _)| n).into_iter().collect::<Vec<_>>());
            prop_assert!(now.asked().all(|n| now.stage(n) != Stage::Rejected));
            prop_assert!(now.shadow.is_none_or(|(n, _)| now.in_traffic().all(|other| other != n)));
            for (_, share) in now.canary.into_iter().chain(now.shadow) {
                prop_assert!(share > 0.0 && share <= 1.0);
            }
            prop_assert!(before.stage_of.iter().all(|(n, s)| *s != Stage::Rejected || now.stage(*n) == Stage::Rejected));
        }
    }

    #[test]
    fn so_many_promotions_are_so_many_ways_back(promoted in prop::collection::vec(prop::option::of(1u32..6), 0..20)) {
        let mut task = Task::default();
        let mut champions = vec![None];
        for who in promoted {
            task.promote(who);
            if champions.last() != Some(&who) {
                champions.push(who);
            }
        }
        champions.pop();
        while let Some(before) = champions.pop() {
            prop_assert_eq!(task.back(), Ok(before));
        }
        prop_assert!(task.back().is_err());
    }
}
