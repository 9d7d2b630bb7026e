//! The client's connection, for two directions that one task polls one after the other.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::stream::{Abort, PeerEnd};

/// A client's connection that is read by one direction and written by the other. It is borrowed only while it is polled.
pub(super) struct SharedClient<'c, S>(RefCell<&'c mut S>);

impl<'c, S> SharedClient<'c, S> {
    pub(super) fn new(client: &'c mut S) -> Self {
        Self(RefCell::new(client))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for &SharedClient<'_, S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.0.borrow_mut()).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for &SharedClient<'_, S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self.0.borrow_mut()).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.0.borrow_mut()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.0.borrow_mut()).poll_shutdown(context)
    }
}

impl<S: Abort> Abort for &SharedClient<'_, S> {
    fn abort(&self) {
        self.0.borrow().abort();
    }

    fn peer_end(&self) -> PeerEnd {
        self.0.borrow().peer_end()
    }
}
