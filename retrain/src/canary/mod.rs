//! A canary's test: is a candidate, which answers a share of the live traffic, worse than the champion, which answers the rest?
//!
//! Two streams are compared: whether answers hold the task's format, and whether people are content with them. Each has two tests that may
//! be looked at after every outcome: "the canary fails no more often" is given up where it is worse, "it fails more often by
//! a margin" where it is not. Worse in one stream is worse; to pass, it has to be shown not worse in all. Pure; `watch`
//! feeds it from the ledger and carries out what it says.

mod watch;

use retune_stats::{Side, TwoRates};

use crate::verdict::MARGIN;

pub(crate) use watch::watch;

/// How much more often raters may be left discontent before it counts: their words are fewer than answers, and differ more.
const CONTENT_MARGIN: f64 = 0.1;
/// The chance that a canary no worse than the champion is called worse, in all streams together.
const FALSE_ALARM: f64 = 0.05;
/// The chance that one worse by the margin passes.
const FALSE_PASS: f64 = 0.05;

/// Who answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Arm {
    Canary,
    Champion,
}

/// What the traffic says so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    Open,
    Worse,
    NotWorse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stream {
    /// An answer holds the format.
    Format,
    /// Whoever rated an answer was content, and did not correct it.
    Content,
}

/// One stream's two tests.
#[derive(Debug, Clone)]
struct Compared {
    what: &'static str,
    /// Of failures: against "the canary has no more".
    worse: TwoRates,
    /// Of successes: against "the canary has fewer, by the margin or more".
    not_worse: TwoRates,
}

impl Compared {
    fn new(what: &'static str, margin: f64) -> Self {
        Self {
            what,
            worse: TwoRates::new(0.0),
            not_worse: TwoRates::new(-margin),
        }
    }

    fn shown(&self, bounds: (f64, f64)) -> String {
        let of = |side| {
            let tally = self.worse.tally(side);
            (tally.hits, tally.count())
        };
        let ((canary, of_canary), (champion, of_champion)) = (of(Side::First), of(Side::Second));
        format!(
            "{canary} of {of_canary} of the canary's answers {}, {champion} of {of_champion} of the champion's (log e-value of worse {:.1}, \
             {:.1} shows it; of not worse {:.1}, {:.1} shows it)",
            self.what,
            self.worse.highest_log_e(),
            bounds.0,
            self.not_worse.highest_log_e(),
            bounds.1,
        )
    }
}

/// The canary beside the champion.
#[derive(Debug, Clone)]
pub(crate) struct Beside {
    format: Option<Compared>,
    content: Compared,
}

impl Beside {
    /// `has_format`: whether the task has one.
    pub(crate) fn new(has_format: bool) -> Self {
        Self {
            format: has_format.then(|| Compared::new("break the format", MARGIN)),
            content: Compared::new("left whoever rated them discontent", CONTENT_MARGIN),
        }
    }

    pub(crate) fn observe(&mut self, stream: Stream, arm: Arm, good: bool) {
        let compared = match stream {
            Stream::Format => self.format.as_mut(),
            Stream::Content => Some(&mut self.content),
        };
        let Some(compared) = compared else { return };
        let side = match arm {
            Arm::Canary => Side::First,
            Arm::Champion => Side::Second,
        };
        compared.worse.observe(side, !good);
        compared.not_worse.observe(side, good);
    }

    pub(crate) fn told(&self) -> Told {
        let (worse, not_worse) = self.bounds();
        if self.streams().any(|of| of.worse.highest_log_e() >= worse) {
            Told::Worse
        } else if self
            .streams()
            .all(|of| of.not_worse.highest_log_e() >= not_worse)
        {
            Told::NotWorse
        } else {
            Told::Open
        }
    }

    /// The figures, in words.
    pub(crate) fn shown(&self) -> String {
        let bounds = self.bounds();
        let streams: Vec<String> = self.streams().map(|of| of.shown(bounds)).collect();
        streams.join("; ")
    }

    /// Log e-values from which a stream is worse, and not worse. Any stream can raise a false alarm, so they share its chance.
    fn bounds(&self) -> (f64, f64) {
        let streams = self.streams().count() as f64;
        ((streams / FALSE_ALARM).ln(), (1.0 / FALSE_PASS).ln())
    }

    fn streams(&self) -> impl Iterator<Item = &Compared> {
        self.format.iter().chain([&self.content])
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
