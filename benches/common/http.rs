//! An HTTP/1.1 client that costs next to nothing, since it shares two cores with what it measures: one blocking socket, a request that
//! was written out beforehand, and no parsing beyond finding the answer's end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection that is kept alive.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

/// Where an answer's body ends.
enum End {
    /// At this many bytes of the whole answer.
    At(usize),
    /// With an empty chunk.
    Chunk,
}

/// A chat completion's request, byte for byte.
pub(crate) fn request(address: SocketAddr, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\nauthorization: Bearer sk-bench\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("{address} does not listen"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            buffer: vec![0; 1 << 16],
            filled: 0,
        })
    }

    /// The answer's body as it came, perhaps in chunks. Any status but 200 is an error.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Result<&[u8]> {
        self.stream.write_all(request)?;
        self.filled = 0;
        let mut head = None;
        loop {
            if self.filled == self.buffer.len() {
                self.buffer.resize(self.filled * 2, 0);
            }
            let read = self.stream.read(&mut self.buffer[self.filled..])?;
            ensure!(read > 0, "the server closed a connection within an answer");
            self.filled += read;
            let so_far = &self.buffer[..self.filled];
            if head.is_none() {
                head = parsed(so_far)?;
            }
            let Some((begin, end)) = &head else { continue };
            let whole = match end {
                End::At(length) => self.filled >= *length,
                End::Chunk => so_far.ends_with(b"\r\n0\r\n\r\n"),
            };
            if whole {
                return Ok(&self.buffer[*begin..self.filled]);
            }
        }
    }
}

/// Where the body begins and ends, once the head is there.
fn parsed(answer: &[u8]) -> Result<Option<(usize, End)>> {
    let Some(at) = find(answer, b"\r\n\r\n") else {
        return Ok(None);
    };
    let begin = at + 4;
    let head = String::from_utf8_lossy(&answer[..at]).to_ascii_lowercase();
    if !head.starts_with("http/1.1 200") {
        bail!("an answer is no 200: {}", String::from_utf8_lossy(answer));
    }
    if head.contains("transfer-encoding: chunked") {
        return Ok(Some((begin, End::Chunk)));
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .context("an answer says neither its length nor that it comes in chunks")?;
    Ok(Some((
        begin,
        End::At(begin + length.trim().parse::<usize>()?),
    )))
}

pub(crate) fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|part| part == wanted)
}
