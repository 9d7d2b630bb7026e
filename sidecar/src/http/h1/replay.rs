//! A request as it was written to the app, kept so that it can be written again.

use tidegate_core::route::retry::RequestBody;

use crate::http::buffer::{Buffer, Buffers};
use crate::upstream::MOST_REPLAYED;

/// Head and body of a request that may be retried.
pub(super) struct Replay {
    written: Buffer,
    /// The most bytes that are kept: the head, and [`MOST_REPLAYED`] of the body.
    limit: usize,
    /// More was written than is kept; nothing is kept any more.
    is_lost: bool,
}

impl Replay {
    /// `written`: the head, of `head` bytes, and what is there of the body.
    pub(super) fn new(written: &Buffer, head: usize, buffers: &Buffers) -> Self {
        let mut replay =
            Self { written: buffers.take(written.len()), limit: head + MOST_REPLAYED, is_lost: false };
        replay.record(written.bytes(), buffers);
        replay
    }

    /// Keeps what is written next.
    pub(super) fn record(&mut self, bytes: &[u8], buffers: &Buffers) {
        self.is_lost |= self.written.len() + bytes.len() > self.limit;
        if self.is_lost {
            buffers.give(&mut self.written);
        } else {
            self.written.push(bytes);
        }
    }

    /// Whether all of it can be written again.
    pub(super) fn body(&self) -> RequestBody {
        if self.is_lost { RequestBody::Gone } else { RequestBody::Replayable }
    }

    /// What is to be written again.
    pub(super) fn copy(&self, buffers: &Buffers) -> Buffer {
        let mut copy = buffers.take(self.written.len());
        copy.push(self.written.bytes());
        copy
    }

    /// Gives the memory back.
    pub(super) fn release(&mut self, buffers: &Buffers) {
        buffers.give(&mut self.written);
    }
}
