//! Interim responses (1xx) on their way from an upstream to the client (RFC 9110 §15.2).
//!
//! HTTP/1 codecs pass them on themselves. Libraries give them out apart from the response, so those of other connections go
//! through an [`InterimSink`], which is given together with the request.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use http::{Response, StatusCode};

/// Interim responses that a client gets to one request. A server may send any number of them, which no flow control bounds.
const MOST: usize = 64;
/// Bytes of their fields.
const MOST_BYTES: usize = 64 * 1024;
/// Those of a connection of HTTP/1.1 that wait for the task which reads the response.
const MOST_WAITING: usize = 16;

/// Where the interim responses to a request go, before its response.
pub(crate) trait InterimSink {
    /// Passes one on. Those beyond the bounds, and `101`, are dropped.
    fn interim(&self, head: Response<()>);
}

/// Interim responses to one request that wait to be written to its client. Nothing is allocated unless there is one.
#[derive(Default)]
pub(crate) struct InterimQueue(Cell<Option<Box<InterimState>>>);

#[derive(Default)]
struct InterimState {
    waiting: Vec<Response<()>>,
    /// Those that came so far.
    count: usize,
    /// Bytes of their fields.
    bytes: usize,
}

/// Interim responses that hyper has read from one connection, for the request that is in flight on it. Both sides are tasks of
/// one thread; hyper demands more.
#[derive(Default)]
pub(super) struct InterimRelay {
    waiting: Mutex<Vec<Response<()>>>,
    /// Without one, the lock is not taken.
    has_waiting: AtomicBool,
    /// Wakes the task that waits for the response.
    reader: AtomicWaker,
}

impl InterimQueue {
    /// Those that have come since the last call, in their order.
    pub(crate) fn take(&self) -> Vec<Response<()>> {
        let Some(mut state) = self.0.take() else { return Vec::new() };
        let waiting = std::mem::take(&mut state.waiting);
        self.0.set(Some(state));
        waiting
    }
}

impl InterimSink for InterimQueue {
    fn interim(&self, head: Response<()>) {
        let mut state = self.0.take().unwrap_or_default();
        let bytes: usize =
            head.headers().iter().map(|(name, value)| name.as_str().len() + value.as_bytes().len()).sum();
        let is_within = state.count < MOST && state.bytes + bytes <= MOST_BYTES;
        if is_within && head.status() != StatusCode::SWITCHING_PROTOCOLS {
            state.count += 1;
            state.bytes += bytes;
            state.waiting.push(head);
        }
        self.0.set(Some(state));
    }
}

impl InterimRelay {
    /// Keeps one for [`Self::pass_to`].
    pub(super) fn push(&self, head: Response<()>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MOST_WAITING {
            waiting.push(head);
        }
        drop(waiting);
        self.has_waiting.store(true, Ordering::Release);
        self.reader.wake();
    }

    /// Passes on those that wait; `waker` is called when there are more.
    pub(super) fn pass_to(&self, sink: &dyn InterimSink, waker: &Waker) {
        self.reader.register(waker);
        for head in self.take() {
            sink.interim(head);
        }
    }

    /// Nothing waits for a request that is over.
    pub(super) fn clear(&self) {
        drop(self.take());
    }

    fn take(&self) -> Vec<Response<()>> {
        if !self.has_waiting.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use http::header::LINK;

    use super::*;

    fn hints(link: &str) -> Response<()> {
        Response::builder().status(103).header(LINK, link).body(()).unwrap()
    }

    #[test]
    fn as_many_interim_responses_pass_as_the_bounds_allow_and_no_switch() {
        let queue = InterimQueue::default();
        queue.interim(Response::builder().status(101).body(()).unwrap());
        assert!(queue.take().is_empty());
        for _ in 0..MOST {
            queue.interim(hints("</a>"));
            assert_eq!(queue.take().len(), 1);
        }
        queue.interim(hints("</a>"));
        assert!(queue.take().is_empty());
        let queue = InterimQueue::default();
        for _ in 0..3 {
            queue.interim(hints(&"a".repeat(MOST_BYTES / 2 - 4)));
        }
        assert_eq!(queue.take().len(), 2);
    }

    #[test]
    fn a_relay_keeps_a_bounded_number_until_they_are_asked_for() {
        let (relay, queue) = (InterimRelay::default(), InterimQueue::default());
        for _ in 0..=MOST_WAITING {
            relay.push(hints("</a>"));
        }
        relay.pass_to(&queue, Waker::noop());
        assert_eq!(queue.take().len(), MOST_WAITING);
        relay.push(hints("</a>"));
        relay.clear();
        relay.pass_to(&queue, Waker::noop());
        assert!(queue.take().is_empty());
    }
}
