//! One adapter, and what is decided of it, after a question.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use chrono::Utc;
use retune_console::Place;
use retune_console::adapters::{Decide, Page, Row, actions, facts, history};
use retune_ledger::{AdapterRef, standings};
use retune_wire::Params;
use serde_json::json;

use super::form::Fields;
use super::{frame, page, page_with, query, quoted, see};
use crate::error::Error;
use crate::keys::Caller;
use crate::routes::adapters::Named;
use crate::state::App;

/// `GET /console/adapters/{name}`.
pub(super) async fn one(
    app: web::Data<App>,
    http: HttpRequest,
    name: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let (named, adapter) = find(&app, &name).await?;
    let (stages, now) = (app.ledger.stages(&named.task).await?, Utc::now());
    let decided = app.ledger.stages_history(&named.task).await?;
    let mut around = frame(&app, &http, Place::Runs);
    if query(&http).text("done").is_some() {
        around.notice = Some("It is decided.".to_owned());
    }
    page(&Page {
        frame: around,
        row: Row::of(&adapter, &stages, app.adapters.is_loaded(&adapter), now),
        facts: facts(&adapter),
        history: history(&standings(&decided, adapter.number), now),
        actions: actions(stages.stage(adapter.number)),
    })
}

/// `GET /console/adapters/{name}/{action}`: the question.
pub(super) async fn ask(
    app: web::Data<App>,
    http: HttpRequest,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Error> {
    let (name, action) = path.into_inner();
    asked(&app, &http, StatusCode::OK, (&name, &action), None).await
}

async fn asked(
    app: &App,
    http: &HttpRequest,
    status: StatusCode,
    (name, action): (&str, &str),
    refused: Option<String>,
) -> Result<HttpResponse, Error> {
    let (named, adapter) = find(app, name).await?;
    let stages = app.ledger.stages(&named.task).await?;
    let stage = stages.stage(adapter.number);
    if !actions(stage).contains(&action) {
        return Err(Error::Conflict(format!(
            "{name} is {}: nothing called '{action}' can be decided of it.",
            stage.as_str()
        )));
    }
    page_with(
        status,
        &Decide {
            frame: frame(app, http, Place::Runs),
            name: name.to_owned(),
            action: action.to_owned(),
            champion: stages.champion_name(&named.task),
            seq: stages.seq,
            refused,
        },
    )
}

/// `POST /console/adapters/{name}/{action}`: the answer is yes.
pub(super) async fn decide(
    app: web::Data<App>,
    http: HttpRequest,
    path: web::Path<(String, String)>,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let (name, action) = path.into_inner();
    let fields = Fields::of_form(&app, &http, payload).await?;
    let (named, _) = find(&app, &name).await?;
    let said = said(&fields, &action)?;
    let by = Caller::of(&http).key_id.or(Some("console".to_owned()));
    match named.decide(&app, &action, by, said).await {
        Ok(()) => Ok(see(format!("/console/adapters/{}?done=1", quoted(&name)))),
        // What was seen is so no longer, or what was written will not do: the question is asked anew.
        Err(error @ (Error::Conflict(_) | Error::Invalid(_) | Error::Adapter { .. })) => {
            let seen = error.seen();
            let refused = Some(seen.message);
            asked(&app, &http, seen.status, (&name, &action), refused).await
        }
        Err(error) => Err(error),
    }
}

/// A form as `POST /admin/adapters/{name}/{action}` would have it.
fn said(fields: &Fields, action: &str) -> Result<Params, Error> {
    if !["promote", "canary", "shadow", "rollback", "reject"].contains(&action) {
        return Err(Error::NotFound(format!("There is no action '{action}'.")));
    }
    let number = |name: &str| fields.text(name).and_then(|text| text.parse::<f64>().ok());
    let seq = fields.text("seq").and_then(|seq| seq.parse::<u64>().ok());
    let mut said = json!({
        "reason": fields.required("reason")?,
        "expected_champion": fields.required("champion")?,
        "expected_seq": seq,
    });
    if let Some(percent) = number("share") {
        said["share"] = json!(percent / 100.0);
    }
    Ok(Params::parse(said.to_string().as_bytes())?)
}

/// An adapter; the baseline is none.
async fn find(app: &App, name: &str) -> Result<(Named, AdapterRef), Error> {
    let named = Named::find(app, name).await?;
    let adapter = named.adapter.clone();
    let adapter = adapter.ok_or_else(|| {
        Error::NotFound(format!(
            "{name} is the base with the task's full prompt: there is nothing to decide of it."
        ))
    })?;
    Ok((named, adapter))
}
