//! What becomes of a request: the only place that decides it, for both codecs.
//!
//! A codec reads a head, shows it as a [`Request`], and does what the [`Action`] says. It knows neither policy nor
//! addresses: whether a request is let in, where it goes and in which HTTP is all in here. Deciding copies nothing of
//! the head and allocates nothing.

use std::rc::Rc;
use std::sync::Arc;

use tidegate_core::backend::{Endpoint, Transport};
use tidegate_core::policy::{AppProtocol, Decision};

use super::headers::is_grpc;
use super::local_reply::{self, LocalReply};
use super::request::{Request, Version};
use crate::authorizer::Authorizer;
use crate::connection_info::ConnectionInfo;

/// Decides about the requests of one connection.
pub struct Handler {
    authorizer: Rc<Authorizer>,
    /// Where the app listens.
    app: Arc<Endpoint>,
}

/// What is decided about one request.
#[derive(Debug)]
pub(super) struct Handled {
    /// The policy's verdict, for the access log.
    pub(super) decision: Rc<Decision>,
    pub(super) action: Action,
}

/// What a codec does about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Answers it with this.
    Reply(LocalReply),
    /// Passes it on, and the answer back.
    Forward(Forward),
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Forward {
    /// The upstream.
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) protocol: UpstreamProtocol,
}

/// The HTTP that an upstream is spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

impl Handler {
    /// For the requests of one connection, by the verdicts of this authorizer.
    pub fn new(authorizer: Rc<Authorizer>) -> Self {
        let app = Arc::new(Endpoint::new(authorizer.info().app, Transport::Plain));
        Self { authorizer, app }
    }

    /// The connection.
    pub fn info(&self) -> &Rc<ConnectionInfo> {
        self.authorizer.info()
    }

    /// Decides about a request, by the newest policy.
    pub(super) fn handle(&self, request: &Request<'_>) -> Handled {
        let authority = std::str::from_utf8(request.authority).unwrap_or_default();
        let decision = self.authorizer.decide_on(authority);
        let action = match &*decision {
            Decision::Deny(denial) => Action::Reply(local_reply::denied(&denial.reason)),
            Decision::Allow(_) => {
                Action::Forward(Forward { endpoint: self.app.clone(), protocol: self.protocol(request) })
            }
        };
        Handled { decision, action }
    }

    /// As OSM does: what the client speaks decides where the app's port says nothing, and gRPC over HTTP/2 stays so. A
    /// client that negotiated HTTP/2 by ALPN does so for itself; one that just speaks it knows the app.
    fn protocol(&self, request: &Request<'_>) -> UpstreamProtocol {
        let is_http2 = || {
            request.version == Version::Http2
                && (!self.info().tls || is_grpc(request.field("content-type").unwrap_or_default()))
        };
        if self.authorizer.app_protocol() == AppProtocol::H2c || is_http2() {
            UpstreamProtocol::Http2
        } else {
            UpstreamProtocol::Http1
        }
    }
}

#[cfg(test)]
mod tests;
