//! How the world outside reaches into a connection: deadlines, drain, and a policy or certificate that no longer
//! lets it live.
//!
//! One thread owns a worker's connections, so a connection learns all this from two cells: no lock, no channel, no
//! timer of its own. The worker walks its connections on a coarse tick and on every change ([`Registry::expire`],
//! [`Registry::for_each`]); a connection's task looks at its [`Lifeline`] whenever it is polled.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::places::{Eviction, Part, Place};

/// What a connection may still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Everything.
    Open,
    /// Everything, but the next answer is the last and says so; the client is not left waiting for it for long.
    Leaving(Cause),
    /// Finish what is in flight, say so to the client where the protocol can, and close.
    Finishing(Cause),
    /// Nothing more.
    Closed(Cause),
}

/// Why a connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The client took too long.
    Deadline(Wait),
    /// The sidecar is shutting down.
    Draining,
    /// The policy no longer lets it in.
    PolicyChanged,
    /// The client certificate it was let in by has ended.
    CertificateExpired,
    /// The trust bundle no longer vouches for the client certificate it was let in by.
    TrustBundleChanged,
    /// Its client holds the most places, and another one needs one.
    MadeRoom,
    /// There is no room for a TLS record that is not complete.
    NoRoom,
}

/// What a connection waits for, under a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The client's first bytes.
    FirstBytes,
    /// The end of the TLS handshake.
    Handshake,
    /// The rest of a request's head.
    Headers,
    /// More of a body, or room for more of it.
    Body,
    /// The next request.
    Idle,
    /// The app's TCP handshake.
    Connect,
    /// Anything of an event stream or a gRPC stream.
    Stream,
    /// Anything of an answer whose client has ended its side.
    HalfClose,
}

/// A connection's end of the line. Cheap to clone; every clone is the same connection.
#[derive(Clone)]
pub struct Lifeline {
    state: Rc<State>,
}

/// All connections of a worker, with what the worker knows of each.
pub struct Registry<T> {
    connections: RefCell<Vec<(Weak<State>, Rc<T>)>>,
}

/// The connection's phase changed while it waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection is to end: {0:?}")]
pub struct Ended(pub Cause);

struct State {
    phase: Cell<Phase>,
    deadline: Cell<Option<Deadline>>,
    /// When [`Phase::Leaving`] turns into [`Phase::Finishing`].
    leave_by: Cell<Option<Instant>>,
    /// When [`Phase::Finishing`] turns into [`Phase::Closed`].
    finish_by: Cell<Option<Instant>>,
    /// When the connection is to be polled, whatever happens.
    look_at: Cell<Option<Instant>>,
    waker: RefCell<Option<Waker>>,
    /// What counts it; none for a line outside a registry.
    place: OnceCell<Place>,
}

/// When a wait ends, and since when it lasts.
#[derive(Clone, Copy)]
struct Deadline {
    since: Instant,
    by: Instant,
    wait: Wait,
}

/// How soon a connection makes room for others: in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Precedence {
    /// It has waited for its client since then, and nothing is in flight.
    Idle(Instant),
    /// What is in flight has not moved since then.
    Stalled(Instant),
    /// Something is in flight.
    Busy,
}

impl Lifeline {
    /// A line to a connection that nobody else watches; for tests and for what never ends early.
    pub fn new() -> Self {
        let state = State {
            phase: Cell::new(Phase::Open),
            deadline: Cell::new(None),
            leave_by: Cell::new(None),
            finish_by: Cell::new(None),
            look_at: Cell::new(None),
            waker: RefCell::new(None),
            place: OnceCell::new(),
        };
        Self { state: Rc::new(state) }
    }

    /// The connection holds so many bytes of something that is not complete: a handshake, a request's head. `false` if
    /// there is no room for as many.
    #[must_use]
    pub fn hold(&self, bytes: usize) -> bool {
        self.state.place.get().is_none_or(|place| place.hold(Part::Message, bytes))
    }

    /// TLS holds so many bytes of records that are not complete or not read. Closes the connection if there is no room
    /// for as many.
    pub fn hold_record(&self, bytes: usize) {
        if self.state.place.get().is_some_and(|place| !place.hold(Part::Record, bytes)) {
            self.close(Cause::NoRoom);
        }
    }

    /// The client has proven who it is, by these names.
    pub fn identify(&self, names: &str) {
        if let Some(place) = self.state.place.get() {
            place.identify(names);
        }
    }

    /// When this connection is to make room, if it is of those that are.
    pub(crate) fn precedence(&self, eviction: &Eviction) -> Option<Precedence> {
        let is_meant = self.state.place.get().is_some_and(|place| place.is_of(eviction));
        if !is_meant || matches!(self.phase(), Phase::Closed(_)) {
            return None;
        }
        Some(match self.state.deadline.get() {
            Some(Deadline { since, wait: Wait::Body | Wait::Connect, .. }) => Precedence::Stalled(since),
            Some(Deadline { since, .. }) => Precedence::Idle(since),
            None => Precedence::Busy,
        })
    }

    /// What the connection may still do.
    pub fn phase(&self) -> Phase {
        self.state.phase.get()
    }

    /// Whether the connection should end as soon as nothing is in flight, and say so in what it answers.
    pub fn is_finishing(&self) -> bool {
        self.phase() != Phase::Open
    }

    /// Starts a wait of at most this long, instead of the one before it. Coarse: it ends up to a tick late.
    pub fn within(&self, time: Duration, wait: Wait) {
        let since = Instant::now();
        self.state.deadline.set(since.checked_add(time).map(|by| Deadline { since, by, wait }));
    }

    /// Ends the wait; nothing is due.
    pub fn at_ease(&self) {
        self.state.deadline.set(None);
    }

    /// Has the connection polled once this time is over, for what wakes no task. Coarse, like a deadline.
    pub fn look_after(&self, time: Duration) {
        self.state.look_at.set(Instant::now().checked_add(time));
    }

    /// Asks the connection to take its leave: the next answer tells the client that it is the last. Protocols that
    /// cannot say so on their own wait for a request for `idle`, and then finish; all are closed after `grace`. Asked
    /// again, the sooner time counts.
    pub fn leave(&self, cause: Cause, idle: Duration, grace: Duration) {
        if let Phase::Closed(_) = self.phase() {
            return;
        }
        sooner(&self.state.leave_by, idle);
        sooner(&self.state.finish_by, grace);
        if self.phase() == Phase::Open {
            self.state.phase.set(Phase::Leaving(cause));
            self.wake();
        }
    }

    /// Lets the connection finish what is in flight, for at most this long, and nothing more.
    pub fn finish(&self, cause: Cause, grace: Duration) {
        if let Phase::Closed(_) = self.phase() {
            return;
        }
        let is_sooner = sooner(&self.state.finish_by, grace);
        if is_sooner || !matches!(self.phase(), Phase::Finishing(_)) {
            self.state.phase.set(Phase::Finishing(cause));
            self.wake();
        }
    }

    /// Ends the connection now.
    pub fn close(&self, cause: Cause) {
        if !matches!(self.phase(), Phase::Closed(_)) {
            self.state.phase.set(Phase::Closed(cause));
            self.wake();
        }
    }

    /// Drives a future until it is done or the connection is closed ([`Phase::Closed`]). What this returns has room for
    /// the future twice, so a large one is better given pinned.
    pub fn guard<F: Future>(&self, future: F) -> impl Future<Output = Result<F::Output, Ended>> {
        self.run(future, |phase| match phase {
            Phase::Closed(cause) => Some(cause),
            Phase::Open | Phase::Leaving(_) | Phase::Finishing(_) => None,
        })
    }

    /// Drives a future during which nothing is in flight: it also ends when the connection is to finish.
    pub fn guard_idle<F: Future>(&self, future: F) -> impl Future<Output = Result<F::Output, Ended>> {
        self.run(future, |phase| match phase {
            Phase::Closed(cause) | Phase::Finishing(cause) => Some(cause),
            Phase::Open | Phase::Leaving(_) => None,
        })
    }

    /// Drives a future for as long as the connection may do everything: it also ends when the connection is to leave.
    pub fn guard_open<F: Future>(&self, future: F) -> impl Future<Output = Result<F::Output, Ended>> {
        self.run(future, |phase| match phase {
            Phase::Closed(cause) | Phase::Finishing(cause) | Phase::Leaving(cause) => Some(cause),
            Phase::Open => None,
        })
    }

    async fn run<F: Future>(
        &self,
        future: F,
        ends: impl Fn(Phase) -> Option<Cause>,
    ) -> Result<F::Output, Ended> {
        let mut future = pin!(future);
        poll_fn(|context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(output));
            }
            if let Some(cause) = ends(self.phase()) {
                return Poll::Ready(Err(Ended(cause)));
            }
            let mut waker = self.state.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                *waker = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    fn wake(&self) {
        // Not borrowed while it wakes: a waker may run what it wants, such as the drop of a task.
        let waker = self.state.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Cause {
    /// A stable word for logs.
    pub fn details(self) -> &'static str {
        match self {
            Self::Deadline(Wait::FirstBytes) => "first_bytes_timeout",
            Self::Deadline(Wait::Handshake) => "handshake_timeout",
            Self::Deadline(Wait::Headers) => "headers_timeout",
            Self::Deadline(Wait::Body) => "body_timeout",
            Self::Deadline(Wait::Idle) => "idle_timeout",
            Self::Deadline(Wait::Connect) => "upstream_connection_timeout",
            Self::Deadline(Wait::Stream) => "stream_idle_timeout",
            Self::Deadline(Wait::HalfClose) => "downstream_half_close_timeout",
            Self::Draining => "drained",
            Self::PolicyChanged => "policy_changed",
            Self::CertificateExpired => "client_certificate_expired",
            Self::TrustBundleChanged => "trust_bundle_changed",
            Self::MadeRoom => "made_room",
            Self::NoRoom => "overload{unfinished_tls_records}",
        }
    }
}

impl Default for Lifeline {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Registry<T> {
    /// A registry without connections.
    pub fn new() -> Self {
        Self { connections: RefCell::new(Vec::new()) }
    }

    /// Takes a connection in; it leaves when its last [`Lifeline`] is dropped.
    pub fn add(&self, about: Rc<T>) -> Lifeline {
        let line = Lifeline::new();
        self.connections.borrow_mut().push((Rc::downgrade(&line.state), about));
        line
    }

    /// The same with a place, which is free again when the connection has left.
    pub(crate) fn add_at(&self, place: Place, about: Rc<T>) -> Lifeline {
        let line = self.add(about);
        // The line is new.
        let _ = line.state.place.set(place);
        line
    }

    /// How many connections there are; those that ended since the last tick may still count.
    pub fn len(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shows every connection. `visit` may end it through its line.
    pub fn for_each(&self, mut visit: impl FnMut(&Lifeline, &T)) {
        self.connections.borrow_mut().retain(|(state, about)| match state.upgrade() {
            Some(state) => {
                visit(&Lifeline { state }, about);
                true
            }
            None => false,
        });
    }

    /// Ends what has run out of time. To be called on every tick.
    pub fn expire(&self, now: Instant) {
        self.for_each(|line, _| {
            match line.state.deadline.get() {
                Some(Deadline { by, wait, .. }) if by <= now => line.close(Cause::Deadline(wait)),
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

/// Sets a time from now unless there is one that comes sooner; whether it did.
fn sooner(cell: &Cell<Option<Instant>>, time: Duration) -> bool {
    let Some(by) = Instant::now().checked_add(time) else { return false };
    let is_sooner = cell.get().is_none_or(|before| by < before);
    if is_sooner {
        cell.set(Some(by));
    }
    is_sooner
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn a_deadline_ends_the_wait_and_names_it() {
        let registry = Registry::new();
        let line = registry.add(Rc::new(()));
        line.within(Duration::from_secs(5), Wait::Headers);
        registry.expire(Instant::now() + Duration::from_secs(4));
        assert_eq!(line.phase(), Phase::Open);
        registry.expire(Instant::now() + Duration::from_secs(6));
        assert_eq!(line.guard(pending::<()>()).await, Err(Ended(Cause::Deadline(Wait::Headers))));
    }

    #[tokio::test]
    async fn a_connection_that_asks_for_a_look_is_polled_once_on_the_tick_after_it() {
        let registry = Registry::new();
        let line = registry.add(Rc::new(()));
        let polls = Rc::new(Cell::new(0));
        let tasks = tokio::task::LocalSet::new();
        let (waiting, counted) = (line.clone(), polls.clone());
        tasks.spawn_local(async move {
            let wait = poll_fn(|_| {
                counted.set(counted.get() + 1);
                Poll::<()>::Pending
            });
            waiting.guard(wait).await
        });
        let looks = async {
            let start = Instant::now();
            line.look_after(Duration::from_secs(1));
            let mut counts = Vec::new();
            for seconds in [0, 2, 2, 9] {
                tokio::task::yield_now().await;
                registry.expire(start + Duration::from_secs(seconds));
                tokio::task::yield_now().await;
                counts.push(polls.get());
            }
            counts
        };
        assert_eq!(tasks.run_until(looks).await, [1, 2, 2, 2]);
        assert_eq!(line.phase(), Phase::Open);
    }

    #[tokio::test]
    async fn finishing_ends_what_is_idle_at_once_and_what_is_in_flight_after_its_grace() {
        let registry = Registry::new();
        let line = registry.add(Rc::new(()));
        let (idle, ()) = tokio::join!(line.guard_idle(pending::<()>()), async {
            line.finish(Cause::Draining, Duration::from_secs(1));
        });
        assert_eq!(idle, Err(Ended(Cause::Draining)));
        let (busy, ()) = tokio::join!(line.guard(pending::<()>()), async {
            tokio::task::yield_now().await;
            registry.expire(Instant::now() + Duration::from_secs(2));
        });
        assert_eq!(busy, Err(Ended(Cause::Draining)));
    }

    #[tokio::test]
    async fn leaving_lets_what_is_idle_wait_and_tells_who_can_say_goodbye_at_once() {
        let registry = Registry::new();
        let line = registry.add(Rc::new(()));
        let leave = async { line.leave(Cause::Draining, Duration::from_secs(1), Duration::from_secs(9)) };
        let (polite, ()) = tokio::join!(line.guard_open(pending::<()>()), leave);
        assert_eq!(polite, Err(Ended(Cause::Draining)));
        assert!(line.is_finishing());
        registry.expire(Instant::now());
        assert_eq!(line.phase(), Phase::Leaving(Cause::Draining));
        assert_eq!(line.guard_idle(async { 7 }).await, Ok(7));
        let (idle, ()) = tokio::join!(line.guard_idle(pending::<()>()), async {
            registry.expire(Instant::now() + Duration::from_secs(2));
        });
        assert_eq!(idle, Err(Ended(Cause::Draining)));
        let (busy, ()) = tokio::join!(line.guard(pending::<()>()), async {
            registry.expire(Instant::now() + Duration::from_secs(8));
            tokio::task::yield_now().await;
            assert_eq!(line.phase(), Phase::Finishing(Cause::Draining));
            registry.expire(Instant::now() + Duration::from_secs(10));
        });
        assert_eq!(busy, Err(Ended(Cause::Draining)));
    }

    #[test]
    fn a_refusal_ends_a_leaving_connection_sooner_and_nothing_makes_it_later() {
        let line = Lifeline::new();
        line.leave(Cause::CertificateExpired, Duration::from_secs(5), Duration::from_secs(10));
        line.leave(Cause::Draining, Duration::from_secs(50), Duration::from_secs(60));
        assert_eq!(line.phase(), Phase::Leaving(Cause::CertificateExpired));
        let left = |cell: &Cell<Option<Instant>>| cell.get().unwrap().duration_since(Instant::now());
        assert!(left(&line.state.leave_by) <= Duration::from_secs(5));
        assert!(left(&line.state.finish_by) <= Duration::from_secs(10));
        line.finish(Cause::PolicyChanged, Duration::from_millis(500));
        assert_eq!(line.phase(), Phase::Finishing(Cause::PolicyChanged));
        line.finish(Cause::Draining, Duration::from_secs(60));
        assert_eq!(line.phase(), Phase::Finishing(Cause::PolicyChanged));
        assert!(left(&line.state.finish_by) <= Duration::from_millis(500));
    }

    #[tokio::test]
    async fn what_is_done_is_done_even_when_the_connection_is_to_end() {
        let line = Lifeline::new();
        line.close(Cause::PolicyChanged);
        assert_eq!(line.guard(async { 7 }).await, Ok(7));
    }

    #[test]
    fn a_dropped_connection_leaves_the_registry() {
        let registry = Registry::new();
        drop(registry.add(Rc::new(())));
        registry.expire(Instant::now());
        assert!(registry.is_empty());
    }
}
