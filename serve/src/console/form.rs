//! What a form sends: nothing of it is read without its session's token.

use actix_web::{HttpMessage, HttpRequest, web};

use super::Seat;
use crate::error::Error;
use crate::routes::body;
use crate::state::App;

/// Fields of a form that are read: no page has as many.
const FIELDS: usize = 64;
/// Bytes of a form; and of one that somebody sends who has not signed in.
const BYTES: usize = 1 << 20;
const STRANGER_BYTES: usize = 16 << 10;

/// Names and values, as a form or an address has them.
#[derive(Debug)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// What can be read of it; the rest is nothing.
    pub(super) fn read(encoded: &[u8]) -> Self {
        let fields = url::form_urlencoded::parse(encoded).into_owned();
        Self(fields.take(FIELDS).collect())
    }

    /// A form's fields.
    pub(super) async fn of_form(
        app: &App,
        http: &HttpRequest,
        payload: web::Payload,
    ) -> Result<Self, Error> {
        let is_known = {
            let extensions = http.extensions();
            let seat = extensions.get::<Seat>();
            seat.is_some_and(|seat| seat.caller.is_some())
        };
        let limit = if is_known { BYTES } else { STRANGER_BYTES };
        let limit = limit.min(app.config.server.max_body_bytes);
        let bytes = body::bytes(payload, limit).await?;
        let fields = Self::read(&bytes);
        let sent = fields.text("token").unwrap_or_default();
        let extensions = http.extensions();
        let is_ours = extensions
            .get::<Seat>()
            .is_some_and(|seat| seat.session.is_token(sent, &|text| app.ledger.seal(text)));
        if !is_ours {
            return Err(Error::Forbidden(
                "This form is of another session, or too old: load its page again.".to_owned(),
            ));
        }
        drop(extensions);
        Ok(fields)
    }

    /// A field's value, if it says anything.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(of, _)| of == name);
        found
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// A text of several lines as it was written: browsers end each with two characters.
    pub(super) fn lines(&self, name: &str) -> Option<String> {
        self.text(name).map(|text| text.replace("\r\n", "\n"))
    }

    /// A field that has to be there.
    pub(super) fn required(&self, name: &str) -> Result<&str, Error> {
        self.text(name).ok_or_else(|| {
            let message = format!("The form's field '{name}' is missing.");
            Error::param(name, "missing_required_parameter", message)
        })
    }

    /// The marks of a rubric, each from the field of its criterion behind `prefix`.
    pub(super) fn marks(&self, prefix: &str) -> serde_json::Map<String, serde_json::Value> {
        let mark = |name: &str| {
            let mark: i64 = self.text(&format!("{prefix}{name}"))?.parse().ok()?;
            Some((name.to_owned(), mark.into()))
        };
        retune_task::CRITERIA.into_iter().filter_map(mark).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_browsers_send_them() {
        let fields = Fields::read(b"a=1%202&b=x%0D%0Ay&c=&style=4&left.style=5&a=3");
        assert_eq!(fields.text("a"), Some("1 2"));
        assert_eq!(fields.lines("b").as_deref(), Some("x\ny"));
        assert_eq!(fields.text("c"), None);
        assert!(fields.required("d").is_err());
        assert_eq!(fields.marks("")["style"], 4);
        assert_eq!(fields.marks("left.")["style"], 5);
        assert!(fields.marks("right.").is_empty());
        assert_eq!(Fields::read(&[0xff, b'=', b'%', b'z']).text("a"), None);
        let many = Fields::read("a&".repeat(10_000).as_bytes());
        assert_eq!(many.0.len(), FIELDS);
    }
}
