//! Why an upstream gave no answer, read from whatever it said: servers agree on OpenAI's errors only roughly.
//!
//! What an upstream says of a request may repeat the prompt: it goes to the client that sent it, and never to the log.

use retune_wire::Refusal;
use serde_json::Value;

use crate::error::Error;

/// OpenAI's reason for a request that does not fit the model's context.
const TOO_LONG: &str = "context_length_exceeded";

/// Why an upstream gave no answer, and so who is to be asked next.
#[derive(Debug)]
pub(super) enum Failure {
    /// It is away, too slow, or says what nobody understands: another may do better. The text is for the log.
    Down(String),
    /// It answered that it failed.
    Failed(String),
    /// The connection broke before anything came: one that was kept open too long, most likely.
    Cut(String),
    /// It refuses Retune's own key, with this status.
    Key(u16),
    /// It does not know the model.
    Lost,
    /// It has too much to do; what it says about when to come back.
    Busy(Option<String>),
    /// The request is wrong, wherever it goes.
    Refused(Error),
}

impl Failure {
    /// The request's failure, once no other upstream can help.
    pub(super) fn into_error(self, url: &str) -> Error {
        let upstream = |what: String| Error::Upstream {
            url: url.to_owned(),
            what,
        };
        match self {
            Self::Key(status) => upstream(format!(
                "refuses the key of engine.api_key_env, or that there is none ({status})"
            )),
            Self::Busy(retry_after) => Error::UpstreamBusy { retry_after },
            Self::Refused(e) => e,
            Self::Down(_) | Self::Failed(_) | Self::Cut(_) | Self::Lost => {
                Error::UpstreamUnavailable
            }
        }
    }

    /// The failure of an answer that has begun: no client can mend that any more.
    pub(super) fn midway(self, url: &str) -> Error {
        Error::Upstream {
            url: url.to_owned(),
            what: format!("broke off an answer: {}", self.told()),
        }
    }

    /// For the log.
    pub(super) fn told(&self) -> String {
        match self {
            Self::Down(what) | Self::Failed(what) | Self::Cut(what) => what.clone(),
            Self::Key(status) => format!("refuses the key ({status})"),
            Self::Lost => "does not know the model (404)".to_owned(),
            Self::Busy(_) => "has too much to do (429)".to_owned(),
            Self::Refused(_) => "refuses the request".to_owned(),
        }
    }
}

/// What an error says, in any of the shapes that servers give it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Told {
    pub(super) message: Option<String>,
    param: Option<String>,
    kind: Option<String>,
    /// OpenAI's reason, where `code` is a text.
    code: Option<String>,
    /// The status, where `code` is a number.
    status: Option<u16>,
}

/// The error that an answer, or an event of one, holds; `None` if it is no error.
pub(super) fn told(value: &Value) -> Option<Told> {
    let text = |v: &Value, key: &str| v.get(key)?.as_str().map(str::to_owned);
    let error = match value.get("error") {
        // Some say no more than a sentence.
        Some(Value::String(message)) => {
            return Some(Told {
                message: Some(message.clone()),
                ..Told::default()
            });
        }
        Some(error @ Value::Object(_)) => error,
        // vLLM before 0.10 has the members at the top.
        _ if value.get("object").is_some_and(|o| o == "error") => value,
        _ => return None,
    };
    let code = error.get("code");
    Some(Told {
        message: text(error, "message"),
        param: text(error, "param"),
        kind: text(error, "type"),
        code: code.and_then(Value::as_str).map(str::to_owned),
        status: code
            .and_then(Value::as_u64)
            .and_then(|n| u16::try_from(n).ok()),
    })
}

/// The error in a body that came with a status that is none of success.
pub(super) fn told_in_body(body: &[u8]) -> Told {
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        return Told::default();
    };
    told(&value).unwrap_or_else(|| {
        // FastAPI's own errors, and servers that say `message` alone.
        let message = ["message", "detail"]
            .iter()
            .find_map(|key| value.get(key)?.as_str().map(str::to_owned));
        Told {
            message,
            ..Told::default()
        }
    })
}

/// What an answer with an error's status, or an error with one inside a stream, means.
pub(super) fn of_status(
    status: u16,
    retry_after: Option<String>,
    told: Told,
    constraint: Option<&'static str>,
) -> Failure {
    match status {
        400 | 413 | 422 => Failure::Refused(invalid(told, constraint)),
        401 | 403 => Failure::Key(status),
        404 => Failure::Lost,
        429 => Failure::Busy(retry_after),
        _ => Failure::Failed(match told.kind.as_deref().filter(|kind| is_word(kind)) {
            Some(kind) => format!("answered {status} ({kind})"),
            None => format!("answered {status}"),
        }),
    }
}

/// What an error inside a stream means; without a status it is the server's.
pub(super) fn in_stream(told: Told, constraint: Option<&'static str>) -> Failure {
    let status = told.status.unwrap_or(500);
    match of_status(status, None, told, constraint) {
        Failure::Failed(what) => Failure::Failed(format!("{what} inside a stream")),
        other => other,
    }
}

/// A client's own mistake, in OpenAI's words.
fn invalid(told: Told, constraint: Option<&'static str>) -> Error {
    const LONGEST: usize = 2000;
    let mut message = told
        .message
        .unwrap_or_else(|| "The model's server refused this request without a reason.".to_owned());
    if let Some((end, _)) = message.char_indices().nth(LONGEST) {
        message.truncate(end);
        message.push('…');
    }
    // The constraint goes upstream under other names than the client's.
    let names_it = |name: &&str| message.contains(*name) || told.param.as_deref() == Some(*name);
    let constrained = ["response_format", "guided", "structured_outputs", "grammar"]
        .iter()
        .any(names_it);
    let param = match constraint {
        Some(param) if constrained => Some(param.to_owned()),
        _ => told.param,
    };
    let too_long = [
        "maximum context length",
        "context length is only",
        "context size",
    ]
    .iter()
    .any(|words| message.contains(words));
    let code = told.code.as_deref().and_then(known);
    let code = code.or(too_long.then_some(TOO_LONG));
    Refusal {
        message,
        param,
        code,
    }
    .into()
}

/// Names what is too long as the client does, `messages` or `prompt`: vLLM calls it `input_tokens`, others nothing.
pub(super) fn naming(error: Error, prompt: &str) -> Error {
    let is_limit = |param: &String| param.starts_with("max_");
    match error {
        Error::Invalid(refusal)
            if refusal.code == Some(TOO_LONG) && !refusal.param.as_ref().is_some_and(is_limit) =>
        {
            Refusal {
                param: Some(prompt.to_owned()),
                ..refusal
            }
            .into()
        }
        other => other,
    }
}

/// Whether a 404 says that there is no route to load adapters, rather than no adapter at this path.
pub(super) fn is_no_route(said: &str, path: &str) -> bool {
    // Some repeat the route's own name.
    let said = said.replace("load_lora_adapter", "");
    !said.contains(path) && !said.contains("adapter")
}

/// Reasons that OpenAI has, among those that servers give.
fn known(code: &str) -> Option<&'static str> {
    const KNOWN: [&str; 14] = [
        "array_above_max_length",
        "context_length_exceeded",
        "decimal_above_max_value",
        "decimal_below_min_value",
        "empty_array",
        "empty_string",
        "integer_above_max_value",
        "integer_below_min_value",
        "invalid_type",
        "invalid_value",
        "missing_required_parameter",
        "string_above_max_length",
        "unknown_parameter",
        "unsupported_parameter",
    ];
    KNOWN.into_iter().find(|known| *known == code)
}

/// Whether a kind of error is a mere name, which repeats nothing.
fn is_word(kind: &str) -> bool {
    kind.len() <= 64 && kind.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use serde_json::json;

    use super::*;

    fn refused(status: u16, body: &Value, constraint: Option<&'static str>) -> Error {
        let told = told_in_body(body.to_string().as_bytes());
        match of_status(status, None, told, constraint) {
            Failure::Refused(e) => e,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_shape_of_an_error_becomes_openais() {
        for body in [
            json!({"error": {"message": "too hot", "type": "BadRequestError", "param": "temperature", "code": 400}}),
            json!({"object": "error", "message": "too hot", "type": "BadRequestError", "param": "temperature", "code": 400}),
        ] {
            let error = refused(400, &body, None).body();
            let expected = json!({"error": {"message": "too hot", "type": "invalid_request_error", "param": "temperature", "code": null}});
            assert_eq!(error, expected);
        }
        for body in [
            json!({"error": "too hot"}),
            json!({"message": "too hot"}),
            json!({"detail": "too hot"}),
        ] {
            assert_eq!(refused(422, &body, None).to_string(), "too hot");
        }
        let said = refused(400, &json!({"detail": [{"loc": ["body"]}]}), None);
        assert!(said.to_string().contains("without a reason"));
    }

    #[test]
    fn reasons_and_parameters_are_those_that_clients_know() {
        let body = json!({"error": {"message": "This model's maximum context length is 8 tokens.", "code": "made_up"}});
        match refused(400, &body, None) {
            Error::Invalid(refusal) => assert_eq!(refusal.code, Some("context_length_exceeded")),
            other => panic!("{other:?}"),
        }
        let body = json!({"error": {"message": "guided_regex: cannot be compiled", "code": 400}});
        match refused(400, &body, Some("response_format")) {
            Error::Invalid(refusal) => {
                assert_eq!(refusal.param.as_deref(), Some("response_format"))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_too_long_is_called_what_the_client_calls_it() {
        let newer = "You passed 9 input tokens and requested 2 output tokens. However, the model's context length is only 8 tokens.";
        let older = "This model's maximum context length is 8 tokens.";
        for (message, param, named) in [
            (newer, json!("input_tokens"), "messages"),
            (older, Value::Null, "messages"),
            (older, json!("max_tokens"), "max_tokens"),
        ] {
            let body = json!({"error": {"message": message, "param": param, "code": 400}});
            let error = naming(refused(400, &body, None), "messages").body();
            assert_eq!(
                (&error["error"]["param"], &error["error"]["code"]),
                (&json!(named), &json!("context_length_exceeded"))
            );
        }
        let body = json!({"error": {"message": "too hot", "param": "temperature", "code": 400}});
        let error = naming(refused(400, &body, None), "messages").body();
        assert_eq!(error["error"]["param"], "temperature");
    }

    #[test]
    fn a_route_that_is_missing_is_told_from_an_adapter_that_is() {
        let path = "/srv/adapters/t/1";
        for said in ["Not Found", "Invalid URL (POST /v1/load_lora_adapter)", ""] {
            assert!(is_no_route(said, path), "{said}");
        }
        for said in [
            "Loading lora t failed: No adapter found for /srv/adapters/t/1",
            "The lora adapter 't' cannot be found.",
            "/srv/adapters/t/1: no such folder",
        ] {
            assert!(!is_no_route(said, path), "{said}");
        }
    }

    #[test]
    fn the_rest_is_the_servers_and_says_nothing_of_the_request() {
        let told = || told_in_body(br#"{"error": {"message": "my prompt", "type": "EngineDead"}}"#);
        for (status, shown) in [
            (500, "answered 500 (EngineDead)"),
            (302, "answered 302 (EngineDead)"),
        ] {
            assert_eq!(of_status(status, None, told(), None).told(), shown);
        }
        assert!(matches!(
            of_status(401, None, told(), None),
            Failure::Key(401)
        ));
        assert!(matches!(of_status(404, None, told(), None), Failure::Lost));
        let busy = of_status(429, Some("7".to_owned()), told(), None).into_error("http://a");
        assert!(matches!(busy, Error::UpstreamBusy { retry_after: Some(after) } if after == "7"));
        let midway =
            Failure::Refused(Error::UnknownModel("my prompt".to_owned())).midway("http://a");
        assert!(!midway.to_string().contains("my prompt"), "{midway}");
    }

    #[test]
    fn an_error_inside_a_stream_has_its_status_in_its_code() {
        let event = |code: Value| told(&json!({"error": {"message": "m", "code": code}})).unwrap();
        assert!(matches!(
            in_stream(event(json!(400)), None),
            Failure::Refused(_)
        ));
        assert!(matches!(
            in_stream(event(json!("x")), None),
            Failure::Failed(_)
        ));
        assert!(matches!(
            in_stream(event(json!(503)), None),
            Failure::Failed(_)
        ));
        assert_eq!(told(&json!({"choices": [], "error": null})), None);
    }
}
