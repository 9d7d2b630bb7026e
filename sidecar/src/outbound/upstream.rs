//! A connection to an endpoint: plain, or TLS to its sidecar.

use std::io;
use std::sync::Arc;

use rustls::{CertificateError, ClientConfig, Error, OtherError};
use rustls_pki_types::ServerName;
use tidegate_core::destination::Endpoint;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::limits::Limits;
use crate::stream::{Abort, MaybeTls, PeerEnd};
use crate::tls::{self, PeerTls};

/// Why there is no connection to an endpoint.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("{0}")]
    Tcp(#[source] io::Error),
    #[error("no answer in time")]
    TcpTimeout,
    #[error("TLS: {0}")]
    Tls(#[source] io::Error),
    /// The certificate is a good one, and somebody else's.
    #[error("{0}")]
    OtherIdentity(String),
    #[error("the TLS handshake took too long")]
    TlsTimeout,
    #[error("the peer does not speak tidegate/tcp: it is no sidecar of this mesh")]
    NotASidecar,
    #[error("there is no certificate to show")]
    NoCertificate,
}

/// Connects, and does the handshake where the endpoint is one of the mesh.
pub(super) async fn connect(
    endpoint: &Endpoint,
    tls: Option<&Arc<PeerTls>>,
    limits: &Limits,
) -> Result<MaybeTls<TlsStream<TcpStream>>, ConnectError> {
    let tls = match &endpoint.identity {
        Some(identity) => {
            let tls = tls.ok_or(ConnectError::NoCertificate)?;
            Some(tls.config(identity).map_err(ConnectError::other_tls)?)
        }
        None => None,
    };
    let connecting = timeout(limits.connect, TcpStream::connect(endpoint.address));
    let io = connecting.await.map_err(|_| ConnectError::TcpTimeout)?.map_err(ConnectError::Tcp)?;
    // A socket that refuses it is one that has ended, which shows soon enough.
    let _ = io.set_nodelay(true);
    let _ = crate::socket::keep_alive(&io);
    match tls {
        None => Ok(MaybeTls::Plain(io)),
        Some(config) => handshake(io, config, endpoint, limits).await,
    }
}

async fn handshake(
    io: TcpStream,
    config: Arc<ClientConfig>,
    endpoint: &Endpoint,
    limits: &Limits,
) -> Result<MaybeTls<TlsStream<TcpStream>>, ConnectError> {
    let name = ServerName::from(endpoint.address.ip());
    let handshake = timeout(limits.handshake, TlsConnector::from(config).connect(name, io));
    let stream = handshake.await.map_err(|_| ConnectError::TlsTimeout)?.map_err(ConnectError::of_tls)?;
    if stream.get_ref().1.alpn_protocol() != Some(tls::TCP) {
        return Err(ConnectError::NotASidecar);
    }
    Ok(MaybeTls::Tls(Box::new(stream)))
}

impl ConnectError {
    /// rustls itself shows what a verifier of ours says in the words of `Debug`.
    fn of_tls(error: io::Error) -> Self {
        match error.get_ref().and_then(|cause| cause.downcast_ref()) {
            Some(Error::InvalidCertificate(CertificateError::Other(OtherError(why)))) => {
                Self::OtherIdentity(why.to_string())
            }
            _ => Self::Tls(error),
        }
    }

    /// What TLS has against it beside the handshake.
    pub(super) fn other_tls(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Tls(io::Error::other(error))
    }

    /// A stable word for logs.
    pub(super) fn details(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "upstream_connection_refused",
            Self::TcpTimeout => "upstream_connection_timeout",
            Self::Tls(_) | Self::OtherIdentity(_) | Self::NotASidecar => "upstream_tls_failure",
            Self::TlsTimeout => "upstream_tls_timeout",
            Self::NoCertificate => "no_certificate",
        }
    }
}

impl Abort for TlsStream<TcpStream> {
    fn abort(&self) {
        self.get_ref().0.abort();
    }

    fn peer_end(&self) -> PeerEnd {
        self.get_ref().0.peer_end()
    }
}
