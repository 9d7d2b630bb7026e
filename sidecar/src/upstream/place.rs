//! Places of connections to backends with limits ([`LimitedUsage`]), and the requests that wait for one.
//!
//! All workers count together, and each has connections of its own. So a pool that has no connection to an endpoint gets
//! one, whatever the count is: its requests would wait for what other workers or pools have (Envoy does the same).

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::backend::{LimitedResource, LimitedUsage, UsagePermit};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::request_limit::RequestLimit;

/// The connections of one pool to one endpoint of a backend with limits.
pub(super) struct LimitedEndpoint {
    usage: Arc<LimitedUsage>,
    /// Connections, those included that take no more requests.
    open: Cell<usize>,
    /// Requests that wait for one.
    waiting: Cell<usize>,
    /// A connection has become idle, or has ended.
    news: Notify,
}

/// One connection among them, until it is dropped.
pub(super) struct LimitedConnection {
    endpoint: Rc<LimitedEndpoint>,
    _permit: UsagePermit,
    /// Requests that it has had.
    requests: Cell<u32>,
}

/// The place of a connection of HTTP/1, and of the request on it.
pub(super) struct Http1Place {
    place: LimitedConnection,
    request: Option<UsagePermit>,
}

/// A place for a connection that is to be opened, for a request that waits for it.
pub(super) struct OpeningPlace {
    place: LimitedConnection,
    _pending: UsagePermit,
}

/// What a request gets that has waited.
pub(super) enum ConnectionTurn<C> {
    /// A connection that was idle.
    Idle(C),
    /// A place for a new one; `None`: nothing is limited.
    Open(Option<OpeningPlace>),
}

/// A request that waits, until this is dropped.
struct WaitingRequest<'e>(&'e LimitedEndpoint);

impl LimitedEndpoint {
    pub(super) fn new(usage: &Arc<LimitedUsage>) -> Rc<Self> {
        let (open, waiting) = (Cell::new(0), Cell::new(0));
        Rc::new(Self { usage: usage.clone(), open, waiting, news: Notify::new() })
    }

    /// A place for one more connection, if there is one.
    pub(super) fn place(self: &Rc<Self>) -> Option<LimitedConnection> {
        let permit = self.usage.take(LimitedResource::Connection);
        let is_first = self.open.get() == 0;
        let permit = permit.or_else(|| is_first.then(|| self.usage.exceed(LimitedResource::Connection)))?;
        self.open.set(self.open.get() + 1);
        Some(LimitedConnection { endpoint: self.clone(), _permit: permit, requests: Cell::new(0) })
    }

    /// Counts a request that waits for a connection.
    pub(super) fn pend(&self) -> Result<UsagePermit, RequestLimit> {
        self.usage.take(LimitedResource::PendingRequest).ok_or(RequestLimit::PendingRequests)
    }

    /// Waits for an idle connection, or for a place for a new one, behind the requests that wait already, and no longer
    /// than `patience`.
    pub(super) async fn turn<C>(
        self: &Rc<Self>,
        patience: Duration,
        idle: impl Fn() -> Option<C>,
    ) -> Result<ConnectionTurn<C>, RequestLimit> {
        let pending = self.pend()?;
        let deadline = Instant::now() + patience;
        let mut is_next = !self.has_waiting();
        let _waiting = WaitingRequest::new(self);
        loop {
            if is_next && let Some(connection) = idle() {
                return Ok(ConnectionTurn::Idle(connection));
            }
            if is_next && let Some(place) = self.place() {
                return Ok(ConnectionTurn::Open(Some(OpeningPlace { place, _pending: pending })));
            }
            timeout_at(deadline, self.news.notified()).await.map_err(|_| RequestLimit::Queue)?;
            is_next = true;
        }
    }

    /// Whether requests wait for a connection.
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting.get() > 0
    }

    /// A connection has become idle: a request that waits may have it.
    pub(super) fn became_idle(&self) {
        if self.has_waiting() {
            self.news.notify_one();
        }
    }

    /// Has the requests that wait look for a place again: other workers may have given some back, or the limit has changed.
    pub(super) fn look_again(&self) {
        self.news.notify_waiters();
    }
}

impl LimitedConnection {
    /// Counts a request that goes over the connection.
    pub(super) fn count_request(&self) {
        self.requests.set(self.requests.get().saturating_add(1));
    }

    /// A request that was counted does not go over the connection.
    pub(super) fn discount_request(&self) {
        self.requests.set(self.requests.get().saturating_sub(1));
    }

    /// Counts a request in flight to the backend.
    pub(super) fn request(&self) -> Result<UsagePermit, RequestLimit> {
        self.endpoint.usage.take(LimitedResource::Request).ok_or(RequestLimit::Requests)
    }

    /// Whether the connection has had as many requests as it may have.
    pub(super) fn is_spent(&self) -> bool {
        self.endpoint.usage.is_spent(self.requests.get())
    }
}

impl Http1Place {
    /// A request begins on the connection.
    pub(super) fn begin(&mut self) -> Result<(), RequestLimit> {
        self.request = Some(self.place.request()?);
        self.place.count_request();
        Ok(())
    }

    /// The request is over.
    pub(super) fn end(&mut self) {
        self.request = None;
    }

    /// The place of the connection.
    pub(super) fn connection(&self) -> &LimitedConnection {
        &self.place
    }
}

impl OpeningPlace {
    /// The connection is open, and the request waits no more.
    pub(super) fn opened(self) -> Box<Http1Place> {
        Box::new(Http1Place { place: self.place, request: None })
    }
}

impl<'e> WaitingRequest<'e> {
    fn new(endpoint: &'e LimitedEndpoint) -> Self {
        endpoint.waiting.set(endpoint.waiting.get() + 1);
        Self(endpoint)
    }
}

impl Drop for WaitingRequest<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

impl Drop for LimitedConnection {
    fn drop(&mut self) {
        self.endpoint.open.set(self.endpoint.open.get() - 1);
        self.endpoint.became_idle();
    }
}
