//! Backends: named groups of endpoints, and how to connect to each endpoint.
//!
//! A backend is a separate resource. Routes name it ([`BackendRef`]), so its endpoints change without them.

mod dns;
mod endpoint;
mod topology;
mod usage;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub use self::dns::{DnsAnswers, DnsEndpoint, DnsEndpoints};
pub use self::endpoint::{Endpoint, ForwardProxy, ProxyRequest, Transport};
pub use self::topology::{Locality, Topology, TopologyHints, UsableEndpoints};
pub use self::usage::{BackendLimits, LimitedResource, LimitedUsage, UsageCounts, UsagePermit};
use crate::dns_name::DnsPattern;
use crate::object_ref::ObjectRef;

/// The name of a backend: one port of a Service, of a ServiceEntry or of another object with endpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRef {
    /// The object.
    pub object: ObjectRef,
    /// The object's port, which may differ from that of its endpoints.
    pub port: u16,
}

/// The endpoints behind a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Its name.
    pub name: BackendRef,
    /// Protocol of its endpoints.
    pub protocol: BackendProtocol,
    /// The endpoints, each address once. If empty, the response is 503.
    pub endpoints: Vec<Endpoint>,
    /// Which of them a client uses, by where it runs.
    pub topology: Topology,
    /// What endpoints belong to, such as the name of a Deployment in the namespace of the object; for metrics and traces.
    pub workloads: BTreeMap<SocketAddr, Arc<str>>,
    /// Shares of connections and requests, relative to each other; endpoints that are not here have 1. Empty: endpoints are chosen by
    /// how fast they respond.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<SocketAddr, u32>,
    /// Further endpoints, whose addresses sidecars look up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsEndpoints>,
    /// What a ServiceEntry's backend is called in access logs, as in Istio: its hosts. Empty for other objects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<DnsPattern>,
    /// Connections go to the address that was dialled, and `endpoints` is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_destination: Option<OriginalDestination>,
    /// Connections leave the mesh, and may go through forward proxies; `None`: they never do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxied_as: Option<ProxiedAs>,
    /// `sessionAffinity: ClientIP`: a client uses the same endpoint until it has not used it for this long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Duration>,
    /// What one client's sidecar may have open to it.
    #[serde(skip_serializing_if = "BackendLimits::is_unlimited")]
    pub limits: BackendLimits,
}

/// The address that was dialled, in plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OriginalDestination {
    /// Another port than the one that was dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// What forward proxies get as the target of connections to a ServiceEntry, where its hosts do not tell these apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ProxiedAs {
    /// Its host: of bytes the only one, of requests the one that they name.
    Host,
    /// The address that was dialled: the entry has no addresses, so that it may be another server's.
    Address,
}

/// Protocol of a backend inside its transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendProtocol {
    /// HTTP in the client's version.
    Http,
    /// HTTP/1.1 only, as for `appProtocol: kubernetes.io/ws`.
    Http1,
    /// HTTP/2 with prior knowledge (`appProtocol: kubernetes.io/h2c`, gRPC).
    Http2,
    /// Opaque bytes.
    Tcp,
}

impl Backend {
    /// A backend whose endpoints all clients use.
    pub fn new(name: BackendRef, protocol: BackendProtocol, endpoints: Vec<Endpoint>) -> Self {
        let (workloads, weights) = (BTreeMap::new(), BTreeMap::new());
        Self {
            name,
            protocol,
            endpoints,
            topology: Topology::Any,
            workloads,
            weights,
            dns: None,
            hosts: Vec::new(),
            original_destination: None,
            proxied_as: None,
            affinity: None,
            limits: BackendLimits::default(),
        }
    }
}

impl fmt::Display for BackendRef {
    /// `<kind> <namespace>/<name>:<port>`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.object, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns_name::DnsName;
    use crate::tls_origination::{ServerName, ServerVerification, TlsOrigination, TrustRoots};

    #[test]
    fn a_backend_is_shown_with_its_port() {
        let backend = BackendRef { object: ObjectRef::new("Service", "shop", "cart"), port: 8080 };
        assert_eq!(backend.to_string(), "Service shop/cart:8080");
    }

    #[test]
    fn a_backend_reads_as_json() {
        let tls = TlsOrigination {
            sni: Some("a.example".into()),
            verify: ServerVerification {
                roots: TrustRoots::System,
                names: vec![ServerName::Dns(DnsName::parse("a.example").unwrap())],
            },
            client_certificate: None,
        };
        let endpoint = Endpoint::new("192.0.2.1:443".parse().unwrap(), Transport::Tls(Box::new(tls)));
        let name = BackendRef { object: ObjectRef::new("ServiceEntry", "a", "b"), port: 443 };
        let backend = Backend::new(name, BackendProtocol::Http, vec![endpoint]);
        let json = serde_json::to_value(&backend).unwrap();
        let endpoint = &json["endpoints"][0];
        assert_eq!(json["protocol"], "http");
        assert_eq!(endpoint["transport"]["tls"]["verify"]["names"][0], "DNS:a.example");
    }
}
