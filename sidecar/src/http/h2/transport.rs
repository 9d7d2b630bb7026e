//! The client's byte stream for h2: replays bytes that were already read, and observes every byte.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::deadlines::Deadlines;

/// A stream, the bytes that were read from it before, and the deadlines of its connection.
pub(super) struct ClientTransport<S> {
    stream: S,
    first: BytesMut,
    deadlines: Rc<Deadlines>,
}

impl<S> ClientTransport<S> {
    /// `first`: bytes that were read while the protocol was detected; h2 gets them first.
    pub(super) fn new(stream: S, first: BytesMut, deadlines: Rc<Deadlines>) -> Self {
        Self { stream, first, deadlines }
    }

    /// Records whether writes block.
    fn observe_write<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.deadlines.set_blocked(written.is_pending());
        written
    }
}

/// Every byte passes the connection's flood guard and moves its deadlines before h2 sees it. A flood is an error, which
/// ends the connection.
impl<S: AsyncRead + Unpin> AsyncRead for ClientTransport<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if self.first.is_empty() {
            match Pin::new(&mut self.stream).poll_read(context, buffer) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
        } else {
            let taken = self.first.len().min(buffer.remaining());
            buffer.put_slice(&self.first[..taken]);
            self.first.advance(taken);
            if self.first.is_empty() {
                self.first = BytesMut::new();
            }
        }
        let outcome = self.deadlines.received(&buffer.filled()[before..]);
        Poll::Ready(outcome.map_err(io::Error::other))
    }
}

/// A write that blocks starts the deadline for a client that does not read.
impl<S: AsyncWrite + Unpin> AsyncWrite for ClientTransport<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.observe_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.observe_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.observe_write(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
