//! An answer as it comes in over HTTP: the data of its events, one by one, with a limit to the waiting.

use std::time::Duration;

use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use retune_wire::sse::{MAX_EVENT, Reader};

use super::failure::Failure;

/// A response that is being read. Dropping it closes the connection, which is how an upstream learns that nobody waits any more.
pub(super) struct Incoming {
    response: Response,
    reader: Reader,
    /// The body so far, of a server that sends no stream although it was asked for one.
    whole: Option<Vec<u8>>,
    ended: bool,
}

impl Incoming {
    pub(super) fn new(response: Response) -> Self {
        let json = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.starts_with("application/json"));
        Self {
            response,
            reader: Reader::new(MAX_EVENT),
            whole: json.then(Vec::new),
            ended: false,
        }
    }

    /// The next event's data, `None` at the end. Bytes must come within `patience`, each time.
    pub(super) async fn next(&mut self, patience: Duration) -> Result<Option<String>, Failure> {
        loop {
            if let Some(data) = self.reader.event() {
                return Ok(Some(data));
            }
            if self.ended {
                return Ok(None);
            }
            let piece = tokio::time::timeout(patience, self.response.chunk())
                .await
                .map_err(|_| {
                    Failure::Down(format!("sent nothing for {} s", patience.as_secs_f64()))
                })?
                .map_err(|e| Failure::Down(format!("broke off: {}", told(e))))?;
            match (piece, &mut self.whole) {
                (Some(bytes), Some(whole)) => {
                    whole.extend_from_slice(&bytes);
                    if whole.len() > MAX_EVENT {
                        return Err(too_large());
                    }
                }
                (Some(bytes), None) => self.reader.push(&bytes).map_err(|_| too_large())?,
                (None, whole) => {
                    self.ended = true;
                    if let Some(body) = whole.take() {
                        return Ok(Some(String::from_utf8_lossy(&body).into_owned()));
                    }
                    self.reader.finish();
                }
            }
        }
    }
}

fn too_large() -> Failure {
    Failure::Down(format!("sent an event of more than {MAX_EVENT} bytes"))
}

/// What went wrong, with its causes, which reqwest leaves out, and without the address, which the log has anyway.
pub(super) fn told(e: reqwest::Error) -> String {
    let e = e.without_url();
    let mut text = e.to_string();
    let mut cause = std::error::Error::source(&e);
    while let Some(e) = cause {
        text.push_str(": ");
        text.push_str(&e.to_string());
        cause = e.source();
    }
    text
}
