//! Opens connections to endpoints, by any transport: TCP first, a tunnel through the forward proxy if there is one, TLS
//! inside it.

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tidegate_core::backend::{Endpoint, ForwardProxy, ProxyRequest, Transport};
use tidegate_core::forward_proxy::ProxySettings;
use tidegate_core::policy::MeshProtocol;
use tidegate_core::tls_origination::TlsOrigination;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::debug;

use super::connect_error::ConnectError;
use super::peers::PeerConnections;
use super::proxy::{self, ProxyError};
use super::stream::{Secured, SecuredBy, UpstreamTls};
use crate::lifeline::{Ended, Lifeline};
use crate::limits::Limits;
use crate::snapshot::Snapshots;
use crate::socket::keep_alive;
use crate::stream::MaybeTls;
use crate::tls::{self, PeerTls};

/// Opens connections; one for each worker.
pub(super) struct UpstreamConnector {
    limits: Rc<Limits>,
    snapshots: Snapshots,
    peers: PeerConnections,
}

/// What ends a handshake that takes too long.
#[derive(Clone, Copy)]
pub(crate) enum Deadline<'l> {
    /// The lifeline of the one connection that it is for, which needs no timer. What ends that connection ends it, too.
    Lifeline(&'l Lifeline),
    /// A timer.
    Timer,
}

/// TLS that is to be spoken.
struct Security {
    /// With the roots, the client certificate and the ALPN protocols of the transport.
    config: Arc<ClientConfig>,
    /// The name that is sent, or the endpoint's address.
    name: ServerName<'static>,
    secured: Secured,
}

impl UpstreamConnector {
    pub(super) fn new(limits: Rc<Limits>, snapshots: Snapshots) -> Self {
        Self { limits, snapshots, peers: PeerConnections::default() }
    }

    /// The mesh connections that carry HTTP.
    pub(super) fn peers(&self) -> &PeerConnections {
        &self.peers
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The most time that a connection to an endpoint takes to open.
    pub(super) fn longest(&self, endpoint: &Endpoint) -> Duration {
        if let Some(limit) = connect_timeout(endpoint) {
            return limit;
        }
        let handshake = match endpoint.transport {
            Transport::Plain => Duration::ZERO,
            Transport::Mesh(_) | Transport::MeshOneOf(_) | Transport::Tls(_) => self.limits.handshake,
        };
        let hop = match &endpoint.via {
            None => self.limits.connect,
            Some(proxy) => {
                let ProxySettings { tls, connect_timeout, response_timeout, .. } = &*proxy.settings;
                *connect_timeout * if tls.is_some() { 2 } else { 1 } + *response_timeout
            }
        };
        hop + handshake
    }

    /// Opens a connection, TLS handshake included. `protocol`: what is spoken inside TLS.
    pub(super) async fn connect(
        &self,
        endpoint: &Endpoint,
        protocol: MeshProtocol,
        deadline: Deadline<'_>,
    ) -> Result<MaybeTls<UpstreamTls>, ConnectError> {
        let connecting = self.try_connect(endpoint, protocol, deadline);
        let connected = match connect_timeout(endpoint) {
            None => connecting.await,
            Some(limit) => timeout(limit, connecting).await.unwrap_or(Err(ConnectError::Timeout)),
        };
        connected
            .inspect_err(|error| debug!(address = %endpoint.address, %error, "no connection to an upstream"))
    }

    async fn try_connect(
        &self,
        endpoint: &Endpoint,
        protocol: MeshProtocol,
        deadline: Deadline<'_>,
    ) -> Result<MaybeTls<UpstreamTls>, ConnectError> {
        let security = self.security(endpoint, protocol)?;
        if let Some(proxy) = &endpoint.via {
            return Box::pin(self.connect_through(proxy, endpoint.address, security, protocol, deadline))
                .await;
        }
        let limit = connect_timeout(endpoint);
        let io = self.dial(endpoint.address, limit.unwrap_or(self.limits.connect), deadline).await?;
        match security {
            None => Ok(MaybeTls::Plain(io)),
            // Large, and not for the app.
            Some(security) => {
                let limit = limit.unwrap_or(self.limits.handshake);
                Box::pin(self.handshake(io, endpoint.address, security, protocol, (limit, deadline))).await
            }
        }
    }

    /// The same through a forward proxy at `address`: TLS to the proxy if it takes that, a tunnel if one is asked for, TLS
    /// inside it.
    async fn connect_through(
        &self,
        proxy: &ForwardProxy,
        address: SocketAddr,
        security: Option<Security>,
        protocol: MeshProtocol,
        deadline: Deadline<'_>,
    ) -> Result<MaybeTls<UpstreamTls>, ConnectError> {
        let settings = &*proxy.settings;
        let hop = self.reach_proxy(settings, address, deadline).await;
        let mut hop = hop.map_err(ConnectError::of_proxy)?;
        if let ProxyRequest::Tunnel(target) = &proxy.request {
            let opening = proxy::open(&mut hop, target, settings);
            deadline.limit(settings.response_timeout, ProxyError::NoAnswer.into(), opening).await??;
        }
        match (security, hop) {
            (None, hop) => Ok(hop),
            (Some(security), MaybeTls::Plain(io)) => {
                self.handshake(io, address, security, protocol, (self.limits.handshake, deadline)).await
            }
            (Some(_), MaybeTls::Tls(_)) => Err(ProxyError::TwoLayers.into()),
        }
    }

    /// A connection to a forward proxy.
    async fn reach_proxy(
        &self,
        settings: &ProxySettings,
        address: SocketAddr,
        deadline: Deadline<'_>,
    ) -> Result<MaybeTls<UpstreamTls>, ConnectError> {
        let protocol = MeshProtocol::Http1;
        let tls = settings.tls.as_ref().map(|tls| self.origination(tls, address, protocol)).transpose()?;
        let io = self.dial(address, settings.connect_timeout, deadline).await?;
        match tls {
            None => Ok(MaybeTls::Plain(io)),
            Some(tls) => {
                self.handshake(io, address, tls, protocol, (settings.connect_timeout, deadline)).await
            }
        }
    }

    /// What a transport takes beside TCP; `None` for plaintext.
    fn security(
        &self,
        endpoint: &Endpoint,
        protocol: MeshProtocol,
    ) -> Result<Option<Security>, ConnectError> {
        match &endpoint.transport {
            Transport::Plain => Ok(None),
            transport @ (Transport::Mesh(_) | Transport::MeshOneOf(_)) => {
                let tls = self.snapshots.current().peer_tls.clone().ok_or(ConnectError::NoCertificate)?;
                let config = tls.config(transport.identities(), protocol).map_err(ConnectError::other_tls)?;
                let name = ServerName::from(endpoint.address.ip());
                Ok(Some(self.secured(config, name, SecuredBy::Mesh(tls))))
            }
            Transport::Tls(origination) => {
                self.origination(origination, endpoint.address, protocol).map(Some)
            }
        }
    }

    /// TLS with a server outside the mesh.
    fn origination(
        &self,
        origination: &TlsOrigination,
        address: SocketAddr,
        protocol: MeshProtocol,
    ) -> Result<Security, ConnectError> {
        let tls = self.snapshots.current().origin_tls.clone();
        let name = tls::sni(origination)?.unwrap_or(address.ip().into());
        let config = tls.config(origination, protocol)?;
        Ok(self.secured(config, name, SecuredBy::Origin(tls)))
    }

    fn secured(&self, config: Arc<ClientConfig>, name: ServerName<'static>, by: SecuredBy) -> Security {
        Security { config, name, secured: Secured::new(by, self.snapshots.clone()) }
    }

    /// The TCP handshake, with an error of its own for one that takes too long.
    async fn dial(
        &self,
        address: SocketAddr,
        limit: Duration,
        deadline: Deadline<'_>,
    ) -> Result<TcpStream, ConnectError> {
        let connecting = TcpStream::connect(address);
        let connected = deadline.limit(limit, ConnectError::Timeout, connecting).await?;
        let io = connected.map_err(ConnectError::of_tcp)?;
        // A socket that refuses it is one that has ended, which shows soon enough.
        let _ = io.set_nodelay(true);
        // What is on this machine does not vanish without a word.
        if !address.ip().is_loopback() {
            let _ = keep_alive(&io);
        }
        Ok(io)
    }

    /// The TLS handshake and the checks after it: of the negotiated protocol, and of the certificate by the newest
    /// roots.
    async fn handshake(
        &self,
        io: TcpStream,
        address: SocketAddr,
        security: Security,
        protocol: MeshProtocol,
        (limit, deadline): (Duration, Deadline<'_>),
    ) -> Result<MaybeTls<UpstreamTls>, ConnectError> {
        let Security { config, name, secured } = security;
        let handshake = TlsConnector::from(config).connect(name, io);
        let shaken = deadline.limit(limit, ConnectError::TlsTimeout, handshake).await?;
        let stream = shaken.map_err(ConnectError::of_tls)?;
        check_alpn(secured.by(), protocol, stream.get_ref().1.alpn_protocol())?;
        let mut line = None;
        if let SecuredBy::Mesh(tls) = secured.by() {
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            self.verify_by_newest(tls, chain)?;
            if protocol != MeshProtocol::Tcp {
                line = Some(self.peers.enter(address, chain).map_err(ConnectError::other_tls)?);
            }
        }
        Ok(MaybeTls::Tls(Box::new(UpstreamTls::new(stream, secured, line))))
    }

    /// Changes of the trust bundle end open connections; one that came during the handshake has not looked at this one.
    fn verify_by_newest(&self, tls: &PeerTls, chain: &[CertificateDer<'_>]) -> Result<(), ConnectError> {
        match &self.snapshots.current().peer_tls {
            Some(newest) if newest.bundle != tls.bundle => {
                newest.verify_again(chain, UnixTime::now()).map_err(ConnectError::other_tls)
            }
            _ => Ok(()),
        }
    }
}

/// Time in which a connection to an endpoint opens, if its backend limits it.
fn connect_timeout(endpoint: &Endpoint) -> Option<Duration> {
    endpoint.usage.as_ref()?.connect_timeout()
}

/// Whether the peer speaks what it is to speak: a sidecar must say so, a server outside the mesh where it is HTTP/2.
fn check_alpn(by: &SecuredBy, protocol: MeshProtocol, chosen: Option<&[u8]>) -> Result<(), ConnectError> {
    match (by, protocol) {
        (SecuredBy::Mesh(_), _) => {
            let wanted = tls::mesh_alpn(protocol);
            if chosen == Some(wanted) { Ok(()) } else { Err(ConnectError::NotASidecar(wanted)) }
        }
        (SecuredBy::Origin(_), MeshProtocol::Http2) if chosen != Some(b"h2") => Err(ConnectError::NotHttp2),
        (SecuredBy::Origin(_), _) => Ok(()),
    }
}

impl Deadline<'_> {
    /// Drives one step, for so long; `late`: the error if it takes longer.
    async fn limit<F: Future>(
        self,
        time: Duration,
        late: ConnectError,
        step: F,
    ) -> Result<F::Output, ConnectError> {
        match self {
            Self::Lifeline(line) => match line.limit(time, step).await {
                Ok(done) => done.ok_or(late),
                Err(Ended(cause)) => Err(ConnectError::Ended(cause)),
            },
            Self::Timer => timeout(time, step).await.map_err(|_| late),
        }
    }
}
