//! The app's end of a connection that leaves the mesh. Its first bytes are looked at as they pass, so that logs and
//! `/egress` can name the server; they are neither held back nor waited for.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::detect::server::{ObservedServer, observed_server};
use crate::stream::{Abort, PeerEnd};

/// Maximum bytes that are kept of first bytes which come in pieces. A ClientHello with a post-quantum key share has less
/// than half of it.
const MOST_KEPT: usize = 4096;

/// The app's end of a connection.
pub(super) struct ObservedClient {
    io: TcpStream,
    /// `None`: its bytes are not looked at.
    first: Option<Box<PassingBytes>>,
}

/// The first bytes of a connection as they pass.
#[derive(Default)]
struct PassingBytes {
    /// Those that do not show enough yet.
    kept: Vec<u8>,
    requested: Option<ObservedServer>,
}

impl ObservedClient {
    /// A connection whose bytes are not looked at.
    pub(super) fn unobserved(io: TcpStream) -> Self {
        Self { io, first: None }
    }

    /// A connection that begins with the bytes `received`, which were read already.
    pub(super) fn observed(io: TcpStream, received: &[u8]) -> Self {
        let mut first = Box::<PassingBytes>::default();
        first.pass(received);
        Self { io, first: Some(first) }
    }

    /// The server that its first bytes name, if they were looked at.
    pub(super) fn requested(&self) -> ObservedServer {
        self.first.as_ref().and_then(|first| first.requested.clone()).unwrap_or_default()
    }
}

impl PassingBytes {
    fn pass(&mut self, bytes: &[u8]) {
        if self.requested.is_some() || bytes.is_empty() {
            return;
        }
        self.requested = if self.kept.is_empty() {
            observed_server(bytes)
        } else {
            let room = MOST_KEPT.saturating_sub(self.kept.len());
            self.kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
            observed_server(&self.kept)
        };
        match &self.requested {
            Some(_) => self.kept = Vec::new(),
            None if self.kept.is_empty() && bytes.len() < MOST_KEPT => self.kept = bytes.to_vec(),
            None if self.kept.len() < MOST_KEPT && bytes.len() < MOST_KEPT => {}
            None => {
                self.kept = Vec::new();
                self.requested = Some(ObservedServer::default());
            }
        }
    }
}

impl Abort for ObservedClient {
    fn abort(&self) {
        self.io.abort();
    }

    fn peer_end(&self) -> PeerEnd {
        self.io.peer_end()
    }
}

impl AsyncRead for ObservedClient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if let Some(first) = &mut self.first {
            first.pass(buffer.filled().get(before..).unwrap_or_default());
        }
        read
    }
}

impl AsyncWrite for ObservedClient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::server::SpokenProtocol;

    #[test]
    fn a_host_is_seen_in_pieces_of_any_size_and_nothing_is_kept_afterwards() {
        let head = b"GET / HTTP/1.1\r\nhost: api.example.com\r\n\r\n";
        for size in 1..head.len() {
            let mut first = PassingBytes::default();
            head.chunks(size).for_each(|piece| first.pass(piece));
            let requested = first.requested.unwrap();
            assert_eq!(requested.protocol, SpokenProtocol::Http);
            assert_eq!(requested.name.as_deref(), Some("api.example.com"), "{size}");
            assert_eq!(first.kept.capacity(), 0);
        }
    }

    #[test]
    fn bytes_that_never_show_a_host_are_given_up() {
        let mut first = PassingBytes::default();
        first.pass(b"GET / HTTP/1.1\r\nx: ");
        for _ in 0..MOST_KEPT {
            first.pass(b"yyyyyyyy");
            assert!(first.kept.len() <= MOST_KEPT);
        }
        assert_eq!(first.requested, Some(ObservedServer::default()));
        assert_eq!(first.kept.capacity(), 0);
    }
}
