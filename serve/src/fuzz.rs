//! What fuzz targets reach: the readers of bytes that come from elsewhere. No part of the library's interface.

use crate::engine::upstream::sse::read_all;
use crate::openai::{Params, Request};

/// Server-sent events are the same however the stream is cut; the first byte says how.
pub fn sse(bytes: &[u8]) {
    let Some((size, stream)) = bytes.split_first() else {
        return;
    };
    let size = usize::from(*size).max(1);
    for limit in [64, 4096] {
        let whole = read_all([stream], limit);
        assert_eq!(whole, read_all(stream.chunks(size), limit));
    }
}

/// A chat completion's request is read or refused.
pub fn chat_request(bytes: &[u8]) {
    let _ = Params::parse(bytes).and_then(Request::chat);
}
