//! `[task.retrain.judge]`: who says which of two answers is better.

use std::time::Duration;

use super::engine;
use super::policy::missing;
use super::reader::Section;

/// The longest text of what makes an answer better, in characters.
const CRITERIA: usize = 4_000;

/// `[task.retrain.judge]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgePolicy {
    /// Who compares a candidate's answers with its baseline's.
    pub by: JudgedBy,
    /// What makes an answer better, in words, for models and people.
    pub criteria: Option<String>,
    /// How long pairs of answers wait for people.
    pub longest: Duration,
}

/// Who compares answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JudgedBy {
    /// Nobody: the one that is nearer to the answer known to be right is better.
    KnownAnswer,
    /// A model, and people may check it.
    Model(JudgeModel),
    /// People.
    People,
}

/// A model at a server that speaks OpenAI's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgeModel {
    /// The server's address, `/v1` included, without a slash at the end.
    pub url: String,
    /// The model's name there.
    pub model: String,
    /// The variable with the key, if the server wants one.
    pub api_key_env: Option<String>,
}

pub(super) fn read(mut s: Section<'_>) -> JudgePolicy {
    const OF_MODEL: [&str; 3] = ["url", "model", "api_key_env"];
    const OF_BOTH: [&str; 2] = ["criteria", "days"];
    let words = [("known-answer", 0), ("model", 1), ("people", 2)];
    let by = match s.word("by", &words, 0) {
        1 => {
            let (url, model) = (
                "the server's address, such as \"https://api.openai.com/v1\"",
                "the judge's name at the server",
            );
            for (key, expected) in [("url", url), ("model", model)] {
                if !s.has(key) {
                    missing(&s, key, expected);
                }
            }
            JudgedBy::Model(JudgeModel {
                url: format!("{}/v1", engine::url(&mut s).unwrap_or_default()),
                model: s
                    .text("model", model)
                    .map(|(name, _)| name)
                    .unwrap_or_default(),
                api_key_env: engine::variable(&mut s),
            })
        }
        people => {
            s.belong(&OF_MODEL, "by = \"model\"");
            match people {
                2 => JudgedBy::People,
                _ => JudgedBy::KnownAnswer,
            }
        }
    };
    if by == JudgedBy::KnownAnswer {
        s.belong(&OF_BOTH, "by = \"model\" and by = \"people\"");
    }
    let policy = JudgePolicy {
        by,
        criteria: criteria(&mut s),
        longest: Duration::from_secs(86_400 * s.count("days", 1, 365, 14)),
    };
    s.finish();
    policy
}

fn criteria(s: &mut Section<'_>) -> Option<String> {
    let expected = "what makes an answer better, in words";
    let (text, place) = s.text("criteria", expected)?;
    let characters = text.chars().count();
    if characters > CRITERIA {
        let what = format!("has {characters} characters; expected at most {CRITERIA}");
        s.log.add(&place, &s.path("criteria"), what);
    }
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}
