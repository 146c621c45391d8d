//! What operators and `retune retrain` do with adapters, and what they can see of runs and alarms.

use actix_web::{HttpResponse, web};
use retune_ledger::{AdapterRef, Stage, Stages};
use retune_task::ModelName;
use serde_json::{Value, json};

use super::body;
use crate::error::Error;
use crate::routing::{TaskRoutes, adapter_name, baseline_name};
use crate::state::App;

pub(crate) async fn adapters(app: web::Data<App>) -> Result<HttpResponse, Error> {
    app.refresh().await?;
    let table = app.table.load();
    let data: Vec<Value> = table
        .tasks()
        .flat_map(|t| t.adapters.values().map(|a| item(&app, t, a)))
        .collect();
    Ok(HttpResponse::Ok().json(json!({ "object": "list", "data": data })))
}

pub(crate) async fn runs(app: web::Data<App>) -> Result<HttpResponse, Error> {
    Ok(HttpResponse::Ok().json(json!({ "object": "list", "data": app.ledger.runs().await? })))
}

pub(crate) async fn alarms(app: web::Data<App>) -> Result<HttpResponse, Error> {
    Ok(HttpResponse::Ok()
        .json(json!({ "object": "list", "data": app.ledger.triggers(None).await? })))
}

/// `POST /admin/adapters/{name}/{action}`.
pub(crate) async fn act(
    app: web::Data<App>,
    path: web::Path<(String, String)>,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let (name, action) = path.into_inner();
    if !matches!(action.as_str(), "load" | "unload" | "promote" | "reject") {
        return Err(Error::NotFound(format!(
            "There is no action '{action}': it is one of load, unload, promote, reject."
        )));
    }
    app.refresh().await?;
    let table = app.table.load_full();
    let unknown = || Error::NotFound(format!("There is no adapter '{name}'."));
    let (routes, number) = match ModelName::parse(&name) {
        Some(ModelName::Adapter { task, number }) => {
            (table.task(&task).ok_or_else(unknown)?, Some(number))
        }
        Some(ModelName::Baseline(task)) if action == "promote" => {
            (table.task(&task).ok_or_else(unknown)?, None)
        }
        _ => return Err(unknown()),
    };
    let adapter = number
        .map(|n| routes.adapters.get(&n).ok_or_else(unknown))
        .transpose()?;
    match (action.as_str(), adapter) {
        ("promote", _) => promote(&app, routes, adapter, payload).await?,
        ("load", Some(adapter)) => {
            app.adapters.ensure(adapter, &[]).await?;
        }
        ("unload", Some(adapter)) => {
            no_traffic(routes, adapter)?;
            app.adapters.unload(adapter)?;
        }
        (_, Some(adapter)) => reject(&app, routes, adapter).await?,
        (_, None) => return Err(unknown()),
    }
    let table = app.table.load();
    let shown = table
        .task(&routes.task.name)
        .zip(adapter)
        .map(|(t, a)| item(&app, t, a));
    Ok(HttpResponse::Ok()
        .json(shown.unwrap_or_else(|| json!({ "name": name, "stage": "champion" }))))
}

/// Makes `adapter` the champion (`None`: the baseline) if the present one is who the caller thinks.
async fn promote(
    app: &App,
    routes: &TaskRoutes,
    adapter: Option<&std::sync::Arc<AdapterRef>>,
    payload: web::Payload,
) -> Result<(), Error> {
    let mut params = body::params(payload, app.config.server.max_body_bytes).await?;
    let expected = params.string("expected_champion")?;
    let expected = params.required("expected_champion", expected)?;
    params.finish()?;
    let champion = routes.champion();
    if expected != champion {
        return Err(Error::Conflict(format!(
            "The champion of {} is {champion}, not {expected}.",
            routes.task.name
        )));
    }
    let next = adapter.map(|a| a.number);
    if let Some(adapter) = adapter {
        if routes.stage(adapter.number) == Stage::Rejected {
            return Err(Error::Conflict(format!(
                "{}@{} was rejected.",
                adapter.task, adapter.number
            )));
        }
        // Before it gets traffic it is in memory and has answered once.
        app.adapters.ensure(adapter, &[champion]).await?;
    }
    write(app, routes, promoted(&routes.stages, next)).await
}

/// The stages after `next` became the champion; the old one is a step away.
fn promoted(stages: &Stages, next: Option<u32>) -> Stages {
    let mut after = stages.clone();
    if after.champion == next {
        return after;
    }
    if let Some(old) = after.champion {
        after.stage_of.insert(old, Stage::Retired);
    }
    if let Some(new) = next {
        after.stage_of.insert(new, Stage::Champion);
        if after
            .canary
            .as_ref()
            .is_some_and(|(number, _)| *number == new)
        {
            after.canary = None;
        }
    }
    after.champion = next;
    after
}

async fn reject(
    app: &App,
    routes: &TaskRoutes,
    adapter: &std::sync::Arc<AdapterRef>,
) -> Result<(), Error> {
    no_traffic(routes, adapter)?;
    let mut after = routes.stages.clone();
    after.stage_of.insert(adapter.number, Stage::Rejected);
    write(app, routes, after).await?;
    if app.adapters.is_loaded(adapter) {
        app.adapters.unload(adapter)?;
    }
    Ok(())
}

async fn write(app: &App, routes: &TaskRoutes, after: Stages) -> Result<(), Error> {
    let task = &routes.task.name;
    match app.ledger.set_stages(task, routes.stages.seq, after).await {
        Ok(_) => app.refresh().await,
        Err(retune_ledger::Error::Conflict { .. }) => Err(Error::Conflict(format!(
            "The stages of {task} were changed by somebody else at this moment. Look again."
        ))),
        Err(e) => Err(e.into()),
    }
}

fn no_traffic(routes: &TaskRoutes, adapter: &AdapterRef) -> Result<(), Error> {
    if routes.in_traffic().any(|a| a.number == adapter.number) {
        let name = adapter_name(&adapter.task, adapter.number);
        let baseline = baseline_name(&adapter.task);
        return Err(Error::Conflict(format!(
            "{name} gets traffic; promote another, or {baseline}, first."
        )));
    }
    Ok(())
}

fn item(app: &App, routes: &TaskRoutes, adapter: &AdapterRef) -> Value {
    json!({
        "name": adapter_name(&adapter.task, adapter.number),
        "task": adapter.task,
        "number": adapter.number,
        "stage": routes.stage(adapter.number).to_string(),
        "digest": adapter.manifest.digest,
        "loaded": app.adapters.is_loaded(adapter),
        "created": adapter.manifest.created,
    })
}
