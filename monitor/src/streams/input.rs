//! Do people ask for something else? Windows of conversations against a frozen sample, an e-CUSUM over them.
//!
//! Two lengths of windows at once: short ones notice a new topic soon, long ones a change that is spread thin. The mean of both
//! statistics is an e-detector that is read once a short window at most, so its threshold is that of as many windows as there
//! are in a quarter (Shin, Ramdas and Rinaldo 2024, arXiv 2203.03532).
//!
//! A sample that is not ten times a window is no yardstick to call people by: its luck would be in every window. It warns.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use retune_ledger::Cursor;
use retune_stats::{Effort, WindowCusum};
use serde_json::{Value, json};

use super::rates::Crossing;
use super::told::Standing;
use crate::features::ngrams::Counts;
use crate::features::{Compared, Said, Space};

/// Conversations of a short window, and the fewest of any.
pub const SHORT: usize = 200;
const LONG: usize = 1_000;
/// A long window ends after so many days if it has as many as a short one.
const LONGEST_DAYS: i64 = 7;
/// So many short windows have to fit into a sample that calls people.
const WINDOWS_IN_SAMPLE: usize = 10;
/// Until there is an alarm, small p values are worth their price: more permutations, fewer windows.
const BEFORE: Effort = Effort {
    permutations: 9_999,
    exceedances: 10,
};
const AFTER: Effort = Effort {
    permutations: 999,
    exceedances: 10,
};
/// Windows kept for the evidence.
const PATH: usize = 50;

/// An app's request, as this stream sees it.
pub struct Prompt {
    /// Its place in the order.
    pub cursor: Cursor,
    /// Whose prompt it is.
    pub request_id: String,
    /// The conversation that it belongs to.
    pub conversation: String,
    /// What it says.
    pub said: Arc<Said>,
}

/// An adapter's windows and their statistic.
pub struct Input {
    space: Space,
    threshold_log: f64,
    scales: [Scale; 2],
    exchanges: u64,
    windows: u64,
    first: Option<DateTime<Utc>>,
    crossing: Option<Crossing>,
    path: Vec<Value>,
    /// The words that the adapter was trained on, and how far those of the last long window were from them.
    training: Option<Counts>,
    training_distance: Option<f64>,
}

/// Windows of one length.
struct Scale {
    size: usize,
    rows: Vec<(String, Arc<Said>)>,
    conversations: HashSet<String>,
    since: Option<DateTime<Utc>>,
    cusum: WindowCusum,
    /// When the windows began that speak for a change.
    change: Option<DateTime<Utc>>,
}

impl Input {
    /// `threshold_log` is that of a statistic that is read with each exchange.
    pub fn new(space: Space, threshold_log: f64) -> Self {
        let scale = |size| Scale {
            size,
            rows: Vec::new(),
            conversations: HashSet::new(),
            since: None,
            cusum: WindowCusum::default(),
            change: None,
        };
        Self {
            space,
            threshold_log: (threshold_log - (SHORT as f64).ln()).max(0.0),
            scales: [scale(SHORT), scale(LONG)],
            exchanges: 0,
            windows: 0,
            first: None,
            crossing: None,
            path: Vec::new(),
            training: None,
            training_distance: None,
        }
    }

    /// With the words that the adapter was trained on.
    pub fn trained_on(self, training: Option<Counts>) -> Self {
        Self { training, ..self }
    }

    /// The Jensen-Shannon distance of the last long window's words to those of the training examples, from 0 to 1. A figure to look at: few
    /// texts are far from any, and a trained adapter may well answer what it was not trained on.
    pub fn training_distance(&self) -> Option<f64> {
        self.training_distance
    }

    /// Takes the adapter's next prompt; what the tests of the windows said that ended with it.
    pub fn observe(&mut self, prompt: &Prompt) -> Vec<Compared> {
        self.exchanges += 1;
        self.first.get_or_insert(prompt.cursor.ts);
        let mut tested = Vec::new();
        for at in 0..self.scales.len() {
            self.scales[at].take(prompt);
            if self.scales[at].is_full(prompt.cursor.ts) {
                tested.push(self.test(at, prompt));
            }
        }
        tested
    }

    fn test(&mut self, at: usize, last: &Prompt) -> Compared {
        let scale = &mut self.scales[at];
        let effort = if self.crossing.is_none() {
            BEFORE
        } else {
            AFTER
        };
        self.windows += 1;
        let window = scale.window();
        if let (LONG, Some(training)) = (scale.size, &self.training) {
            let mut words = Counts::default();
            window.iter().for_each(|said| words.extend(said.counts()));
            self.training_distance = Some(training.distance(&words));
        }
        let compared = self.space.compare(&window, effort, self.windows);
        if scale.cusum.log_e() <= 0.0 {
            scale.change = scale.since;
        }
        scale.cusum.observe(compared.p);
        scale.end();
        let log_e = self.log_e();
        self.path.push(json!({
            "until": last.cursor.ts, "conversations": window.len(), "p_words": compared.words, "p_meanings": compared.meanings,
            "p": compared.p, "log_e": log_e,
        }));
        if self.path.len() > PATH {
            self.path.remove(0);
        }
        if self.crossing.is_none() && log_e >= self.threshold_log {
            self.crossing = Some(Crossing {
                ts: last.cursor.ts,
                request_id: last.request_id.clone(),
                exchanges: self.exchanges,
                log_e,
                evidence: self.evidence(),
            });
        }
        compared
    }

    /// The natural logarithm of the mean of both lengths' statistics.
    pub fn log_e(&self) -> f64 {
        let logs = || self.scales.iter().map(|scale| scale.cusum.log_e());
        let highest = logs().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logs().map(|log| (log - highest).exp()).sum();
        highest + (sum / self.scales.len() as f64).ln()
    }

    /// Where the threshold was reached, if it was.
    pub fn crossing(&self) -> Option<&Crossing> {
        self.crossing.as_ref()
    }

    /// What is told of it.
    pub fn standing(&self) -> Standing<'_> {
        Standing {
            exchanges: self.exchanges,
            failures: 0,
            first: self.first,
            log_e: self.log_e(),
            threshold_log: self.threshold_log,
            is_enough: self.windows > 0,
            crossing: self.crossing(),
        }
    }

    /// Whether there is a sample to compare with.
    pub fn has_sample(&self) -> bool {
        self.space.size() >= SHORT
    }

    /// Whether the sample is large enough to call people by.
    pub fn calls(&self) -> bool {
        self.space.size() >= WINDOWS_IN_SAMPLE * SHORT
    }

    /// Everything but texts: which test, since when, and the windows.
    fn evidence(&self) -> Value {
        let leader = self.scales.iter();
        let leader = leader.max_by(|a, b| a.cusum.log_e().total_cmp(&b.cusum.log_e()));
        let scales = self.scales.iter().map(|scale| {
            json!({"conversations": scale.size, "log_e": scale.cusum.log_e(), "windows_since_change": scale.cusum.since_change()})
        });
        json!({
            "test": "mean discrepancy of hashed n-grams and of embeddings, shared permutations, Holm, e-CUSUM over windows of two lengths",
            "sample_conversations": self.space.size(),
            "has_embeddings": self.space.has_meanings(),
            "windows": self.windows,
            "lengths": scales.collect::<Vec<_>>(),
            "change": {"since": leader.and_then(|scale| scale.change)},
            "path": self.path,
        })
    }
}

impl Scale {
    fn take(&mut self, prompt: &Prompt) {
        self.since.get_or_insert(prompt.cursor.ts);
        self.conversations.insert(prompt.conversation.clone());
        let row = (prompt.conversation.clone(), prompt.said.clone());
        self.rows.push(row);
    }

    fn is_full(&self, now: DateTime<Utc>) -> bool {
        let conversations = self.conversations.len();
        let age = self.since.map_or(TimeDelta::zero(), |since| now - since);
        conversations >= self.size
            || (conversations >= SHORT && age > TimeDelta::days(LONGEST_DAYS))
    }

    /// The window's conversations, in the order in which they began.
    fn window(&self) -> Vec<Said> {
        let mut window: Vec<Said> = Vec::new();
        let mut at = HashMap::new();
        for (conversation, said) in &self.rows {
            let at = *at.entry(conversation.as_str()).or_insert_with(|| {
                window.push(Said::default());
                window.len() - 1
            });
            window[at].extend(said);
        }
        window
    }

    fn end(&mut self) {
        self.rows.clear();
        self.conversations.clear();
        self.since = None;
    }
}
