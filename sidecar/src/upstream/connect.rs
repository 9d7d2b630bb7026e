//! Opens connections to endpoints, by any transport: TCP first, TLS inside it.

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::{ServerName, UnixTime};
use tidegate_core::backend::{Endpoint, Transport};
use tidegate_core::policy::MeshProtocol;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::connect_error::ConnectError;
use super::stream::{Secured, UpstreamTls};
use crate::lifeline::{Cause, Ended, Lifeline, Wait};
use crate::limits::Limits;
use crate::snapshot::Snapshots;
use crate::socket::keep_alive;
use crate::stream::MaybeTls;
use crate::tls;

/// Opens connections; one for each worker.
pub(super) struct Connector {
    limits: Rc<Limits>,
    snapshots: Snapshots,
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
    config: Arc<ClientConfig>,
    /// The protocol that the peer must choose by ALPN.
    alpn: &'static [u8],
    secured: Secured,
}

impl Connector {
    pub(super) fn new(limits: Rc<Limits>, snapshots: Snapshots) -> Self {
        Self { limits, snapshots }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The most time that a connection to an endpoint takes to open.
    pub(super) fn longest(&self, endpoint: &Endpoint) -> Duration {
        let handshake = match endpoint.transport {
            Transport::Plain => Duration::ZERO,
            Transport::Mesh(_) | Transport::Tls(_) => self.limits.handshake,
        };
        self.limits.connect + handshake
    }

    /// Opens a connection, TLS handshake included. `protocol`: what is spoken inside TLS.
    pub(super) async fn connect(
        &self,
        endpoint: &Endpoint,
        protocol: MeshProtocol,
        deadline: Deadline<'_>,
    ) -> Result<MaybeTls<UpstreamTls>, ConnectError> {
        let security = self.security(endpoint, protocol)?;
        let io = self.dial(endpoint, deadline).await?;
        match security {
            None => Ok(MaybeTls::Plain(io)),
            // Large, and not for the app.
            Some(security) => Box::pin(self.handshake(io, endpoint, security, deadline)).await,
        }
    }

    /// What a transport takes beside TCP; `None` for plaintext.
    fn security(
        &self,
        endpoint: &Endpoint,
        protocol: MeshProtocol,
    ) -> Result<Option<Security>, ConnectError> {
        if endpoint.via.is_some() {
            return Err(ConnectError::Unsupported("forward proxies"));
        }
        match &endpoint.transport {
            Transport::Plain => Ok(None),
            Transport::Mesh(expected) => {
                let tls = self.snapshots.current().peer_tls.clone().ok_or(ConnectError::NoCertificate)?;
                let config = tls.config(expected, protocol).map_err(ConnectError::other_tls)?;
                let secured = Secured::new(tls, self.snapshots.clone());
                Ok(Some(Security { config, alpn: tls::mesh_alpn(protocol), secured }))
            }
            Transport::Tls(_) => Err(ConnectError::Unsupported("TLS origination")),
        }
    }

    async fn dial(&self, endpoint: &Endpoint, deadline: Deadline<'_>) -> Result<TcpStream, ConnectError> {
        let address = endpoint.address;
        let connecting = TcpStream::connect(address);
        let connected = deadline.limit(self.limits.connect, ConnectError::Timeout, connecting).await?;
        let io = connected.map_err(ConnectError::of_tcp)?;
        // A socket that refuses it is one that has ended, which shows soon enough.
        let _ = io.set_nodelay(true);
        // What is on this machine does not vanish without a word.
        if !address.ip().is_loopback() {
            let _ = keep_alive(&io);
        }
        Ok(io)
    }

    async fn handshake(
        &self,
        io: TcpStream,
        endpoint: &Endpoint,
        security: Security,
        deadline: Deadline<'_>,
    ) -> Result<MaybeTls<UpstreamTls>, ConnectError> {
        let Security { config, alpn, secured } = security;
        let name = ServerName::from(endpoint.address.ip());
        let handshake = TlsConnector::from(config).connect(name, io);
        let shaken = deadline.limit(self.limits.handshake, ConnectError::TlsTimeout, handshake).await?;
        let stream = shaken.map_err(ConnectError::of_tls)?;
        if stream.get_ref().1.alpn_protocol() != Some(alpn) {
            return Err(ConnectError::NotASidecar(alpn));
        }
        let stream = UpstreamTls::new(stream, secured);
        self.verify_by_newest(&stream)?;
        Ok(MaybeTls::Tls(Box::new(stream)))
    }

    /// Changes of the trust bundle end open connections; one during the handshake was not looked at yet.
    fn verify_by_newest(&self, stream: &UpstreamTls) -> Result<(), ConnectError> {
        let newest = self.snapshots.current();
        match &newest.peer_tls {
            Some(newest) if newest.bundle != stream.mesh().bundle => {
                let chain = stream.peer_certificates();
                newest.verify_again(chain, UnixTime::now()).map_err(ConnectError::other_tls)
            }
            _ => Ok(()),
        }
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
        let step = pin!(step);
        match self {
            Self::Lifeline(line) => {
                line.within(time, Wait::Connect);
                let done = line.guard(step).await;
                line.at_ease();
                done.map_err(|Ended(cause)| match cause {
                    Cause::Deadline(Wait::Connect) => late,
                    cause => ConnectError::Ended(cause),
                })
            }
            Self::Timer => timeout(time, step).await.map_err(|_| late),
        }
    }
}
