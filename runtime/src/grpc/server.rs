//! The server's side: a stream of TLS connections that nothing a client does can end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::places::{ConnectionLimits, Place, Places};
use crate::backoff::Backoff;

/// How long a handshake may take, unless there is a reason for another limit.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The stream that [`server_stream`] makes. It never ends and never yields an error; dropping it closes the listener
/// and the handshakes in progress, and leaves the connections that it has yielded alone.
#[derive(Debug)]
pub struct IncomingConnections(mpsc::Receiver<Connection>);

/// One TLS connection from a client, its handshake done.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    /// Held while the connection lives.
    _place: Place,
}

/// Who is at the other end. Found in the extensions of each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where the connection comes from.
    pub address: SocketAddr,
    /// The client's certificates, leaf first, as the server's verifier has accepted them; none if the client showed
    /// none.
    pub certificates: Arc<[CertificateDer<'static>]>,
}

/// Accepts TLS connections for tonic's `serve_with_incoming`.
///
/// Handshakes run side by side, each within `handshake_timeout` and with the configuration that `tls` holds when its
/// connection comes. Beyond `limits`, handshakes included, a new one is closed at once, so that its client tries elsewhere
/// or later. Running out of file descriptors pauses accepting for 50 ms to 1 s; a failed handshake
/// concerns its connection only. Needs a tokio runtime.
pub fn server_stream(
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    limits: ConnectionLimits,
    handshake_timeout: Duration,
) -> IncomingConnections {
    let (sender, receiver) = mpsc::channel(16);
    let acceptor = Acceptor { listener, tls, places: Places::new(limits), handshake_timeout, sender };
    tokio::spawn(acceptor.run());
    IncomingConnections(receiver)
}

struct Acceptor {
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    places: Places,
    handshake_timeout: Duration,
    sender: mpsc::Sender<Connection>,
}

impl Acceptor {
    async fn run(self) {
        let mut handshakes = JoinSet::new();
        let mut pause = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            let accepted = tokio::select! {
                () = self.sender.closed() => return,
                Some(_) = handshakes.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, address)) => {
                    pause.reset();
                    match self.places.take(address.ip()) {
                        Ok(place) => {
                            handshakes.spawn(self.handshake(tcp, address, place));
                        }
                        Err(full) => debug!(%address, "connection closed: {full}"),
                    }
                }
                Err(error) if concerns_one_connection(&error) => {
                    debug!(%error, "connection was gone before accept");
                }
                Err(error) => {
                    if pause.failures() == 0 {
                        warn!(%error, "cannot accept connections; trying again until it works");
                    }
                    let delay = pause.ceiling();
                    pause.next_delay();
                    tokio::select! {
                        () = self.sender.closed() => return,
                        () = tokio::time::sleep(delay) => {}
                    }
                }
            }
        }
    }

    fn handshake(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
        place: Place,
    ) -> impl Future<Output = ()> + Send + 'static {
        let acceptor = TlsAcceptor::from(self.tls.borrow().clone());
        let sender = self.sender.clone();
        let deadline = self.handshake_timeout;
        async move {
            if let Err(error) = keep_alive(&tcp) {
                debug!(%address, %error, "connection closed: socket options");
                return;
            }
            let stream = match tokio::time::timeout(deadline, acceptor.accept(tcp)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return debug!(%address, %error, "TLS handshake failed"),
                Err(_) => return debug!(%address, "TLS handshake took too long"),
            };
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let peer = Peer {
                address,
                certificates: certificates
                    .iter()
                    .map(|certificate| certificate.clone().into_owned())
                    .collect(),
            };
            // Fails when the server has ended; then so has this connection.
            let _ = sender.send(Connection { stream, peer, _place: place }).await;
        }
    }
}

impl Connection {
    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl Stream for IncomingConnections {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// No delay for small writes, and probes that find a vanished peer within about a minute.
pub(super) fn keep_alive(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    SockRef::from(tcp).set_tcp_keepalive(&probes)
}

/// Errors of accept(2) that tell of the connection, not of the listener.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
