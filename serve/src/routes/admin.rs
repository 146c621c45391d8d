//! What operators can see of runs.

use actix_web::{HttpResponse, web};
use serde_json::json;

use crate::error::Error;
use crate::state::App;

pub(crate) async fn runs(app: web::Data<App>) -> Result<HttpResponse, Error> {
    Ok(HttpResponse::Ok().json(json!({ "object": "list", "data": app.ledger.runs().await? })))
}
