//! The report as a page. Whatever was said in a request is text in it, and nothing else: askama escapes every value but the plots.

use askama::Template;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::Value;

use super::{Alarm, Report, plot};
use crate::error::Error;
use crate::streams::StreamReport;
use crate::why::{Cluster, Moved, Shares, Slice, Why};

/// Characters of a text that are shown.
const SHOWN: usize = 600;

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    made: String,
    streams: Vec<StreamRow<'a>>,
    alarms: Vec<AlarmPart<'a>>,
}

struct StreamRow<'a> {
    of: &'a StreamReport,
    state: &'static str,
    class: String,
    log_e: String,
    threshold: String,
    since: String,
    svg: String,
}

struct AlarmPart<'a> {
    alarm: &'a Alarm,
    crossed: String,
    change: String,
    evidence: String,
    threshold: String,
    budget: String,
    reference: String,
    test: String,
    leads: String,
    word: String,
    verdict: String,
    figures: Vec<(&'static str, String)>,
    views: Vec<(&'static str, Vec<Bar>)>,
    requests: Vec<RequestRow<'a>>,
    raw: String,
}

/// A share before and now.
struct Bar {
    what: String,
    usual: String,
    trouble: String,
    usual_width: String,
    trouble_width: String,
    z: String,
}

struct RequestRow<'a> {
    id: &'a str,
    ts: String,
    prompt: String,
    answer: String,
    reason: &'a str,
}

pub(super) fn html(report: &Report) -> Result<String, Error> {
    let streams = report.streams.iter().map(|stream| row(report, stream));
    let page = Page {
        made: time(report.made),
        streams: streams.collect::<Result<_, Error>>()?,
        alarms: report.alarms.iter().map(part).collect(),
    };
    page.render().map_err(|e| Error::Page(e.to_string()))
}

fn row<'a>(report: &Report, of: &'a StreamReport) -> Result<StreamRow<'a>, Error> {
    let key = (of.adapter.clone(), of.stream.to_string());
    let points = report.history.get(&key);
    Ok(StreamRow {
        of,
        state: of.state.as_str(),
        class: of.state.as_str().replace(' ', "-"),
        log_e: figure(of.log_e),
        threshold: figure(of.threshold_log),
        since: of.since.map_or_else(|| "–".to_owned(), time),
        svg: plot::evidence(points.map(Vec::as_slice).unwrap_or_default())?,
    })
}

fn part(alarm: &Alarm) -> AlarmPart<'_> {
    let trigger = &alarm.trigger;
    let evidence = &trigger.evidence;
    let text = |value: &Value| match value {
        Value::Null => "unknown".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let why = alarm.why.as_ref();
    let bars = |list: Vec<(String, Shares)>| list.into_iter().map(|(w, s)| bar(w, s)).collect();
    let phrases = why.map(|why| why.phrases.iter()).into_iter().flatten();
    let phrases = phrases.map(|Moved { phrase, shares }| (phrase.clone(), *shares));
    let clusters = why.map(|why| why.clusters.iter()).into_iter().flatten();
    let clusters = clusters.map(|Cluster { phrases, shares }| (phrases.join(", "), *shares));
    let slices = why.map(|why| why.slices.iter()).into_iter().flatten();
    let slices = slices.map(|Slice { by, value, shares }| (format!("{by} = {value}"), *shares));
    let budget = &evidence["budget"];
    AlarmPart {
        alarm,
        crossed: time(trigger.ts),
        change: text(&evidence["change"]["since"]),
        evidence: figure(Some(trigger.log_e)),
        threshold: figure(Some(trigger.threshold_log)),
        budget: format!(
            "{} false alarms a quarter of {} exchanges, divided among {} streams",
            text(&budget["false_alarms_per_quarter"]),
            text(&budget["exchanges_per_quarter"]),
            text(&budget["divided_among_streams"])
        ),
        reference: match &evidence["reference"] {
            Value::Null => "unknown".to_owned(),
            of => format!(
                "{} exchanges, frozen {}",
                of["exchanges"],
                text(&of["created"])
            ),
        },
        test: text(&evidence["test"]),
        leads: text(&evidence["leading_kind"]),
        word: alarm.word.as_ref().map_or_else(String::new, |word| {
            let by = word.by.as_deref().unwrap_or("somebody");
            let said = match word.silenced_until {
                Some(until) => format!("silenced until {}", time(until)),
                None => "acknowledged".to_owned(),
            };
            format!("{said} by {by}, {}: {}", time(word.at), word.reason)
        }),
        verdict: why.map_or_else(String::new, Why::verdict),
        figures: why.map_or_else(Vec::new, figures),
        views: vec![
            ("Words and phrases that moved", bars(phrases.collect())),
            ("Kinds of requests", bars(clusters.collect())),
            ("Where it sits", bars(slices.collect())),
        ],
        requests: alarm
            .requests
            .iter()
            .map(|request| RequestRow {
                id: &request.request_id,
                ts: time(request.ts),
                prompt: cut(&request.prompt),
                answer: cut(&request.answer),
                reason: request.format_reason.as_deref().unwrap_or("–"),
            })
            .collect(),
        raw: serde_json::to_string_pretty(evidence).unwrap_or_default(),
    }
}

fn figures(why: &Why) -> Vec<(&'static str, String)> {
    let lengths = why.lengths.map_or_else(
        || "–".to_owned(),
        |(statistic, p)| format!("{statistic:.3} (p = {p:.2e})"),
    );
    vec![
        ("usual conversations", why.usual.to_string()),
        (
            "conversations that are the trouble",
            why.trouble.to_string(),
        ),
        (
            "a classifier tells them apart (area under the curve; 0.5: not at all)",
            why.separable
                .map_or_else(|| "–".to_owned(), |area| format!("{area:.3}")),
        ),
        (
            "distance of their words (Jensen–Shannon)",
            format!("{:.3}", why.words_distance),
        ),
        ("distance of their lengths (Kolmogorov–Smirnov)", lengths),
        (
            "change of the kinds (population stability index)",
            format!("{:.3}", why.clusters_stability),
        ),
    ]
}

fn bar(what: String, shares: Shares) -> Bar {
    let percent = |share: f64| format!("{:.1}", share * 100.0);
    Bar {
        what,
        usual: percent(shares.usual),
        trouble: percent(shares.trouble),
        usual_width: percent(shares.usual.clamp(0.0, 1.0)),
        trouble_width: percent(shares.trouble.clamp(0.0, 1.0)),
        z: format!("{:+.1}", shares.z),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{} …", &text[..at]),
        None => text.to_owned(),
    }
}

fn figure(figure: Option<f64>) -> String {
    figure.map_or_else(|| "–".to_owned(), |figure| format!("{figure:.2}"))
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}
