//! One HTTP/2 connection to an upstream: how it is opened and driven, and how a request is sent on it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use h2::SendStream;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use http::header::CONTENT_LENGTH;
use http::{Method, Request, request};
use http_body::Body;
use tidegate_core::policy::MeshProtocol;

use super::{Http2, Need, STREAMS};
use crate::flow::outbox::{Outbox, Piece};
use crate::flow::windows::{self, Windows};
use crate::flow::{SEND_BUFFER, send};
use crate::limits::Limits;
use crate::upstream::BoxError;
use crate::upstream::body::{Outgoing, Uploading};
use crate::upstream::connect::Deadline;
use crate::upstream::connect_error::ConnectError;
use crate::upstream::error::{UpstreamError, Violation, reset_reason};
use crate::upstream::place::LimitedConnection;
use crate::upstream::stream::Secured;
use crate::upstream::watched::{ConnectionWatch, Watched};

/// Of all answers on a connection, received and not yet taken by their clients: more than they can use, so that a
/// client that does not read delays no other. h2 lets half of it be spent on the overhead of small frames that wait to
/// be taken, and ends the connection then: so much is room for most of [`STREAMS`] filled with 20 bytes a frame.
const CONNECTION_WINDOW: u32 = 128 * 1024 * 1024;

/// One connection, shared by requests. A task drives it; it closes once nothing refers to it any more, with GOAWAY.
pub(super) struct Http2Connection {
    sender: RefCell<SendRequest<Piece>>,
    /// Whether it has ended, or the app has announced its end.
    is_closed: Cell<bool>,
    /// `None` in plaintext.
    secured: Option<Secured>,
    /// Its place, if its backend has limits.
    pub(super) place: Option<LimitedConnection>,
    watch: Rc<ConnectionWatch>,
    outbox: Outbox,
    pub(super) windows: Rc<Windows>,
    /// When it was opened.
    pub(super) since: Instant,
    /// When it takes no more requests, if ever.
    retires_at: Option<Instant>,
    /// Requests on it.
    pub(super) streams: Cell<usize>,
    /// Requests that it may have: what the app allows, at most [`STREAMS`].
    pub(super) most_streams: Cell<usize>,
    /// Whether a request on it was answered.
    pub(super) has_answered: Cell<bool>,
    /// When the number of requests last went down.
    pub(super) idle_since: Cell<Instant>,
}

/// A request that failed.
pub(super) struct RequestFailure {
    pub(super) error: UpstreamError,
    /// The app has certainly not looked at it.
    pub(super) is_untouched: bool,
    /// The connection, which was used before, ended before any byte of a response: it may have been closed before the
    /// request.
    pub(super) is_stale: bool,
}

impl Http2Connection {
    /// Dials, and waits until the app has said how many requests it takes.
    pub(super) async fn open(
        all: &Rc<Http2>,
        place: Option<LimitedConnection>,
    ) -> Result<Rc<Self>, UpstreamError> {
        let (endpoint, limits) = (&all.endpoint, all.connector.limits());
        let deadline = tokio::time::Instant::now() + all.connector.longest(endpoint);
        let stream = all.connector.connect(endpoint, MeshProtocol::Http2, Deadline::Timer).await?;
        let secured = stream.secured();
        let stream = Watched::new(stream);
        let watch = stream.watch();
        let (sender, driven) = tokio::time::timeout_at(deadline, handshake(stream, &watch, limits))
            .await
            .map_err(|_| UpstreamError::from(ConnectError::Timeout))??;
        let now = Instant::now();
        let connection = Rc::new(Self {
            most_streams: Cell::new(most_streams(&driven)),
            sender: RefCell::new(sender),
            is_closed: Cell::new(false),
            secured,
            place,
            outbox: Outbox::new(),
            windows: Rc::new(Windows::of_answers(STREAMS as u32, all.held.clone())),
            watch,
            since: now,
            retires_at: now.checked_add(with_jitter(limits.upstream_max_age)),
            streams: Cell::new(0),
            has_answered: Cell::new(false),
            idle_since: Cell::new(now),
        });
        let address = endpoint.address;
        tokio::task::spawn_local(drive(driven, Rc::downgrade(&connection), Rc::downgrade(all), address));
        Ok(connection)
    }

    /// Whether it takes more requests.
    pub(super) fn is_open(&self) -> bool {
        let is_spent = self.place.as_ref().is_some_and(LimitedConnection::is_spent);
        !self.is_closed.get() && !is_spent && self.secured.as_ref().is_none_or(Secured::is_current)
    }

    /// Whether it has been open for as long as it may be.
    pub(super) fn is_too_old(&self, now: Instant) -> bool {
        self.retires_at.is_some_and(|retires_at| retires_at <= now)
    }

    /// Adapts the windows to the requests on it, before h2 reads.
    fn adjust_windows(&self, driven: &mut Connection<Watched, Piece>) {
        self.windows.received(self.watch.take_count());
        self.windows.expect_answers(self.streams.get());
        self.windows.adjust(driven);
    }

    /// Records the app's state as h2 sees it; returns whether the app now allows more requests than before.
    fn learn(&self, driven: &Connection<Watched, Piece>, has_ended: bool, context: &mut Context<'_>) -> bool {
        // After GOAWAY it takes no more requests, though it may have some to finish.
        let ready = self.sender.borrow_mut().poll_ready(context);
        self.is_closed.set(has_ended || matches!(ready, Poll::Ready(Err(_))));
        let most = most_streams(driven);
        most > self.most_streams.replace(most)
    }

    /// Whether the app allows one more request now.
    pub(super) fn has_room(&self) -> bool {
        self.streams.get() < self.most_streams.get()
    }

    /// Whether it has room for what a request needs.
    pub(super) fn is_fit(&self, need: &Need) -> bool {
        self.has_room() && need.after.is_none_or(|after| self.since > after)
    }

    /// Sends the head of a request, and begins to send its body. An error comes with whether the app certainly gets
    /// nothing of it.
    pub(super) fn begin(
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

    /// Bytes that were received so far.
    pub(super) fn received(&self) -> u64 {
        self.watch.total()
    }

    /// What a failure means. `before`: the bytes that were received when the request was sent.
    pub(super) fn judge(&self, error: &h2::Error, is_unsent: bool, before: u64) -> RequestFailure {
        let is_refused =
            error.is_remote() && error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        // GOAWAY ends only the streams above its last one (RFC 9113 §6.8); the connection's end ends the others.
        let is_disclaimed =
            error.is_remote() && error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        let error = UpstreamError::from(error);
        RequestFailure {
            error: if self.watch.has_hung_up() {
                UpstreamError::Protocol(Violation::NotHttp2)
            } else {
                error
            },
            is_untouched: is_unsent || is_refused || is_disclaimed,
            is_stale: self.watch.has_ended() && self.watch.total() == before && self.has_answered.get(),
        }
    }
}

impl RequestFailure {
    /// Whether the request may be sent again, as long as nothing was taken from its body. `is_repeatable`: also after a
    /// stale connection.
    pub(super) fn may_repeat(&self, is_repeatable: bool) -> bool {
        self.is_untouched || (self.is_stale && is_repeatable)
    }
}

/// Exchanges the connection prefaces (RFC 9113 §3.4).
async fn handshake(
    stream: Watched,
    watch: &ConnectionWatch,
    limits: &Limits,
) -> Result<(SendRequest<Piece>, Connection<Watched, Piece>), UpstreamError> {
    let mut builder = Builder::new();
    builder
        .initial_window_size(windows::RESPONSE_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false)
        // None before the app's own settings, which are the first that it says.
        .initial_max_send_streams(0);
    let shaken = builder.handshake::<_, Piece>(stream).await;
    let (sender, mut driven) = shaken.map_err(|error| UpstreamError::from(&error))?;
    poll_fn(|context| poll_settings(&mut driven, watch, context)).await?;
    Ok((sender, driven))
}

/// Drives a connection until it ends.
async fn drive(
    mut driven: Connection<Watched, Piece>,
    connection: Weak<Http2Connection>,
    all: Weak<Http2>,
    address: SocketAddr,
) {
    let ended = poll_fn(|context| {
        if let Some(connection) = connection.upgrade() {
            connection.adjust_windows(&mut driven);
        }
        let outcome = Pin::new(&mut driven).poll(context);
        if let Some(connection) = connection.upgrade()
            && connection.learn(&driven, outcome.is_ready(), context)
            && let Some(all) = all.upgrade()
        {
            all.serve_queue();
        }
        outcome
    });
    if let Err(error) = ended.await {
        tracing::debug!(%address, %error, "HTTP/2 connection to an upstream failed");
    }
    if let Some(all) = all.upgrade()
        && !all.queue.borrow().is_empty()
    {
        all.dial();
    }
}

/// Ready once the app has said how many requests it takes, or that it is not one of HTTP/2.
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

/// As many requests as the app allows at a time (SETTINGS_MAX_CONCURRENT_STREAMS), within our own bound.
fn most_streams(connection: &Connection<Watched, Piece>) -> usize {
    connection.max_concurrent_send_streams().min(STREAMS)
}

/// Whether a request by this method has a body, be it empty (RFC 9110 §9.3).
fn has_payload(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT)
}

/// A random time within a tenth of `time`, so that connections that were opened together do not end together.
fn with_jitter(time: Duration) -> Duration {
    let spread = (time / 5).as_secs_f64() * rand::random::<f64>();
    (time - time / 10).saturating_add(Duration::try_from_secs_f64(spread).unwrap_or_default())
}

/// Sends a body, in a task of its own.
fn upload(body: Outgoing, stream: SendStream<Piece>, outbox: Outbox) -> Uploading {
    let (retained, mut body, mut stream) = (body.retain(), body, stream);
    let task = tokio::task::spawn_local(async move {
        let reason = |error: BoxError| reset_reason(&*error);
        // The response, or its absence, shows the outcome.
        let _ = send::send(&mut body, &mut stream, &outbox, false, || {}, reason).await;
    });
    retained.sent_by(task.abort_handle())
}
