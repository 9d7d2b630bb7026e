//! HTTP/2 connections to one endpoint, driven by h2: a few, each shared by many requests.

mod connection;
mod lease;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Response, request};
use tidegate_core::backend::Endpoint;
use tokio::sync::oneshot;

use self::connection::Http2Connection;
pub(super) use self::lease::Lease;
use super::SendFailure;
use super::body::{Outgoing, UpstreamBody};
use super::connect::UpstreamConnector;
use super::error::UpstreamError;
use super::place::LimitedEndpoint;
use super::request_limit::RequestLimit;
use super::shares::{RequestShares, RequestSource};

/// Requests on one connection before another is opened; fewer if the app says so.
const STREAMS: usize = 100;
/// An app says GOAWAY before it closes, so an idle connection may be kept for longer than an HTTP/1.1 one.
const IDLE: Duration = Duration::from_secs(60);

/// The connections to one endpoint.
pub(super) struct Http2 {
    endpoint: Arc<Endpoint>,
    connector: Rc<UpstreamConnector>,
    open: RefCell<Vec<Rc<Http2Connection>>>,
    /// What is counted, if the backend has limits.
    limited: Option<Rc<LimitedEndpoint>>,
    /// Requests that have room, and whose they are.
    shares: Rc<RequestShares>,
    /// Requests that wait for room, the longest one first.
    queue: RefCell<VecDeque<Waiter>>,
    /// One connection is opened at a time, so that a burst of requests does not open one each.
    is_dialling: Cell<bool>,
    /// Received of answers and not yet taken, by all connections of the worker.
    held: Rc<Cell<usize>>,
}

/// A request that waits for room.
struct Waiter {
    need: Need,
    room: oneshot::Sender<Result<Lease, UpstreamError>>,
}

/// What a request needs.
#[derive(Clone, PartialEq)]
struct Need {
    source: RequestSource,
    /// The connection must be younger.
    after: Option<Instant>,
}

impl Http2 {
    /// `held`: bytes of answers that all connections of the worker hold.
    pub(super) fn new(
        endpoint: Arc<Endpoint>,
        connector: Rc<UpstreamConnector>,
        held: Rc<Cell<usize>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            held,
            limited: endpoint.usage.as_ref().map(LimitedEndpoint::new),
            endpoint,
            connector,
            open: RefCell::default(),
            shares: Rc::default(),
            queue: RefCell::default(),
            is_dialling: Cell::new(false),
        })
    }

    /// Sends a request where there is room, or waits for some. It is sent once more, on a connection that was opened later,
    /// if the app has certainly not looked at it (RFC 9113 §8.7), or if the connection turns out to be stale and the
    /// request is [repeatable](Outgoing::is_repeatable); in either case only if nothing was taken from its body.
    pub(super) async fn send(
        self: Rc<Self>,
        source: RequestSource,
        head: Box<request::Parts>,
        body: Outgoing,
    ) -> Result<Response<UpstreamBody>, SendFailure> {
        let mut need = Need { source, after: None };
        let lease = match self.lease(&need).await {
            Ok(lease) => lease,
            Err(error) => return Err(SendFailure::unsent(error, head, body)),
        };
        let is_repeatable = body.is_repeatable(&head.method);
        let (again, retained) = (head.clone(), body.retain());
        let failure = match lease.send(head, body).await {
            Ok(response) => return Ok(response),
            Err((failure, connection)) => {
                if failure.may_repeat(is_repeatable) {
                    self.open.borrow_mut().retain(|open| !Rc::ptr_eq(open, &connection));
                    need.after = Some(connection.since);
                }
                failure
            }
        };
        let body = if failure.may_repeat(is_repeatable) { retained.reclaim() } else { None };
        let Some(body) = body else { return Err(failure.error.into()) };
        if matches!(failure.error, UpstreamError::Vanished) {
            return Err(SendFailure::elsewhere(failure.error, again, body));
        }
        // Rare, and so without room in every request's future.
        let retry = Box::pin(async move {
            let lease = self.lease(&need).await?;
            lease.send(again, body).await.map_err(|(failure, _)| failure.error.into())
        });
        retry.await
    }

    /// Drops connections that have ended, are too old, or have been idle for long; requests in flight finish. Called on
    /// every tick.
    pub(super) fn sweep(self: &Rc<Self>, now: Instant) {
        self.shares.sweep();
        let is_needed = |connection: &Http2Connection| {
            connection.streams.get() > 0 || now.saturating_duration_since(connection.idle_since.get()) < IDLE
        };
        self.open.borrow_mut().retain(|connection| {
            connection.is_open() && !connection.is_too_old(now) && is_needed(connection)
        });
        // A request that waits for room on one of them needs another connection.
        self.dial();
    }

    pub(super) fn len(&self) -> usize {
        self.open.borrow().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Room on a connection that is open, or on a new one, at once or when there is some.
    async fn lease(self: &Rc<Self>, need: &Need) -> Result<Lease, UpstreamError> {
        let is_free = self.queue.borrow().is_empty();
        let lease = match is_free.then(|| self.lease_open(need)).flatten() {
            Some(lease) => lease,
            None => Box::pin(self.wait(need.clone())).await?,
        };
        lease.begin()
    }

    /// Waits in the queue for room, no longer than [`Limits::upstream_queue`](crate::limits::Limits::upstream_queue)
    /// beyond the time that a new connection takes.
    async fn wait(self: &Rc<Self>, need: Need) -> Result<Lease, UpstreamError> {
        let _pending = self.limited.as_ref().map(|limited| limited.pend()).transpose()?;
        let (room, given) = oneshot::channel();
        self.queue.borrow_mut().push_back(Waiter { need, room });
        // Those before it may have their share already.
        self.serve_queue();
        self.dial();
        let is_dialling = self.is_dialling.get();
        let dialling = if is_dialling { self.connector.longest(&self.endpoint) } else { Duration::ZERO };
        let wait = self.connector.limits().upstream_queue + dialling;
        match tokio::time::timeout(wait, given).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(UpstreamError::Closed),
            Err(_) => Err(UpstreamError::Overflow(RequestLimit::Queue)),
        }
    }

    /// Room on the least busy connection that is open, if this client has its share free.
    fn lease_open(self: &Rc<Self>, need: &Need) -> Option<Lease> {
        let mut open = self.open.borrow_mut();
        open.retain(|connection| connection.is_open());
        let fit = open.iter().filter(|connection| connection.is_fit(need));
        let connection = fit.min_by_key(|open| open.streams.get())?.clone();
        let most = self.most_requests(&open);
        drop(open);
        let share = self.shares.take_one(&need.source, most).ok()?;
        Some(Lease::new(connection, self.clone(), share))
    }

    /// Requests that the app would take on as many connections as there may be, and those on connections that take no
    /// more: these finish, and have no part in the room of the others.
    fn most_requests(&self, open: &[Rc<Http2Connection>]) -> usize {
        let taken: usize = open.iter().map(|connection| connection.most_streams.get()).sum();
        let newest = open.last().map_or(STREAMS, |connection| connection.most_streams.get());
        let on_open: usize = open.iter().map(|connection| connection.streams.get()).sum();
        let finishing = self.shares.taken().saturating_sub(on_open);
        finishing + taken + self.connector.limits().upstream_connections.saturating_sub(open.len()) * newest
    }

    /// Gives what room there is to those who wait for it, the longest wait first. A client that has its share is passed
    /// over.
    fn serve_queue(self: &Rc<Self>) {
        self.queue.borrow_mut().retain(|waiter| !waiter.room.is_closed());
        let mut passed_over: Vec<Need> = Vec::new();
        while self.has_room() {
            let is_next = |waiter: &Waiter| !passed_over.contains(&waiter.need);
            let next = {
                let queue = self.queue.borrow();
                queue.iter().position(is_next).and_then(|at| Some((at, queue.get(at)?.need.clone())))
            };
            let Some((at, need)) = next else { return };
            match self.lease_open(&need) {
                None => passed_over.push(need),
                Some(lease) => {
                    let waiter = self.queue.borrow_mut().remove(at);
                    // A request that was given up meanwhile gives its room back.
                    drop(waiter.map(|waiter| waiter.room.send(Ok(lease))));
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        self.open.borrow().iter().any(|connection| connection.is_open() && connection.has_room())
    }

    /// Whether a request waits for which no connection that is open has room.
    fn needs_connection(&self) -> bool {
        let queue = self.queue.borrow();
        if !self.has_room() {
            return !queue.is_empty();
        }
        let open = self.open.borrow();
        let is_fit = |need: &Need| open.iter().any(|connection| connection.is_fit(need));
        queue.iter().any(|waiter| waiter.need.after.is_some() && !is_fit(&waiter.need))
    }

    /// Whether another connection is worth it: there may be one more, and the app has not said of one that is there
    /// that it takes no requests.
    fn may_dial(&self) -> bool {
        let mut open = self.open.borrow_mut();
        open.retain(|connection| connection.is_open());
        open.len() < self.connector.limits().upstream_connections.max(1)
            && open.iter().all(|connection| connection.most_streams.get() > 0)
    }

    /// Dials for those who wait, one connection after the other, unless that goes on already.
    fn dial(self: &Rc<Self>) {
        if self.is_dialling.get() || !self.needs_connection() || !self.may_dial() {
            return;
        }
        self.is_dialling.set(true);
        let all = self.clone();
        tokio::task::spawn_local(async move {
            loop {
                let place = match &all.limited {
                    None => None,
                    Some(limited) => match limited.place() {
                        None => break,
                        place => place,
                    },
                };
                match Http2Connection::open(&all, place).await {
                    Ok(connection) => all.open.borrow_mut().push(connection),
                    Err(error) => {
                        // Room on another connection may still come.
                        if all.is_empty() {
                            let waiting = std::mem::take(&mut *all.queue.borrow_mut());
                            for waiter in waiting {
                                drop(waiter.room.send(Err(error.clone())));
                            }
                        }
                        break;
                    }
                }
                all.serve_queue();
                if !all.needs_connection() || !all.may_dial() {
                    break;
                }
            }
            all.is_dialling.set(false);
        });
    }
}
