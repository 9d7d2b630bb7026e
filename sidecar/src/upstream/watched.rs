//! A connection that is watched for what h2 and hyper do not tell of it.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stream::UpstreamTls;
use crate::stream::MaybeTls;

/// A connection that is watched.
pub(super) struct Watched {
    stream: MaybeTls<UpstreamTls>,
    watch: Rc<ConnectionWatch>,
}

/// What was seen of a connection.
#[derive(Default)]
pub(super) struct ConnectionWatch {
    /// Bytes were read.
    has_spoken: Cell<bool>,
    /// The end of the stream or an error was read, or a write has failed.
    has_ended: Cell<bool>,
    /// Bytes read so far.
    total: Cell<u64>,
    /// [`ConnectionWatch::total`] when it was taken last.
    taken: Cell<u64>,
}

impl Watched {
    pub(super) fn new(stream: MaybeTls<UpstreamTls>) -> Self {
        Self { stream, watch: Rc::default() }
    }

    /// Stays with the caller when the connection goes to h2.
    pub(super) fn watch(&self) -> Rc<ConnectionWatch> {
        self.watch.clone()
    }
}

impl ConnectionWatch {
    /// Notes a read of this many bytes; zero is the end.
    fn read(&self, count: usize) {
        if count == 0 { &self.has_ended } else { &self.has_spoken }.set(true);
        self.total.set(self.total.get() + count as u64);
    }

    /// Bytes that were read since the last call of this.
    pub(super) fn take_count(&self) -> usize {
        let total = self.total.get();
        usize::try_from(total - self.taken.replace(total)).unwrap_or(usize::MAX)
    }

    /// Bytes that were read so far. If there are no more when the connection has ended, the app has not answered to
    /// what was sent since.
    pub(super) fn total(&self) -> u64 {
        self.total.get()
    }

    /// Whether the app can say no more: its end of the stream, or an error, was read.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.get()
    }

    /// Whether the app has said anything.
    pub(super) fn has_spoken(&self) -> bool {
        self.has_spoken.get()
    }

    /// Whether the app ended the connection without a word. An HTTP/2 server sends its preface first (RFC 9113 §3.4), so
    /// this is not one.
    pub(super) fn has_hung_up(&self) -> bool {
        self.has_ended() && !self.has_spoken.get()
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        self.watch.read(buffer.filled().len() - before);
        Poll::Ready(outcome)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        if outcome.is_err() {
            self.watch.has_ended.set(true);
        }
        Poll::Ready(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices));
        if outcome.is_err() {
            self.watch.has_ended.set(true);
        }
        Poll::Ready(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
