//! A client's connection as bytes, with or without TLS: one type, so that the codecs are compiled once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::tls::stream::TlsStream;

/// A client's connection.
pub enum ClientStream {
    /// Bytes as they are on the wire.
    Plain(TcpStream),
    /// Bytes inside TLS.
    Tls(Box<TlsStream>),
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

impl Abort for ClientStream {
    fn abort(&self) {
        match self {
            Self::Plain(io) => io.abort(),
            Self::Tls(stream) => stream.socket().abort(),
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
            ClientStream::Plain(io) => Pin::new(io).$method($($argument),*),
            ClientStream::Tls(stream) => Pin::new(&mut **stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        forward!(self.poll_read(context, buffer))
    }
}

impl AsyncWrite for ClientStream {
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
