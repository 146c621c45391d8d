//! `POST /v1/feedback`: what somebody says of an answer.
//!
//! Everybody's is kept, with the id of the key that it came by; whose corrections train is retraining's to decide.

use std::time::Instant;

use actix_web::{HttpRequest, HttpResponse, web};
use chrono::Utc;
use rand::Rng;
use retune_ledger::{ExchangeQuery, Feedback};
use retune_wire::{Params, Refusal};
use serde_json::{Map, Value, json};

use super::body;
use crate::error::Error;
use crate::keys::Caller;
use crate::state::App;

/// What a rubric may rate, each 1 to 5.
const RUBRIC: [&str; 4] = ["accuracy", "relevance", "style", "usefulness"];

pub(crate) async fn create(
    app: web::Data<App>,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let caller = Caller::of(&http);
    app.rates.admit(caller.key_id.as_deref(), Instant::now())?;
    let mut feedback = read(body::params(payload, app.config.server.max_body_bytes).await?)?;
    feedback.rater = caller.key_id;
    if !app.ledger.is_own_request_id(&feedback.request_id) {
        return Err(Error::NotFound(format!(
            "No completion '{}' was made here.",
            feedback.request_id
        )));
    }
    let rating = feedback
        .rating
        .map_or_else(|| "none".to_owned(), |r| r.to_string());
    let id = feedback.feedback_id.clone();
    let feedback = withheld(&app, feedback).await?;
    app.ledger.append_feedback(feedback).await?;
    app.metrics.feedback.with_label_values(&[&rating]).inc();
    Ok(HttpResponse::Created().json(json!({ "feedback_id": id })))
}

/// The feedback as the task of its exchange lets it be kept. The exchange is looked for only where a task withholds anything; one that
/// cannot be found (yet, on another machine) gets every task's care.
async fn withheld(app: &App, feedback: Feedback) -> Result<Feedback, Error> {
    let tasks = &app.config.tasks;
    let says_nothing = feedback.correction.is_none() && feedback.comment.is_none();
    if says_nothing || tasks.iter().all(|task| task.privacy.redaction.is_empty()) {
        return Ok(feedback);
    }
    let query = ExchangeQuery {
        request_id: Some(feedback.request_id.clone()),
        limit: Some(1),
        ..ExchangeQuery::default()
    };
    let found = app.ledger.exchanges(&query).await?.pop();
    let of_task = found.as_ref().and_then(|row| {
        let name = row.task.as_deref()?;
        let task = tasks.iter().find(|task| task.name == name)?;
        Some((&task.privacy.redaction, row.conversation.as_str()))
    });
    let scope = feedback.request_id.clone();
    Ok(match (of_task, found.is_some()) {
        (Some((redaction, conversation)), _) => {
            app.ledger
                .withhold_feedback(feedback, redaction, conversation)
        }
        // Of no task, or of one that is gone.
        (None, true) => feedback,
        (None, false) => tasks.iter().fold(feedback, |feedback, task| {
            let redaction = &task.privacy.redaction;
            app.ledger.withhold_feedback(feedback, redaction, &scope)
        }),
    })
}

fn read(mut params: Params) -> Result<Feedback, Refusal> {
    let p = &mut params;
    let request_id = p.string("completion_id")?;
    let request_id = p.required("completion_id", request_id)?;
    let rating = grade(p, "rating")?;
    let correction = p.string("correction")?;
    let rubric = p.object("rubric")?.map(rubric).transpose()?;
    let comment = p.string("comment")?;
    let source = p.string("source")?;
    params.finish()?;
    if rating.is_none() && correction.is_none() && rubric.is_none() && comment.is_none() {
        let message = "Missing required parameter: at least one of 'rating', 'correction', 'rubric', 'comment'.";
        return Err(Refusal::param(
            "rating",
            "missing_required_parameter",
            message,
        ));
    }
    Ok(Feedback {
        feedback_id: format!("fb-{:024x}", rand::rng().random::<u128>() >> 32),
        request_id,
        ts: Utc::now(),
        source,
        rater: None,
        rating,
        correction,
        rubric,
        comment,
    })
}

fn grade(p: &mut Params, key: &str) -> Result<Option<u8>, Refusal> {
    Ok(p.integer(key, 1, 5)?.and_then(|n| u8::try_from(n).ok()))
}

fn rubric(members: Map<String, Value>) -> Result<Value, Refusal> {
    let mut p = Params::inner(members, "rubric");
    let mut rubric = Map::new();
    for key in RUBRIC {
        if let Some(n) = grade(&mut p, key)? {
            rubric.insert(key.to_owned(), Value::from(n));
        }
    }
    p.finish()?;
    Ok(Value::Object(rubric))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use super::*;

    fn read_value(body: &Value) -> Result<Feedback, Refusal> {
        read(Params::parse(body.to_string().as_bytes())?)
    }

    #[test]
    fn all_of_it() {
        let all = json!({"completion_id": "chatcmpl-1", "rating": 4, "correction": "so", "comment": "why",
            "rubric": {"accuracy": 5, "style": 1}, "source": "app"});
        let feedback = read_value(&all).unwrap();
        assert_eq!(
            (feedback.rating, feedback.correction.as_deref()),
            (Some(4), Some("so"))
        );
        assert_eq!(feedback.rubric, Some(json!({"accuracy": 5, "style": 1})));
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
            match read_value(&body) {
                Err(Refusal { param, .. }) => {
                    assert_eq!(param.as_deref(), Some(wanted), "{body}")
                }
                _ => panic!("{body} was let through"),
            }
        }
    }
}
