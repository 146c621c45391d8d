//! Who is calling: what the ledger's keys say, as a snapshot that is swapped every second.
//!
//! Nobody is asked for a key until somebody has made one. From then on this process asks for as long as it runs: files that vanish
//! from the store must not open a server that other machines reach.

use std::collections::HashMap;

use actix_web::http::header::HeaderValue;
use actix_web::{HttpMessage, HttpRequest};
use retune_ledger::{Key, KeyList, KeyText, Role};

use crate::error::Error;

/// Who a request is from; the guard puts it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// None while there are no keys.
    pub(crate) key_id: Option<String>,
    pub(crate) role: Role,
}

impl Caller {
    /// Everybody, while there are no keys.
    pub(crate) fn anybody() -> Self {
        Self {
            key_id: None,
            role: Role::Admin,
        }
    }

    /// This process itself or one of its children, or anybody on this machine while there are no keys.
    pub(crate) fn is_this_process(&self) -> bool {
        self.key_id
            .as_deref()
            .is_none_or(|id| id == KeyText::INTERNAL)
    }

    /// The request's caller. One that came past the guard, which does not happen, has the least role.
    pub(crate) fn of(request: &HttpRequest) -> Self {
        request.extensions().get().cloned().unwrap_or(Self {
            key_id: None,
            role: Role::App,
        })
    }
}

/// The keys at one time.
pub(crate) struct Keys {
    /// What the store would hold of the key that this process made for itself and its children.
    internal_hash: String,
    required: bool,
    by_id: HashMap<String, Key>,
}

impl Keys {
    pub(crate) fn new(internal: &KeyText, list: &KeyList) -> Self {
        Self {
            internal_hash: internal.hash(),
            required: false,
            by_id: HashMap::new(),
        }
        .next(list)
    }

    /// The keys as they are now.
    pub(crate) fn next(&self, list: &KeyList) -> Self {
        let by_id = list.keys.iter().map(|key| (key.id.clone(), key.clone()));
        Self {
            internal_hash: self.internal_hash.clone(),
            required: self.required || !list.is_empty(),
            by_id: by_id.collect(),
        }
    }

    /// Whether a request needs a key.
    pub(crate) fn required(&self) -> bool {
        self.required
    }

    /// The role of a key that is good now, by its id.
    pub(crate) fn role_of(&self, id: &str) -> Option<Role> {
        let key = self.by_id.get(id)?;
        key.revoked.is_none().then_some(key.role)
    }

    /// Who sent this `Authorization`.
    pub(crate) fn caller(&self, authorization: Option<&HeaderValue>) -> Result<Caller, Error> {
        let refused = |message: &str| Err(Error::Unauthorized(message.to_owned()));
        let Some(sent) = authorization else {
            return refused(
                "You didn't provide an API key. Send one in the header 'Authorization: Bearer YOUR_KEY'; whoever runs this server makes \
                 one with `retune keys create`.",
            );
        };
        self.whose(sent.to_str().ok().and_then(bearer).unwrap_or_default())
    }

    /// Whose key that is.
    pub(crate) fn whose(&self, key: &str) -> Result<Caller, Error> {
        let refused = |message: &str| Err(Error::Unauthorized(message.to_owned()));
        let key = KeyText::parse(key).and_then(|text| Some((self.role(&text)?, text)));
        match key {
            Some((Some(role), text)) => Ok(Caller {
                key_id: Some(text.id().to_owned()),
                role,
            }),
            Some((None, text)) => refused(&format!(
                "The API key '{}' was revoked. Whoever runs this server makes another with `retune keys create`.",
                text.id()
            )),
            // What was sent is not repeated: it may be a secret of somewhere else.
            None => refused(
                "Incorrect API key provided. A key looks like 'rt-abcd1234-…'; `retune keys list` shows the ids of those that there are.",
            ),
        }
    }

    /// None: no such key. Some(None): a revoked one. That an id exists is no secret; whether the secret fits is compared in constant time.
    fn role(&self, text: &KeyText) -> Option<Option<Role>> {
        if text.id() == KeyText::INTERNAL {
            return text
                .matches(&self.internal_hash)
                .then_some(Some(Role::Admin));
        }
        let key = self.by_id.get(text.id())?;
        text.matches(&key.hash)
            .then(|| key.revoked.is_none().then_some(key.role))
    }
}

fn bearer(text: &str) -> Option<&str> {
    let (scheme, token) = text.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_matches(' '))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use chrono::Utc;
    use proptest::prelude::*;

    use super::*;

    fn list(keys: &[&Key]) -> KeyList {
        KeyList {
            keys: keys.iter().map(|key| (*key).clone()).collect(),
            damaged: Vec::new(),
        }
    }

    fn send(keys: &Keys, text: &str) -> Result<Caller, String> {
        let header = HeaderValue::from_str(text).unwrap();
        keys.caller(Some(&header)).map_err(|e| e.to_string())
    }

    #[test]
    fn a_key_is_who_it_says_until_it_is_revoked() {
        let internal = KeyText::internal().unwrap();
        let (mut key, text) = Key::new("shop", Role::Rater).unwrap();
        let keys = Keys::new(&internal, &list(&[&key]));
        let caller = send(&keys, &format!("Bearer {}", text.reveal())).unwrap();
        assert_eq!(
            (caller.key_id.as_deref(), caller.role),
            (Some(text.id()), Role::Rater)
        );
        assert!(send(&keys, &format!("bearer  {}", text.reveal())).is_ok());
        let own = send(&keys, &format!("Bearer {}", internal.reveal())).unwrap();
        assert_eq!(
            (own.key_id.as_deref(), own.role),
            (Some("internal"), Role::Admin)
        );
        key.revoked = Some(Utc::now());
        let keys = keys.next(&list(&[&key]));
        let said = send(&keys, &format!("Bearer {}", text.reveal())).unwrap_err();
        assert!(said.contains("revoked"), "{said}");
    }

    #[test]
    fn nothing_else_gets_in_and_nothing_that_was_sent_is_repeated() {
        let internal = KeyText::internal().unwrap();
        let (key, text) = Key::new("shop", Role::App).unwrap();
        let (_, stranger) = Key::new("shop", Role::App).unwrap();
        let keys = Keys::new(&internal, &list(&[&key]));
        let mut own_id = stranger.reveal();
        own_id.replace_range(3..11, text.id());
        let mut internal_id = stranger.reveal();
        internal_id.replace_range(3..11, KeyText::INTERNAL);
        for sent in [
            text.reveal(),
            format!("Basic {}", text.reveal()),
            format!("Bearer {}x", text.reveal()),
            format!("Bearer {}", stranger.reveal()),
            format!("Bearer {own_id}"),
            format!("Bearer {internal_id}"),
            "Bearer".to_owned(),
            "Bearer sk-proj-of-somewhere-else".to_owned(),
            String::new(),
        ] {
            let said = send(&keys, &sent).unwrap_err();
            assert!(said.starts_with("Incorrect API key"), "{said}");
            assert!(sent.len() < 12 || !said.contains(&sent[7..]), "{said}");
        }
        assert!(keys.caller(None).is_err());
    }

    #[test]
    fn once_asked_for_a_key_always_asked() {
        let internal = KeyText::internal().unwrap();
        let open = Keys::new(&internal, &KeyList::default());
        assert!(!open.required());
        let (key, _) = Key::new("shop", Role::App).unwrap();
        let keyed = open.next(&list(&[&key]));
        assert!(keyed.required() && keyed.next(&KeyList::default()).required());
        let damaged = KeyList {
            keys: Vec::new(),
            damaged: vec![retune_ledger::Error::NoKey { id: "x".to_owned() }],
        };
        assert!(open.next(&damaged).required());
    }

    proptest! {
        #[test]
        fn any_header_is_answered(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let keys = Keys::new(&KeyText::internal().unwrap(), &KeyList::default());
            if let Ok(header) = HeaderValue::from_bytes(&bytes) {
                prop_assert!(keys.caller(Some(&header)).is_err());
            }
        }
    }
}
