//! The facts about one accepted connection that policy, headers and logs use.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_core::PeerCertificate;
use tidegate_core::policy::{Decision, Denial, InboundPolicy, Opening, Reason, Session, Terms};

use crate::remotes::RemoteId;

/// The details, in records, of what goes to an address that no object has, and may not.
pub(crate) const UNREGISTERED: &str = "destination_unregistered";

/// A connection after its handshake, if any. Immutable.
pub struct ConnectionInfo {
    /// Address of the TCP peer.
    pub peer: SocketAddr,
    /// Address that the peer dialled.
    pub local: SocketAddr,
    /// The pod's port, by which the policy is looked up.
    pub port: u16,
    /// Where the app listens.
    pub app: SocketAddr,
    /// The terms on which the policy opened the connection.
    pub terms: Terms,
    /// Whether TLS was terminated; `false` for plaintext and for opaque bytes.
    pub tls: bool,
    /// Server name of the ClientHello.
    pub server_name: Option<Box<str>>,
    /// The client certificate, verified against the trust bundle.
    pub client: Option<Rc<VerifiedCertificate>>,
    /// Our own identity as a SPIFFE URI: `By=` of `x-forwarded-client-cert`.
    pub identity: Arc<str>,
    /// The workload at the other end, and the Service, for metrics.
    pub remote: RemoteId,
    /// When the connection was accepted.
    pub accepted: SystemTime,
}

/// A peer's verified certificate: a client's, or that of the sidecar at the other end of an outbound connection.
/// Interned by the worker: a thousand connections of one ingress controller share one.
pub struct VerifiedCertificate {
    /// Names and validity.
    pub leaf: PeerCertificate,
    /// DER of the chain as the peer sent it, leaf first; verified again when the trust bundle changes.
    pub chain: Vec<rustls_pki_types::CertificateDer<'static>>,
    /// Its element of `x-forwarded-client-cert`: `Hash=…;URI=…;DNS=…`, special characters escaped.
    pub forwarded: Box<str>,
    /// Its names for logs: `DNS:a.b, URI:spiffe://…`.
    pub names: Box<str>,
}

/// Who has an address that the app dials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AddressOwner {
    /// A Service or a workload, or the address was not looked up.
    #[default]
    Cluster,
    /// An object about the outside, such as `ServiceEntry shop/api`, or the policy that allows what is sent there.
    Object(Arc<str>),
    /// No object.
    Unregistered,
}

/// A connection that the app has opened.
pub struct OutboundInfo {
    /// The app's end.
    pub peer: SocketAddr,
    /// Address that the app dialled.
    pub dialled: SocketAddr,
    /// What access logs call what is behind it: `<namespace>/<name>` of the Service or Pod, or a ServiceEntry's host; `None`:
    /// outside the mesh.
    pub service: Option<Arc<str>>,
    /// The same for the hosts of requests, where hosts tell these apart.
    pub hosts: HostServices,
    /// The same in metrics, for requests that reach no endpoint.
    pub destination: RemoteId,
    /// Who has the address.
    pub owner: AddressOwner,
}

/// Where the requests of a connection go that name a host.
#[derive(Debug, Default)]
pub struct HostServices(RefCell<Vec<(Box<[u8]>, HostService)>>);

/// Where the requests for a host go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostService {
    /// What access logs call it.
    pub service: Option<Arc<str>>,
    /// Who has the host.
    pub owner: AddressOwner,
}

/// The most hosts of a connection of which this is known.
const MOST_HOSTS: usize = 8;

/// The connection on which requests come.
#[derive(Clone)]
pub enum ServedConnection {
    /// A client's connection to the app.
    Inbound(Rc<ConnectionInfo>),
    /// The app's own connection to a destination.
    Outbound(Rc<OutboundInfo>),
}

impl HostServices {
    /// Notes what requests with this authority go to.
    pub(crate) fn set(&self, authority: &[u8], service: Option<&Arc<str>>, owner: &AddressOwner) {
        let mut hosts = self.0.borrow_mut();
        let new = || HostService { service: service.cloned(), owner: owner.clone() };
        match hosts.iter_mut().find(|(known, _)| **known == *authority) {
            Some((_, known)) if known.service.as_ref() == service && known.owner == *owner => {}
            Some((_, known)) => *known = new(),
            None => {
                if hosts.len() >= MOST_HOSTS {
                    hosts.remove(0);
                }
                hosts.push((authority.into(), new()));
            }
        }
    }

    /// What requests with this authority go to.
    pub(crate) fn of(&self, authority: &[u8]) -> Option<HostService> {
        let hosts = self.0.borrow();
        hosts.iter().find(|(known, _)| **known == *authority).map(|(_, service)| service.clone())
    }
}

impl ServedConnection {
    /// Address that the client dialled.
    pub(crate) fn dialled(&self) -> SocketAddr {
        match self {
            Self::Inbound(info) => info.local,
            Self::Outbound(info) => info.dialled,
        }
    }
}

impl ConnectionInfo {
    /// Whether the client speaks HTTPS, as far as the app is concerned. The TLS between sidecars carries what the client
    /// has sent to its own sidecar in plaintext.
    pub(crate) fn is_https(&self) -> bool {
        self.tls && !matches!(self.terms, Terms::MeshTls(_))
    }

    /// What the first bytes showed, in the form that the policy takes.
    pub fn opening(&self) -> Opening<'_> {
        match self.terms {
            Terms::MeshTls(protocol) => Opening::Mesh(protocol),
            Terms::IngressPlaintext => Opening::Plaintext,
            Terms::Opaque if self.server_name.is_none() => Opening::Plaintext,
            _ => Opening::Tls { server_name: self.server_name.as_deref() },
        }
    }

    /// The connection in the form that the policy takes.
    pub(crate) fn session(&self) -> Session<'_> {
        Session {
            port: self.port,
            source: self.peer.ip(),
            opening: self.opening(),
            client: self.client.as_ref().map(|client| client.leaf.sans.as_slice()),
        }
    }

    /// The policy's decision about the connection; without a policy, a denial.
    pub(crate) fn judge(&self, policy: Option<&InboundPolicy>) -> Decision {
        let Some(policy) = policy else { return Decision::Deny(Denial::new(Reason::NoPolicy)) };
        policy.authorize(&self.session())
    }
}
