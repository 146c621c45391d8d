//! A request's body, within its limits of size and patience.

use std::io::ErrorKind;
use std::pin::Pin;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use actix_web::web;
use futures::{Stream, StreamExt, stream};
use retune_wire::{Params, Refusal};

use crate::error::Error;

/// How much more than the limit is read and thrown away, as a factor, so that the client gets to hear of the limit.
const DRAIN: usize = 16;

/// Reads the JSON object in the body.
pub(crate) async fn params(payload: web::Payload, limit: usize) -> Result<Params, Error> {
    Ok(Params::parse(&bytes(payload, limit).await?)?)
}

/// The same where nothing at all is an empty object.
pub(crate) async fn optional_params(payload: web::Payload, limit: usize) -> Result<Params, Error> {
    Ok(match bytes(payload, limit).await? {
        body if body.is_empty() => Params::parse(b"{}")?,
        body => Params::parse(&body)?,
    })
}

/// The same body, which ends with an error once nothing has come for so long: a client that sends a byte now and then and none at last
/// would otherwise hold its connection for ever.
pub(super) fn patient(payload: Payload, patience: Duration) -> Payload {
    let chunks = stream::unfold(Some(payload), move |payload| async move {
        let mut payload = payload?;
        match tokio::time::timeout(patience, payload.next()).await {
            Ok(chunk) => chunk.map(|chunk| (chunk, Some(payload))),
            Err(_) => Some((Err(PayloadError::Io(ErrorKind::TimedOut.into())), None)),
        }
    });
    // Some readers ask once more behind the end.
    let chunks: Pin<Box<dyn Stream<Item = Result<web::Bytes, PayloadError>>>> =
        Box::pin(chunks.fuse());
    Payload::from(chunks)
}

pub(crate) async fn bytes(mut payload: web::Payload, limit: usize) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    let mut length = 0usize;
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|e| match e {
            PayloadError::Io(e) if e.kind() == ErrorKind::TimedOut => Error::TooSlow,
            e => Refusal {
                message: format!("The request's body could not be read: {e}."),
                param: None,
                code: None,
            }
            .into(),
        })?;
        length += chunk.len();
        if length <= limit {
            body.extend_from_slice(&chunk);
        } else if length > limit.saturating_mul(DRAIN) {
            break;
        }
    }
    if length > limit {
        Err(Error::TooLarge(limit))
    } else {
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix_web::test]
    async fn a_body_that_stops_coming_is_given_up() {
        let chunks = stream::iter([Ok(web::Bytes::from_static(b"{"))]).chain(stream::pending());
        let chunks: Pin<Box<dyn Stream<Item = Result<web::Bytes, PayloadError>>>> =
            Box::pin(chunks);
        let mut body = patient(Payload::from(chunks), Duration::from_millis(10));
        assert!(matches!(body.next().await, Some(Ok(chunk)) if chunk == "{"));
        let Some(Err(PayloadError::Io(error))) = body.next().await else {
            unreachable!("it never ends by itself")
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(body.next().await.is_none());
        assert!(body.next().await.is_none(), "asked behind the end");
    }
}
