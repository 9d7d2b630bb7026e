//! How much a peer may send before the other side has taken it: a client of its requests, an app of its answers.
//!
//! All streams of a connection have one window. It grows while bodies are taken as fast as they come, and falls back when
//! what is not taken adds up, in the connection or in the worker: then each stream has the least, so that one that is
//! not taken never holds up others.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use bytes::Buf;
use h2::{FlowControl, RecvStream, client, server};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::limits::Limits;

/// What each stream of a client may always send. With [`Limits::streams`] this is what bounds a connection's memory:
/// 4 MiB by default.
pub(crate) const LEAST: u32 = 32 * 1024;
/// What an app may send of each answer at first.
pub(crate) const ANSWER: u32 = 16 * 1024;
/// What an app may always send of an answer. Clients ask for many at little cost to them.
const LEAST_ANSWER: u32 = 4 * 1024;
/// What an app may send of all answers on a connection together, unless each of them has the least.
const ANSWERS: u32 = 512 * 1024;
/// What a stream may send at most. What a fast app takes of it in a millisecond is 250 MB/s.
const MOST: u32 = 256 * 1024;
/// Received and not yet taken, in one connection, beyond which its windows fall back.
const MOST_HELD: usize = 1024 * 1024;
/// The same in all connections of a worker with clients; beyond half of it no window grows.
const MOST_HELD_BY_ALL: usize = 32 * 1024 * 1024;
/// The same in all with apps.
const MOST_ANSWERS_HELD_BY_ALL: usize = 8 * 1024 * 1024;
/// Received between two looks at what is held.
const LOOK: u64 = 128 * 1024;
/// Taken of a body at a stretch before its window is found too small, in windows.
const STRETCH: u32 = 2;
/// Frames of a body that is worth a larger window are at least so long on average: small ones cost h2 many times their
/// length while they wait.
const LEAST_FRAME: u64 = 1024;

/// The windows of one connection's streams.
pub(crate) struct Windows {
    size: Cell<u32>,
    least: u32,
    most_held_by_all: usize,
    streams: u32,
    /// The most that each stream may send, however fast it is taken.
    most: Cell<u32>,
    /// Whether a body would come faster with larger ones.
    is_small: Cell<bool>,
    received: Cell<u64>,
    looked: Cell<u64>,
    bodies: RefCell<Vec<Weak<RefCell<FlowControl>>>>,
    held: Cell<usize>,
    held_by_all: Rc<Cell<usize>>,
}

/// One body's part in it.
pub(crate) struct Window {
    windows: Rc<Windows>,
    flow: Rc<RefCell<FlowControl>>,
    taken: u64,
    frames: u64,
}

impl Windows {
    /// Of a client's requests. `held_by_all`: what all such connections of the worker hold.
    pub(crate) fn new(limits: &Limits, held_by_all: Rc<Cell<usize>>) -> Self {
        Self::with(LEAST, LEAST, MOST_HELD_BY_ALL, limits.streams, held_by_all)
    }

    /// Of an app's answers, of so many at a time.
    pub(crate) fn of_answers(streams: u32, held_by_all: Rc<Cell<usize>>) -> Self {
        Self::with(ANSWER, LEAST_ANSWER, MOST_ANSWERS_HELD_BY_ALL, streams, held_by_all)
    }

    fn with(
        size: u32,
        least: u32,
        most_held_by_all: usize,
        streams: u32,
        held_by_all: Rc<Cell<usize>>,
    ) -> Self {
        Self {
            size: Cell::new(size),
            least,
            most_held_by_all,
            streams,
            most: Cell::new(MOST),
            is_small: Cell::new(false),
            received: Cell::new(0),
            looked: Cell::new(0),
            bodies: RefCell::default(),
            held: Cell::new(0),
            held_by_all,
        }
    }

    /// Enough for all streams at their least, beside what is held already.
    pub(crate) fn of_connection(&self) -> u32 {
        let held = u32::try_from(self.held.get()).unwrap_or(u32::MAX);
        let size = self.streams.saturating_mul(LEAST).saturating_add(held).saturating_add(MOST_HELD as u32);
        size.min(i32::MAX as u32)
    }

    /// So many answers are due or on their way: the more there are, the less may be sent of each. In force before the
    /// app gets a request that was begun since.
    pub(crate) fn expect_answers(&self, count: usize) {
        let share = ANSWERS / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        self.most.set(share.clamp(self.least, MOST));
    }

    /// A body begins.
    pub(crate) fn open(self: &Rc<Self>, stream: &mut RecvStream) -> Window {
        let flow = Rc::new(RefCell::new(stream.flow_control().clone()));
        let mut bodies = self.bodies.borrow_mut();
        if bodies.len() >= self.streams as usize {
            bodies.retain(|flow| flow.strong_count() > 0);
        }
        bodies.push(Rc::downgrade(&flow));
        drop(bodies);
        Window { windows: self.clone(), flow, taken: 0, frames: 0 }
    }

    /// Bytes came from the peer.
    pub(crate) fn received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
    }

    /// Grows or shrinks what the peer was told, where that is due. To be called whenever the connection is driven.
    pub(crate) fn adjust(&self, connection: &mut impl Resize) {
        let is_over = self.size.get() > self.most.get();
        if self.received.get() - self.looked.get() < LOOK && !self.is_small.get() && !is_over {
            return;
        }
        self.looked.set(self.received.get());
        self.look();
        let size = self.size.get();
        let wanted = match self.is_small.replace(false) {
            _ if self.held.get() > MOST_HELD || self.held_by_all.get() > self.most_held_by_all => self.least,
            true if self.held_by_all.get() <= self.most_held_by_all / 2 => (size * 2).min(self.most.get()),
            _ => size.min(self.most.get()),
        };
        // One that the peer has not confirmed yet is in force soon; then it is asked again.
        if wanted != size && connection.resize(wanted, self.of_connection()).is_ok() {
            self.size.set(wanted);
        }
    }

    fn look(&self) {
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

/// A connection whose windows can be set.
pub(crate) trait Resize {
    /// Sets what each stream may send, and what all may together. An error if the size before is not confirmed yet.
    fn resize(&mut self, stream: u32, all: u32) -> Result<(), h2::Error>;
}

impl<S: AsyncRead + AsyncWrite + Unpin, B: Buf> Resize for server::Connection<S, B> {
    fn resize(&mut self, stream: u32, all: u32) -> Result<(), h2::Error> {
        self.set_initial_window_size(stream)?;
        self.set_target_window_size(all);
        Ok(())
    }
}

/// All streams together may send what they like: an app is not who attacks.
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

impl Window {
    /// So much was taken: the peer may send as much again.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<(), h2::Error> {
        let mut flow = self.flow.borrow_mut();
        flow.release_capacity(bytes)?;
        self.taken += bytes as u64;
        self.frames += 1;
        let size = self.windows.size.get();
        if self.taken < u64::from(size * STRETCH) {
            return Ok(());
        }
        let is_taken_as_it_comes = flow.used_capacity() <= size as usize / 2;
        let is_bulk = self.taken / self.frames >= LEAST_FRAME;
        if size < self.windows.most.get() && is_taken_as_it_comes && is_bulk {
            self.windows.is_small.set(true);
        }
        (self.taken, self.frames) = (0, 0);
        Ok(())
    }
}
