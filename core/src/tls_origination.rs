//! TLS origination: TLS with a server outside the mesh, for an app that sends plaintext.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::dns_name::DnsName;
use crate::object_ref::ObjectRef;

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
