//! Decides what happens to a request. The only place that does, for both codecs and both directions.
//!
//! A codec parses a head, presents it as a [`Request`], and carries out the [`HandlerAction`]. Codecs depend on neither
//! policy nor addresses: whether a request is allowed, where it goes and over which HTTP version is decided here.
//! Deciding copies nothing of the head and allocates nothing, unless rules distinguish paths and the client sent one that is
//! not in normal form, or a server outside the mesh has to authorize the request, too.

mod attempts;
mod handled;
mod inbound;
mod outbound;
mod send;

use std::fmt::Display;
use std::rc::Rc;

pub(super) use self::attempts::{Attempts, FailedResponse};
use self::handled::ForwardTarget;
pub(super) use self::handled::{Forward, Handled, HandlerAction, PendingCheck, UpstreamProtocol};
use self::inbound::Inbound;
use self::outbound::Outbound;
pub(super) use self::send::SentRequest;
use super::HttpContext;
use super::request::Request;
use crate::authorizer::Authorizer;
use crate::connection_info::{OutboundInfo, ServedConnection};
use crate::destinations::{LiveDestination, PendingHost};
use crate::refusal_log::RefusalLog;
use crate::upstream::{ConnectFailure, ProxyFailure};

/// Decides about the requests of one connection.
pub struct Handler {
    connection: ServedConnection,
    rule: Rule,
}

/// What decides.
enum Rule {
    Inbound(Inbound),
    /// Boxed, so that clients' connections are small.
    Outbound(Box<Outbound>),
}

impl Handler {
    /// Handles the requests of this authorizer's connection.
    pub fn inbound(authorizer: Rc<Authorizer>) -> Self {
        let connection = ServedConnection::Inbound(authorizer.info().clone());
        Self { connection, rule: Rule::Inbound(Inbound::new(authorizer)) }
    }

    /// Handles the requests of one of the app's own connections.
    pub(crate) fn outbound(
        info: OutboundInfo,
        destination: LiveDestination,
        refusals: Rc<RefusalLog>,
        context: Rc<HttpContext>,
    ) -> Self {
        let info = Rc::new(info);
        let connection = ServedConnection::Outbound(info.clone());
        let outbound = Outbound::new(info, destination, refusals, context);
        Self { connection, rule: Rule::Outbound(Box::new(outbound)) }
    }

    /// The connection.
    pub fn connection(&self) -> &ServedConnection {
        &self.connection
    }

    /// Decides about a request by the newest policy, or by the newest endpoints.
    pub(super) fn handle(&self, request: &Request<'_>) -> Handled {
        match &self.rule {
            Rule::Inbound(inbound) => inbound.handle(request),
            Rule::Outbound(outbound) => outbound.handle(request),
        }
    }

    /// Waits until it is known where the requests for a host go.
    pub(super) async fn find(&self, host: PendingHost) {
        match &self.rule {
            Rule::Outbound(outbound) => outbound.find(host).await,
            Rule::Inbound(_) => {}
        }
    }

    /// A forward proxy has answered a request in place of the server: counts and logs it, with its words.
    pub(super) fn proxy_refused(&self, forward: &Forward, status: u16, words: &str, env: &HttpContext) {
        env.telemetry.forward_proxy_failed(ProxyFailure::of_status(status).details());
        if let (Rule::Outbound(outbound), ForwardTarget::Chosen(choice)) = (&self.rule, &forward.target) {
            outbound.proxy_refused(choice, words);
        }
    }

    /// The endpoint of a request could not be reached: turns to the next one; `false` if there is none.
    /// `failure`: why there is no connection; `None` if there was one.
    pub(super) fn turn(
        &self,
        forward: &mut Forward,
        error: &dyn Display,
        failure: Option<ConnectFailure>,
    ) -> bool {
        match (&self.rule, &mut forward.target) {
            (Rule::Outbound(outbound), ForwardTarget::Chosen(choice)) => {
                outbound.turn(choice, error, failure)
            }
            _ => false,
        }
    }
}
