//! The socket to an app, and what hyper does not tell of it.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::error::UpstreamError;

/// A socket that is watched.
pub(super) struct Socket {
    stream: TcpStream,
    watch: Rc<Watch>,
}

/// What was seen of a socket.
#[derive(Default)]
pub(super) struct Watch {
    has_spoken: Cell<bool>,
    has_ended: Cell<bool>,
    reader: RefCell<Option<Waker>>,
}

impl Socket {
    /// Dials an app.
    pub(super) async fn connect(app: SocketAddr, timeout: Duration) -> Result<Self, UpstreamError> {
        let stream = match tokio::time::timeout(timeout, TcpStream::connect(app)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(UpstreamError::ConnectTimeout);
            }
            Ok(Err(error)) => {
                tracing::debug!(%app, %error, "app cannot be reached");
                return Err(UpstreamError::Refused);
            }
            Err(_) => return Err(UpstreamError::ConnectTimeout),
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%app, %error, "TCP_NODELAY cannot be set");
        }
        Ok(Self { stream, watch: Rc::default() })
    }

    /// Stays with the caller when the socket goes to hyper.
    pub(super) fn watch(&self) -> Rc<Watch> {
        self.watch.clone()
    }
}

impl Watch {
    /// Wakes this task once something was read; it is polled after the task that reads has understood it.
    pub(super) fn wake_on_read(&self, context: &Context<'_>) {
        self.reader.replace(Some(context.waker().clone()));
    }

    fn read(&self, is_end: bool) {
        if is_end { &self.has_ended } else { &self.has_spoken }.set(true);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Whether the app can say no more: its end of the stream, or an error, was read.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.get()
    }

    /// Whether the app has said anything.
    pub(super) fn has_spoken(&self) -> bool {
        self.has_spoken.get()
    }

    /// Whether the app ended the connection without a word. An HTTP/2 server speaks first of all (RFC 9113 §3.4), so
    /// it is none.
    pub(super) fn has_hung_up(&self) -> bool {
        self.has_ended() && !self.has_spoken.get()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        self.watch.read(outcome.is_err() || buffer.filled().len() == before);
        Poll::Ready(outcome)
    }
}

impl AsyncWrite for Socket {
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
