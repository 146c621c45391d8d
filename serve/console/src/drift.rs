//! What drifted: the streams over time, the alarms, and why each is there.
//!
//! An alarm's evidence is the monitor's, read as far as it is known: one of an earlier or a later version shows what it has.

use askama::Template;
use chrono::{DateTime, Utc};
use retune_ledger::evidence::{Shares, Why};
use retune_ledger::{Exchange, Trigger, Window, Word};
use retune_task::question;
use serde::Deserialize;

use crate::figures::{count, decimal, from_now, time};
use crate::frame::Frame;

/// All alarms, and the streams of those who serve.
#[derive(Template)]
#[template(path = "drift.html")]
pub struct Page {
    /// What is around it.
    pub frame: Frame,
    /// Newest first.
    pub alarms: Vec<Row>,
    /// One a stream.
    pub streams: Vec<Plot>,
}

/// An alarm in the list.
pub struct Row {
    pub(crate) alarm: String,
    pub(crate) task: String,
    pub(crate) adapter: String,
    pub(crate) kind: String,
    pub(crate) when: String,
    pub(crate) ago: String,
    pub(crate) state: &'static str,
}

impl Row {
    /// An alarm, what was said last to it, and whether its adapter still serves.
    pub fn of(trigger: &Trigger, word: Option<&Word>, serves: bool, now: DateTime<Utc>) -> Self {
        Self {
            alarm: trigger.alarm.clone(),
            task: trigger.task.clone(),
            adapter: trigger.adapter.clone(),
            kind: trigger.kind.to_string(),
            when: time(trigger.ts),
            ago: from_now(trigger.ts, now),
            state: match word {
                _ if !serves => "past",
                Some(word) if word.holds_back(now) => "silenced",
                Some(word) if word.quiets(now) => "acknowledged",
                _ => "alarm",
            },
        }
    }
}

/// A stream's evidence over time.
pub struct Plot {
    pub(crate) of: String,
    pub(crate) state: String,
    pub(crate) class: String,
    pub(crate) points: Vec<Point>,
}

pub(crate) struct Point {
    pub(crate) seconds: i64,
    pub(crate) when: String,
    pub(crate) log_e: String,
    pub(crate) threshold: String,
}

/// Points of all plots of a page together: more would weigh more than a page may.
const POINTS: usize = 400;

impl Plot {
    /// Of a stream's states, oldest first, as one of so many plots.
    pub fn of(windows: &[Window], plots: usize) -> Option<Self> {
        let last = windows.last()?;
        let most = (POINTS / plots.max(1)).max(2);
        // The last one is always there.
        let every = windows.len().div_ceil(most).max(1);
        let kept = windows.iter().rev().step_by(every);
        let mut points: Vec<Point> = kept
            .map(|window| Point {
                seconds: window.ts.timestamp(),
                when: time(window.ts),
                log_e: decimal(Some(window.log_e).filter(|x| x.is_finite()), 3),
                threshold: decimal(Some(window.threshold_log).filter(|x| x.is_finite()), 3),
            })
            .collect();
        points.reverse();
        Some(Self {
            of: format!("{}, {}", last.adapter, last.stream),
            state: last.state.clone(),
            class: last.state.replace(' ', "-"),
            points,
        })
    }
}

/// One alarm.
#[derive(Template)]
#[template(path = "alarm.html")]
pub struct AlarmPage {
    /// What is around it.
    pub frame: Frame,
    /// The alarm.
    pub alarm: Alarm,
    /// Its stream over time.
    pub plot: Option<Plot>,
    /// Why what was sent was not taken.
    pub refused: Option<String>,
}

/// An alarm with its evidence.
pub struct Alarm {
    pub(crate) row: Row,
    pub(crate) facts: Vec<(&'static str, String)>,
    pub(crate) verdict: Option<String>,
    pub(crate) word: Option<String>,
    pub(crate) views: Vec<(&'static str, Vec<Bar>)>,
    pub(crate) requests: Vec<Request>,
    pub(crate) raw: String,
}

/// A share before and now.
pub(crate) struct Bar {
    pub(crate) what: String,
    pub(crate) usual: String,
    pub(crate) trouble: String,
    pub(crate) z: String,
}

pub(crate) struct Request {
    pub(crate) id: String,
    pub(crate) when: String,
    pub(crate) asked: String,
    pub(crate) answered: String,
    pub(crate) format: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Evidence {
    change: Change,
    test: Option<String>,
    leading_kind: Option<String>,
    failing_request_ids: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Change {
    since: Option<String>,
}

fn bar(what: String, shares: Shares) -> Bar {
    let percent = |share: f64| format!("{:.1}", share * 100.0);
    Bar {
        what,
        usual: percent(shares.usual),
        trouble: percent(shares.trouble),
        z: format!("{:+.1}", shares.z),
    }
}

/// Requests that an alarm names: the most typical of the trouble first.
pub fn named(trigger: &Trigger) -> Vec<String> {
    let evidence = evidence(trigger);
    let mut ids: Vec<String> = why(trigger)
        .rows
        .into_iter()
        .map(|row| row.request_id)
        .collect();
    for id in evidence.failing_request_ids {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

fn evidence(trigger: &Trigger) -> Evidence {
    serde_json::from_value(trigger.evidence.clone()).unwrap_or_default()
}

/// As far as this version reads it.
fn why(trigger: &Trigger) -> Why {
    serde_json::from_value(trigger.evidence["why"].clone()).unwrap_or_default()
}

impl Alarm {
    /// An alarm, what was said last to it, and those of its requests that are still there.
    pub fn of(
        trigger: &Trigger,
        word: Option<&Word>,
        serves: bool,
        requests: Vec<Exchange>,
        now: DateTime<Utc>,
    ) -> Self {
        let evidence = evidence(trigger);
        let mut facts = vec![
            (
                "reached its threshold",
                format!(
                    "{} ({}), after {} observations",
                    time(trigger.ts),
                    from_now(trigger.ts, now),
                    count(trigger.exchanges)
                ),
            ),
            (
                "evidence",
                format!(
                    "{:.2} of {:.2} wanted",
                    trigger.log_e, trigger.threshold_log
                ),
            ),
        ];
        let optional = [
            ("the change began", evidence.change.since),
            ("test", evidence.test),
            ("leads", evidence.leading_kind),
        ];
        facts.extend(
            optional
                .into_iter()
                .filter_map(|(what, said)| Some((what, said?))),
        );
        let why = why(trigger);
        if why.trouble > 0 {
            let groups = format!(
                "{} conversations, beside {} usual ones",
                why.trouble, why.usual
            );
            facts.push(("trouble", groups));
            facts.push(("told apart", decimal(why.separable, 3)));
            facts.push(("distance of words", decimal(Some(why.words_distance), 3)));
        }
        let phrases = why.phrases.iter();
        let phrases = phrases.map(|of| bar(of.phrase.clone(), of.shares));
        let kinds = why.clusters.iter();
        let kinds = kinds.map(|of| bar(of.phrases.join(", "), of.shares));
        let parts = why.slices.iter();
        let parts = parts.map(|of| bar(format!("{} = {}", of.by, of.value), of.shares));
        let views = [
            ("Words and phrases that moved", phrases.collect::<Vec<_>>()),
            ("Kinds of requests", kinds.collect()),
            ("Where it sits", parts.collect()),
        ];
        Self {
            row: Row::of(trigger, word, serves, now),
            facts,
            verdict: why.separable.is_some().then(|| why.verdict()),
            word: word.map(|word| {
                let by = word.by.as_deref().unwrap_or("somebody");
                let what = match word.silenced_until {
                    Some(until) => format!("silenced until {}", time(until)),
                    None => "acknowledged".to_owned(),
                };
                format!(
                    "{what} by {by}, {}: {}",
                    from_now(word.at, now),
                    word.reason
                )
            }),
            views: views
                .into_iter()
                .filter(|(_, bars)| !bars.is_empty())
                .collect(),
            requests: requests.into_iter().map(request).collect(),
            raw: serde_json::to_string_pretty(&trigger.evidence).unwrap_or_default(),
        }
    }
}

fn request(row: Exchange) -> Request {
    let asked = question(row.messages.as_deref().unwrap_or_default());
    Request {
        when: time(row.ts),
        asked: asked.unwrap_or("not kept").to_owned(),
        answered: row.answer.unwrap_or_default(),
        format: row.format_reason.unwrap_or_default(),
        id: row.request_id,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use askama::Template as _;
    use chrono::TimeDelta;

    use super::*;
    use crate::Place;

    #[test]
    fn a_year_of_many_streams_is_a_small_page_with_what_is_newest() {
        let begin = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let window = |stream: usize, n: i64| Window {
            ts: begin + TimeDelta::hours(3 * n),
            task: "support".to_owned(),
            adapter: "support@12".to_owned(),
            stream: format!("stream {stream}"),
            state: "not enough data".to_owned(),
            exchanges: 1,
            failures: 0,
            log_e: -12.345,
            threshold_log: 17.727,
        };
        for plots in [1, 5, 40] {
            let of = |stream| {
                let windows: Vec<Window> = (0..3_000).map(|n| window(stream, n)).collect();
                Plot::of(&windows, plots).unwrap()
            };
            let page = Page {
                frame: crate::Frame {
                    place: Place::Drift,
                    role: None,
                    key_id: None,
                    token: String::new(),
                    notice: None,
                },
                alarms: Vec::new(),
                streams: (0..plots).map(of).collect(),
            };
            let newest = time(begin + TimeDelta::hours(3 * 2_999));
            for plot in &page.streams {
                assert!(plot.points.len() >= 2);
                assert_eq!(plot.points.last().unwrap().when, newest);
            }
            let html = page.render().unwrap();
            assert_eq!(html.matches(&newest).count(), plots);
            // What a page's files leave of 200 kB.
            assert!(html.len() < 75_000, "{plots} plots: {}", html.len());
        }
        assert!(Plot::of(&[], 1).is_none());
    }
}
