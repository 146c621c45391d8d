//! Signing in with a key, and out again.

use actix_web::http::StatusCode;
use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use retune_console::{Place, sign_in::Page};
use retune_ledger::Role;

use super::form::Fields;
use super::{Seat, frame, page, page_with, query, see};
use crate::error::Error;
use crate::state::App;

/// `GET /console/sign-in`.
pub(super) async fn show(app: web::Data<App>, http: HttpRequest) -> Result<HttpResponse, Error> {
    let to = query(&http).text("to").unwrap_or_default().to_owned();
    if !app.keys.load().required() {
        return Ok(see("/console"));
    }
    page(&Page {
        frame: frame(&app, &http, Place::Elsewhere),
        refused: None,
        to,
    })
}

/// `POST /console/sign-in`.
pub(super) async fn enter(
    app: web::Data<App>,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let fields = Fields::of_form(&app, &http, payload).await?;
    let to = fields.text("to").unwrap_or_default().to_owned();
    let caller = app
        .keys
        .load()
        .whose(fields.text("key").unwrap_or_default().trim());
    let refused = match caller {
        Ok(caller) if caller.role < Role::Rater => format!(
            "The key {} is an app's: the console takes a rater's or an admin's.",
            caller.key_id.as_deref().unwrap_or_default()
        ),
        Ok(caller) => {
            let key = caller.key_id.clone().unwrap_or_default();
            let mut extensions = http.extensions_mut();
            if let Some(seat) = extensions.get_mut::<Seat>() {
                seat.signed_in(key.clone(), &app);
            }
            tracing::info!(
                key,
                role = caller.role.as_str(),
                "somebody signed in to the console"
            );
            return Ok(see(destination(&to)));
        }
        Err(error) => error.to_string(),
    };
    page_with(
        StatusCode::UNAUTHORIZED,
        &Page {
            frame: frame(&app, &http, Place::Elsewhere),
            refused: Some(refused),
            to,
        },
    )
}

/// `POST /console/sign-out`.
pub(super) async fn leave(
    app: web::Data<App>,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    Fields::of_form(&app, &http, payload).await?;
    if let Some(seat) = http.extensions_mut().get_mut::<Seat>() {
        seat.signed_out();
    }
    Ok(see("/console/sign-in"))
}

/// Where somebody wanted to go, if it is a page of the console.
fn destination(to: &str) -> &str {
    let is_plain = to.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
    let is_ours = super::is_console(to.split(['?', '#']).next().unwrap_or_default());
    match is_plain && is_ours && !to.contains("//") {
        true => to,
        false => "/console",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_elsewhere() {
        for to in ["/console", "/console/drift", "/console/review?task=a"] {
            assert_eq!(destination(to), to);
        }
        for to in [
            "",
            "/",
            "//evil",
            "https://evil",
            "/console//evil",
            "/consoles",
            "/console/\\evil",
            "/console/\r\nx: y",
        ] {
            assert_eq!(destination(to), "/console", "{to}");
        }
    }
}
