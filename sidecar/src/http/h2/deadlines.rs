//! The deadline of a connection as a whole, kept in its [`Lifeline`].

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::flood_guard::{Flood, FloodGuard};
use crate::flow::windows::Windows;
use crate::lifeline::{Lifeline, Wait};
use crate::limits::Limits;

/// Preface and an empty SETTINGS frame: the minimum with which a client opens a connection, in bytes (RFC 9113 §3.4).
const GREETING: u64 = 24 + 9;
/// Flood credit for a complete response.
const EARNED_BY_ANSWER: u32 = 2;

/// Deadline and flood state of a connection, shared by its transport and its streams.
pub(super) struct Deadlines {
    line: Lifeline,
    /// For the preface, and for a head once it has begun: [`Limits::headers`].
    greeting: Duration,
    idle: Duration,
    /// For a client that does not read: [`Limits::body`].
    blocked: Duration,
    /// Bytes received.
    read: Cell<u64>,
    /// Requests in flight.
    streams: Cell<usize>,
    is_blocked: Cell<bool>,
    /// Whether a head is incomplete: the connection can carry nothing else until it ends.
    is_in_head: Cell<bool>,
    is_flooded: Cell<bool>,
    flood_guard: RefCell<FloodGuard>,
    windows: Rc<Windows>,
}

/// Counts a stream as in flight until dropped.
pub(super) struct InFlight {
    deadlines: Rc<Deadlines>,
}

impl Deadlines {
    /// The deadlines of a new connection, of which the first is that of its preface.
    pub(super) fn new(line: Lifeline, limits: &Limits, windows: Rc<Windows>) -> Self {
        let deadlines = Self {
            line,
            greeting: limits.headers,
            idle: limits.idle,
            blocked: limits.body,
            read: Cell::new(0),
            streams: Cell::new(0),
            is_blocked: Cell::new(false),
            is_in_head: Cell::new(false),
            is_flooded: Cell::new(false),
            flood_guard: RefCell::new(FloodGuard::new(Instant::now())),
            windows,
        };
        deadlines.rearm();
        deadlines
    }

    /// Processes bytes from the client.
    ///
    /// # Errors
    ///
    /// If the client floods the connection with frames that carry nothing.
    pub(super) fn received(&self, bytes: &[u8]) -> Result<(), Flood> {
        let before = self.read.get();
        self.read.set(before + bytes.len() as u64);
        self.windows.received(bytes.len());
        let mut flood_guard = self.flood_guard.borrow_mut();
        if let Err(flood) = flood_guard.observe(bytes, Instant::now()) {
            self.is_flooded.set(true);
            return Err(flood);
        }
        let is_in_head = flood_guard.is_in_head();
        let is_new_head = self.is_in_head.replace(is_in_head) != is_in_head;
        if is_new_head || (before < GREETING && self.read.get() >= GREETING) {
            self.rearm();
        }
        Ok(())
    }

    /// Whether the connection was ended because of a flood.
    pub(super) fn is_flooded(&self) -> bool {
        self.is_flooded.get()
    }

    /// Number of bytes received so far.
    pub(super) fn read(&self) -> u64 {
        self.read.get()
    }

    /// Flow-control windows of the connection and its streams.
    pub(super) fn windows(&self) -> &Rc<Windows> {
        &self.windows
    }

    /// Records whether writes to the client block.
    pub(super) fn set_blocked(&self, is_blocked: bool) {
        if self.is_blocked.replace(is_blocked) != is_blocked {
            self.rearm();
        }
    }

    /// Records that data of a response, of this length, goes to the client.
    pub(super) fn answered_data(&self, bytes: usize) {
        self.flood_guard.borrow_mut().earn_by_data(bytes);
    }

    /// Records that a response is complete.
    pub(super) fn answered(&self) {
        self.flood_guard.borrow_mut().earn(EARNED_BY_ANSWER);
    }

    /// Counts a new stream.
    pub(super) fn begin(self: &Rc<Self>) -> InFlight {
        self.streams.set(self.streams.get() + 1);
        self.rearm();
        InFlight { deadlines: self.clone() }
    }

    /// Sets the deadline of whatever the connection waits for now.
    fn rearm(&self) {
        if self.is_blocked.get() {
            self.line.within(self.blocked, Wait::Body);
        } else if self.is_in_head.get() {
            self.line.within(self.greeting, Wait::Headers);
        } else if self.streams.get() > 0 {
            self.line.at_ease();
        } else if self.read.get() < GREETING {
            self.line.within(self.greeting, Wait::Headers);
        } else {
            self.line.within(self.idle, Wait::Idle);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.deadlines.streams.set(self.deadlines.streams.get() - 1);
        self.deadlines.rearm();
    }
}

#[cfg(test)]
mod tests;
