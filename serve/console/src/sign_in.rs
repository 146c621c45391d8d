//! Where somebody shows their key.

use askama::Template;

use crate::frame::Frame;

/// The page.
#[derive(Template)]
#[template(path = "sign_in.html")]
pub struct Page {
    /// What is around it.
    pub frame: Frame,
    /// Why the last try failed.
    pub refused: Option<String>,
    /// Where they wanted to go.
    pub to: String,
}
