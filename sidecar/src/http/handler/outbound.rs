//! The app's own requests: each goes to an endpoint of its destination.

use std::fmt::Display;
use std::net::SocketAddr;
use std::rc::Rc;

use tidegate_core::backend::BackendProtocol;

use super::handled::{Forward, ForwardTarget, Handled, HandlerAction, UpstreamProtocol};
use crate::destinations::{EndpointChoice, LiveDestination};
use crate::http::local_reply;
use crate::http::request::{Request, Version};
use crate::refusal_log::RefusalLog;

/// Where the requests of a connection go.
pub(super) struct Outbound {
    dialled: SocketAddr,
    destination: LiveDestination,
    refusals: Rc<RefusalLog>,
}

impl Outbound {
    pub(super) fn new(dialled: SocketAddr, destination: LiveDestination, refusals: Rc<RefusalLog>) -> Self {
        Self { dialled, destination, refusals }
    }

    /// Chooses an endpoint from the newest ones.
    pub(super) fn handle(&self, request: &Request<'_>) -> Handled {
        let destination = self.destination.current();
        let choice = EndpointChoice::first(&destination);
        let action = match (choice, destination.block_reason()) {
            (Some(choice), _) => HandlerAction::Forward(Forward {
                protocol: endpoint_version(choice.protocol, request),
                target: ForwardTarget::Chosen(Box::new(choice)),
            }),
            (None, Some(reason)) => {
                self.refusals.blocked(self.dialled, reason);
                HandlerAction::Reply(local_reply::blocked(destination.no_endpoint_details()))
            }
            (None, None) => HandlerAction::Reply(local_reply::no_endpoint(destination.no_endpoint_details())),
        };
        Handled { decision: None, path: None, action }
    }

    /// The endpoint of a request could not be reached: turns to the next one; `false` if there is none.
    pub(super) fn turn(&self, choice: &mut EndpointChoice, error: &dyn Display) -> bool {
        let endpoint = choice.endpoint.address;
        let service = choice.service().map(|name| &**name);
        self.refusals.unreachable(self.dialled, service, endpoint, error);
        choice.turn()
    }
}

/// The version towards an endpoint: the client's, unless the endpoint speaks only one.
fn endpoint_version(protocol: BackendProtocol, request: &Request<'_>) -> UpstreamProtocol {
    match protocol {
        BackendProtocol::Http1 => UpstreamProtocol::Http1,
        BackendProtocol::Http2 => UpstreamProtocol::Http2,
        BackendProtocol::Http | BackendProtocol::Tcp if request.version == Version::Http2 => {
            UpstreamProtocol::Http2
        }
        BackendProtocol::Http | BackendProtocol::Tcp => UpstreamProtocol::Http1,
    }
}
