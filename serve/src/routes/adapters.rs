//! What operators and `retune retrain` do with adapters: bring them, load them, and decide where they stand.
//!
//! Decisions are made on the ledger's newest stages, not on those that are served: what cannot be served can still be undone.

use std::path::Path;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use retune_ledger::{Action, AdapterRef, Stages, standings};
use retune_task::ModelName;
use retune_wire::Params;
use serde_json::{Value, json};

use super::body;
use crate::error::Error;
use crate::keys::Caller;
use crate::state::App;

/// As much of a name as a history takes, in characters.
const LONGEST_NAME: usize = 100;
const ACTIONS: &str = "load, unload, promote, canary, shadow, rollback, reject";

/// `GET /admin/adapters`.
pub(crate) async fn list(app: web::Data<App>) -> Result<HttpResponse, Error> {
    app.refresh().await?;
    let mut data = Vec::new();
    for routes in app.table.load().tasks() {
        let stages = app.ledger.stages(&routes.task.name).await?;
        for adapter in routes.adapters.values() {
            data.push(item(&app, &stages, adapter));
        }
    }
    Ok(HttpResponse::Ok().json(json!({ "object": "list", "data": data })))
}

/// `GET /admin/adapters/{name}`.
pub(crate) async fn one(
    app: web::Data<App>,
    name: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let named = Named::find(&app, &name).await?;
    let mut shown = named.item(&app).await?;
    if let Some(adapter) = &named.adapter {
        let history = app.ledger.stages_history(&named.task).await?;
        shown["history"] = json!(standings(&history, adapter.number));
        shown["manifest"] = json!(adapter.manifest);
        shown["forgotten"] = json!(app.ledger.forgotten_of(adapter).await?);
    }
    Ok(HttpResponse::Ok().json(shown))
}

/// `POST /admin/adapters`.
pub(crate) async fn import(
    app: web::Data<App>,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let mut params = body::params(payload, app.config.server.max_body_bytes).await?;
    let task = params.string("task")?;
    let task = params.required("task", task)?;
    let folder = params.string("folder")?;
    let folder = params.required("folder", folder)?;
    params.finish()?;
    let folder = Path::new(&folder);
    if !folder.is_absolute() {
        return Err(Error::param(
            "folder",
            "invalid_value",
            format!(
                "'{}' is relative; expected the absolute path of a folder on the server's machine.",
                folder.display()
            ),
        ));
    }
    let imported = crate::import(&app.ledger, &app.config, &task, &app.base, folder).await?;
    app.refresh().await?;
    let stages = app.ledger.stages(&task).await?;
    let status = if imported.new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok(HttpResponse::build(status).json(item(&app, &stages, &imported.adapter)))
}

/// `POST /admin/adapters/{name}/{action}`.
pub(crate) async fn act(
    app: web::Data<App>,
    http: HttpRequest,
    path: web::Path<(String, String)>,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let (name, action) = path.into_inner();
    if !ACTIONS.split(", ").any(|a| a == action) {
        return Err(Error::NotFound(format!(
            "There is no action '{action}': it is one of {ACTIONS}."
        )));
    }
    let named = Named::find(&app, &name).await?;
    let params = body::optional_params(payload, app.config.server.max_body_bytes).await?;
    match (action.as_str(), &named.adapter) {
        ("load", Some(adapter)) => {
            params.finish()?;
            app.adapters.ensure(adapter, &app.in_traffic()).await?;
        }
        ("unload", Some(adapter)) => {
            params.finish()?;
            let stages = app.ledger.stages(&named.task).await?;
            if stages.asked().any(|n| n == adapter.number) {
                return Err(Error::Conflict(format!(
                    "{name} is asked without being named, as the champion, canary or shadow; end that first."
                )));
            }
            app.adapters.unload(adapter)?;
        }
        ("load" | "unload", None) => {
            return Err(Error::Conflict(format!(
                "{name} is the base with the task's full prompt, which is always in memory."
            )));
        }
        (action, _) => named.decide(&app, action, by(&http), params).await?,
    }
    Ok(HttpResponse::Ok().json(named.item(&app).await?))
}

/// A run, which acts with its server's key, says which one it is; one that comes with a key of somebody's, as from another machine, is
/// named together with the key, so that nobody acts in another's name.
fn by(http: &HttpRequest) -> Option<String> {
    let run = http.headers().get("retune-run");
    let run = run.and_then(|run| run.to_str().ok());
    let run = run.map(|run| run.chars().take(LONGEST_NAME).collect::<String>());
    match (run, Caller::of(http)) {
        (Some(run), caller) if caller.is_this_process() => Some(run),
        (
            Some(run),
            Caller {
                key_id: Some(key), ..
            },
        ) => Some(format!("{run}, with the key {key}")),
        (run, caller) => caller.key_id.or(run),
    }
}

fn conflict(refused: retune_ledger::Refused) -> Error {
    Error::Conflict(refused.0)
}

/// An adapter that is there, or a task's baseline.
pub(crate) struct Named {
    pub(crate) task: String,
    pub(crate) adapter: Option<AdapterRef>,
}

impl Named {
    pub(crate) async fn find(app: &App, name: &str) -> Result<Self, Error> {
        let unknown = || {
            Error::NotFound(format!(
                "There is no adapter '{name}'. GET /admin/adapters lists them."
            ))
        };
        let (task, number) = match ModelName::parse(name) {
            Some(ModelName::Adapter { task, number }) => (task, Some(number)),
            Some(ModelName::Baseline(task)) => (task, None),
            _ => return Err(unknown()),
        };
        if app.table.load().task(&task).is_none() {
            // Another process may just have made it.
            app.refresh().await?;
        }
        if app.table.load().task(&task).is_none() {
            return Err(unknown());
        }
        let adapter = match number {
            None => None,
            Some(number) => match app.ledger.adapter(&task, number).await {
                Ok(adapter) => Some(adapter),
                Err(retune_ledger::Error::NoAdapter { .. }) => return Err(unknown()),
                Err(e) => return Err(e.into()),
            },
        };
        Ok(Self { task, adapter })
    }

    /// Decides where it stands: what `POST /admin/adapters/{name}/{action}` takes.
    pub(crate) async fn decide(
        &self,
        app: &App,
        action: &str,
        by: Option<String>,
        mut params: Params,
    ) -> Result<(), Error> {
        let task = &self.task;
        let stages = app.ledger.stages(task).await?;
        let action = match action {
            "promote" => Action::Promote,
            "rollback" => Action::RollBack,
            "reject" => Action::Reject,
            sharing => {
                let share = params.decimal("share", 0.0, 1.0)?;
                let share = params.required("share", share)?;
                match sharing {
                    "canary" => Action::Canary(share),
                    _ => Action::Shadow(share),
                }
            }
        };
        let expected = match action {
            Action::Promote => {
                let expected = params.string("expected_champion")?;
                Some(params.required("expected_champion", expected)?)
            }
            // Only the champion can be rolled back: its own name says who is expected; of the others it is asked where somebody says it.
            _ => params.string("expected_champion")?,
        };
        if let Some(expected) = expected {
            stages.expect_champion(task, &expected).map_err(conflict)?;
        }
        let seq = params.integer("expected_seq", 0, i64::MAX)?;
        if seq.is_some_and(|seq| u64::try_from(seq) != Ok(stages.seq)) {
            return Err(Error::Conflict(format!(
                "The newest decision on {task} is number {}, not the expected one.",
                stages.seq
            )));
        }
        let reason = params.string("reason")?;
        params.finish()?;
        let history = match action {
            Action::RollBack => app.ledger.stages_history(task).await?,
            _ => Vec::new(),
        };
        let number = self.adapter.as_ref().map(|a| a.number);
        let after = stages
            .after(task, number, action, &history)
            .map_err(conflict)?;
        if after == stages {
            return Ok(());
        }
        let after = after
            .decided(by, reason.as_deref())
            .map_err(|error| Error::param("reason", "invalid_value", error.to_string()))?;
        // Before it is asked it is in memory and has proved itself.
        for number in after.newly_asked(&stages) {
            let adapter = app.ledger.adapter(task, number).await?;
            app.adapters.ensure(&adapter, &app.in_traffic()).await?;
        }
        match app.ledger.set_stages(task, stages.seq, after).await {
            Ok(()) => {}
            Err(retune_ledger::Error::Conflict { .. }) => {
                return Err(Error::Conflict(format!(
                    "The stages of {task} were changed by somebody else at this moment. Look again."
                )));
            }
            Err(e) => return Err(e.into()),
        }
        app.refresh().await?;
        if let (Action::Reject, Some(adapter)) = (action, &self.adapter)
            && app.adapters.is_loaded(adapter)
        {
            app.adapters.unload(adapter)?;
        }
        Ok(())
    }

    async fn item(&self, app: &App) -> Result<Value, Error> {
        let stages = app.ledger.stages(&self.task).await?;
        Ok(match &self.adapter {
            Some(adapter) => item(app, &stages, adapter),
            None => {
                let mut item = stages.baseline_item(&self.task);
                item["loaded"] = json!(true);
                item
            }
        })
    }
}

fn item(app: &App, stages: &Stages, adapter: &AdapterRef) -> Value {
    let mut item = stages.item(adapter);
    item["loaded"] = json!(app.adapters.is_loaded(adapter));
    item
}
