//! What of bodies was handed to a connection and is not written yet. h2 takes as much as windows let through, whether the
//! peer reads from its socket or not; so it gets no more than fits in here.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::held::{HeldBytes, affordable};

/// Of all streams of a connection together.
const MOST: usize = 64 * 1024;
/// Of a stream at a time: the length of a frame.
const PIECE: usize = 16 * 1024;

/// Room for what waits to be written to one connection.
#[derive(Clone)]
pub(crate) struct Outbox(Arc<Semaphore>);

/// A piece of a body, until it is written.
#[derive(Default)]
pub(crate) struct Piece {
    bytes: Bytes,
    _held: HeldBytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MOST)))
    }

    /// How much of so many bytes may be handed over at a time.
    pub(crate) fn piece(&self, bytes: usize) -> usize {
        bytes.min(affordable(PIECE))
    }

    /// Waits until there is room for a piece.
    pub(crate) async fn put(self, bytes: Bytes) -> Piece {
        let size = u32::try_from(bytes.len().min(MOST)).unwrap_or(u32::MAX);
        // It is never closed.
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
