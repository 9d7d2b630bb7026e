//! Endpoints: the addresses behind a backend, and how to connect to each.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::dns_name::DnsName;
use crate::forward_proxy::ProxySettings;
use crate::identity::Identity;
use crate::object_ref::ObjectRef;

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
}

/// How to connect to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Transport {
    /// Plaintext.
    Plain,
    /// Mutual TLS to a sidecar that must present this identity.
    Mesh(Identity),
    /// TLS to a server outside the mesh.
    Tls(Box<TlsOrigination>),
}

/// TLS origination for an app that sends plaintext (Gateway API: `BackendTLSPolicy`, GEP-1897).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsOrigination {
    /// Server name to send (RFC 6066 §3); `None` for an address.
    pub sni: Option<Arc<str>>,
    /// Verification of the server's certificate, which cannot be disabled.
    pub verify: ServerVerification,
    /// Secret with the client certificate for servers that request one.
    pub client_certificate: Option<ObjectRef>,
}

/// Requirements on a server's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerVerification {
    /// Trusted roots.
    pub roots: TrustRoots,
    /// Accepted names. One of them must be in the certificate.
    pub names: Vec<ServerName>,
}

/// Roots of trust for servers outside the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum TrustRoots {
    /// The system's roots (`wellKnownCACertificates: System`).
    System,
    /// The roots in these objects.
    Bundles(Vec<ObjectRef>),
    /// These certificates, in PEM.
    Pem(Arc<str>),
}

/// An accepted name of a server. Compared only with names of the same type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ServerName {
    /// A DNS name; a wildcard in the certificate stands for one label (RFC 9525 §6.3).
    Dns(DnsName),
    /// A URI, compared exactly.
    Uri(Box<str>),
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

impl Endpoint {
    /// An endpoint without a forward proxy.
    pub fn new(address: SocketAddr, transport: Transport) -> Self {
        Self { address, transport, via: None }
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

impl fmt::Display for ServerName {
    /// As `openssl` prints names: `DNS:a.example`, `URI:spiffe://…`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "DNS:{name}"),
            Self::Uri(uri) => write!(f, "URI:{uri}"),
        }
    }
}

impl Serialize for ServerName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
