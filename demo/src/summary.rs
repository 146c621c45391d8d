//! The play in one line of JSON. Every figure was measured in that play; what did not happen is null.

use std::collections::HashMap;

use serde::Serialize;

use crate::apps::Asked;
use crate::client::Run;
use crate::generations::Generation;
use crate::play::Played;
use crate::texts::Era;

/// The line's keys, in its order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Answers that the apps got.
    pub exchanges: u64,
    /// Rows with the purpose `user` in the ledger, after everything was appended.
    pub exchanges_logged: u64,
    pub feedback: u64,
    pub alarm_kind: Option<String>,
    /// From the first drifted exchange (1) to the one that crossed the threshold, in the ledger's order.
    pub alarm_after_requests: Option<u64>,
    pub alarms_before_drift: u64,
    pub adapter: Option<String>,
    pub examples_train: Option<u64>,
    pub examples_examined: Option<u64>,
    /// Held-out, before the first step.
    pub loss_first: Option<f64>,
    /// Held-out, at the chosen checkpoint.
    pub loss_last: Option<f64>,
    /// Share of the drifted traffic before the promotion whose answer had the right format.
    pub format_valid_before: Option<f64>,
    /// The same after the promotion.
    pub format_valid_after: Option<f64>,
    /// Wins and losses; ties are not among them.
    pub votes: Option<u64>,
    pub wins: Option<u64>,
    pub ties: Option<u64>,
    pub p_value: Option<f64>,
    pub judge: Option<String>,
    pub verdict: Option<String>,
    pub promoted: Option<bool>,
    /// Mean per drifted exchange before the promotion.
    pub prompt_tokens_before: Option<f64>,
    /// The same after the promotion.
    pub prompt_tokens_after: Option<f64>,
    pub seconds: f64,
    /// What came after the first promotion, where the play went on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub generations: Vec<Generation>,
}

impl Summary {
    /// `logged`: the ids of every `user` exchange in the ledger, in its order (ts, replica, seq).
    pub fn new(played: &Played, logged: &[String], seconds: f64) -> Self {
        let place: HashMap<&str, usize> = logged
            .iter()
            .enumerate()
            .map(|(i, id)| (id.as_str(), i))
            .collect();
        let place_of = |id: &str| place.get(id).copied();
        let first_drifted = played
            .asked
            .iter()
            .filter(|a| a.era == Era::Returns)
            .filter_map(|a| place_of(&a.request_id))
            .min();
        let crossings = played
            .alarms
            .iter()
            .filter_map(|alarm| Some((place_of(&alarm.request_id)?, alarm)));
        let is_after = |at: usize| first_drifted.is_some_and(|first| at >= first);
        let (after, before): (Vec<_>, Vec<_>) = crossings.partition(|(at, _)| is_after(*at));
        let after = after.into_iter().filter(|(_, alarm)| alarm.starts_a_run());
        let alarm = after.min_by_key(|(at, _)| *at);

        let none = Run::default();
        let run = played.run.as_ref().unwrap_or(&none);
        let promoted = run
            .adapter
            .as_deref()
            .filter(|_| run.promoted == Some(true));
        let by_promoted = |asked: &Asked| promoted == Some(asked.adapter.as_str());
        let drifted = || played.asked.iter().filter(|a| a.era == Era::Returns);
        Self {
            exchanges: played.asked.len() as u64,
            exchanges_logged: logged.len() as u64,
            feedback: played.asked.iter().filter(|a| a.rated).count() as u64,
            alarm_kind: alarm.map(|(_, alarm)| alarm.kind.clone()),
            alarm_after_requests: alarm
                .zip(first_drifted)
                .map(|((at, _), first)| (at - first + 1) as u64),
            alarms_before_drift: before.len() as u64,
            adapter: run.adapter.clone(),
            examples_train: run.examples_train,
            examples_examined: run.examples_examined,
            loss_first: run.loss_first,
            loss_last: run.loss_last,
            format_valid_before: valid(drifted().filter(|a| !by_promoted(a))),
            format_valid_after: valid(drifted().filter(|a| by_promoted(a))),
            votes: run.votes,
            wins: run.wins,
            ties: run.ties,
            p_value: run.p_value,
            judge: run.judge.clone(),
            verdict: run.verdict.clone(),
            promoted: run.promoted,
            prompt_tokens_before: prompt_tokens(drifted().filter(|a| !by_promoted(a))),
            prompt_tokens_after: prompt_tokens(drifted().filter(|a| by_promoted(a))),
            seconds: round(seconds, 1),
            generations: Vec::new(),
        }
    }
}

pub(crate) fn valid<'a>(asked: impl Iterator<Item = &'a Asked>) -> Option<f64> {
    mean(
        asked
            .filter_map(|a| a.valid)
            .map(|valid| f64::from(u8::from(valid))),
    )
    .map(|share| round(share, 4))
}

/// Share of exactly right answers.
pub(crate) fn exact<'a>(asked: impl Iterator<Item = &'a Asked>) -> Option<f64> {
    mean(asked.map(|a| f64::from(u8::from(a.exact)))).map(|share| round(share, 4))
}

fn prompt_tokens<'a>(asked: impl Iterator<Item = &'a Asked>) -> Option<f64> {
    mean(asked.map(|a| a.prompt_tokens as f64)).map(|tokens| round(tokens, 1))
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0_u64), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / n as f64)
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::client::Alarm;

    fn asked(index: u64, drifted: bool, adapter: &str, valid: bool, prompt_tokens: u64) -> Asked {
        Asked {
            index,
            era: match drifted {
                true => Era::Returns,
                false => Era::Normal,
            },
            kind: "order".into(),
            text: String::new(),
            answer: String::new(),
            request_id: format!("id-{index}"),
            adapter: adapter.into(),
            valid: Some(valid),
            exact: valid,
            prompt_tokens,
            rated: index.is_multiple_of(2),
            corrected: false,
        }
    }

    fn alarm(request: u64) -> Alarm {
        Alarm {
            alarm: format!("a{request}"),
            adapter: "triage@base".into(),
            kind: "format".into(),
            request_id: format!("id-{request}"),
            exchanges: 0,
            log_e: 12.0,
            threshold_log: 11.0,
            evidence: serde_json::Value::Null,
        }
    }

    fn played() -> Played {
        let base = "triage@base";
        let mut all: Vec<_> = (0..4).map(|i| asked(i, false, base, true, 200)).collect();
        all.extend((4..8).map(|i| asked(i, true, base, i % 4 == 0, 200)));
        all.extend((8..10).map(|i| asked(i, true, "triage@1", true, 40)));
        let run = Run {
            adapter: Some("triage@1".into()),
            promoted: Some(true),
            votes: Some(3),
            wins: Some(2),
            ..Run::default()
        };
        Played {
            asked: all,
            alarms: vec![
                Alarm {
                    kind: "output".into(),
                    ..alarm(5)
                },
                alarm(6),
            ],
            run: Some(run),
        }
    }

    fn logged() -> Vec<String> {
        // The server took the fifth and the sixth the other way round.
        [0, 1, 2, 3, 5, 4, 6, 7, 8, 9]
            .iter()
            .map(|i| format!("id-{i}"))
            .collect()
    }

    #[test]
    fn figures_of_a_play_that_ends_well() {
        let summary = Summary::new(&played(), &logged(), 12.345);
        assert_eq!(
            (
                summary.exchanges,
                summary.exchanges_logged,
                summary.feedback
            ),
            (10, 10, 5)
        );
        assert_eq!(summary.alarm_kind.as_deref(), Some("format"));
        assert_eq!(
            (summary.alarm_after_requests, summary.alarms_before_drift),
            (Some(3), 0)
        );
        assert_eq!(
            (summary.format_valid_before, summary.format_valid_after),
            (Some(0.25), Some(1.0))
        );
        assert_eq!(
            (summary.prompt_tokens_before, summary.prompt_tokens_after),
            (Some(200.0), Some(40.0))
        );
        assert!((summary.seconds - 12.3).abs() < 1e-9);
    }

    #[test]
    fn an_alarm_before_the_drift_is_a_false_one() {
        let mut played = played();
        played.alarms.insert(0, alarm(2));
        let summary = Summary::new(&played, &logged(), 1.0);
        assert_eq!(
            (summary.alarms_before_drift, summary.alarm_after_requests),
            (1, Some(3))
        );
        played.alarms.truncate(1);
        let summary = Summary::new(&played, &logged(), 1.0);
        assert_eq!(
            (summary.alarms_before_drift, summary.alarm_after_requests),
            (1, None)
        );
        assert_eq!(summary.alarm_kind, None);
    }

    #[test]
    fn what_did_not_happen_is_null() {
        let mut played = played();
        played.asked.truncate(4);
        played.alarms.clear();
        played.run = None;
        let json = serde_json::to_value(Summary::new(&played, &logged()[..4], 1.0)).unwrap();
        let nulls = json
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, v)| v.is_null())
            .count();
        assert_eq!(nulls, 18);
        assert_eq!(json["exchanges"], 4);
    }

    #[test]
    fn the_keys_stand_in_the_documented_order() {
        let json = serde_json::to_value(Summary::new(&played(), &logged(), 1.0)).unwrap();
        let keys: Vec<_> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            keys.join(" "),
            "exchanges exchanges_logged feedback alarm_kind alarm_after_requests alarms_before_drift adapter \
             examples_train examples_examined loss_first loss_last format_valid_before format_valid_after votes wins \
             ties p_value judge verdict promoted prompt_tokens_before prompt_tokens_after seconds"
        );
    }
}
