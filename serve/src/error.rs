//! Everything that can go wrong here, and the one table that says what a client sees of it.
//!
//! The rule: what a client can mend says what and where (a 4xx with `param` and `code` as OpenAI has them); what it cannot mend says
//! only that it happened, and the details go to the log. Messages never repeat a prompt.

use std::path::PathBuf;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, ResponseError};
use retune_ledger::Role;
use retune_wire::Refusal;
use serde_json::json;

use crate::rates::Limit;

/// Why a request, or the start of the server, failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model's file is missing, broken, or asks for what the engine does not do.
    #[error("{} {what}", path.display())]
    ModelFile {
        /// The file, or the folder it should be in.
        path: PathBuf,
        /// The rest of the sentence.
        what: String,
    },
    /// An adapter would not be served as it was trained.
    #[error("the adapter in {} cannot be served: {problems}", folder.display())]
    Adapter {
        /// Where its two files are.
        folder: PathBuf,
        /// All of them, joined.
        problems: String,
    },
    /// A task's answers cannot be held to its format.
    #[error("task {task}: {what}; set enforce = \"retry\" or \"off\", or simplify the format")]
    Format {
        /// The task's name.
        task: String,
        /// Why not.
        what: String,
    },
    /// The engine failed at something it should be able to do.
    #[error("engine: {0}")]
    Engine(String),
    /// Not even one adapter fits into the memory that adapters may take.
    #[error(
        "an adapter of this base takes {needed_mib} MiB, a copy of its weights, and engine.adapters_memory_mib allows {budget_mib}; \
         raise it to {needed_mib} or more, or serve a smaller base"
    )]
    NoRoom {
        /// For one adapter.
        needed_mib: u64,
        /// `engine.adapters_memory_mib`.
        budget_mib: u64,
    },
    /// The engine does not hold this adapter (any more).
    #[error("{0} is not loaded")]
    NotLoaded(String),
    /// The model's engine broke down, and is being started again.
    #[error(
        "The model's engine broke down and is being started again. Please retry after a short wait."
    )]
    Restarting {
        /// Until then, as far as one can tell.
        seconds: u64,
    },
    /// The client's request is wrong.
    #[error(transparent)]
    Invalid(#[from] Refusal),
    /// A model nobody here knows.
    #[error("The model `{0}` does not exist or you do not have access to it.")]
    UnknownModel(String),
    /// Something else that is asked for by its name and is not there.
    #[error("{0}")]
    NotFound(String),
    /// No such route.
    #[error("Invalid URL ({method} {path})")]
    UnknownRoute {
        /// The request's method.
        method: String,
        /// The request's path.
        path: String,
    },
    /// The route exists, the method does not.
    #[error("Not allowed to {method} on {path}.")]
    WrongMethod {
        /// The request's method.
        method: String,
        /// The request's path.
        path: String,
    },
    /// The body is larger than `server.max_body_bytes`.
    #[error("The request body is larger than the limit of {0} bytes (server.max_body_bytes).")]
    TooLarge(usize),
    /// The request came by a name, or from a page, that this server is not known by.
    #[error("{0}")]
    Forbidden(String),
    /// A key is asked for, and none that gets in was sent.
    #[error("{0}")]
    Unauthorized(String),
    /// The key is good, and not for this.
    #[error("{what} needs a key with the role {needed}; this key has the role {has}.")]
    Permission {
        /// The route, or the header.
        what: String,
        /// The least role that suffices.
        needed: Role,
        /// The key's own.
        has: Role,
    },
    /// The key asks for more than it may in a minute.
    #[error(
        "Rate limit reached for key {key_id} on {} per min: Limit {per_minute}. Please try again in {seconds}s.", limit.as_str()
    )]
    RateLimited {
        /// The key.
        key_id: String,
        /// Of requests, or of tokens.
        limit: Limit,
        /// The limit itself.
        per_minute: u32,
        /// Until then.
        seconds: u64,
    },
    /// The body did not come, or stopped coming.
    #[error(
        "The request's body did not arrive: nothing more came for the time that server.client_timeout_seconds allows."
    )]
    TooSlow,
    /// What was expected is not what is so.
    #[error("{0}")]
    Conflict(String),
    /// Too much is waiting already.
    #[error(
        "The server is at its limit of {running} running and {queued} waiting requests. Please retry after a short wait."
    )]
    Busy {
        /// `engine.max_running`.
        running: usize,
        /// `engine.max_queue`.
        queued: usize,
    },
    /// No upstream can be asked, or none of them began to answer; the log says of each why.
    #[error(
        "No server that could answer can be reached at the moment. Please retry after a short wait."
    )]
    UpstreamUnavailable,
    /// An upstream has too much to do.
    #[error("The model's server is at its limit. Please retry after a short wait.")]
    UpstreamBusy {
        /// When to come back, in the upstream's words.
        retry_after: Option<String>,
    },
    /// An upstream does what no client can mend.
    #[error("the upstream {url} {what}")]
    Upstream {
        /// Its address.
        url: String,
        /// The rest of the sentence.
        what: String,
    },
    /// The answer took longer than `engine.deadline_seconds`.
    #[error("The answer took longer than the server allows (engine.deadline_seconds).")]
    Deadline,
    /// The server is on its way down.
    #[error("The server is shutting down.")]
    Stopping,
    /// The ledger failed.
    #[error("ledger: {0}")]
    Ledger(#[from] retune_ledger::Error),
    /// An address cannot be listened on.
    #[error(
        "cannot listen on {address} ({key}): {source}; choose another address or end the process that has it"
    )]
    Listen {
        /// The configured address.
        address: std::net::SocketAddr,
        /// The key that configures it.
        key: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// Other machines could come in without a key.
    #[error(
        "{key} is {address}, which other machines can reach, and there are no keys: make one with `retune keys create --name NAME --role \
         admin`, or listen on loopback (127.0.0.1 or [::1])"
    )]
    Exposed {
        /// The configured address.
        address: std::net::SocketAddr,
        /// The key that configures it.
        key: &'static str,
    },
    /// A file that the connection is to be encrypted with will not do.
    #[error("{} {what}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// The rest of the sentence.
        what: String,
    },
    /// A metric cannot be registered.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// What a client sees of an error.
pub(crate) struct Seen {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

impl Error {
    /// A parameter with a value that will not do.
    pub(crate) fn param(param: &str, code: &'static str, message: impl Into<String>) -> Self {
        Refusal::param(param, code, message).into()
    }

    /// Whether it says nothing of what was asked for, and will be over soon.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::UpstreamUnavailable | Self::Restarting { .. })
    }

    /// The table.
    pub(crate) fn seen(&self) -> Seen {
        let invalid = "invalid_request_error";
        let (status, kind, param, code) = match self {
            Self::Invalid(refusal) => (
                StatusCode::BAD_REQUEST,
                invalid,
                refusal.param.clone(),
                refusal.code,
            ),
            Self::UnknownModel(_) => (
                StatusCode::NOT_FOUND,
                invalid,
                None,
                Some("model_not_found"),
            ),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, invalid, None, Some("not_found")),
            Self::UnknownRoute { .. } => {
                (StatusCode::NOT_FOUND, invalid, None, Some("unknown_url"))
            }
            Self::WrongMethod { .. } => (
                StatusCode::METHOD_NOT_ALLOWED,
                invalid,
                None,
                Some("method_not_supported"),
            ),
            Self::TooLarge(_) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                invalid,
                None,
                Some("request_too_large"),
            ),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, invalid, None, Some("forbidden")),
            Self::Unauthorized(_) => (
                StatusCode::UNAUTHORIZED,
                invalid,
                None,
                Some("invalid_api_key"),
            ),
            Self::Permission { .. } => (
                StatusCode::FORBIDDEN,
                invalid,
                None,
                Some("insufficient_permissions"),
            ),
            Self::RateLimited { limit, .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                limit.as_str(),
                None,
                Some("rate_limit_exceeded"),
            ),
            Self::TooSlow => (
                StatusCode::REQUEST_TIMEOUT,
                invalid,
                None,
                Some("request_timeout"),
            ),
            Self::Conflict(_) => (StatusCode::CONFLICT, invalid, None, Some("conflict")),
            Self::Adapter { .. } => (StatusCode::CONFLICT, invalid, None, Some("adapter_refused")),
            Self::Busy { .. } | Self::UpstreamBusy { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "requests",
                None,
                Some("rate_limit_exceeded"),
            ),
            Self::UpstreamUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                None,
                Some("upstream_unavailable"),
            ),
            Self::Upstream { .. } => (
                StatusCode::BAD_GATEWAY,
                "server_error",
                None,
                Some("upstream_error"),
            ),
            Self::Deadline => (
                StatusCode::GATEWAY_TIMEOUT,
                "server_error",
                None,
                Some("deadline_exceeded"),
            ),
            Self::Stopping => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                None,
                Some("server_stopping"),
            ),
            Self::NotLoaded(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                None,
                Some("model_not_loaded"),
            ),
            Self::Restarting { .. } => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                None,
                Some("engine_restarting"),
            ),
            Self::NoRoom { .. } => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                None,
                Some("insufficient_memory"),
            ),
            Self::Ledger(
                retune_ledger::Error::Log { .. } | retune_ledger::Error::LogFull { .. },
            ) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                None,
                Some("log_unavailable"),
            ),
            Self::ModelFile { .. }
            | Self::Format { .. }
            | Self::Engine(_)
            | Self::Ledger(_)
            | Self::Listen { .. }
            | Self::Exposed { .. }
            | Self::Tls { .. }
            | Self::Metrics(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "server_error",
                None,
                None,
            ),
        };
        // What an operator can mend is said; it names files, never their contents.
        let told = matches!(
            self,
            Self::ModelFile { .. } | Self::Ledger(retune_ledger::Error::Damaged { .. })
        );
        let inside = [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::BAD_GATEWAY].contains(&status);
        let message = if inside && !told {
            "The server had an error while processing your request. Its log says more.".to_owned()
        } else {
            self.to_string()
        };
        Seen {
            status,
            message,
            kind,
            param,
            code,
        }
    }

    /// OpenAI's error object.
    pub(crate) fn body(&self) -> serde_json::Value {
        let seen = self.seen();
        json!({ "error": { "message": seen.message, "type": seen.kind, "param": seen.param, "code": seen.code } })
    }
}

impl ResponseError for Error {
    fn status_code(&self) -> StatusCode {
        self.seen().status
    }

    fn error_response(&self) -> HttpResponse {
        let status = self.status_code();
        if status.is_server_error() {
            tracing::error!(status = status.as_u16(), error = %self, "a request failed");
        }
        let mut response = HttpResponse::build(status);
        match self {
            Self::Busy { .. } => {
                response.insert_header((header::RETRY_AFTER, "1"));
            }
            Self::UpstreamBusy { retry_after } => {
                let after = retry_after.as_deref().unwrap_or("1");
                if let Ok(after) = header::HeaderValue::from_str(after) {
                    response.insert_header((header::RETRY_AFTER, after));
                }
            }
            Self::Stopping
            | Self::NotLoaded(_)
            | Self::UpstreamUnavailable
            | Self::Ledger(
                retune_ledger::Error::Log { .. } | retune_ledger::Error::LogFull { .. },
            ) => {
                response.insert_header((header::RETRY_AFTER, "2"));
            }
            // Clients of OpenAI retry a 409, a 503 and a 504; the answer would be the same.
            Self::Conflict(_) | Self::Adapter { .. } | Self::NoRoom { .. } | Self::Deadline => {
                response.insert_header(("x-should-retry", "false"));
            }
            Self::Unauthorized(_) => {
                response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
            }
            Self::RateLimited { seconds, .. } | Self::Restarting { seconds } => {
                response.insert_header((header::RETRY_AFTER, *seconds));
            }
            // The rest of the body may still be on its way.
            Self::TooLarge(_) | Self::TooSlow => {
                response.force_close();
            }
            _ => {}
        }
        response.json(self.body())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn an_upstreams_troubles_have_a_status_and_no_details() {
        let upstream = Error::Upstream {
            url: "http://secret".to_owned(),
            what: "broke".to_owned(),
        };
        for (error, status, code) in [
            (upstream, 502, "upstream_error"),
            (Error::UpstreamUnavailable, 503, "upstream_unavailable"),
        ] {
            let body = error.body();
            assert_eq!(error.seen().status, status);
            assert_eq!(body["error"]["code"], code);
            assert_eq!(body["error"]["type"], "server_error");
            assert!(!body.to_string().contains("secret"));
        }
        let busy = Error::UpstreamBusy {
            retry_after: Some("17".to_owned()),
        };
        let response = busy.error_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers().get("retry-after").unwrap(), "17");
    }

    #[test]
    fn who_asks_too_much_is_told_when_to_come_back() {
        let error = Error::RateLimited {
            key_id: "abcd1234".to_owned(),
            limit: Limit::Tokens,
            per_minute: 600,
            seconds: 17,
        };
        let response = error.error_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(
            response.headers().get(header::RETRY_AFTER),
            Some(&header::HeaderValue::from_static("17"))
        );
        let body = error.body();
        assert_eq!(
            (&body["error"]["type"], &body["error"]["code"]),
            (&json!("tokens"), &json!("rate_limit_exceeded"))
        );
    }

    #[test]
    fn all_four_fields_are_there_and_details_stay_inside() {
        let body = Error::Engine("a secret detail".to_owned()).body();
        let error = body["error"].as_object().unwrap();
        assert_eq!(
            error.keys().collect::<Vec<_>>(),
            ["message", "type", "param", "code"]
        );
        assert!(!body.to_string().contains("secret"));
        let body = Error::param("temperature", "decimal_above_max_value", "too hot").body();
        assert_eq!(body["error"]["param"], "temperature");
        assert_eq!(body["error"]["type"], "invalid_request_error");
    }
}
