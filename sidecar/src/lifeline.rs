//! How a worker ends connections: on deadlines, for a drain, or when policy or certificates no longer allow them.
//!
//! A worker owns its connections on one thread, so two cells are enough: no lock, no channel, no timer per connection.
//! The worker visits its connections on a coarse tick and on every change ([`Registry::expire`],
//! [`Registry::for_each`]); a connection's task checks its [`Lifeline`] whenever it is polled.

mod registry;

use std::cell::{Cell, OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

pub use self::registry::Registry;

use crate::places::{ConnectionPlace, Eviction, UnfinishedPart};

/// What a connection may still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Everything.
    Open,
    /// Everything, but the next response is the last and says so. Waits only a limited time for a request.
    Leaving(Cause),
    /// Complete requests in flight, tell the client if the protocol allows it, and close.
    Finishing(Cause),
    /// Nothing more.
    Closed(Cause),
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The client took too long.
    Deadline(Wait),
    /// The sidecar is shutting down.
    Draining,
    /// The policy no longer allows it.
    PolicyChanged,
    /// The client certificate has expired.
    CertificateExpired,
    /// The trust bundle no longer accepts the client certificate.
    TrustBundleChanged,
    /// Its client holds the most places, and another client needs one.
    MadeRoom,
    /// No room for an incomplete TLS record.
    NoRoom,
    /// The peer acknowledges nothing any more.
    PeerVanished,
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
    /// More of a body, or that a body can be written.
    Body,
    /// The next request.
    Idle,
    /// The app's TCP handshake.
    Connect,
    /// Any byte of an event stream or a gRPC stream.
    Stream,
    /// Any byte of a response whose client has half-closed.
    HalfClose,
}

/// A connection's handle. Cheap to clone; every clone refers to the same connection.
#[derive(Clone)]
pub struct Lifeline {
    state: Rc<LineState>,
}

/// The connection's phase changed while it waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection must end: {0:?}")]
pub struct Ended(pub Cause);

/// Shared by the clones of a [`Lifeline`].
struct LineState {
    phase: Cell<Phase>,
    deadline: Cell<Option<LineDeadline>>,
    /// When [`Phase::Leaving`] turns into [`Phase::Finishing`].
    leave_by: Cell<Option<Instant>>,
    /// When [`Phase::Finishing`] turns into [`Phase::Closed`].
    finish_by: Cell<Option<Instant>>,
    /// When the connection must be polled, whatever happens.
    look_at: Cell<Option<Instant>>,
    waker: RefCell<Option<Waker>>,
    /// The place that counts it; none for a connection outside a registry.
    place: OnceCell<ConnectionPlace>,
}

/// When a wait ends, and when it began.
#[derive(Clone, Copy)]
struct LineDeadline {
    since: Instant,
    by: Instant,
    wait: Wait,
}

/// The order in which connections make room for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Precedence {
    /// Idle since then: it waits for its client, and nothing is in flight.
    Idle(Instant),
    /// A request is in flight, but has made no progress since then.
    Stalled(Instant),
    /// A request is in flight.
    Busy,
}

impl Lifeline {
    /// A lifeline that no worker watches; for tests and for connections that never end early.
    pub fn new() -> Self {
        let state = LineState {
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

    /// Accounts for bytes of an incomplete handshake or request head. `false` if there is no room for them.
    #[must_use]
    pub fn hold(&self, bytes: usize) -> bool {
        self.state.place.get().is_none_or(|place| place.hold(UnfinishedPart::Message, bytes))
    }

    /// Accounts for bytes of TLS records that are incomplete or unread. Closes the connection if there is no room for
    /// them.
    pub(crate) fn hold_record(&self, bytes: usize) {
        if self.state.place.get().is_some_and(|place| !place.hold(UnfinishedPart::Record, bytes)) {
            self.close(Cause::NoRoom);
        }
    }

    /// Assigns the connection to the client with these verified names.
    pub(crate) fn identify(&self, names: &str) {
        if let Some(place) = self.state.place.get() {
            place.identify(names);
        }
    }

    /// How soon this connection must make room, if it belongs to the source that must.
    pub(crate) fn precedence(&self, eviction: &Eviction) -> Option<Precedence> {
        let is_meant = self.state.place.get().is_some_and(|place| place.is_of(eviction));
        if !is_meant || matches!(self.phase(), Phase::Closed(_)) {
            return None;
        }
        Some(match self.state.deadline.get() {
            Some(LineDeadline { since, wait: Wait::Body | Wait::Connect, .. }) => Precedence::Stalled(since),
            Some(LineDeadline { since, .. }) => Precedence::Idle(since),
            None => Precedence::Busy,
        })
    }

    /// What the connection may still do.
    pub fn phase(&self) -> Phase {
        self.state.phase.get()
    }

    /// Whether the connection should end as soon as nothing is in flight, and announce it in its responses.
    pub(crate) fn is_finishing(&self) -> bool {
        self.phase() != Phase::Open
    }

    /// Sets the deadline, replacing the one before. Coarse: it fires up to a tick late.
    pub fn within(&self, time: Duration, wait: Wait) {
        let since = Instant::now();
        self.state.deadline.set(since.checked_add(time).map(|by| LineDeadline { since, by, wait }));
    }

    /// Removes the deadline.
    pub(crate) fn at_ease(&self) {
        self.state.deadline.set(None);
    }

    /// Polls the connection once this time is over, for conditions that wake no task. Coarse, like a deadline.
    pub(crate) fn look_after(&self, time: Duration) {
        self.state.look_at.set(Instant::now().checked_add(time));
    }

    /// Whether it is time for a look at the connection: the first time, and then once after each `time`, for which the
    /// connection is polled. Costs nothing in between.
    pub(crate) fn look_every(&self, time: Duration) -> bool {
        let is_due = self.state.look_at.get().is_none();
        if is_due {
            self.look_after(time);
        }
        is_due
    }

    /// Closes the connection gracefully: the next response tells the client that it is the last. Protocols that cannot
    /// announce it by themselves wait for a request for `idle`, and then finish; all are closed after `grace`. If
    /// called again, the sooner time counts.
    pub(crate) fn close_gracefully(&self, cause: Cause, idle: Duration, grace: Duration) {
        if let Phase::Closed(_) = self.phase() {
            return;
        }
        set_earlier(&self.state.leave_by, idle);
        set_earlier(&self.state.finish_by, grace);
        if self.phase() == Phase::Open {
            self.state.phase.set(Phase::Leaving(cause));
            self.wake();
        }
    }

    /// Lets the connection complete requests in flight for at most this long.
    pub fn finish(&self, cause: Cause, grace: Duration) {
        if let Phase::Closed(_) = self.phase() {
            return;
        }
        let is_sooner = set_earlier(&self.state.finish_by, grace);
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

    /// Drives a future until it is done or the connection is closed ([`Phase::Closed`]). The returned future holds
    /// `future` twice, so pass a large one pinned.
    pub fn guard<F: Future>(&self, future: F) -> impl Future<Output = Result<F::Output, Ended>> {
        self.run(future, |phase| match phase {
            Phase::Closed(cause) => Some(cause),
            Phase::Open | Phase::Leaving(_) | Phase::Finishing(_) => None,
        })
    }

    /// Drives a future during which nothing is in flight: it also ends when the connection is finishing.
    pub(crate) fn guard_idle<F: Future>(&self, future: F) -> impl Future<Output = Result<F::Output, Ended>> {
        self.run(future, |phase| match phase {
            Phase::Closed(cause) | Phase::Finishing(cause) => Some(cause),
            Phase::Open | Phase::Leaving(_) => None,
        })
    }

    /// Drives a future that also ends when the connection is leaving.
    pub(crate) fn guard_open<F: Future>(&self, future: F) -> impl Future<Output = Result<F::Output, Ended>> {
        self.run(future, |phase| match phase {
            Phase::Closed(cause) | Phase::Finishing(cause) | Phase::Leaving(cause) => Some(cause),
            Phase::Open => None,
        })
    }

    /// Drives a step towards an upstream for at most `time`; `None`: it takes longer, which unlike other deadlines does not
    /// end the connection. It ends when the connection is closed.
    pub(crate) async fn limit<F: Future>(&self, time: Duration, step: F) -> Result<Option<F::Output>, Ended> {
        let mut step = pin!(step);
        self.within(time, Wait::Connect);
        let done = poll_fn(|context| {
            if let Poll::Ready(output) = step.as_mut().poll(context) {
                return Poll::Ready(Ok(Some(output)));
            }
            // The tick has removed it.
            if self.state.deadline.get().is_none() {
                return Poll::Ready(Ok(None));
            }
            self.poll_closed(context).map(Err)
        });
        let done = done.await;
        self.at_ease();
        done
    }

    /// Drives a future until it is done or `ends` returns a cause.
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
            self.register(context);
            Poll::Pending
        })
        .await
    }

    /// Ready with the cause once the connection is closed, for streams, which do not run under [`Lifeline::guard`].
    /// Wakes the task that polled last.
    pub(crate) fn poll_closed(&self, context: &mut Context<'_>) -> Poll<Ended> {
        if let Phase::Closed(cause) = self.phase() {
            return Poll::Ready(Ended(cause));
        }
        self.register(context);
        Poll::Pending
    }

    /// Registers the task to be woken by the next change of the phase.
    fn register(&self, context: &mut Context<'_>) {
        let mut waker = self.state.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }

    /// Wakes the connection's task, which then looks at the phase.
    fn wake(&self) {
        // The cell must not be borrowed while waking: a waker may run any code, such as dropping a task.
        let waker = self.state.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Cause {
    /// The cause in the access log's response code details.
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
            Self::PeerVanished => "upstream_vanished",
        }
    }
}

impl Default for Lifeline {
    fn default() -> Self {
        Self::new()
    }
}

/// Sets a time from now unless an earlier one is set; returns whether it did.
fn set_earlier(cell: &Cell<Option<Instant>>, time: Duration) -> bool {
    let Some(by) = Instant::now().checked_add(time) else { return false };
    let is_sooner = cell.get().is_none_or(|before| by < before);
    if is_sooner {
        cell.set(Some(by));
    }
    is_sooner
}

#[cfg(test)]
mod tests;
