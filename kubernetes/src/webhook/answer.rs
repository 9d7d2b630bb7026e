//! The body of a response, which holds its memory until the last piece is being sent.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::Instant;

use super::bodies::BodyGrant;

/// Bytes that the connection takes at a time; it requests more once they are sent.
const PIECE: usize = 8 * 1024;

/// A body that is sent in pieces. Once the connection has all of them, its deadline becomes that of the next request:
/// the rest must be sent by then.
#[derive(Debug)]
pub(super) struct VerdictBody {
    rest: Bytes,
    _memory: Option<BodyGrant>,
    after: NextDeadline,
}

/// A connection's deadline, and its length after a response.
#[derive(Clone, Debug)]
pub(super) struct NextDeadline {
    pub(super) deadline: Arc<watch::Sender<Instant>>,
    pub(super) idle_timeout: Duration,
}

impl VerdictBody {
    /// A body of these bytes. `memory` is their reservation; messages of errors are short and have none.
    pub(super) fn new(bytes: Vec<u8>, memory: Option<BodyGrant>, after: NextDeadline) -> Self {
        Self { rest: bytes.into(), _memory: memory, after }
    }
}

impl Body for VerdictBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

impl Drop for VerdictBody {
    fn drop(&mut self) {
        self.after.deadline.send_replace(Instant::now() + self.after.idle_timeout);
    }
}
