//! HTTP: thin handlers, each of which reads its request, asks the logic, and shapes the answer.

pub(crate) mod adapters;
mod admin;
pub(crate) mod alarms;
pub(crate) mod body;
pub(crate) mod chat;
pub(crate) mod feedback;
mod files;
mod fine_tuning;
mod guard;
mod models;
mod openapi;
mod ops;
mod page;
pub(crate) mod pairs;
mod seen;
mod stored;

use actix_web::{HttpRequest, HttpResponse, web};

pub(crate) use guard::guard;

use crate::console;
use crate::error::Error;

/// The API.
pub(crate) fn api(service: &mut web::ServiceConfig) {
    let unknown = || web::to(wrong_method);
    service
        .service(
            web::resource("/v1/chat/completions")
                .route(web::post().to(chat::chat))
                .route(web::get().to(stored::list))
                .default_service(unknown()),
        )
        .service(
            web::resource("/v1/chat/completions/{id}")
                .route(web::get().to(stored::one))
                .default_service(unknown()),
        )
        .service(
            web::resource("/v1/chat/completions/{id}/messages")
                .route(web::get().to(stored::messages))
                .default_service(unknown()),
        )
        .service(
            web::resource("/v1/completions")
                .route(web::post().to(chat::completion))
                .default_service(unknown()),
        )
        .service(
            web::resource("/v1/models")
                .route(web::get().to(models::list))
                .default_service(unknown()),
        )
        .service(
            web::resource("/v1/models/{id:.+}")
                .route(web::get().to(models::one))
                .default_service(unknown()),
        )
        .service(
            web::resource("/v1/feedback")
                .route(web::post().to(feedback::create))
                .default_service(unknown()),
        )
        .service(
            web::resource("/v1/pairs")
                .route(web::get().to(pairs::list))
                .default_service(unknown()),
        )
        .service(
            web::resource("/v1/pairs/{id}")
                .route(web::post().to(pairs::vote))
                .default_service(unknown()),
        )
        .service(
            web::resource("/v1/files")
                .route(web::get().to(files::list))
                .route(web::post().to(files::create))
                .default_service(unknown()),
        )
        .service(
            web::resource("/v1/files/{id}")
                .route(web::get().to(files::one))
                .route(web::delete().to(files::delete))
                .default_service(unknown()),
        )
        .service(
            web::resource("/v1/files/{id}/content")
                .route(web::get().to(files::content))
                .default_service(unknown()),
        )
        .service(
            web::resource("/v1/fine_tuning/jobs")
                .route(web::get().to(fine_tuning::list))
                .route(web::post().to(fine_tuning::create))
                .default_service(unknown()),
        )
        .service(
            web::resource("/v1/fine_tuning/jobs/{id}")
                .route(web::get().to(fine_tuning::one))
                .default_service(unknown()),
        )
        .service(
            web::resource("/v1/fine_tuning/jobs/{id}/events")
                .route(web::get().to(fine_tuning::events))
                .default_service(unknown()),
        )
        .service(
            web::resource("/v1/fine_tuning/jobs/{id}/checkpoints")
                .route(web::get().to(fine_tuning::checkpoints))
                .default_service(unknown()),
        )
        .service(
            web::resource("/v1/fine_tuning/jobs/{id}/{action}")
                .route(web::post().to(fine_tuning::act))
                .default_service(unknown()),
        )
        .service(
            web::resource("/admin/adapters")
                .route(web::get().to(adapters::list))
                .route(web::post().to(adapters::import))
                .default_service(unknown()),
        )
        .service(
            web::resource("/admin/adapters/{name}")
                .route(web::get().to(adapters::one))
                .default_service(unknown()),
        )
        .service(
            web::resource("/admin/adapters/{name}/{action}")
                .route(web::post().to(adapters::act))
                .default_service(unknown()),
        )
        .service(
            web::resource("/admin/runs")
                .route(web::get().to(admin::runs))
                .default_service(unknown()),
        )
        .service(
            web::resource("/admin/alarms")
                .route(web::get().to(alarms::list))
                .default_service(unknown()),
        )
        .service(
            web::resource("/admin/alarms/{alarm}/{action}")
                .route(web::post().to(alarms::act))
                .default_service(unknown()),
        )
        .service(
            web::resource("/openapi.json")
                .route(web::get().to(openapi::description))
                .default_service(unknown()),
        )
        .configure(console::routes)
        .default_service(web::to(unknown_route));
}

/// Metrics and probes.
pub(crate) fn operations(service: &mut web::ServiceConfig) {
    service
        .service(web::resource("/healthz").route(web::get().to(ops::healthz)))
        .service(web::resource("/readyz").route(web::get().to(ops::readyz)))
        .service(web::resource("/metrics").route(web::get().to(ops::metrics)));
}

/// Of a process that serves nothing else.
pub(crate) fn metrics_alone(service: &mut web::ServiceConfig) {
    service
        .service(web::resource("/healthz").route(web::get().to(ops::healthz)))
        .service(web::resource("/metrics").route(web::get().to(ops::metrics_alone)));
}

pub(crate) async fn unknown_route(request: HttpRequest) -> Result<HttpResponse, Error> {
    Err(Error::UnknownRoute {
        method: request.method().to_string(),
        path: request.path().to_owned(),
    })
}

pub(crate) async fn wrong_method(request: HttpRequest) -> Result<HttpResponse, Error> {
    Err(Error::WrongMethod {
        method: request.method().to_string(),
        path: request.path().to_owned(),
    })
}
