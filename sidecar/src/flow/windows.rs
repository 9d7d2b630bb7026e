//! Flow-control windows: how much a peer may send before the other side has accepted it. Used for request bodies from
//! clients and response bodies from apps.
//!
//! All streams of a connection have the same window size. It grows while bodies are accepted as fast as they arrive,
//! and falls back to the minimum when unaccepted data accumulates, in the connection or in the worker, so that a
//! stalled stream never holds up others.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use bytes::Buf;
use h2::{FlowControl, RecvStream, client, server};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::limits::Limits;

/// Minimum window of a client's stream. With [`Limits::streams`] it bounds a connection's memory: 4 MiB by default.
pub(crate) const MIN_WINDOW: u32 = 32 * 1024;
/// Initial window of an app's response.
pub(crate) const RESPONSE_WINDOW: u32 = 16 * 1024;
/// Minimum window of an app's response. Clients can request many at little cost to them.
const MIN_RESPONSE_WINDOW: u32 = 4 * 1024;
/// Windows of all responses on a connection together, unless each has the minimum.
const RESPONSE_WINDOWS: u32 = 512 * 1024;
/// Maximum window of a stream: 250 MB/s from an app with a round trip of a millisecond.
const MAX_WINDOW: u32 = 256 * 1024;
/// When a connection holds more unaccepted bytes than this, its windows fall back.
const MAX_HELD: usize = 1024 * 1024;
/// When all client connections of a worker together hold more than this, windows fall back; above half of it, none
/// grows.
const MAX_HELD_BY_ALL: usize = 32 * 1024 * 1024;
/// The same for all connections to apps.
const MAX_RESPONSES_HELD_BY_ALL: usize = 8 * 1024 * 1024;
/// How many bytes are received between two checks of what is held.
const CHECK_INTERVAL: u64 = 128 * 1024;
/// How many windows of a body are accepted before its window may be found too small.
const WINDOWS_PER_CHECK: u32 = 2;
/// Only bodies with at least this average frame length get a larger window: small frames cost h2 many times their
/// length while buffered.
const MIN_BULK_FRAME: u64 = 1024;

/// The windows of one connection's streams.
pub(crate) struct Windows {
    size: Cell<u32>,
    min: u32,
    max_held_by_all: usize,
    streams: u32,
    /// Maximum window for the current number of responses.
    max: Cell<u32>,
    /// Whether a body would arrive faster with larger windows.
    is_small: Cell<bool>,
    received: Cell<u64>,
    checked: Cell<u64>,
    bodies: RefCell<Vec<Weak<RefCell<FlowControl>>>>,
    held: Cell<usize>,
    held_by_all: Rc<Cell<usize>>,
}

/// The flow control of one body.
pub(crate) struct BodyWindow {
    windows: Rc<Windows>,
    flow: Rc<RefCell<FlowControl>>,
    taken: u64,
    frames: u64,
}

impl Windows {
    /// Windows for a client's requests. `held_by_all`: bytes held by all such connections of the worker.
    pub(crate) fn new(limits: &Limits, held_by_all: Rc<Cell<usize>>) -> Self {
        Self::with(MIN_WINDOW, MIN_WINDOW, MAX_HELD_BY_ALL, limits.streams, held_by_all)
    }

    /// Windows for an app's responses, at most `streams` at a time.
    pub(crate) fn of_answers(streams: u32, held_by_all: Rc<Cell<usize>>) -> Self {
        Self::with(RESPONSE_WINDOW, MIN_RESPONSE_WINDOW, MAX_RESPONSES_HELD_BY_ALL, streams, held_by_all)
    }

    /// `size` is the initial window of a stream, `min` the smallest that it falls back to; both in bytes.
    fn with(size: u32, min: u32, max_held_by_all: usize, streams: u32, held_by_all: Rc<Cell<usize>>) -> Self {
        Self {
            size: Cell::new(size),
            min,
            max_held_by_all,
            streams,
            max: Cell::new(MAX_WINDOW),
            is_small: Cell::new(false),
            received: Cell::new(0),
            checked: Cell::new(0),
            bodies: RefCell::default(),
            held: Cell::new(0),
            held_by_all,
        }
    }

    /// Connection window: enough for all streams at their minimum, in addition to what is held already.
    pub(crate) fn of_connection(&self) -> u32 {
        let held = u32::try_from(self.held.get()).unwrap_or(u32::MAX);
        let size =
            self.streams.saturating_mul(MIN_WINDOW).saturating_add(held).saturating_add(MAX_HELD as u32);
        size.min(i32::MAX as u32)
    }

    /// Adapts to the number of responses expected or in progress: the more there are, the smaller the windows. Takes
    /// effect before the app receives a request that was begun afterwards.
    pub(crate) fn expect_answers(&self, count: usize) {
        let share = RESPONSE_WINDOWS / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        self.max.set(share.clamp(self.min, MAX_WINDOW));
    }

    /// Starts the flow control of a body.
    pub(crate) fn open(self: &Rc<Self>, stream: &mut RecvStream) -> BodyWindow {
        let flow = Rc::new(RefCell::new(stream.flow_control().clone()));
        let mut bodies = self.bodies.borrow_mut();
        if bodies.len() >= self.streams as usize {
            bodies.retain(|flow| flow.strong_count() > 0);
        }
        bodies.push(Rc::downgrade(&flow));
        drop(bodies);
        BodyWindow { windows: self.clone(), flow, taken: 0, frames: 0 }
    }

    /// Counts bytes received from the peer.
    pub(crate) fn received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
    }

    /// Grows or shrinks the windows if necessary. Must be called whenever the connection is driven.
    pub(crate) fn adjust(&self, connection: &mut impl Resize) {
        let is_over = self.size.get() > self.max.get();
        if self.received.get() - self.checked.get() < CHECK_INTERVAL && !self.is_small.get() && !is_over {
            return;
        }
        self.checked.set(self.received.get());
        self.update_held();
        let size = self.size.get();
        let wanted = match self.is_small.replace(false) {
            _ if self.held.get() > MAX_HELD || self.held_by_all.get() > self.max_held_by_all => self.min,
            true if self.held_by_all.get() <= self.max_held_by_all / 2 => (size * 2).min(self.max.get()),
            _ => size.min(self.max.get()),
        };
        // If the peer has not acknowledged the last change yet, the next call tries again.
        if wanted != size && connection.resize(wanted, self.of_connection()).is_ok() {
            self.size.set(wanted);
        }
    }

    /// Updates how many bytes are held.
    fn update_held(&self) {
        let mut held = 0;
        self.bodies.borrow_mut().retain(|flow| match flow.upgrade() {
            Some(flow) => {
                held += flow.borrow().used_capacity();
                true
            }
            None => false,
        });
        self.held_by_all.set(self.held_by_all.get() - self.held.replace(held) + held);
    }
}

/// A connection whose windows can be changed.
pub(crate) trait Resize {
    /// Sets the windows of each stream and of the connection. Fails while the last change is not acknowledged.
    fn resize(&mut self, stream: u32, all: u32) -> Result<(), h2::Error>;
}

impl<S: AsyncRead + AsyncWrite + Unpin, B: Buf> Resize for server::Connection<S, B> {
    fn resize(&mut self, stream: u32, all: u32) -> Result<(), h2::Error> {
        self.set_initial_window_size(stream)?;
        self.set_target_window_size(all);
        Ok(())
    }
}

/// Leaves the connection window alone: an app is not an attacker.
impl<S: AsyncRead + AsyncWrite + Unpin, B: Buf> Resize for client::Connection<S, B> {
    fn resize(&mut self, stream: u32, _: u32) -> Result<(), h2::Error> {
        self.set_initial_window_size(stream)
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        self.held_by_all.set(self.held_by_all.get() - self.held.get());
    }
}

impl BodyWindow {
    /// Releases accepted bytes: the peer may send as many again.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<(), h2::Error> {
        let mut flow = self.flow.borrow_mut();
        flow.release_capacity(bytes)?;
        self.taken += bytes as u64;
        self.frames += 1;
        let size = self.windows.size.get();
        if self.taken < u64::from(size * WINDOWS_PER_CHECK) {
            return Ok(());
        }
        let is_taken_as_it_comes = flow.used_capacity() <= size as usize / 2;
        let is_bulk = self.taken / self.frames >= MIN_BULK_FRAME;
        if size < self.windows.max.get() && is_taken_as_it_comes && is_bulk {
            self.windows.is_small.set(true);
        }
        (self.taken, self.frames) = (0, 0);
        Ok(())
    }
}
