//! A connection to an upstream as bytes, and whether it may carry another request.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::place::Http1Place;
use super::pool::{Fitness, Reusable, UNSURE_AFTER};
use crate::lifeline::{Cause, Ended, Lifeline, Phase};
use crate::snapshot::Snapshots;
use crate::stream::{Abort, MaybeTls, PeerEnd};
use crate::tls::{OriginTls, PeerTls};

/// How often a waiting connection is checked for whether its peer is still there.
const LOOK: Duration = Duration::from_secs(1);

/// How often in a row the same bytes are sent again before their receiver counts as vanished: 3 s on a short path. A peer
/// that is only slow acknowledges them.
const RETRANSMISSIONS: u8 = 4;

/// A connection of an HTTP/1 codec, which has one request at a time.
pub(crate) struct Http1Upstream {
    pub(crate) io: MaybeTls<UpstreamTls>,
    /// Its place, if its backend has limits.
    place: Option<Box<Http1Place>>,
}

/// TLS towards an upstream.
pub(crate) struct UpstreamTls {
    stream: TlsStream<TcpStream>,
    secured: Secured,
    /// Ends it early, whatever it carries; only mesh connections that carry HTTP have one.
    line: Option<Lifeline>,
}

/// What a connection was secured by. It carries no further requests once that has been replaced.
#[derive(Clone)]
pub(super) struct Secured {
    by: SecuredBy,
    snapshots: Snapshots,
}

/// The TLS configuration that a connection was opened with; a change replaces it as a whole.
#[derive(Clone)]
pub(super) enum SecuredBy {
    /// Mutual TLS with another sidecar.
    Mesh(Arc<PeerTls>),
    /// TLS with a server outside the mesh.
    Origin(Arc<OriginTls>),
}

impl Http1Upstream {
    pub(super) fn new(io: MaybeTls<UpstreamTls>, place: Option<Box<Http1Place>>) -> Self {
        Self { io, place }
    }

    /// Whether the other end acknowledges nothing any more.
    pub(crate) fn has_vanished(&self) -> bool {
        matches!(&self.io, MaybeTls::Tls(tls) if tls.has_vanished())
    }
}

impl UpstreamTls {
    pub(super) fn new(stream: TlsStream<TcpStream>, secured: Secured, line: Option<Lifeline>) -> Self {
        Self { stream, secured, line }
    }

    /// The certificate that a sidecar has shown, with its chain, leaf first; `None` for servers outside the mesh.
    pub(crate) fn sidecar_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        match self.secured.by {
            SecuredBy::Mesh(_) => Some(self.stream.get_ref().1.peer_certificates().unwrap_or_default()),
            SecuredBy::Origin(_) => None,
        }
    }
}

impl MaybeTls<UpstreamTls> {
    /// What it was secured by; `None` in plaintext.
    pub(super) fn secured(&self) -> Option<Secured> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => Some(tls.secured.clone()),
        }
    }
}

impl Secured {
    pub(super) fn new(by: SecuredBy, snapshots: Snapshots) -> Self {
        Self { by, snapshots }
    }

    pub(super) fn by(&self) -> &SecuredBy {
        &self.by
    }

    /// Whether a connection that is opened now would be secured by the same certificate and roots.
    pub(super) fn is_current(&self) -> bool {
        let newest = self.snapshots.current();
        match &self.by {
            SecuredBy::Mesh(tls) => newest.peer_tls.as_ref().is_some_and(|newest| Arc::ptr_eq(newest, tls)),
            SecuredBy::Origin(tls) => Arc::ptr_eq(&newest.origin_tls, tls),
        }
    }
}

impl Reusable for Http1Upstream {
    fn fitness(&mut self, waited: Duration) -> Fitness {
        let is_good = match &mut self.io {
            MaybeTls::Plain(io) if waited < UNSURE_AFTER => is_quiet(io),
            MaybeTls::Plain(io) => has_nothing_to_read(io),
            MaybeTls::Tls(tls) => {
                let socket = tls.stream.get_ref().0;
                let is_sure = waited < UNSURE_AFTER || has_nothing_to_read(socket);
                is_sure && tls.is_quiet() && tls.secured.is_current() && !tls.has_vanished()
            }
        };
        if is_good { Fitness::Ready } else { Fitness::Dead }
    }

    fn place(&mut self) -> Option<&mut Http1Place> {
        self.place.as_deref_mut()
    }
}

impl UpstreamTls {
    /// The connection that carries it.
    pub(crate) fn socket(&self) -> &TcpStream {
        self.stream.get_ref().0
    }

    /// Whether the peer has vanished, as one of the connections to it found.
    pub(crate) fn has_vanished(&self) -> bool {
        self.line.as_ref().is_some_and(|line| line.phase() == Phase::Closed(Cause::PeerVanished))
    }

    /// As [`is_quiet`], for what is inside TLS, where a session's tickets say nothing.
    fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(&mut self.stream).poll_read(&mut context, &mut ReadBuf::new(&mut byte)).is_pending()
    }
}

/// The error of a connection that was ended early; the kernel's own for a peer that has vanished.
fn ended_by(ended: Ended) -> io::Error {
    let kind = match ended.0 {
        Cause::PeerVanished => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::ConnectionAborted,
    };
    io::Error::new(kind, ended)
}

fn acknowledges_nothing(io: &TcpStream) -> bool {
    tidegate_system::tcp::retransmissions(io).is_ok_and(|count| count >= RETRANSMISSIONS)
}

/// Whether the upstream has neither closed the connection nor sent anything that no request asked for.
fn is_quiet(io: &TcpStream) -> bool {
    let mut byte = [0];
    matches!(io.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// As [`is_quiet`], but asked of the kernel, for what happened since the worker last looked at its events.
fn has_nothing_to_read(io: &TcpStream) -> bool {
    let mut byte = [std::mem::MaybeUninit::uninit()];
    let peeked = socket2::SockRef::from(io).peek(&mut byte);
    matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

impl Abort for UpstreamTls {
    fn abort(&self) {
        self.stream.get_ref().0.abort();
    }

    fn peer_end(&self) -> PeerEnd {
        self.stream.get_ref().0.peer_end()
    }
}

impl AsyncRead for UpstreamTls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Every codec reads as long as it has anything in flight.
        if let Some(line) = &self.line
            && let Poll::Ready(ended) = line.poll_closed(context)
        {
            return Poll::Ready(Err(ended_by(ended)));
        }
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_pending()
            && let Some(line) = &self.line
            && line.look_every(LOOK)
            && acknowledges_nothing(self.stream.get_ref().0)
        {
            line.close(Cause::PeerVanished);
            return Poll::Ready(Err(ended_by(Ended(Cause::PeerVanished))));
        }
        read
    }
}

impl AsyncWrite for UpstreamTls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
