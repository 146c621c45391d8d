//! Ids of answers: who made them, when, and a proof that this installation did. And random ones, of things that are looked up.
//!
//! An answer's is `chatcmpl-<replica 8><milliseconds 12><count 6><MAC 16>`, all lower-case hex. The MAC is a truncated HMAC-SHA256
//! (RFC 2104) with the store's own key, so that any replica can tell a foreign or invented id without asking a table. The count's
//! highest bit says that no text of the exchange is kept: so none comes by feedback either, wherever and whenever it is given.

use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::place::Place;

const PREFIX: &str = "chatcmpl-";
const REPLICA: usize = 8;
const MILLISECONDS: usize = 12;
const BODY: usize = REPLICA + MILLISECONDS + 6;
const MAC: usize = 16;
const COUNTS: u64 = 0x7f_ffff;
const WITHOUT_TEXT: u64 = 0x80_0000;
const BLOCK: usize = 64;

pub(crate) struct Ids {
    key: [u8; 32],
    surrogates: [u8; 32],
    seals: [u8; 32],
    replica: String,
    count: AtomicU64,
}

impl Ids {
    /// Those of the installation whose store that is.
    pub(crate) fn of(store: &Place, replica: String) -> Result<Self, Error> {
        Ok(Self::new(key(store)?, replica))
    }

    pub(crate) fn new(key: [u8; 32], replica: String) -> Self {
        Ids {
            surrogates: another(&key, b"surrogates"),
            seals: another(&key, b"seals"),
            key,
            replica,
            count: AtomicU64::new(0),
        }
    }

    /// The id of an answer that was given then.
    pub(crate) fn at(&self, ts: DateTime<Utc>, keeps_text: bool) -> String {
        let mut count = self.count.fetch_add(1, Ordering::Relaxed) & COUNTS;
        if !keeps_text {
            count |= WITHOUT_TEXT;
        }
        let milliseconds = ts.timestamp_millis().clamp(0, 0xffff_ffff_ffff);
        let body = format!("{}{milliseconds:012x}{count:06x}", self.replica);
        format!("{PREFIX}{body}{}", self.mac(&body))
    }

    pub(crate) fn surrogates(&self) -> &[u8; 32] {
        &self.surrogates
    }

    pub(crate) fn is_own(&self, id: &str) -> bool {
        let Some(rest) = id
            .strip_prefix(PREFIX)
            .filter(|r| r.len() == BODY + MAC && r.is_ascii())
        else {
            return false;
        };
        let (body, mac) = rest.split_at(BODY);
        // Compared in constant time: an attacker must not learn how much of a guess was right.
        let wrong = self
            .mac(body)
            .bytes()
            .zip(mac.bytes())
            .fold(0, |acc, (a, b)| acc | (a ^ b));
        wrong == 0
    }

    /// When this installation made the id; none where it did not.
    pub(crate) fn made_at(&self, id: &str) -> Option<DateTime<Utc>> {
        made(id).filter(|_| self.is_own(id))
    }

    fn mac(&self, body: &str) -> String {
        retune_task::hex(&hmac(&self.key, body)[..MAC / 2])
    }

    /// What only a process of this installation can say of a text.
    pub(crate) fn seal(&self, text: &str) -> String {
        retune_task::hex(&hmac(&self.seals, text))
    }
}

/// For another use than ids: a secret from which neither tells the other.
fn another(key: &[u8; 32], purpose: &[u8]) -> [u8; 32] {
    let digest = Sha256::new().chain_update(purpose).chain_update(key);
    digest.finalize().into()
}

fn hmac(key: &[u8; 32], text: &str) -> [u8; 32] {
    let pad = |with: u8| {
        let mut block = [with; BLOCK];
        block.iter_mut().zip(key).for_each(|(b, k)| *b ^= k);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text);
    let outer = Sha256::new().chain_update(pad(0x5c));
    outer.chain_update(inner.finalize()).finalize().into()
}

/// A fresh id: the prefix and 32 hex digits.
pub(crate) fn random(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::new_v4().simple())
}

/// Whether it may be one: it comes from outside, and becomes part of a path.
pub(crate) fn is_random(prefix: &str, id: &str) -> bool {
    id.strip_prefix(prefix)
        .is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether text of that answer's exchange is kept, as its id says.
pub(crate) fn keeps_text(id: &str) -> bool {
    let count = id.get(PREFIX.len() + REPLICA + MILLISECONDS..PREFIX.len() + BODY);
    let count = count.and_then(|hex| u64::from_str_radix(hex, 16).ok());
    count.is_none_or(|count| count & WITHOUT_TEXT == 0)
}

/// When an id says that it was made, whoever made it.
pub(crate) fn made(id: &str) -> Option<DateTime<Utc>> {
    let milliseconds = id.get(PREFIX.len() + REPLICA..)?.get(..MILLISECONDS)?;
    let milliseconds = i64::from_str_radix(milliseconds, 16).ok()?;
    DateTime::from_timestamp_millis(milliseconds)
}

/// The store's secret for ids, made with it.
fn key(store: &Place) -> Result<[u8; 32], Error> {
    let place = store.join("mac.key");
    // Read first: a question to a store on a full disk has nothing to write.
    let bytes = match place.read()? {
        Some(bytes) => {
            place.only_for_owner()?;
            bytes
        }
        None => {
            let mut fresh = [0u8; 32];
            fresh[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
            fresh[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
            // Whoever was first, its key is everybody's.
            place.create_once_for_owner(&fresh)?;
            place.read()?.unwrap_or_default()
        }
    };
    bytes.try_into().map_err(|_| Error::Damaged {
        path: place.shown(),
        what: "is not 32 bytes long; restore it from a copy, or remove it: then feedback on earlier answers is refused".into(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use chrono::Utc;

    use super::{Ids, keeps_text, made};
    use crate::place::Place;

    #[test]
    fn a_store_s_key_is_its_own_and_its_owner_s_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Place::folder(folder.path().to_owned());
        let ids = Ids::of(&store, "0a1b2c3d".into()).unwrap();
        let id = ids.at(Utc::now(), true);
        let again = Ids::of(&store, "4e5f6a7b".into()).unwrap();
        assert!(again.is_own(&id));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let file = std::fs::metadata(store.join("mac.key").shown()).unwrap();
            assert_eq!(file.permissions().mode() & 0o777, 0o600);
            // As earlier versions made it.
            let open = std::fs::Permissions::from_mode(0o644);
            std::fs::set_permissions(store.join("mac.key").shown(), open).unwrap();
            assert!(Ids::of(&store, "8c9d0e1f".into()).unwrap().is_own(&id));
            let file = std::fs::metadata(store.join("mac.key").shown()).unwrap();
            assert_eq!(file.permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_seal_is_of_the_text_and_the_store() {
        let (ids, other) = (Ids::new([7; 32], "a".into()), Ids::new([8; 32], "a".into()));
        assert_eq!(ids.seal("x"), Ids::new([7; 32], "b".into()).seal("x"));
        assert_ne!(ids.seal("x"), ids.seal("y"));
        assert_ne!(ids.seal("x"), other.seal("x"));
        // RFC 4231 has no case with a key of 32 bytes: this one is by Python's hmac.
        assert!(
            retune_task::hex(&super::hmac(&[7; 32], "retune"))
                .starts_with("94da592c0e215f06c08f00f4")
        );
    }

    #[test]
    fn knows_its_own_and_no_others() {
        let ids = Ids::new([7; 32], "0a1b2c3d".into());
        let now = Utc::now();
        let (a, b) = (ids.at(now, true), ids.at(now, false));
        assert!(keeps_text(&a) && !keeps_text(&b));
        assert_eq!(
            made(&b).map(|at| at.timestamp_millis()),
            Some(now.timestamp_millis())
        );
        assert_ne!(a, b);
        assert!(ids.is_own(&a) && ids.is_own(&b));
        assert!(!Ids::new([8; 32], "0a1b2c3d".into()).is_own(&a));
        let mut forged = a.into_bytes();
        forged[20] = if forged[20] == b'0' { b'1' } else { b'0' };
        assert!(!ids.is_own(&String::from_utf8_lossy(&forged)));
        for other in [
            "",
            "chatcmpl-",
            "chatcmpl-123",
            "x",
            "chatcmpl-ääääääääääääääääääääääääääääääääääääääääää",
        ] {
            assert!(!ids.is_own(other), "{other}");
        }
    }
}
