//! The endpoint of one request, or of one connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::backend::{BackendProtocol, Endpoint};

use super::LoadSlot;
use super::backend::{BalancedBackend, BalancedEndpoint, is_of_family};
use crate::connection_info::UNREGISTERED;
use crate::remotes::RemoteId;
use crate::telemetry::{DialledEndpoint, ResponseFlag};

/// The most endpoints that are tried.
const MOST_TRIES: usize = 5;

/// An endpoint of a backend, which counts as busier for as long as this lives. The backend stays that of the first choice, and
/// so does the version of HTTP.
pub(crate) struct EndpointChoice {
    backend: Arc<BalancedBackend>,
    /// The address family of the endpoints that may be chosen.
    is_ipv4: bool,
    /// The endpoint.
    pub(crate) endpoint: Arc<Endpoint>,
    slot: LoadSlot,
    /// The workload at the endpoint.
    remote: RemoteId,
    /// Endpoints that could not be reached. Allocates nothing before the first.
    tried: Vec<SocketAddr>,
}

/// Why no endpoint can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoEndpoint {
    /// The controller, or a resource that cannot be used, blocks the destination.
    Blocked,
    /// No object has the address, and such addresses are refused.
    Unregistered,
    /// The backend has endpoints, but its topology leaves this workload none.
    NotLocal,
    /// The backend has no endpoints.
    NoneHealthy,
    /// The backend has no endpoints, because the names of these cannot be looked up.
    Unresolved,
    /// No rule says where a connection goes that carries no requests.
    NoRoute,
}

impl NoEndpoint {
    /// For the access log.
    pub(crate) fn details(self) -> &'static str {
        match self {
            Self::Blocked => "destination_blocked",
            Self::Unregistered => UNREGISTERED,
            Self::NotLocal => "no_local_endpoint",
            Self::NoneHealthy => "no_healthy_upstream",
            Self::Unresolved => "dns_resolution_failure",
            Self::NoRoute => "route_not_found",
        }
    }

    /// For the access log.
    pub(crate) fn flag(self) -> ResponseFlag {
        match self {
            Self::NoRoute => ResponseFlag::NoRoute,
            Self::Unresolved => ResponseFlag::DnsFailure,
            Self::Blocked | Self::Unregistered | Self::NotLocal | Self::NoneHealthy => {
                ResponseFlag::NoHealthyUpstream
            }
        }
    }
}

impl EndpointChoice {
    /// The first endpoint of a backend to try.
    pub(super) fn first(backend: &Arc<BalancedBackend>, is_ipv4: bool) -> Result<Self, NoEndpoint> {
        let Some(chosen) = choose(backend, is_ipv4, &[]) else {
            return Err(match backend.lookup_failure() {
                Some(_) => NoEndpoint::Unresolved,
                None if backend.has_unused(is_ipv4) => NoEndpoint::NotLocal,
                None => NoEndpoint::NoneHealthy,
            });
        };
        Ok(Self {
            backend: backend.clone(),
            is_ipv4,
            endpoint: chosen.endpoint.clone(),
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
        let Some(chosen) = choose(&self.backend, self.is_ipv4, &self.tried) else { return false };
        (self.endpoint, self.slot) = (chosen.endpoint.clone(), chosen.hold());
        self.remote = chosen.remote();
        true
    }

    /// The endpoint, for records.
    pub(crate) fn dialled(&self) -> DialledEndpoint {
        DialledEndpoint::new(&self.endpoint, self.remote)
    }

    /// Another endpoint for another attempt, if there is one that was not tried. This one was reached.
    pub(crate) fn change(&mut self) {
        self.tried.push(self.endpoint.address);
        let next = choose(&self.backend, self.is_ipv4, &self.tried);
        self.tried.pop();
        if let Some(chosen) = next {
            (self.endpoint, self.slot) = (chosen.endpoint.clone(), chosen.hold());
            self.remote = chosen.remote();
        }
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

    /// What its backend speaks.
    pub(crate) fn protocol(&self) -> BackendProtocol {
        self.backend.protocol
    }

    /// `<namespace>/<name>` of what the endpoint belongs to.
    pub(crate) fn service(&self) -> Option<&Arc<str>> {
        self.backend.name.as_ref()
    }
}

/// The next endpoint of a family to try. One that was tried is out.
fn choose<'b>(
    backend: &'b BalancedBackend,
    is_ipv4: bool,
    tried: &[SocketAddr],
) -> Option<&'b BalancedEndpoint> {
    backend.choose(|endpoint| is_of_family(endpoint, is_ipv4) && !tried.contains(&endpoint.address))
}
