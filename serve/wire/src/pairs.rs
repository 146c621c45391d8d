//! What somebody says of two answers, as `POST /v1/pairs/{id}` takes it.

use retune_task::{Choice, Marks};

use crate::feedback::{marks, rubric};
use crate::params::Params;
use crate::refusal::Refusal;

/// Which of two answers is better, and what marks they have.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Which is better.
    pub choice: Choice,
    /// The left answer's marks, each 1 to 5.
    pub left: Marks,
    /// The right answer's.
    pub right: Marks,
}

impl Comparison {
    /// Reads a request.
    ///
    /// # Errors
    /// The parameter that is missing, wrong or not known.
    pub fn read(mut params: Params) -> Result<Self, Refusal> {
        let word = params.string("choice")?;
        let word = params.required("choice", word)?;
        let choice = Choice::read(&word).ok_or_else(|| {
            let message = format!(
                "Invalid value: '{word}'. Supported values are: 'left', 'right', and 'tie'."
            );
            Refusal::param("choice", "invalid_value", message)
        })?;
        let (mut left, mut right) = (Marks::new(), Marks::new());
        if let Some(both) = params.object("rubric")? {
            let mut both = Params::inner(both, "rubric");
            for (side, into) in [("left", &mut left), ("right", &mut right)] {
                if let Some(of) = both.object(side)? {
                    *into = marks(&rubric(of, &both.name(side))?);
                }
            }
            both.finish()?;
        }
        params.finish()?;
        Ok(Self {
            choice,
            left,
            right,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use serde_json::{Value, json};

    use super::*;

    fn read(body: &Value) -> Result<Comparison, Refusal> {
        Comparison::read(Params::parse(body.to_string().as_bytes())?)
    }

    #[test]
    fn all_of_it() {
        let body = json!({"choice": "left", "rubric": {"left": {"accuracy": 5, "style": 2}, "right": {"accuracy": 1}}});
        let read = read(&body).unwrap();
        assert_eq!(read.choice, Choice::Left);
        let marks = |of: &[(&str, f64)]| -> Marks {
            of.iter()
                .map(|(of, mark)| ((*of).to_owned(), *mark))
                .collect()
        };
        assert_eq!(read.left, marks(&[("accuracy", 5.0), ("style", 2.0)]));
        assert_eq!(read.right, marks(&[("accuracy", 1.0)]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, wanted) in [
            (json!({}), "choice"),
            (json!({"choice": "middle"}), "choice"),
            (json!({"choice": 1}), "choice"),
            (json!({"choice": "tie", "rubric": 3}), "rubric"),
            (
                json!({"choice": "tie", "rubric": {"left": 3}}),
                "rubric.left",
            ),
            (
                json!({"choice": "tie", "rubric": {"left": {"accuracy": 6}}}),
                "rubric.left.accuracy",
            ),
            (
                json!({"choice": "tie", "rubric": {"right": {"taste": 1}}}),
                "rubric.right.taste",
            ),
            (
                json!({"choice": "tie", "rubric": {"middle": {}}}),
                "rubric.middle",
            ),
            (json!({"choice": "tie", "why": "so"}), "why"),
        ] {
            match read(&body) {
                Err(Refusal { param, .. }) => assert_eq!(param.as_deref(), Some(wanted), "{body}"),
                _ => panic!("{body} was let through"),
            }
        }
    }
}
