//! Server-sent events of other servers: the same however the stream is cut, as a plain reading of the whole finds them, and never more
//! in memory than the limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use retune_wire::sse::{MAX_EVENT, Reader};

/// The product's own, and some that small inputs reach.
const LIMITS: [usize; 3] = [MAX_EVENT, 40, 8];
/// How many bytes come at once.
const SIZES: [usize; 3] = [1, 2, 7];

fuzz_target!(|stream: &[u8]| {
    let plain = plainly(stream);
    for limit in LIMITS {
        let whole = read([stream], limit);
        for size in SIZES {
            let cut = read(stream.chunks(size), limit);
            assert_eq!(cut, whole, "{size} bytes at once, limit {limit}");
        }
        let (events, too_large) = whole;
        if too_large {
            assert!(plain.starts_with(&events), "{events:?} of {plain:?}");
        } else {
            assert_eq!(events, plain, "limit {limit}");
        }
    }
});

/// The events, and whether one was too large.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limit: usize) -> (Vec<String>, bool) {
    let mut reader = Reader::new(limit);
    let mut too_large = false;
    for piece in pieces {
        let fits = reader.push(piece).is_ok();
        assert!(
            !(too_large && fits),
            "read on after an event that was too large"
        );
        too_large = !fits;
        assert!(reader.held() <= limit, "{} bytes are held", reader.held());
    }
    reader.finish();
    (std::iter::from_fn(|| reader.event()).collect(), too_large)
}

/// The events of a stream that is there as a whole, without a limit.
fn plainly(stream: &[u8]) -> Vec<String> {
    let stream = stream.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(stream);
    let mut lines: Vec<Vec<u8>> = vec![Vec::new()];
    for (i, byte) in stream.iter().enumerate() {
        match byte {
            b'\n' if i > 0 && stream[i - 1] == b'\r' => {}
            b'\n' | b'\r' => lines.push(Vec::new()),
            _ => lines.last_mut().unwrap().push(*byte),
        }
    }
    // An end of the stream ends the event.
    lines.push(Vec::new());
    let mut events = Vec::new();
    let mut data: Vec<Vec<u8>> = Vec::new();
    for line in lines {
        if line.is_empty() && !data.is_empty() {
            let bytes = std::mem::take(&mut data).join(&b'\n');
            events.push(String::from_utf8_lossy(&bytes).into_owned());
        } else if line == b"data" {
            data.push(Vec::new());
        } else if let Some(value) = line.strip_prefix(b"data:") {
            data.push(value.strip_prefix(b" ").unwrap_or(value).to_vec());
        }
    }
    events
}
