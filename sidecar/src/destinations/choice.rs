//! The endpoint of one request, or of one connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::backend::{BackendProtocol, Endpoint};

use super::{LoadSlot, ResolvedDestination};
use crate::remotes::RemoteId;
use crate::telemetry::DialledEndpoint;

/// The most endpoints that are tried.
const MOST_TRIES: usize = 5;

/// An endpoint, which counts as busier for as long as this lives. The version of HTTP stays that of the first choice.
pub(crate) struct EndpointChoice {
    destination: Arc<ResolvedDestination>,
    /// The endpoint.
    pub(crate) endpoint: Arc<Endpoint>,
    /// What its backend speaks.
    pub(crate) protocol: BackendProtocol,
    slot: LoadSlot,
    /// The workload at the endpoint.
    remote: RemoteId,
    /// Endpoints that could not be reached. Allocates nothing before the first.
    tried: Vec<SocketAddr>,
}

impl EndpointChoice {
    /// The first endpoint to try; `None` if there is none.
    pub(crate) fn first(destination: &Arc<ResolvedDestination>) -> Option<Self> {
        let (backend, chosen) = destination.choose(&[])?;
        Some(Self {
            destination: destination.clone(),
            endpoint: chosen.endpoint.clone(),
            protocol: backend.protocol,
            slot: chosen.hold(),
            remote: chosen.remote(),
            tried: Vec::new(),
        })
    }

    /// The endpoint cannot be reached, and is the last choice of others for a while: turns to the next one; `false` if
    /// there is none, or enough were tried.
    pub(crate) fn turn(&mut self) -> bool {
        self.slot.unreachable();
        self.tried.push(self.endpoint.address);
        if self.tried.len() >= MOST_TRIES {
            return false;
        }
        let Some((_, chosen)) = self.destination.choose(&self.tried) else { return false };
        (self.endpoint, self.slot) = (chosen.endpoint.clone(), chosen.hold());
        self.remote = chosen.remote();
        true
    }

    /// The endpoint, for records.
    pub(crate) fn dialled(&self) -> DialledEndpoint {
        DialledEndpoint::new(&self.endpoint, self.remote)
    }

    /// The connection is open.
    pub(crate) fn connected(&self) {
        self.slot.succeeded();
    }

    /// The endpoint has responded with this status. `after`: how long after the request, if not after the choice.
    pub(crate) fn responded(&self, status: u16, after: Option<Duration>) {
        match (status, after) {
            (502..=504, _) => self.slot.failed(),
            (_, None) => self.slot.succeeded(),
            (_, Some(after)) => {
                self.slot.succeeded_after(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
            }
        }
    }

    /// The endpoint was reached, and has not responded.
    pub(crate) fn failed(&self) {
        self.slot.failed();
    }

    /// The endpoint was reached, and has vanished since: it is the last choice for a while.
    pub(crate) fn vanished(&self) {
        self.slot.unreachable();
    }

    /// `<namespace>/<name>` of what the endpoint belongs to.
    pub(crate) fn service(&self) -> Option<&Arc<str>> {
        self.destination.name()
    }
}
