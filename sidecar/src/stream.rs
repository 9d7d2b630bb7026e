//! A connection with or without TLS as one type, so that the codecs are compiled once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::tls::stream::TlsStream;

/// A connection; by default a client's.
pub(crate) enum MaybeTls<T = TlsStream> {
    /// Plaintext.
    Plain(TcpStream),
    /// TLS.
    Tls(Box<T>),
}

/// A connection that can be ended so that the peer does not take it for an orderly end.
pub trait Abort {
    /// Makes the drop of this connection send an RST: the peer learns that a response is incomplete.
    fn abort(&self);

    /// What the peer has closed, even if earlier bytes were not read yet. Only valid while this side has not shut down.
    /// Costs no system call.
    fn peer_end(&self) -> PeerEnd;
}

/// What the peer of a connection has closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEnd {
    /// Nothing.
    Open,
    /// Its sending side (FIN): it sends no more.
    Half,
    /// The whole connection (RST): it receives no more, either.
    Both,
}

/// How often a half-closed peer, or one that is not read from, is checked: no task is woken when it closes the
/// connection.
pub(crate) const LOOK_AT_PEER: Duration = Duration::from_secs(1);

impl Abort for TcpStream {
    fn abort(&self) {
        // Fails only if the socket has ended already.
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }

    fn peer_end(&self) -> PeerEnd {
        match self.ready(Interest::READABLE | Interest::WRITABLE).now_or_never() {
            // After an RST both sides are closed (EPOLLHUP).
            Some(Ok(ready)) if ready.is_write_closed() => PeerEnd::Both,
            Some(Ok(ready)) if ready.is_read_closed() => PeerEnd::Half,
            Some(Ok(_)) | None => PeerEnd::Open,
            Some(Err(_)) => PeerEnd::Both,
        }
    }
}

impl Abort for TlsStream {
    fn abort(&self) {
        self.socket().abort();
    }

    fn peer_end(&self) -> PeerEnd {
        self.socket().peer_end()
    }
}

impl<T: Abort> Abort for MaybeTls<T> {
    fn abort(&self) {
        match self {
            Self::Plain(io) => io.abort(),
            Self::Tls(stream) => stream.abort(),
        }
    }

    fn peer_end(&self) -> PeerEnd {
        match self {
            Self::Plain(io) => io.peer_end(),
            Self::Tls(stream) => stream.peer_end(),
        }
    }
}

#[cfg(test)]
impl Abort for tokio::io::DuplexStream {
    fn abort(&self) {}

    fn peer_end(&self) -> PeerEnd {
        PeerEnd::Open
    }
}

macro_rules! forward {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self.get_mut() {
            MaybeTls::Plain(io) => Pin::new(io).$method($($argument),*),
            MaybeTls::Tls(stream) => Pin::new(&mut **stream).$method($($argument),*),
        }
    };
}

impl<T: AsyncRead + Unpin> AsyncRead for MaybeTls<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        forward!(self.poll_read(context, buffer))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for MaybeTls<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        forward!(self.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        forward!(self.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self.poll_shutdown(context))
    }
}
