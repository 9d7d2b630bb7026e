//! Endpoints: the addresses behind a backend, and how to connect to each.

use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use super::usage::LimitedUsage;
use crate::forward_proxy::ProxySettings;
use crate::identity::Identity;
use crate::tls_origination::TlsOrigination;

/// One endpoint of a backend. The key of connection pools: requests share a connection only if their endpoints are
/// equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Address and port to dial: those of the forward proxy, if there is one.
    pub address: SocketAddr,
    /// How to connect.
    pub transport: Transport,
    /// Forward proxy on the way to it; `None` for a direct connection.
    pub via: Option<ForwardProxy>,
    /// In a sidecar: what its backend has open, if that is limited. Connections count for one backend only.
    #[serde(skip)]
    pub usage: Option<Arc<LimitedUsage>>,
}

/// How to connect to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Transport {
    /// Plaintext.
    Plain,
    /// Mutual TLS to a sidecar that must present this identity.
    Mesh(Identity),
    /// The same with one of these identities, at least two.
    MeshOneOf(Arc<[Identity]>),
    /// TLS to a server outside the mesh.
    Tls(Box<TlsOrigination>),
}

/// An HTTP forward proxy, whose address is the endpoint's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ForwardProxy {
    /// How to use it.
    pub settings: Arc<ProxySettings>,
    /// What it is asked for.
    pub request: ProxyRequest,
}

/// What a forward proxy is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ProxyRequest {
    /// A tunnel to `host:port` by CONNECT (RFC 9110 §9.3.6), with the name instead of its resolved address: proxies decide
    /// by name.
    Tunnel(Arc<str>),
    /// Requests of HTTP/1 in absolute form (RFC 9112 §3.2.2), for any host.
    AbsoluteForm,
}

impl Transport {
    /// The identities of which the sidecar there must present one; empty outside the mesh.
    pub fn identities(&self) -> &[Identity] {
        match self {
            Self::Mesh(identity) => std::slice::from_ref(identity),
            Self::MeshOneOf(identities) => identities,
            Self::Plain | Self::Tls(_) => &[],
        }
    }
}

impl Endpoint {
    /// An endpoint without a forward proxy.
    pub fn new(address: SocketAddr, transport: Transport) -> Self {
        Self { address, transport, via: None, usage: None }
    }
}

impl Hash for Endpoint {
    /// By address alone: names are long to hash, and few endpoints share an address. Only tunnels through a proxy do.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address.hash(state);
        if let Some(ForwardProxy { request: ProxyRequest::Tunnel(target), .. }) = &self.via {
            target.hash(state);
        }
    }
}
