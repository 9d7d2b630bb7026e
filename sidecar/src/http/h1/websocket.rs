//! Sends a close frame (RFC 6455 §5.5.1) to a WebSocket client whose connection the sidecar ends.
//!
//! A control frame may be inserted between any two frames of the app, also within a fragmented message (§5.4). So frame
//! boundaries are tracked as bytes pass; payloads are not inspected.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::stream::{Abort, PeerEnd};

/// A close frame with status 1001 *going away*. Unmasked, as all frames to a client.
pub(super) const GOING_AWAY: &[u8] = &[0x88, 2, 0x03, 0xe9];

/// Maximum length of a frame header in bytes.
const MAX_HEADER: usize = 14;

/// Position within a stream of frames.
#[derive(Debug, Default)]
struct WebsocketFrames {
    head: [u8; MAX_HEADER],
    /// How many bytes of the header have passed.
    read: usize,
    /// How many bytes of the payload are still to pass.
    payload: u64,
    /// Whether a close frame has passed: nothing may follow.
    is_closed: bool,
}

/// A client's stream; tracks frames if it is a WebSocket.
pub(super) struct Followed<'a, S> {
    client: &'a mut S,
    frames: Option<WebsocketFrames>,
}

impl WebsocketFrames {
    /// Tracks bytes that have passed.
    fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let passing = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
            if passing > 0 {
                self.payload -= passing as u64;
                bytes = bytes.get(passing..).unwrap_or_default();
                continue;
            }
            let Some((byte, rest)) = bytes.split_first() else { return };
            bytes = rest;
            if let Some(place) = self.head.get_mut(self.read) {
                *place = *byte;
            }
            self.read += 1;
            if let Some(payload) = payload(self.head.get(..self.read).unwrap_or_default()) {
                self.is_closed |= self.head[0] & 0x0f == 0x08;
                self.payload = payload;
                self.read = 0;
            }
        }
    }

    /// Whether a frame may be inserted now.
    fn has_room(&self) -> bool {
        self.read == 0 && self.payload == 0 && !self.is_closed
    }
}

/// The length of a frame's payload, once its header is complete.
fn payload(head: &[u8]) -> Option<u64> {
    let second = *head.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let (length, extended) = match second & 0x7f {
        126 => (head.get(2..4)?, true),
        127 => (head.get(2..10)?, true),
        _ => (head.get(1..2)?, false),
    };
    let end = if extended { 2 + length.len() } else { 2 } + mask;
    let value = length.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    (head.len() >= end).then_some(if extended { value } else { value & 0x7f })
}

impl<'a, S> Followed<'a, S> {
    /// Wraps a client's stream; tracks frames only if `is_websocket`.
    pub(super) fn new(client: &'a mut S, is_websocket: bool) -> Self {
        Self { client, frames: is_websocket.then(WebsocketFrames::default) }
    }

    /// Whether a frame may be inserted now.
    pub(super) fn has_room(&self) -> bool {
        self.frames.as_ref().is_some_and(WebsocketFrames::has_room)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Followed<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.client).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Followed<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut *self.client).poll_write(context, bytes);
        if let (Some(frames), Poll::Ready(Ok(count))) = (&mut self.frames, &written) {
            frames.follow(bytes.get(..*count).unwrap_or_default());
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.client).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // No frame may follow the end of the stream.
        self.frames = None;
        Pin::new(&mut *self.client).poll_shutdown(context)
    }
}

impl<S: Abort> Abort for Followed<'_, S> {
    fn abort(&self) {
        self.client.abort();
    }

    fn peer_end(&self) -> PeerEnd {
        self.client.peer_end()
    }
}

#[cfg(test)]
mod tests;
