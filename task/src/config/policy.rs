//! `[task.retrain]`: when a task's adapters are made anew, of what, by what, what they must not lose, and who says yes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::judge;
use super::reader::{Node, Section, Value};
use super::tasks::{open, words};
use super::{
    AlarmKind, ConfigSource, Decay, DpoPolicy, HeldOutBy, LoraPolicy, OtherTrainer, Promote,
    RetrainPolicy, Trainer, TrainerServer,
};
use crate::redact::Sensitive;
use crate::schedule::Schedule;
use crate::suite::Suite;

/// As PEFT names them; the last two are Phi-3's, which has several in one.
const LINEAR_MAPS: [(&str, &str); 9] = [
    ("q_proj", "q_proj"),
    ("k_proj", "k_proj"),
    ("v_proj", "v_proj"),
    ("o_proj", "o_proj"),
    ("gate_proj", "gate_proj"),
    ("up_proj", "up_proj"),
    ("down_proj", "down_proj"),
    ("qkv_proj", "qkv_proj"),
    ("gate_up_proj", "gate_up_proj"),
];

/// `[task.retrain.canary]`: a share of the live traffic for a candidate, until its users' ratings and its format tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CanaryPolicy {
    /// Of the conversations.
    pub share: f64,
    /// A candidate that the examination has shown to be better takes it, too, before it is promoted.
    pub always: bool,
    /// Time after which an undecided one ends.
    pub longest: Duration,
}

/// Prompts that a candidate has to answer as well as its baseline does, beside its task's.
#[derive(Debug, Clone)]
pub enum RegressionSuite {
    /// The program's own.
    Default,
    /// None.
    Off,
    /// The task's own, from a file.
    Own(Arc<Suite>),
}

/// Hours of the day in UTC, from the first one on until the second begins; over midnight where that is the smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    /// The first hour.
    pub from: u32,
    /// The hour that is outside again.
    pub until: u32,
}

impl Hours {
    /// Whether an hour of the day, 0 to 23, is among them.
    pub fn contains(self, hour: u32) -> bool {
        if self.from < self.until {
            (self.from..self.until).contains(&hour)
        } else {
            hour >= self.from || hour < self.until
        }
    }
}

fn hours_of_day(s: &mut Section<'_>) -> Option<Hours> {
    let expected = "two different hours of the day in UTC, such as [22, 6]";
    s.value("hours", expected, |value| match value {
        Value::List(list) => {
            let hour = |node: &Node| match node.value {
                Value::Integer(hour) => u32::try_from(hour).ok().filter(|hour| *hour < 24),
                _ => None,
            };
            match list.iter().map(hour).collect::<Option<Vec<u32>>>()?[..] {
                [from, until] if from != until => Some(Hours { from, until }),
                _ => None,
            }
        }
        _ => None,
    })
}

fn flag(s: &mut Section<'_>, key: &'static str) -> bool {
    let is_on = s.value(key, "true or false", |value| match value {
        Value::Bool(is_on) => Some(*is_on),
        _ => None,
    });
    is_on.unwrap_or(false)
}

/// A day, where nothing is said.
fn hours(s: &mut Section<'_>, key: &'static str) -> Duration {
    Duration::from_secs(3600 * s.count(key, 0, 24 * 366, 24))
}

pub(super) fn retrain(mut s: Section<'_>, source: &ConfigSource) -> RetrainPolicy {
    let wanted = "five cron fields, such as \"0 3 1 */3 *\"";
    let schedule = s.text("schedule", wanted).and_then(|(text, place)| {
        let schedule = Schedule::parse(&text);
        if schedule.is_none() {
            let key = s.path("schedule");
            s.log
                .add(&place, &key, format!("is {text:?}; expected {wanted}"));
        }
        schedule
    });
    let on = alarms(&mut s).unwrap_or_else(|| vec![AlarmKind::Format, AlarmKind::Quality]);
    let trainer = trainer(&mut s);
    let mut l = s.section("lora");
    let lora = LoraPolicy {
        r: l.size("r", 1, 1024, 16),
        alpha: l.positive("alpha", 4096.0).unwrap_or(32.0),
        rank_stabilised: flag(&mut l, "rank_stabilised"),
        target_modules: words(&mut l, "target_modules", "linear map", &LINEAR_MAPS)
            .unwrap_or_default(),
        dropout: l.share("dropout", 0.9).unwrap_or(0.0),
        epochs: l.size("epochs", 1, 100, 3),
        batch_size: l.size("batch_size", 1, 1024, 16),
        learning_rate: l.positive("learning_rate", 1.0),
        warmup: l.share("warmup", 0.9).unwrap_or(0.1),
        decay: l.word(
            "decay",
            &[
                ("cosine", Decay::Cosine),
                ("linear", Decay::Linear),
                ("constant", Decay::Constant),
            ],
            Decay::Cosine,
        ),
        clip: l.share("clip", 1000.0).unwrap_or(1.0),
        patience: l.size("patience", 0, 100, 0),
        recompute: flag(&mut l, "recompute"),
        sweep: sweep(&mut l),
        sweep_share: l.share("sweep_share", 1.0).unwrap_or(0.25),
    };
    l.finish();
    let mut d = s.section("dpo");
    let dpo = DpoPolicy {
        epochs: d.size("epochs", 0, 100, 0),
        beta: d.positive("beta", 10.0).unwrap_or(0.1),
        sft: d.share("sft", 10.0).unwrap_or(0.2),
        learning_rate: d.positive("learning_rate", 10.0).unwrap_or(0.1),
        min_preferences: d.size("min_preferences", 1, 10_000_000, 50),
    };
    d.finish();
    let mut c = s.section("canary");
    let canary = CanaryPolicy {
        share: c.part("share").unwrap_or(0.1),
        always: flag(&mut c, "always"),
        longest: Duration::from_secs(86_400 * c.count("max_days", 1, 365, 14)),
    };
    c.finish();
    let min_pairs = s.size("min_pairs", 16, 100_000, 150);
    let policy = RetrainPolicy {
        schedule,
        on,
        cool_down: hours(&mut s, "cool_down_hours"),
        roll_back_within: hours(&mut s, "roll_back_hours"),
        min_examples: s.size("min_examples", 10, 10_000_000, 200),
        min_new_examples: s.size("min_new_examples", 0, 10_000_000, 50),
        rating_at_least: u8::try_from(s.count("rating_at_least", 1, 5, 4)).unwrap_or(4),
        held_out_by: s.word(
            "held_out_by",
            &[
                ("conversation", HeldOutBy::Conversation),
                ("user", HeldOutBy::User),
            ],
            HeldOutBy::Conversation,
        ),
        personal: words(
            &mut s,
            "personal",
            "kind of personal data",
            &Sensitive::ALL.map(|k| (k.name(), k)),
        )
        .unwrap_or_else(|| vec![Sensitive::Secret, Sensitive::Card]),
        balance: s.between("balance", 1.0, 100.0),
        promote: s.word(
            "promote",
            &[("approve", Promote::Approve), ("auto", Promote::Auto)],
            Promote::Approve,
        ),
        min_pairs,
        max_pairs: s.size("max_pairs", min_pairs as u64, 100_000, min_pairs.max(400)),
        judge: judge::read(s.section("judge")),
        regression: regression(&mut s, source),
        slices: slices(&mut s),
        canary,
        hours: hours_of_day(&mut s),
        budget: s.positive("budget", 1e12),
        trainer,
        lora,
        dpo,
    };
    s.finish();
    policy
}

/// Wrong lines of a suite that are named.
const WRONG_LINES: usize = 20;

fn regression(s: &mut Section<'_>, source: &ConfigSource) -> RegressionSuite {
    let expected = "\"default\", \"off\", or a file with a suite, such as \"suite.jsonl\"";
    let Some((file, place)) = s.text("regression", expected) else {
        return RegressionSuite::Default;
    };
    match file.as_str() {
        "default" => return RegressionSuite::Default,
        "off" => return RegressionSuite::Off,
        _ => {}
    }
    let Some(text) = open(s, "regression", &file, &place, source) else {
        return RegressionSuite::Default;
    };
    let wrong = match Suite::parse(&text) {
        Ok(suite) => return RegressionSuite::Own(Arc::new(suite)),
        Err(wrong) => wrong,
    };
    let key = s.path("regression");
    let path = source.folder().join(&file);
    let path = path.display();
    for one in wrong.iter().take(WRONG_LINES) {
        let what = format!("{path}:{}: {}", one.line, one.what);
        s.log.add(&place, &key, what);
    }
    if wrong.len() > WRONG_LINES {
        let more = wrong.len() - WRONG_LINES;
        let what = format!(
            "{path}: {more} more lines are wrong; expected a prompt with its check in each"
        );
        s.log.add(&place, &key, what);
    }
    RegressionSuite::Default
}

fn slices(s: &mut Section<'_>) -> Vec<String> {
    let expected = "a list of up to 8 different keys of the requests' metadata, such as [\"team\", \"language\"]";
    let keys = s.value("slices", expected, |v| match v {
        Value::List(list) => {
            let key = |node: &Node| match &node.value {
                Value::Text(key) if !key.trim().is_empty() => Some(key.clone()),
                _ => None,
            };
            let keys: Vec<String> = list.iter().map(key).collect::<Option<_>>()?;
            let different: BTreeSet<&String> = keys.iter().collect();
            (keys.len() <= 8 && different.len() == keys.len()).then_some(keys)
        }
        _ => None,
    });
    keys.unwrap_or_default()
}

/// The alarms that start a run.
fn alarms(s: &mut Section<'_>) -> Option<Vec<AlarmKind>> {
    words(
        s,
        "on",
        "kind of alarm",
        &AlarmKind::ALL.map(|k| (k.as_str(), k)),
    )
}

fn sweep(l: &mut Section<'_>) -> Vec<f64> {
    let expected = "a list of numbers above 0 and at most 100, such as [0.5, 1.0, 2.0]";
    let rates = l.value("sweep", expected, |v| match v {
        Value::List(list) => {
            let rate = |node: &Node| match node.value {
                Value::Float(rate) => Some(rate),
                Value::Integer(rate) => Some(rate as f64),
                _ => None,
            };
            let rates: Option<Vec<f64>> = list.iter().map(rate).collect();
            rates.filter(|rates| rates.iter().all(|rate| (1e-6..=100.0).contains(rate)))
        }
        _ => None,
    });
    rates.unwrap_or_default()
}

/// What makes adapters, with what it needs.
fn trainer(s: &mut Section<'_>) -> Trainer {
    const OF_OWN: [&str; 1] = ["dpo"];
    const OF_COMMAND: [&str; 1] = ["command"];
    const OF_SERVER: [&str; 3] = ["trainer_url", "trainer_model", "trainer_api_key_env"];
    let words = [("native", 0), ("command", 1), ("openai", 2)];
    match s.word("trainer", &words, 0) {
        1 => {
            s.belong(&OF_OWN, "trainer = \"native\"");
            s.belong(&OF_SERVER, "trainer = \"openai\"");
            Trainer::Other(OtherTrainer::Command(command(s).unwrap_or_default()))
        }
        2 => {
            s.belong(&OF_COMMAND, "trainer = \"command\"");
            s.belong(&OF_OWN, "trainer = \"native\"");
            let url = needed(
                s,
                "trainer_url",
                "the server's address, such as \"https://trainer:8080/v1\"",
            );
            Trainer::Other(OtherTrainer::OpenAi(TrainerServer {
                url: url.trim_end_matches('/').to_owned(),
                model: needed(s, "trainer_model", "what the server calls the base"),
                api_key_env: s
                    .text("trainer_api_key_env", "a variable's name")
                    .map(|(name, _)| name),
            }))
        }
        _ => {
            s.belong(&OF_COMMAND, "trainer = \"command\"");
            s.belong(&OF_SERVER, "trainer = \"openai\"");
            Trainer::Native
        }
    }
}

fn command(s: &mut Section<'_>) -> Option<Vec<String>> {
    let expected = "a list of texts, the program and its arguments, such as [\"python3\", \"deploy/trl/train.py\"]";
    if !s.has("command") {
        missing(s, "command", expected);
    }
    s.value("command", expected, |v| match v {
        Value::List(list) if !list.is_empty() => {
            let text = |node: &Node| match &node.value {
                Value::Text(text) => Some(text.clone()),
                _ => None,
            };
            list.iter().map(text).collect()
        }
        _ => None,
    })
}

fn needed(s: &mut Section<'_>, key: &'static str, expected: &str) -> String {
    if !s.has(key) {
        missing(s, key, expected);
    }
    s.text(key, expected)
        .map(|(text, _)| text)
        .unwrap_or_default()
}

pub(super) fn missing(s: &Section<'_>, key: &str, expected: &str) {
    let what = format!("is missing; expected {expected}");
    s.log.add(&s.place, &s.path(key), what);
}
