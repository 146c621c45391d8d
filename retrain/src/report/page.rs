//! The report as a page of its own. Whatever was said in a request is text in it, and nothing else: askama escapes every value but the
//! plot.

use askama::Template;
use chrono::SecondsFormat;

use super::parts::Part;
use super::{Report, Sample, plot};
use crate::Error;
use crate::regression::Lost;
use crate::text::cut;

/// Characters of a text that are shown.
const SHOWN: usize = 800;

#[derive(Template)]
#[template(path = "run.html")]
struct Page<'a> {
    report: &'a Report,
    began: String,
    ended: String,
    candidate: &'a str,
    losses: String,
    funnel: Vec<Bar>,
    compared: Vec<[String; 3]>,
    votes: Option<[Bar; 3]>,
    slices: Vec<Part>,
    suite: Vec<Part>,
    lost: Vec<Lost>,
    pages: [(&'static str, Vec<Pair>); 2],
    settings: String,
}

/// A count, and its width as a share of the largest, in percent.
struct Bar {
    what: String,
    count: u64,
    width: String,
}

struct Pair {
    request_id: String,
    prompt: String,
    known: String,
    candidate: String,
    baseline: String,
}

fn bar(what: impl Into<String>, count: u64, of: u64) -> Bar {
    Bar {
        what: what.into(),
        count,
        width: format!("{:.1}", 100.0 * count as f64 / of.max(1) as f64),
    }
}

impl Report {
    /// For people: one file, without a word from elsewhere.
    pub(crate) fn html(&self) -> Result<String, Error> {
        let time =
            |time: &chrono::DateTime<chrono::Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
        let page = Page {
            report: self,
            began: time(&self.started),
            ended: time(&self.finished),
            candidate: self.adapter.as_deref().unwrap_or("no candidate"),
            losses: plot::losses(&self.curve)?,
            funnel: self.funnel(),
            compared: self.compared(),
            votes: self.figures.as_ref().map(|figures| {
                let all = figures.examined();
                [
                    bar("won", figures.wins, all),
                    bar("lost", figures.losses, all),
                    bar("alike", figures.ties, all),
                ]
            }),
            slices: self.slice_parts(),
            suite: self.suite_parts(),
            lost: self.lost_in_suite(),
            pages: [("Won", pairs(&self.won)), ("Lost", pairs(&self.lost))],
            settings: self.lineage(),
        };
        page.render()
            .map_err(|error| Error::Page(error.to_string()))
    }

    /// From all exchanges to what was learned from.
    fn funnel(&self) -> Vec<Bar> {
        let all = self.dataset.exchanges;
        let mut bars = vec![bar("exchanges", all, all)];
        bars.extend(
            self.dataset
                .left_out()
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .map(|(what, count)| bar(format!("− {what}"), count, all)),
        );
        bars.push(bar("usable", self.dataset.kept(), all));
        let synthetic = self.dataset.kept_synthetic;
        if synthetic > 0 {
            bars.push(bar("of them synthetic", synthetic, all));
        }
        bars.push(bar("trained on", self.examples_train, all));
        bars.push(bar("chose the checkpoint", self.examples_development, all));
        bars.push(bar("held out", self.examples_held_out, all));
        bars
    }

    /// Figures of the candidate and of what it was held against.
    fn compared(&self) -> Vec<[String; 3]> {
        let mut rows = Vec::new();
        if let Some(figures) = &self.figures {
            for (what, paired) in [
                ("keeps the format", figures.format),
                ("about the known length", figures.length),
            ] {
                rows.push([
                    what.to_owned(),
                    format!("{} of {}", paired.candidate, paired.prompts),
                    format!("{} of {}", paired.baseline, paired.prompts),
                ]);
            }
        }
        if let Some(cost) = &self.cost {
            let (now, then) = (cost.candidate_tokens, cost.baseline_tokens);
            for (what, now, then) in [
                ("prompt tokens, mean", now.prompt, then.prompt),
                ("answer tokens, mean", now.completion, then.completion),
            ] {
                rows.push([what.to_owned(), format!("{now:.1}"), format!("{then:.1}")]);
            }
        }
        rows
    }

    /// What the regression suite lost.
    fn lost_in_suite(&self) -> Vec<Lost> {
        let lost = self.regression.iter().flat_map(|suite| &suite.lost);
        let shown = lost.map(|lost| Lost {
            name: lost.name.clone(),
            prompt: cut(&lost.prompt, SHOWN),
            check: cut(&lost.check, SHOWN),
            candidate: cut(&lost.candidate, SHOWN),
            baseline: cut(&lost.baseline, SHOWN),
        });
        shown.collect()
    }

    /// What it came from.
    fn lineage(&self) -> String {
        let digest = self.digest.as_deref().unwrap_or("none");
        let of = self.lineage.as_ref();
        let of = of.map(|of| {
            format!(
                "; examples {}; Retune {}; policy: {}",
                of.examples_sha256, of.version, of.policy
            )
        });
        format!(
            "digest {digest}; compared with {}; tables: exchanges at version {}, feedback at version {}{}",
            self.baseline,
            self.exchanges_version,
            self.feedback_version,
            of.unwrap_or_default()
        )
    }
}

fn pairs(samples: &[Sample]) -> Vec<Pair> {
    let pair = |sample: &Sample| Pair {
        request_id: sample.request_id.clone(),
        prompt: cut(&sample.prompt, SHOWN),
        known: cut(&sample.known, SHOWN),
        candidate: cut(&sample.candidate, SHOWN),
        baseline: cut(&sample.baseline, SHOWN),
    };
    samples.iter().map(pair).collect()
}
