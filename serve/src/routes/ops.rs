//! Metrics and probes.

use actix_web::{HttpResponse, web};
use prometheus::{Registry, TextEncoder};
use serde_json::json;

use crate::error::Error;
use crate::state::App;

/// The process lives.
pub(crate) async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "status": "ok" }))
}

/// A model answers. Probes come often, and so their failures are not logged.
pub(crate) async fn readyz(app: web::Data<App>) -> Result<HttpResponse, Error> {
    if app.stopping.is_cancelled() {
        return Err(Error::Stopping);
    }
    if !app.ready().await {
        return Ok(HttpResponse::ServiceUnavailable().json(json!({ "status": "no model answers" })));
    }
    Ok(HttpResponse::Ok().json(json!({ "status": "ready" })))
}

pub(crate) async fn metrics(app: web::Data<App>) -> Result<HttpResponse, Error> {
    shown(&app.registry)
}

/// Of a process that serves nothing else.
pub(crate) async fn metrics_alone(registry: web::Data<Registry>) -> Result<HttpResponse, Error> {
    shown(&registry)
}

fn shown(registry: &Registry) -> Result<HttpResponse, Error> {
    let text = TextEncoder::new().encode_to_string(&registry.gather())?;
    Ok(HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(text))
}
