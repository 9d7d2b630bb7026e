//! The server's side: a stream of TLS connections that no client can terminate.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::intake::{Intake, IntakeLimits, Meter, Metered, TooMuch};
use super::places::{ConnectionLimits, ConnectionSlot, ConnectionSlots};
use crate::backoff::ExponentialBackoff;
use crate::logging::{LogRate, LogThrottle};
use crate::metrics::Metrics;
use crate::tcp::keep_alive;

/// Default timeout of a handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The stream returned by [`server_stream`]. It never ends and never yields an error; dropping it closes the listener
/// and the handshakes in progress, but not the connections that it has yielded.
#[derive(Debug)]
pub struct IncomingConnections(mpsc::Receiver<AcceptedConnection>);

/// One TLS connection from a client, after its handshake.
#[derive(Debug)]
pub struct AcceptedConnection {
    stream: TlsStream<Metered>,
    peer: Peer,
    refusals: Arc<Refusals>,
    /// Held for the lifetime of the connection.
    _place: ConnectionSlot,
}

/// The peer of a connection, in the extensions of each request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The address that the connection comes from.
    pub address: SocketAddr,
    /// The client's certificates, leaf first, as accepted by the server's verifier; empty if the client presented none.
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// Its counted bytes, if it must authenticate by calls.
    unproven: Option<Arc<Meter>>,
}

/// How a server accepts TLS connections. Start with [`ServerStream::start`].
///
/// Handshakes run concurrently, each with a timeout and with the TLS configuration that is current when its connection
/// arrives. Beyond the limits, handshakes included, a new connection is closed at once, so that its client tries
/// elsewhere or later; the same happens to a connection that sends more than [`IntakeLimits`] allow before its
/// handshake is done. When file descriptors run out, accepting pauses for 50 ms to 1 s; a failed handshake only affects
/// its own connection.
#[derive(Debug)]
pub struct ServerStream {
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    limits: ConnectionLimits,
    handshake_timeout: Duration,
    intake: IntakeLimits,
    proven_by: ProvenBy,
    refused: RefusedConnections,
}

/// Connections closed because of a limit, by limit. Clones share their counts.
#[derive(Clone, Debug, Default)]
pub struct RefusedConnections(Family<[(&'static str, &'static str); 1], Counter>);

/// When a peer counts as authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProvenBy {
    Handshake,
    Calls,
}

/// Accepts TLS connections for tonic's `serve_with_incoming`: a [`ServerStream`] with default settings. Needs a tokio
/// runtime.
pub fn server_stream(
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    limits: ConnectionLimits,
    handshake_timeout: Duration,
) -> IncomingConnections {
    ServerStream::new(listener, tls, limits, handshake_timeout).start()
}

impl ServerStream {
    /// With these connection limits; [`IntakeLimits`] have their defaults.
    pub fn new(
        listener: TcpListener,
        tls: watch::Receiver<Arc<ServerConfig>>,
        limits: ConnectionLimits,
        handshake_timeout: Duration,
    ) -> Self {
        Self {
            listener,
            tls,
            limits,
            handshake_timeout,
            intake: IntakeLimits::default(),
            proven_by: ProvenBy::Handshake,
            refused: RefusedConnections::default(),
        }
    }

    /// Peers connect without a certificate and authenticate by calls: until [`Peer::has_proven`], all bytes read from
    /// them count.
    #[must_use]
    pub fn proven_by_calls(self) -> Self {
        Self { proven_by: ProvenBy::Calls, ..self }
    }

    /// Sets the limits on bytes read from unauthenticated peers.
    #[cfg(test)]
    pub(crate) fn with_intake(self, intake: IntakeLimits) -> Self {
        Self { intake, ..self }
    }

    /// Sets where refusals are counted.
    #[must_use]
    pub fn counted(self, refused: RefusedConnections) -> Self {
        Self { refused, ..self }
    }

    /// Starts accepting. Needs a tokio runtime.
    pub fn start(self) -> IncomingConnections {
        let Self { listener, tls, limits, handshake_timeout, intake, proven_by, refused } = self;
        let (sender, receiver) = mpsc::channel(16);
        let acceptor = Acceptor {
            listener,
            tls,
            places: ConnectionSlots::new(limits),
            intake: Intake::new(intake),
            handshake_timeout,
            proven_by,
            refusals: Arc::new(Refusals { counts: refused, lines: LogThrottle::new(LogRate::default()) }),
            sender,
        };
        tokio::spawn(acceptor.run());
        IncomingConnections(receiver)
    }
}

impl RefusedConnections {
    /// Registers `tidegate_grpc_connections_refused_total`.
    pub fn register(metrics: &Metrics) -> Self {
        Self(metrics.register(
            "tidegate_grpc_connections_refused",
            "Connections that were closed because a limit was reached, by limit: connections or bytes of peers that \
             had proven nothing, of one connection, one address or all",
        ))
    }
}

impl Peer {
    /// Records that a call has authenticated the peer: its bytes so far no longer count.
    pub fn has_proven(&self) {
        if let Some(meter) = &self.unproven {
            meter.release();
        }
    }
}

struct Acceptor {
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    places: ConnectionSlots,
    intake: Intake,
    handshake_timeout: Duration,
    proven_by: ProvenBy,
    refusals: Arc<Refusals>,
    sender: mpsc::Sender<AcceptedConnection>,
}

/// Logs connections that are closed at a limit.
#[derive(Debug)]
struct Refusals {
    counts: RefusedConnections,
    lines: LogThrottle<IpAddr>,
}

impl Refusals {
    fn tell(&self, address: SocketAddr, limit: &'static str, reason: &dyn std::fmt::Display) {
        self.counts.0.get_or_create(&[("limit", limit)]).inc();
        if self.lines.admits(&address.ip().to_canonical(), Instant::now()) {
            warn!(%address, limit, "connection closed: {reason}");
        }
    }

    fn summarize(&self) {
        if let Some(suppressed) = self.lines.take_suppressed() {
            warn!(by_source = %suppressed, "more connections were closed at a limit");
        }
    }
}

impl Acceptor {
    async fn run(self) {
        let mut handshakes = JoinSet::new();
        let mut pause = ExponentialBackoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let mut summary = tokio::time::interval(self.refusals.lines.window());
        loop {
            let accepted = tokio::select! {
                () = self.sender.closed() => return,
                _ = summary.tick() => {
                    self.refusals.summarize();
                    continue;
                }
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
                        Err(full) => self.refusals.tell(address, full.limit(), &full),
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
        place: ConnectionSlot,
    ) -> impl Future<Output = ()> + Send + 'static {
        let acceptor = TlsAcceptor::from(self.tls.borrow().clone());
        let sender = self.sender.clone();
        let deadline = self.handshake_timeout;
        let (meter, proven_by) = (self.intake.meter(address.ip()), self.proven_by);
        let refusals = self.refusals.clone();
        async move {
            if let Err(error) = keep_alive(&tcp) {
                debug!(%address, %error, "connection closed: socket options");
                return;
            }
            let tcp = Metered::new(tcp, meter.clone());
            let stream = match tokio::time::timeout(deadline, acceptor.accept(tcp)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    return match TooMuch::of(&error) {
                        Some(too_much) => refusals.tell(address, too_much.limit(), &too_much),
                        None => debug!(%address, %error, "TLS handshake failed"),
                    };
                }
                Err(_) => return debug!(%address, "TLS handshake took too long"),
            };
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            match proven_by {
                ProvenBy::Handshake => meter.end(),
                ProvenBy::Calls => meter.release(),
            }
            let unproven = (proven_by == ProvenBy::Calls).then_some(meter);
            let peer = Peer {
                address,
                unproven,
                certificates: certificates
                    .iter()
                    .map(|certificate| certificate.clone().into_owned())
                    .collect(),
            };
            // Fails when the server has stopped, which closes this connection, too.
            let _ = sender.send(AcceptedConnection { stream, peer, refusals, _place: place }).await;
        }
    }
}

impl AcceptedConnection {
    /// The peer of the connection.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Connected for AcceptedConnection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl Stream for IncomingConnections {
    type Item = io::Result<AcceptedConnection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

impl AsyncRead for AcceptedConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &read
            && let Some(too_much) = TooMuch::of(error)
        {
            self.refusals.tell(self.peer.address, too_much.limit(), &too_much);
        }
        read
    }
}

impl AsyncWrite for AcceptedConnection {
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

/// Errors of accept(2) that concern the connection, not the listener.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
