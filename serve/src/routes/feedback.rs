//! `POST /v1/feedback`: what somebody says of an answer.
//!
//! Everybody's is kept, with the id of the key that it came by; whose corrections train is retraining's to decide.

use std::time::Instant;

use actix_web::{HttpRequest, HttpResponse, web};
use chrono::Utc;
use rand::Rng;
use retune_ledger::{ExchangeQuery, Feedback};
use serde_json::{Value, json};

use super::body;
use crate::error::Error;
use crate::keys::Caller;
use crate::state::App;

pub(crate) async fn create(
    app: web::Data<App>,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let caller = Caller::of(&http);
    app.rates.admit(caller.key_id.as_deref(), Instant::now())?;
    let params = body::params(payload, app.config.server.max_body_bytes).await?;
    let said = retune_wire::Feedback::read(params)?;
    for id in [Some(&said.completion_id), said.preferred_over.as_ref()] {
        if let Some(id) = id.filter(|id| !app.ledger.is_own_request_id(id)) {
            return Err(Error::NotFound(format!(
                "No completion '{id}' was made here."
            )));
        }
    }
    let feedback = Feedback {
        feedback_id: format!("fb-{:024x}", rand::rng().random::<u128>() >> 32),
        request_id: said.completion_id,
        ts: Utc::now(),
        source: said.source,
        rater: caller.key_id,
        rating: said.rating,
        correction: said.correction,
        rubric: said.rubric.map(Value::Object),
        comment: said.comment,
        preferred_over: said.preferred_over,
    };
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
