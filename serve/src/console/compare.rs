//! Blind pairs: what `GET` and `POST /v1/pairs` are for people.

use std::time::Instant;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use retune_console::Place;
use retune_console::compare::{Page, Pair};
use retune_wire::{Comparison, Params};
use serde_json::json;

use super::form::Fields;
use super::{frame, page_with, query, quoted, see};
use crate::error::Error;
use crate::keys::Caller;
use crate::routes::pairs::{self, Wanted};
use crate::state::App;

/// `GET /console/compare`.
pub(super) async fn show(app: web::Data<App>, http: HttpRequest) -> Result<HttpResponse, Error> {
    let fields = query(&http);
    let asked = (fields.text("task"), fields.text("after"));
    shown(&app, &http, StatusCode::OK, asked, None).await
}

async fn shown(
    app: &App,
    http: &HttpRequest,
    status: StatusCode,
    (task, after): (Option<&str>, Option<&str>),
    refused: Option<String>,
) -> Result<HttpResponse, Error> {
    let caller = Caller::of(http);
    let wanted = |after| Wanted {
        task,
        after,
        limit: 1,
    };
    let mut found = pairs::waiting(app, &caller, &wanted(after)).await?;
    if found.pairs.is_empty() && after.is_some() {
        // Those that were passed over come again once all others have a vote.
        found = pairs::waiting(app, &caller, &wanted(None)).await?;
    }
    let pair = found.pairs.pop().map(|pair| Pair {
        id: pair.id,
        task: pair.task,
        criteria: pair.criteria,
        messages: pair.messages.unwrap_or_default(),
        left: pair.left,
        right: pair.right,
    });
    page_with(
        status,
        &Page {
            frame: frame(app, http, Place::Compare),
            task: task.map(str::to_owned),
            pair,
            waiting: found.waiting,
            voted: found.voted,
            refused,
        },
    )
}

/// `POST /console/compare`.
pub(super) async fn vote(
    app: web::Data<App>,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let caller = Caller::of(&http);
    app.rates.admit(caller.key_id.as_deref(), Instant::now())?;
    let fields = Fields::of_form(&app, &http, payload).await?;
    let (id, task) = (fields.required("id")?, fields.text("task"));
    // The form's first button is none of the choices: Enter on a mark is no vote.
    let Some(choice) = fields.text("choice") else {
        let said = "Which of them is better? Marks alone are no vote.".to_owned();
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        return shown(&app, &http, status, (task, None), Some(said)).await;
    };
    let said = json!({
        "choice": choice,
        "rubric": { "left": fields.marks("left."), "right": fields.marks("right.") },
    });
    let said = Comparison::read(Params::parse(said.to_string().as_bytes())?)?;
    match pairs::cast(&app, caller, id, said).await {
        Ok(()) => {}
        // Somebody was quicker: the next one is shown.
        Err(error @ (Error::Conflict(_) | Error::NotFound(_))) => {
            let said = format!("Your last vote was not counted. {}", error.seen().message);
            return shown(&app, &http, StatusCode::CONFLICT, (task, None), Some(said)).await;
        }
        Err(error) => return Err(error),
    }
    let (id, task) = (
        quoted(id),
        task.map(|task| format!("&task={}", quoted(task))),
    );
    let task = task.unwrap_or_default();
    Ok(see(format!("/console/compare?after={id}{task}")))
}
