//! `/console`: the web page. Here is what reads and decides for it; how it looks is `console/`'s, a crate of its own.
//!
//! A handler gathers what a page shows, or takes a form, does what the API's route of the same name does, and sends the browser on (303),
//! so that a reload sends nothing twice. Errors are the API's, shown as a page.

mod adapters;
mod compare;
mod drift;
mod form;
mod overview;
mod review;
mod runs;
mod seat;
mod sign_in;
mod trial;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION,
    REFERRER_POLICY, SET_COOKIE, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::middleware::{Next, from_fn};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use retune_console::{Frame, Place, Template, assets, failure};
use retune_task::Task;

pub(crate) use seat::Seat;

pub(crate) use overview::Overview;
pub(crate) use review::Reviews;

use crate::error::Error;
use crate::state::App;

/// Everything from here, no script in a page, no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";
/// A run's report has its styles in itself, and no script.
const REPORT_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; \
                             frame-ancestors 'none'; sandbox";

const HTML: &str = "text/html; charset=utf-8";

/// The console's routes.
pub(crate) fn routes(service: &mut web::ServiceConfig) {
    let unknown = || web::to(crate::routes::wrong_method);
    let resource = |path: &str| web::resource(path).default_service(unknown());
    let scope = web::scope("/console")
        .wrap(from_fn(dressed))
        .service(resource("").route(web::get().to(overview::show)))
        .service(
            resource("/sign-in")
                .route(web::get().to(sign_in::show))
                .route(web::post().to(sign_in::enter)),
        )
        .service(resource("/sign-out").route(web::post().to(sign_in::leave)))
        .service(
            resource("/review")
                .route(web::get().to(review::show))
                .route(web::post().to(review::judge)),
        )
        .service(resource("/review/skip").route(web::post().to(review::skip)))
        .service(resource("/review/undo").route(web::post().to(review::undo)))
        .service(
            resource("/compare")
                .route(web::get().to(compare::show))
                .route(web::post().to(compare::vote)),
        )
        .service(resource("/drift").route(web::get().to(drift::show)))
        .service(
            resource("/drift/{alarm}")
                .route(web::get().to(drift::one))
                .route(web::post().to(drift::say)),
        )
        .service(resource("/runs").route(web::get().to(runs::show)))
        .service(resource("/runs/{id}").route(web::get().to(runs::one)))
        .service(resource("/runs/{id}/report").route(web::get().to(runs::report)))
        .service(resource("/adapters/{name}").route(web::get().to(adapters::one)))
        .service(
            resource("/adapters/{name}/{action}")
                .route(web::get().to(adapters::ask))
                .route(web::post().to(adapters::decide)),
        )
        .service(
            resource("/try")
                .route(web::get().to(trial::show))
                .route(web::post().to(trial::ask)),
        )
        .service(resource("/try/answer").route(web::post().to(trial::answer)))
        .service(resource("/assets/{name}").route(web::get().to(asset)))
        .default_service(web::to(crate::routes::unknown_route));
    service
        .service(resource("/").route(web::get().to(lead_there)))
        .service(scope);
}

/// Whoever opens the server's address in a browser is a person.
async fn lead_there() -> HttpResponse {
    HttpResponse::Found()
        .insert_header((LOCATION, "/console"))
        .finish()
}

/// Whether a path is the console's.
pub(crate) fn is_console(path: &str) -> bool {
    path == "/console" || path.starts_with("/console/")
}

/// Whether somebody may be there who has not signed in.
pub(crate) fn is_open(path: &str) -> bool {
    path == "/console/sign-in" || path.starts_with("/console/assets/")
}

/// What is around a page.
fn frame(app: &App, http: &HttpRequest, place: Place) -> Frame {
    let extensions = http.extensions();
    let seat = extensions.get::<Seat>();
    let caller = seat.and_then(|seat| seat.caller.as_ref());
    Frame {
        place,
        role: caller.map(|caller| caller.role),
        key_id: caller.and_then(|caller| caller.key_id.clone()),
        token: seat.map_or_else(String::new, |seat| {
            seat.session.token(&|text| app.ledger.seal(text))
        }),
        notice: None,
    }
}

fn page(page: &impl Template) -> Result<HttpResponse, Error> {
    page_with(StatusCode::OK, page)
}

fn page_with(status: StatusCode, page: &impl Template) -> Result<HttpResponse, Error> {
    let html = page
        .render()
        .map_err(|e| Error::Engine(format!("a page of the console cannot be written: {e}")))?;
    Ok(HttpResponse::build(status)
        .insert_header((CONTENT_TYPE, HTML))
        .body(html))
}

/// Sends the browser on; to the console alone.
fn see(to: impl AsRef<str>) -> HttpResponse {
    HttpResponse::SeeOther()
        .insert_header((LOCATION, to.as_ref()))
        .finish()
}

/// A text as a part of an address.
fn quoted(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~@".contains(&b);
    let mut quoted = String::with_capacity(text.len());
    for b in text.bytes() {
        match plain(b) {
            true => quoted.push(char::from(b)),
            false => quoted.push_str(&format!("%{b:02X}")),
        }
    }
    quoted
}

/// The members of a query, as a form's.
fn query(http: &HttpRequest) -> form::Fields {
    form::Fields::read(http.query_string().as_bytes())
}

/// The task of that name; the first where none is named.
fn task<'a>(app: &'a App, name: Option<&str>) -> Result<&'a Task, Error> {
    let mut tasks = app.config.tasks.iter();
    let found = tasks.find(|task| name.is_none_or(|name| name == task.name));
    found.map(AsRef::as_ref).ok_or_else(|| {
        let name = name.unwrap_or_default();
        Error::NotFound(format!("There is no task '{name}'."))
    })
}

/// All tasks, in the configuration's order.
fn task_names(app: &App) -> Vec<String> {
    let tasks = app.config.tasks.iter();
    tasks.map(|task| task.name.clone()).collect()
}

/// What the console says to somebody that it does not let in, or where something failed.
pub(crate) fn refused(error: &Error, http: &HttpRequest) -> HttpResponse {
    let mut response = failed(error, http);
    dress(&mut response, http);
    response
}

fn failed(error: &Error, http: &HttpRequest) -> HttpResponse {
    if let Error::Unauthorized(_) = error {
        let path = http.path();
        let to = http.uri().path_and_query().map_or("", |to| to.as_str());
        let to = quoted(to);
        // What a form would have sent is gone with its session.
        let is_page = http.method() == actix_web::http::Method::GET;
        if http.headers().contains_key("hx-request") {
            // A part of a page, that would be put into what was there.
            return HttpResponse::NoContent()
                .insert_header(("hx-redirect", "/console/sign-in"))
                .finish();
        }
        return match is_page && path != "/console" {
            true => see(format!("/console/sign-in?to={to}")),
            false => see("/console/sign-in"),
        };
    }
    let seen = error.seen();
    if seen.status.is_server_error() {
        tracing::error!(status = seen.status.as_u16(), %error, "a page of the console failed");
    }
    let Some(app) = http.app_data::<web::Data<App>>() else {
        return HttpResponse::InternalServerError().finish();
    };
    let id = http.headers().get("x-request-id");
    let shown = failure::Page {
        frame: frame(app, http, Place::Elsewhere),
        status: seen.status.as_u16(),
        message: seen.message,
        request_id: id.and_then(|id| id.to_str().ok()).map(str::to_owned),
    };
    page_with(seen.status, &shown).unwrap_or_else(|_| HttpResponse::new(seen.status))
}

/// Around every page: an error becomes one, and all of them get the headers that keep them what they are.
async fn dressed(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse, actix_web::Error> {
    let wants_json = request.path() == "/console/try/answer";
    let response = next.call(request).await?.map_into_boxed_body();
    let (http, mut response) = response.into_parts();
    let error = response.error().and_then(|error| {
        let error = error.as_error::<Error>()?;
        (!wants_json).then(|| failed(error, &http))
    });
    if let Some(page) = error {
        response = page;
    }
    dress(&mut response, &http);
    Ok(ServiceResponse::new(http, response))
}

fn dress(response: &mut HttpResponse, http: &HttpRequest) {
    const NONE: HeaderValue = HeaderValue::from_static("no-store");
    const NO_SNIFF: HeaderValue = HeaderValue::from_static("nosniff");
    const NO_REFERRER: HeaderValue = HeaderValue::from_static("same-origin");
    const OPENER: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
    let policy = HeaderValue::from_static(POLICY);
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    headers.insert(REFERRER_POLICY, NO_REFERRER);
    headers.insert(OPENER, NO_REFERRER);
    if !headers.contains_key(CONTENT_SECURITY_POLICY) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    if !headers.contains_key(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, NONE);
    }
    if headers.get(CACHE_CONTROL) != Some(&NONE) {
        // Whoever keeps a file for others must not keep a session with it.
        return;
    }
    let extensions = http.extensions();
    let cookie = extensions.get::<Seat>().and_then(Seat::new_cookie);
    if let Some(cookie) = cookie.and_then(|cookie| HeaderValue::from_str(cookie).ok()) {
        headers.append(SET_COOKIE, cookie);
    }
}

async fn asset(name: web::Path<String>) -> Result<HttpResponse, Error> {
    let asset = assets::find(&name)
        .ok_or_else(|| Error::NotFound("There is no such file of the console.".to_owned()))?;
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, asset.content_type))
        .insert_header((CACHE_CONTROL, "public, max-age=31536000, immutable"))
        .body(asset.text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_the_way_in_alone() {
        assert!(is_console("/console") && is_console("/console/runs"));
        assert!(!is_console("/consoles") && !is_console("/v1/models"));
        assert!(is_open("/console/sign-in") && is_open("/console/assets/x"));
        for path in [
            "/console",
            "/console/sign-inx",
            "/console/assets",
            "/console/try",
        ] {
            assert!(!is_open(path), "{path}");
        }
        assert_eq!(
            quoted("/console/drift?a=b&ü"),
            "%2Fconsole%2Fdrift%3Fa%3Db%26%C3%BC"
        );
    }
}
