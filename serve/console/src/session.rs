//! Who sits at the console: a cookie that the installation has sealed, and the token that its forms carry.
//!
//! No session is kept anywhere: any replica can read the cookie, and a key that is revoked ends its sessions. The token is another seal of the same
//! session, so that a page from elsewhere, which can send the cookie but not read it, cannot send a form.

use chrono::{DateTime, TimeDelta, Utc};
use subtle::ConstantTimeEq;

/// The cookie's name.
pub const COOKIE: &str = "retune_console";
/// How long somebody stays signed in.
pub const HOURS: i64 = 12;

/// A seal that only this installation can make of a text.
pub type Seal<'a> = &'a dyn Fn(&str) -> String;

/// One sign-in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// With which key; none where the server asks for none.
    pub key_id: Option<String>,
    /// Tells sign-ins apart: random, of letters and digits.
    pub nonce: String,
    /// Until then it is good.
    pub until: DateTime<Utc>,
}

impl Session {
    /// Begins now.
    pub fn begin(key_id: Option<String>, nonce: String, now: DateTime<Utc>) -> Self {
        Self {
            key_id,
            nonce,
            until: now + TimeDelta::hours(HOURS),
        }
    }

    /// The cookie's value.
    pub fn cookie(&self, seal: Seal<'_>) -> String {
        let body = self.body();
        let seal = seal(&sealed_as("session", &body));
        format!("{body}.{seal}")
    }

    /// The session of a cookie; none where it is not ours, or over.
    pub fn read(cookie: &str, now: DateTime<Utc>, seal: Seal<'_>) -> Option<Self> {
        let (body, sealed) = cookie.rsplit_once('.')?;
        if !same(&seal(&sealed_as("session", body)), sealed) {
            return None;
        }
        let mut parts = body.split('.');
        let (key, nonce, until) = (parts.next()?, parts.next()?, parts.next()?);
        let session = Self {
            key_id: Some(key.to_owned()).filter(|key| !key.is_empty()),
            nonce: nonce.to_owned(),
            until: DateTime::from_timestamp(until.parse().ok()?, 0)?,
        };
        (parts.next().is_none() && now < session.until).then_some(session)
    }

    /// What a form has to carry.
    pub fn token(&self, seal: Seal<'_>) -> String {
        seal(&sealed_as("form", &self.body()))
    }

    /// Whether a form carries it.
    pub fn is_token(&self, sent: &str, seal: Seal<'_>) -> bool {
        same(&self.token(seal), sent)
    }

    fn body(&self) -> String {
        let key = self.key_id.as_deref().unwrap_or_default();
        format!("{key}.{}.{}", self.nonce, self.until.timestamp())
    }
}

fn sealed_as(what: &str, body: &str) -> String {
    format!("console {what}\n{body}")
}

/// In constant time: how much of a guess was right is nobody's to learn.
fn same(a: &str, b: &str) -> bool {
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn seal(text: &str) -> String {
        retune_task::sha256(&format!("secret {text}"))
    }

    #[test]
    fn a_cookie_is_good_until_its_end_and_only_as_it_was_made() {
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        for key in [Some("abcd1234".to_owned()), None] {
            let session = Session::begin(key, "n0nce".to_owned(), now);
            let cookie = session.cookie(&seal);
            assert_eq!(Session::read(&cookie, now, &seal).as_ref(), Some(&session));
            assert_eq!(Session::read(&cookie, session.until, &seal), None);
            let other = |text: &str| retune_task::sha256(text);
            assert_eq!(Session::read(&cookie, now, &other), None);
            for place in 0..cookie.len() {
                let mut forged = cookie.clone().into_bytes();
                forged[place] ^= 1;
                let forged = String::from_utf8_lossy(&forged);
                assert_eq!(Session::read(&forged, now, &seal), None, "{forged}");
            }
        }
        for cookie in ["", ".", "....", "a.b.c.d"] {
            assert_eq!(Session::read(cookie, now, &seal), None);
        }
    }

    #[test]
    fn a_form_s_token_is_its_session_s_and_no_cookie() {
        let now = Utc::now();
        let ann = Session::begin(Some("ann".to_owned()), "1".to_owned(), now);
        let ben = Session::begin(Some("ann".to_owned()), "2".to_owned(), now);
        let token = ann.token(&seal);
        assert!(ann.is_token(&token, &seal));
        assert!(!ben.is_token(&token, &seal));
        assert!(!ann.is_token("", &seal));
        assert!(!ann.cookie(&seal).contains(&token));
    }
}
