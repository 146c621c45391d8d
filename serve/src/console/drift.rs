//! Alarms, why they are there, and what somebody says to them.

use std::collections::HashMap;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use chrono::{TimeDelta, Utc};
use retune_console::Place;
use retune_console::drift::{Alarm, AlarmPage, Page, Plot, Row, named};
use retune_console::overview::serves;
use retune_ledger::{Trigger, Window, WindowQuery, Word};

use super::form::Fields;
use super::{frame, page, page_with, quoted, see};
use crate::error::Error;
use crate::keys::Caller;
use crate::routes::alarms;
use crate::state::App;

/// Alarms that are listed, the newest.
const LISTED: usize = 100;
/// States of a stream that are looked at, the newest.
const STATES: usize = 3_000;
/// Requests of an alarm that are shown.
const SHOWN: usize = 10;
/// The longest silence, in hours.
const LONGEST: i64 = 8_760;

/// `GET /console/drift`.
pub(super) async fn show(app: web::Data<App>, http: HttpRequest) -> Result<HttpResponse, Error> {
    let (ledger, now) = (&app.ledger, Utc::now());
    let (mut alarms, mut streams) = (Vec::new(), Vec::new());
    let mut stages_of = HashMap::new();
    for task in &app.config.tasks {
        let stages = ledger.stages(&task.name).await?;
        for window in ledger.stream_states(&task.name).await? {
            if serves(&task.name, &stages, &window.adapter) {
                let of = WindowQuery {
                    task: task.name.clone(),
                    adapter: Some(window.adapter),
                    stream: Some(window.stream),
                    limit: Some(STATES),
                };
                streams.push(ledger.windows(&of).await?);
            }
        }
        stages_of.insert(task.name.as_str(), stages);
    }
    for trigger in ledger.triggers(None).await?.iter().rev().take(LISTED) {
        let word = ledger.last_word(trigger).await?;
        let stages = stages_of.get(trigger.task.as_str());
        let serves = stages.is_some_and(|stages| serves(&trigger.task, stages, &trigger.adapter));
        alarms.push(Row::of(trigger, word.as_ref(), serves, now));
    }
    let plot = |windows: &Vec<Window>| Plot::of(windows, streams.len());
    page(&Page {
        frame: frame(&app, &http, Place::Drift),
        alarms,
        streams: streams.iter().filter_map(plot).collect(),
    })
}

/// `GET /console/drift/{alarm}`.
pub(super) async fn one(
    app: web::Data<App>,
    http: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let trigger = alarms::find(&app, &id).await?;
    shown(&app, &http, StatusCode::OK, &trigger, None).await
}

async fn shown(
    app: &App,
    http: &HttpRequest,
    status: StatusCode,
    trigger: &Trigger,
    refused: Option<String>,
) -> Result<HttpResponse, Error> {
    let ledger = &app.ledger;
    let word = ledger.last_word(trigger).await?;
    let stages = ledger.stages(&trigger.task).await?;
    let ids = named(trigger);
    let ids: Vec<&str> = ids.iter().take(SHOWN).map(String::as_str).collect();
    let mut requests = ledger.exchanges_of(&ids).await?;
    requests.sort_by_key(|row| ids.iter().position(|id| *id == row.request_id));
    let of = WindowQuery {
        task: trigger.task.clone(),
        adapter: Some(trigger.adapter.clone()),
        stream: Some(trigger.kind.to_string()),
        limit: Some(STATES),
    };
    let windows = ledger.windows(&of).await?;
    let serves = serves(&trigger.task, &stages, &trigger.adapter);
    let mut around = frame(app, http, Place::Drift);
    if super::query(http).text("done").is_some() {
        around.notice = Some("It is kept.".to_owned());
    }
    page_with(
        status,
        &AlarmPage {
            frame: around,
            alarm: Alarm::of(trigger, word.as_ref(), serves, requests, Utc::now()),
            plot: Plot::of(&windows, 1),
            refused,
        },
    )
}

/// `POST /console/drift/{alarm}`.
pub(super) async fn say(
    app: web::Data<App>,
    http: HttpRequest,
    id: web::Path<String>,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let fields = Fields::of_form(&app, &http, payload).await?;
    let trigger = alarms::find(&app, &id).await?;
    let now = Utc::now();
    let until = match fields.required("action")? {
        "acknowledge" => Ok(None),
        "silence" => {
            let hours = fields.text("hours").and_then(|hours| hours.parse().ok());
            let hours = hours.filter(|hours| (1..=LONGEST).contains(hours));
            let until = hours.map(|hours| Some(now + TimeDelta::hours(hours)));
            until.ok_or_else(|| format!("A silence is of 1 to {LONGEST} hours."))
        }
        other => return Err(Error::NotFound(format!("There is no action '{other}'."))),
    };
    let word = until.and_then(|until| {
        let reason = fields.text("reason").unwrap_or_default();
        let word = Word::new(now, Caller::of(&http).key_id, reason, until);
        word.map_err(|error| error.to_string())
    });
    match word {
        Ok(word) => {
            alarms::say(&app, &trigger, &word).await?;
            Ok(see(format!("/console/drift/{}?done=1", quoted(&id))))
        }
        Err(refused) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            shown(&app, &http, status, &trigger, Some(refused)).await
        }
    }
}
