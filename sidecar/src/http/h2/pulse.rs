//! What a connection as a whole waits for, kept as the deadline of its line.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::meter::{Flood, Meter};
use super::windows::Windows;
use crate::lifeline::{Lifeline, Wait};
use crate::limits::Limits;

/// Preface and an empty SETTINGS frame: the least with which a client opens (RFC 9113 §3.4).
const GREETING: u64 = 24 + 9;
/// What a finished request earns.
const EARNED_BY_ANSWER: u32 = 2;

/// Shared by a connection's transport and its streams.
pub(super) struct Pulse {
    line: Lifeline,
    greeting: Duration,
    idle: Duration,
    blocked: Duration,
    read: Cell<u64>,
    streams: Cell<usize>,
    is_blocked: Cell<bool>,
    /// Whether a head has begun to come and not ended: the connection can carry nothing else meanwhile.
    is_in_head: Cell<bool>,
    is_flooded: Cell<bool>,
    meter: RefCell<Meter>,
    windows: Rc<Windows>,
}

/// A stream that is in flight, until it is dropped.
pub(super) struct InFlight {
    pulse: Rc<Pulse>,
}

impl Pulse {
    pub(super) fn new(line: Lifeline, limits: &Limits, windows: Rc<Windows>) -> Self {
        let pulse = Self {
            line,
            greeting: limits.headers,
            idle: limits.idle,
            blocked: limits.body,
            read: Cell::new(0),
            streams: Cell::new(0),
            is_blocked: Cell::new(false),
            is_in_head: Cell::new(false),
            is_flooded: Cell::new(false),
            meter: RefCell::new(Meter::new(Instant::now())),
            windows,
        };
        pulse.rearm();
        pulse
    }

    /// Bytes came from the client.
    pub(super) fn received(&self, bytes: &[u8]) -> Result<(), Flood> {
        let before = self.read.get();
        self.read.set(before + bytes.len() as u64);
        self.windows.received(bytes.len());
        let mut meter = self.meter.borrow_mut();
        if let Err(flood) = meter.observe(bytes, Instant::now()) {
            self.is_flooded.set(true);
            return Err(flood);
        }
        let is_in_head = meter.is_in_head();
        let is_new_head = self.is_in_head.replace(is_in_head) != is_in_head;
        if is_new_head || (before < GREETING && self.read.get() >= GREETING) {
            self.rearm();
        }
        Ok(())
    }

    /// Whether the connection was ended for what the client sent.
    pub(super) fn is_flooded(&self) -> bool {
        self.is_flooded.get()
    }

    /// Bytes that have come so far.
    pub(super) fn read(&self) -> u64 {
        self.read.get()
    }

    /// How much the client may send.
    pub(super) fn windows(&self) -> &Rc<Windows> {
        &self.windows
    }

    /// The client takes, or no longer takes, what we have for it.
    pub(super) fn set_blocked(&self, is_blocked: bool) {
        if self.is_blocked.replace(is_blocked) != is_blocked {
            self.rearm();
        }
    }

    /// A piece of an answer, of so many bytes, goes to the client.
    pub(super) fn answered_data(&self, bytes: usize) {
        self.meter.borrow_mut().earn_by_data(bytes);
    }

    /// An answer is complete.
    pub(super) fn answered(&self) {
        self.meter.borrow_mut().earn(EARNED_BY_ANSWER);
    }

    /// A stream begins.
    pub(super) fn begin(self: &Rc<Self>) -> InFlight {
        self.streams.set(self.streams.get() + 1);
        self.rearm();
        InFlight { pulse: self.clone() }
    }

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
        self.pulse.streams.set(self.pulse.streams.get() - 1);
        self.pulse.rearm();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifeline::{Cause, Phase, Registry};

    fn expired_after(setup: impl FnOnce(&Rc<Pulse>) -> Option<InFlight>, time: Duration) -> Phase {
        let registry = Registry::new();
        let line = registry.add(Rc::new(()));
        let limits = Limits::default();
        let pulse = Rc::new(Pulse::new(line.clone(), &limits, Rc::new(Windows::new(&limits, Rc::default()))));
        let _in_flight = setup(&pulse);
        registry.expire(Instant::now() + time);
        line.phase()
    }

    #[test]
    fn a_client_that_never_greets_is_due_and_one_that_did_may_idle() {
        let limits = Limits::default();
        let silent = expired_after(|_| None, limits.headers);
        assert_eq!(silent, Phase::Closed(Cause::Deadline(Wait::Headers)));
        let greet = |pulse: &Rc<Pulse>| {
            pulse.received(&[0; 33]).unwrap();
            None
        };
        assert_eq!(expired_after(greet, limits.headers), Phase::Open);
        assert_eq!(expired_after(greet, limits.idle), Phase::Closed(Cause::Deadline(Wait::Idle)));
    }

    #[test]
    fn a_head_that_does_not_end_is_due_whatever_else_is_in_flight() {
        let limits = Limits::default();
        let unfinished = |pulse: &Rc<Pulse>| {
            let stream = pulse.begin();
            pulse.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
            pulse.received(&[0, 0, 1, 0x1, 0, 0, 0, 0, 3, 0x82]).unwrap();
            Some(stream)
        };
        assert_eq!(expired_after(unfinished, limits.headers), Phase::Closed(Cause::Deadline(Wait::Headers)));
        let finished = |pulse: &Rc<Pulse>| {
            let stream = unfinished(pulse);
            pulse.received(&[0, 0, 0, 0x9, 0x4, 0, 0, 0, 3]).unwrap();
            stream
        };
        assert_eq!(expired_after(finished, limits.headers), Phase::Open);
    }

    #[test]
    fn a_stream_in_flight_may_take_its_time_unless_the_client_stops_reading() {
        let limits = Limits::default();
        let begin = |pulse: &Rc<Pulse>| Some(pulse.begin());
        assert_eq!(expired_after(begin, limits.idle * 2), Phase::Open);
        let blocked = |pulse: &Rc<Pulse>| {
            let stream = pulse.begin();
            pulse.set_blocked(true);
            Some(stream)
        };
        assert_eq!(expired_after(blocked, limits.body), Phase::Closed(Cause::Deadline(Wait::Body)));
    }
}
