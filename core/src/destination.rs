//! Destinations of outbound connections: what is behind an address, and where connections to it go.
//!
//! A destination names its backends or routes, which are separate resources: endpoints change without the destinations
//! that lead to them.

mod key;

use std::sync::Arc;

use serde::Serialize;

pub use self::key::{DestinationKey, HostSource, RequestedHost};
use crate::backend::BackendRef;
use crate::policy::AppProtocol;
use crate::route::RoutesName;

/// What is behind an address and port that a workload connects to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Destination {
    /// Known to the cluster, and not in the mesh. The connection goes to the original address, unchanged.
    Passthrough,
    /// No object has the address. The connection goes there, unchanged, if [`crate::EgressMode`] lets it.
    Unknown,
    /// A Pod has the address, or another endpoint, and no Service leads to it. As [`Self::Unknown`], but never through a
    /// forward proxy.
    InCluster,
    /// Connections are refused, for this reason.
    Blocked(Arc<str>),
    /// Connections are told apart by host: the server name of one with TLS, the host of each request in plaintext. Each host
    /// is looked up by itself ([`DestinationKey`]). Connections that name none get this destination.
    ByHost(Box<Destination>),
    /// Connections, or the requests in them, go to backends.
    Routed {
        /// What connections carry.
        protocol: AppProtocol,
        /// Where they go.
        target: DestinationTarget,
    },
}

/// Where a routed destination leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum DestinationTarget {
    /// A backend. The same as routes whose only rule matches everything and forwards to it.
    Backend(BackendRef),
    /// Routes.
    Routes(RoutesName),
}

impl Destination {
    /// A destination whose connections, or the requests in them, are forwarded to a backend.
    pub fn backend(protocol: AppProtocol, backend: BackendRef) -> Self {
        Self::Routed { protocol, target: DestinationTarget::Backend(backend) }
    }

    /// A destination whose connections are forwarded to a backend as opaque bytes.
    pub fn opaque(backend: BackendRef) -> Self {
        Self::backend(AppProtocol::Tcp, backend)
    }
}
