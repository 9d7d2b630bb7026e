//! What the HTTP/2 streams of a worker have in common.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use crate::lifeline::{Lifeline, Registry};

/// All streams of a worker's clients.
#[derive(Default)]
pub struct Streams {
    lines: Registry<()>,
    about: Rc<()>,
    held: Rc<Cell<usize>>,
}

impl Streams {
    /// A line for one more stream.
    pub(super) fn add(&self) -> Lifeline {
        self.lines.add(self.about.clone())
    }

    /// Bytes that were received of bodies and not yet taken by an app.
    pub(super) fn held(&self) -> &Rc<Cell<usize>> {
        &self.held
    }

    /// How many there are; those that ended since the last tick may still count.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Ends what has run out of time. To be called on every tick.
    pub fn expire(&self, now: Instant) {
        self.lines.expire(now);
    }
}
