//! State shared by all HTTP/2 streams of a worker.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use crate::lifeline::{Lifeline, Registry};

/// The streams of a worker's clients.
#[derive(Default)]
pub struct Streams {
    lines: Registry<()>,
    about: Rc<()>,
    held: Rc<Cell<usize>>,
}

impl Streams {
    /// The lifeline of a new stream.
    pub(super) fn add(&self) -> Lifeline {
        self.lines.add(self.about.clone())
    }

    /// Bytes of request bodies that were received but not yet accepted by an app.
    pub(super) fn held(&self) -> &Rc<Cell<usize>> {
        &self.held
    }

    /// Number of streams; those that ended since the last tick may still count.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether no stream is open.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Ends streams whose deadline has passed. Must be called on every tick.
    pub fn expire(&self, now: Instant) {
        self.lines.expire(now);
    }
}
