//! Bounds the body data that was handed to a connection but not yet written. h2 buffers as much as the flow-control
//! windows allow, whether or not the peer reads from its socket; so it is given no more than fits in here.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::held::{HeldBytes, affordable};

/// Bytes of all streams of a connection together.
const CAPACITY: usize = 64 * 1024;
/// Maximum bytes of a stream at a time: the length of a frame.
const MAX_PIECE: usize = 16 * 1024;

/// Room for data that waits to be written to one connection.
#[derive(Clone)]
pub(crate) struct Outbox(Arc<Semaphore>);

/// A piece of a body; occupies its room until written.
#[derive(Default)]
pub(crate) struct Piece {
    bytes: Bytes,
    _held: HeldBytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(CAPACITY)))
    }

    /// How many of `bytes` may be handed over at a time.
    pub(crate) fn piece(&self, bytes: usize) -> usize {
        bytes.min(affordable(MAX_PIECE))
    }

    /// Waits for room, then makes a piece of these bytes.
    pub(crate) async fn put(self, bytes: Bytes) -> Piece {
        let size = u32::try_from(bytes.len().min(CAPACITY)).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        let room = self.0.acquire_many_owned(size).await.ok();
        Piece { _held: HeldBytes::new(bytes.len()), bytes, _room: room }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}
