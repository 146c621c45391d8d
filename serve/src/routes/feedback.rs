//! `POST /v1/feedback`: what somebody says of an answer.
//!
//! Everybody's is kept, with the id of the key that it came by; whose corrections train is retraining's to decide.

use std::sync::Arc;
use std::time::Instant;

use actix_web::{HttpRequest, HttpResponse, web};
use chrono::Utc;
use rand::Rng;
use retune_ledger::Feedback;
use retune_task::Task;
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
    let id = keep(&app, caller, retune_wire::Feedback::read(params)?).await?;
    Ok(HttpResponse::Created().json(json!({ "feedback_id": id })))
}

/// Keeps what somebody said; the id under which it is kept.
pub(crate) async fn keep(
    app: &App,
    caller: Caller,
    said: retune_wire::Feedback,
) -> Result<String, Error> {
    for id in [Some(&said.completion_id), said.preferred_over.as_ref()] {
        if let Some(id) = id.filter(|id| !app.ledger.is_own_request_id(id)) {
            return Err(Error::NotFound(format!(
                "No completion '{id}' was made here."
            )));
        }
    }
    let feedback = Feedback {
        feedback_id: new_id(),
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
    if let Some(feedback) = withheld(app, feedback).await? {
        app.ledger.append_feedback(feedback).await?;
    }
    app.metrics.feedback.with_label_values(&[&rating]).inc();
    Ok(id)
}

/// Takes back all that somebody said of an answer.
pub(crate) async fn take_back(
    app: &App,
    caller: Caller,
    request_id: &str,
    source: &str,
) -> Result<(), Error> {
    let source = Some(source.to_owned());
    let row = Feedback::taking_back(new_id(), request_id, source, caller.key_id);
    Ok(app.ledger.append_feedback(row).await?)
}

fn new_id() -> String {
    format!("fb-{:024x}", rand::rng().random::<u128>() >> 32)
}

/// The feedback as the task of its exchange lets it be kept; none where nothing is left of it. The exchange is looked for only where a task
/// withholds anything; one that cannot be found (yet, on another machine) gets every task's care.
async fn withheld(app: &App, feedback: Feedback) -> Result<Option<Feedback>, Error> {
    let tasks = &app.config.tasks;
    let says_nothing = feedback.correction.is_none() && feedback.comment.is_none();
    if says_nothing || tasks.iter().all(|task| task.privacy.keeps_all()) {
        return Ok(Some(feedback));
    }
    let found = app.ledger.exchange(&feedback.request_id).await?;
    // Of no task, or of one that is gone: no care is asked for.
    let is_its = |task: &&Arc<Task>| match &found {
        Some(row) => row.task.as_ref() == Some(&task.name),
        None => true,
    };
    let its: Vec<_> = tasks.iter().filter(is_its).cloned().collect();
    let ledger = app.ledger.clone();
    // A long text takes its time, and others wait for this thread.
    let withheld = web::block(move || {
        its.iter().try_fold(feedback, |feedback, task| {
            ledger.withhold_feedback(feedback, &task.privacy, found.as_ref())
        })
    });
    withheld
        .await
        .map_err(|e| Error::Engine(format!("feedback could not be looked through: {e}")))
}
