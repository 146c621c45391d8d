//! What is wrong with a request, as its client is told.

/// A request that is not done, and why: a 400 with OpenAI's type `invalid_request_error`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For the client.
    pub message: String,
    /// The parameter that is wrong, as a path in the request.
    pub param: Option<String>,
    /// OpenAI's machine-readable reason.
    pub code: Option<&'static str>,
}

impl Refusal {
    /// A parameter with a value that will not do.
    pub fn param(param: &str, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            param: Some(param.to_owned()),
            code: Some(code),
        }
    }
}
