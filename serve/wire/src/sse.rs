//! Reads server-sent events: bytes in, cut anywhere, and each event's data out.
//!
//! As the HTML standard reads them (lines end with LF, CR or CRLF, comments are skipped, several `data` lines are one text), but for two
//! things: an event has a size limit, and the last one counts even if the empty line behind it is missing, which some servers forget.

use std::collections::VecDeque;

/// More than any server sends at once; less than what hurts.
pub const MAX_EVENT: usize = 4 << 20;

/// The reader's state between two pieces of a stream.
#[derive(Debug)]
pub struct Reader {
    /// Bytes that one event may have, its field names and comments included.
    limit: usize,
    /// The line so far.
    line: Vec<u8>,
    /// The event's `data` lines so far.
    data: Option<Vec<u8>>,
    /// The last byte was a CR: an LF after it ends no second line.
    after_cr: bool,
    /// No line was read yet: a byte order mark may come.
    first: bool,
    too_large: bool,
    ready: VecDeque<String>,
}

/// An event is larger than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge;

impl Reader {
    /// `limit`: the bytes that one event may have.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            line: Vec::new(),
            data: None,
            after_cr: false,
            first: true,
            too_large: false,
            ready: VecDeque::new(),
        }
    }

    /// Takes in the next bytes; what they complete waits in [`Self::event`]. After an error it takes in nothing any more.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), TooLarge> {
        while !bytes.is_empty() && !self.too_large {
            if std::mem::take(&mut self.after_cr) && bytes.first() == Some(&b'\n') {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|b| matches!(b, b'\n' | b'\r'));
            let line = &bytes[..end.unwrap_or(bytes.len())];
            if self.held() + line.len() > self.limit {
                self.too_large = true;
                break;
            }
            self.line.extend_from_slice(line);
            let Some(end) = end else { break };
            self.after_cr = bytes.get(end) == Some(&b'\r');
            self.end_of_line();
            bytes = &bytes[end + 1..];
        }
        if self.too_large {
            Err(TooLarge)
        } else {
            Ok(())
        }
    }

    /// The stream has ended: what it left unfinished counts.
    pub fn finish(&mut self) {
        if !self.too_large {
            self.end_of_line();
            self.end_of_event();
        }
    }

    /// The data of the next complete event.
    pub fn event(&mut self) -> Option<String> {
        self.ready.pop_front()
    }

    /// Bytes that wait for the end of their event; never more than the limit.
    pub fn held(&self) -> usize {
        self.line.len() + self.data.as_ref().map_or(0, Vec::len)
    }

    fn end_of_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let mut rest = line.as_slice();
        if std::mem::take(&mut self.first) {
            rest = rest.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(rest);
        }
        if rest.is_empty() {
            self.end_of_event();
        } else {
            self.field(rest);
        }
        // Its memory serves the next line.
        self.line = line;
        self.line.clear();
    }

    fn field(&mut self, line: &[u8]) {
        let (name, value) = match line.iter().position(|b| *b == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &line[line.len()..]),
        };
        // A comment has no name; `event`, `id` and `retry` say nothing here.
        if name != b"data" {
            return;
        }
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &mut self.data {
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
            None => self.data = Some(value.to_vec()),
        }
    }

    fn end_of_event(&mut self) {
        if let Some(data) = self.data.take() {
            self.ready
                .push_back(String::from_utf8_lossy(&data).into_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    /// All events of `pieces`, and whether one was too large.
    fn read_all<'a>(
        pieces: impl IntoIterator<Item = &'a [u8]>,
        limit: usize,
    ) -> (Vec<String>, bool) {
        let mut reader = Reader::new(limit);
        let mut fits = true;
        for piece in pieces {
            fits &= reader.push(piece).is_ok();
        }
        reader.finish();
        (std::iter::from_fn(|| reader.event()).collect(), !fits)
    }

    fn read(text: &str) -> Vec<String> {
        let (events, too_large) = read_all([text.as_bytes()], MAX_EVENT);
        assert!(!too_large);
        events
    }

    #[test]
    fn lines_end_in_any_way_and_comments_are_skipped() {
        for end in ["\n", "\r\n", "\r"] {
            let text =
                "\u{feff}: hello|event: x|data: a|id: 7||data:b||||data: c|".replace('|', end);
            assert_eq!(read(&text), ["a", "b", "c"], "{end:?}");
        }
    }

    #[test]
    fn several_lines_are_one_text_and_one_space_is_taken() {
        assert_eq!(read("data:  a\ndata\ndata:b\n\n"), [" a\n\nb"]);
        assert_eq!(read("datax: a\nxdata: b\n\n"), Vec::<String>::new());
        assert_eq!(read("data:\n\n"), [""]);
    }

    #[test]
    fn the_last_event_needs_no_end() {
        for text in ["data: a", "data: a\n", "data: a\r"] {
            assert_eq!(read(text), ["a"]);
        }
        assert_eq!(read(""), Vec::<String>::new());
    }

    #[test]
    fn an_event_has_a_limit_and_those_before_it_count() {
        let text = b"data: a\n\ndata: 0123456789\n\ndata: b\n\n";
        let expected = (vec!["a".to_owned()], true);
        assert_eq!(read_all([text.as_slice()], 12), expected);
        assert_eq!(read_all(text.chunks(1), 12), expected);
        // Many small events are no large one.
        assert_eq!(
            read_all([b"data: a\n\n".repeat(50).as_slice()], 12).0.len(),
            50
        );
    }

    /// Bytes that are likely to mean something.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let pieces = prop_oneof![
            Just(b"data: ".to_vec()),
            Just(b"data:{\"a\":1}".to_vec()),
            Just(b"\n\n".to_vec()),
            Just(b"\n".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"\r".to_vec()),
            Just(b": comment".to_vec()),
            Just(b"event: e".to_vec()),
            Just("grüße \u{1F600}".as_bytes().to_vec()),
            Just(b"\xEF\xBB\xBF".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..6),
        ];
        proptest::collection::vec(pieces, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_events(
            bytes in stream(),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
            limit in prop_oneof![Just(MAX_EVENT), 4usize..40],
        ) {
            let whole = read_all([bytes.as_slice()], limit);
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]);
            prop_assert_eq!(&read_all(pieces, limit), &whole);
            prop_assert_eq!(&read_all(bytes.chunks(1), limit), &whole);
        }
    }
}
