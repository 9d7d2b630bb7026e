//! HTTP/2 connections to one app: a few, each shared by many requests.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared, WeakShared};
use http::{Request, Response};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::TokioIo;

use super::body::{self, Outgoing, UpstreamBody};
use super::error::{UpstreamError, Violation, http2_cause};
use super::socket::{Socket, Watch};
use crate::http::h2::LocalExecutor;
use crate::limits::Limits;

/// Requests on one connection before another is opened; fewer if the app says so.
const STREAMS: usize = 100;
/// Connections to one app. Beyond them requests wait for room on one that is there.
const CONNECTIONS: usize = 8;
/// Of an answer, received and not yet taken by its client.
const STREAM_WINDOW: u32 = 64 * 1024;
/// The same for all streams together; more than they can use, so that a client that does not read holds up nobody
/// else. h2 lets half of it be spent on the overhead of small frames that wait to be taken, and ends the connection
/// then: so much is room for most of [`STREAMS`] filled with 20 bytes a frame.
const CONNECTION_WINDOW: u32 = 128 * 1024 * 1024;
/// An app says GOAWAY before it closes, so an idle connection may be kept for longer than an HTTP/1.1 one.
const IDLE: Duration = Duration::from_secs(60);

/// The connections to one app.
pub(super) struct Connections {
    app: SocketAddr,
    head_bytes: u32,
    open: Rc<RefCell<Vec<Rc<Carrier>>>>,
    dial: RefCell<Option<WeakShared<Dial>>>,
}

type Dial = LocalBoxFuture<'static, Result<Rc<Carrier>, UpstreamError>>;

/// One connection.
struct Carrier {
    sender: SendRequest<Outgoing>,
    watch: Rc<Watch>,
    streams: Cell<usize>,
    most_streams: Rc<Cell<usize>>,
    idle_since: Cell<Instant>,
}

/// Room for one request on a connection.
pub(super) struct Lease {
    connection: Rc<Carrier>,
}

/// A request that failed, and whether the app may have looked at it.
struct Failure {
    error: UpstreamError,
    is_untouched: bool,
}

impl Connections {
    pub(super) fn new(app: SocketAddr, limits: &Limits) -> Self {
        let head_bytes = u32::try_from(limits.head_bytes).unwrap_or(u32::MAX);
        Self { app, head_bytes, open: Rc::default(), dial: RefCell::default() }
    }

    pub(super) async fn send(
        &self,
        request: Request<Outgoing>,
        connect_timeout: Duration,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let (head, body) = request.into_parts();
        let retained = body.retain();
        let lease = self.lease(connect_timeout).await?;
        let failure = match lease.send(Request::from_parts(head.clone(), body)).await {
            Ok(response) => return Ok(response),
            Err((failure, connection)) => {
                if failure.is_untouched {
                    self.open.borrow_mut().retain(|open| !Rc::ptr_eq(open, &connection));
                }
                failure
            }
        };
        let body = if failure.is_untouched { retained.reclaim() } else { None };
        let Some(body) = body else { return Err(failure.error) };
        let lease = Lease::new(self.dial(connect_timeout).await?);
        lease.send(Request::from_parts(head, body)).await.map_err(|(failure, _)| failure.error)
    }

    pub(super) fn sweep(&self, now: Instant) {
        let is_needed = |connection: &Carrier| {
            connection.streams.get() > 0 || now.saturating_duration_since(connection.idle_since.get()) < IDLE
        };
        self.open.borrow_mut().retain(|connection| !connection.sender.is_closed() && is_needed(connection));
    }

    pub(super) fn len(&self) -> usize {
        self.open.borrow().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Room on a connection that is open, or on a new one.
    async fn lease(&self, timeout: Duration) -> Result<Lease, UpstreamError> {
        for _ in 0..CONNECTIONS {
            if let Some(lease) = self.lease_open() {
                return Ok(lease);
            }
            let connection = self.dial(timeout).await?;
            // Others waited for the same one, and may have filled it.
            if connection.has_room() {
                return Ok(Lease::new(connection));
            }
        }
        Ok(Lease::new(self.dial(timeout).await?))
    }

    fn lease_open(&self) -> Option<Lease> {
        let mut open = self.open.borrow_mut();
        open.retain(|connection| !connection.sender.is_closed());
        let least_busy = open.iter().min_by_key(|connection| connection.streams.get())?;
        (least_busy.has_room() || open.len() >= CONNECTIONS).then(|| Lease::new(least_busy.clone()))
    }

    /// Dials, once for all who ask meanwhile.
    async fn dial(&self, timeout: Duration) -> Result<Rc<Carrier>, UpstreamError> {
        let running = self.dial.borrow().as_ref().and_then(WeakShared::upgrade);
        let running = running.filter(|dial| dial.peek().is_none());
        let dial = running.unwrap_or_else(|| {
            let dial: Shared<Dial> =
                dial(self.app, self.head_bytes, timeout, self.open.clone()).boxed_local().shared();
            *self.dial.borrow_mut() = dial.downgrade();
            dial
        });
        dial.await
    }
}

async fn dial(
    app: SocketAddr,
    head_bytes: u32,
    timeout: Duration,
    open: Rc<RefCell<Vec<Rc<Carrier>>>>,
) -> Result<Rc<Carrier>, UpstreamError> {
    let socket = Socket::connect(app, timeout).await?;
    let watch = socket.watch();
    let (sender, mut connection) = Builder::new(LocalExecutor)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(head_bytes)
        .max_send_buf_size(STREAM_WINDOW as usize)
        .handshake(TokioIo::new(socket))
        .await
        .map_err(|error| UpstreamError::from(&error))?;
    let most_streams = Rc::new(Cell::new(STREAMS));
    let limit = most_streams.clone();
    tokio::task::spawn_local(async move {
        let driven = std::future::poll_fn(|context| {
            limit.set(connection.current_max_send_streams().clamp(1, STREAMS));
            Pin::new(&mut connection).poll(context)
        });
        if let Err(error) = driven.await {
            tracing::debug!(%app, %error, "HTTP/2 connection to the app failed");
        }
    });
    let connection = Rc::new(Carrier {
        sender,
        watch,
        streams: Cell::new(0),
        most_streams,
        idle_since: Cell::new(Instant::now()),
    });
    open.borrow_mut().push(connection.clone());
    Ok(connection)
}

impl Carrier {
    fn has_room(&self) -> bool {
        self.streams.get() < self.most_streams.get()
    }

    /// What a failure means.
    fn judge(&self, error: &hyper::Error, is_unsent: bool) -> Failure {
        let cause = http2_cause(error);
        let is_refused = cause.is_some_and(|cause| {
            cause.is_remote() && cause.is_reset() && cause.reason() == Some(h2::Reason::REFUSED_STREAM)
        });
        // While the connection lives, GOAWAY ends only the streams that it disclaims; once it is gone, also those
        // that were being served (RFC 9113 §6.8).
        let is_disclaimed = cause.is_some_and(|cause| {
            cause.is_remote() && cause.is_go_away() && cause.reason() == Some(h2::Reason::NO_ERROR)
        }) && !self.watch.has_ended();
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
    fn new(connection: Rc<Carrier>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        Self { connection }
    }

    async fn send(
        self,
        request: Request<Outgoing>,
    ) -> Result<Response<UpstreamBody>, (Failure, Rc<Carrier>)> {
        let mut sender = self.connection.sender.clone();
        match sender.try_send_request(request).await {
            Ok(response) => Ok(response.map(|body| UpstreamBody::new(body, body::Connection::Http2(self)))),
            Err(mut failure) => {
                let is_unsent = failure.take_message().is_some();
                Err((self.connection.judge(failure.error(), is_unsent), self.connection.clone()))
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection.streams.set(self.connection.streams.get() - 1);
        self.connection.idle_since.set(Instant::now());
    }
}
