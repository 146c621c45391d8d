//! What goes around every route: the request's id, and who may come at all.
//!
//! Without keys the only protection is that nobody outside of this machine gets here. A page in a browser on this machine could: by a
//! name that resolves to it (Host), or from its own origin (Origin). Both are refused.

use std::net::IpAddr;

use actix_web::ResponseError;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HOST, HeaderName, HeaderValue, ORIGIN};
use actix_web::middleware::Next;
use rand::Rng;

use crate::error::Error;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that is taken over from a client.
const MAX_REQUEST_ID: usize = 256;

/// The middleware.
pub(crate) async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let id = request_id(&request);
    let mut response = match stranger(&request) {
        Some(error) => request
            .into_response(error.error_response())
            .map_into_right_body(),
        None => next.call(request).await?.map_into_left_body(),
    };
    response.headers_mut().insert(REQUEST_ID, id);
    Ok(response)
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

fn stranger(request: &ServiceRequest) -> Option<Error> {
    let text = |name| {
        request
            .headers()
            .get(name)
            .map(|v| v.to_str().unwrap_or("not text"))
    };
    if let Some(host) = text(HOST).or_else(|| request.uri().authority().map(|a| a.as_str()))
        && !is_local(host)
    {
        return Some(Error::Forbidden(format!(
            "This server has no keys configured and answers only to its loopback names, not to Host '{host}'."
        )));
    }
    match text(ORIGIN) {
        Some(origin) if !origin_is_local(origin) => Some(Error::Forbidden(format!(
            "This server has no keys configured and answers only to pages of this machine, not to Origin '{origin}'."
        ))),
        _ => None,
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
