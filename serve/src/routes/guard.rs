//! What goes around every route: the request's id and spans, who may come at all, and for how long a body may keep still.
//!
//! With keys a request has to bring one, or at the console the cookie of somebody who showed one, and its role has to be good for what it asks.
//! A route that is not named below is for admins: a new one is closed until somebody opens it. Probes and metrics are for whoever watches, and hold no texts.
//!
//! Without keys the only protection is that nobody outside of this machine gets here. A page in a browser on this machine could: by a
//! name that resolves to it (Host), or from its own origin (Origin). Both are refused.

use std::net::IpAddr;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue, ORIGIN};
use actix_web::middleware::Next;
use actix_web::{HttpMessage, ResponseError, web};
use rand::Rng;
use retune_ledger::Role;

use super::body;
use super::seen::{Access, Seen};
use crate::console::{self, Seat};
use crate::error::Error;
use crate::keys::{Caller, Keys};
use crate::state::App;
use crate::trace::Sight;

/// Headers by which a request says that it is no user's.
const FOR_ADMINS: [&str; 2] = ["retune-purpose", "retune-run"];

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that is taken over from a client.
const MAX_REQUEST_ID: usize = 256;

/// The middleware.
pub(crate) async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<Seen>, actix_web::Error> {
    let id = request_id(&request);
    // Probes and scrapes come often, and are nobody's request.
    let (sight, mut access) = match is_operations(request.path()) {
        true => (None, None),
        false => seen(&request, &id),
    };
    let response = admitted(request, next, sight.clone(), &mut access);
    let mut response = match &sight {
        None => response.await?,
        Some(sight) => sight.around(response).await?,
    };
    if let Some(sight) = &sight {
        sight.status(response.status());
    }
    response.headers_mut().insert(REQUEST_ID, id);
    Ok(Seen::of(response, sight, access))
}

async fn admitted(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
    sight: Option<Sight>,
    access: &mut Option<Access>,
) -> Result<ServiceResponse, actix_web::Error> {
    let entered = enter(&mut request);
    if let Some(sight) = sight {
        let key = request
            .extensions()
            .get::<Caller>()
            .and_then(|caller| caller.key_id.clone());
        if let Some(key) = key {
            sight.key(&key);
            if let Some(access) = access {
                access.key(key);
            }
        }
        request.extensions_mut().insert(sight);
    }
    match entered {
        Err(error) if console::is_console(request.match_info().as_str()) => {
            let refused = console::refused(&error, request.request());
            Ok(request.into_response(refused))
        }
        Err(error) => Ok(request.into_response(error.error_response())),
        Ok(()) => Ok(next.call(request).await?.map_into_boxed_body()),
    }
}

fn seen(request: &ServiceRequest, id: &HeaderValue) -> (Option<Sight>, Option<Access>) {
    let id = id.to_str().unwrap_or_default();
    let traces = request
        .app_data::<web::Data<App>>()
        .and_then(|app| app.traces.as_deref());
    (
        Some(Sight::begin(request, id, traces)),
        Access::begin(request, id),
    )
}

/// The client's own id if it sent a usable one.
fn request_id(request: &ServiceRequest) -> HeaderValue {
    let sent = request
        .headers()
        .get(REQUEST_ID)
        .filter(|v| !v.is_empty() && v.len() <= MAX_REQUEST_ID && v.to_str().is_ok());
    sent.cloned().unwrap_or_else(|| {
        let id = format!("req-{:032x}", rand::rng().random::<u128>());
        HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("req-0"))
    })
}

/// Lets a request in, with its caller beside it and its body timed.
fn enter(request: &mut ServiceRequest) -> Result<(), Error> {
    let app = request
        .app_data::<web::Data<App>>()
        .cloned()
        .ok_or_else(|| Error::Engine("the server has no state".to_owned()))?;
    let keys = app.keys.load();
    if !keys.required() {
        stranger(request)?;
    }
    // As the router reads it: percent-encoding is no way around.
    let path = request.match_info().as_str().to_owned();
    if console::is_console(&path) {
        let seat = Seat::take(request, &app, &keys)?;
        let caller = seat.caller.clone();
        request.extensions_mut().insert(seat);
        match caller {
            Some(caller) => {
                if !console::is_open(&path) {
                    let what = format!("{} {path}", request.method());
                    may(&caller, role_for(&path), what)?;
                }
                request.extensions_mut().insert(caller);
            }
            None if console::is_open(&path) => {}
            None => return Err(Error::Unauthorized("Sign in first.".to_owned())),
        }
    } else if keys.required() {
        if let Some(caller) = caller(request, &path, &keys)? {
            request.extensions_mut().insert(caller);
        }
    } else {
        request.extensions_mut().insert(Caller::anybody());
    }
    let payload = request.take_payload();
    request.set_payload(body::patient(payload, app.config.server.client_timeout));
    Ok(())
}

/// Whose key a request brought, if it is good for what is asked; None where nobody is asked.
fn caller(request: &ServiceRequest, path: &str, keys: &Keys) -> Result<Option<Caller>, Error> {
    // The root only says where the console is.
    if is_operations(path) || path == "/" {
        return Ok(None);
    }
    let caller = keys.caller(request.headers().get(AUTHORIZATION))?;
    // What is no route at all is a 404 to every key.
    if request.resource_map().match_pattern(path).is_some() {
        may(
            &caller,
            role_for(path),
            format!("{} {path}", request.method()),
        )?;
    }
    for header in FOR_ADMINS {
        if request.headers().contains_key(header) {
            may(&caller, Role::Admin, format!("The header '{header}'"))?;
        }
    }
    Ok(Some(caller))
}

fn may(caller: &Caller, needed: Role, what: String) -> Result<(), Error> {
    if caller.role >= needed {
        return Ok(());
    }
    Err(Error::Permission {
        what,
        needed,
        has: caller.role,
    })
}

fn is_operations(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/metrics")
}

/// The least role that a route takes.
fn role_for(path: &str) -> Role {
    match path {
        "/v1/chat/completions"
        | "/v1/completions"
        | "/v1/models"
        | "/v1/feedback"
        | "/openapi.json" => Role::App,
        "/v1/pairs" | "/console" | "/console/review" | "/console/compare" | "/console/sign-out" => {
            Role::Rater
        }
        _ if path.starts_with("/v1/pairs/") || path.starts_with("/console/review/") => Role::Rater,
        _ if path.starts_with("/v1/models/") || path.starts_with("/v1/chat/completions/") => {
            Role::App
        }
        _ => Role::Admin,
    }
}

fn stranger(request: &ServiceRequest) -> Result<(), Error> {
    let text = |name| {
        request
            .headers()
            .get(name)
            .map(|v| v.to_str().unwrap_or("not text"))
    };
    if let Some(host) = text(HOST).or_else(|| request.uri().authority().map(|a| a.as_str()))
        && !is_local(host)
    {
        return Err(Error::Forbidden(format!(
            "This server has no keys configured and answers only to its loopback names, not to Host '{host}'."
        )));
    }
    match text(ORIGIN) {
        Some(origin) if !origin_is_local(origin) => Err(Error::Forbidden(format!(
            "This server has no keys configured and answers only to pages of this machine, not to Origin '{origin}'."
        ))),
        _ => Ok(()),
    }
}

fn origin_is_local(origin: &str) -> bool {
    origin
        .split_once("://")
        .is_some_and(|(scheme, host)| matches!(scheme, "http" | "https") && is_local(host))
}

/// Whether `host`, with or without a port, is this machine by a name that cannot be given to another.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((address, port)) if port.is_empty() || is_port(port) => address,
            _ => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) if is_port(&format!(":{port}")) => name,
            Some(_) => return false,
            None => host,
        },
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':')
        .is_some_and(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_opened_is_for_admins() {
        for (path, role) in [
            ("/v1/chat/completions", Role::App),
            ("/v1/completions", Role::App),
            ("/v1/models", Role::App),
            ("/v1/models/support@3", Role::App),
            ("/v1/feedback", Role::App),
            ("/v1/pairs", Role::Rater),
            ("/v1/pairs/pair-1", Role::Rater),
            ("/v1/pairsx", Role::Admin),
            ("/console", Role::Rater),
            ("/console/review/undo", Role::Rater),
            ("/console/reviewx", Role::Admin),
            ("/console/runs/x", Role::Admin),
            ("/console/try/answer", Role::Admin),
            ("/v1/modelsx", Role::Admin),
            ("/v1/chat/completions/chatcmpl-1", Role::App),
            ("/v1/chat/completionsx", Role::Admin),
            ("/admin/adapters", Role::Admin),
            ("/%61dmin/adapters", Role::Admin),
            ("/v1/fine_tuning/jobs", Role::Admin),
            ("/", Role::Admin),
        ] {
            assert_eq!(role_for(path), role, "{path}");
        }
        assert!(Role::App < Role::Rater && Role::Rater < Role::Admin);
    }

    #[test]
    fn only_names_of_this_machine() {
        for local in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1",
            "127.0.0.1:8080",
            "127.9.9.9:1",
            "[::1]:8080",
            "[::1]",
        ] {
            assert!(is_local(local), "{local}");
        }
        for foreign in [
            "example.com",
            "localhost.example.com",
            "127.0.0.1.nip.io:80",
            "10.0.0.1",
            "[::2]:80",
            "::1:x",
            "",
            "localhost:",
        ] {
            assert!(!is_local(foreign), "{foreign}");
        }
        assert!(origin_is_local("http://localhost:3000"));
        assert!(!origin_is_local("null"));
        assert!(!origin_is_local("https://example.com"));
        assert!(!origin_is_local("file://localhost"));
    }
}
