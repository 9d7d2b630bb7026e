//! Destinations of outbound connections: the endpoints behind an address, and how to connect to each.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::identity::Identity;

/// What is behind an address and port that a workload connects to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Destination {
    /// Not in the mesh. The connection goes to the original address, unchanged.
    Passthrough,
    /// A Service with at least one endpoint in the mesh, or a Pod in the mesh.
    Service(MeshService),
}

/// The endpoints behind one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshService {
    /// The Service or the Pod, as `<namespace>/<name>`.
    pub name: Arc<str>,
    /// The endpoints, each address once. If empty, connections are refused.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint of a destination.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The Pod's address, with the Service's `targetPort`.
    pub address: SocketAddr,
    /// Identity that the endpoint's sidecar must present over mutual TLS. `None`: the endpoint has no sidecar, and the
    /// connection is plaintext.
    pub identity: Option<Identity>,
}
