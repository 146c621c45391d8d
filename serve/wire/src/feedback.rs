//! What somebody says of an answer, as `POST /v1/feedback` takes it.

use retune_task::{CRITERIA, Marks};
use serde_json::{Map, Value};

use crate::params::Params;
use crate::refusal::Refusal;

/// At least one thing is said.
#[derive(Debug, Clone, PartialEq)]
pub struct Feedback {
    /// Of which answer.
    pub completion_id: String,
    /// 1 to 5.
    pub rating: Option<u8>,
    /// What the answer should have been.
    pub correction: Option<String>,
    /// Of accuracy, relevance, style and usefulness those that were rated, each 1 to 5.
    pub rubric: Option<Map<String, Value>>,
    /// In words.
    pub comment: Option<String>,
    /// Another answer, which is worse.
    pub preferred_over: Option<String>,
    /// Where it comes from, in the app's words.
    pub source: Option<String>,
}

impl Feedback {
    /// Reads a request.
    ///
    /// # Errors
    /// The parameter that is missing, wrong or not known.
    pub fn read(mut params: Params) -> Result<Self, Refusal> {
        let p = &mut params;
        let id = p.string("completion_id")?;
        let feedback = Self {
            completion_id: p.required("completion_id", id)?,
            rating: grade(p, "rating")?,
            correction: p.string("correction")?,
            rubric: match p.object("rubric")? {
                Some(marks) => Some(rubric(marks, "rubric")?),
                None => None,
            },
            comment: p.string("comment")?,
            preferred_over: p.string("preferred_over")?,
            source: p.string("source")?,
        };
        params.finish()?;
        // A form's empty field would take the place of what somebody has corrected before.
        if feedback
            .correction
            .as_ref()
            .is_some_and(|text| text.trim().is_empty())
        {
            let message = "Invalid value: 'correction' is empty; expected the right answer, or no 'correction'.";
            return Err(Refusal::param("correction", "invalid_value", message));
        }
        if feedback.says_nothing() {
            let message = "Missing required parameter: at least one of 'rating', 'correction', 'rubric', 'comment', 'preferred_over'.";
            return Err(Refusal::param(
                "rating",
                "missing_required_parameter",
                message,
            ));
        }
        if feedback.preferred_over.as_ref() == Some(&feedback.completion_id) {
            let message = "Invalid value: 'preferred_over' names the same completion as 'completion_id'; expected another one.";
            return Err(Refusal::param("preferred_over", "invalid_value", message));
        }
        Ok(feedback)
    }

    fn says_nothing(&self) -> bool {
        self.rating.is_none()
            && self.correction.is_none()
            && self.rubric.is_none()
            && self.comment.is_none()
            && self.preferred_over.is_none()
    }
}

fn grade(p: &mut Params, key: &str) -> Result<Option<u8>, Refusal> {
    Ok(p.integer(key, 1, 5)?.and_then(|n| u8::try_from(n).ok()))
}

/// Checks an answer's marks, which stand at `path`.
pub(crate) fn rubric(
    members: Map<String, Value>,
    path: &str,
) -> Result<Map<String, Value>, Refusal> {
    let mut p = Params::inner(members, path);
    let mut rubric = Map::new();
    for key in CRITERIA {
        if let Some(n) = grade(&mut p, key)? {
            rubric.insert(key.to_owned(), Value::from(n));
        }
    }
    p.finish()?;
    Ok(rubric)
}

/// The same as numbers.
pub(crate) fn marks(rubric: &Map<String, Value>) -> Marks {
    let mark = |(of, mark): (&String, &Value)| Some((of.clone(), mark.as_f64()?));
    rubric.iter().filter_map(mark).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use serde_json::json;

    use super::*;

    fn read(body: &Value) -> Result<Feedback, Refusal> {
        Feedback::read(Params::parse(body.to_string().as_bytes())?)
    }

    #[test]
    fn all_of_it() {
        let all = json!({"completion_id": "chatcmpl-1", "rating": 4, "correction": "so", "comment": "why",
            "rubric": {"accuracy": 5, "style": 1}, "source": "app", "preferred_over": "chatcmpl-2"});
        let feedback = read(&all).unwrap();
        assert_eq!(
            (feedback.rating, feedback.correction.as_deref()),
            (Some(4), Some("so"))
        );
        assert_eq!(
            feedback.rubric.map(Value::Object),
            Some(json!({"accuracy": 5, "style": 1}))
        );
        assert_eq!(feedback.preferred_over.as_deref(), Some("chatcmpl-2"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, wanted) in [
            (json!({"rating": 4}), "completion_id"),
            (json!({"completion_id": "x"}), "rating"),
            (json!({"completion_id": "x", "rating": 6}), "rating"),
            (json!({"completion_id": "x", "rating": 4.5}), "rating"),
            (json!({"completion_id": "x", "correction": 1}), "correction"),
            (
                json!({"completion_id": "x", "preferred_over": "x"}),
                "preferred_over",
            ),
            (
                json!({"completion_id": "x", "rubric": {"accuracy": 0}}),
                "rubric.accuracy",
            ),
            (
                json!({"completion_id": "x", "rubric": {"taste": 3}}),
                "rubric.taste",
            ),
            (
                json!({"completion_id": "x", "rating": 1, "stars": 5}),
                "stars",
            ),
        ] {
            match read(&body) {
                Err(Refusal { param, .. }) => {
                    assert_eq!(param.as_deref(), Some(wanted), "{body}")
                }
                _ => panic!("{body} was let through"),
            }
        }
    }
}
