//! What is shown where there is nothing else to show.

use askama::Template;

use crate::frame::Frame;

/// The page.
#[derive(Template)]
#[template(path = "failure.html")]
pub struct Page {
    /// What is around it.
    pub frame: Frame,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong, and what to do.
    pub message: String,
    /// By which the server's log knows the request.
    pub request_id: Option<String>,
}

impl Page {
    fn title(&self) -> &'static str {
        match self.status {
            403 => "Not with this key",
            404 => "Not here",
            409 => "Not now",
            429 => "Too much at once",
            400..500 => "Not like this",
            _ => "Something went wrong",
        }
    }
}
