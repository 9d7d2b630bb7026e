//! Connections to upstreams, plain or inside TLS: the only place that dials one. Its error says why there is none, in the
//! same words whoever needs it.

mod error;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tidegate_core::Identity;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) use self::error::ConnectError;
use crate::lifeline::{Lifeline, Wait};
use crate::limits::Limits;
use crate::socket::keep_alive;
use crate::stream::{Abort, MaybeTls, PeerEnd};
use crate::tls::{self, PeerTls};

/// How an upstream is spoken to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transport<'t> {
    /// Bytes as they are.
    Plain,
    /// Mutual TLS with the sidecar of a workload of the mesh.
    Mesh {
        /// The workload that must answer.
        expected: &'t Identity,
        /// Our certificate, and what the workload's is verified by; `None` if there is none yet.
        tls: Option<&'t PeerTls>,
    },
}

/// What ends a TCP handshake that takes longer than [`Limits::connect`].
#[derive(Clone, Copy)]
pub(crate) enum Deadline<'l> {
    /// The lifeline of the one connection that it is for, which needs no timer. What ends that connection ends it, too.
    Lifeline(&'l Lifeline),
    /// A timer.
    Timer,
}

/// Connects to an upstream, TLS handshake included.
pub(crate) async fn connect(
    address: SocketAddr,
    transport: Transport<'_>,
    limits: &Limits,
) -> Result<MaybeTls<TlsStream<TcpStream>>, ConnectError> {
    let config = match transport {
        Transport::Plain => None,
        Transport::Mesh { expected, tls } => {
            let tls = tls.ok_or(ConnectError::NoCertificate)?;
            Some(tls.config(expected).map_err(ConnectError::other_tls)?)
        }
    };
    let io = dial(address, limits, Deadline::Timer).await?;
    match config {
        None => Ok(MaybeTls::Plain(io)),
        Some(config) => handshake(io, config, address, limits).await,
    }
}

/// Opens a TCP connection.
pub(crate) async fn dial(
    address: SocketAddr,
    limits: &Limits,
    deadline: Deadline<'_>,
) -> Result<TcpStream, ConnectError> {
    let connecting = pin!(TcpStream::connect(address));
    let connected = match deadline {
        Deadline::Lifeline(line) => {
            line.within(limits.connect, Wait::Connect);
            let connected = line.guard(connecting).await;
            line.at_ease();
            connected?
        }
        Deadline::Timer => timeout(limits.connect, connecting).await.map_err(|_| ConnectError::Timeout)?,
    };
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
    io: TcpStream,
    config: Arc<ClientConfig>,
    address: SocketAddr,
    limits: &Limits,
) -> Result<MaybeTls<TlsStream<TcpStream>>, ConnectError> {
    let name = ServerName::from(address.ip());
    let handshake = timeout(limits.handshake, TlsConnector::from(config).connect(name, io));
    let stream = handshake.await.map_err(|_| ConnectError::TlsTimeout)?.map_err(ConnectError::of_tls)?;
    if stream.get_ref().1.alpn_protocol() != Some(tls::TCP) {
        return Err(ConnectError::NotASidecar);
    }
    Ok(MaybeTls::Tls(Box::new(stream)))
}

impl Abort for TlsStream<TcpStream> {
    fn abort(&self) {
        self.get_ref().0.abort();
    }

    fn peer_end(&self) -> PeerEnd {
        self.get_ref().0.peer_end()
    }
}
