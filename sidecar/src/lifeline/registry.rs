//! The connections of a worker.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Instant;

use super::{Cause, Lifeline, LineDeadline, LineState, Phase, Wait};
use crate::places::ConnectionPlace;

/// All connections of a worker, with the worker's state for each.
pub struct Registry<T> {
    connections: RefCell<Vec<(Weak<LineState>, Rc<T>)>>,
}

impl<T> Registry<T> {
    /// A registry without connections.
    pub fn new() -> Self {
        Self { connections: RefCell::new(Vec::new()) }
    }

    /// Adds a connection; it is removed after its last [`Lifeline`] was dropped.
    pub fn add(&self, about: Rc<T>) -> Lifeline {
        let line = Lifeline::new();
        self.connections.borrow_mut().push((Rc::downgrade(&line.state), about));
        line
    }

    /// The same with a place, which is freed with the connection.
    pub(crate) fn add_at(&self, place: ConnectionPlace, about: Rc<T>) -> Lifeline {
        let line = self.add(about);
        // The cell of a new lifeline is empty.
        let _ = line.state.place.set(place);
        line
    }

    /// Number of connections; those that ended since the last tick may still count.
    pub fn len(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Whether there are no connections.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Visits every connection. `visit` may end it through its lifeline.
    pub fn for_each(&self, mut visit: impl FnMut(&Lifeline, &T)) {
        self.connections.borrow_mut().retain(|(state, about)| match state.upgrade() {
            Some(state) => {
                visit(&Lifeline { state }, about);
                true
            }
            None => false,
        });
    }

    /// Applies deadlines. Must be called on every tick.
    pub fn expire(&self, now: Instant) {
        self.for_each(|line, _| {
            match line.state.deadline.get() {
                // Only the wait ends: the client may get another upstream, or a response.
                Some(LineDeadline { by, wait: Wait::Connect, .. }) if by <= now => {
                    line.at_ease();
                    line.wake();
                }
                Some(LineDeadline { by, wait, .. }) if by <= now => line.close(Cause::Deadline(wait)),
                _ => {}
            }
            let is_due = |by: &Cell<Option<Instant>>| by.get().is_some_and(|by| by <= now);
            if is_due(&line.state.look_at) {
                line.state.look_at.set(None);
                line.wake();
            }
            match line.phase() {
                Phase::Leaving(cause) | Phase::Finishing(cause) if is_due(&line.state.finish_by) => {
                    line.close(cause);
                }
                Phase::Leaving(cause) if is_due(&line.state.leave_by) => {
                    line.state.phase.set(Phase::Finishing(cause));
                    line.wake();
                }
                _ => {}
            }
        });
    }
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self::new()
    }
}
