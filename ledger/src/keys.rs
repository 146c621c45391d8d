//! Who may call the server: keys, each a file `keys/<id>.json` that is created once, and `keys/<id>.revoked.json` beside it once the
//! key is taken back.
//!
//! A key's text is `rt-<id>-<secret>`. The store keeps the SHA-256 of the secret and never the secret. A plain hash is right here: the
//! secret is 256 random bits, which nobody can go through, whereas the slow and salted hashes are for passwords that people choose;
//! and a key is checked at every request.
//!
//! A damaged file never opens anything: its key is left out, and the file is named beside the keys that could be read, so that one bad
//! file neither hides the others nor their revocations.

use std::collections::HashSet;
use std::fmt;

use chrono::{DateTime, Utc};
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::error::Error;
use crate::files;
use crate::place::Place;
use crate::rows::Feedback;

const FOLDER: &str = "keys";
const PREFIX: &str = "rt-";
const ID: usize = 8;
/// Hex digits of 32 bytes: a secret has as many as its hash.
const SECRET: usize = 64;
const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const FILE: &str = ".json";
const REVOKED_FILE: &str = ".revoked.json";

/// What a key is good for; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Asks, and says what it thinks of answers.
    App,
    /// Its corrections may train.
    Rater,
    /// Everything.
    Admin,
}

impl Role {
    /// All, in order.
    pub const ALL: [Role; 3] = [Role::App, Role::Rater, Role::Admin];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::App => "app",
            Role::Rater => "rater",
            Role::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A key as the store knows it: all but its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
// A restriction that this version does not know must not be passed over.
#[serde(deny_unknown_fields)]
pub struct Key {
    /// 8 lower-case letters and digits.
    pub id: String,
    /// For people.
    pub name: String,
    /// What it is good for.
    pub role: Role,
    /// SHA-256 of the secret, in hex.
    pub hash: String,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// Requests it may make in a minute; any number where not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Tokens it may use in a minute; any number where not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u32>,
    /// When it was taken back: from the file beside it.
    #[serde(skip)]
    pub revoked: Option<DateTime<Utc>>,
}

impl Key {
    /// A fresh key, and its text, which nothing else will ever say again.
    pub fn new(name: &str, role: Role) -> Result<(Key, KeyText), Error> {
        let text = KeyText::random()?;
        let key = Key {
            id: text.id.clone(),
            name: name.to_owned(),
            role,
            hash: text.hash(),
            created: Utc::now(),
            requests_per_minute: None,
            tokens_per_minute: None,
            revoked: None,
        };
        Ok((key, text))
    }
}

/// A key as its holder has it. Shown only by [`KeyText::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText {
    id: String,
    secret: String,
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-…", self.id)
    }
}

impl KeyText {
    /// The id of the key that a serving process makes for itself; no stored key has it.
    pub const INTERNAL: &str = "internal";

    /// A fresh one, from the operating system's randomness.
    pub fn random() -> Result<KeyText, Error> {
        loop {
            let id = random_id()?;
            if id != Self::INTERNAL {
                return Ok(KeyText {
                    id,
                    secret: random_secret()?,
                });
            }
        }
    }

    /// A fresh one with the id `internal`, for a serving process and its children.
    pub fn internal() -> Result<KeyText, Error> {
        Ok(KeyText {
            id: Self::INTERNAL.to_owned(),
            secret: random_secret()?,
        })
    }

    /// Reads what [`KeyText::reveal`] wrote, and nothing else.
    pub fn parse(text: &str) -> Option<KeyText> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('-')?;
        (is_id(id) && is_hex(secret)).then(|| KeyText {
            id: id.to_owned(),
            secret: secret.to_owned(),
        })
    }

    /// Which key it claims to be.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The text itself: `rt-<id>-<secret>`.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}-{}", self.id, self.secret)
    }

    /// What the store keeps of the secret.
    pub fn hash(&self) -> String {
        retune_task::sha256(&self.secret)
    }

    /// Whether its secret is the one of that hash, in constant time.
    pub fn matches(&self, hash: &str) -> bool {
        self.hash().as_bytes().ct_eq(hash.as_bytes()).into()
    }
}

fn random(bytes: &mut [u8]) -> Result<(), Error> {
    OsRng
        .try_fill_bytes(bytes)
        .map_err(|e| Error::Random(e.to_string()))
}

fn random_id() -> Result<String, Error> {
    let mut id = String::with_capacity(ID);
    while id.len() < ID {
        let mut byte = [0u8];
        random(&mut byte)?;
        // The highest numbers are drawn again, or the first letters would come more often.
        if byte[0] < 252 {
            id.push(char::from(LETTERS[usize::from(byte[0] % 36)]));
        }
    }
    Ok(id)
}

fn random_secret() -> Result<String, Error> {
    let mut bytes = [0u8; SECRET / 2];
    random(&mut bytes)?;
    Ok(retune_task::hex(&bytes))
}

fn is_id(text: &str) -> bool {
    text.len() == ID && text.bytes().all(|b| LETTERS.contains(&b))
}

fn is_hex(text: &str) -> bool {
    text.len() == SECRET && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// All keys that could be read, oldest first, and what is wrong with the other files.
#[derive(Debug, Default)]
pub struct KeyList {
    /// Revoked ones too.
    pub keys: Vec<Key>,
    /// Each error names its file.
    pub damaged: Vec<Error>,
}

impl KeyList {
    /// Whether nobody ever made a key: then nobody has to have one. Revoked and damaged ones count.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.damaged.is_empty()
    }

    /// Whose corrections train: the ids of keys with the role rater, or more. None while there are no keys: then everybody's do. So do
    /// the words of whoever spoke without a key, before there were any, and of a key that was good when it said them.
    pub fn raters(&self) -> Option<Vec<&str>> {
        let raters = self.keys.iter().filter(|key| key.role >= Role::Rater);
        (!self.is_empty()).then(|| raters.map(|key| key.id.as_str()).collect())
    }

    /// Takes the corrections out of what was not said by a rater: they must not train.
    pub fn withhold_corrections(&self, said: &mut [Feedback]) {
        let Some(raters) = self.raters() else {
            return;
        };
        let raters: HashSet<&str> = raters.into_iter().collect();
        for said in said {
            let trusted = match said.rater.as_deref() {
                None => true,
                Some(rater) => raters.contains(rater),
            };
            if !trusted {
                said.correction = None;
            }
        }
    }

    /// The keys, if every file was in order.
    pub fn whole(self) -> Result<Vec<Key>, Error> {
        match self.damaged.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(self.keys),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Revocation {
    id: String,
    revoked: DateTime<Utc>,
}

fn place(store: &Place, id: &str, ending: &str) -> Place {
    store.join(FOLDER).join(format!("{id}{ending}"))
}

fn create(place: &Place, value: &impl Serialize) -> Result<bool, Error> {
    place.create_once_for_owner(&files::json(&place.shown(), value)?)
}

pub(crate) fn put(store: &Place, key: &Key) -> Result<bool, Error> {
    let place = place(store, &key.id, FILE);
    check(key, &key.id).map_err(|what| Error::Damaged {
        path: place.shown(),
        what,
    })?;
    create(&place, key)
}

pub(crate) fn revoke(store: &Place, id: &str) -> Result<bool, Error> {
    // An id is looked at before it becomes part of a path.
    if !is_id(id) || place(store, id, FILE).read()?.is_none() {
        return Err(Error::NoKey { id: id.to_owned() });
    }
    let revocation = Revocation {
        id: id.to_owned(),
        revoked: Utc::now(),
    };
    create(&place(store, id, REVOKED_FILE), &revocation)
}

pub(crate) fn all(store: &Place) -> Result<KeyList, Error> {
    let mut list = KeyList::default();
    for name in store.join(FOLDER).names()? {
        let id = match name.strip_suffix(FILE) {
            Some(id) if !name.ends_with(REVOKED_FILE) => id,
            _ => continue,
        };
        match read(store, id) {
            Ok(key) => list.keys.push(key),
            Err(error) => list.damaged.push(error),
        }
    }
    list.keys
        .sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
    Ok(list)
}

fn read(store: &Place, id: &str) -> Result<Key, Error> {
    let damaged = |place: &Place, what: &str| Error::Damaged {
        path: place.shown(),
        what: format!("{what}; restore it from a copy, or remove it and make another key"),
    };
    let file = place(store, id, FILE);
    let gone = || damaged(&file, "was there and is gone");
    let mut key: Key = file.read_json()?.ok_or_else(gone)?;
    check(&key, id).map_err(|what| damaged(&file, &what))?;
    let file = place(store, id, REVOKED_FILE);
    let revocation: Option<Revocation> = file.read_json()?;
    key.revoked = revocation.map(|r| r.revoked);
    Ok(key)
}

/// Whether a key is one that could have been made here.
fn check(key: &Key, id: &str) -> Result<(), String> {
    if key.id != id {
        return Err(format!("is named {id}, and holds the key {:?}", key.id));
    }
    if !is_id(id) || id == KeyText::INTERNAL {
        return Err(format!(
            "{id:?} is no id of a key: 8 lower-case letters and digits, and not {:?}",
            KeyText::INTERNAL
        ));
    }
    if !is_hex(&key.hash) {
        return Err("its hash is not 64 hex digits".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".*") {
            if let Some(key) = KeyText::parse(&text) {
                prop_assert_eq!(key.reveal(), text);
            }
        }

        #[test]
        fn what_looks_nearly_like_a_key_is_parsed_exactly(text in "(rt-)?[a-z0-9ä]{7,9}-?[0-9a-fA-Fé]{63,65}\n?") {
            let exact = text.is_ascii() && text.len() == 76 && text.starts_with("rt-") && text.as_bytes()[11] == b'-'
                && !text[3..11].contains('-') && text[12..].bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'));
            prop_assert_eq!(KeyText::parse(&text).map(|k| k.reveal()), exact.then_some(text));
        }

        #[test]
        fn one_other_digit_is_another_key(at in 12..76_usize) {
            let (key, text) = Key::new("a", Role::App).unwrap();
            let mut other = text.reveal().into_bytes();
            other[at] = if other[at] == b'0' { b'1' } else { b'0' };
            let other = KeyText::parse(&String::from_utf8(other).unwrap()).unwrap();
            prop_assert!(text.matches(&key.hash) && !other.matches(&key.hash) && !text.matches(""));
        }
    }

    #[test]
    fn no_two_are_alike_and_none_shows_its_secret() {
        let (key, text) = Key::new("shop", Role::Rater).unwrap();
        let (other, _) = Key::new("shop", Role::Rater).unwrap();
        assert!(key.id != other.id && key.hash != other.hash);
        assert_eq!(KeyText::parse(&text.reveal()), Some(text.clone()));
        for shown in [format!("{text:?}"), serde_json::to_string(&key).unwrap()] {
            assert!(shown.contains(&key.id) && !shown.contains(&text.secret));
        }
    }

    #[test]
    fn keys_are_put_once_revoked_once_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Place::folder(folder.path().to_owned());
        assert!(all(&store).unwrap().is_empty());
        let (mut key, _) = Key::new("shop", Role::App).unwrap();
        key.tokens_per_minute = Some(600);
        assert!(put(&store, &key).unwrap());
        assert!(!put(&store, &key).unwrap());
        assert_eq!(all(&store).unwrap().whole().unwrap(), [key.clone()]);
        assert!(revoke(&store, &key.id).unwrap());
        assert!(!revoke(&store, &key.id).unwrap());
        let list = all(&store).unwrap();
        assert!(list.keys[0].revoked.is_some() && !list.is_empty());
        for id in ["", "aaaaaaaa", "../../ab", "internal"] {
            assert!(matches!(revoke(&store, id), Err(Error::NoKey { .. })));
        }
    }

    #[test]
    fn a_damaged_file_is_named_and_hides_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let store = Place::folder(folder.path().to_owned());
        let keys = [(); 4].map(|()| Key::new("shop", Role::Admin).unwrap().0);
        for key in &keys {
            put(&store, key).unwrap();
        }
        let file = |key: &Key, ending| place(&store, &key.id, ending).shown();
        std::fs::write(file(&keys[0], FILE), "{\"id\":").unwrap();
        let longer = std::fs::read_to_string(file(&keys[1], FILE)).unwrap();
        let longer = longer.replacen('{', "{\"expires\": 1,", 1);
        std::fs::write(file(&keys[1], FILE), longer).unwrap();
        // Whatever is in it, it was revoked.
        std::fs::write(file(&keys[2], REVOKED_FILE), "").unwrap();
        let list = all(&store).unwrap();
        assert_eq!(list.keys, keys[3..]);
        let mut said: Vec<String> = list.damaged.iter().map(ToString::to_string).collect();
        said.sort();
        let mut files = vec![
            file(&keys[0], FILE),
            file(&keys[1], FILE),
            file(&keys[2], REVOKED_FILE),
        ];
        files.sort();
        assert_eq!(said.len(), files.len());
        for (said, file) in said.iter().zip(files) {
            assert!(said.starts_with(&file.display().to_string()), "{said}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_reads_them() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let store = Place::folder(folder.path().to_owned());
        let (key, _) = Key::new("shop", Role::App).unwrap();
        put(&store, &key).unwrap();
        revoke(&store, &key.id).unwrap();
        for ending in [FILE, REVOKED_FILE] {
            let file = std::fs::metadata(place(&store, &key.id, ending).shown()).unwrap();
            assert_eq!(file.permissions().mode() & 0o777, 0o600);
        }
    }
}
