//! What a connection as a whole waits for, kept as the deadline of its line.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::meter::{Flood, Meter};
use crate::lifeline::{Lifeline, Wait};
use crate::limits::Limits;

/// Preface and an empty SETTINGS frame: the least with which a client opens (RFC 9113 §3.4).
const GREETING: u64 = 24 + 9;
/// What a finished request earns.
const EARNED_BY_ANSWER: u32 = 2;
/// What a piece of an answer earns: the client may ping and grant window for each.
const EARNED_BY_DATA: u32 = 4;

/// Shared by a connection's transport and its streams.
pub(super) struct Pulse {
    line: Lifeline,
    greeting: Duration,
    idle: Duration,
    blocked: Duration,
    read: Cell<u64>,
    streams: Cell<usize>,
    is_blocked: Cell<bool>,
    meter: RefCell<Meter>,
}

/// A stream that is in flight, until it is dropped.
pub(super) struct InFlight {
    pulse: Rc<Pulse>,
}

impl Pulse {
    pub(super) fn new(line: Lifeline, limits: &Limits) -> Self {
        let pulse = Self {
            line,
            greeting: limits.headers,
            idle: limits.idle,
            blocked: limits.body,
            read: Cell::new(0),
            streams: Cell::new(0),
            is_blocked: Cell::new(false),
            meter: RefCell::new(Meter::new(Instant::now())),
        };
        pulse.rearm();
        pulse
    }

    /// Bytes came from the client.
    pub(super) fn received(&self, bytes: &[u8]) -> Result<(), Flood> {
        let before = self.read.get();
        self.read.set(before + bytes.len() as u64);
        if before < GREETING && self.read.get() >= GREETING {
            self.rearm();
        }
        self.meter.borrow_mut().observe(bytes, Instant::now())
    }

    /// The client takes, or no longer takes, what we have for it.
    pub(super) fn set_blocked(&self, is_blocked: bool) {
        if self.is_blocked.replace(is_blocked) != is_blocked {
            self.rearm();
        }
    }

    /// A piece of an answer goes to the client.
    pub(super) fn answered_data(&self) {
        self.meter.borrow_mut().earn(EARNED_BY_DATA);
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
        let pulse = Rc::new(Pulse::new(line.clone(), &Limits::default()));
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
