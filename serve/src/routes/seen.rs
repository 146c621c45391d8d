//! What is told of a response when its last byte is out, or when its client has left: the end of its span, and the access line.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::web::Bytes;
use tracing::Level;

use crate::exchange::CLIENT_LEFT;
use crate::trace::Sight;

/// The target of the access lines.
const TARGET: &str = "retune::access";

/// A line a request, without any text: off by default, since the ledger and the metrics have more of it.
pub(super) struct Access {
    arrived: Instant,
    id: String,
    method: Method,
    route: Option<String>,
    key: Option<String>,
    adapter: Option<String>,
    status: u16,
}

impl Access {
    /// None where nobody reads it.
    pub(super) fn begin(request: &ServiceRequest, id: &str) -> Option<Self> {
        tracing::enabled!(target: TARGET, Level::DEBUG).then(|| Self {
            arrived: Instant::now(),
            id: id.to_owned(),
            method: request.method().clone(),
            route: request
                .resource_map()
                .match_pattern(request.match_info().as_str()),
            key: None,
            adapter: None,
            status: 0,
        })
    }

    pub(super) fn key(&mut self, id: String) {
        self.key = Some(id);
    }

    fn tell(&self, left: bool) {
        tracing::debug!(
            target: TARGET,
            // All of it is here, once.
            parent: None,
            id = self.id,
            method = self.method.as_str(),
            route = self.route.as_deref().unwrap_or("none"),
            status = if left { CLIENT_LEFT } else { self.status },
            seconds = self.arrived.elapsed().as_secs_f64(),
            adapter = self.adapter,
            key = self.key,
            "request"
        );
    }
}

/// A body in its request's spans.
pub(crate) struct Seen {
    body: BoxBody,
    sight: Option<Sight>,
    access: Option<Access>,
    ended: bool,
}

impl Seen {
    pub(super) fn of(
        response: ServiceResponse<BoxBody>,
        sight: Option<Sight>,
        access: Option<Access>,
    ) -> ServiceResponse<Self> {
        let access = access.map(|access| Access {
            status: response.status().as_u16(),
            adapter: response
                .headers()
                .get("retune-adapter")
                .and_then(|name| name.to_str().ok())
                .map(str::to_owned),
            ..access
        });
        let head = *response.request().method() == Method::HEAD;
        response.map_body(|_, body| Self {
            ended: head || matches!(body.size(), BodySize::None | BodySize::Sized(0)),
            body,
            sight,
            access,
        })
    }
}

impl MessageBody for Seen {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = self.get_mut();
        let mut poll = || Pin::new(&mut this.body).poll_next(context);
        let next = match &this.sight {
            None => poll(),
            Some(sight) => sight.within(poll),
        };
        this.ended |= matches!(next, Poll::Ready(None));
        next
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        if let Some(access) = &self.access {
            access.tell(!self.ended);
        }
    }
}
