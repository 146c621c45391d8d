//! `/admin/alarms`: what the monitor found, and what somebody says to it.
//!
//! An alarm that somebody acknowledged calls nobody any more, and what it asked for goes on; one that is silenced for a time starts
//! nothing either. Both want a reason: whoever looks next must know why it is quiet.

use actix_web::{HttpRequest, HttpResponse, web};
use chrono::{DateTime, SecondsFormat, Utc};
use retune_ledger::{Trigger, Word};
use retune_wire::Params;
use serde_json::{Value, json};

use super::body;
use crate::error::Error;
use crate::keys::Caller;
use crate::state::App;

const ACTIONS: &str = "acknowledge, silence";

/// `GET /admin/alarms`: oldest first.
pub(crate) async fn list(app: web::Data<App>) -> Result<HttpResponse, Error> {
    let mut data = Vec::new();
    for alarm in app.ledger.triggers(None).await? {
        let word = app.ledger.last_word(&alarm).await?;
        data.push(item(&alarm, word.as_ref()));
    }
    Ok(HttpResponse::Ok().json(json!({ "object": "list", "data": data })))
}

/// `POST /admin/alarms/{alarm}/{action}`.
pub(crate) async fn act(
    app: web::Data<App>,
    http: HttpRequest,
    path: web::Path<(String, String)>,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let (id, action) = path.into_inner();
    if !ACTIONS.split(", ").any(|a| a == action) {
        return Err(Error::NotFound(format!(
            "There is no action '{action}': it is one of {ACTIONS}."
        )));
    }
    let alarm = find(&app, &id).await?;
    let mut params = body::optional_params(payload, app.config.server.max_body_bytes).await?;
    let now = Utc::now();
    let reason = params.string("reason")?;
    let reason = params.required("reason", reason)?;
    let silenced_until = match action.as_str() {
        "silence" => Some(until(&mut params, now)?),
        _ => None,
    };
    params.finish()?;
    let word = Word::new(now, Caller::of(&http).key_id, &reason, silenced_until)
        .map_err(|error| Error::param("reason", "invalid_value", error.to_string()))?;
    say(&app, &alarm, &word).await?;
    Ok(HttpResponse::Ok().json(item(&alarm, Some(&word))))
}

/// The alarm of an id.
pub(crate) async fn find(app: &App, id: &str) -> Result<Trigger, Error> {
    let alarms = app.ledger.triggers(None).await?;
    let alarm = alarms.into_iter().find(|alarm| alarm.alarm == id);
    alarm.ok_or_else(|| {
        Error::NotFound(format!(
            "There is no alarm '{id}': GET /admin/alarms lists them."
        ))
    })
}

/// Keeps a word to an alarm.
pub(crate) async fn say(app: &App, alarm: &Trigger, word: &Word) -> Result<(), Error> {
    app.ledger.say(alarm, word).await?;
    tracing::info!(
        alarm = alarm.alarm,
        silenced_until = word.silenced_until.map(|until| until.to_rfc3339()),
        by = word.by,
        "somebody spoke to an alarm"
    );
    Ok(())
}

fn item(alarm: &Trigger, word: Option<&Word>) -> Value {
    let mut item = json!(alarm);
    item["word"] = json!(word);
    item
}

fn until(params: &mut Params, now: DateTime<Utc>) -> Result<DateTime<Utc>, Error> {
    let written = params.string("until")?;
    let written = params.required("until", written)?;
    let until = DateTime::parse_from_rfc3339(&written).map(|time| time.to_utc());
    until.ok().filter(|until| *until > now).ok_or_else(|| {
        let now = now.to_rfc3339_opts(SecondsFormat::Secs, true);
        Error::param(
            "until",
            "invalid_value",
            format!(
                "'{written}' is not a time to come; expected one as RFC 3339 has it, after {now}."
            ),
        )
    })
}
