//! Digests as people and files write them.

use sha2::{Digest, Sha256};

/// Bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a text, in lower-case hex.
pub fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// A key's fixed place in 0..1, another one for each scope: who is asked where only a share of them is.
pub fn fraction(scope: &str, key: &str) -> f64 {
    let digest = Sha256::new()
        .chain_update(scope)
        .chain_update([0])
        .chain_update(key)
        .finalize();
    let mut bytes = [0u8; 4];
    bytes.copy_from_slice(&digest[..4]);
    f64::from(u32::from_be_bytes(bytes)) / 4_294_967_296.0
}
