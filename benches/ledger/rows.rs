//! Rows as a busy installation writes them, from a seed: support questions and JSON answers of Zipf-distributed words, three adapters one
//! after the other, a rating for one in twenty.

use chrono::{DateTime, TimeDelta, Utc};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use retune_ledger::{Exchange, Feedback, Ledger, Purpose};
use retune_task::{ChatMessage, conversation};
use serde_json::json;

/// As many as a fluent speaker uses.
const WORDS: usize = 20_000;
/// Characters of a question; with the answer and all else a row is about 1 kB of JSON.
const QUESTION: usize = 230;
const REASON: usize = 60;
/// Time that the rows stretch over.
pub(crate) const DAYS: i64 = 100;
/// One row in so many has a rating.
const RATED: u64 = 20;

/// A seeded source of rows.
pub(crate) struct Source {
    rng: StdRng,
    words: Vec<String>,
    all: u64,
    next: u64,
    until: DateTime<Utc>,
}

impl Source {
    pub(crate) fn new(seed: u64, all: u64, until: DateTime<Utc>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let words = (0..WORDS).map(|_| word(&mut rng)).collect();
        Self {
            rng,
            words,
            all,
            next: 0,
            until,
        }
    }

    /// The next row, and what was said of it; none at the end.
    pub(crate) fn row(&mut self, ledger: &Ledger) -> Option<(Exchange, Option<Feedback>)> {
        if self.next == self.all {
            return None;
        }
        let n = self.next;
        self.next += 1;
        let share = n as f64 / self.all as f64;
        let back = (DAYS * 86_400_000_000) as f64 * (1.0 - share);
        let ts = self.until - TimeDelta::microseconds(back as i64);
        let request_id = ledger.new_request_id_at(ts);
        let messages = vec![ChatMessage::new("user", self.text(QUESTION))];
        let team = ["billing", "orders", "accounts", "shipping"][self.rng.random_range(0..4)];
        let answer =
            json!({"team": team, "urgent": self.rng.random_bool(0.1), "reason": self.text(REASON)});
        let adapter = 1 + (share * 3.0) as u32;
        let is_valid = self.rng.random_bool(0.97);
        let rated = n.is_multiple_of(RATED).then(|| Feedback {
            feedback_id: format!("fb-{:024x}", self.rng.random::<u128>() >> 32),
            request_id: request_id.clone(),
            ts: ts + TimeDelta::hours(3),
            source: Some("app".into()),
            rater: Some(format!("key-{}", n % 7)),
            rating: Some(self.rng.random_range(1..=5)),
            correction: None,
            rubric: None,
            comment: None,
            preferred_over: None,
        });
        let exchange = Exchange {
            request_id,
            replica: ledger.replica().to_owned(),
            seq: n,
            ts,
            purpose: Purpose::User,
            task: Some("triage".into()),
            model_requested: "triage".into(),
            adapter: Some(format!("triage@{adapter}")),
            adapter_digest: Some(retune_task::sha256(&adapter.to_string())),
            stage: Some("champion".into()),
            base: "pocket".into(),
            api_key_id: Some(format!("key-{}", n % 3)),
            user: Some(format!("user-{}", self.rng.random_range(0..50_000))),
            metadata: None,
            conversation: conversation(&messages),
            messages: Some(messages),
            answer: Some(answer.to_string()),
            tool_calls: None,
            finish_reason: Some("stop".into()),
            prompt_tokens: self.rng.random_range(60..90),
            completion_tokens: self.rng.random_range(20..40),
            time_to_first_token_ms: Some(self.rng.random_range(5.0..50.0)),
            duration_ms: self.rng.random_range(50.0..500.0),
            parameters: json!({"temperature": 0.0, "max_tokens": 256}),
            code: 200,
            format_valid: Some(is_valid),
            format_reason: (!is_valid).then(|| "not_json".into()),
            run_id: None,
        };
        Some((exchange, rated))
    }

    fn text(&mut self, characters: usize) -> String {
        let mut text = String::with_capacity(characters + 12);
        while text.len() < characters {
            // Zipf's law: the rank's logarithm is uniform.
            let rank = (WORDS as f64).powf(self.rng.random::<f64>()) as usize - 1;
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(&self.words[rank]);
        }
        text
    }
}

fn word(rng: &mut StdRng) -> String {
    let syllables = [
        "ba", "ker", "lo", "min", "ta", "ri", "so", "ven", "du", "pel", "ny", "gra", "ost", "ix",
        "um", "e",
    ];
    let n = rng.random_range(1..=4);
    (0..n)
        .map(|_| syllables[rng.random_range(0..syllables.len())])
        .collect()
}
