//! HTTP/2 connections to one endpoint, driven by h2: a few, each shared by many requests.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use h2::SendStream;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response, request};
use http_body::Body;
use tidegate_core::backend::Endpoint;
use tidegate_core::policy::MeshProtocol;
use tokio::sync::oneshot;

use super::body::{Outgoing, Uploading, UpstreamBody};
use super::connect::{Connector, Deadline};
use super::connect_error::ConnectFailure;
use super::error::{Limit, UpstreamError, Violation, reset_reason};
use super::shares::{Share, Shares, Source};
use super::stream::Secured;
use super::watched::{ConnectionWatch, Watched};
use crate::flow::outbox::{Outbox, Piece};
use crate::flow::windows::{self, Windows};
use crate::flow::{SEND_BUFFER, send};

/// Requests on one connection before another is opened; fewer if the app says so.
const STREAMS: usize = 100;
/// Of all answers on a connection, received and not yet taken by their clients: more than they can use, so that a client
/// that does not read delays no other. h2 lets half of it be spent on the overhead of small frames that wait to be taken, and ends the connection
/// then: so much is room for most of [`STREAMS`] filled with 20 bytes a frame.
const CONNECTION_WINDOW: u32 = 128 * 1024 * 1024;
/// An app says GOAWAY before it closes, so an idle connection may be kept for longer than an HTTP/1.1 one.
const IDLE: Duration = Duration::from_secs(60);

/// The connections to one endpoint.
pub(super) struct Http2 {
    endpoint: Arc<Endpoint>,
    connector: Rc<Connector>,
    open: RefCell<Vec<Rc<Carrier>>>,
    /// Requests that have room, and whose they are.
    shares: Rc<Shares>,
    /// Requests that wait for room, the longest one first.
    queue: RefCell<VecDeque<Waiter>>,
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
    source: Source,
    /// The connection must be younger.
    after: Option<Instant>,
}

/// One connection.
struct Carrier {
    sender: RefCell<SendRequest<Piece>>,
    /// Whether it has ended, or the app has said that it ends.
    is_closed: Cell<bool>,
    /// `None` in plaintext.
    secured: Option<Secured>,
    watch: Rc<ConnectionWatch>,
    outbox: Outbox,
    windows: Rc<Windows>,
    since: Instant,
    streams: Cell<usize>,
    most_streams: Cell<usize>,
    idle_since: Cell<Instant>,
}

/// Room for one request on a connection.
pub(super) struct Lease {
    connection: Rc<Carrier>,
    all: Rc<Http2>,
    share: Option<Share>,
}

/// A request that failed, and whether the app may have looked at it.
struct Failure {
    error: UpstreamError,
    is_untouched: bool,
}

impl Http2 {
    /// `held`: bytes of answers that all connections of the worker hold.
    pub(super) fn new(endpoint: Arc<Endpoint>, connector: Rc<Connector>, held: Rc<Cell<usize>>) -> Rc<Self> {
        Rc::new(Self {
            held,
            endpoint,
            connector,
            open: RefCell::default(),
            shares: Rc::default(),
            queue: RefCell::default(),
            is_dialling: Cell::new(false),
        })
    }

    pub(super) async fn send(
        self: Rc<Self>,
        source: Source,
        head: Box<request::Parts>,
        body: Outgoing,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let (again, retained) = (head.clone(), body.retain());
        let mut need = Need { source, after: None };
        let lease = self.lease(&need).await?;
        let failure = match lease.send(head, body).await {
            Ok(response) => return Ok(response),
            Err((failure, connection)) => {
                if failure.is_untouched {
                    self.open.borrow_mut().retain(|open| !Rc::ptr_eq(open, &connection));
                    need.after = Some(connection.since);
                }
                failure
            }
        };
        let body = if failure.is_untouched { retained.reclaim() } else { None };
        let Some(body) = body else { return Err(failure.error) };
        // Rare, and so without room in every request's future.
        let retry = Box::pin(async move {
            let lease = self.lease(&need).await?;
            lease.send(again, body).await.map_err(|(failure, _)| failure.error)
        });
        retry.await
    }

    pub(super) fn sweep(&self, now: Instant) {
        let is_needed = |connection: &Carrier| {
            connection.streams.get() > 0 || now.saturating_duration_since(connection.idle_since.get()) < IDLE
        };
        self.open.borrow_mut().retain(|connection| connection.is_open() && is_needed(connection));
    }

    pub(super) fn len(&self) -> usize {
        self.open.borrow().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Room on a connection that is open, or on a new one, at once or when there is some.
    async fn lease(self: &Rc<Self>, need: &Need) -> Result<Lease, UpstreamError> {
        if self.queue.borrow().is_empty()
            && let Some(lease) = self.lease_open(need)
        {
            return Ok(lease);
        }
        Box::pin(self.wait(need.clone())).await
    }

    async fn wait(self: &Rc<Self>, need: Need) -> Result<Lease, UpstreamError> {
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
            Err(_) => Err(UpstreamError::Overflow(Limit::Queue)),
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
        connection.streams.set(connection.streams.get() + 1);
        Some(Lease { connection, all: self.clone(), share: Some(share) })
    }

    /// Requests that the app would take on as many connections as there may be.
    fn most_requests(&self, open: &[Rc<Carrier>]) -> usize {
        let taken: usize = open.iter().map(|connection| connection.most_streams.get()).sum();
        let newest = open.last().map_or(STREAMS, |connection| connection.most_streams.get());
        taken + self.connector.limits().upstream_connections.saturating_sub(open.len()) * newest
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
                match connect(&all).await {
                    Ok(connection) => all.open.borrow_mut().push(connection),
                    Err(error) => {
                        // Room on another connection may still come.
                        if all.is_empty() {
                            let waiting = std::mem::take(&mut *all.queue.borrow_mut());
                            for waiter in waiting {
                                drop(waiter.room.send(Err(error)));
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

/// Whether a request by this method has a body, be it empty (RFC 9110 §9.3).
fn has_payload(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT)
}

/// Dials, and waits until the app has said how many requests it takes.
async fn connect(all: &Rc<Http2>) -> Result<Rc<Carrier>, UpstreamError> {
    let (endpoint, limits) = (&all.endpoint, all.connector.limits());
    let deadline = tokio::time::Instant::now() + all.connector.longest(endpoint);
    let stream = all.connector.connect(endpoint, MeshProtocol::Http2, Deadline::Timer).await?;
    let secured = stream.secured();
    let stream = Watched::new(stream);
    let watch = stream.watch();
    let mut builder = Builder::new();
    builder
        .initial_window_size(windows::RESPONSE_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false)
        // None before the app's own settings, which are the first that it says (RFC 9113 §3.4).
        .initial_max_send_streams(0);
    let handshake = builder.handshake::<_, Piece>(stream).await;
    let (sender, mut connection) = handshake.map_err(|error| UpstreamError::from(&error))?;
    let settled = poll_fn(|context| poll_settings(&mut connection, &watch, context));
    tokio::time::timeout_at(deadline, settled)
        .await
        .map_err(|_| UpstreamError::Connect(ConnectFailure::Timeout))??;
    let now = Instant::now();
    let carrier = Rc::new(Carrier {
        most_streams: Cell::new(most_streams(&connection)),
        sender: RefCell::new(sender),
        is_closed: Cell::new(false),
        secured,
        outbox: Outbox::new(),
        windows: Rc::new(Windows::of_answers(STREAMS as u32, all.held.clone())),
        watch,
        since: now,
        streams: Cell::new(0),
        idle_since: Cell::new(now),
    });
    let address = endpoint.address;
    let (driven, all) = (Rc::downgrade(&carrier), Rc::downgrade(all));
    let left = all.clone();
    tokio::task::spawn_local(async move {
        let driven = poll_fn(|context| {
            if let Some(carrier) = driven.upgrade() {
                carrier.windows.received(carrier.watch.take_count());
                carrier.windows.expect_answers(carrier.streams.get());
                carrier.windows.adjust(&mut connection);
            }
            let outcome = Pin::new(&mut connection).poll(context);
            if let Some(carrier) = driven.upgrade() {
                // After GOAWAY it takes no more requests, though it may have some to finish.
                let ready = carrier.sender.borrow_mut().poll_ready(context);
                let is_closed = outcome.is_ready() || matches!(ready, Poll::Ready(Err(_)));
                carrier.is_closed.set(is_closed);
                let most = most_streams(&connection);
                let has_more = most > carrier.most_streams.replace(most);
                if has_more && let Some(all) = all.upgrade() {
                    all.serve_queue();
                }
            }
            outcome
        });
        if let Err(error) = driven.await {
            tracing::debug!(%address, %error, "HTTP/2 connection to an upstream failed");
        }
        if let Some(all) = left.upgrade()
            && !all.queue.borrow().is_empty()
        {
            all.dial();
        }
    });
    Ok(carrier)
}

fn poll_settings(
    connection: &mut Connection<Watched, Piece>,
    watch: &ConnectionWatch,
    context: &mut Context<'_>,
) -> Poll<Result<(), UpstreamError>> {
    match Pin::new(&mut *connection).poll(context) {
        Poll::Ready(Err(error)) if !watch.has_hung_up() => Poll::Ready(Err(UpstreamError::from(&error))),
        Poll::Ready(_) if watch.has_hung_up() => {
            Poll::Ready(Err(UpstreamError::Protocol(Violation::NotHttp2)))
        }
        Poll::Ready(_) => Poll::Ready(Err(UpstreamError::Closed)),
        Poll::Pending if most_streams(connection) > 0 || watch.has_spoken() => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    }
}

fn most_streams(connection: &Connection<Watched, Piece>) -> usize {
    connection.max_concurrent_send_streams().min(STREAMS)
}

impl Carrier {
    /// Whether it takes more requests.
    fn is_open(&self) -> bool {
        !self.is_closed.get() && self.secured.as_ref().is_none_or(Secured::is_current)
    }

    fn has_room(&self) -> bool {
        self.streams.get() < self.most_streams.get()
    }

    /// Whether it has room for what a request needs.
    fn is_fit(&self, need: &Need) -> bool {
        self.has_room() && need.after.is_none_or(|after| self.since > after)
    }

    /// Sends the head of a request, and begins to send its body. An error comes with whether the app certainly gets
    /// nothing of it.
    fn begin(
        &self,
        head: Box<request::Parts>,
        body: Outgoing,
    ) -> Result<(ResponseFuture, Option<Uploading>), (h2::Error, bool)> {
        let mut sender = self.sender.borrow().clone();
        let ready = sender.poll_ready(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(Err(error)) = ready {
            return Err((error, true));
        }
        let mut request = Request::from_parts(*head, ());
        let is_end = body.is_end_stream();
        if let Some(length) = body.size_hint().exact()
            && (length > 0 || has_payload(request.method()))
        {
            request.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        let (response, stream) = sender.send_request(request, is_end).map_err(|error| (error, false))?;
        let uploading = (!is_end).then(|| upload(body, stream, self.outbox.clone()));
        Ok((response, uploading))
    }

    /// What a failure means.
    fn judge(&self, error: &h2::Error, is_unsent: bool) -> Failure {
        let is_refused =
            error.is_remote() && error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        // While the connection lives, GOAWAY ends only the streams that it disclaims; once it is gone, also those
        // that were being served (RFC 9113 §6.8).
        let is_disclaimed = error.is_remote()
            && error.is_go_away()
            && error.reason() == Some(h2::Reason::NO_ERROR)
            && !self.watch.has_ended();
        let error = UpstreamError::from(error);
        Failure {
            error: if self.watch.has_hung_up() {
                UpstreamError::Protocol(Violation::NotHttp2)
            } else {
                error
            },
            is_untouched: is_unsent || is_refused || is_disclaimed,
        }
    }
}

impl Lease {
    /// Sends a request. Dropped before the answer has come, the request is cancelled.
    async fn send(
        self,
        head: Box<request::Parts>,
        body: Outgoing,
    ) -> Result<Response<UpstreamBody>, (Failure, Rc<Carrier>)> {
        let lease = Rc::new(self);
        body.hold(lease.clone());
        let (response, uploading) = match lease.connection.begin(head, body) {
            Ok(begun) => begun,
            Err((error, is_unsent)) => {
                return Err((lease.connection.judge(&error, is_unsent), lease.connection.clone()));
            }
        };
        match response.await {
            Ok(response) => {
                let windows = &lease.connection.windows;
                Ok(response.map(|stream| UpstreamBody::http2(stream, windows, lease.clone(), uploading)))
            }
            Err(error) => Err((lease.connection.judge(&error, false), lease.connection.clone())),
        }
    }
}

/// Sends a body, in a task of its own.
fn upload(body: Outgoing, stream: SendStream<Piece>, outbox: Outbox) -> Uploading {
    let (retained, mut body, mut stream) = (body.retain(), body, stream);
    let task = tokio::task::spawn_local(async move {
        let reason = |error: super::BoxError| reset_reason(&*error);
        // The response, or its absence, shows the outcome.
        let _ = send::send(&mut body, &mut stream, &outbox, false, || {}, reason).await;
    });
    retained.sent_by(task.abort_handle())
}

impl Drop for Lease {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.streams.set(connection.streams.get() - 1);
        connection.idle_since.set(Instant::now());
        drop(self.share.take());
        if !self.all.queue.borrow().is_empty() {
            self.all.serve_queue();
        }
    }
}
