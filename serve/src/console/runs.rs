//! Runs, adapters, and a run's whole report.

use actix_web::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use actix_web::{HttpRequest, HttpResponse, web};
use chrono::Utc;
use retune_console::Place;
use retune_console::adapters::Row as AdapterRow;
use retune_console::runs::{Page, Row, RunPage, Shown};
use retune_ledger::Run;

use super::{HTML, REPORT_POLICY, frame, page};
use crate::error::Error;
use crate::state::App;

/// Runs that are listed, the newest.
const LISTED: usize = 100;

/// `GET /console/runs`.
pub(super) async fn show(app: web::Data<App>, http: HttpRequest) -> Result<HttpResponse, Error> {
    // One that was just made is among them.
    app.refresh().await?;
    let now = Utc::now();
    let mut runs = app.ledger.runs().await?;
    runs.sort_by_key(|run| std::cmp::Reverse(run.ended()));
    let mut adapters = Vec::new();
    for routes in app.table.load_full().tasks() {
        let stages = app.ledger.stages(&routes.task.name).await?;
        for adapter in routes.adapters.values().rev() {
            let is_loaded = app.adapters.is_loaded(adapter);
            adapters.push(AdapterRow::of(adapter, &stages, is_loaded, now));
        }
    }
    page(&Page {
        frame: frame(&app, &http, Place::Runs),
        runs: runs
            .iter()
            .take(LISTED)
            .map(|run| Row::of(run, now))
            .collect(),
        adapters,
    })
}

async fn find(app: &App, id: &str) -> Result<Run, Error> {
    let run = app.ledger.run(id).await?;
    run.ok_or_else(|| Error::NotFound(format!("There is no run '{id}'.")))
}

/// `GET /console/runs/{id}`.
pub(super) async fn one(
    app: web::Data<App>,
    http: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let run = find(&app, &id).await?;
    let stages = app.ledger.stages(&run.task).await?;
    let has_report = tokio::fs::try_exists(path(&app, &run))
        .await
        .unwrap_or_default();
    page(&RunPage {
        frame: frame(&app, &http, Place::Runs),
        run: Shown::of(&run, &stages, has_report, Utc::now()),
    })
}

/// `GET /console/runs/{id}/report`: the page that the run has written.
pub(super) async fn report(
    app: web::Data<App>,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let run = find(&app, &id).await?;
    let html = tokio::fs::read(path(&app, &run)).await.map_err(|_| {
        Error::NotFound(format!(
            "The report of {id} is not on this machine: it is where the run was made."
        ))
    })?;
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, HTML))
        .insert_header((CONTENT_SECURITY_POLICY, REPORT_POLICY))
        .body(html))
}

/// Of a run that is known: its id comes from the ledger, not from an address.
fn path(app: &App, run: &Run) -> std::path::PathBuf {
    let reports = app.ledger.files().join("reports");
    reports.join(format!("{}.html", run.run_id))
}
