//! One accepted connection as policy, headers and logs see it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_core::PeerCertificate;
use tidegate_core::policy::{Decision, Denial, InboundPolicy, Opening, Reason, Session, Terms};

/// What is known of a connection once its handshake, if any, is done. Does not change any more.
pub struct ConnectionInfo {
    /// Address of the TCP peer.
    pub peer: SocketAddr,
    /// Address that the peer dialled.
    pub local: SocketAddr,
    /// The pod's port, by which the policy is looked up.
    pub port: u16,
    /// Where the app listens.
    pub app: SocketAddr,
    /// On which terms the policy opened the connection.
    pub terms: Terms,
    /// Whether TLS was terminated; `false` for plaintext and for opaque bytes.
    pub tls: bool,
    /// Server name of the ClientHello.
    pub server_name: Option<Box<str>>,
    /// The client certificate, verified against the trust bundle.
    pub client: Option<Rc<VerifiedCertificate>>,
    /// Our own identity as a SPIFFE URI: `By=` of `x-forwarded-client-cert`.
    pub identity: Arc<str>,
    /// When the connection was accepted.
    pub accepted: SystemTime,
}

/// A peer's certificate that was verified: a client's, or that of the sidecar that the app's own connection goes to.
/// Interned by the worker: a thousand connections of one ingress controller hold one.
pub struct VerifiedCertificate {
    /// Its names and life.
    pub leaf: PeerCertificate,
    /// DER of the chain as the client sent it, leaf first; for judging it again by another trust bundle.
    pub chain: Vec<rustls_pki_types::CertificateDer<'static>>,
    /// Its part of `x-forwarded-client-cert`: `Hash=…;URI=…;DNS=…`, everything that is not plain escaped.
    pub forwarded: Box<str>,
    /// Its names for logs: `DNS:a.b, URI:spiffe://…`.
    pub names: Box<str>,
}

impl ConnectionInfo {
    /// What the first bytes showed, as the policy asks for it.
    pub fn opening(&self) -> Opening<'_> {
        match self.terms {
            Terms::MeshTls(protocol) => Opening::Mesh(protocol),
            Terms::IngressPlaintext => Opening::Plaintext,
            Terms::Opaque if self.server_name.is_none() => Opening::Plaintext,
            _ => Opening::Tls { server_name: self.server_name.as_deref() },
        }
    }

    /// What the policy is asked about.
    pub(crate) fn session(&self) -> Session<'_> {
        Session {
            port: self.port,
            source: self.peer.ip(),
            opening: self.opening(),
            client: self.client.as_ref().map(|client| client.leaf.sans.as_slice()),
        }
    }

    /// The decision of a policy.
    pub(crate) fn judge(&self, policy: Option<&InboundPolicy>) -> Decision {
        let Some(policy) = policy else { return Decision::Deny(Denial::new(Reason::NoPolicy)) };
        policy.authorize(&self.session())
    }
}
