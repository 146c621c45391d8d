//! Ids of answers: who made them, when, and a proof that this installation did.
//!
//! `chatcmpl-<replica 8><milliseconds 12><count 6><MAC 16>`, all lower-case hex. The MAC is a truncated HMAC-SHA256
//! (RFC 2104) with the store's own key, so that any replica can tell a foreign or invented id without asking a table.

use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

const PREFIX: &str = "chatcmpl-";
const BODY: usize = 26;
const MAC: usize = 16;
const BLOCK: usize = 64;

pub(crate) struct Ids {
    key: [u8; 32],
    replica: String,
    count: AtomicU64,
}

impl Ids {
    pub(crate) fn new(key: [u8; 32], replica: String) -> Self {
        Ids {
            key,
            replica,
            count: AtomicU64::new(0),
        }
    }

    pub(crate) fn next(&self) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed) & 0xff_ffff;
        let body = format!(
            "{}{:012x}{count:06x}",
            self.replica,
            chrono::Utc::now().timestamp_millis()
        );
        format!("{PREFIX}{body}{}", self.mac(&body))
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

    fn mac(&self, body: &str) -> String {
        let pad = |with: u8| {
            let mut block = [with; BLOCK];
            block.iter_mut().zip(self.key).for_each(|(b, k)| *b ^= k);
            block
        };
        let inner = Sha256::new()
            .chain_update(pad(0x36))
            .chain_update(body)
            .finalize();
        let outer = Sha256::new()
            .chain_update(pad(0x5c))
            .chain_update(inner)
            .finalize();
        retune_task::hex(&outer[..MAC / 2])
    }
}

#[cfg(test)]
mod tests {
    use super::Ids;

    #[test]
    fn knows_its_own_and_no_others() {
        let ids = Ids::new([7; 32], "0a1b2c3d".into());
        let (a, b) = (ids.next(), ids.next());
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
