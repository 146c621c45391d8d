//! A request's body, within its limit.

use actix_web::web;
use futures::StreamExt;

use crate::error::Error;
use crate::openai::Params;

/// How much more than the limit is read and thrown away, as a factor, so that the client gets to hear of the limit.
const DRAIN: usize = 16;

/// Reads the JSON object in the body.
pub(crate) async fn params(payload: web::Payload, limit: usize) -> Result<Params, Error> {
    Params::parse(&bytes(payload, limit).await?)
}

/// The same where nothing at all is an empty object.
pub(crate) async fn optional_params(payload: web::Payload, limit: usize) -> Result<Params, Error> {
    match bytes(payload, limit).await? {
        body if body.is_empty() => Params::parse(b"{}"),
        body => Params::parse(&body),
    }
}

async fn bytes(mut payload: web::Payload, limit: usize) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    let mut length = 0usize;
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|e| Error::Invalid {
            message: format!("The request's body could not be read: {e}."),
            param: None,
            code: None,
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
