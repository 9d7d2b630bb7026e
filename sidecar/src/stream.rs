//! A connection as bytes, with or without TLS: one type for all clients, so that the codecs are compiled once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::tls::stream::TlsStream;

/// A connection; a client's, unless it says otherwise what its TLS is.
pub enum MaybeTls<T = TlsStream> {
    /// Bytes as they are on the wire.
    Plain(TcpStream),
    /// Bytes inside TLS.
    Tls(Box<T>),
}

/// A connection whose end can be made one that nobody takes for an orderly end.
pub trait Abort {
    /// Once this is dropped, the peer sees an RST: what it has got of an answer is not all of it.
    fn abort(&self);
}

impl Abort for TcpStream {
    fn abort(&self) {
        // A socket that refuses it is one that has ended.
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

impl Abort for TlsStream {
    fn abort(&self) {
        self.socket().abort();
    }
}

impl<T: Abort> Abort for MaybeTls<T> {
    fn abort(&self) {
        match self {
            Self::Plain(io) => io.abort(),
            Self::Tls(stream) => stream.abort(),
        }
    }
}

#[cfg(test)]
impl Abort for tokio::io::DuplexStream {
    fn abort(&self) {}
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
