//! What a workload dials, as the mesh knows it: who is there, and how each endpoint is spoken to.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::identity::Identity;

/// What stands behind an address and port that a workload dials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Destination {
    /// Nobody of the mesh: it is dialled as it is.
    Passthrough,
    /// A Service of which at least one endpoint is in the mesh, or a Pod of the mesh.
    Service(MeshService),
}

/// The endpoints that stand behind one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshService {
    /// The Service or the Pod, as `<namespace>/<name>`.
    pub name: Arc<str>,
    /// Where connections may go, each address once. None: there is nobody, and a connection is refused.
    pub endpoints: Vec<Endpoint>,
}

/// One place to which a connection may go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The Pod's address, with the Service's `targetPort`.
    pub address: SocketAddr,
    /// Who must answer there, over mutual TLS. `None`: the endpoint has no sidecar and is spoken to in plaintext.
    pub identity: Option<Identity>,
}
